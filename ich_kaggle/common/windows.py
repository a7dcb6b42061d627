"""CT windows: the range of Hounsfield units that a channel of an image shows.

A window maps center - width/2 ... center + width/2 (HU) linearly onto 0 ... 255 and clips the rest
(DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

LOWEST, HIGHEST = -4096, 4095  # HU: the range of a 12-bit or a padded 16-bit slice after rescaling; the rest is clipped


class Window(NamedTuple):
    center: float  # HU
    width: float  # HU


BRAIN = Window(40, 80)
SUBDURAL = Window(80, 200)
SOFT = Window(40, 380)
BONE = Window(600, 2800)
CACHED = (BRAIN, SUBDURAL, SOFT)  # the channels of a cached picture and of the networks: models keep those they had
NAMES = {BRAIN: "brain", SUBDURAL: "subdural", SOFT: "soft tissue", BONE: "bone"}


@lru_cache
def table(windows: tuple[Window, ...]) -> np.ndarray:
    """Return the look-up table of `windows`: uint8 (HIGHEST - LOWEST + 1, n_windows)."""
    hu = np.arange(LOWEST, HIGHEST + 1)[:, None]
    center, width = np.array(windows, dtype=float).T
    gray = np.rint(255 * np.clip((hu - center) / width + 0.5, 0, 1)).astype(np.uint8)
    gray.flags.writeable = False
    return gray


def apply(hu: np.ndarray, windows: tuple[Window, ...]) -> np.ndarray:
    """Return `hu` (h, w; HU, rounded to whole numbers) with a channel per window: uint8 (h, w, n_windows)."""
    if hu.dtype.kind == "f":
        hu = np.rint(hu)
    row = np.clip(hu, LOWEST, HIGHEST).astype(np.intp) - LOWEST  # take converts other types first, slowly
    return table(windows).take(row, axis=0)
