"""Hemorrhages of the five kinds: their positions in a head and their shapes.

The shape of a bleed is a function of the fields of a slice, so that it is drawn once for all slices of all studies.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.synthetic.anatomy import Head, place_on_vault
from ich_kaggle.synthetic.fields import Fields, midline, tract
from ich_kaggle.synthetic.shapes import ball, both, union
from ich_kaggle.synthetic.variety import PLAIN, Variety

EVERYWHERE = ((0, -200, -200), (200, 200, 200))


def _level(rng: np.random.Generator, variety: Variety) -> float | None:
    return rng.uniform(-40, 60) if rng.random() < variety.levels else None


def _box(center, radius: float) -> tuple:
    middle = np.abs(np.float32((center[0], 0, 0))) + (0, *center[1:])
    return tuple(middle - radius), tuple(middle + radius)


@dataclass(frozen=True)
class Bleed:
    kind: str  # one of LABELS
    hu: float
    shape: Callable[[Fields, Head], np.ndarray]
    soft: float = 0.6  # mm, width of its edge
    edema: float = 0  # mm of swollen tissue around it
    level: float | None = None  # mm down to where its sediment begins
    box: tuple = EVERYWHERE  # mm, its corners, with both halves of the head folded onto the left one


def _bulge(far: np.ndarray, power: float) -> np.ndarray:
    """Return 1 at `far` 0, 0 at 1, and less beyond."""
    return np.maximum(1 - far, 0) ** power - np.clip(2 * (far - 1), 0, 2)


def _sheet(rng, head: Head, thick: float, length: float, height: float, power: float):
    """Return the shape of blood between skull and brain: `thick` in its middle, `length` and `height` mm to its rim."""
    at = place_on_vault(rng, head)
    a, b, _ = head.half
    side = 1 if at[0] > 0 else -1
    toward = np.float32([side * max(abs(at[0]) / a, 0.55), at[1] / b])  # the falx keeps it on one side
    toward /= np.hypot(*toward)

    def shape(f: Fields, _: Head) -> np.ndarray:
        x, y, z = f.p
        u, v = x / a, y / b
        rho = np.sqrt(u * u + v * v) + np.float32(1e-3)
        turn = np.maximum(0, 2 - 2 * (u * toward[0] + v * toward[1]) / rho)
        far = turn * (0.5 * (a + b) / length) ** 2 + ((z - at[2]) / height) ** 2
        depth = thick * _bulge(far, power) * (1 + 0.12 * f.bumps(25)) - 1
        return both(-f.inside - depth, f.cavity - 3.5, 1.5 - side * x)  # on to below the bone, which covers it

    return shape


def _epidural(rng: np.random.Generator, head: Head, variety: Variety) -> list[Bleed]:
    thick = rng.uniform(6, 24)
    length = min(40, thick * rng.uniform(1.6, 2.6) + 10)  # sutures stop it
    return [Bleed("epidural", rng.uniform(56, 80), _sheet(rng, head, thick, length, length * rng.uniform(0.6, 1), 1.0))]


def _subdural(rng: np.random.Generator, head: Head, variety: Variety) -> list[Bleed]:
    bleeds = []
    if rng.random() < 0.8:
        thick = rng.uniform(2.5, 4) if rng.random() < variety.thin else 3 + rng.gamma(2, 2.4)
        shape = _sheet(rng, head, thick, rng.uniform(45, 110), rng.uniform(20, 60), 0.5)
        bleeds.append(Bleed("subdural", variety.blood(rng), shape, soft=0.8, level=_level(rng, variety)))
    if not bleeds or rng.random() < 0.3:
        bleeds.append(_dural_fold(rng, variety))
    return bleeds


def _dural_fold(rng: np.random.Generator, variety: Variety) -> Bleed:
    """Return a subdural hematoma along the falx or on the tentorium."""
    side, thick = float(rng.choice((-1, 1))), rng.uniform(2.5, 6)
    y0, z0, reach = rng.uniform(-55, 60), rng.uniform(15, 55), rng.uniform(18, 45)
    on_tent = rng.random() < 0.35

    def shape(f: Fields, head: Head) -> np.ndarray:
        x, y, z = f.p
        if on_tent:
            leaf = both(np.abs(f.tent - thick / 2) - thick / 2, 8 - side * x, 3 - f.stem)
            return both(leaf, ball(f.p, (side * 28, 35, -20), (32, 36, 20)), f.cavity)
        thin = thick * _bulge(((y - y0) / reach) ** 2 + ((z - z0) / reach) ** 2, 0.5) - 1
        return both(side * x - thin, -0.5 - side * x, midline(f), f.cavity)

    return Bleed("subdural", variety.blood(rng), shape)


def _intraparenchymal(rng: np.random.Generator, head: Head, variety: Variety) -> list[Bleed]:
    count = 1 if rng.random() < 0.75 else rng.integers(2, 5)
    return [_hematoma(rng, head, variety, small=count > 1) for _ in range(count)]


def _hematoma(rng: np.random.Generator, head: Head, variety: Variety, small: bool) -> Bleed:
    radius = float(np.clip(np.exp(rng.normal(1.8 if small else 2.5, 0.45)), 3, 28))
    place = rng.choice(("deep", "lobar", "behind"), p=(0.4, 0.48, 0.12))
    side = rng.choice((-1, 1))
    if place == "deep":
        center = np.float32((side * rng.uniform(14, 30), rng.uniform(-12, 18), rng.uniform(-4, 16)))
    elif place == "behind":
        center = np.float32((side * rng.uniform(0, 34), rng.uniform(20, 55), rng.uniform(-48, -30)))
    else:
        center = place_on_vault(rng, head) * rng.uniform(0.5, 0.78)
        center[2] = max(center[2], -8)
    radii = radius * np.exp(rng.normal(0, 0.22, 3))

    def shape(f: Fields, _: Head) -> np.ndarray:
        rough = ball(f.p, center, radii) + radius * 0.2 * f.bumps(2.4 * radius + 8) + 0.08 * min(radius, 9) * f.bumps(9)
        return both(rough, f.cavity + 1.5)

    edema = rng.uniform(0, 2 + 0.45 * radius)
    box, level = _box(center, 2.2 * radius + edema), _level(rng, variety)
    return Bleed("intraparenchymal", variety.blood(rng), shape, rng.uniform(0.5, 2.5), edema, level, box)


def _intraventricular(rng: np.random.Generator, head: Head, variety: Variety) -> list[Bleed]:
    side, level = float(rng.choice((-1, 0, 0, 1))), rng.uniform(26, 54)
    cast = rng.random() < 0.25  # one whole ventricle full of clot
    middle = rng.random() < 0.3  # third and fourth ventricle

    def shape(f: Fields, head: Head) -> np.ndarray:
        x, y, z = f.p
        ventricles = tract(f, head) + 0.3
        wall = 4 - side * x if side else 4 - f.mirror[0]
        layer = both(ventricles, level - f.level, wall)
        if cast:
            layer = union(layer, both(ventricles, 4 - (side or 1) * x, -28 - y))
        return union(layer, both(ventricles, f.mirror[0] - 9, z - 8 - 0.2 * y)) if middle else layer

    return [Bleed("intraventricular", rng.uniform(56, 80), shape, soft=1.5, box=((0, -50, -50), (47, 72, 40)))]


def _subarachnoid(rng: np.random.Generator, head: Head, variety: Variety) -> list[Bleed]:
    """Return bleeds whose shapes are regions: blood replaces the CSF in them."""
    bleeds = []
    basal, hu = rng.random() < 0.4, rng.uniform(54, 76)
    for _ in range(rng.integers(1, 3)):
        center = np.float32((rng.normal(0, 20), -12, -10)) if basal else place_on_vault(rng, head) * 0.85
        radius = rng.uniform(22, 48) if basal else rng.uniform(10, 34)
        radius = rng.uniform(6, 14) if rng.random() < variety.trace else radius

        def shape(f: Fields, _: Head, center=center, radius=radius) -> np.ndarray:
            return ball(f.p, center, radius) + 3 * f.bumps(22)

        bleeds.append(Bleed("subarachnoid", hu, shape, soft=7, box=_box(center, radius + 16)))
    return bleeds


_DRAW = dict(
    zip(LABELS[:ANY], (_epidural, _intraparenchymal, _intraventricular, _subarachnoid, _subdural), strict=True)
)


def bleed(rng: np.random.Generator, head: Head, kinds: list[str], variety: Variety = PLAIN) -> None:
    """Add hemorrhages of `kinds` to `head` and, sometimes, their mass effect."""
    for kind in kinds:
        head.bleeds += _DRAW[kind](rng, head, variety)
    if {"epidural", "subdural", "intraparenchymal"} & set(kinds) and rng.random() < 0.5:
        head.shift = float(rng.choice((-1, 1))) * rng.uniform(1, 8)
        head.shift_z = rng.uniform(0, 35)
        head.sulcus *= rng.uniform(0.5, 1)
