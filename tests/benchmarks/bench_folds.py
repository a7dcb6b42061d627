"""Folds at the competition's size: balance and seconds, beside the peers.

Example: python tests/benchmarks/bench_folds.py
"""

import argparse
import time

import numpy as np
import pandas as pd
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from sklearn.model_selection import StratifiedGroupKFold

from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.scoring import patient_folds

N_SLICES, N_STUDIES, N_PATIENTS = 752_803, 21_744, 18_938
POSITIVE = dict(zip(LABELS, (3_145, 36_118, 26_205, 35_675, 47_166, 107_933), strict=True))
SLICES_OF_LESION = dict(zip(LABELS, (9, 10, 10, 11, 14), strict=False))  # mean, of one kind in one study


def competition(seed: int = 0) -> pd.DataFrame:
    """Return a slice table with the competition's counts: patients, studies, slices, positives (`any` within 1 %)."""
    rng = np.random.default_rng(seed)
    n_of_study = np.clip(rng.normal(34.6, 5.5, N_STUDIES).round().astype(int), 20, 60)
    while (gap := N_SLICES - n_of_study.sum()) != 0:
        n_of_study[rng.choice(N_STUDIES, abs(gap))] += np.sign(gap)
        n_of_study = np.clip(n_of_study, 20, 60)
    patient = np.r_[np.arange(N_PATIENTS), rng.choice(N_PATIENTS, N_STUDIES - N_PATIENTS)]
    start = np.r_[0, n_of_study.cumsum()]
    labels = np.zeros((N_SLICES, len(LABELS)), np.float32)
    bleeding = rng.permutation(N_STUDIES)[: int(0.29 * N_STUDIES)]
    for label, mean in SLICES_OF_LESION.items():
        lesions(rng, labels[:, LABELS.index(label)], POSITIVE[label], mean, bleeding, start)
    labels[:, ANY] = labels[:, :ANY].max(axis=1)
    of_slice = np.repeat(patient, n_of_study)
    table = pd.DataFrame(labels, columns=list(LABELS))
    table.insert(0, "patient_id", pd.Series([f"ID_{i:08x}" for i in range(N_PATIENTS)]).iloc[of_slice].to_numpy())
    return table.assign(study=np.repeat(np.arange(N_STUDIES), n_of_study))


def lesions(rng, column: np.ndarray, n_positive: int, mean: float, studies: np.ndarray, start: np.ndarray) -> None:
    """Set runs of neighbouring slices in random `studies` until exactly `n_positive` are set."""
    left = n_positive
    for study in rng.permutation(studies):
        first, end = start[study], start[study + 1]
        n = min(left, 1 + rng.poisson(mean - 1), end - first)
        at = first + rng.integers(end - first - n + 1)
        column[at : at + n] = 1
        left -= n
        if not left:
            return


def balance(table: pd.DataFrame, fold: np.ndarray) -> tuple[float, float]:
    """Return the largest relative deviation of a fold from the whole: of a label's rate, and of the slice count."""
    target = table[list(LABELS)].to_numpy()
    rates = np.array([target[fold == k].mean(axis=0) for k in np.unique(fold)])
    sizes = np.unique(fold, return_counts=True)[1]
    return np.abs(rates / target.mean(axis=0) - 1).max(), np.abs(sizes / sizes.mean() - 1).max()


def ours(table: pd.DataFrame, n_folds: int) -> np.ndarray:
    of_patient = patient_folds.assign_folds(table, n_folds=n_folds, seed=0).set_index("patient_id").fold
    return table.patient_id.map(of_patient).to_numpy()


def group_k_fold(table: pd.DataFrame, n_folds: int) -> np.ndarray:
    fold = np.empty(len(table), int)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=0)
    for k, (_, held_out) in enumerate(splitter.split(table, table["any"], table.patient_id)):
        fold[held_out] = k
    return fold


def iterative(table: pd.DataFrame, n_folds: int) -> np.ndarray:
    has = table.groupby("patient_id")[list(LABELS)].max()
    fold = pd.Series(0, has.index)
    splitter = MultilabelStratifiedKFold(n_folds, shuffle=True, random_state=0)
    for k, (_, held_out) in enumerate(splitter.split(has, has)):
        fold.iloc[held_out] = k
    return table.patient_id.map(fold).to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=5)
    n_folds = parser.parse_args().folds
    table = competition()
    print(f"{table.patient_id.nunique()} patients, {len(table)} slices, {n_folds} folds")
    seconds = {}  # of a core
    for name, split in (
        ("ich_kaggle.folds", ours),
        ("StratifiedGroupKFold on any", group_k_fold),
        ("MultilabelStratifiedKFold", iterative),
    ):
        began = time.process_time()
        fold = split(table, n_folds)
        seconds[name] = time.process_time() - began
        rate, size = balance(table, fold)
        ratio = seconds[name] / seconds["ich_kaggle.folds"]
        print(f"{name:28} worst label {rate:7.3%} slices {size:7.3%}  {seconds[name]:6.2f} s of a core, {ratio:.1f} x")


if __name__ == "__main__":
    main()
