"""Gradient boosting per label on the probabilities of a slice and of its neighbours.

The third, ninth, tenth and eleventh places of the competition did this; here with scikit-learn's histogram booster.
"""

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from ich_kaggle.common import series_rows
from ich_kaggle.learning import neighbours

REACH = 4  # slices to either side
SETTINGS = dict(
    learning_rate=0.05,
    max_leaf_nodes=6,
    min_samples_leaf=50,
    l2_regularization=5.0,
    max_features=0.3,
    early_stopping=False,  # it would validate on single slices whose neighbours are in the training set
)


def features(
    probability: np.ndarray, smoothed: np.ndarray, position: np.ndarray, series: np.ndarray, study: np.ndarray
) -> np.ndarray:
    """Return the input of the boosters: float32 (n, n_features).

    `probability` is (n, n_runs, 6), `smoothed` (n, 6), `position` in mm; `series` and `study` number the rows
    (series_rows.number). The features of a slice are the probabilities of the slices up to REACH positions away in its
    series (neighbours.neighbours), the maxima and means over its study, its smoothed probabilities, its relative
    position in the series, the number of slices before and after it, and that of the series.
    """
    flat = probability.reshape(len(probability), -1).astype(np.float32)
    around = flat[neighbours.neighbours(series, position, range(-REACH, REACH + 1))].reshape(len(flat), -1)
    start, stop = series_rows.bounds(study)
    n_slices = stop - start
    highest = np.repeat(np.maximum.reduceat(flat, start), n_slices, axis=0)
    mean = np.repeat(np.add.reduceat(flat, start) / n_slices[:, None], n_slices, axis=0)
    return np.concatenate([around, highest, mean, smoothed, _place(position, series)], axis=1, dtype=np.float32)


def _place(position: np.ndarray, series: np.ndarray) -> np.ndarray:
    start, stop = series_rows.bounds(series)
    n_slices = stop - start
    before = np.arange(len(series)) - np.repeat(start, n_slices)
    n_slices = np.repeat(n_slices, n_slices)
    return np.column_stack([series_rows.relative(series, position), before, n_slices - 1 - before, n_slices])


def fit_predict(
    inputs: np.ndarray, target: np.ndarray, asked: np.ndarray, *, rounds: int, seeds: list[int]
) -> np.ndarray:
    """Return the probabilities of `asked` (m, n_features) by boosters fitted on `inputs` and `target` (n, n_labels).

    They are float64 (m, n_labels), means over the `seeds`, which draw the features that each split may use. The
    probability of a label that is constant in `target` is its prevalence by the rule of succession.
    """
    columns = [
        np.mean([_fit_label(inputs, label, asked, rounds, seed) for seed in seeds], axis=0) for label in target.T
    ]
    return np.column_stack(columns)


def _fit_label(inputs: np.ndarray, label: np.ndarray, asked: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    if label.min() == label.max():
        return np.full(len(asked), (label.sum() + 1) / (len(label) + 2))
    booster = HistGradientBoostingClassifier(max_iter=rounds, random_state=seed, **SETTINGS)
    return booster.fit(inputs, label > 0).predict_proba(asked)[:, 1]
