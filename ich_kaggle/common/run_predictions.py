"""Predictions of runs, as ensembles, second levels and the report read them: out of fold, test, and embeddings."""

import numpy as np
import pandas as pd

from ich_kaggle.common import metric, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.runs import Run


def files(runs: list[str], k: int, features: str, folds: list[int]) -> list[str]:
    """Return the files that fold `k`, one of `folds`, reads of `runs`: names below work/runs."""
    if features == "fold":
        return [f"{run}/fold{k}/{name}" for run in runs for name in ("model.pt", "embeddings.npy")]
    oof = [f"{run}/fold{j}/oof.parquet" for run in runs for j in folds]
    return oof + [f"{run}/fold{k}/test.parquet" for run in runs]


def logits(probability: np.ndarray) -> np.ndarray:
    """Return the logits of `probability` as float32, clipped as `metric.logits` clips them."""
    return metric.logits(probability).astype(np.float32)


def read_oof(run: Run, folds: list[int], table: pd.DataFrame, fold: np.ndarray) -> np.ndarray:
    """Return the out-of-fold probabilities of all training slices in table order: float32 (n_train, 6).

    They are NaN outside of `folds`. Raises FileNotFoundError naming a fold that has none.
    """
    of_train = fold[fold >= 0]
    out = np.full((len(of_train), len(LABELS)), np.nan, np.float32)
    for k in folds:
        ids = table.slice_id[fold == k].to_numpy()
        out[of_train == k] = tables.read_predictions(run.fold(k) / "oof.parquet", ids, f"--run {run.name} --fold {k}")
    return out


def read_test(run: Run, k: int, table: pd.DataFrame) -> np.ndarray:
    """Return the probabilities of all test slices by the model of fold `k`: float32 (n_test, 6)."""
    ids = table.slice_id[table.split == "test"].to_numpy()
    return tables.read_predictions(run.fold(k) / "test.parquet", ids, f"--run {run.name} --fold {k}").copy()


def oof_logits(run: Run, k: int, folds: list[int], table: pd.DataFrame, fold: np.ndarray) -> np.ndarray:
    """Return the logits of all slices, float32 (n_slices, 6): out of fold, and of test slices by fold `k`'s model.

    They are NaN for training slices outside of `folds`. Raises FileNotFoundError naming a fold without predictions.
    """
    out = np.empty((len(table), len(LABELS)), np.float32)
    out[fold >= 0] = read_oof(run, folds, table, fold)
    if (is_test := fold < 0).any():
        out[is_test] = read_test(run, k, table)
    return logits(out)


def embeddings(run: Run, k: int, table: pd.DataFrame) -> np.ndarray:
    """Return fold `k`'s embeddings of all slices: float16 (n_slices, d), memory-mapped.

    Raises ValueError naming a slice that has none, or a file of something else.
    """
    path = run.fold(k) / "embeddings.npy"
    with storage.reading(path):
        store = np.lib.format.open_memmap(path, "r")  # never a pickle, as `np.load` might
    if store.dtype != np.float16 or store.ndim != 2 or len(store) != len(table):
        shape = f"{store.dtype} {store.shape}, not float16 ({len(table)}, d)"
        raise ValueError(f"{path}: {shape}: {storage.remedy(path)}")
    if len(empty := np.flatnonzero(np.isnan(store[:, 0]))):
        raise ValueError(
            f"{path}: slice {table.slice_id[empty[0]]} has no embedding ({len(empty)} slices have none): "
            f"run {storage.MAKERS[path.name]} --run {run.name} --fold {k} --all-slices --overwrite"
        )
    return store
