"""Runs handed over between machines: of each fold, the copy that is further replaces the other."""

import shutil
from pathlib import Path

import torch

from ich_kaggle.common import locks, paths, storage, zip_reader
from ich_kaggle.common.runs import Run


def progress(fold: Path) -> tuple[bool, bool, int, int]:
    """Return how far the folder of a fold is: predicted, trained, steps and epochs of its checkpoint."""
    done, model = ((fold / name).exists() for name in ("predict.json", "model.pt"))
    return done, model, *_steps(fold / "state.pt")


def _steps(state: Path) -> tuple[int, int]:
    """Return the steps and the epochs of a checkpoint; -1 if it is missing or damaged."""
    try:
        zip_reader.check(state)
        found = torch.load(state, map_location="cpu", weights_only=True, mmap=True)
        return found["step"], len(found["rows"])
    except Exception:  # damaged bytes raise errors of every type
        return -1, -1


def take(source: Path, run: Run) -> list[int]:
    """Return the folds that are further in the run folder `source` than in `run`, where they now are.

    Raises ValueError naming both settings if the folds of `run` have others.
    """
    if not (source / "run.json").exists():
        return []
    theirs = storage.read_json(source / "run.json")
    run.check(theirs["settings"])
    ours = run.record if run.begun else {}
    if theirs | ours != ours:
        storage.write_json(run.path, theirs | ours)
    return [k for k, folder in paths.folds_of(source).items() if _take_fold(folder, run.fold(k))]


def _take_fold(source: Path, target: Path) -> bool:
    with locks.locked(target):
        if is_further := progress(source) > progress(target):
            with storage.replacing(target, None) as draft:
                shutil.copytree(source, draft, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
    return is_further
