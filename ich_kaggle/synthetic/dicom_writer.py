"""Synthetic DICOM files: the pixel formats found in the competition, with headers as sparse as its own."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

IMPLEMENTATION = "2.25.20191104"  # a fixed one: pydicom's own changes with its version


class Format(NamedTuple):
    """A pixel format for HU. An unsigned one without an intercept wraps values below 0 around to the top."""

    share: float  # of studies
    bits: int
    signed: int
    intercept: int
    implicit: bool  # VR
    padding: int | None  # raw value outside the field of view
    center: str
    width: str


FORMATS = (
    Format(0.22, 12, 0, -1024, True, 0, "00036\\00036", "00080\\00080"),
    Format(0.20, 12, 0, -1024, False, 0, "00040\\00040", "00080\\00080"),
    Format(0.36, 16, 1, -1024, False, -2000, "30", "80"),
    Format(0.14, 16, 1, -1024, False, None, "50", "100"),
    Format(0.04, 12, 0, -1000, False, 0, "00040\\00040", "00080\\00080"),
    Format(0.02, 12, 1, 0, False, None, "40", "150"),
    Format(0.02, 16, 1, 0, True, None, "35", "100"),
)
WRONG_INTERCEPT = Format(0, 12, 0, 0, False, None, "40", "80")  # the true one is -1000


def store(hu: np.ndarray, form: Format) -> np.ndarray:
    """Return HU (h, w) as raw values: little-endian int16, or uint16."""
    raw = np.rint(hu).astype(np.int32) - form.intercept
    top = 1 << form.bits - form.signed
    if form.signed or form.intercept:
        raw = raw.clip(-top if form.signed else 0, top - 1)
    else:
        raw = raw.clip(-1000, top - 1001) % top
    if form.padding is not None:
        y, x = (np.arange(n) - (n - 1) / 2 for n in hu.shape)
        raw[np.hypot(y[:, None], x) > max(hu.shape) / 2] = form.padding
    return raw.astype("<i2" if form.signed else "<u2")


def header(form: Format, patient_id: str, study_id: str, series_id: str) -> FileDataset:
    """Return the header that the slices of a study share, without its geometry."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if form.implicit else ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION, "ICH_PHANTOM"
    dicom = FileDataset(None, Dataset(), file_meta=meta, preamble=bytes(128))
    dicom.Modality, dicom.StudyID = "CT", ""
    dicom.PatientID, dicom.StudyInstanceUID, dicom.SeriesInstanceUID = patient_id, study_id, series_id
    dicom.SamplesPerPixel, dicom.PhotometricInterpretation = 1, "MONOCHROME2"
    dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = 16, form.bits, form.bits - 1
    dicom.PixelRepresentation = form.signed
    dicom.WindowCenter, dicom.WindowWidth = form.center, form.width
    dicom.RescaleIntercept, dicom.RescaleSlope = str(form.intercept), "1"
    return dicom


def geometry(dicom: FileDataset, shape: tuple[int, int], pixel: float, tilt: float) -> None:
    """Set matrix (rows, columns), pixel size (mm) and orientation; rows run backward and, by `tilt` (radians), down."""
    dicom.Rows, dicom.Columns = shape
    dicom.PixelSpacing = _decimals(pixel, pixel)
    dicom.ImageOrientationPatient = _decimals(1, 0, 0, 0, np.cos(tilt), -np.sin(tilt))


def write(path: Path, dicom: FileDataset, slice_id: str, corner: tuple[float, float, float], data: bytes) -> None:
    """Write one slice with its first pixel at `corner` (mm) and the raw pixels `data`."""
    dicom.SOPInstanceUID = slice_id
    dicom.file_meta.MediaStorageSOPInstanceUID = f"2.25.{int(slice_id[3:], 16) + 1}"
    dicom.ImagePositionPatient = _decimals(*corner)
    dicom.PixelData = data
    dicom.save_as(path, enforce_file_format=True)


def _decimals(*values: float) -> list[str]:
    return [f"{value:.6f}" for value in values]


def allow_short_ids() -> None:
    """Keep pydicom from warning that ids like `ID_0123abcd`, which the competition has, are not UIDs."""
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
