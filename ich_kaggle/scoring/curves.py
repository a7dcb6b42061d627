"""Metrics of one label: ROC AUC, average precision, rates at a threshold, and calibration error.

Point values are exact. The bootstrap works on histograms of the probabilities per patient, so that a draw of patients
costs one matrix product.
"""

import numpy as np
from scipy import sparse

from ich_kaggle.scoring import patient_bootstrap

N_BINS = 2000  # of equal count; ties inside a bin count half, which changes the AUC by less than 1 / N_BINS
N_CELLS = 15  # bins of equal width, for the calibration error


def rates(positive_above, negative_above, n_positive, n_negative) -> dict:
    """Return sensitivity, specificity, precision and F1 at a threshold, from the counts above it.

    The counts may be numbers or arrays. 0 of 0 is NaN, but F1 is 0 without any positives, true or predicted.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "sensitivity": np.divide(positive_above, n_positive),
            "specificity": 1 - np.divide(negative_above, n_negative),
            "precision": np.divide(positive_above, np.add(positive_above, negative_above)),
            "f1": 2 * positive_above / np.maximum(np.add(positive_above, negative_above) + n_positive, 1),
        }


def at_threshold(target: np.ndarray, probability: np.ndarray, threshold) -> dict:
    """Return the `rates` of one label, (n,), positive from `threshold` up, a number or one per slice."""
    called, is_positive = probability >= threshold, target > 0
    counts = (np.sum(called & is_positive), np.sum(called & ~is_positive), is_positive.sum(), (~is_positive).sum())
    return {name: float(value) for name, value in rates(*counts).items()}


def calibration_error(target: np.ndarray, probability: np.ndarray) -> float:
    """Return the mean distance of predicted and observed rates over bins of equal width (Naeini et al., AAAI 2015)."""
    found, meant, count = reliability(target, probability)
    return float((np.abs(found - meant) * count).sum() / len(target))


def reliability(target: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the observed rate, the mean probability and the number of slices of each bin that is not empty."""
    cell = np.minimum((probability * N_CELLS).astype(int), N_CELLS - 1)
    count = np.bincount(cell, minlength=N_CELLS)
    there = count > 0
    count = count[there]
    sums = (np.bincount(cell, values, N_CELLS)[there] for values in (target, probability))
    return *(total / count for total in sums), count


def exact(target: np.ndarray, probability: np.ndarray, threshold) -> dict:
    """Return the metrics of one label, (n,), without its log loss; NaN if a class is missing.

    `threshold` is a number, or one per slice, (n,).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # takes a second

    both = 0 < target.sum() < len(target)
    return {
        "auc": float(roc_auc_score(target, probability)) if both else float("nan"),
        "average_precision": float(average_precision_score(target, probability)) if both else float("nan"),
        "brier": float(((probability - target) ** 2).mean()),
        "calibration_error": calibration_error(target, probability),
        **at_threshold(target, probability, threshold),
    }


def bootstrap(
    target: np.ndarray, probability: np.ndarray, patient: np.ndarray, threshold, *, n_draws: int, seed: int
) -> dict:
    """Return the metrics of `exact` in each draw of patients, each (n_draws,). `patient` (n,) counts from 0."""
    n_patients = int(patient.max()) + 1
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, N_BINS)))
    bins = len(edges) - np.searchsorted(edges, probability, side="right")
    cell = np.minimum((probability * N_CELLS).astype(int), N_CELLS - 1)
    by_class = [_histogram(patient, bins, values, n_patients) for values in (target == 0, target > 0)]
    found, meant = (_histogram(patient, cell, values, n_patients) for values in (target, probability))
    called = probability >= threshold
    of_slice = [called & (target > 0), called & (target == 0), target > 0, target == 0, (probability - target) ** 2]
    sums = patient_bootstrap.sums(np.stack(of_slice, axis=1).astype(float), patient, n_patients)
    parts = []
    for count in patient_bootstrap.draws(n_patients, n_draws, seed):
        *counts, squares = (count @ sums).T
        n = counts[2] + counts[3]
        gap = np.abs(count @ found - count @ meant).sum(axis=1) / n
        curves = [np.cumsum(count @ histogram, axis=1) for histogram in by_class]
        parts.append({**areas(*curves), "brier": squares / n, "calibration_error": gap, **rates(*counts)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _histogram(patient: np.ndarray, bins: np.ndarray, values: np.ndarray, n_patients: int) -> sparse.csr_array:
    values = values.astype(np.float32)
    return sparse.csr_array((values, (patient, bins)), shape=(n_patients, int(bins.max()) + 1))


def areas(negative: np.ndarray, positive: np.ndarray) -> dict:
    """Return the area under the ROC curve and the average precision of each draw.

    `negative` and `positive` (n_draws, n_bins) count the slices in a bin and above it.
    """
    n_positive, n_negative = positive[:, -1], negative[:, -1]
    steps = np.diff(positive, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        below = n_negative[:, None] - negative + np.diff(negative, axis=1, prepend=0) / 2
        precision = positive / np.maximum(positive + negative, 1)
        return {
            "auc": (steps * below).sum(axis=1) / (n_positive * n_negative),
            "average_precision": (steps * precision).sum(axis=1) / n_positive,
        }
