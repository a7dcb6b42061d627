"""Thresholds of one label: the best F-beta, and a recall to aim at.

The latter bound the miss rate of a patient, the share of positive slices below the threshold, averaged over the
patients with positive slices. Both bounds hold for the model that made the predictions, whichever it is, and need only
exchangeable patients and a miss rate that does not decrease as the threshold rises. Out-of-fold predictions are of
several models; a submission and a scan use their mean, which is another model, so that nothing is guaranteed for it.
    expected   E(miss rate of a new patient) <= alpha: conformal risk control
               (Angelopoulos, Bates, Fisch, Lei, Schuster, ICLR 2024, arXiv 2208.02814)
    confident  P(mean miss rate <= alpha) >= confidence over the draw of these patients: the Hoeffding-Bentkus bound
               (Bates, Angelopoulos, Lei, Malik, Jordan, JACM 2021, arXiv 2101.02703)
"""

import numpy as np


def best_f(target: np.ndarray, probability: np.ndarray, beta: float = 1.0) -> float:
    """Return the threshold of highest F-beta for a label, (n,); 1 if it has no positives."""
    order = np.argsort(-probability, kind="stable")
    hits, called = np.cumsum(target[order]), np.arange(1, len(order) + 1)
    if not len(hits) or hits[-1] == 0:
        return 1.0
    f = (1 + beta**2) * hits / (called + beta**2 * hits[-1])
    is_last = np.append(np.diff(probability[order]) != 0, True)  # equal probabilities share a threshold
    return float(probability[order][np.argmax(np.where(is_last, f, -1))])


def miss_curve(target: np.ndarray, probability: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the thresholds at which a positive slice can be missed, ascending, the mean miss rate at each of them
    over the patients with positives, and the number of these patients."""
    is_positive = target > 0
    _, code, n_of_patient = np.unique(patient[is_positive], return_inverse=True, return_counts=True)
    p = probability[is_positive]
    order = np.argsort(p, kind="stable")
    lost = np.cumsum(1 / n_of_patient[code[order]])
    thresholds, first = np.unique(p[order], return_index=True)
    rate = np.append(0, lost)[first] / max(len(n_of_patient), 1)
    return thresholds, rate, len(n_of_patient)


def expected(curve: tuple, alpha: float) -> float:
    """Return the highest threshold with an expected miss rate of at most `alpha`, or 0."""
    thresholds, rate, n = curve
    return _highest(thresholds, (n * rate + 1) / (n + 1) <= alpha)


def confident(curve: tuple, alpha: float, confidence: float) -> float:
    """Return the highest threshold with a mean miss rate of at most `alpha` at `confidence`, or 0."""
    thresholds, rate, n = curve
    return _highest(thresholds, p_value(rate, n, alpha) <= 1 - confidence)


def _highest(thresholds: np.ndarray, fine: np.ndarray) -> float:
    # Up to the first that fails: fixed-sequence testing requires it, and the rate of risk control is monotone anyway.
    n_fine = len(fine) if fine.all() else int(fine.argmin())
    return float(thresholds[n_fine - 1]) if n_fine else 0.0


def p_value(rate: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Return the lesser of Hoeffding's and Bentkus' bounds on P(mean of n losses in [0, 1] <= `rate`) if the risk is
    above `alpha`."""
    from scipy.stats import binom  # takes a second

    low = np.minimum(rate, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(low > 0, low * np.log(low / alpha), 0) + (1 - low) * np.log((1 - low) / (1 - alpha))
    return np.minimum(np.exp(-n * divergence), np.e * binom.cdf(np.ceil(n * rate), n, alpha))


def choose(
    target: np.ndarray, probability: np.ndarray, patient: np.ndarray, *, beta: float, recall: float, confidence: float
) -> dict[str, float]:
    """Return the thresholds of one label, (n,), by name."""
    curve = miss_curve(target, probability, patient)
    return {
        "f1": best_f(target, probability),
        f"f{beta:g}": best_f(target, probability, beta),
        f"recall_{recall:g}_expected": expected(curve, 1 - recall),
        f"recall_{recall:g}": confident(curve, 1 - recall, confidence),
    }
