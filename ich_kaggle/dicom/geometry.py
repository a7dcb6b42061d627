"""The header of one CT slice in DICOM: its ids, its position and its geometry."""

import math
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.config import disable_value_validation

from ich_kaggle.dicom.pixels import shape_of
from ich_kaggle.dicom.tags import numbers, shown, tag

FARTHEST = 1e5  # mm from the origin; a table moves 2 m
FINEST, COARSEST = 0.01, 100.0  # mm between pixels
LONGEST_ID = 256  # characters; an LO or a UI has at most 64 (PS3.5 6.2), but some anonymisers write more


class Header(NamedTuple):
    patient_id: str
    study_id: str
    series_id: str
    position: float  # mm along the slice normal
    tilt: float  # of the gantry: degrees between the slice normal and the z axis of the patient
    rows: int  # px
    columns: int  # px
    row_spacing: float  # mm between rows
    column_spacing: float  # mm between columns


@disable_value_validation()
def read_header(dataset: pydicom.Dataset, name: str) -> Header:
    """Return the header of the slice in `dataset`.

    The position is ImagePositionPatient along the normal, the cross product of the two direction cosines of
    ImageOrientationPatient (PS3.3 C.7.6.2.1.1), rounded to a thousandth of a millimetre, so that slices at one place
    tie on every machine. Raises ValueError naming a tag that is missing or impossible.
    """
    directions = numbers(dataset, "ImageOrientationPatient", 6, name)
    with np.errstate(over="ignore", invalid="ignore"):
        normal = np.cross(directions[:3], directions[3:])
        length = np.linalg.norm(normal)
    if not 0.5 < length < 2:  # 1, but for rounding
        raise ValueError(f"{name}: ImageOrientationPatient {directions.tolist()} is not two directions")
    normal /= length
    return Header(
        _id(dataset, "PatientID", name),
        _id(dataset, "StudyInstanceUID", name),
        _id(dataset, "SeriesInstanceUID", name),
        round(float(_within(dataset, "ImagePositionPatient", 3, -FARTHEST, FARTHEST, name) @ normal), 3) + 0.0,
        round(math.degrees(math.acos(min(1.0, abs(normal[2])))), 3),
        *shape_of(dataset, name),
        *_within(dataset, "PixelSpacing", 2, FINEST, COARSEST, name).tolist(),
    )


def _id(dataset: pydicom.Dataset, keyword: str, name: str) -> str:
    value = tag(dataset, keyword, name)
    if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST_ID:
        raise ValueError(f"{name}: {keyword} is {shown(value)!r}, not text of {LONGEST_ID} characters or less")
    return str(value)


def _within(dataset: pydicom.Dataset, keyword: str, n: int, low: float, high: float, name: str) -> np.ndarray:
    found = numbers(dataset, keyword, n, name)
    if not ((low <= found) & (found <= high)).all():
        raise ValueError(f"{name}: {keyword} is {found.tolist()} mm, not {low:g} to {high:g}")
    return found
