"""Shapes as functions of points in space: signed distances in mm, negative inside; and smooth random noise."""

from functools import reduce

import cv2
import numpy as np
from scipy import ndimage

Points = tuple[np.ndarray, np.ndarray, np.ndarray]


def ball(p: Points, center, radii) -> np.ndarray:
    """Return the signed distance (mm) to an ellipsoid with half axes `radii`."""
    radii = (radii,) * 3 if np.ndim(radii) == 0 else radii
    out = np.float32(0)
    for v, c, r in zip(p, center, radii, strict=True):
        part = v - np.float32(c)
        part *= np.float32(1 / r)
        part *= part
        part += out
        out = part
    np.sqrt(out, out=out)
    out -= 1
    out *= np.float32(min(radii))
    return out


def tube(p: Points, start, end, r_start: float, r_end: float) -> np.ndarray:
    """Return the signed distance (mm) to a round stick from `start` to `end`."""
    axis = np.float32(end) - np.float32(start)
    away = [v - np.float32(s) for v, s in zip(p, start, strict=True)]
    along = sum(v * a for v, a in zip(away, axis / (axis @ axis), strict=True))
    np.clip(along, 0, 1, out=along)
    out = np.float32(0)
    for v, a in zip(away, axis, strict=True):
        v -= along * a
        v *= v
        v += out
        out = v
    np.sqrt(out, out=out)
    along *= np.float32(r_end - r_start)
    along += np.float32(r_start)
    out -= along
    return out


def union(*shapes: np.ndarray) -> np.ndarray:
    return reduce(np.minimum, shapes)


def both(*shapes: np.ndarray) -> np.ndarray:
    return reduce(np.maximum, shapes)


def step(v: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(v)


class Texture:
    """Smooth random noise in space, mean 0, standard deviation 1, of any wavelength."""

    SIZE = 56

    def __init__(self, rng: np.random.Generator):
        white = rng.standard_normal((self.SIZE,) * 3, np.float32)
        bumps = ndimage.gaussian_filter(white, 1, mode="wrap") - ndimage.gaussian_filter(white, 2, mode="wrap")
        self.bumps = bumps / bumps.std()

    def __call__(self, x: np.ndarray, y: np.ndarray, depth: float, wavelength: float) -> np.ndarray:
        """Return the noise at `x`, `y` (h, w) on the plane at `depth`, all in mm."""
        u, v, plane = self._pitched(x, y, depth, wavelength)
        u, v = (w - self.SIZE * np.floor(w * np.float32(1 / self.SIZE)) for w in (u, v))  # np.mod is slow
        return cv2.remap(plane, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)

    def affine(self, x: np.ndarray, y: np.ndarray, depth: float, wavelength: float) -> np.ndarray:
        """Return the same where `x` and `y` are affine in rows and columns, faster."""
        (h, w), matrix, places = x.shape, [], []
        u, v, plane = self._pitched(x[:: h - 1, :: w - 1], y[:: h - 1, :: w - 1], depth, wavelength)
        for axis in (u, v):
            corners = axis[0, 0], axis[0, -1], axis[-1, 0], axis[-1, -1]
            low, high = int(np.floor(min(corners))), int(np.floor(max(corners))) + 2
            places.append(np.arange(low, high + 1) % self.SIZE)
            matrix.append([(corners[1] - corners[0]) / (w - 1), (corners[2] - corners[0]) / (h - 1), corners[0] - low])
        tiled, flags = plane.take(places[1], 0).take(places[0], 1), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(tiled, np.float64(matrix), (w, h), flags=flags)

    def _pitched(self, x: np.ndarray, y: np.ndarray, depth: float, wavelength: float) -> tuple[np.ndarray, ...]:
        pitch = np.float32(wavelength / 6.5)
        low, part = divmod(float(depth / pitch), 1)
        planes = (self.bumps[(int(low) + i) % self.SIZE] for i in (0, 1))
        return x / pitch, y / pitch, cv2.addWeighted(next(planes), 1 - part, next(planes), part, 0)
