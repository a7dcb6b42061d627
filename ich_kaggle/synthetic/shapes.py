"""Shapes as functions of points in space: signed distances in mm, negative inside; and smooth random noise."""

from functools import cache, reduce

import cv2
import numpy as np
from scipy import fft, ndimage

Points = np.ndarray  # float32 (3, ...): x, y and z in mm


def ball(p: Points, center, radii) -> np.ndarray:
    """Return the signed distance (mm) to an ellipsoid with half axes `radii`."""
    radii = np.ones(3, np.float32) * np.float32(radii)
    away = p * along(1 / radii, p)
    away -= along(np.float32(center) / radii, p)
    out = _length(away)
    out -= 1
    out *= min(radii)
    return out


def tube(p: Points, start, end, r_start: float, r_end: float) -> np.ndarray:
    """Return the signed distance (mm) to a round stick from `start` to `end`."""
    axis = np.float32(end) - np.float32(start)
    away = p - along(np.float32(start), p)
    share = np.einsum("i,i...->...", axis / (axis @ axis), away)
    np.maximum(share, 0, out=share)
    np.minimum(share, 1, out=share)
    away -= along(axis, p) * share
    out = _length(away)
    share *= np.float32(r_end - r_start)
    share += np.float32(r_start)
    out -= share
    return out


def along(v: np.ndarray, p: Points) -> np.ndarray:
    """Return `v` (3,) in a shape that broadcasts along the first axis of `p`."""
    return v.reshape(3, *(1,) * (p.ndim - 1))


def _length(v: np.ndarray) -> np.ndarray:
    """Return the lengths of vectors `v` (3, ...), which are overwritten: (...)."""
    v *= v
    out = v[0]
    out += v[1]
    out += v[2]
    return np.sqrt(out, out=out)


def union(*shapes: np.ndarray) -> np.ndarray:
    return reduce(np.minimum, shapes)


def both(*shapes: np.ndarray) -> np.ndarray:
    return reduce(np.maximum, shapes)


def step(v: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(v)


@cache
def _band(size: int) -> np.ndarray:
    """Return the filter of bumps, the difference of two Gaussians on a periodic cube, in the frequencies of rfftn."""
    point = np.zeros((size,) * 3, np.float32)
    point[0, 0, 0] = 1
    narrow, wide = (ndimage.gaussian_filter(point, sigma, mode="wrap") for sigma in (1, 2))
    return fft.rfftn(narrow - wide).real.copy()


class Texture:
    """Smooth random noise in space, mean 0, standard deviation 1, of any wavelength."""

    SIZE = 56

    def __init__(self, rng: np.random.Generator):
        white = fft.rfftn(rng.standard_normal((self.SIZE,) * 3, np.float32))
        bumps = fft.irfftn(white * _band(self.SIZE), overwrite_x=True)
        self.bumps = bumps / bumps.std()

    def __call__(self, x: np.ndarray, y: np.ndarray, depth: float, wavelength: float) -> np.ndarray:
        """Return the noise at `x`, `y` (h, w) on the plane at `depth`, all in mm."""
        u, v, plane = self._pitched(x, y, depth, wavelength)
        u, v = (w - self.SIZE * np.floor(w * np.float32(1 / self.SIZE)) for w in (u, v))  # np.mod is slow
        return cv2.remap(plane, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)

    def affine(self, x: np.ndarray, y: np.ndarray, depth: float, wavelength: float) -> np.ndarray:
        """Return the same where `x` and `y` are affine in rows and columns, faster."""
        (h, w), matrix, beyond = x.shape, [], []  # how many columns and rows to repeat
        u, v, plane = self._pitched(x[:: h - 1, :: w - 1], y[:: h - 1, :: w - 1], depth, wavelength)
        for axis in (u, v):
            corners = axis[0, 0], axis[0, -1], axis[-1, 0], axis[-1, -1]
            low, high = int(np.floor(min(corners))), int(np.floor(max(corners))) + 2
            start = low - low % self.SIZE
            beyond.append(max(0, high + 1 - start - self.SIZE))
            matrix.append(
                [(corners[1] - corners[0]) / (w - 1), (corners[2] - corners[0]) / (h - 1), corners[0] - start]
            )
        tiled = cv2.copyMakeBorder(plane, 0, beyond[1], 0, beyond[0], cv2.BORDER_WRAP)
        return cv2.warpAffine(tiled, np.float64(matrix), (w, h), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)

    def _pitched(self, x: np.ndarray, y: np.ndarray, depth: float, wavelength: float) -> tuple[np.ndarray, ...]:
        pitch = np.float32(wavelength / 6.5)
        low, part = divmod(float(depth / pitch), 1)
        planes = (self.bumps[(int(low) + i) % self.SIZE] for i in (0, 1))
        return x / pitch, y / pitch, cv2.addWeighted(next(planes), 1 - part, next(planes), part, 0)
