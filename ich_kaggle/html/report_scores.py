"""The predictions of runs and ensembles that the report reads, their curves, training logs and error correlation."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle.common import paths, run_predictions, runs, storage, tables
from ich_kaggle.html import app
from ich_kaggle.scoring import blending, comparison, curves

# In steps of about 0.05 in logit: fine at both ends of a curve.
THRESHOLDS = np.unique(expit(np.linspace(-9.2, 9.2, 369)).round(4))


class Entry(NamedTuple):
    """A run or an ensemble of the report, with its out-of-fold or nested predictions."""

    name: str
    kind: str  # "run" or "ensemble"
    probability: np.ndarray  # float32 (n_train, 6), NaN where nothing is predicted
    on: Sequence[str] = ()  # runs that a second level reads


def read_sources(
    work_dir: Path,
    names: list[str] | None,
    name: str | None,
    table: pd.DataFrame,
    fold: np.ndarray,
    wanted: list[int] | None = None,
) -> list[Entry]:
    """Return the ensembles and the runs with predictions, or those named, in the folds `wanted`, None for all.

    Raises FileNotFoundError for one that was named and has no predictions.
    """
    return [
        *read_ensembles(work_dir, paths.ensemble_names(work_dir) if name is None else [name], table, fold, wanted),
        *read_runs(work_dir, names, table, fold, wanted),
    ]


def read_ensembles(work_dir: Path, names: list[str], table: pd.DataFrame, fold: np.ndarray, wanted) -> Iterator[Entry]:
    ids, of_train = table.slice_id[fold >= 0].to_numpy(), fold[fold >= 0]
    for name in names:
        path = storage.require(paths.ensemble(work_dir, name) / "nested.parquet", f"--name {name}")
        probability = tables.read_predictions(path, ids, partial=True).copy()
        if wanted is not None:
            probability[~np.isin(of_train, wanted)] = np.nan
        if not np.isnan(probability).all():
            yield Entry(name, "ensemble", probability)


def read_runs(work_dir: Path, names, table: pd.DataFrame, fold: np.ndarray, wanted) -> Iterator[Entry]:
    for name in names or paths.run_names(work_dir):
        run = runs.Run(work_dir, name)
        predicted = [k for k in run.predicted if wanted is None or k in wanted]
        if predicted:
            probability = blending.raise_any(run_predictions.read_oof(run, predicted, table, fold))
            yield Entry(name, "run", probability, run.settings.get("on", []))
        elif names:
            k = (wanted or [0])[0]
            storage.require(run.fold(k) / "oof.parquet", f"--run {name} --fold {k}")


def curve(target: np.ndarray, probability: np.ndarray) -> dict:
    """Return the areas and the calibration of one label, (n,), and its true and false positives at THRESHOLDS."""
    above = {
        name: n - np.searchsorted(np.sort(values), THRESHOLDS)
        for name, values in (("tp", probability[target > 0]), ("fp", probability[target == 0]))
        for n in [len(values)]
    }
    exact = curves.exact(target, probability, 0.5)
    found, meant, count = curves.reliability(target, probability)
    return {
        "n_positive": int(target.sum()),
        "n_negative": int(len(target) - target.sum()),
        **{name: counts.tolist() for name, counts in above.items()},
        **{name: exact[name] for name in ("auc", "average_precision", "brier", "calibration_error")},
        "reliability": {"found": app.numbers(found), "meant": app.numbers(meant), "count": count.tolist()},
    }


def describe_data(table: pd.DataFrame, fold: np.ndarray | None) -> dict:
    """Return the numbers of slices, studies and patients, the label counts, and both per fold."""
    train = table[table.split == "train"]
    columns = ("slice_id", "series_id", "study_id", "patient_id")
    by_fold = [] if fold is None else [(int(k), table[fold == k]) for k in np.unique(fold[fold >= 0])]
    return {
        "splits": [
            {"split": split, **{column: int(part[column].nunique()) for column in columns}}
            for split, part in table.groupby("split", sort=False)
        ],
        "rates": app.numbers(tables.targets(train).mean(axis=0)),
        "counts": tables.targets(train).sum(axis=0).astype(int).tolist(),
        "folds": [
            {"fold": k, "patients": part.patient_id.nunique(), "slices": len(part)}
            | {"rates": app.numbers(tables.targets(part).mean(axis=0))}
            for k, part in by_fold
        ],
    }


def read_log(path: Path) -> pd.DataFrame:
    """Return the rows of a log.csv. Raises ValueError naming the file if it is damaged."""
    try:
        return pd.read_csv(path, dtype=float)
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}): {storage.remedy(path)}") from error


def learning_curves(work_dir: Path) -> list[dict]:
    """Return the epochs of every log.csv with its run, its fold and, for a second level, its seed."""
    out = []
    for run in paths.run_names(work_dir):
        for k, folder in paths.run_folds(work_dir, run).items():
            if not (path := folder / "log.csv").exists():
                continue
            log = read_log(path)
            for seed, rows in log.groupby("seed" if "seed" in log else np.zeros(len(log), int)):
                columns = {name: app.numbers(rows[name]) for name in ("epoch", "train_loss", "valid_loss")}
                out.append({"run": run, "fold": k, "seed": int(seed), **columns})
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
