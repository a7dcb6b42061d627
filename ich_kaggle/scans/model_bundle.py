"""The file of a bundle: an ensemble's models with all that it takes to use them elsewhere, written and read.

The manifest, models.json, holds the ensemble's `runs` with their weights, the `pipeline` that blends them, the `mean`
of each label, and by run `models` (fold, file, hash; for a second level also the widths and the files it reads),
`options`, `pictures` (cache size, crop), `views` and `made_with`. A bundle also holds the `spacing` of the training
series (mm), the `thresholds`, the `aggregate` of a study's slices, and the intended use.
"""

import hashlib
import io
import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ich_kaggle import __version__
from ich_kaggle.common import storage, zip_reader
from ich_kaggle.common.labels import LABELS
from ich_kaggle.kaggle_api import wheel
from ich_kaggle.scans import bounds

MANIFEST = "models.json"
AGAIN = "pack the models again"
FORMAT = 2
MOST_VIEWS = 16
KEYS = (
    *("format", "version", "license", "intended_use", "spacing", "thresholds", "aggregate", "ensemble", "runs"),
    *("pipeline", "models", "options", "pictures", "views", "made_with"),
)
LICENSE = "code: Apache-2.0; weights: under the terms of the data that they were fitted on"
RESEARCH = (
    "For research only: not a medical device, and not to be used for diagnosis, triage or any decision on a patient."
)


def head(fitted_on: str) -> dict:
    """Return the entries of a bundle's manifest that hold for any models; `fitted_on` says the data of these."""
    intended_use = f"{RESEARCH} {fitted_on}"
    return {"format": FORMAT, "version": __version__, "license": LICENSE, "intended_use": intended_use}


def write_zip(path: Path, packed: dict, files: dict[str, Path]) -> None:
    """Write a zip of `files` and their manifest: stored, sorted by name, without times."""
    with storage.writing(path) as temporary, zipfile.ZipFile(temporary, "w") as zipped:
        listing = (json.dumps(packed, indent=1) + "\n").encode()
        for name in sorted([*files, MANIFEST]):
            member = zipfile.ZipInfo(name, wheel.EPOCH)
            member.create_system = 3  # Unix, wherever it is written
            member.file_size = len(listing) if name == MANIFEST else files[name].stat().st_size
            with zipped.open(member, "w") as target:
                if name == MANIFEST:
                    target.write(listing)
                    continue
                with files[name].open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)


def check(packed: dict, path: Path, again: str) -> None:
    """Raise ValueError naming `path` and the remedy `again`, if the manifest there is inconsistent.

    The runs may have different folds, but a second level has no fold that one of the runs it reads lacks.
    """
    try:
        bounds.check(packed)
        before, folds = [], {run: [entry["fold"] for entry in entries] for run, entries in packed["models"].items()}
        for run, entries in packed["models"].items():
            of_read = [folds[read] for read in packed["options"][run].get("on", [])]
            if not folds[run] or len(set(folds[run])) < len(folds[run]):
                raise ValueError(f"{run} has no fold, or one twice")
            if not all(set(folds[run]) <= set(others) for others in of_read):
                raise ValueError(f"{run} reads runs of other folds")
            if Path(run).name != run or not _fits(packed, run, entries, before):
                raise ValueError(f"{run} is not as its options say")
            before.append(run)
        _check_blend(packed)
        if "thresholds" in packed:  # a kernel's dataset has none
            _check_reading(packed)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration, RecursionError) as error:
        raise ValueError(f"{path}: what it lists does not fit together ({error!r}): {again}") from error


def _fits(packed: dict, run: str, entries: list[dict], before: list[str]) -> bool:
    """Return whether the models of `run` match its options; a second level reads runs listed `before` it."""
    options, has_file = packed["options"][run], ["file" in entry for entry in entries]
    if "on" not in options:
        picture = packed["pictures"][run]
        is_picture = isinstance(picture["size"], int) and picture["crop"] in ("none", "study")
        return all(has_file) and 0 < len(packed["views"][run]) <= MOST_VIEWS and is_picture
    is_fitted = options["model"] != "smooth"
    widths = [len(entry["widths"]) for entry in entries]
    reads = options["on"] and set(options["on"]) <= set(before) and options["features"] in ("oof", "fold")
    return bool(reads) and has_file == [is_fitted] * len(entries) and widths == [len(LABELS)] * len(entries)


def _check_blend(packed: dict) -> None:
    if not packed["runs"] or not packed["runs"].keys() <= packed["models"].keys():
        raise ValueError(f"the runs are {', '.join(packed['runs'])}")
    pipeline, n = packed["pipeline"], len(LABELS)
    weights = [pipeline["weights"][run] for run in packed["runs"]]
    sizes = [(list(packed["runs"].values()), -1), (weights, (-1, n)), (packed["mean"], n), (pipeline["bias"], n)]
    for values, shape in sizes:
        if not np.isfinite(np.array(values, float).reshape(shape)).all():
            raise ValueError("a number of the blend is none")
    if pipeline["space"] not in ("probability", "logit"):
        raise ValueError(f"the space is {pipeline['space']}")


def _check_reading(packed: dict) -> None:
    """Raise an error if a bundle lacks a number or a view that `scan` needs."""
    from ich_kaggle.learning.augment import VIEWS  # imports torch, which takes seconds: for bundles only

    if unknown := [views for views in packed["views"].values() if not all(view in VIEWS for view in list(views))]:
        raise ValueError(f"the views are {unknown[0]}")
    for level in ("slices", "studies_max"):
        known = [packed["thresholds"][level][label] for label in LABELS]
        if not known[0] or any(one.keys() != known[0].keys() for one in known):
            raise ValueError(f"the labels have thresholds of different rules for {level}")
        if not all(isinstance(value, int | float) for one in known for value in one.values()):
            raise ValueError(f"a threshold for {level} is no number")
    if np.array(packed["aggregate"], float).shape != (len(LABELS), 3) or not isinstance(packed["spacing"], int | float):
        raise ValueError(f"the aggregate is {packed['aggregate']}, the spacing {packed['spacing']}")


@dataclass(frozen=True)
class Bundle:
    """A file that `export` wrote, with its members checked."""

    path: Path
    packed: dict
    digest: str  # SHA-256 of the file
    members: dict[str, zip_reader.Member]

    def open(self, file: str) -> io.BytesIO:
        return io.BytesIO(_content(self.path, self.members[file]))


def _content(path: Path, member: zip_reader.Member) -> bytes:
    if member.packed != member.size:
        raise ValueError(f"{path}: {member.path} is compressed, which --export doesn't do: get it again")
    return zip_reader.read(path, member, member.size)  # without its checksum: its hash is looked at


def read(path: str | Path) -> Bundle:
    """Return the bundle in `path`. Raises ValueError naming its fault; a damaged member is found by its hash."""
    path, again = Path(path), "make it with python -m ich_kaggle.ensemble --export, or python -m ich_kaggle.pretrain"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: {again}")
    members = zip_reader.directory(path)
    if MANIFEST not in members:
        raise ValueError(f"{path}: no {MANIFEST} in it: {again}")
    try:
        packed = json.loads(_content(path, members[MANIFEST]))
        form, *_ = (packed[key] for key in KEYS)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: {MANIFEST} is not that of a bundle ({error!r}): {again}") from error
    if form != FORMAT:
        raise ValueError(f"{path}: its format is {form}, not {FORMAT}: {again}")
    check(packed, path, again)
    for entry in (entry for run in packed["models"].values() for entry in run if "file" in entry):
        file = entry["file"]
        if file not in members:
            raise ValueError(f"{path}: {file} is missing: get it again")
        found = hashlib.sha256(_content(path, members[file])).hexdigest()[:12]
        if found != entry["hash"]:
            raise ValueError(f"{path}: {file} has hash {found}, {entry['hash']} was packed: get it again")
    with path.open("rb") as file:
        return Bundle(path, packed, hashlib.file_digest(file, "sha256").hexdigest(), members)
