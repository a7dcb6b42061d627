"""The header of one CT slice in DICOM: whose it is, and where it lies."""

import math
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.config import disable_value_validation

from ich_kaggle.dicom import numbers, tag


class Header(NamedTuple):
    patient_id: str
    study_id: str
    series_id: str
    position: float  # mm along the slice normal
    tilt: float  # degrees between the slice normal and the z axis of the patient: the gantry's
    rows: int  # px
    columns: int  # px
    row_spacing: float  # mm between rows
    column_spacing: float  # mm between columns


@disable_value_validation()
def read_header(dataset: pydicom.Dataset, name: str) -> Header:
    """Return what the slice table holds of a slice.

    The position is ImagePositionPatient along the normal, the cross product of the two direction cosines of
    ImageOrientationPatient (PS3.3 C.7.6.2.1.1), to a thousandth of a millimetre, so that slices at one place tie on
    every machine. Raises ValueError naming a tag that is missing or can't be.
    """
    directions = numbers(dataset, "ImageOrientationPatient", 6, name)
    normal = np.cross(directions[:3], directions[3:])
    if not (length := np.linalg.norm(normal)):
        raise ValueError(f"{name}: ImageOrientationPatient {directions.tolist()} is not two directions")
    normal /= length
    return Header(
        str(tag(dataset, "PatientID", name)),
        str(tag(dataset, "StudyInstanceUID", name)),
        str(tag(dataset, "SeriesInstanceUID", name)),
        round(float(numbers(dataset, "ImagePositionPatient", 3, name) @ normal), 3) + 0.0,
        round(math.degrees(math.acos(min(1.0, abs(normal[2])))), 3),
        int(tag(dataset, "Rows", name)),
        int(tag(dataset, "Columns", name)),
        *numbers(dataset, "PixelSpacing", 2, name).tolist(),
    )
