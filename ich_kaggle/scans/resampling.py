"""The slices of several series, and where the second level reads each: at its own, or as far apart as in training."""

import numpy as np
from scipy.special import expit

from ich_kaggle.common import runs
from ich_kaggle.learning import neighbours
from ich_kaggle.scans import spacing


class Frame:
    """Series one after another, each by its positions (mm), and the distance `step` of the slices in training (mm)."""

    def __init__(self, positions: list[np.ndarray], step: float):
        self.positions, self.step = positions, step
        self.is_near = [spacing.is_near(spacing.gap(position), step) for position in positions]
        self.grids = [p if near else spacing.grid(p, step) for p, near in zip(positions, self.is_near, strict=True)]

    def neighbours(self, offsets: tuple[int, ...]) -> np.ndarray:
        """Return the rows of the slices that are shown with each slice: int (n, n_offsets)."""
        parts, start = [], 0
        for position, near in zip(self.positions, self.is_near, strict=True):
            if near:
                rows = neighbours.neighbours(np.zeros(len(position)), position, offsets)
            else:
                rows = spacing.neighbours(position, offsets, self.step)
            parts.append(start + rows)
            start += len(position)
        return np.concatenate(parts)

    def place(self) -> tuple[np.ndarray, np.ndarray]:
        """Return position (mm) and number of the series of all that the second level reads."""
        numbers = [np.full(len(grid), i) for i, grid in enumerate(self.grids)]
        return np.concatenate(self.grids), np.concatenate(numbers)

    def resample(self, values: np.ndarray) -> np.ndarray:
        """Return `values` of the slices (n, ...) at the positions where the second level reads them."""
        return self._move(values, self.positions, self.grids)

    def back(self, probability: np.ndarray) -> np.ndarray:
        """Return the `probability` (m, 6) of the second level's positions at the slices: (n, 6)."""
        if all(self.is_near):
            return probability
        moved = expit(self._move(runs.logits(probability), self.grids, self.positions))
        is_near = np.repeat(self.is_near, [len(position) for position in self.positions])
        own = np.repeat(self.is_near, [len(grid) for grid in self.grids])
        moved[is_near] = probability[own]
        return moved

    def _move(self, values: np.ndarray, old: list[np.ndarray], new: list[np.ndarray]) -> np.ndarray:
        stops = np.cumsum([len(position) for position in old])[:-1]
        parts = zip(np.split(values, stops), old, new, self.is_near, strict=True)
        return np.concatenate([part if near else spacing.interpolate(part, a, b) for part, a, b, near in parts])
