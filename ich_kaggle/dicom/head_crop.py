"""The head in a study: one square box for all its slices, so that neighbours stay aligned."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

TISSUE = -500  # HU: skin and all inside is above, air and foam below
STEP = 2.0  # mm between the pixels that are examined
SHELL = 8.0  # mm: half the thickness of what is removed: sheets, straps, the shells of head-holder and table
MARGIN = 5.0  # mm round the head: ears and nose are partly as thin as a head-holder


class Box(NamedTuple):
    """The part of a square box inside the slice, in px."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width

    def cut(self, image: np.ndarray) -> np.ndarray:
        return image[self.top : self.bottom, self.left : self.right]


def step_of(spacing: float) -> int:
    """Return the step of `grid` for pixels `spacing` mm apart."""
    return max(1, round(STEP / spacing))


def grid(image: np.ndarray, step: int) -> np.ndarray:
    """Return every `step`-th pixel in both directions."""
    return image[step // 2 :: step, step // 2 :: step]


def head_box(stack: np.ndarray, shape: tuple[int, int], step: int, spacing: float) -> Box:
    """Return the box of the head in a study: its largest connected piece of tissue, without thin shells.

    `stack` (n, h, w) is True where the `grid` of its slices, in order, is above TISSUE; `shape` is their (rows,
    columns), `spacing` in mm. The box is the whole slice if there is no tissue.
    """
    if not (head := largest(_without_shells(stack, round(SHELL / (step * spacing))))).any():
        return Box(0, 0, *shape)
    margin = round(MARGIN / spacing)
    (top, bottom), (left, right) = (_span(head.any(axis=(0, axis)), step, margin) for axis in (2, 1))
    side = max(bottom - top, right - left)
    top, height = _place(top, bottom, side, shape[0])
    left, width = _place(left, right, side, shape[1])
    return Box(top, left, height, width)


def _without_shells(stack: np.ndarray, radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return ndimage.binary_opening(stack, (x * x + y * y <= radius * radius)[None])


def largest(stack: np.ndarray) -> np.ndarray:
    """Return the largest connected piece of `stack`, bool of any shape; nothing where there is none."""
    pieces, n = ndimage.label(stack)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if n else stack


def _span(profile: np.ndarray, step: int, margin: int) -> tuple[int, int]:
    """Return the first pixel that `profile` marks on the grid, and the one after the last, with the margin."""
    marked = np.flatnonzero(profile)
    return int(marked[0]) * step - margin, (int(marked[-1]) + 1) * step + margin


def _place(low: int, high: int, side: int, length: int) -> tuple[int, int]:
    """Return start and length of `side` px centred on low ... high, moved into 0 ... `length`, or cut to it."""
    side = min(side, length)
    return min(max((low + high - side) // 2, 0), length - side), side
