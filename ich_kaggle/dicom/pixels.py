"""The pixels of one CT slice in DICOM, in Hounsfield units.

Uncompressed slices (implicit, explicit, big endian, deflated) and RLE need no other package; JPEG lossless, JPEG-LS and
JPEG 2000 are decoded by pydicom's plug-ins, from the extra `codecs`. DICOM: https://www.dicomstandard.org/current
"""

import io
import math
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.multival import MultiValue
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UncompressedTransferSyntaxes,
)

from ich_kaggle.common import paths
from ich_kaggle.dicom import decoding, tags

AIR = -1024  # HU: what pixels outside the scanner's field of view become
HIGHEST = 30719  # HU: what 15 bits with an intercept of -2048 reach; extended scales of CT end at 30710
PADDING_BELOW = -2000  # HU: no tissue lies here; the competition's padding is -2048 and -3024 HU
HEAD_BYTES = 1 << 13  # larger than the headers of plain CT
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
LARGEST = 2048  # px: rows or columns; scanners make 512, some 1024
MOST_HU = 1 << 24  # float32 holds every whole number up to here
LONGER = "more pixels than Rows and Columns say: one of these may be wrong"
LONG_VRS = (b"OB", b"OF", b"OW", b"UN")  # of pixels; as the length of an implicit element they would be odd
TISSUE = (-900, 3000)  # HU: values between them are those of a body, whatever a header says of padding

# The tags of one CT slice (PS3.3 C.8.2.1): keyword, the values allowed, the value of an absent tag.
PLAIN_CT = (
    ("Modality", ("CT",), "absent"),
    ("SamplesPerPixel", (1,), "absent"),
    ("NumberOfFrames", (1, 0), 1),  # some writers write 0
    ("BitsAllocated", (16,), "absent"),
    ("PixelRepresentation", (0, 1), "absent"),
    ("PhotometricInterpretation", ("MONOCHROME1", "MONOCHROME2"), "absent"),
)
HU = re.compile(r"\s*(HU|HOUNSFIELD( UNITS?)?)\s*", re.IGNORECASE)  # RescaleType
NOT_SAID = re.compile(r"\s*(US|UNSPECIFIED)?\s*", re.IGNORECASE)  # also RescaleType, PS3.3 C.11.1.1.2
RESCALE = (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))  # keyword, identity


class Encoding(NamedTuple):
    """The conversion of stored values to HU; one look-up table serves all slices that share it."""

    bits: int  # BitsStored
    signed: bool
    slope: float
    intercept: float  # HU
    padding_low: int = 1  # the range of stored values that are padding, both ends included; empty by default
    padding_high: int = 0


class Plain(NamedTuple):
    """The layout of the pixels of a slice in its file, which makes reading the header again unnecessary."""

    start: int  # byte of the first pixel; 0 unless the pixels are stored uncompressed and little endian
    rows: int
    columns: int
    code: Encoding


def _plain_head(content: bytes) -> tuple[pydicom.Dataset, int, int] | None:
    """Return the header of an uncompressed slice, the byte where its pixels begin, and their number of bytes.

    None for other slices, and if the pixels begin beyond HEAD_BYTES.
    """
    content = content[:HEAD_BYTES]
    if tags.DEFLATED in content:
        return None
    stream = io.BytesIO(content)
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=True)
        syntax, at = dataset.file_meta.get("TransferSyntaxUID"), stream.tell()
    except Exception:  # the reason is found when the whole file is parsed
        return None
    if syntax not in PLAIN:
        return None
    order = "big" if syntax == ExplicitVRBigEndian else "little"
    group, element = (int.from_bytes(content[i : i + 2], order) for i in (at, at + 2))
    start = at + (12 if content[at + 4 : at + 6] in LONG_VRS else 8)  # whatever the transfer syntax says of VRs
    length = int.from_bytes(content[start - 4 : start], order)
    if (group, element) != (0x7FE0, 0x0010) or start > len(content) or length == tags.UNDEFINED:
        return None
    return dataset, start, length


def read_head(data: paths.Data, member: paths.Member) -> tuple[pydicom.Dataset, int]:
    """Return the header of a slice and the `start` of its `Plain`, reading no more of the file than needed.

    Compressed pixels are decoded once, to check them. Raises ValueError naming the file if it is not a whole CT slice,
    RuntimeError if it needs a package that is missing.
    """
    if member.size > tags.MOST_BYTES:
        raise ValueError(f"{member.path}: {member.size} bytes: not a CT slice")
    if (plain := _plain_head(data.read(member, HEAD_BYTES))) is None:
        return read_slice(data.read(member), member.path)[0], 0
    dataset, start, length = plain
    check_ct(dataset, member.path)
    _check_length(dataset, min(length, member.size - start), member.path)
    return dataset, 0 if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else start


def shape_of(dataset: pydicom.Dataset, name: str) -> tuple[int, int]:
    """Return rows and columns (px). Raises ValueError unless both are 1 to LARGEST."""
    rows, columns = (tags.whole(dataset, keyword, name) for keyword in ("Rows", "Columns"))
    if not (0 < rows <= LARGEST and 0 < columns <= LARGEST):
        raise ValueError(f"{name}: {rows} rows and {columns} columns: not 1 to {LARGEST}")
    return rows, columns


def _check_length(dataset: pydicom.Dataset, n_bytes: int, name: str) -> None:
    rows, columns = shape_of(dataset, name)
    if n_bytes < (expected := 2 * rows * columns):
        raise ValueError(f"{name}: truncated: {n_bytes} bytes of pixels, {expected} expected")
    if n_bytes >= expected + 2 * min(rows, columns) and int(dataset.get("NumberOfFrames") or 1) == 1:
        warnings.warn(LONGER, stacklevel=2)


@disable_value_validation()  # the competition's UIDs are not valid UIDs
def check_ct(dataset: pydicom.Dataset, name: str) -> None:
    """Raise ValueError naming the tag unless this is one CT slice: not a localizer, a report, a multi-frame ..."""
    for keyword, allowed, absent in PLAIN_CT:
        found = tags.optional(dataset, keyword, name)
        found = absent if found is None else found
        if found not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ValueError(f"{name}: {keyword} is {tags.shown(found)}, not {wanted}: not a CT slice")
    said = str(tags.optional(dataset, "RescaleType", name) or "")
    if not (HU.fullmatch(said) or NOT_SAID.fullmatch(said)):
        raise ValueError(f"{name}: RescaleType is {tags.shown(said)}, not HU or US: not a CT slice")
    if "LOCALIZER" in str(tags.optional(dataset, "ImageType", name)):  # PS3.3 C.8.2.1.1.1
        raise ValueError(f"{name}: ImageType says LOCALIZER: not a CT slice")
    bits, high = tags.whole(dataset, "BitsStored", name), tags.optional(dataset, "HighBit", name)
    if not 1 <= bits <= 16 or (high is not None and high != bits - 1):  # PS3.5 8.1.1
        raise ValueError(f"{name}: BitsStored {bits} with HighBit {tags.shown(high)}: not a CT slice")


@disable_value_validation()
def encoding(dataset: pydicom.Dataset, name: str) -> Encoding:
    """Return the encoding of a slice that `check_ct` accepts. Raises ValueError naming the tag that leaves it open.

    MONOCHROME1 changes nothing: HU depend on the rescale alone (PS3.3 C.11.1.1.2); the photometric interpretation
    only tells a display to invert its gray scale, after any window (C.7.6.3.1.2).
    """
    slope, intercept = (_rescale(dataset, keyword, identity, name) for keyword, identity in RESCALE)
    if slope == 0:
        raise ValueError(f"{name}: RescaleSlope is 0")
    if abs(slope) * (1 << 16) + abs(intercept) > MOST_HU:
        raise ValueError(f"{name}: RescaleSlope {slope:g} and RescaleIntercept {intercept:g} do not give HU")
    code = Encoding(int(dataset.BitsStored), bool(dataset.PixelRepresentation), slope, intercept)
    if tags.optional(dataset, "PixelPaddingValue", name) is None:
        return code
    ends = [_stored(dataset, "PixelPaddingValue", code, name)]
    if tags.optional(dataset, "PixelPaddingRangeLimit", name) is not None:
        ends.append(_stored(dataset, "PixelPaddingRangeLimit", code, name))
    hu = [slope * end + intercept for end in ends]
    if min(hu) < TISSUE[1] and max(hu) > TISSUE[0]:  # 0 stands in headers whose pixels are HU
        return code
    return code._replace(padding_low=min(ends), padding_high=max(ends))


def _stored(dataset: pydicom.Dataset, keyword: str, code: Encoding, name: str) -> int:
    found = tags.optional(dataset, keyword, name)
    n = (
        len(found) if isinstance(found, list | MultiValue) else 1
    )  # of several, as some writers give, the first is meant
    if abs(value := tags.numbers(dataset, keyword, n, name)[0]) >= 1 << 16 or value != int(value):
        raise ValueError(f"{name}: {keyword} is {value:g}, which 16 bits can't hold")
    return int(_values(np.int64(value), code))


def _rescale(dataset: pydicom.Dataset, keyword: str, identity: float, name: str) -> float:
    # CT must have both (PS3.3 C.8.2.1); without them, stored values are HU only if the header says so.
    if tags.optional(dataset, keyword, name) is None:
        if HU.fullmatch(str(tags.optional(dataset, "RescaleType", name))):
            return identity
        raise ValueError(f"{name}: no {keyword} in the header, so pixel values cannot be converted to HU")
    return float(tags.numbers(dataset, keyword, 1, name)[0])


@lru_cache(maxsize=64)
def hu_table(code: Encoding) -> np.ndarray:
    """Return the HU of every 16-bit word that a slice can store: (65536,) int16, or float32 if int16 cannot hold them.

    HU = slope * stored + intercept (PS3.3 C.11.1.1.2); bits above BitsStored are ignored; padding (C.7.5.1.1.2)
    becomes AIR.
    """
    stored = _values(np.arange(1 << 16), code)
    hu = code.slope * stored + code.intercept
    if _has_wrong_intercept(code):
        hu = code.slope * ((stored + 1000) % 4096) - 1000
    elif code.bits == 16 and not code.signed and hu.max() >= 1 << 15:  # which int16 holds: else stored with an offset
        # Beyond any HU: a negative value, though the header denies its sign.
        hu -= np.where((stored >= 1 << 15) & (hu > HIGHEST), code.slope * (1 << 16), 0)
    hu[((code.padding_low <= stored) & (stored <= code.padding_high)) | (hu <= PADDING_BELOW)] = AIR
    whole = np.array_equal(hu, np.rint(hu)) and np.abs(hu).max() < 1 << 15
    hu = hu.astype(np.int16 if whole else np.float32)
    hu.flags.writeable = False
    return hu


def _values(words: np.ndarray, code: Encoding) -> np.ndarray:
    """Return the values that 16-bit `words` encode; padding is a word too, as some files write -2000 as 63536."""
    values = words & ((1 << code.bits) - 1)
    return np.where(values >= 1 << (code.bits - 1), values - (1 << code.bits), values) if code.signed else values


def _has_wrong_intercept(code: Encoding) -> bool:
    # 123 slices of the competition are 12-bit and unsigned, shifted by 1000, wrapped at 4096, with intercept 0 or 1.
    return code.bits == 12 and not code.signed and code.intercept > -100


def read_slice(content: bytes, name: str) -> tuple[pydicom.Dataset, np.ndarray]:
    """Return the header in `content` and the stored values as raw 16-bit words, uint16 (rows, columns).

    Uncompressed ones share the memory of `content`. Raises ValueError naming the file if it is truncated, or not one
    CT slice, RuntimeError if it needs a package that is missing.
    """
    if len(content) > tags.MOST_BYTES:
        raise ValueError(f"{name}: {len(content)} bytes: not a CT slice")
    if (plain := _plain_head(content)) is None:
        dataset = tags.parse(content, name)
        check_ct(dataset, name)
        return dataset, stored_words(dataset, dataset, name)
    dataset, start, length = plain
    check_ct(dataset, name)
    return dataset, _native(memoryview(content)[start:][:length], dataset, name)


def stored_words(dataset: pydicom.Dataset, source: pydicom.Dataset, name: str, frame: int = 0) -> np.ndarray:
    """Return the pixels of a slice with the header `dataset`, which are the `frame` of those in `source`.

    As raw 16-bit words, uint16 (rows, columns). Raises the errors of `read_slice`.
    """
    element = source.get_item("PixelData")
    if element is None or not isinstance(element.value, bytes) or not element.value:
        raise ValueError(f"{name}: no PixelData: not an image, or cut short")
    is_native = tags.tag(source.file_meta, "TransferSyntaxUID", name) in UncompressedTransferSyntaxes
    if is_native == decoding.is_encapsulated(element.value, element.length, is_native):
        raise ValueError(f"{name}: PixelData is not as its transfer syntax says")
    shape = shape_of(dataset, name)
    if not is_native:
        return decoding.words(dataset, decoding.frame(source, frame, shape, name), shape, name)
    return _native(memoryview(element.value)[2 * frame * math.prod(shape) :], source, name)


def _native(pixels: memoryview, dataset: pydicom.Dataset, name: str) -> np.ndarray:
    _check_length(dataset, len(pixels), name)
    shape, is_big = shape_of(dataset, name), dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    return np.frombuffer(pixels, ">u2" if is_big else "<u2", math.prod(shape)).reshape(shape)


def read_words(content: bytes, name: str, plain: Plain | None = None) -> tuple[np.ndarray, Encoding]:
    """Return the stored words of the slice in `content`, uint16 (rows, columns), and their encoding.

    With `plain` the header is not parsed again, which saves a quarter of the time of caching.
    """
    if plain is not None and plain.start:
        words = np.frombuffer(content, "<u2", plain.rows * plain.columns, plain.start)
        return words.reshape(plain.rows, plain.columns), plain.code
    with tags.named(name):
        dataset, words = read_slice(content, name)
        return words, encoding(dataset, name)


def read_hu(path: str | Path) -> np.ndarray:
    """Return the slice in the file `path` in HU: int16, or float32 where int16 cannot hold it, (rows, columns)."""
    with Path(path).open("rb") as file:
        words, code = read_words(file.read(tags.MOST_BYTES + 1), str(path))
    return hu_table(code)[words]
