"""The predictions of runs and ensembles that the report reads, their curves, training logs and error correlation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle.common import paths, run_predictions, storage, tables
from ich_kaggle.common.project import Project
from ich_kaggle.html import app
from ich_kaggle.scoring import blending, comparison, curves, evaluation

# In steps of about 0.05 in logit: fine at both ends of a curve.
THRESHOLDS = np.unique(expit(np.linspace(-9.2, 9.2, 369)).round(4))


class Entry(NamedTuple):
    """A run or an ensemble of the report, with its out-of-fold or nested predictions."""

    name: str
    kind: str  # "run" or "ensemble"
    probability: np.ndarray  # float32 (n_train, 6), NaN where nothing is predicted
    on: Sequence[str] = ()  # runs that a second level reads
    leak: str = ""  # why its models may have seen the patients that score it


def read_sources(
    project: Project, runs: list[str] | None = None, name: str | None = None, fold: list[int] | None = None
) -> list[Entry]:
    """Return the nested predictions of the ensemble `name` and the OOF ones of `runs`, in the folds `fold`; None: all.

    Raises FileNotFoundError for one that was named and has no predictions.
    """
    wanted = project.chosen(fold)
    ensembles = paths.ensemble_names(project.work_dir) if name is None else [name]
    found = [
        Entry(one, "ensemble", evaluation.nested(project, one, wanted), leak=_leak_of(project, one))
        for one in ensembles
    ]
    for run in map(project.run, runs or [run.name for run in project.runs()]):
        predicted = [k for k in run.predicted if k in wanted]
        if runs and not predicted:
            storage.require(run.fold(wanted[0]) / "oof.parquet", f"--run {run.name} --fold {wanted[0]}")
        if predicted:
            probability = run_predictions.read_oof(run, predicted, project.slices, project.fold)
            on = run.settings.get("on", [])
            found.append(Entry(run.name, "run", blending.raise_any(probability), on, run.possible_leak))
    return [one for one in found if not np.isnan(one.probability).all()]


def _leak_of(project: Project, ensemble: str) -> str:
    return storage.read_json(paths.ensemble(project.work_dir, ensemble) / "weights.json").get("possible_leak", "")


def curve(target: np.ndarray, probability: np.ndarray) -> dict:
    """Return the areas and the calibration of one label, (n,), and its true and false positives at THRESHOLDS."""
    by_class = {"tp": probability[target > 0], "fp": probability[target == 0]}
    above = {name: len(p) - np.searchsorted(np.sort(p), THRESHOLDS) for name, p in by_class.items()}
    exact = curves.exact(target, probability, 0.5)
    found, meant, count = curves.reliability(target, probability)
    return {
        "n_positive": int(target.sum()),
        "n_negative": int(len(target) - target.sum()),
        **{name: counts.tolist() for name, counts in above.items()},
        **{name: exact[name] for name in ("auc", "average_precision", "brier", "calibration_error")},
        "reliability": {"found": app.numbers(found), "meant": app.numbers(meant), "count": count.tolist()},
    }


def describe_data(table: pd.DataFrame, fold: np.ndarray) -> dict:
    """Return the numbers of slices, studies and patients, the label counts, and both per fold."""
    target = tables.targets(table[fold >= 0])
    columns = ("slice_id", "series_id", "study_id", "patient_id")
    by_fold = [(int(k), table[fold == k]) for k in np.unique(fold[fold >= 0])]
    return {
        "splits": [
            {"split": split, **{column: int(part[column].nunique()) for column in columns}}
            for split, part in table.groupby("split", sort=False)
        ],
        "rates": app.numbers(target.mean(axis=0)),
        "counts": target.sum(axis=0).astype(int).tolist(),
        "folds": [
            {"fold": k, "patients": part.patient_id.nunique(), "slices": len(part)}
            | {"rates": app.numbers(tables.targets(part).mean(axis=0))}
            for k, part in by_fold
        ],
    }


def learning_curves(project: Project) -> list[dict]:
    """Return the epochs of every log.csv with its run, its fold and, for a second level, its seed."""
    out = []
    for path in sorted(run.fold(k) / "log.csv" for run in project.runs() for k in run.begun):
        if path.exists():
            with storage.reading(path):
                log = pd.read_csv(path, dtype=float)
            for seed, rows in log.groupby("seed" if "seed" in log else np.zeros(len(log), int)):
                columns = {name: app.numbers(rows[name]) for name in ("epoch", "train_loss", "valid_loss")}
                about = {"run": path.parents[1].name, "fold": int(path.parent.name[4:]), "seed": int(seed)}
                out.append(about | columns)
    return out


def correlation(sources: list[Entry], target: np.ndarray) -> dict | None:
    """Return the correlation of the errors of the runs on the slices that all of them predict."""
    of_runs = [source for source in sources if source.kind == "run"]
    if len(of_runs) < 2:
        return None
    there = ~np.isnan([source.probability[:, 0] for source in of_runs]).any(axis=0)
    if not there.any():
        return None
    matrix = comparison.error_correlation(target[there], [source.probability[there] for source in of_runs])
    return {"runs": [s.name for s in of_runs], "matrix": app.numbers(matrix), "n_slices": int(there.sum())}
