"""The anatomy of a synthetic patient: sizes, densities and findings without blood, drawn at random.

Head coordinates are mm from the middle of the brain: x to the patient's left, y to the back, z to the top.
"""

from typing import NamedTuple

import numpy as np

from ich_kaggle.synthetic.shapes import Texture
from ich_kaggle.synthetic.variety import PLAIN, Variety, chance


class Head:
    """One patient's anatomy, in HU and mm, drawn at random.

    Single numbers are Python's or float32: a float64 of NumPy would turn float32 arrays into float64.
    """

    def __init__(self, rng: np.random.Generator, variety: Variety = PLAIN):
        self.texture = Texture(rng)
        self.age = rng.uniform(*variety.age)
        self.atrophy = float(np.clip((self.age - 35) / 60 + rng.normal(0, 0.15), 0.05, 1.1))
        self.half = np.float32([rng.normal(71, 3), rng.normal(88, 3.5), rng.normal(84, 4)])
        self.egg = rng.uniform(0.04, 0.14)  # wider at the back
        self.skew = rng.normal(0, 0.02)
        self.skull = float(np.clip(rng.normal(6.5, 1.3), 4, 10))
        self.scalp = float(np.clip(rng.normal(5.5, 1.5), 3.5, 9))
        self.table = rng.uniform(1300, 1700)
        self.gray, self.csf = rng.normal(37, 1.5), rng.normal(9, 2)
        self.white = self.gray - float(np.clip(rng.normal(7, 1.5), 3, 11))
        self.dura, self.sinus = rng.uniform(40, 56), rng.uniform(42, 62)
        if rng.random() < variety.contrast:
            self.sinus, self.dura = rng.uniform(90, 300), rng.uniform(50, 80)
        self.ventricle = (0.7 + 0.65 * self.atrophy) * np.exp(rng.normal(0, 0.15))
        if rng.random() < variety.hydrocephalus:
            self.ventricle *= rng.uniform(1.3, 2.3)
        self.sulcus = -0.5 + 1.5 * self.atrophy + rng.uniform(0, 0.5)  # mm, half width; below 0 most are closed
        self.gap = 0.5 + 1.6 * self.atrophy * rng.uniform(0.5, 1.2)  # mm of CSF over the brain
        self.shift, self.shift_z = 0.0, 0.0  # mm of midline shift, largest at shift_z
        self.spots = _calcifications(rng) if rng.random() < variety.calcified else []
        if chance(rng, variety.dense):
            self.spots = [(center, radii, 3 * hu) for center, radii, hu in self.spots]
        self.strokes = _old_strokes(rng) if rng.random() < variety.infarcts * (1 + 2.5 * self.atrophy) else []
        if rng.random() < variety.edema:
            self.strokes += _old_strokes(rng, radii=(10, 30), hu=(17, 28))
        self.leukoaraiosis = max(0, 5 * self.atrophy * rng.uniform(-0.3, 1))  # HU by which the white matter is darker
        self.lump = place_on_vault(rng, self) if rng.random() < 0.15 else None  # scalp swelling
        self.operation = _operation(rng, self, variety) if rng.random() < variety.operated else None
        self.metal = [rng.uniform((-30, -40, -25), (30, 30, 20))] if rng.random() < variety.metal else []
        self.neck = variety.neck > 0  # whether jaw and neck are drawn
        if self.neck and chance(rng, variety.fillings):
            self.metal += [_filling(rng, self.width) for _ in range(rng.integers(1, 4))]
        self.bruise = rng.uniform(50, 75) if self.lump is not None and chance(rng, variety.bruised) else 0.0  # HU
        self.bleeds = []  # of hemorrhages.Bleed

    @property
    def width(self) -> np.float32:
        """The width of the head as a multiple of the average, by which jaw and neck are wider too."""
        return self.half[0] / 71


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


def _old_strokes(rng: np.random.Generator, radii: tuple = (4, 16), hu: tuple = (12, 24)) -> list[tuple]:
    return [
        (rng.uniform((-52, -60, -40), (52, 65, 55)), rng.uniform(*radii, 3), rng.uniform(*hu))
        for _ in range(rng.integers(1, 3))
    ]


def _filling(rng: np.random.Generator, width: float) -> tuple[float, float, float]:
    """Return a place on the arch of the teeth of a head `width` times as wide as the average."""
    x = rng.uniform(-30, 30)
    return x * width, (-32 - 1.25 * np.sqrt(36**2 - x**2)) * width, rng.uniform(-94, -79)


class Operation(NamedTuple):
    """An opening of the skull and what came with it."""

    center: np.ndarray  # mm, on the outside of the skull
    radius: float  # mm
    width: float  # mm, of the cut around the flap; 0: the flap is missing, as the bone of a burr hole is
    drain: np.ndarray | None  # mm, the inner end of a drain that enters there
    air: float  # mm, of air below the highest point of the skull; 0 without


def _operation(rng: np.random.Generator, head: "Head", variety: Variety) -> Operation:
    burr = rng.random() < 0.4
    return Operation(
        center=place_on_vault(rng, head),
        radius=rng.uniform(5, 8) if burr else rng.uniform(18, 42),
        width=0 if burr or rng.random() < 0.3 else rng.uniform(1.2, 2.5),
        drain=rng.uniform((-12, -30, 2), (12, 10, 25)) if rng.random() < variety.drains else None,
        air=rng.uniform(2, 18) if rng.random() < variety.air else 0,
    )


def place_on_vault(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Return a point on the outside of the skull, away from its base and its top."""
    azimuth, up = rng.uniform(0, 2 * np.pi), rng.uniform(-0.1, 0.8)
    around = np.sqrt(1 - up**2)
    return head.half * np.float32([np.sin(azimuth) * around, -np.cos(azimuth) * around, up])
