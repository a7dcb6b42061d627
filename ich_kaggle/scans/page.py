"""The report page of a scan: its studies with their predictions, without ground truth."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ich_kaggle import __version__
from ich_kaggle.common import cli
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import pixels, png, slice_image
from ich_kaggle.html import app
from ich_kaggle.scans import results
from ich_kaggle.scans.slices import read_again


def index(out: str | Path) -> Path:
    out = Path(out)
    return out / "report" / "index.html"


def by_label(values: dict | None) -> list:
    """Return `values` as a list in the order of the labels; Nones if `values` is None."""
    return [None if values is None else values[label] for label in LABELS]


def why_read(found: dict) -> str:
    """Return the reason why a series of a study was chosen."""
    n_others = len(found["series"]) - 1
    if not found["read"]:
        return "none of its series can be read"
    return f"the other series ({n_others}) were refused, as told below" if n_others else "the only one of the study"


def summary(found: dict) -> dict:
    """Return the row of a study, one of results.content, in the list of studies."""
    return {
        "id": found["study"],
        "series": found["read"],
        "n": len(found["slices"]),
        "n_unread": sum("probability" not in one for one in found["slices"]),
        "max": by_label(found.get("max")),
        "aggregate": by_label(found.get("aggregate")),
        "flags": by_label(found.get("flags")),
    }


def pictures(words: np.ndarray, code: pixels.Encoding, size: int) -> tuple[bytes, bytes]:
    """Return a whole slice as PNGs of `size` px: the three windows of the cache, and bone."""
    cached = slice_image.resize(slice_image.windowed(words, code), size)
    return png.encode(cached), png.encode(slice_image.bone(words, code, size))


def study(found: dict, rows: list[results.Row], size: int) -> app.Study:
    """Return one study of results.content for the page, with the pictures of its `rows`."""
    slices, images = found["slices"], {"cached": [], "bone": []}
    for one, row in zip(slices, rows, strict=True):
        made = pictures(*read_again(row.source), size) if "probability" in one else (None, None)
        for pngs, picture in zip(images.values(), made, strict=True):
            pngs.append(picture)
    of_study = {
        "slices": [one["slice"] for one in slices],
        "position": [one["position_mm"] for one in slices],
        "notes": [one["note"] for one in slices],
        "probability": [[by_label(one.get("probability")) for one in slices]],
        "flags": [by_label(one.get("flags")) for one in slices],
        "images": images,
        "series": found["series"],
        "why": why_read(found),
    }
    return app.Study(found["study"], of_study)


def write(out: str | Path, readings: list[results.Reading], packed: dict, rule: str) -> None:
    """Write the page of `readings` into `out`, study by study."""
    out = Path(out)
    found = results.content(readings, packed, rule)
    size = max(kind["size"] for kind in packed["pictures"].values())
    content = {
        "reading": {
            "intended_use": packed["intended_use"],
            "rule": rule,
            "slices": by_label(results.chosen_thresholds(packed, "slices", rule)),
            "studies": by_label(results.chosen_thresholds(packed, "studies_max", rule)),
        },
        "labels": LABELS,
        "made": {"time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "version": __version__},
        "sources": [{"name": packed["ensemble"]}],
        "studies": [summary(one) for one in found],
        "maps": [],
        "cache": {"name": "", "size": size},
        "bone": True,
    }

    def pages() -> Iterator[app.Study]:
        bar = cli.progress(found, len(found), "write the report", " studies")
        for one, part in zip(bar, readings, strict=True):
            yield study(one, part.rows, size)

    app.write(index(out).parent, content, pages(), plots=False)
