"""The pixels of one CT slice in DICOM, in Hounsfield units.

Uncompressed slices (implicit, explicit, big endian, deflated) need no other package; RLE, JPEG lossless, JPEG-LS and
JPEG 2000 go through pydicom's plug-ins, from the extra `codecs`. DICOM: https://www.dicomstandard.org/current
"""

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

from ich_kaggle import paths

AIR = -1024  # HU: what pixels outside the scanner's field of view become
PADDING_BELOW = -2000  # HU: no tissue lies here; the competition's padding is -2048 and -3024 HU
HEAD_BYTES = 1 << 13  # more than the headers of plain CT take
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


BROKEN = (EOFError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, zlib.error)
UNREADABLE = (InvalidDicomError, *BROKEN)  # what pydicom raises for damaged files

# What one CT slice has (PS3.3 C.8.2.1): keyword, the values allowed, what it is where the tag is absent.
PLAIN_CT = (
    ("Modality", ("CT",), "absent"),
    ("SamplesPerPixel", (1,), "absent"),
    ("NumberOfFrames", (1,), 1),
    ("BitsAllocated", (16,), "absent"),
    ("PhotometricInterpretation", ("MONOCHROME1", "MONOCHROME2"), "absent"),
    ("RescaleType", ("HU", "US"), "HU"),
)


class Encoding(NamedTuple):
    """How stored values become HU; one look-up table serves every slice that shares it."""

    bits: int  # BitsStored
    signed: bool
    slope: float
    intercept: float  # HU
    padding_low: int = 1  # stored value: from here ...
    padding_high: int = 0  # ... to here is padding; none by default


class Plain(NamedTuple):
    """All it takes to map the pixels of a slice without its header."""

    start: int  # byte of the first pixel in the file; 0 if they are not stored one after the other, little endian
    rows: int
    columns: int
    code: Encoding


def parse(content: bytes, name: str) -> pydicom.Dataset:
    """Return the data set in `content`. Raises ValueError naming the file if it is not DICOM."""
    try:
        return pydicom.dcmread(io.BytesIO(content))
    except UNREADABLE as error:
        raise ValueError(f"{name}: not a readable DICOM file ({error}): get it again") from error


def _plain_head(content: bytes) -> tuple[pydicom.Dataset, int, int] | None:
    """Return the header, and where its pixels begin and how many bytes they have, of a slice stored plainly.

    None if it is stored otherwise, or `content` ends before its pixels.
    """
    stream = io.BytesIO(content)
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=True)
    except UNREADABLE:
        return None
    syntax, at = dataset.file_meta.get("TransferSyntaxUID"), stream.tell()
    if syntax not in PLAIN:
        return None
    order = "little" if syntax.is_little_endian else "big"
    group, element = (int.from_bytes(content[i : i + 2], order) for i in (at, at + 2))
    start = at + (8 if syntax.is_implicit_VR else 12)  # PS3.5 7.1.2 and 7.1.3
    if (group, element) != (0x7FE0, 0x0010) or start > len(content):
        return None
    return dataset, start, int.from_bytes(content[start - 4 : start], order)


def read_head(data: paths.Data, member: paths.Member) -> tuple[pydicom.Dataset, int]:
    """Return the header of a slice and the `start` of its `Plain`, reading no more of the file than that takes.

    Compressed pixels are decoded once. Raises ValueError naming the file if it is not DICOM, or ends before its pixels
    do, RuntimeError if it takes a package that is missing.
    """
    if (plain := _plain_head(data.read(member, HEAD_BYTES))) is None:
        return read_slice(data.read(member), member.path)[0], 0
    dataset, start, length = plain
    check_ct(dataset, member.path)
    _check_length(dataset, min(length, member.size - start), member.path)
    return dataset, start if dataset.file_meta.TransferSyntaxUID.is_little_endian else 0


def _check_length(dataset: pydicom.Dataset, n_bytes: int, name: str) -> None:
    rows, columns = int(tag(dataset, "Rows", name)), int(tag(dataset, "Columns", name))
    if not rows * columns:
        raise ValueError(f"{name}: {rows} rows and {columns} columns: no pixels")
    if n_bytes < (expected := 2 * rows * columns):
        raise ValueError(f"{name}: truncated: {n_bytes} bytes of pixels, {expected} expected")


def optional(dataset: pydicom.Dataset, keyword: str, name: str):
    """Return the value of a tag, None where it is missing or empty. Raises ValueError naming one that is damaged."""
    try:
        value = dataset.get(keyword)
    except UNREADABLE as error:
        raise ValueError(f"{name}: {keyword} can't be read ({error})") from error
    return None if value == "" else value


def tag(dataset: pydicom.Dataset, keyword: str, name: str):
    """Return the value of a tag. Raises ValueError naming one that is missing or empty."""
    if (value := optional(dataset, keyword, name)) is None:
        raise ValueError(f"{name}: no {keyword} in the header")
    return value


def numbers(dataset: pydicom.Dataset, keyword: str, n: int, name: str) -> np.ndarray:
    """Return the `n` finite numbers of a tag. Raises ValueError naming one that has others."""
    value = tag(dataset, keyword, name)
    try:
        found = np.array(value, float).reshape(n)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {keyword} is {value}, not {n} numbers") from error
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: {keyword} is {value}, not {n} numbers")
    return found


@disable_value_validation()  # the competition's UIDs are none
def check_ct(dataset: pydicom.Dataset, name: str) -> None:
    """Raise ValueError naming the tag if this is not one plain CT slice: a localizer, a report, a multi-frame ..."""
    for keyword, allowed, absent in PLAIN_CT:
        found = optional(dataset, keyword, name)
        found = absent if found is None else found
        if found not in allowed:
            raise ValueError(f"{name}: {keyword} is {found}, not {' or '.join(map(str, allowed))}: not a CT slice")
    if "LOCALIZER" in (optional(dataset, "ImageType", name) or ()):  # PS3.3 C.8.2.1.1.1
        raise ValueError(f"{name}: ImageType says LOCALIZER: not a CT slice")
    bits, high = int(tag(dataset, "BitsStored", name)), optional(dataset, "HighBit", name)
    if not 1 <= bits <= 16 or (high is not None and high != bits - 1):  # PS3.5 8.1.1
        raise ValueError(f"{name}: BitsStored {bits} with HighBit {high}: not a CT slice")


@disable_value_validation()
def encoding(dataset: pydicom.Dataset, name: str) -> Encoding:
    """Return how a slice that was read here stores HU. Raises ValueError naming the tag if it does not say so.

    MONOCHROME1 changes nothing here: HU come from the rescale alone (PS3.3 C.11.1.1.2); the photometric
    interpretation only tells a display to turn its gray scale round, after any window (C.7.6.3.1.2).
    """
    slope, intercept = (_rescale(dataset, keyword, identity, name) for keyword, identity in RESCALE)
    if slope == 0:
        raise ValueError(f"{name}: RescaleSlope is 0")
    code = Encoding(int(dataset.BitsStored), bool(tag(dataset, "PixelRepresentation", name)), slope, intercept)
    if (first := optional(dataset, "PixelPaddingValue", name)) is None:
        return code
    last = optional(dataset, "PixelPaddingRangeLimit", name)
    low, high = sorted(_values(np.array([first, first if last is None else last], int), code).tolist())
    return code._replace(padding_low=low, padding_high=high)


RESCALE = (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))


def _rescale(dataset: pydicom.Dataset, keyword: str, identity: float, name: str) -> float:
    # CT must have both (PS3.3 C.8.2.1); without, stored values are HU only where the header says so.
    if optional(dataset, keyword, name) is None:
        if dataset.get("RescaleType") == "HU":
            return identity
        raise ValueError(f"{name}: no {keyword} in the header, nor RescaleType HU: these are not known to be HU")
    return float(numbers(dataset, keyword, 1, name)[0])


@lru_cache(maxsize=64)
def hu_table(code: Encoding) -> np.ndarray:
    """Return the HU of every 16-bit word a slice can store: int16, or float32 where that can't hold them, (65536,).

    HU = slope * stored + intercept (PS3.3 C.11.1.1.2); bits above BitsStored are ignored; padding (C.7.5.1.1.2)
    becomes AIR.
    """
    stored = _values(np.arange(1 << 16), code)
    hu = code.slope * stored + code.intercept
    if _has_wrong_intercept(code):
        hu = code.slope * ((stored + 1000) % 4096) - 1000
    hu[((code.padding_low <= stored) & (stored <= code.padding_high)) | (hu <= PADDING_BELOW)] = AIR
    whole = np.array_equal(hu, np.rint(hu)) and np.abs(hu).max() < 1 << 15
    hu = hu.astype(np.int16 if whole else np.float32)
    hu.flags.writeable = False
    return hu


def _values(words: np.ndarray, code: Encoding) -> np.ndarray:
    """Return the values that 16-bit `words` stand for. (Of a padding too: some write -2000 as 63536.)"""
    values = words & ((1 << code.bits) - 1)
    return np.where(values >= 1 << (code.bits - 1), values - (1 << code.bits), values) if code.signed else values


def _has_wrong_intercept(code: Encoding) -> bool:
    # 123 slices of the competition are 12-bit, unsigned, shifted by 1000 and wrapped at 4096, with intercept 0 or 1.
    return code.bits == 12 and not code.signed and code.intercept > -100


def read_slice(content: bytes, name: str) -> tuple[pydicom.Dataset, np.ndarray]:
    """Return the header in `content` and the stored values as raw 16-bit words, uint16 (rows, columns).

    They share the memory of `content` if they are stored plainly. Raises ValueError naming the file for pixels that
    are cut short, or are not one CT slice, RuntimeError if they take a package that is missing.
    """
    plain = _plain_head(content)
    dataset = parse(content, name) if plain is None else plain[0]
    check_ct(dataset, name)
    syntax = tag(dataset.file_meta, "TransferSyntaxUID", name)
    if plain is None and syntax not in UncompressedTransferSyntaxes:
        return dataset, _decoded(dataset, name)
    pixels = memoryview(content)[plain[1] :][: plain[2]] if plain else tag(dataset, "PixelData", name)
    _check_length(dataset, len(pixels), name)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    words = np.frombuffer(pixels, "<u2" if syntax.is_little_endian else ">u2", rows * columns)
    return dataset, words.reshape(rows, columns)


def _decoded(dataset: pydicom.Dataset, name: str) -> np.ndarray:
    tag(dataset, "PixelData", name)
    try:
        return np.ascontiguousarray(dataset.pixel_array).view(np.uint16)
    except RuntimeError as error:
        if "missing dependencies" in str(error):
            syntax = dataset.file_meta.TransferSyntaxUID.name
            raise RuntimeError(f"{name}: {syntax} takes more packages: pip install 'ich_kaggle[codecs]'") from error
        raise ValueError(f"{name}: the pixels can't be decoded ({error})") from error
    except UNREADABLE as error:
        raise ValueError(f"{name}: the pixels can't be decoded ({error})") from error


def read_words(content: bytes, name: str, plain: Plain | None = None) -> tuple[np.ndarray, Encoding]:
    """Return the stored words of the slice in `content`, uint16 (rows, columns), and how they become HU.

    What `plain` tells is not read from the header again, which is a quarter of the time that caching takes.
    """
    if plain is not None and plain.start:
        words = np.frombuffer(content, "<u2", plain.rows * plain.columns, plain.start)
        return words.reshape(plain.rows, plain.columns), plain.code
    dataset, words = read_slice(content, name)
    return words, encoding(dataset, name)


def read_hu(path: Path) -> np.ndarray:
    """Return the slice in the file `path` in HU: int16, or float32 where that can't hold it, (rows, columns)."""
    words, code = read_words(path.read_bytes(), str(path))
    return hu_table(code)[words]
