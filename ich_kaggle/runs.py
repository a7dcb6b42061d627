"""What is read of a run: its predictions, as the ensemble and the second level take them, and a fold's embeddings."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logit

from ich_kaggle import disk, paths, tables
from ich_kaggle.labels import LABELS

CLIP = 1e-6  # probabilities are read as logits between those of CLIP and of 1 - CLIP


def files(runs: list[str], k: int, features: str, folds: list[int]) -> list[str]:
    """Return the files that fold `k`, one of `folds`, reads of `runs`: names below work/runs."""
    if features == "fold":
        return [f"{run}/fold{k}/{name}" for run in runs for name in ("model.pt", "embeddings.npy")]
    oof = [f"{run}/fold{j}/oof.parquet" for run in runs for j in folds]
    return oof + [f"{run}/fold{k}/test.parquet" for run in runs]


def written(folder: Path) -> dict[str, str]:
    """Return the hash of each file of predictions in the folder of a fold or an ensemble."""
    names = ("oof.parquet", "nested.parquet", "test.parquet", "embeddings.npy")
    return {name: disk.file_hash(folder / name) for name in names if (folder / name).exists()}


def hash_of(path: Path) -> str:
    """Return the hash of a file in the folder of a fold or an ensemble.

    Raises ValueError if it is not the one that `written` gave, which predict.json or weights.json holds.
    """
    found = disk.file_hash(path)
    for done in (path.with_name("predict.json"), path.with_name("weights.json")):
        known = disk.read_json(done).get("files", {}).get(path.name, found) if done.exists() else found
        if found != known:
            raise ValueError(f"{path}: damaged or changed, its hash is {found}, not {known}: {disk.remedy(path)}")
    return found


def logits(probability: np.ndarray) -> np.ndarray:
    """Return the logits of `probability`, float32, none beyond those of CLIP and of 1 - CLIP."""
    return logit(np.clip(probability, CLIP, 1 - CLIP)).astype(np.float32)


def read_oof(work_dir: Path, run: str, table: pd.DataFrame, fold: np.ndarray) -> np.ndarray:
    """Return the out-of-fold probabilities of all training slices in table order: float32 (n_train, 6).

    Raises FileNotFoundError naming a fold that has none.
    """
    out = np.empty((int((fold >= 0).sum()), len(LABELS)), np.float32)
    for k in np.unique(fold[fold >= 0]):
        path = paths.fold(work_dir, run, k) / "oof.parquet"
        ids = table.slice_id[fold == k].to_numpy()
        out[fold[fold >= 0] == k] = tables.read_predictions(path, ids, f"--run {run} --fold {k}")
    return out


def read_test(work_dir: Path, run: str, table: pd.DataFrame, k: int) -> np.ndarray:
    """Return the probabilities of all test slices by the model of fold `k`: float32 (n_test, 6)."""
    ids = table.slice_id[table.split == "test"].to_numpy()
    path = paths.fold(work_dir, run, k) / "test.parquet"
    return tables.read_predictions(path, ids, f"--run {run} --fold {k}").copy()


def oof_logits(work_dir: Path, run: str, k: int, table: pd.DataFrame, fold: np.ndarray) -> np.ndarray:
    """Return the logits of all slices, float32 (n_slices, 6): out of fold, and of test slices by fold `k`'s model.

    Raises FileNotFoundError naming a fold without predictions.
    """
    out = np.empty((len(table), len(LABELS)), np.float32)
    out[fold >= 0] = read_oof(work_dir, run, table, fold)
    if (is_test := fold < 0).any():
        out[is_test] = read_test(work_dir, run, table, k)
    return logits(out)


def embeddings(work_dir: Path, run: str, k: int, table: pd.DataFrame) -> np.ndarray:
    """Return fold `k`'s embeddings of all slices: float16 (n_slices, d), memory-mapped.

    Raises ValueError naming a slice that has none, or a file of something else.
    """
    path = paths.fold(work_dir, run, k) / "embeddings.npy"
    try:
        store = np.lib.format.open_memmap(path, "r")  # never a pickle, as `np.load` might
    except Exception as error:  # damaged bytes meet errors of every type
        raise ValueError(f"{path}: damaged ({error}): {disk.remedy(path)}") from error
    if store.dtype != np.float16 or store.ndim != 2 or len(store) != len(table):
        shape = f"{store.dtype} {store.shape}, not float16 ({len(table)}, d)"
        raise ValueError(f"{path}: {shape}: {disk.remedy(path)}")
    if len(empty := np.flatnonzero(np.isnan(store[:, 0]))):
        raise ValueError(
            f"{path}: slice {table.slice_id[empty[0]]} has no embedding ({len(empty)} slices have none): "
            f"run {disk.MAKERS[path.name]} --run {run} --fold {k} --all-slices --overwrite"
        )
    return store
