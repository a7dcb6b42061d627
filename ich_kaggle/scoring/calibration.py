"""Calibration of the probabilities of a label by log loss: logit q = a ln p - b ln(1 - p) + c.

Beta calibration fits a, b >= 0 and c (Kull, Silva Filho, Flach, AISTATS 2017); temperature scaling is a = b, c = 0
(Guo et al., ICML 2017).
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from ich_kaggle.common import metric

IDENTITY = (1.0, 1.0, 0.0)
KINDS = ("none", "temperature", "beta")
BINS = 100  # per unit of logit: slices in one bin are fitted as one


def fit(kind: str, target: np.ndarray, probability: np.ndarray) -> tuple[float, float, float]:
    """Return a, b, c of a label from `target` and `probability`, (n,); the identity if one class is missing."""
    if kind == "none" or target.min() == target.max():
        return IDENTITY
    x, n_positive, n_negative = _binned(target, probability)
    # Row i of `bases` is the factor of parameter i.
    bases = np.stack([logit(x)] if kind == "temperature" else [np.log(x), -np.log1p(-x), np.ones_like(x)])
    total = n_positive.sum() + n_negative.sum()

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters @ bases
        value = n_positive @ np.logaddexp(0, -z) + n_negative @ np.logaddexp(0, z)
        return value / total, bases @ ((n_positive + n_negative) * expit(z) - n_positive) / total

    start, bounds = ([1.0], [(0, None)]) if kind == "temperature" else (IDENTITY, [(0, None), (0, None), (None, None)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-9}).x
    return (found[0], found[0], 0.0) if kind == "temperature" else tuple(found.tolist())


def _binned(target: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean probability of each bin of 1 / BINS in logit, and its positives and negatives."""
    z = metric.logits(probability.astype(float))
    _, place = np.unique(np.rint(z * BINS), return_inverse=True)
    n_all, n_positive = np.bincount(place), np.bincount(place, target)
    return expit(np.bincount(place, z) / n_all), n_positive, n_all - n_positive


def apply(parameters: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return `probability` (n, 6) calibrated by `parameters` (6, 3): float32."""
    a, b, c = np.asarray(parameters, float).T
    out = probability.copy()
    for label in np.flatnonzero((np.asarray(parameters) != IDENTITY).any(axis=1)):
        p = metric.floored(probability[:, label].astype(float))
        out[:, label] = expit(a[label] * np.log(p) - b[label] * np.log1p(-p) + c[label])
    return out
