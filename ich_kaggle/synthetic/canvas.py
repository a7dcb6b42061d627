"""One slice in HU, painted shape by shape from the outside in."""

from collections.abc import Callable
from functools import wraps

import cv2
import numpy as np

from ich_kaggle.synthetic.fields import Fields, Window, span
from ich_kaggle.synthetic.gantry import Gantry

AIR = -1000  # HU


class Canvas:
    """One slice, painted shape by shape: `hu`, the share of `csf` outside the ventricles, and the bits of `blood`."""

    def __init__(self, gantry: Gantry):
        self.pixel, self.zoom = gantry.pixel, gantry.zoom
        self.hu = np.full(gantry.shape, AIR, np.float32)
        self.csf = np.zeros(gantry.shape, np.float32)
        self.blood = np.zeros(gantry.shape, np.uint8)

    def cut(self, window: Window) -> "Canvas":
        """Return the part in `window` (rows and columns of the coarse grid): what is painted there is painted here."""
        part = object.__new__(Canvas)
        part.pixel, part.zoom = self.pixel, self.zoom
        fine = tuple(slice(s.start * self.zoom, s.stop * self.zoom) for s in window)
        part.hu, part.csf, part.blood = self.hu[fine], self.csf[fine], self.blood[fine]
        return part

    def cover(self, shape: np.ndarray, soft: float = 0) -> tuple[Window, np.ndarray] | None:
        """Return the window of pixels that `shape` touches and its share of each; None if it touches none.

        `soft` (mm) widens the edge.
        """
        share = shape[0] + shape[1]  # twice the distance; below, it is divided by twice the width of the edge
        edge = shape[1] - shape[0]
        edge *= edge
        edge *= 16
        edge += np.float32(4 * (self.pixel**2 + soft**2))
        share /= np.sqrt(edge, out=edge)
        np.subtract(0.5, share, out=share)
        if (box := span(share > 0)) is None:
            return None
        window, fine = self._fine(share, box)
        np.maximum(fine, 0, out=fine)
        return window, np.minimum(fine, 1, out=fine)

    def _fine(self, coarse: np.ndarray, box: Window) -> tuple[Window, np.ndarray]:
        zoom = self.zoom
        ends = (min(b.stop * zoom, n) for b, n in zip(box, self.hu.shape, strict=True))
        window = tuple(slice(b.start * zoom, end) for b, end in zip(box, ends, strict=True))
        fine = coarse[box].copy() if zoom == 1 else cv2.resize(coarse[box], None, fx=zoom, fy=zoom)
        return window, fine[: window[0].stop - window[0].start, : window[1].stop - window[1].start]

    def paint(self, shape: np.ndarray, hu: float | np.ndarray, opacity: float = 1, soft: float = 0):
        """Paint `shape` with `hu`, a number or coarse (h, w), and return the result of `cover`."""
        if (found := self.cover(shape, soft)) is None:
            return None
        window, share = found
        if isinstance(hu, np.ndarray):
            zoom = self.zoom
            box = tuple(slice(w.start // zoom, -(-w.stop // zoom)) for w in window)
            hu = self._fine(hu, box)[1]
        self.blend(window, share * opacity if opacity != 1 else share, hu)
        return found

    def blend(self, window: Window, share: np.ndarray, hu: float | np.ndarray) -> None:
        part = self.hu[window]
        change = hu - part
        change *= share
        part += change

    def add(self, hu: np.ndarray) -> None:
        """Add coarse `hu` (h, w) everywhere."""
        rows, columns = hu.shape
        self.hu += self._fine(hu, (slice(0, rows), slice(0, columns)))[1]


def within(low, high) -> Callable:
    """Return a decorator that has a function paint the box from `low` to `high` (mm, both halves of the head) only."""
    low, high = (np.reshape(np.float32(corner), (3, 1, 1)) for corner in (low, high))
    middle, reach = (low + high) / 2, (high - low) / 2 + 4  # mm, since `near` looks at every third point

    def decorate(paint: Callable) -> Callable:
        @wraps(paint)
        def painted(canvas: Canvas, f: Fields, *rest) -> None:
            if window := f.near(middle, reach):
                paint(canvas.cut(window), f.cut(window), *rest)

        return painted

    return decorate


def within_ball(center, radius: float) -> Callable:
    """Return a decorator that has a function paint a ball and its mirror image only."""
    x, y, z = center
    return within((abs(x) - radius, y - radius, z - radius), (abs(x) + radius, y + radius, z + radius))
