"""One CT slice in DICOM: where it lies, and its pixels in Hounsfield units."""

import contextlib
import io
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UncompressedTransferSyntaxes,
)

try:
    from isal import isal_zlib as inflater
except ImportError:  # Kaggle's image has no isal
    inflater = zlib

AIR = -1024  # HU: what pixels outside the scanner's field of view become
PADDING_BELOW = -2000  # HU: no tissue lies here; the competition's padding is -2048 and -3024 HU
HEAD_BYTES = 1 << 16  # more than the headers of plain CT take
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
ZIP_HEADER = 30  # bytes before the name in a member's own header, APPNOTE.TXT 4.3.7


class Header(NamedTuple):
    patient_id: str
    study_id: str
    series_id: str
    position: float  # mm along the slice normal
    tilt: float  # degrees between the slice normal and the z axis of the patient
    rows: int  # px
    columns: int  # px
    row_spacing: float  # mm between rows
    column_spacing: float  # mm between columns


def read_bytes(root: Path, path: str, offset: int = 0, packed: int = 0, limit: int = -1) -> bytes:
    """Return the file `path` below the folder `root`, or the `packed` bytes at `offset` of the zip `root`, inflated.

    At most `limit` bytes of it, if that is given. Raises ValueError if the zip holds no such member.
    """
    if not root.is_file():
        with (root / path).open("rb") as file:
            return file.read(limit)
    with root.open("rb") as archive:
        archive.seek(offset)
        head = archive.read(ZIP_HEADER)
        if head[:4] != b"PK\3\4":
            raise ValueError(f"{root}: {path} is not at byte {offset}: run python -m ich_kaggle.slices --overwrite")
        archive.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
        content = archive.read(packed)
    is_stored = head[8:10] == b"\0\0"
    try:
        if limit < 0:
            return content if is_stored else inflater.decompress(content, -15)
        return content[:limit] if is_stored else inflater.decompressobj(-15).decompress(content, limit)
    except inflater.error as error:
        raise ValueError(f"{root}: {path} can't be inflated ({error}): get the zip again") from error


UNREADABLE = (InvalidDicomError, EOFError, ValueError, KeyError, NotImplementedError, zlib.error)


def parse(content: bytes, name: str) -> pydicom.Dataset:
    """Return the data set in `content`. Raises ValueError naming the file if it is not DICOM."""
    try:
        return pydicom.dcmread(io.BytesIO(content))
    except UNREADABLE as error:
        raise ValueError(f"{name}: not a readable DICOM file ({error}): get it again") from error


def read_head(root: Path, path: str, size: int, offset: int = 0, packed: int = 0) -> pydicom.Dataset:
    """Return the data set of a member as far as its pixels, reading no more of it than that takes.

    Raises ValueError naming the file if it is not DICOM, or ends before its pixels do.
    """
    start = io.BytesIO(read_bytes(root, path, offset, packed, HEAD_BYTES))
    with contextlib.suppress(*UNREADABLE):
        dataset = pydicom.dcmread(start, stop_before_pixels=True)
        is_plain = dataset.file_meta.get("TransferSyntaxUID") in PLAIN
        if is_plain and start.tell() + 12 <= start.getbuffer().nbytes:  # 12: the head of the pixels' own element
            _check_length(dataset, size - start.tell() - 8, path)
            return dataset
    dataset = parse(read_bytes(root, path, offset, packed), path)
    content = _tag(dataset, "PixelData", path)
    if dataset.file_meta.TransferSyntaxUID in UncompressedTransferSyntaxes:
        _check_length(dataset, len(content), path)
    return dataset


def _check_length(dataset: pydicom.Dataset, n_bytes: int, name: str) -> None:
    expected = 2 * int(_tag(dataset, "Rows", name)) * int(_tag(dataset, "Columns", name))
    if n_bytes < expected:
        raise ValueError(f"{name}: truncated: {n_bytes} bytes of pixels, {expected} expected")


def read_header(dataset: pydicom.Dataset, name: str) -> Header:
    """Return what the slice table holds of a slice.

    The position is ImagePositionPatient along the normal, the cross product of the two direction cosines of
    ImageOrientationPatient (DICOM PS3.3 C.7.6.2.1.1). Raises ValueError naming a tag that is missing.
    """
    with disable_value_validation():
        orientation = np.array(_tag(dataset, "ImageOrientationPatient", name), float)
        normal = np.cross(orientation[:3], orientation[3:])
        normal /= np.linalg.norm(normal)
        spacing = _tag(dataset, "PixelSpacing", name)
        return Header(
            str(_tag(dataset, "PatientID", name)),
            str(_tag(dataset, "StudyInstanceUID", name)),
            str(_tag(dataset, "SeriesInstanceUID", name)),
            float(np.array(_tag(dataset, "ImagePositionPatient", name), float) @ normal),
            float(np.degrees(np.arccos(min(1.0, abs(normal[2]))))),
            int(_tag(dataset, "Rows", name)),
            int(_tag(dataset, "Columns", name)),
            float(spacing[0]),
            float(spacing[1]),
        )


def _tag(dataset: pydicom.Dataset, keyword: str, name: str):
    value = dataset.get(keyword)
    if value is None or value == "":
        raise ValueError(f"{name}: no {keyword} in the header")
    return value


class Encoding(NamedTuple):
    """How stored values become HU; one look-up table serves every slice that shares it."""

    bits: int  # BitsStored
    signed: bool
    slope: float
    intercept: float  # HU
    padding: int | None  # stored value


def encoding(dataset: pydicom.Dataset, name: str) -> Encoding:
    with disable_value_validation():
        return Encoding(
            int(_tag(dataset, "BitsStored", name)),
            bool(_tag(dataset, "PixelRepresentation", name)),
            float(_tag(dataset, "RescaleSlope", name)),
            float(_tag(dataset, "RescaleIntercept", name)),
            None if dataset.get("PixelPaddingValue") is None else int(dataset.PixelPaddingValue),
        )


@lru_cache(maxsize=64)
def hu_table(code: Encoding) -> np.ndarray:
    """Return the HU of every 16-bit word a slice can store: int16, or float32 where that can't hold them, (65536,).

    HU = slope * stored + intercept (DICOM PS3.3 C.11.1.1.2); bits above BitsStored are ignored; padding becomes AIR.
    """
    stored = np.arange(1 << 16) & ((1 << code.bits) - 1)
    if code.signed:
        stored[stored >= 1 << (code.bits - 1)] -= 1 << code.bits
    padded = np.zeros(stored.shape, bool) if code.padding is None else stored == code.padding
    hu = code.slope * stored + code.intercept
    if _has_wrong_intercept(code):
        hu = code.slope * ((stored + 1000) % 4096) - 1000
    hu[padded | (hu <= PADDING_BELOW)] = AIR
    whole = np.array_equal(hu, np.rint(hu)) and np.abs(hu).max() < 1 << 15
    hu = hu.astype(np.int16 if whole else np.float32)
    hu.flags.writeable = False
    return hu


def _has_wrong_intercept(code: Encoding) -> bool:
    # 123 slices of the competition are 12-bit, unsigned, shifted by 1000 and wrapped at 4096, with intercept 0 or 1.
    return code.bits == 12 and not code.signed and code.intercept > -100


def stored_words(dataset: pydicom.Dataset, name: str) -> np.ndarray:
    """Return the stored values as raw 16-bit words: uint16 (rows, columns).

    Raises ValueError naming the file for pixels that are cut short, or are not one 16-bit gray image.
    """
    rows, columns = int(_tag(dataset, "Rows", name)), int(_tag(dataset, "Columns", name))
    for keyword, only in (("SamplesPerPixel", 1), ("BitsAllocated", 16), ("NumberOfFrames", 1)):
        if (found := int(dataset.get(keyword) or only)) != only:
            raise ValueError(f"{name}: {keyword} is {found}, not {only}: not a plain CT slice")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in UncompressedTransferSyntaxes:
        return _decoded(dataset, name).view(np.uint16)
    content = _tag(dataset, "PixelData", name)
    _check_length(dataset, len(content), name)
    words = np.frombuffer(content, "<u2" if syntax.is_little_endian else ">u2", rows * columns)
    return words.reshape(rows, columns)


def _decoded(dataset: pydicom.Dataset, name: str) -> np.ndarray:
    try:
        return np.ascontiguousarray(dataset.pixel_array)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        raise RuntimeError(f"{name}: {' '.join(str(error).split())}: pip install 'ich_kaggle[codecs]'") from error


def read_hu(path: Path) -> np.ndarray:
    """Return the slice in the file `path` in HU: int16, or float32 where that can't hold it, (rows, columns)."""
    dataset = parse(path.read_bytes(), str(path))
    return hu_table(encoding(dataset, str(path)))[stored_words(dataset, str(path))]
