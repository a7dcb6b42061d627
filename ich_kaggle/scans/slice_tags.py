"""The tags of a slice's header: its kind and its plane, and words and numbers, of which a damaged one says nothing."""

import contextlib

import numpy as np
import pydicom
from pydicom.multival import MultiValue

from ich_kaggle.dicom import geometry, pixels, tags
from ich_kaggle.scans import series_rules

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7."  # this SOP class and those below it, PS3.4 B.5


def check_slice(dataset: pydicom.Dataset, image_type: str, name: str) -> None:
    """Raise ValueError if an image is no CT slice in HU."""
    pixels.check_ct(dataset, name)
    if f"{tags.optional(dataset, 'SOPClassUID', name)}.".startswith(SECONDARY_CAPTURE):
        raise ValueError("a derived secondary capture")
    if no_slice := series_rules.NOT_SLICES.search(image_type):
        raise ValueError(f"ImageType says {no_slice[0]}: not a CT slice")


def plane(dataset: pydicom.Dataset, where: geometry.Header, name: str) -> tuple[tuple[float, float, float], float]:
    """Return the normal of a slice, pointing to the head, and the z of its middle in mm."""
    along_row, along_column = tags.numbers(dataset, "ImageOrientationPatient", 6, name).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    normal *= np.sign(normal[2]) / np.linalg.norm(normal)
    z = tags.numbers(dataset, "ImagePositionPatient", 3, name)[2]
    z += (where.columns * where.column_spacing * along_row[2] + where.rows * where.row_spacing * along_column[2]) / 2
    return tuple(normal.tolist()), float(z)


def agent(dataset: pydicom.Dataset) -> str:
    """Return what the tags of the Contrast/Bolus Module (PS3.3 C.7.6.4) say of an agent, empty if nothing."""
    with contextlib.suppress(Exception):  # of a damaged sequence
        for item in dataset.get("ContrastBolusAgentSequence") or ():
            return tags.shown(item.get("CodeMeaning") or "in a sequence")
    for keyword in ("ContrastBolusAgent", "ContrastBolusIngredient"):
        if said := " ".join(words(dataset, keyword)):
            return said
    amounts = ((keyword, number(dataset, keyword)) for keyword in ("ContrastBolusVolume", "ContrastBolusTotalDose"))
    return next((f"there: {keyword} {amount:g}" for keyword, amount in amounts if amount), "")


def patient(dataset: pydicom.Dataset) -> str:
    """Return the PatientID as stored, empty where it is missing or damaged."""
    try:
        return str(tags.optional(dataset, "PatientID", "") or "").strip()
    except ValueError:
        return ""


def words(dataset: pydicom.Dataset, keyword: str) -> list[str]:
    """Return the values of a tag in capitals, none where it is missing or damaged."""
    try:
        value = tags.optional(dataset, keyword, "")
    except ValueError:
        return []
    values = [] if value is None else list(value) if isinstance(value, MultiValue) else [value]
    return [tags.shown(part).strip().upper() for part in values]


def number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """Return the value of a tag, None where it is missing or damaged."""
    try:
        return float(tags.numbers(dataset, keyword, 1, "")[0])
    except ValueError:
        return None
