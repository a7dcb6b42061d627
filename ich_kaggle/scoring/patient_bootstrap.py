"""Uncertainty of means over slices: standard errors and bootstrap draws over patients.

Slices of one patient are alike, so whole patients are resampled. All functions work on sums per patient,
(n_patients, k), and runs are compared on the same draws.
"""

from collections.abc import Iterator

import numpy as np

N_DRAWS = 1000
BATCH = 100  # draws per block


def sums(values: np.ndarray, patient: np.ndarray, n_patients: int) -> np.ndarray:
    """Return the sums of `values` (n, k) per patient: (n_patients, k). `patient` (n,) counts from 0."""
    return np.stack([np.bincount(patient, column, n_patients) for column in values.T], axis=1)


def standard_error(total: np.ndarray, size: np.ndarray) -> float:
    """Return the standard error of sum(total) / sum(size); `total` and `size` are (n_patients,), sums and slices.

    The linearised ratio estimator (Cochran, Sampling Techniques, 2.11), to which the patient bootstrap tends.
    """
    n_patients = len(total)
    if n_patients < 2:
        return float("inf")
    residual = total - total.sum() / size.sum() * size
    return float(np.sqrt(n_patients / (n_patients - 1) * (residual**2).sum()) / size.sum())


def draws(n_patients: int, n_draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the count of each patient in each bootstrap draw, in batches: float32 (n, n_patients)."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_draws, BATCH):
        n = min(BATCH, n_draws - start)
        chosen = rng.integers(n_patients, size=(n, n_patients)) + n_patients * np.arange(n)[:, None]
        yield np.bincount(chosen.ravel(), minlength=n * n_patients).reshape(n, n_patients).astype(np.float32)


def bootstrap(total: np.ndarray, size: np.ndarray, *, n_draws: int = N_DRAWS, seed: int = 0) -> np.ndarray:
    """Return the means over slices in each draw of patients: (n_draws, k), from sums and slices per patient."""
    parts = [(count @ total) / (count @ size)[:, None] for count in draws(len(size), n_draws, seed)]
    return np.concatenate(parts)


def interval(values: np.ndarray, level: float = 0.95) -> list[float]:
    """Return the ends of the central interval of `values` (n_draws,), NaN if no value is finite."""
    values = values[np.isfinite(values)]
    if not len(values):
        return [float("nan"), float("nan")]
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
