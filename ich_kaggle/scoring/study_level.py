"""Probabilities of studies from those of their slices: a logistic regression per label on the logits of the largest
and of the mean."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle.common import metric
from ich_kaggle.common.labels import LABELS

IDENTITY = (1.0, 0.0, 0.0)  # the largest, unchanged


def of_studies(study_id: Sequence[str], target: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the labels of each study, by id, and the largest and the mean probability of its slices.

    `target` and `probability` are (n, 6), each of the three (n_studies, 6).
    """
    study = np.asarray(study_id, str)
    of_slices = pd.DataFrame(probability).groupby(study)
    return pd.DataFrame(target).groupby(study).max().to_numpy(), of_slices.max().to_numpy(), of_slices.mean().to_numpy()


def features(largest: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return metric.logits(np.stack([largest, mean], axis=2))


def fit(target: np.ndarray, largest: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the weights of the two logits and the bias of each label, (6, 3), from arrays (n_studies, 6).

    A label of all studies, or of none, gets IDENTITY.
    """
    from sklearn.linear_model import LogisticRegression

    x, out = features(largest, mean), np.tile(IDENTITY, (len(LABELS), 1))
    for label in range(len(LABELS)):
        t = target[:, label]
        if 0 < t.sum() < len(t):
            model = LogisticRegression().fit(x[:, label], t)
            out[label] = *model.coef_[0], model.intercept_[0]
    return out


def apply(parameters: np.ndarray, largest: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the probabilities of studies, (n_studies, 6), by fitted `parameters` (6, 3)."""
    parameters = np.asarray(parameters, float)
    return expit((features(largest, mean) * parameters[:, :2]).sum(axis=2) + parameters[:, 2])
