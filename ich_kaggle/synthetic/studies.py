"""Studies of synthetic patients in memory: from a seed to slices in HU and their labels, without a file."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.synthetic import hemorrhages, scanner
from ich_kaggle.synthetic.anatomy import Head
from ich_kaggle.synthetic.gantry import Gantry, turn
from ich_kaggle.synthetic.variety import PLAIN, Variety, chance

SMALLEST = 12.0  # mm2: a slice with a smaller area of blood of a kind does not have its label

# The kind of the first hemorrhage of a patient with blood, in label order, and the kinds that come along.
REAL_PREVALENCE = 0.42  # share of patients with blood
REAL_FIRST = (0.015, 0.335, 0.04, 0.26, 0.35)
ENRICHED_FIRST = (0.13, 0.29, 0.05, 0.24, 0.29)
ALONG = {
    "epidural": {"subarachnoid": 0.25, "subdural": 0.3},
    "intraparenchymal": {"intraventricular": 0.42, "subarachnoid": 0.25, "subdural": 0.12},
    "intraventricular": {"subarachnoid": 0.2},
    "subarachnoid": {"intraventricular": 0.25, "intraparenchymal": 0.15, "subdural": 0.2},
    "subdural": {"subarachnoid": 0.3, "intraparenchymal": 0.12},
}


class Slice(NamedTuple):
    hu: np.ndarray  # float32 (size, size)
    labels: np.ndarray  # int8 (6,)
    position: float  # mm along the slice normal, ascending to the head


def draw(
    seed: int | list[int],
    *,
    size: int = 256,
    slices: int = 32,
    prevalence: float = 0.5,
    variety: Variety = PLAIN,
) -> Iterator[Slice]:
    """Yield the slices of one patient, from the base of the skull, or the neck, up.

    The same `seed` gives the same patient. With chance `prevalence` it has blood, of kinds as common as in a synthetic
    competition. A study has about `slices` slices. `Variety()` randomises scanner, patient and blood widely.
    """
    rng = np.random.default_rng(seed)
    first = LABELS[rng.choice(ANY, p=ENRICHED_FIRST)] if rng.random() < prevalence else None
    head = draw_head(rng, first, variety)
    gantry, positions = prescribe(rng, head, (size, size), slices, variety)
    for position in positions:
        hu, blood = scanner.scan(head, gantry, position, rng)
        kinds = labels_of(pixels_of(blood), gantry)
        yield Slice(hu, np.append(kinds, kinds.max()), position * np.cos(gantry.tilt))


def draw_head(rng: np.random.Generator, first: str | None, variety: Variety = PLAIN) -> Head:
    """Return a random head; unless `first` is None with a hemorrhage of that kind, and what comes along with it."""
    head = Head(rng, variety)
    if first:
        along = (kind for kind in LABELS[:ANY] if kind != first)
        along = [kind for kind in along if rng.random() < ALONG[first].get(kind, 0) + variety.mixes]
        hemorrhages.bleed(rng, head, [first, *along], variety)
    return head


def labels_of(pixels: np.ndarray, gantry: Gantry) -> np.ndarray:
    """Return which kinds `pixels` (..., 5) of blood are enough for: int8 (..., 5)."""
    return (pixels * gantry.pixel**2 >= SMALLEST).astype(np.int8)


def pixels_of(blood: np.ndarray) -> np.ndarray:
    """Return the number of pixels of each kind, int (5,), in a mask whose bit i is label i."""
    return np.array([np.count_nonzero(blood & (1 << k)) for k in range(ANY)])


def prescribe(
    rng: np.random.Generator, head: Head, shape: tuple[int, int], slices: int, variety: Variety = PLAIN
) -> tuple[Gantry, np.ndarray]:
    """Return a random gantry, and the table positions (mm) of a study, from the base of the skull, or the neck,
    to above its top.
    """
    begins = (-150, -75) if chance(rng, variety.neck) else (-70, -52)
    low, high = rng.uniform(*begins), head.half[2] + head.scalp + rng.uniform(0, 12)
    n = (high - low) / 2.5 if rng.random() < 0.08 else slices * rng.uniform(0.8, 1.15)
    depths = np.linspace(low, high, int(np.clip(round(n), 3, 2 * slices)))
    thickness = np.exp(rng.uniform(*np.log(variety.thickness))) if variety.thickness else min(depths[1] - depths[0], 6)
    gantry = draw_gantry(rng, shape, thickness, depths.mean(), variety)
    return gantry, np.round(depths / np.cos(gantry.tilt), 3)


def draw_gantry(
    rng: np.random.Generator, shape: tuple[int, int], thickness: float, middle: float, variety: Variety = PLAIN
) -> Gantry:
    """Return a random gantry for a study of slices `thickness` mm thick, centered at depth `middle` (mm)."""
    tilt = np.deg2rad(rng.uniform(-1, 1) * variety.tilt) if rng.random() < 0.53 else 0.0
    low, high = variety.noise
    return Gantry(
        shape=shape,
        pixel=round(rng.uniform(*variety.field) / min(shape), 6),
        thickness=thickness,
        tilt=tilt,
        pose=turn(*np.deg2rad(rng.normal(0, variety.turn * np.array((1.2, 0.6, 1.2))))),
        center=tuple(rng.normal(0, variety.position, 2) - (0, middle * np.tan(tilt))),
        noise=float(np.clip(low + (high - low) * rng.lognormal(-1.3, 0.5), low, high)),
        kernel=rng.uniform(*variety.kernel),
        holder=rng.uniform(98, 180) if rng.random() < 0.7 else 0,
        sharpness=rng.uniform(0, variety.sharpness) * (rng.random() < 0.5),
        motion=variety.motion,
        **_shade(rng, variety),
    )


def _shade(rng: np.random.Generator, variety: Variety) -> dict[str, float]:
    """Return the random shade of a gantry. What does not vary draws no number: PLAIN stays as it is."""
    ranges = {name: getattr(variety, name) for name in ("hardening", "reach", "streaks")}
    drawn = {name: rng.uniform(low, high) if low < high else low for name, (low, high) in ranges.items()}
    return drawn | {"offset": rng.normal(0, variety.offset) if variety.offset else 0.0}
