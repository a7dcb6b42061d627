"""The predictions of a scan, as tables and as one JSON file.

In a CSV cell, an apostrophe, which marks text in spreadsheets, is put before what begins like a formula or with an
apostrophe, at the start of the cell or after a separator (https://owasp.org/www-community/attacks/CSV_Injection). JSON
has the text unchanged.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from ich_kaggle.common import runs, storage
from ich_kaggle.common.labels import LABELS
from ich_kaggle.scans import model_bundle, slices
from ich_kaggle.scoring import study_level

# What a formula begins with, also where a spreadsheet splits a cell because it takes another separator.
FORMULA = re.compile(r"(^|[,;|\t])(\s*)(?=[=+\-@'\uff1d\uff0b\uff0d\uff20])")
DONE = "predictions.json"
SHOWN = 5  # reasons of files that were passed over


@dataclass(frozen=True)
class Row:
    """A slice of the series that was read."""

    slice_id: str
    file: str
    position: float  # mm
    note: str  # the reason why it is unreadable, or a defect
    source: slices.Slice | None = None


@dataclass(frozen=True)
class Reading:
    """A study: its series, the slices of the chosen one, and their probabilities."""

    study: str
    chosen: str  # the series that was read, empty for none
    series: list[dict]  # every series: its id, its properties, the reason why it was not chosen
    rows: list[Row]
    probability: np.ndarray  # float32 (n_rows, 6), NaN where a slice could not be read

    @property
    def notes(self) -> list[str]:
        """What leaves doubt about the series that was read."""
        return [note for one in self.series if not one["reason"] for note in one["notes"]]

    @property
    def is_read(self) -> np.ndarray:
        return ~np.isnan(self.probability[:, 0])


def cell(text: str) -> str:
    return FORMULA.sub(r"\1\2'", text)


def flags(probability: np.ndarray, thresholds: dict[str, float]) -> list[int]:
    """Return for each label whether its `probability`, of (6,), reaches the threshold."""
    return [int(p >= thresholds[label]) for label, p in zip(LABELS, probability, strict=True)]


def number(value: np.floating) -> float:
    """Return `value` as a float with the shortest decimal form of its own precision."""
    return float(str(value))


def of_study(reading: Reading, parameters: list) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest and the aggregate probability over the slices of a study: (6,) each."""
    known = reading.probability[reading.is_read]
    largest = known.max(axis=0)
    return largest, study_level.apply(parameters, largest[None], known.mean(axis=0)[None])[0].astype(np.float32)


def slice_rows(readings: list[Reading], thresholds: dict[str, float]) -> Iterator[list]:
    yield ["study", "series", "slice", "file", "position_mm", *LABELS, *(f"{label}_flag" for label in LABELS), "note"]
    for reading in readings:
        for row, probability, is_read in zip(reading.rows, reading.probability, reading.is_read, strict=True):
            values = [*probability, *flags(probability, thresholds)] if is_read else [""] * (2 * len(LABELS))
            texts = map(cell, (reading.study, reading.chosen, row.slice_id, row.file))
            yield [*texts, row.position, *values, cell(row.note)]


def study_rows(readings: list[Reading], thresholds: dict[str, float], parameters: list) -> Iterator[list]:
    names = [f"{label}_{what}" for what in ("max", "aggregate", "flag") for label in LABELS]
    yield ["study", "series", "n_slices", "n_unread", *names, "note"]
    for reading in readings:
        values, note = [""] * len(names), "; ".join(f"{one['series']}: {one['reason']}" for one in reading.series)
        if reading.chosen:
            largest, aggregate = of_study(reading, parameters)
            values = [*largest, *aggregate, *flags(largest, thresholds)]
            n_aside = sum(one["n_left_aside"] for one in reading.series if one["series"] == reading.chosen)
            note = "; ".join(reading.notes + [f"{n_aside} files of the series left aside"] * (n_aside > 0))
        n_unread = int((~reading.is_read).sum())
        yield [cell(reading.study), cell(reading.chosen), len(reading.rows), n_unread, *values, cell(note)]


def content(readings: list[Reading], packed: dict, rule: str) -> list[dict]:
    """Return the content of the JSON file for each study."""
    of_slices, of_studies = (chosen_thresholds(packed, level, rule) for level in ("slices", "studies_max"))
    out = []
    for reading in readings:
        found = {"study": reading.study, "read": reading.chosen or None, "series": reading.series, "slices": []}
        if reading.chosen:
            largest, aggregate = of_study(reading, packed["aggregate"])
            found |= {"max": _by_label(largest), "aggregate": _by_label(aggregate)}
            found["flags"] = dict(zip(LABELS, flags(largest, of_studies), strict=True))
        for row, probability, is_read in zip(reading.rows, reading.probability, reading.is_read, strict=True):
            one = {"slice": row.slice_id, "file": row.file, "position_mm": row.position, "note": row.note}
            if is_read:
                one |= {"probability": _by_label(probability)}
                one["flags"] = dict(zip(LABELS, flags(probability, of_slices), strict=True))
            found["slices"].append(one)
        out.append(found)
    return out


def _by_label(values: np.ndarray) -> dict[str, float]:
    return dict(zip(LABELS, map(number, values), strict=True))


def chosen_thresholds(packed: dict, level: str, rule: str) -> dict[str, float]:
    """Return the threshold of each label by `rule`, rounded as a float32. Raises ValueError with the known rules."""
    known = packed["thresholds"][level][LABELS[0]]
    if rule not in known:
        raise ValueError(f"--threshold-rule {rule}: the models come with {', '.join(known)}")
    return {label: number(np.float32(packed["thresholds"][level][label][rule])) for label in LABELS}


def about(bundle: model_bundle.Bundle, against: list[str], found: slices.Found) -> dict:
    """Return the provenance of predictions: the bundle, the rules `against` a series, the files passed over."""
    packed, keys = bundle.packed, ("ensemble", "version", "spacing", "license", "made_with")
    warned = sorted(found.pile.warned.items())
    return {
        "intended_use": packed["intended_use"],
        "bundle": {"sha256": bundle.digest, **{key: packed[key] for key in keys}},
        "versions": runs.versions() | {"pydicom": pydicom.__version__},
        "preferred": [f"not one that {text}" for text in against],
        "passed_over": [{"file": file, "reason": why} for file, why in sorted(found.passed_over.items())],
        "warnings": [{"warning": kind, "n_files": len(files), "first": files[0]} for kind, files in warned],
    }


def skipped(found: slices.Found) -> str:
    """Return the number of files that were passed over, by reason, and those that pydicom warned of, by warning."""
    reasons = Counter(found.passed_over.values()).most_common(SHOWN)
    warned = [f"{len(files)} files with the warning: {kind}" for kind, files in sorted(found.pile.warned.items())]
    first = {reason: file for file, reason in reversed(found.passed_over.items())}
    kinds = "; ".join(f"{n}: {reason}, the first {first[reason]}" for reason, n in reasons)
    return "; ".join([f"{len(found.passed_over)} files passed over" + f" ({kinds})" * bool(kinds), *warned])


def refusals(readings: list[Reading], passed_over: dict[str, str]) -> str:
    """Return one line with the reasons why nothing can be predicted."""
    refused = [f"series {one['series']}: {one['reason']}" for part in readings for one in part.series]
    files = [f"{file}: {why}" for file, why in passed_over.items()]
    lists = ((refused, "series refused"), (files, "files passed over"))
    return "; ".join(f"{len(some)} {what}, the first {some[0]}" for some, what in lists if some) or "no files"


def write(out: str | Path, readings: list[Reading], about: dict, packed: dict, rule: str) -> None:
    """Write slices.csv, studies.csv and, last, predictions.json, with `about` first, into the folder `out`."""
    out = Path(out)
    of_slices, of_studies = (chosen_thresholds(packed, level, rule) for level in ("slices", "studies_max"))
    (out / DONE).unlink(missing_ok=True)
    _write_csv(out / "slices.csv", slice_rows(readings, of_slices))
    _write_csv(out / "studies.csv", study_rows(readings, of_studies, packed["aggregate"]))
    thresholds = {"rule": rule, "slices": of_slices, "studies_max": of_studies}
    found = content(readings, packed, rule)
    storage.write_json(out / DONE, about | {"thresholds": thresholds, "studies": found})


def _write_csv(path: Path, rows: Iterable[list]) -> None:
    with storage.writing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
