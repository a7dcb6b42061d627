"""Coordinates and landmarks of a head on the planes of a CT slice, of which its shapes are made.

A shape's share of a voxel (partial volume, through the slice as well as in it) is a ramp of its signed distance.
Shapes are evaluated on a coarse grid of two planes per slice, and painted one over the other on the fine one.
"""

from functools import partial

import cv2
import numpy as np

from ich_kaggle.synthetic.anatomy import Head
from ich_kaggle.synthetic.gantry import Gantry
from ich_kaggle.synthetic.shapes import Points, ball, both, step, tube, union

Window = tuple[slice, slice]
# mm around scalp and neck; ears, nose and swellings reach into it. Streaks have noise of the size of this window, so
# that another margin changes all random numbers after it.
MARGIN = 20.0
LOW = -45.0  # mm, height below which skin of jaw and neck is added to that of the head


class Fields:
    """The coordinates and distances that shapes are made of, at the points of one slice: float32 (2, h, w), mm.

    Only the part of the slice around the head is kept, `window` (rows and columns of the coarse grid).
    `p` and `mirror` are coordinates (3, 2, h, w), in `mirror` with both halves folded onto the left one; `vault` and
    `inside` are the distances to the outer and inner surface of the skull, `cavity` that to the space of the brain,
    `brain` that to the brain, `stem` that to the brain stem, `neck` that to the skin of jaw and neck; `floor` is the
    height of the base of the skull, `tent` the height above the tentorium.
    """

    def __init__(self, head: Head, gantry: Gantry, z: float, window: Window | None = None):
        rows, columns = window or (slice(None), slice(None))
        self.p, back, depths = _coordinates(gantry, z, rows, columns)
        (x, y, z), self.window = self.p, (slice(None), slice(None))
        self.outline = x, y
        self._noise, self._bumps = partial(head.texture.affine, x[0], y[0], depths.mean()), {}
        self._stretched = partial(head.texture, depth=depths.mean())
        self.vault = _vault(head, x, y, z)
        self.inside = self.vault + head.skull * (1 + 0.18 * self.bumps(60) + 0.2 * step((np.abs(y) - 70) / 6))
        if head.shift:
            self.p = self.p.copy()
            self.p[0] -= head.shift * np.exp(-((y / 55) ** 2) - ((z - head.shift_z) / 38) ** 2)
        self.level = np.broadcast_to(back, x.shape[1:])  # mm down the gravity of a patient on the back
        self.mirror = _folded(self.p)
        self.lowest, self.highest, self.nothing = z.min(), z.max(), np.float32(99)
        self.floor = _floor(*self.mirror[:2, 0]) if self.lowest < 15 else -self.nothing
        self.ridges = _ridges(self)
        self.cavity = both(self.inside, (self.floor - z) * 0.8, -self.ridges)
        self.stem = _stem(self.p) if self.lowest < 15 else self.nothing
        self.tent = _tentorium(self.mirror) if self.lowest < 15 else self.nothing
        self.neck = _neck(self.mirror, head) if head.neck and self.lowest < LOW else self.nothing
        self.brain = self.cavity + head.gap * (1 + 0.25 * self.bumps(30))

    def bumps(self, wavelength: float) -> np.ndarray:
        """Return the head's noise of a wavelength in mm, on one plane (h, w): mean 0, standard deviation 1."""
        if wavelength not in self._bumps:
            self._bumps[wavelength] = self._noise(wavelength)
        return self._bumps[wavelength][self.window]

    def stretched(self, wavelength: float, stretch: np.ndarray) -> np.ndarray:
        """Return the noise with the distance to the axis of the head multiplied by `stretch`."""
        x, y = self.outline[0][0], self.outline[1][0]
        return self._stretched(x * stretch, y * stretch, wavelength=wavelength)

    def near(self, middle: np.ndarray, reach: np.ndarray) -> Window | None:
        """Return the window around the box from `middle - reach` to `middle + reach`, None if it misses the slice.

        Both are x, y, z in mm, float32 (3, 1, 1), of both halves of the head.
        """
        if self.lowest > middle[2] + reach[2] or self.highest < middle[2] - reach[2]:
            return None
        found = span((np.abs(self.mirror[:, 0, ::3, ::3] - middle) < reach).all(axis=0))
        return found and tuple(slice(3 * s.start, 3 * s.stop) for s in found)

    def cut(self, window: Window) -> "Fields":
        """Return the part in `window` (rows and columns of this one), as views."""
        part = object.__new__(Fields)
        vars(part).update(vars(self))
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(part, name, value[..., *window])
        part.window = tuple(
            slice((old.start or 0) + new.start, (old.start or 0) + new.stop)
            for old, new in zip(self.window, window, strict=True)
        )
        return part


def span(hit: np.ndarray) -> Window | None:
    """Return the window of the true values of `hit` (h, w), widened by two on every side; None if there is none."""
    x, y, width, height = cv2.boundingRect(hit.view(np.uint8))
    return (slice(max(0, y - 2), y + height + 2), slice(max(0, x - 2), x + width + 2)) if width else None


def around(head: Head, gantry: Gantry, z: float) -> Window | None:
    """Return the window of the coarse grid that holds the head at table position `z`; None if there is none of it."""
    every = slice(None, None, 4)
    p = _coordinates(gantry, z, every, every)[0]
    hit = _vault(head, *p)[0] < head.scalp + MARGIN
    if head.neck and p[2].min() < LOW:
        hit |= _neck(_folded(p), head)[0] < MARGIN
    found = span(hit)
    return found and tuple(slice(4 * s.start, 4 * s.stop) for s in found)


def _folded(p: Points) -> Points:
    """Return `p` with both halves of the head folded onto the left one."""
    mirror = p.copy()
    np.abs(mirror[0], out=mirror[0])
    return mirror


def _coordinates(gantry: Gantry, z: float, rows: slice, columns: slice) -> tuple[Points, np.ndarray, np.ndarray]:
    """Return the head coordinates (3, 2, h, w), the distance to the back (h, 1) and the depths (2,): mm."""
    right, back, depths = gantry.planes(z)
    back = back[rows] - np.float32(z * np.sin(gantry.tilt) + gantry.center[1])
    right = right[:, columns] - np.float32(gantry.center[0])
    pose = gantry.pose.astype(np.float32)[:, :, None, None, None]
    return pose[:, 0] * right + pose[:, 1] * back + pose[:, 2] * depths[:, None, None], back, depths


# All numbers below are positions and sizes (mm) in an average head.


def _vault(head: Head, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    a, b, c = head.half
    a = a * (1 + head.egg * y / b + head.skew * x / a)
    down = np.where(z > 0, c, 130 - 28 * np.tanh(y / 40)).astype(np.float32)
    u, v, w = x / a, y / b, z / down
    q = np.sqrt(u**2 + v**2 + w**2) + np.float32(1e-3)
    return (q - 1) * q / np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / down) ** 2 + np.float32(1e-9))


def _floor(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the height (mm) of the skull base: anterior, middle and posterior fossa, sella."""
    behind = step((y - 6 - 0.42 * x) / 4)
    before = step((-30 + 0.2 * x - y) / 5)
    sella = np.exp(-np.square((x / 12) ** 2))
    anterior = -25 + 12 * np.exp(-(((x - 30) / 14) ** 2)) + 7 * ((y + 52) / 25) ** 2 * (y > -52)
    middle = -47 + 11 * ((x - 36) / 20) ** 2 * (x > 36) + 5 * ((y + 6) / 16) ** 2 + 22 * sella
    posterior = -66 + 13 * (x / 48) ** 2 + 15 * ((y - 34) / 40) ** 2 * (y > 34)
    return anterior * before + posterior * behind + (1 - before) * (1 - behind) * middle


def _ridges(f: Fields) -> np.ndarray:
    """Return the petrous bones and the clivus."""
    if f.lowest > -15:
        return f.nothing
    petrous = tube(f.mirror, (12, -2, -42), (60, 27, -38), 7, 10)
    return union(petrous, tube(f.mirror, (0, -16, -31), (0, 12, -64), 6, 5))


def _neck(mirror: Points, head: Head) -> np.ndarray:
    """Return the signed distance to the skin of jaw and neck."""
    size = head.width
    jaw = ball(mirror, (0, -28 * size, -90), size * np.float32((63, 70, 66)))
    throat = ball(mirror, (0, 22 * size, -120), (57 * size, 54 * size, 400))
    return both(union(jaw, throat), mirror[2] - LOW)


def _stem(p: Points) -> np.ndarray:
    """Return the signed distance to the brain stem."""
    x, y, z = p
    axis = 9 + 0.012 * (z + 20) ** 2 * (z < -20)
    radius = np.interp(z[0, ::8, ::8], (-70, -50, -38, -25, -12, 0), (7, 8, 14, 15, 14.5, 13)).astype(np.float32)
    radius = cv2.resize(radius, z.shape[:0:-1])
    return both(np.sqrt((x * 0.9) ** 2 + (y - axis) ** 2 + 0.25 * np.abs(x * (y - axis))) - radius, z - 6)


def _tentorium(mirror: Points) -> np.ndarray:
    """Return the height above the tentorium (mm), along its normal."""
    x, y, z = mirror
    height = -30 + 30 * np.exp(-((x[0] / 26) ** 2) - ((y[0] - 26) / 40) ** 2)
    return (z - height) * 0.7


def tract(f: Fields, head: Head) -> np.ndarray:
    """Return the ventricles as one shape."""
    s, p = 1.3 * head.ventricle, f.mirror
    lateral = union(
        tube(p, (5.5, -10, 12), (13, -31, 9), 3.6 * s, 2.6 * s),
        tube(p, (6, -12, 14), (11, 10, 21), 3.6 * s, 4 * s),
        tube(p, (11, 10, 21), (23, 36, 13), 4 * s, 5.6 * s),
        tube(p, (23, 36, 13), (21, 56, 6), 5 * s, 1.4 * s),
        tube(p, (25, 35, 10), (32, 10, -16), 3 * s - 0.6, 1.6 * s),
        tube(p, (32, 10, -16), (28, -4, -19), 1.8 * s, 0.8 * s),
    )
    septum = np.float32(0.9) - p[0]
    third = both(p[0] - (0.8 + 1.6 * head.atrophy), ball(p, (0, 1, 2), (30, 15, 9)))
    fourth = ball(p, (0, 28, -33), (7 * s**0.5, 5 * s**0.5, 10))
    return union(both(lateral, septum), third, fourth)


def cisterns(f: Fields, head: Head) -> np.ndarray:
    """Return the cisterns at the base and the Sylvian fissures as one shape."""
    x, y, z = f.mirror
    wide = 0.6 + 1.2 * head.atrophy
    ends = 0.3 + 0.9 * ((y - 10) / 15) ** 2  # wide before and behind the brain stem, thin beside it
    ring = both(np.abs(f.stem - 2) - (0.4 + 0.7 * wide) * ends - 0.7 * f.bumps(24), z + 6 - 0.5 * (y - 10))
    star = union(ball(f.mirror, (0, -9, -15), (12, 7, 6)), tube(f.mirror, (6, -12, -15), (24, -16, -15), 2.4, 1.5))
    magna = ball(f.mirror, (0, 52, -58), (11, 6 + 3 * wide, 8))
    superior = ball(f.mirror, (0, 28, 0), (8, 4 + 2 * wide, 7))
    bend = y + 10 - 0.25 * (x - 45) + 0.35 * (z - 2) + 2.5 * f.bumps(35)
    sylvian = both(np.abs(bend) - (0.5 + 0.9 * wide), 36 - x, ball(f.mirror, (52, -8, 2), (26, 22, 19)) - 0.5)
    insula = both(np.abs(x - 37 + 2 * f.bumps(30)) - (0.3 + 0.9 * wide), ball(f.mirror, (37, -2, 4), (8, 17, 15)))
    return union(ring, star, magna, superior, sylvian, insula)


def sulci(f: Fields, head: Head) -> np.ndarray:
    """Return the distance (mm) to the nearest sulcus, increased below the depth of the cortex."""
    x, y = (v[0] for v in f.outline)
    rho = np.sqrt(x**2 + y**2) + 1
    stretch = 0.4 + 0.6 * (rho - f.inside[0]) / rho  # bumps longer along the radius: sulci run inwards
    along = f.stretched(17, stretch)
    return np.abs(along) * np.float32(3.6) + np.maximum(0, -f.inside - 16) * np.float32(0.25)


def midline(f: Fields) -> np.ndarray:
    """Return the signed distance to the falx, on the midline."""
    _, y, z = f.p
    edge = np.sqrt(((y - 6) / 62) ** 2 + ((z + 4) / 36) ** 2)
    return (1 - edge) * 36
