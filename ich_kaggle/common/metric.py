"""The competition's metric: log loss over six labels, `any` counted twice."""

import numpy as np
from scipy.special import expit, logit

from ich_kaggle.common.labels import LABELS, WEIGHTS

EPS = 1e-15  # Kaggle clips predictions to [EPS, 1 - EPS]
FLOOR = 1e-6  # probabilities are clipped to [FLOOR, 1 - FLOOR] before a logit or a slope is taken
CHUNK = 1 << 16  # slices computed at a time, to save memory


def losses(target: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the log loss per slice and label: float64 (n, 6), as `target` and `probability`.

    Raises ValueError for predictions that are not numbers in [0, 1].
    """
    _same_shape(target, probability)
    probability = np.asarray(probability, np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("a prediction is not a number in [0, 1]")
    probability = np.clip(probability, EPS, 1 - EPS)
    return -(target * np.log(probability) + (1 - target) * np.log1p(-probability))


def _same_shape(target: np.ndarray, probability: np.ndarray) -> None:
    if np.shape(probability) != np.shape(target):
        raise ValueError(f"{np.shape(probability)} predictions for {np.shape(target)} targets")


def label_losses(target: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the log loss per label, (6,), over the slices of `target` and `probability`, both (n, 6)."""
    _same_shape(target, probability)
    chunks = [slice(start, start + CHUNK) for start in range(0, len(target), CHUNK)]
    return np.sum([losses(target[rows], probability[rows]).sum(axis=0) for rows in chunks], axis=0) / len(target)


def log_loss(target: np.ndarray, probability: np.ndarray) -> float:
    """Return the competition's score of `probability` (n, 6) against `target` (n, 6): lower is better."""
    return float(np.average(label_losses(target, probability), weights=WEIGHTS))


def floored(probability: np.ndarray) -> np.ndarray:
    """Return `probability` clipped to [FLOOR, 1 - FLOOR], of the same type."""
    return np.clip(probability, FLOOR, 1 - FLOOR)


def logits(probability: np.ndarray) -> np.ndarray:
    """Return the logits of `probability`, of the same type, with its values clipped to [FLOOR, 1 - FLOOR]."""
    return logit(floored(probability))


def validation(target: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return the columns of a training log for `logits` (n, 6): `valid_loss`, the score, and the loss per label."""
    losses = label_losses(target, expit(logits.astype(float))).tolist()
    return {"valid_loss": float(np.average(losses, weights=WEIGHTS)), **dict(zip(LABELS, losses, strict=True))}
