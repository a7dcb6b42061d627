"""A series resampled to the slice spacing of the training data, which the second level expects, and back.

Distances are in mm along the normal. Positions are those of one series, ascending; slices at one position, a repeated
scan, count as one.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from ich_kaggle.common import run_predictions
from ich_kaggle.learning import neighbours

NEAR = 2**0.5  # a spacing within this factor of another is nearer to it than to its half or its double


def firsts(position: np.ndarray) -> np.ndarray:
    """Return the first row at each different position: int (n_positions,)."""
    return np.flatnonzero(np.diff(position, prepend=-np.inf) > neighbours.SAME)


def gap(position: np.ndarray) -> float:
    """Return the median distance between neighbouring positions; NaN for a single position."""
    gaps = np.diff(position[firsts(position)])
    return float(np.median(gaps)) if len(gaps) else float("nan")


def is_near(found: float, wanted: float) -> bool:
    """Return whether two gaps agree within a factor of NEAR. The NaN gap of a single position agrees with any."""
    return not abs(np.log(found / wanted)) > np.log(NEAR)


def grid(position: np.ndarray, step: float) -> np.ndarray:
    """Return positions `step` apart, from the first of `position` to the multiple nearest to its last."""
    n = np.ceil((position[-1] - position[0] - neighbours.SAME) / step - 0.5)
    return position[0] + step * np.arange(1 + max(n, 0))


def interpolate(values: np.ndarray, position: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return `values` (n, ...) at `position`, interpolated linearly to the positions `wanted`, without extrapolation.

    The values at one position are averaged first.
    """
    first = firsts(position)
    count = np.diff(first, append=len(position)).reshape(-1, *[1] * (values.ndim - 1))
    at, mean = position[first], np.add.reduceat(values.astype(np.float32), first) / count
    if len(at) == 1:
        return np.repeat(mean, len(wanted), axis=0).astype(values.dtype)
    right = np.clip(np.searchsorted(at, wanted), 1, len(at) - 1)
    share = np.clip((wanted - at[right - 1]) / (at[right] - at[right - 1]), 0, 1).reshape(-1, *count.shape[1:])
    return ((1 - share) * mean[right - 1] + share * mean[right]).astype(values.dtype)


def nearest(position: np.ndarray, offsets: Sequence[int], step: float) -> np.ndarray:
    """Return for each row the rows of the slices nearest to `offsets` times `step` away: int (n, n_offsets).

    As neighbours.neighbours: never the slice's own position, except past an end, where the last position stands in.
    """
    row, first = np.arange(len(position)), firsts(position)
    at, own = position[first], np.searchsorted(first, row, side="right") - 1
    columns = []
    for offset in offsets:
        wanted = at[own] + offset * step
        right = np.clip(np.searchsorted(at, wanted), 1, max(1, len(at) - 1))
        place = right - (wanted - at[right - 1] <= at[right] - wanted) if len(at) > 1 else own
        low, high = (own + 1, len(at) - 1) if offset > 0 else (0, own - 1) if offset < 0 else (own, own)
        place = np.clip(np.clip(place, low, high), 0, len(at) - 1)
        columns.append(np.where(place == own, row, first[place]))
    return np.stack(columns, axis=1)


class Frame:
    """Series one after another, each by its positions (mm), and the distance `step` of the slices in training (mm)."""

    def __init__(self, positions: list[np.ndarray], step: float):
        self.positions, self.step = positions, step
        self.is_near = [is_near(gap(position), step) for position in positions]
        self.grids = [p if near else grid(p, step) for p, near in zip(positions, self.is_near, strict=True)]

    def neighbours(self, offsets: tuple[int, ...]) -> np.ndarray:
        """Return the rows of the neighbours of each slice: int (n, n_offsets)."""
        parts, start = [], 0
        for position, near in zip(self.positions, self.is_near, strict=True):
            if near:
                rows = neighbours.neighbours(np.zeros(len(position)), position, offsets)
            else:
                rows = nearest(position, offsets, self.step)
            parts.append(start + rows)
            start += len(position)
        return np.concatenate(parts)

    def place(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the position (mm) and the series number of each row that the second level reads."""
        numbers = [np.full(len(grid), i) for i, grid in enumerate(self.grids)]
        return np.concatenate(self.grids), np.concatenate(numbers)

    def resample(self, values: np.ndarray) -> np.ndarray:
        """Return `values` of the slices (n, ...), resampled to the positions that the second level reads: (m, ...)."""
        return self._move(values, self.positions, self.grids)

    def back(self, probability: np.ndarray) -> np.ndarray:
        """Return the `probability` (m, 6) at the second level's positions, resampled to the slices: (n, 6)."""
        if all(self.is_near):
            return probability
        moved = expit(self._move(run_predictions.logits(probability), self.grids, self.positions))
        is_near = np.repeat(self.is_near, [len(position) for position in self.positions])
        own = np.repeat(self.is_near, [len(grid) for grid in self.grids])
        moved[is_near] = probability[own]
        return moved

    def _move(self, values: np.ndarray, old: list[np.ndarray], new: list[np.ndarray]) -> np.ndarray:
        stops = np.cumsum([len(position) for position in old])[:-1]
        parts = zip(np.split(values, stops), old, new, self.is_near, strict=True)
        return np.concatenate([part if near else interpolate(part, a, b) for part, a, b, near in parts])
