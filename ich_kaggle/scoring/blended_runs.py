"""The predictions that an ensemble is made from: of which runs and folds, and what has changed since."""

import logging
from collections.abc import Callable

import numpy as np

from ich_kaggle.common import cli, storage
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run, hash_of

log = logging.getLogger(__name__)


def choose_runs(project: Project, names: list[str] | None, fold: list[int] | None) -> dict[Run, list[int]]:
    """Return the runs called `names`, None for all, with their finished folds among `fold`, None for all.

    Raises FileNotFoundError for a named run without such a fold, or if no run has one.
    """
    if names:
        return {project.run(name): project.finished(project.run(name), fold) for name in names}
    found = {}
    for run in project.runs():
        if of_run := [k for k in project.chosen(fold) if k in run.finished]:
            found[run] = of_run
        elif run.begun:
            cli.say(f"run {run.name}: left out, no finished fold" + ("" if fold is None else " among those asked for"))
    if not found:
        raise FileNotFoundError(f"{project.work_dir}: no run to blend: run python -m ich_kaggle.train --fold 0")
    return found


def hashes_of(run: Run, of_run: list[int]) -> dict[str, str]:
    """Return the hashes of the predictions of the folds `of_run` of `run`, by file."""
    hashes = {}
    for k in of_run:
        for name in ("oof.parquet", "test.parquet"):
            path = storage.require(run.fold(k) / name, f"--run {run.name} --fold {k} --overwrite")
            hashes[f"{run.name}/fold{k}/{name}"] = hash_of(path)
    return hashes


def what_changed(then: dict[str, str], now: dict[str, str]) -> str:
    """Return in words the differences of the files that were read `then` and of those that exist `now`, by hash."""
    folds_then, folds_now = (list(dict.fromkeys(name.rpartition("/")[0] for name in files)) for files in (then, now))
    parts = {
        "new": [name for name in folds_now if name not in folds_then],
        "no longer read": [name for name in folds_then if name not in folds_now],
        "predicted anew": sorted({name.rpartition("/")[0] for name in then if now.get(name, then[name]) != then[name]}),
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


def predicted(project: Project, runs: dict[Run, list[int]], predict: Callable) -> dict[str, str]:
    """Return the hashes of the predictions of `runs`, by file, predicted first where they do not exist."""
    made_from = {}
    for run, of_run in runs.items():
        project.check_same(run)
        cli.say(project.describe(run, of_run))
        predict(project, run, of_run)
        made_from |= hashes_of(run, of_run)
    say_stale(list(runs))
    return made_from


def say_stale(runs: list[Run]) -> None:
    """Say which folds of second levels among `runs` were fitted on predictions that have changed since."""
    for run in (run for run in runs if run.is_second_level):
        for k in run.predicted:
            reads = storage.read_json(run.fold(k) / "predict.json").get("reads", {})
            # Gigabytes of embeddings need no reading: they are of the model.pt that is read beside them.
            files = {name: run.folder.parent / name for name in reads if not name.endswith("embeddings.npy")}
            if any(path.exists() and storage.file_hash(path) != reads[name] for name, path in files.items()):
                log.warning("WARNING %s was fitted on other predictions: %s --overwrite", run.fold(k), run.resume(k))


def shared_rows(probabilities: list[np.ndarray], runs: dict[Run, list[int]]) -> np.ndarray:
    """Return the training slices for which all runs have out-of-fold predictions: bool (n_train,).

    Raises ValueError with the folds of each run if there are none.
    """
    lacks = np.isnan([probability[:, 0] for probability in probabilities])
    has_all = ~lacks.any(axis=0)
    if not has_all.any():
        listed = "; ".join(f"{run.name} has fold {', '.join(map(str, of_run))}" for run, of_run in runs.items())
        raise ValueError(f"the runs share no finished fold ({listed}): train a fold of all of them, or choose --runs")
    if (n := has_all.sum()) < (n_any := (~lacks.all(axis=0)).sum()):
        few = min(runs, key=lambda run: len(runs[run])).name
        log.warning("WARNING %d of %d slices are predicted by all runs: %s has fewer folds, see --runs", n, n_any, few)
    return has_all
