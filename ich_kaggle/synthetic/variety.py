"""The variety of phantoms, as ranges and as shares of patients: narrow one to switch it off."""

from dataclasses import dataclass, replace

import numpy as np

Range = tuple[float, float]


def chance(rng: np.random.Generator, share: float) -> bool:
    """Return true with chance `share`. Where that is 0 no number is drawn: PLAIN stays as it was without the switch."""
    return share > 0 and rng.random() < share


@dataclass(frozen=True)
class Variety:
    """As wide as real scans. `replace(Variety(), metal=0, fillings=0)` has no metal; PLAIN is for the competition."""

    # The scanner
    thickness: Range | None = (0.6, 10)  # mm, drawn by its logarithm; None: as far apart as the slices, at most 6
    tilt: float = 25  # degrees at most
    field: Range = (190, 290)  # mm, of view
    position: float = 8  # mm, standard deviation of the place of the head
    turn: float = 9  # degrees, standard deviation of its turns
    kernel: Range = (0.3, 0.9)  # mm, blur of the reconstruction
    sharpness: float = 0.6  # at most; strength of an edge-enhancing kernel
    noise: Range = (1, 6)  # HU
    hardening: Range = (0, 30)  # HU, by which beam hardening brightens the brain at the skull
    reach: Range = (2, 10)  # mm, in which that falls to a third
    offset: float = 3  # HU, standard deviation of the calibration
    # HU, standard deviation at the base of the skull; a band there is darker by three times it
    streaks: Range = (1, 12)
    neck: float = 0.2  # share of scans that begin below the skull; above 0 all heads have a jaw and a neck
    motion: float = 0.08  # share of slices
    metal: float = 0.08  # share of patients, as are all below, with clips or coils and their streaks
    fillings: float = 0.3  # with metal in the teeth; none where neck is 0
    # The patient without blood
    age: Range = (1, 99)
    calcified: float = 1.0  # with a chance of calcifications
    dense: float = 0.3  # whose calcifications are three times as bright
    bruised: float = 0.5  # of the swollen scalps, with blood in them
    infarcts: float = 0.2  # old ones, more with age
    edema: float = 0.1  # swollen tissue without blood
    hydrocephalus: float = 0.05  # wide ventricles
    operated: float = 0.12  # a bone flap, a gap or a burr hole
    drains: float = 0.5  # of the operated
    air: float = 0.5  # inside the skull, of the operated
    contrast: float = 0.08  # in vessels and sinuses
    # Blood
    density: Range = (14, 85)  # HU, of blood of all ages
    old: float = 0.3  # share of bleeds below 55 HU
    levels: float = 0.2  # share with a level of sediment
    thin: float = 0.35  # share of subdurals below 4 mm
    trace: float = 0.35  # share of subarachnoid bleeds that are small
    mixes: float = 0.04  # chance of each kind to come along with another

    def blood(self, rng: np.random.Generator) -> float:
        """Return the HU of a bleed: fresh, or days to weeks old and as dark as the brain or darker."""
        low, high = self.density
        return rng.uniform(low, min(55, high)) if rng.random() < self.old else rng.uniform(max(56, low), high)


PLAIN = Variety(
    thickness=None,
    tilt=20,
    field=(225, 258),
    position=4.5,
    turn=5,
    kernel=(0.35, 0.6),
    sharpness=0,
    noise=(1.3, 5),
    hardening=(5, 5),
    reach=(7, 7),
    offset=0,
    streaks=(3, 3),
    neck=0,
    fillings=0,
    motion=0.06,
    metal=0,
    age=(18, 95),
    dense=0,
    bruised=0,
    infarcts=0.06,
    edema=0,
    hydrocephalus=0,
    operated=0,
    contrast=0,
    density=(46, 82),
    old=0.12,
    levels=0,
    thin=0,
    trace=0,
    mixes=0,
)

# The scanner of another hospital: thick slices, a sharp kernel, more noise, and more old blood. Variety() has neither
# that kernel nor that noise.
SHIFTED = replace(
    PLAIN,
    thickness=(6, 9),
    field=(245, 285),
    kernel=(0.3, 0.4),
    sharpness=1.2,
    noise=(6, 9),
    density=(35, 75),
    old=0.3,
    thin=0.2,
    trace=0.2,
)
VARIETIES = {"plain": PLAIN, "wide": Variety(), "shifted": SHIFTED}
