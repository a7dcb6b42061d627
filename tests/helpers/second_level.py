"""A first level that was never fitted: slices, folds and runs on disk, their predictions drawn around the labels."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.learning import slice_model

N_FOLDS = 3
CONFIG = slice_model.SliceConfig("test_resnet", 32, 32)


def lesions(rng: np.random.Generator, n_slices: int) -> np.ndarray:
    """Return labels, float32 (n_slices, 6), each with one stretch of neighbouring slices in half of the series."""
    target = np.zeros((n_slices, len(LABELS)), np.float32)
    for label in range(len(LABELS)):
        if rng.random() < 0.5:
            first, n = rng.integers(n_slices), rng.integers(1, 1 + max(1, n_slices // 2))
            target[first : first + n, label] = 1
    target[:, ANY] = target.max(axis=1)
    return target


def write_slices(work_dir: Path, lengths: list[int], n_test: int = 2, seed: int = 0) -> pd.DataFrame:
    """Write a slice table of a patient for each of `lengths`, the last `n_test` of them test patients, and folds."""
    rng = np.random.default_rng(seed)
    parts = []
    for i, n in enumerate(lengths):
        is_test = i >= len(lengths) - n_test
        row = {"patient_id": f"ID_p{i:03}", "study_id": f"ID_s{i:03}", "series_id": f"ID_t{i:03}", "path": "-"}
        part = pd.DataFrame({"slice_id": [f"ID_{i:05x}{j:04x}" for j in range(n)], **row})
        part["position"] = 5.0 * np.arange(n) + rng.uniform(0, 1, n)
        part["split"] = "test" if is_test else "train"
        part[list(LABELS)] = np.nan if is_test else lesions(rng, n)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)[tables.SLICE_COLUMNS].astype(dict.fromkeys(LABELS, np.float32))
    tables.write_slices(work_dir, table, {})
    patients = table.patient_id[table.split == "train"].unique()
    tables.write_folds(work_dir, pd.DataFrame({"patient_id": patients, "fold": np.arange(len(patients)) % N_FOLDS}), {})
    return table


def write_run(work_dir: Path, run: str, seed: int = 0, noise: float = 2.0) -> None:
    """Write what a slice run leaves in each of its folds; its embeddings are of all slices."""
    table = tables.read_slices(work_dir)
    fold = tables.read_folds(work_dir, table)
    is_test = fold < 0
    storage.write_json(
        paths.run(work_dir, run) / "run.json", {"settings": Project(None, work_dir).same, "views": ["identity"]}
    )
    truth = np.nan_to_num(tables.targets(table))
    for k in range(N_FOLDS):
        rng = np.random.default_rng([seed, k])
        folder = paths.fold(work_dir, run, k)
        model = slice_model.SliceModel(CONFIG)
        slice_model.save(folder / "model.pt", model)
        write_embeddings(folder / "embeddings.npy", rng.normal(size=(len(table), model.embedding_size)))
        probability = expit(4 * truth - 2 + rng.normal(0, noise, truth.shape))
        tables.write_predictions(folder / "oof.parquet", table.slice_id[fold == k], probability[fold == k])
        tables.write_predictions(folder / "test.parquet", table.slice_id[is_test], probability[is_test])
        storage.write_json(folder / "predict.json", {"views": ["identity"], "all_slices": True})


def write_embeddings(path: Path, values: np.ndarray) -> None:
    with storage.writing(path) as temporary, temporary.open("wb") as file:
        np.save(file, values.astype(np.float16))
