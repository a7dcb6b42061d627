"""Smoothing of predictions along z by a Gaussian per label: the second level without a network."""

import numpy as np

from ich_kaggle.common import metric

WIDTHS = np.append(0, np.geomspace(0.5, 40, 28))  # mm: candidate standard deviations
REACH = 3  # standard deviations


def smooth(values: np.ndarray, position: np.ndarray, series: np.ndarray, width: float) -> np.ndarray:
    """Return the mean of `values` (n, m) over the series of each slice, weighted by a Gaussian of the distance.

    `position`, and the standard deviation `width`, are in mm. Slices at one position have the same weight. With width
    0, and in a series of one slice, the values do not change.
    """
    if width == 0:
        return values.astype(np.float64)
    total, weight = values.astype(np.float64), np.ones((len(values), 1))
    for step in (-1, 1):
        rows, offset = np.arange(len(values)), step
        while len(rows):
            rows = rows[(rows + offset >= 0) & (rows + offset < len(values))]
            distance = np.abs(position[rows + offset] - position[rows])
            # Positions are sorted: beyond a neighbour that is out of reach all others are too.
            is_near = (series[rows + offset] == series[rows]) & (distance <= REACH * width)
            rows, share = rows[is_near], np.exp(-0.5 * (distance[is_near, None] / width) ** 2)
            total[rows] += share * values[rows + offset]
            weight[rows] += share
            offset += step
    return total / weight


def smooth_labels(values: np.ndarray, position: np.ndarray, series: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return `values` (n, 6) smoothed, each label by its own width out of `widths` (6,), mm."""
    columns = [smooth(values[:, [i]], position, series, width) for i, width in enumerate(widths)]
    return np.concatenate(columns, axis=1)


def fit_widths(target: np.ndarray, values: np.ndarray, position: np.ndarray, series: np.ndarray) -> np.ndarray:
    """Return the width in mm per label, out of WIDTHS, that gives the lowest log loss: (6,).

    `target` and the probabilities `values` are (n, 6).
    """
    losses = [metric.label_losses(target, smooth(values, position, series, width)) for width in WIDTHS]
    return WIDTHS[np.argmin(losses, axis=0)]
