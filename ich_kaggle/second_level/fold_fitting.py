"""Fitting of a second level, fold by fold, on the predictions or embeddings of other runs."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle.common import cli, locks, metric, run_predictions, runs, series_rows, storage, tables
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.learning import fit as learning_fit
from ich_kaggle.learning import predictions, slice_model
from ich_kaggle.second_level import fit as second_level_fit
from ich_kaggle.second_level import series_dataset

READS = "reads.json"  # hashes of the files that a fold reads, until it is finished and predict.json holds them


@dataclass(frozen=True)
class Part:
    """The slices of some folds, and the test slices."""

    table: pd.DataFrame  # rows of the slice table
    fold: np.ndarray  # (n,)
    rows: np.ndarray  # (n,), row numbers in the slice table


def part_of(project: Project, folds_read: list[int]) -> Part:
    """Return the slices of the folds `folds_read`, and the test slices."""
    rows = np.flatnonzero(np.isin(project.fold, (-1, *folds_read)))
    return Part(project.slices.iloc[rows].reset_index(drop=True), project.fold[rows], rows)


def read_inputs(on: list[Run], k: int, features: str, folds_read: list[int], part: Part) -> series_dataset.Inputs:
    """Return the inputs of fold `k` from the runs `on`; out-of-fold predictions are those of the folds `folds_read`."""
    if features == "oof":
        embeddings, logits = [], [run_predictions.oof_logits(run, k, folds_read, part.table, part.fold) for run in on]
    else:  # embeddings of all slices, by the models of fold k
        embeddings = [run_predictions.embeddings(run, k, part.table) for run in on]
        models_of = [run.fold(k) / "model.pt" for run in on]
        logits = [
            slice_model.head_logits(slice_model.load(path), of_run)
            for path, of_run in zip(models_of, embeddings, strict=True)
        ]
    return series_dataset.Inputs(
        embeddings,
        np.stack(logits, axis=1),
        np.mean(logits, axis=0),
        tables.targets(part.table),
        part.table.position.to_numpy(float),
        series_rows.number(part.table.series_id),
        series_rows.number(part.table.study_id),
    )


def folds_to_read(
    project: Project, on: list[Run], features: str, wanted: list[int] | None
) -> tuple[list[int], list[int]]:
    """Return the folds that are finished in all runs `on`, whose predictions are read, and those of them to be fitted.

    Raises FileNotFoundError naming a `wanted` fold that is not finished, and ValueError if `features` needs more folds.
    """
    shared = [k for k in project.folds if all(k in run.finished for run in on)]
    for run in on:
        cli.say(project.describe(run, project.finished(run)))
    chosen = shared if wanted is None else project.chosen(wanted)
    if lacking := [k for k in chosen if k not in shared]:
        run = next(run for run in on if lacking[0] not in run.finished)
        raise FileNotFoundError(f"{run.fold(lacking[0])} is not finished: run {run.resume(lacking[0])}")
    if not shared:
        raise ValueError(f"{', '.join(run.name for run in on)}: no fold is finished in all of them")
    if features == "oof" and len(shared) < 2:
        more = next(k for k in project.folds if k not in shared)
        lacks = next(run for run in on if more not in run.finished)
        raise ValueError(
            f"--features oof takes two folds or more, to fit on some and to score on another, and only fold "
            f"{shared[0]} is finished: run {lacks.resume(more)}, or give --features fold"
        )
    return shared, chosen


def need_predictions(project: Project, on: list[Run], read: list[int], features: str) -> None:
    """Make the missing predictions of the folds `read` of the runs `on`.

    Raises ValueError for a run on other slices or folds, and for a second level, which has no embeddings.
    """
    for run in on:
        project.check_same(run)
        if run.is_second_level and features == "fold":
            raise ValueError(f"{run.name} is a second level and has no embeddings: read it with --features oof")
        predictions.ensure(project, run, read, all_slices=features == "fold")
        for k in read if features == "fold" else ():
            storage.require(run.fold(k) / "embeddings.npy", f"--run {run.name} --fold {k} --all-slices")


def write_fold(k: int, folder: Path, part: Part, inputs: series_dataset.Inputs, **how) -> None:
    """Fit the second level on all folds but `k`, and write its predictions of fold `k` and of the test slices."""
    table, fold = part.table, part.fold
    fitted = (fold >= 0) & (fold != k)
    probability = np.full(inputs.target.shape, np.nan)
    tell = partial(learning_fit.write_log, folder / "log.csv")
    probability[~fitted] = second_level_fit.second_level(inputs, fitted, folder, tell=tell, **how)
    held_out, is_test = fold == k, fold < 0
    for name, rows in (("oof.parquet", held_out), ("test.parquet", is_test)):
        tables.write_predictions(folder / name, table.slice_id[rows], probability[rows])
    before = metric.log_loss(inputs.target[held_out], expit(inputs.logits[held_out].astype(float)).mean(axis=1))
    after = metric.log_loss(inputs.target[held_out], probability[held_out])
    n_patients = table.patient_id[held_out].nunique()
    cli.say(f"{folder}: log loss {after:.4f} on {n_patients} held-out patients, {before:.4f} before")


def is_current(folder: Path, reads: dict[str, str]) -> bool:
    """Return whether the fold in `folder` is finished, fitted on the files `reads` (hashes by name).

    A fold that was fitted on predictions of fewer or other folds is removed. Raises ValueError naming a file that has
    changed.
    """
    path = next((path for name in ("predict.json", READS) if (path := folder / name).exists()), None)
    if path is None:
        return False
    found = storage.read_json(path)["reads"]
    still = {name: digest for name, digest in reads.items() if name in found}
    storage.same_settings(path, found, still, "give another --run, or --overwrite")
    if found.keys() != reads.keys():
        cli.say(f"{folder}: fitted anew, the runs that it reads have other folds now")
        shutil.rmtree(folder)
    return (folder / "predict.json").exists()


def fit_second_level(
    project: Project,
    name: str,
    on: list[Run],
    options: dict,
    fold: list[int] | None,
    *,
    device: str,
    overwrite: bool,
) -> None:
    """Fit the chosen folds of the second level `name` on the runs `on`, except those that are finished."""
    run, features = project.run(name), options["features"]
    if run.begun and not run.is_second_level:
        raise ValueError(f"{run.folder} is a slice model, not a second level: give another --run")
    shared, chosen = folds_to_read(project, on, features, fold)
    settings = options | project.same
    run.check(settings, replaced=chosen if overwrite else [])
    need_predictions(project, on, shared if features == "oof" else chosen, features)
    part = part_of(project, shared if features == "oof" else project.folds)
    if overwrite:
        for k in chosen:
            read_inputs(on, k, features, shared, part)  # nothing is removed if an input cannot be read
        run.remove(chosen)
    for k in chosen:
        folder, files = run.fold(k), run_predictions.files([one.name for one in on], k, features, shared)
        reads = {file: runs.hash_of(run.folder.parent / file) for file in files}
        with locks.locked(folder):
            if is_current(folder, reads):
                cli.say(f"{folder / 'oof.parquet'}{cli.THERE}")
                continue
            inputs = read_inputs(on, k, features, shared, part)
            run.write(settings)
            storage.write_json(folder / READS, {"reads": reads})
            write_fold(k, folder, part, inputs, options=options, reads=reads, device=device)
            facts = {"on": options["on"], "features": features, "reads": reads, "files": runs.written(folder)}
            storage.write_json(folder / "predict.json", facts)
            (folder / READS).unlink()
