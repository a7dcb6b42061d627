"""Split the patients into folds that look alike.

Reads:   work/slices.parquet
Writes:  work/folds.csv  (patient_id, fold)
Example: python -m ich_kaggle.folds --folds 5 --seed 0
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle import cli, paths, slices, tables
from ich_kaggle.labels import LABELS


def assign_folds(slices: pd.DataFrame, *, n_folds: int, seed: int) -> pd.DataFrame:
    """Return one row a patient (patient_id, fold): every label and the number of slices balanced over the folds.

    Patients go one by one, those with the largest share of something rare first, to the fold that has least of what
    they bring. Raises ValueError for fewer patients than folds.
    """
    counts = slices.assign(n_slices=1).groupby("patient_id")[["n_slices", *LABELS]].sum()
    if not 2 <= n_folds <= len(counts):
        raise ValueError(f"{n_folds} folds of {len(counts)} patients: choose 2 to {len(counts)}")
    share = counts.to_numpy(float) / np.maximum(counts.to_numpy(float).sum(axis=0), 1)
    order = np.random.default_rng(seed).permutation(len(share))
    order = order[np.argsort(-share[order].max(axis=1), kind="stable")]
    held = np.zeros((n_folds, share.shape[1]))
    fold = np.empty(len(share), int)
    for patient in order:
        # The fold where the sum of squared shares grows least.
        fold[patient] = k = (held @ share[patient]).argmin()
        held[k] += share[patient]
    return pd.DataFrame({"patient_id": counts.index, "fold": fold})


def describe(train: pd.DataFrame, fold: np.ndarray) -> str:
    by_fold = train.assign(fold=fold).groupby("fold")
    table = by_fold[list(LABELS)].mean().map("{:.2%}".format)
    table.insert(0, "slices", by_fold.size())
    table.insert(0, "patients", by_fold.patient_id.nunique())
    return table.to_string()


def ensure(data_dir: Path | None, work_dir: Path, workers: int) -> np.ndarray:
    """Return the fold of every slice, int (n,), -1 for test slices; patients not yet split are split by default."""
    if not paths.folds(work_dir).exists():
        folds(data_dir=data_dir, work_dir=work_dir, n_folds=5, seed=0, workers=workers)
    return tables.read_folds(work_dir, tables.read_slices(work_dir))


def folds(*, data_dir: Path | None, work_dir: Path, n_folds: int, seed: int, workers: int, overwrite=False) -> None:
    path = paths.folds(work_dir)
    table = slices.ensure(data_dir, work_dir, workers)
    train = table[table.split == "train"]
    settings = {"folds": n_folds, "seed": seed, "slices": tables.slices_hash(table)}
    if is_there := path.exists() and not overwrite:
        remedy = "give the same, or --overwrite: runs made with the old folds are then refused"
        paths.same_settings(path, tables.folds_settings(work_dir), settings, remedy)
    else:
        tables.write_folds(work_dir, assign_folds(train, n_folds=n_folds, seed=seed), settings)
    fold = tables.read_folds(work_dir, table)[: len(train)]
    cli.say(f"{path}{cli.THERE if is_there else ''}\n{describe(train, fold)}")


def build_parser():
    flags = ("--data-dir", "--work-dir", "--folds", "--seed", "--workers", "--overwrite")
    return cli.command(__doc__, *flags)


def main(argv=None):
    cli.run(folds, build_parser(), argv)


if __name__ == "__main__":
    main()
