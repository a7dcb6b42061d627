"""The orientation of an axial slice: how its pixels become those of a supine head seen from below, as in training.

Rows run to the patient's left and columns to the back (ImageOrientationPatient 1,0,0,0,1,0 but for tilt, PS3.3
C.7.6.2.1.1), and pixels are square.
"""

from typing import NamedTuple

import cv2
import numpy as np
import pydicom
from pydicom.config import disable_value_validation

from ich_kaggle.dicom import tags
from ich_kaggle.dicom.pixels import Encoding, hu_table

SQUARE = 1.01  # the ratio of the sides of pixels that are left as they are
MOST = 4.0  # the ratio beyond which pixels are not resampled
HU = Encoding(16, True, 1.0, 0.0)  # of words that are HU


class Turn(NamedTuple):
    """What is done to the stored pixels, in this order."""

    swap: bool  # rows and columns
    flip_rows: bool  # top and bottom
    flip_columns: bool  # left and right
    upwards: bool  # whether the normal of the stored slice points to the head; otherwise positions change their sign


@disable_value_validation()
def turn_of(dataset: pydicom.Dataset, name: str) -> Turn:
    """Return the turn of the slice in `dataset`, whose header `geometry.read_header` accepts."""
    along_row, along_column = tags.numbers(dataset, "ImageOrientationPatient", 6, name).reshape(2, 3)
    swap = abs(along_row[0]) + abs(along_column[1]) < abs(along_row[1]) + abs(along_column[0])
    upwards = bool(np.cross(along_row, along_column)[2] >= 0)
    if swap:
        along_row, along_column = along_column, along_row
    return Turn(bool(swap), bool(along_column[1] < 0), bool(along_row[0] < 0), upwards)


def turned(words: np.ndarray, turn: Turn) -> np.ndarray:
    """Return `words` (rows, columns) turned: no value changes."""
    words = words.T if turn.swap else words
    return words[:: -1 if turn.flip_rows else 1, :: -1 if turn.flip_columns else 1]


def square(shape: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
    """Return the rows and columns (px) of a slice when its pixels, `spacing` mm high and wide, are made square."""
    step = min(spacing)
    if max(spacing) <= SQUARE * step:
        return shape
    if max(spacing) > MOST * step:
        raise ValueError(f"pixels of {spacing[0]:g} x {spacing[1]:g} mm")
    return round(shape[0] * spacing[0] / step), round(shape[1] * spacing[1] / step)


def resampled(words: np.ndarray, code: Encoding, shape: tuple[int, int]) -> tuple[np.ndarray, Encoding]:
    """Return `words` at `shape`, interpolated linearly in HU and rounded, as they are if that is their shape."""
    if words.shape == shape:
        return np.ascontiguousarray(words), code
    hu = hu_table(code)[words].astype(np.float32)
    hu = cv2.resize(hu, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.rint(hu).clip(-(1 << 15), (1 << 15) - 1).astype(np.int16).view(np.uint16), HU
