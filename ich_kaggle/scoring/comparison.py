"""Comparison of runs: scores with intervals over patients, paired differences, and the correlation of errors."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ich_kaggle.common import metric
from ich_kaggle.common.labels import SHARE
from ich_kaggle.scoring import patient_bootstrap

CHUNK = 1 << 14  # slices per block


def patient_losses(target: np.ndarray, probabilities: Sequence[np.ndarray], patient: np.ndarray) -> np.ndarray:
    """Return the summed competition loss of each patient and run: (n_patients, n_runs). `patient` counts from 0."""
    total = np.zeros((patient.max() + 1, len(probabilities)))
    for start in range(0, len(target), CHUNK):
        rows = slice(start, start + CHUNK)
        losses = np.stack([metric.losses(target[rows], run[rows]) @ SHARE for run in probabilities], axis=1)
        total += patient_bootstrap.sums(losses, patient[rows], len(total))
    return total


def compare(names: list[str], total: np.ndarray, size: np.ndarray, *, n_draws: int, seed: int) -> dict:
    """Return the 95 % intervals of the scores, and the differences of all pairs with theirs, on the same draws.

    `total` (n_patients, n_names) are the summed losses of each patient, `size` (n_patients,) the numbers of slices.
    """
    scores = patient_bootstrap.bootstrap(total, size, n_draws=n_draws, seed=seed)
    mean = total.sum(axis=0) / size.sum()
    pairs = list(combinations(range(len(names)), 2))
    return {
        "intervals": {name: patient_bootstrap.interval(scores[:, i]) for i, name in enumerate(names)},
        "differences": {
            f"{names[i]} - {names[j]}": [
                float(mean[i] - mean[j]),
                *patient_bootstrap.interval(scores[:, i] - scores[:, j]),
            ]
            for i, j in pairs
        },
    }


def error_correlation(target: np.ndarray, probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Return the correlation of the errors, probability - target over all slices and labels: (n_runs, n_runs)."""
    n_runs = len(probabilities)
    products, total = np.zeros((n_runs, n_runs)), np.zeros(n_runs)
    for start in range(0, len(target), CHUNK):
        rows = slice(start, start + CHUNK)
        errors = np.stack([(run[rows] - target[rows]).ravel() for run in probabilities]).astype(float)
        products += errors @ errors.T
        total += errors.sum(axis=1)
    covariance = products - np.outer(total, total) / target.size
    spread = np.sqrt(np.clip(np.diag(covariance), 1e-30, None))
    return covariance / np.outer(spread, spread)
