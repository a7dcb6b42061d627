"""The models of an ensemble, packed for use elsewhere: as files for a folder, or as one file, a bundle.

The manifest, models.json, holds the ensemble's `runs` with their weights, the `pipeline` that blends them, the `mean`
of each label, and by run `models` (fold, file, hash; for a second level also the widths and the files it reads),
`options`, `pictures` (cache size, crop), `views` and `made_with`. A bundle also holds the `spacing` of the training
series (mm), the `thresholds`, the `aggregate` of a study's slices, and the intended use.
"""

import hashlib
import io
import json
import logging
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle import __version__
from ich_kaggle.common import paths, storage, tables, zip_reader
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.kaggle_api import wheel
from ich_kaggle.scans import bounds, resampling
from ich_kaggle.scoring import blending, ensembling, study_level

log = logging.getLogger(__name__)

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
FITTED_ON = "The models were fitted on non-contrast head CT; their scores hold for scans like those, and for no others."


def choose_ensemble(work_dir: str | Path, name: str | None, flag: str = "--name") -> Path:
    """Return the folder of the ensemble `name`, or of the only one. Raises FileNotFoundError or ValueError."""
    work_dir = Path(work_dir)
    there = paths.ensemble_names(work_dir)
    if name is None and len(there) > 1:
        raise ValueError(f"{work_dir / 'ensemble'} has {', '.join(there)}: choose one with {flag}")
    name = name or (there[0] if there else "all")
    return storage.require(paths.ensemble(work_dir, name) / "weights.json", f"--name {name}").parent


def kept(ensemble: str | Path, least: float = 0.0) -> dict[str, float]:
    """Return the runs of `ensemble` whose weight exceeds `least` for some label, with their weights."""
    ensemble = Path(ensemble)
    scores = storage.read_json(ensemble / "weights.json")
    weights = scores["pipeline"]["weights"]
    return {run: weight for run, weight in scores["runs"].items() if np.abs(weights[run]).max() > least}


def needed(work_dir: str | Path, names: list[str]) -> list[str]:
    """Return `names` of runs and of all runs that they read, each after those that it reads."""
    work_dir = Path(work_dir)
    found = []
    for name in names:
        found += needed(work_dir, Run(work_dir, name).settings.get("on", [])) + [name]
    return list(dict.fromkeys(found))


def gather(work_dir: str | Path, ensemble: str | Path, names: dict[str, float]) -> tuple[dict, dict[str, Path]]:
    """Return the manifest of the runs called `names`, those `kept` of `ensemble`, and each file by its name.

    Raises FileNotFoundError naming a missing model, ValueError naming a run that has changed since it was blended, or
    one whose models are not saved.
    """
    work_dir, ensemble = Path(work_dir), Path(ensemble)
    scores = storage.read_json(ensemble / "weights.json")
    ensembling.asked_of(ensemble / "weights.json", scores)
    packed = {"ensemble": ensemble.name, "runs": names, "pipeline": scores["pipeline"], "models": {}, "options": {}}
    packed |= {"pictures": {}, "views": {}, "made_with": {}}
    packed["mean"] = pd.read_parquet(ensemble / "oof.parquet")[list(LABELS)].mean().tolist()
    _same_files(work_dir, ensemble / "weights.json", scores["made_from"], names, _again(ensemble))
    say_new_folds(work_dir, ensemble, scores)
    files, wanted = {}, folds_to_pack(work_dir, scores["folds"])
    for name in needed(work_dir, list(names)):
        run = Run(work_dir, name)
        options = packed["options"][name] = run.settings
        packed["made_with"][name] = {key: run.record.get(key) for key in ("versions", "commit")}
        if run.is_second_level:
            packed["models"][name] = [_level(run, k, files) for k in wanted[name]]
            continue
        packed["models"][name] = [_slice_model(run, k, files) for k in wanted[name]]
        packed["pictures"][name] = {"size": options["cache_size"], "crop": options.get("crop", "none")}
        packed["views"][name] = run.record["views"]
    return packed, files


def say_new_folds(work_dir: Path, ensemble: Path, scores: dict) -> None:
    """Log the folds that runs of `ensemble`, blended of all their folds, have finished since."""
    for name, of_run in scores["folds"].items() if scores["blended"]["fold"] is None else ():
        if new := sorted(set(Run(work_dir, name).finished) - set(of_run)):
            without = f"blended without fold {', '.join(map(str, new))} of run {name}"
            log.warning("WARNING %s: %s: python -m ich_kaggle.ensemble --name %s", ensemble, without, ensemble.name)


def folds_to_pack(work_dir: Path, blended: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the folds needed of each run that is `blended`, or read by one that is."""
    wanted = {name: set(folds) for name, folds in blended.items()}
    for name in reversed(needed(work_dir, list(blended))):
        for read in Run(work_dir, name).settings.get("on", []):
            wanted.setdefault(read, set()).update(wanted[name])
    return {name: sorted(folds) for name, folds in wanted.items()}


def _same_files(work_dir: Path, listed_in: Path, listed: dict[str, str], runs, remedy: str) -> None:
    """Raise ValueError naming a file of `runs`, `listed` with the hash it had, that has another one now."""
    names = [name for name in listed if name.split("/")[0] in runs and not name.endswith("embeddings.npy")]
    now = {name: storage.file_hash(work_dir / "runs" / name) for name in names}
    storage.same_settings(listed_in, listed, now, remedy)


def _again(ensemble: Path) -> str:
    return f"run python -m ich_kaggle.ensemble --name {ensemble.name} --overwrite"


def _slice_model(run: Run, k: int, files: dict[str, Path]) -> dict:
    flags = f"--run {run.name} --fold {k}"
    found = _model(run, k, files, flags)
    done = run.fold(k) / "predict.json"
    remedy = f"run python -m ich_kaggle.predict {flags} --overwrite"
    storage.same_settings(done, storage.read_json(done), {"model": found["hash"]}, remedy)
    return found


def _model(run: Run, k: int, files: dict[str, Path], flags: str) -> dict:
    file = f"{run.name}.fold{k}.pt"
    files[file] = storage.require(run.fold(k) / "model.pt", flags)
    return {"fold": k, "file": file, "hash": storage.file_hash(files[file])}


def _level(run: Run, k: int, files: dict[str, Path]) -> dict:
    kind, done = run.settings["model"], run.fold(k) / "predict.json"
    if kind == "stack":
        raise ValueError(f"{run.name} is a stack, whose boosters aren't kept: blend without it")
    if not done.exists():
        raise FileNotFoundError(f"{done} is missing: finish {run.resume(k)}")
    reads, widths = storage.read_json(done)["reads"], storage.read_json(run.fold(k) / "widths.json")
    _same_files(run.work_dir, done, reads, run.settings["on"], f"run {run.resume(k)} again")
    found = {"fold": k} if kind == "smooth" else _model(run, k, files, "")
    return found | {"widths": [widths[label] for label in LABELS], "reads": reads}


def head(fitted_on: str) -> dict:
    """Return the entries of a bundle's manifest that hold for any models; `fitted_on` says the data of these."""
    intended_use = f"{RESEARCH} {fitted_on}"
    return {"format": FORMAT, "version": __version__, "license": LICENSE, "intended_use": intended_use}


def export(project: Project, ensemble: str | Path, path: str | Path) -> Path:
    """Write the bundle of `ensemble` to `path`, the same bytes for the same files."""
    ensemble, path = Path(ensemble), Path(path)
    packed, files = gather(project.work_dir, ensemble, kept(ensemble))
    train, nested = project.slices[project.is_train], ensemble / "nested.parquet"
    packed |= head(FITTED_ON)
    packed |= {"spacing": training_spacing(train), "thresholds": read_thresholds(ensemble, nested, project.folds)}
    probability = blending.raise_any(tables.read_predictions(nested, train.slice_id.to_numpy(), partial=True).copy())
    known = ~np.isnan(probability[:, 0])
    of_studies = study_level.of_studies(train.study_id[known], tables.targets(train)[known], probability[known])
    packed["aggregate"] = study_level.fit(*of_studies).tolist()
    write_zip(path, packed, files)
    return path


def training_spacing(table: pd.DataFrame) -> float:
    """Return the median over the series of `table` of the distance between their slices, mm."""
    gaps = [resampling.gap(part.to_numpy()) for _, part in table.groupby("series_id").position]
    return round(float(np.nanmedian(gaps)), 3)


def read_thresholds(ensemble: str | Path, nested: str | Path, folds: list[int]) -> dict:
    """Return the thresholds of slices and of studies: level -> label -> rule.

    Raises FileNotFoundError where they have not been chosen, ValueError where that was for other predictions or not
    on all `folds`.
    """
    ensemble, nested = Path(ensemble), Path(nested)
    path = ensemble / "evaluation" / "thresholds.json"
    command = f"python -m ich_kaggle.evaluate --ensemble {ensemble.name}"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run {command}")
    found = storage.read_json(path)
    digest = storage.file_hash(storage.require(nested, f"--name {ensemble.name} --overwrite"))
    now = {f"fold{k}/nested.parquet": digest for k in folds}
    storage.same_settings(path, found["made_from"], now, f"run {command} --overwrite")
    return {level: found[level] for level in ("slices", "studies_max")}


def write_zip(path: str | Path, packed: dict, files: dict[str, Path]) -> None:
    """Write a zip of `files` and their manifest: stored, sorted by name, without times."""
    path = Path(path)
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
    path, again = Path(path), "make it with python -m ich_kaggle.ensemble --export"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the one that python -m ich_kaggle.ensemble --export makes")
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
