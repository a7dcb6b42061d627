"""Scores of a run or an ensemble: losses, curves and thresholds of slices and of studies, with intervals."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, metric, paths, run_predictions, runs, storage, tables
from ich_kaggle.common.labels import LABELS, SHARE
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.scoring import (
    blended_runs,
    blending,
    curves,
    dataset_shift,
    ensembling,
    patient_bootstrap,
    study_level,
    thresholds,
)


class Asked(NamedTuple):
    """The options of an evaluation."""

    beta: float = 2.0  # of F-beta
    recall: float = 0.95  # sensitivity to aim at
    confidence: float = 0.95  # that the models of the folds reach it
    n_draws: int = patient_bootstrap.N_DRAWS
    seed: int = 0

    @property
    def wanted(self) -> dict[str, float]:
        """The options of the thresholds."""
        return {"beta": self.beta, "recall": self.recall, "confidence": self.confidence}

    @property
    def draws(self) -> dict[str, int]:
        """The options of the bootstrap."""
        return {"n_draws": self.n_draws, "seed": self.seed}

    @property
    def settings(self) -> dict:
        """The options as metrics.json records them."""
        return {"wanted": self.wanted, **self.draws}

    def check(self) -> None:
        """Raise ValueError for a recall or a confidence that is not between 0 and 1."""
        for flag, value in (("--recall", self.recall), ("--confidence", self.confidence)):
            if not 0 < value < 1:
                raise ValueError(f"{flag} {value}: give a number between 0 and 1")


class Predictions(NamedTuple):
    """Out-of-fold predictions of a run, or the nested ones of an ensemble."""

    name: str
    folder: Path
    run: Run | None  # None for an ensemble
    folds: list[int]  # that are scored
    probability: np.ndarray  # float32 (n_train, 6), NaN where nothing is predicted
    made_from: dict[str, str]  # hashes by file


def read(project: Project, run: str | None, ensemble: str | None, wanted: list[int] | None) -> Predictions:
    """Return the predictions of a run or of an ensemble in the folds `wanted`, None for all."""
    return read_run(project, run, wanted) if ensemble is None else read_ensemble(project, ensemble, wanted)


def read_run(project: Project, name: str, wanted: list[int] | None) -> Predictions:
    run = project.run(name)
    folds = project.finished(run, wanted)
    cli.say(project.describe(run, folds))
    probability = run_predictions.read_oof(run, folds, project.slices, project.fold)
    made_from = {f"fold{k}/oof.parquet": runs.hash_of(run.fold(k) / "oof.parquet") for k in folds}
    return Predictions(name, run.folder, run, folds, blending.raise_any(probability), made_from)


def read_ensemble(project: Project, name: str, wanted: list[int] | None) -> Predictions:
    folder, folds = paths.ensemble(project.work_dir, name), project.chosen(wanted)
    probability = nested(project, name, folds)
    if np.isnan(probability).all():
        asked = ", ".join(map(str, folds))
        raise ValueError(f"{folder} has no predictions of fold {asked}: train more folds, or choose another --fold")
    made_from = dict.fromkeys((f"fold{k}/nested.parquet" for k in folds), runs.hash_of(folder / "nested.parquet"))
    return Predictions(name, folder, None, folds, probability, made_from)


def nested(project: Project, name: str, folds: list[int]) -> np.ndarray:
    """Return the nested predictions of an ensemble: float32 (n_train, 6), NaN outside of `folds`."""
    path = storage.require(paths.ensemble(project.work_dir, name) / "nested.parquet", f"--name {name}")
    probability = tables.read_predictions(path, project.slices.slice_id[project.is_train].to_numpy(), partial=True)
    is_wanted = np.isin(project.fold[project.is_train], folds)
    return blending.raise_any(np.where(is_wanted[:, None], probability, np.float32(np.nan)))


def nested_thresholds(target, probability, patient, fold, **wanted) -> dict[str, np.ndarray]:
    """Return the thresholds of one label per slice, by name, each (n,): those of a fold are chosen on the others."""
    out = {}
    for k in np.unique(fold):
        rest = fold != k
        for name, value in thresholds.choose(target[rest], probability[rest], patient[rest], **wanted).items():
            out.setdefault(name, np.empty(len(target)))[fold == k] = value
    return out


def measure(target, probability, patient, fold, asked: Asked) -> dict:
    """Return the metrics of one label, (n,), each with its interval, and the rates at each kind of threshold."""
    at = nested_thresholds(target, probability, patient, fold, **asked.wanted)
    values = curves.exact(target, probability, at["f1"])
    draws = curves.bootstrap(target, probability, patient, at["f1"], **asked.draws)
    scores = {name: [value, *patient_bootstrap.interval(draws[name])] for name, value in values.items()}
    return {**scores, "at": {name: curves.at_threshold(target, probability, one) for name, one in at.items()}}


def measure_labels(target, probability, patient, fold, asked: Asked) -> dict:
    columns = zip(LABELS, target.T, probability.T, strict=True)
    return {label: measure(t, p, patient, fold, asked) for label, t, p in columns}


def choose_thresholds(target, probability, patient, asked: Asked) -> dict[str, dict[str, float]]:
    """Return the thresholds of each label, by name, chosen on all of `target` and `probability` (n, 6)."""
    columns = zip(LABELS, target.T, probability.T, strict=True)
    return {label: thresholds.choose(t, p, patient, **asked.wanted) for label, t, p in columns}


def log_losses(target, probability, patient, fold, *, n_draws: int, seed: int) -> dict:
    """Return the competition's log loss, in total and per label with intervals, and per fold."""
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
    """Return the studies: target, largest probability of the slices, aggregated probability, each (m, 6), patient (m,)
    and fold (m,)."""
    first = np.unique(table.study_id.to_numpy(str), return_index=True)[1]
    *of_study, mean = study_level.of_studies(table.study_id, target, probability)
    return *of_study, aggregate(*of_study, mean, fold[first]), patient[first], fold[first]


def aggregate(target: np.ndarray, largest: np.ndarray, mean: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the probabilities (m, 6) of studies from the largest and the mean of their slices' probabilities, (m, 6).

    A logistic regression on the two logits; that of a fold is fitted on the other folds.
    """
    out = np.empty(largest.shape)
    for k in np.unique(fold):
        own, rest = fold == k, fold != k
        out[own] = study_level.apply(study_level.fit(target[rest], largest[rest], mean[rest]), largest[own], mean[own])
    return out


def score(table: pd.DataFrame, probability: np.ndarray, fold: np.ndarray, asked: Asked) -> tuple[dict, dict]:
    """Return all metrics of the training slices in `table`, and the thresholds of slices and of studies.

    Fits are nested between the folds, or between groups of patients if there are too few folds.
    """
    target, patient = tables.targets(table), np.unique(table.patient_id, return_inverse=True)[1]
    group = ensembling.groups_of(fold, target, patient)
    if len(np.unique(group)) < 2:
        raise ValueError("the predictions are of one patient: thresholds need two or more, so train more folds")
    study_target, largest, calibrated, study_patient, study_group = studies(table, target, probability, patient, group)
    of_study = (study_patient, study_group, asked)
    metrics = {
        "n_slices": len(table),
        "n_studies": len(study_target),
        "n_patients": int(patient.max()) + 1,
        "log_loss": log_losses(target, probability, patient, fold, **asked.draws),
        "slices": measure_labels(target, probability, patient, group, asked),
        "studies_max": measure_labels(study_target, largest, *of_study),
        "studies_aggregate": measure_labels(study_target, calibrated, *of_study),
    }
    chosen = {
        "slices": choose_thresholds(target, probability, patient, asked),
        "studies_max": choose_thresholds(study_target, largest, study_patient, asked),
    }
    return metrics, chosen


def is_current(done: Path, found: Predictions, asked: Asked) -> bool:
    """Tell whether metrics.json, `done`, exists and was made from these very predictions, and print it.

    Raises ValueError naming both if it was made with other options.
    """
    if not done.exists():
        return False
    metrics = storage.read_json(done)
    storage.same_settings(done, metrics, asked.settings, "give --overwrite")
    if metrics["made_from"] == found.made_from:
        cli.say(f"{done}{cli.THERE}\n{describe(found.name, metrics)}")
        return True
    cli.say(f"{done.parent}: scored anew ({blended_runs.what_changed(metrics['made_from'], found.made_from)})")
    return False


def with_test(project: Project, found: Predictions) -> np.ndarray:
    """Return the probabilities of all slices, (n, 6): out of fold for training slices, and for test slices those of
    the ensemble, or the mean over the folds of the run."""
    is_test = ~project.is_train
    if found.run is None:
        path = storage.require(found.folder / "test.parquet", f"--name {found.name} --overwrite")
        test = tables.read_predictions(path, project.slices.slice_id[is_test].to_numpy())
    else:
        test = np.mean([run_predictions.read_test(found.run, k, project.slices) for k in found.folds], axis=0)
    out = np.empty((len(project.slices), len(LABELS)))
    out[~is_test], out[is_test] = found.probability, test
    return out


def show_shift(project: Project, found: Predictions, seed: int) -> None:
    """Write and print the differences between test and training studies."""
    probability, path = with_test(project, found), found.folder / "evaluation" / "shift.json"
    known = ~np.isnan(probability[:, 0])
    cache_dir = dataset_shift.smallest_cache(project)
    of_study = dataset_shift.features(project.slices[known], probability[known], cache_dir)
    # Predictions of test slices are means over folds, those of training slices of one: a classifier sees that.
    scans = of_study[[name for name in of_study if not name.startswith(dataset_shift.PREDICTED)]]
    test, rows = dataset_shift.two_sample(scans, seed), dataset_shift.differences(of_study)
    storage.write_json(path, plain({**test, "features": rows, "seed": seed}))
    cli.say(f"{path}\n{dataset_shift.describe(test, rows)}")


def plain(content):
    """Return `content` with None in place of NaN and infinity, which JSON lacks."""
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
