"""The models of an ensemble, gathered with their manifest: for the folder of a dataset, or for a bundle."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.scans import model_bundle, resampling
from ich_kaggle.scoring import ensembling, evaluation, study_level

log = logging.getLogger(__name__)

FITTED_ON = "The models were fitted on non-contrast head CT; their scores hold for scans like those, and for no others."


def choose_ensemble(work_dir: Path, name: str | None, flag: str = "--name") -> Path:
    """Return the folder of the ensemble `name`, or of the only one. Raises FileNotFoundError or ValueError."""
    there = paths.ensemble_names(work_dir)
    if name is None and len(there) > 1:
        raise ValueError(f"{work_dir / 'ensemble'} has {', '.join(there)}: choose one with {flag}")
    name = name or (there[0] if there else "all")
    return storage.require(paths.ensemble(work_dir, name) / "weights.json", f"--name {name}").parent


def kept(ensemble: Path, least: float = 0.0) -> dict[str, float]:
    """Return the runs of `ensemble` whose weight exceeds `least` for some label, with their weights."""
    scores = storage.read_json(ensemble / "weights.json")
    weights = scores["pipeline"]["weights"]
    return {run: weight for run, weight in scores["runs"].items() if np.abs(weights[run]).max() > least}


def needed(work_dir: Path, names: list[str]) -> list[str]:
    """Return `names` of runs and of all runs that they read, each after those that it reads."""
    found = []
    for name in names:
        found += needed(work_dir, Run(work_dir, name).settings.get("on", [])) + [name]
    return list(dict.fromkeys(found))


def gather(work_dir: Path, ensemble: Path, names: dict[str, float]) -> tuple[dict, dict[str, Path]]:
    """Return the manifest of the runs called `names`, those `kept` of `ensemble`, and each file by its name.

    Raises FileNotFoundError naming a missing model, ValueError naming a run that has changed since it was blended, or
    one whose models are not saved.
    """
    scores = storage.read_json(ensemble / "weights.json")
    ensembling.asked_of(ensemble / "weights.json", scores)
    packed = {"ensemble": ensemble.name, "runs": names, "pipeline": scores["pipeline"], "models": {}, "options": {}}
    packed |= {"pictures": {}, "views": {}, "made_with": {}}
    packed["mean"] = pd.read_parquet(ensemble / "oof.parquet")[list(LABELS)].mean().tolist()
    again = f"run python -m ich_kaggle.ensemble --name {ensemble.name} --overwrite"
    _same_files(work_dir, ensemble / "weights.json", scores["made_from"], names, again)
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
            command = cli.for_work_dir(f"python -m ich_kaggle.ensemble --name {ensemble.name}", work_dir)
            log.warning("WARNING %s: %s: %s", ensemble, without, command)


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


def export(project: Project, ensemble: str | Path, path: str | Path) -> None:
    """Write the bundle of `ensemble` to `path`, the same bytes for the same files."""
    ensemble, path = Path(ensemble), Path(path)
    packed, files = gather(project.work_dir, ensemble, kept(ensemble))
    train = project.slices[project.is_train]
    packed |= model_bundle.head(FITTED_ON)
    packed |= {"spacing": training_spacing(train), "thresholds": read_thresholds(ensemble, project.folds)}
    probability = evaluation.nested(project, ensemble.name, project.folds)
    known = ~np.isnan(probability[:, 0])
    of_studies = study_level.of_studies(train.study_id[known], tables.targets(train)[known], probability[known])
    packed["aggregate"] = study_level.fit(*of_studies).tolist()
    model_bundle.write_zip(path, packed, files)


def training_spacing(table: pd.DataFrame) -> float:
    """Return the median over the series of `table` of the distance between their slices, mm."""
    gaps = [resampling.gap(part.to_numpy()) for _, part in table.groupby("series_id").position]
    return round(float(np.nanmedian(gaps)), 3)


def read_thresholds(ensemble: Path, folds: list[int]) -> dict:
    """Return the thresholds of slices and of studies: level -> label -> rule.

    Raises FileNotFoundError where they have not been chosen, ValueError where that was for other predictions or not
    on all `folds`.
    """
    path = ensemble / "evaluation" / "thresholds.json"
    command = f"python -m ich_kaggle.evaluate --ensemble {ensemble.name}"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run {command}")
    found = storage.read_json(path)
    nested = storage.require(ensemble / "nested.parquet", f"--name {ensemble.name} --overwrite")
    digest = storage.file_hash(nested)
    now = {f"fold{k}/nested.parquet": digest for k in folds}
    storage.same_settings(path, found["made_from"], now, f"run {command} --overwrite")
    return {level: found[level] for level in ("slices", "studies_max")}
