"""The geometry and the quality of a CT scan."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation

from ich_kaggle.synthetic.shapes import both

GRID = 2.0  # mm, about, between the points where shapes are evaluated


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
    sharpness: float = 0  # strength of the kernel's enhancement of edges
    streaks: float = 3  # HU, standard deviation of those of dense bone at the base of the skull
    motion: float = 0.06  # share of slices in which the head moved
    hardening: float = 5  # HU, by which beam hardening brightens the brain at the skull
    reach: float = 7  # mm, in which that falls to a third
    offset: float = 0  # HU, of the calibration

    @property
    def zoom(self) -> int:
        return max(1, round(GRID / self.pixel))

    @cached_property
    def cradle(self) -> np.ndarray:
        """The signed distance (mm) to the holder of the head, the same in all slices: float32 (2, h, w), coarse."""
        right, back, _ = self.planes(0)
        middle = np.float32(104 - self.holder)  # mm: its lowest point is 104 mm below the center
        arc = np.abs(np.hypot(right, np.maximum(back - middle, 0)) - np.float32(self.holder)) - np.float32(1.4)
        return np.stack([both(arc, -30 - back, np.abs(right) - 102)] * 2)

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
