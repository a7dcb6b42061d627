"""A synthetic head: its anatomy as signed distances, evaluated on the planes of a CT slice.

Head coordinates are mm from the middle of the brain: x to the patient's left, y to the back, z to the top. A shape
is a function of them, negative inside and about the distance to its surface in mm, so that its share of a voxel
(partial volume, through the slice as well as in it) is a ramp. Shapes are evaluated on a coarse grid of two planes
per slice, and painted one over the other on the fine one.
"""

from dataclasses import dataclass
from functools import reduce

import cv2
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

GRID = 2.0  # mm, about, between the points where shapes are evaluated

Points = tuple[np.ndarray, np.ndarray, np.ndarray]


def ball(p: Points, center, radii) -> np.ndarray:
    """Return the signed distance (mm) to an ellipsoid with half axes `radii`."""
    radii = np.broadcast_to(np.float32(radii), 3)
    x, y, z = ((v - np.float32(c)) * (1 / r) for v, c, r in zip(p, center, radii, strict=True))
    return (np.sqrt(x * x + y * y + z * z) - 1) * radii.min()


def tube(p: Points, start, end, r_start: float, r_end: float) -> np.ndarray:
    """Return the signed distance (mm) to a round stick from `start` to `end`."""
    axis = np.float32(end) - np.float32(start)
    x, y, z = (v - np.float32(s) for v, s in zip(p, start, strict=True))
    along = (x * axis[0] + y * axis[1] + z * axis[2]) * (1 / (axis @ axis))
    np.clip(along, 0, 1, out=along)
    x, y, z = x - along * axis[0], y - along * axis[1], z - along * axis[2]
    return np.sqrt(x * x + y * y + z * z) - (r_start + along * np.float32(r_end - r_start))


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

    def __call__(self, x: np.ndarray, y: np.ndarray, depth: np.ndarray, wavelength: float) -> np.ndarray:
        """Return the noise at `x`, `y` (n, h, w) on the n planes at `depth` (n,), all in mm."""
        pitch = np.float32(wavelength / 6.5)
        planes = []
        for u, v, d in zip(x, y, depth / pitch, strict=True):
            low, part = int(np.floor(d)), np.float32(d - np.floor(d))
            plane = (1 - part) * self.bumps[low % self.SIZE] + part * self.bumps[(low + 1) % self.SIZE]
            places = (self._wrap(u / pitch), self._wrap(v / pitch))
            planes.append(cv2.remap(plane, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))
        return np.stack(planes)

    def _wrap(self, v: np.ndarray) -> np.ndarray:
        return v - self.SIZE * np.floor(v * np.float32(1 / self.SIZE))  # np.mod takes ten times as long


def turn(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Return the rotation (3, 3) by angles in radians about the axes to the top, to the left and to the back."""
    return Rotation.from_euler("zxy", (roll, pitch, yaw)).as_matrix()


@dataclass(frozen=True)
class Gantry:
    """The geometry and the quality of a study's scan. Image rows run backward and, by the `tilt`, downward."""

    shape: tuple[int, int]  # rows, columns
    pixel: float  # mm
    thickness: float  # mm
    tilt: float  # radians
    pose: np.ndarray  # (3, 3), turns gantry into head coordinates
    center: tuple[float, float]  # mm, of the head, relative to the image center at z = 0
    noise: float  # HU, standard deviation
    kernel: float  # mm, standard deviation of the reconstruction's blur
    holder: float  # mm, radius of the head holder; 0 without one

    @property
    def zoom(self) -> int:
        return max(1, round(GRID / self.pixel))

    def corner(self, z: float) -> tuple[float, float, float]:
        """Return the position (mm) of the first pixel of the slice at table position `z`."""
        right, back = (-(n - 1) / 2 * self.pixel for n in self.shape[::-1])
        return right, back * np.cos(self.tilt), z - back * np.sin(self.tilt)

    def planes(self, z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the coordinates (mm) of the image at table position `z`: right (1, w), back (h, 1), depths (2,)."""
        rows, columns = (-(-n // self.zoom) for n in self.shape)
        middle = (self.zoom - 1) / 2
        right = (np.arange(columns) * self.zoom + middle - (self.shape[1] - 1) / 2) * self.pixel
        back = (np.arange(rows) * self.zoom + middle - (self.shape[0] - 1) / 2) * self.pixel
        depths = z * np.cos(self.tilt) + np.array([-0.25, 0.25]) * self.thickness
        return right.astype(np.float32)[None], back.astype(np.float32)[:, None], depths.astype(np.float32)


class Head:
    """One patient's anatomy, in HU and mm, drawn at random."""

    def __init__(self, rng: np.random.Generator):
        self.texture = Texture(rng)
        self.age = rng.uniform(18, 95)
        self.atrophy = float(np.clip((self.age - 35) / 60 + rng.normal(0, 0.15), 0.05, 1.1))
        self.half = np.float32([rng.normal(71, 3), rng.normal(88, 3.5), rng.normal(84, 4)])
        self.egg = rng.uniform(0.04, 0.14)  # wider at the back
        self.skew = rng.normal(0, 0.02)
        self.skull = float(np.clip(rng.normal(6.5, 1.3), 4, 10))
        self.scalp = float(np.clip(rng.normal(5.5, 1.5), 3.5, 9))
        self.table = rng.uniform(1300, 1700)
        self.gray, self.white, self.csf = rng.normal(37.5, 1.3), rng.normal(28, 1.3), rng.normal(8, 2)
        self.dura, self.sinus = rng.uniform(40, 56), rng.uniform(42, 62)
        self.ventricle = (0.7 + 0.65 * self.atrophy) * np.exp(rng.normal(0, 0.15))
        self.sulcus = 0.25 + 1.1 * self.atrophy + rng.uniform(0, 0.3)  # mm, half width
        self.gap = 0.5 + 1.6 * self.atrophy * rng.uniform(0.5, 1.2)  # mm of CSF over the brain
        self.shift, self.shift_z = 0.0, 0.0  # mm of midline shift, largest at shift_z
        self.spots = _calcifications(rng)
        self.old_strokes = _old_strokes(rng) if rng.random() < 0.06 + 0.15 * self.atrophy else []
        self.leukoaraiosis = max(0, 5 * self.atrophy * rng.uniform(-0.3, 1))  # HU by which the white matter is darker
        self.lump = place_on_vault(rng, self) if rng.random() < 0.15 else None  # scalp swelling
        self.bleeds = []  # of hemorrhages.Bleed


def _calcifications(rng: np.random.Generator) -> list[tuple]:
    """Return (center, radii, HU) of bright specks that are not blood."""
    spots = []
    if rng.random() < 0.6:
        spots.append(((rng.normal(0, 0.7), 27, 6), rng.uniform(1.2, 3.2, 3), rng.uniform(80, 220)))
    if rng.random() < 0.6:
        for side in (-1, 1):
            center = (side * rng.normal(23, 1.5), rng.normal(38, 1.5), rng.normal(12, 2))
            spots.append((center, rng.uniform((1.2, 2, 1.5), (3.2, 5, 5)), rng.uniform(60, 200)))
    if rng.random() < 0.15:
        hu = rng.uniform(48, 110)
        spots += [((side * 18, -1, 2), rng.uniform((2, 4, 2), (3.5, 7, 4)), hu) for side in (-1, 1)]
    if rng.random() < 0.2:
        radii = rng.uniform((0.8, 3, 2), (2, 10, 8))
        spots.append(((0, rng.uniform(-75, -45), rng.uniform(15, 50)), radii, rng.uniform(90, 400)))
    for _ in range(rng.poisson(0.8)):  # vessels seen end on, small calcified scars
        center = rng.uniform((-50, -55, -15), (50, 60, 55))
        spots.append((center, rng.uniform(0.8, 2.4, 3), rng.uniform(50, 140)))
    return spots


def _old_strokes(rng: np.random.Generator) -> list[tuple]:
    return [
        (rng.uniform((-45, -50, -5), (45, 55, 45)), rng.uniform(4, 16, 3), rng.uniform(12, 24))
        for _ in range(rng.integers(1, 3))
    ]


def place_on_vault(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Return a point on the outside of the skull, away from its base and its top."""
    azimuth, up = rng.uniform(0, 2 * np.pi), rng.uniform(-0.1, 0.8)
    around = np.sqrt(1 - up**2)
    return head.half * np.float32([np.sin(azimuth) * around, -np.cos(azimuth) * around, up])


class Fields:
    """The coordinates and distances that shapes are made of, at the points of one slice: float32 (2, h, w), mm.

    `p` and `mirror` are coordinates, in `mirror` with both halves folded onto the left one; `vault` and `inside` are
    the distances to the outer and inner surface of the skull, `cavity` that to the space of the brain, `stem` that to
    the brain stem; `floor` is the height of the base of the skull, `tent` the height above the tentorium.
    """

    def __init__(self, head: Head, gantry: Gantry, z: float):
        right, back, self.depths = gantry.planes(z)
        self.right, self.back = right, back
        back = back - np.float32(z * np.sin(gantry.tilt) + gantry.center[1])
        right = right - np.float32(gantry.center[0])
        pose = gantry.pose.astype(np.float32)
        deep = self.depths[:, None, None]
        x, y, z = (pose[i, 0] * right + pose[i, 1] * back + pose[i, 2] * deep for i in range(3))
        self.texture, self.outline = head.texture, (x, y)
        self.vault = _vault(head, x, y, z)
        self.inside = self.vault + head.skull * (1 + 0.18 * self.bumps(60) + 0.2 * step((np.abs(y) - 70) / 6))
        if head.shift:
            x = x - head.shift * np.exp(-((y / 55) ** 2) - ((z - head.shift_z) / 38) ** 2)
        self.level = back  # mm down the gravity of a patient on the back
        self.p, self.mirror = (x, y, z), (np.abs(x), y, z)
        self.lowest, self.nothing = z.min(), np.full_like(z, 99)
        self.floor = _floor(self.mirror)
        self.ridges = _ridges(self)
        self.cavity = both(self.inside, (self.floor - z) * 0.8, -self.ridges)
        self.stem = _stem(self.p)
        self.tent = _tentorium(self.mirror)

    def bumps(self, wavelength: float, stretch: np.ndarray | float = 1) -> np.ndarray:
        x, y = self.outline
        return self.texture(x * stretch, y * stretch, self.depths, wavelength)

    def reaches(self, center, radius: float) -> bool:
        """Return whether a ball may touch the slice."""
        near = [np.abs(v - np.float32(c)) for v, c in zip(self.p, center, strict=True)]
        return bool((both(*near) < radius + 4).any())


# All numbers below are positions and sizes (mm) in an average head.


def _vault(head: Head, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    a, b, c = head.half
    a = a * (1 + head.egg * y / b + head.skew * x / a)
    down = np.where(z > 0, c, 130 - 28 * np.tanh(y / 40)).astype(np.float32)
    u, v, w = x / a, y / b, z / down
    q = np.sqrt(u**2 + v**2 + w**2) + np.float32(1e-3)
    return (q - 1) * q / np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / down) ** 2 + np.float32(1e-9))


def _floor(mirror: Points) -> np.ndarray:
    """Return the height (mm) of the skull base: anterior, middle and posterior fossa, sella."""
    x, y, _ = mirror
    behind = step((y - 6 - 0.42 * x) / 4)
    before = step((-30 + 0.2 * x - y) / 5)
    sella = np.exp(-((x / 12) ** 4))
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


def _stem(p: Points) -> np.ndarray:
    """Return the signed distance to the brain stem."""
    x, y, z = p
    axis = 9 + 0.012 * (z + 20) ** 2 * (z < -20)
    radius = np.interp(z, (-70, -50, -38, -25, -12, 0), (7, 8, 14, 15, 14.5, 13)).astype(np.float32)
    return np.sqrt((x * 0.9) ** 2 + (y - axis) ** 2 + 0.25 * np.abs(x * (y - axis))) - radius


def _tentorium(mirror: Points) -> np.ndarray:
    """Return the height above the tentorium (mm), along its normal."""
    x, y, z = mirror
    height = -30 + 30 * np.exp(-((x / 26) ** 2)) * np.exp(-(((y - 26) / 40) ** 2))
    return (z - height) * 0.7


def tract(f: Fields, head: Head) -> np.ndarray:
    """Return the ventricles as one shape."""
    if f.lowest > 40:
        return f.nothing
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
    if f.lowest > 28:
        return f.nothing
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
    x, y = f.outline
    rho = np.sqrt(x**2 + y**2) + 1
    out = rho - f.inside
    stretch = 0.4 + 0.6 * out / rho  # bumps longer along the radius: sulci run inwards
    along = f.bumps(17, stretch.astype(np.float32))
    return np.abs(along) * np.float32(3.6) + np.maximum(0, -f.inside - 16) * np.float32(0.25)


def midline(f: Fields) -> np.ndarray:
    """Return the signed distance to the falx, on the midline."""
    _, y, z = f.p
    edge = np.sqrt(((y - 6) / 62) ** 2 + ((z + 4) / 36) ** 2)
    return (1 - edge) * 36
