"""Scores of a run or an ensemble: losses, curves and thresholds of slices and studies, with intervals."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, metric, paths, runs, storage, tables
from ich_kaggle.common.labels import LABELS, SHARE
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.scoring import (
    blending,
    curves,
    dataset_shift,
    ensembling,
    patient_bootstrap,
    study_level,
    thresholds,
)


class Source(NamedTuple):
    """Honest out-of-fold predictions of a run or an ensemble."""

    name: str
    folder: Path
    run: Run | None  # None of an ensemble
    folds: list[int]  # that a run has
    probability: np.ndarray  # float32 (n_train, 6), NaN where nothing is predicted
    made_from: dict[str, str]  # hashes of the files they came from


def read(project: Project, run_name: str | None, name: str | None, wanted: list[int] | None) -> Source:
    """Return the predictions of a run, or of an ensemble, on those training slices that have any."""
    train_ids = project.slices.slice_id[project.is_train].to_numpy()
    if name is not None:
        run, of_run, folder = None, [], paths.ensemble(project.work_dir, name)
        files = [storage.require(folder / "nested.parquet", f"--name {name} --overwrite")]
        probability = tables.read_predictions(files[0], train_ids, partial=True)
    else:
        run = project.run(run_name)
        of_run, folder = project.finished(run, wanted), run.folder
        cli.say(project.describe(run, of_run))
        probability = runs.read_oof(run, of_run, project.slices, project.fold)
        files = [run.fold(k) / "oof.parquet" for k in of_run]
    if name is not None and wanted is not None:
        probability[~np.isin(project.fold[project.is_train], project.chosen(wanted))] = np.nan
    hashes = {str(path.relative_to(folder)): runs.hash_of(path) for path in files}
    return Source(name or run_name, folder, run, of_run, blending.raise_any(probability.copy()), hashes)


def nested_thresholds(target, probability, patient, fold, **wanted) -> dict[str, np.ndarray]:
    """Return the thresholds of one label, by name, each (n,): those of a fold are chosen on the other folds."""
    out = {}
    for k in np.unique(fold):
        rest = fold != k
        for name, value in thresholds.choose(target[rest], probability[rest], patient[rest], **wanted).items():
            out.setdefault(name, np.empty(len(target)))[fold == k] = value
    return out


def measure(target, probability, patient, fold, wanted: dict, *, n_draws: int, seed: int) -> dict:
    """Return the metrics of one label, (n,), each with its interval, and its rates at each kind of threshold."""
    at = nested_thresholds(target, probability, patient, fold, **wanted)
    f1, *others = at
    values = curves.exact(target, probability, at[f1])
    draws = curves.bootstrap(target, probability, patient, at[f1], n_draws=n_draws, seed=seed)
    scores = {name: [value, *patient_bootstrap.interval(draws[name])] for name, value in values.items()}
    return {**scores, "at": {name: curves.at_threshold(target, probability, at[name]) for name in (f1, *others)}}


def measure_labels(target, probability, patient, fold, wanted: dict, **options) -> dict:
    columns = zip(LABELS, target.T, probability.T, strict=True)
    return {label: measure(t, p, patient, fold, wanted, **options) for label, t, p in columns}


def log_losses(target, probability, patient, fold, *, n_draws: int, seed: int) -> dict:
    """Return the competition's log loss in total, of each label, with intervals, and of each fold."""
    losses = metric.losses(target, probability)
    losses = np.column_stack([losses @ SHARE, losses])
    size = np.bincount(patient)
    draws = patient_bootstrap.bootstrap(
        patient_bootstrap.sums(losses, patient, len(size)), size, n_draws=n_draws, seed=seed
    )
    names = zip(("total", *LABELS), losses.mean(axis=0).tolist(), draws.T, strict=True)
    scores = {name: [value, *patient_bootstrap.interval(column)] for name, value, column in names}
    return {**scores, "folds": {str(k): float(losses[fold == k, 0].mean()) for k in np.unique(fold)}}


def studies(table: pd.DataFrame, target, probability, patient, fold) -> tuple:
    """Return for each study: target (m, 6), the largest probability of its slices (m, 6), what `aggregate` makes of
    them (m, 6), patient (m,) and fold (m,)."""
    first = np.unique(table.study_id.to_numpy(str), return_index=True)[1]
    *of_study, mean = study_level.of_studies(table.study_id, target, probability)
    return *of_study, aggregate(*of_study, mean, fold[first]), patient[first], fold[first]


def aggregate(target: np.ndarray, largest: np.ndarray, mean: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the probability that a study has each label: a logistic regression on the logits of the largest and of
    the mean probability of its slices, each fold's fitted on the others. (m, 6), like all it is given."""
    out = np.empty(largest.shape)
    for k in np.unique(fold):
        own, rest = fold == k, fold != k
        out[own] = study_level.apply(study_level.fit(target[rest], largest[rest], mean[rest]), largest[own], mean[own])
    return out


def score(table: pd.DataFrame, probability: np.ndarray, fold: np.ndarray, *, wanted: dict, n_draws: int, seed: int):
    """Return all metrics of the training slices in `table`, and the thresholds of slices and of studies.

    What is fitted is nested between the folds, or between groups of patients where there are too few folds.
    """
    target, patient = tables.targets(table), np.unique(table.patient_id, return_inverse=True)[1]
    group = ensembling.groups_of(fold, target, patient)
    if len(np.unique(group)) < 2:
        raise ValueError("the predictions are of one patient: thresholds take two or more, so train more folds")
    options = {"n_draws": n_draws, "seed": seed}
    study_target, largest, calibrated, study_patient, study_group = studies(table, target, probability, patient, group)
    of_study = (study_patient, study_group, wanted)
    metrics = {
        "n_slices": len(table),
        "n_studies": len(study_target),
        "n_patients": int(patient.max()) + 1,
        "log_loss": log_losses(target, probability, patient, fold, **options),
        "slices": measure_labels(target, probability, patient, group, wanted, **options),
        "studies_max": measure_labels(study_target, largest, *of_study, **options),
        "studies_aggregate": measure_labels(study_target, calibrated, *of_study, **options),
    }
    chosen = {
        level: {label: thresholds.choose(t, p, of, **wanted) for label, t, p in zip(LABELS, ts.T, ps.T, strict=True)}
        for level, ts, ps, of in (
            ("slices", target, probability, patient),
            ("studies_max", study_target, largest, study_patient),
        )
    }
    return metrics, chosen


def with_test(project: Project, source: Source) -> np.ndarray:
    """Return the probabilities of all slices, (n, 6): out of fold those of the training slices, and the test slices'
    by the ensemble, or the mean of the run's folds."""
    is_test = ~project.is_train
    if source.run is None:
        path = storage.require(source.folder / "test.parquet", f"--name {source.name} --overwrite")
        test = tables.read_predictions(path, project.slices.slice_id[is_test].to_numpy())
    else:
        test = np.mean([runs.read_test(source.run, k, project.slices) for k in source.folds], axis=0)
    out = np.empty((len(project.slices), len(LABELS)))
    out[~is_test], out[is_test] = source.probability, test
    return out


def show_shift(project: Project, source: Source, seed: int) -> None:
    probability, path = with_test(project, source), source.folder / "evaluation" / "shift.json"
    known = ~np.isnan(probability[:, 0])
    of_study = dataset_shift.features(
        project.slices[known], probability[known], dataset_shift.find_cache(project.work_dir)
    )
    test, rows = dataset_shift.two_sample(of_study, seed), dataset_shift.differences(of_study)
    storage.write_json(path, plain({**test, "features": rows, "seed": seed}))
    cli.say(f"{path}\n{dataset_shift.describe(test, rows)}")


def plain(content):
    """Return `content` with None for what is no number: JSON has no NaN."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [plain(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content


def describe(name: str, metrics: dict) -> str:
    total = metrics["log_loss"]["total"]
    lines = [f"{name}: log loss {total[0]:.5f} ({total[1]:.4f} to {total[2]:.4f})"]
    per_fold = ", ".join(f"{k} {loss:.4f}" for k, loss in metrics["log_loss"]["folds"].items())
    lines.append(f"folds: {per_fold}")
    columns = ("auc", "average_precision", "f1", "sensitivity", "specificity")
    for level in ("slices", "studies_max", "studies_aggregate"):
        lines.append(f"{level:18}" + "".join(f"{column:>19}" for column in columns))
        for label in LABELS:
            values = (metrics[level][label][column] for column in columns)
            lines.append(f"  {label:16}" + "".join(_cell(*value) for value in values))
    what = "{n_slices} slices, {n_studies} studies, {n_patients} patients; rates at the F1 threshold of the other folds"
    return "\n".join([*lines, "on " + what.format(**metrics)])


def _cell(value, low, high) -> str:
    if value is None:
        return f"{'-':>19}"
    return f"{value:.2f} ({low:.2f}-{high:.2f})".rjust(19) if low is not None else f"{value:.2f}".rjust(19)
