"""The pixels of one CT slice in DICOM, in Hounsfield units.

Uncompressed slices (implicit, explicit, big endian, deflated) and RLE need no other package; JPEG lossless, JPEG-LS and
JPEG 2000 go through pydicom's plug-ins, from the extra `codecs`. DICOM: https://www.dicomstandard.org/current
"""

import io
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.encaps import get_frame
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    UncompressedTransferSyntaxes,
)

from ich_kaggle.common import paths
from ich_kaggle.dicom import codestreams, tags

AIR = -1024  # HU: what pixels outside the scanner's field of view become
PADDING_BELOW = -2000  # HU: no tissue lies here; the competition's padding is -2048 and -3024 HU
HEAD_BYTES = 1 << 13  # more than the headers of plain CT take
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
LARGEST = 2048  # px: rows or columns; scanners make 512, some 1024
MOST_RLE = 6 << 20  # bytes: they unfold 64 times
MOST_HU = 1 << 24  # float32 holds every whole number up to here
UNDEFINED = 0xFFFFFFFF  # the length of what ends with a mark of its own, PS3.5 7.1.1

# What one CT slice has (PS3.3 C.8.2.1): keyword, the values allowed, what it is where the tag is absent.
PLAIN_CT = (
    ("Modality", ("CT",), "absent"),
    ("SamplesPerPixel", (1,), "absent"),
    ("NumberOfFrames", (1,), 1),
    ("BitsAllocated", (16,), "absent"),
    ("PixelRepresentation", (0, 1), "absent"),
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


def _plain_head(content: bytes) -> tuple[pydicom.Dataset, int, int] | None:
    """Return the header, and where its pixels begin and how many bytes they have, of a slice stored plainly.

    None if it is stored otherwise, or its pixels begin beyond HEAD_BYTES.
    """
    content = content[:HEAD_BYTES]
    if tags.DEFLATED in content:
        return None
    stream = io.BytesIO(content)
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=True)
        syntax, at = dataset.file_meta.get("TransferSyntaxUID"), stream.tell()
    except Exception:  # what it is comes out when the whole file is parsed
        return None
    if syntax not in PLAIN:
        return None
    order = "big" if syntax == ExplicitVRBigEndian else "little"
    group, element = (int.from_bytes(content[i : i + 2], order) for i in (at, at + 2))
    start = at + (8 if syntax == ImplicitVRLittleEndian else 12)  # PS3.5 7.1.2 and 7.1.3
    length = int.from_bytes(content[start - 4 : start], order)
    if (group, element) != (0x7FE0, 0x0010) or start > len(content) or length == UNDEFINED:
        return None
    return dataset, start, length


def read_head(data: paths.Data, member: paths.Member) -> tuple[pydicom.Dataset, int]:
    """Return the header of a slice and the `start` of its `Plain`, reading no more of the file than that takes.

    Compressed pixels are decoded once. Raises ValueError naming the file if it is not DICOM, or ends before its pixels
    do, RuntimeError if it takes a package that is missing.
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
    """Return rows and columns (px). Raises ValueError for more, or fewer, than a CT slice can have."""
    rows, columns = (tags.whole(dataset, keyword, name) for keyword in ("Rows", "Columns"))
    if not (0 < rows <= LARGEST and 0 < columns <= LARGEST):
        raise ValueError(f"{name}: {rows} rows and {columns} columns: not 1 to {LARGEST}")
    return rows, columns


def _check_length(dataset: pydicom.Dataset, n_bytes: int, name: str) -> None:
    rows, columns = shape_of(dataset, name)
    if n_bytes < (expected := 2 * rows * columns):
        raise ValueError(f"{name}: truncated: {n_bytes} bytes of pixels, {expected} expected")


@disable_value_validation()  # the competition's UIDs are none
def check_ct(dataset: pydicom.Dataset, name: str) -> None:
    """Raise ValueError naming the tag if this is not one plain CT slice: a localizer, a report, a multi-frame ..."""
    for keyword, allowed, absent in PLAIN_CT:
        found = tags.optional(dataset, keyword, name)
        found = absent if found is None else found
        if found not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ValueError(f"{name}: {keyword} is {tags.shown(found)}, not {wanted}: not a CT slice")
    if "LOCALIZER" in str(tags.optional(dataset, "ImageType", name)):  # PS3.3 C.8.2.1.1.1
        raise ValueError(f"{name}: ImageType says LOCALIZER: not a CT slice")
    bits, high = tags.whole(dataset, "BitsStored", name), tags.optional(dataset, "HighBit", name)
    if not 1 <= bits <= 16 or (high is not None and high != bits - 1):  # PS3.5 8.1.1
        raise ValueError(f"{name}: BitsStored {bits} with HighBit {tags.shown(high)}: not a CT slice")


@disable_value_validation()
def encoding(dataset: pydicom.Dataset, name: str) -> Encoding:
    """Return how a slice that was read here stores HU. Raises ValueError naming the tag if it does not say so.

    MONOCHROME1 changes nothing here: HU come from the rescale alone (PS3.3 C.11.1.1.2); the photometric
    interpretation only tells a display to turn its gray scale round, after any window (C.7.6.3.1.2).
    """
    slope, intercept = (_rescale(dataset, keyword, identity, name) for keyword, identity in RESCALE)
    if slope == 0:
        raise ValueError(f"{name}: RescaleSlope is 0")
    if abs(slope) * (1 << 16) + abs(intercept) > MOST_HU:
        raise ValueError(f"{name}: RescaleSlope {slope:g} and RescaleIntercept {intercept:g} give no HU")
    code = Encoding(int(dataset.BitsStored), bool(dataset.PixelRepresentation), slope, intercept)
    if tags.optional(dataset, "PixelPaddingValue", name) is None:
        return code
    ends = [_stored(dataset, "PixelPaddingValue", code, name)]
    if tags.optional(dataset, "PixelPaddingRangeLimit", name) is not None:
        ends.append(_stored(dataset, "PixelPaddingRangeLimit", code, name))
    return code._replace(padding_low=min(ends), padding_high=max(ends))


def _stored(dataset: pydicom.Dataset, keyword: str, code: Encoding, name: str) -> int:
    if abs(value := tags.numbers(dataset, keyword, 1, name)[0]) >= 1 << 16 or value != int(value):
        raise ValueError(f"{name}: {keyword} is {value:g}, which 16 bits can't hold")
    return int(_values(np.int64(value), code))


RESCALE = (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))


def _rescale(dataset: pydicom.Dataset, keyword: str, identity: float, name: str) -> float:
    # CT must have both (PS3.3 C.8.2.1); without, stored values are HU only where the header says so.
    if tags.optional(dataset, keyword, name) is None:
        if tags.optional(dataset, "RescaleType", name) == "HU":
            return identity
        raise ValueError(f"{name}: no {keyword} in the header, nor RescaleType HU: these are not known to be HU")
    return float(tags.numbers(dataset, keyword, 1, name)[0])


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
    if len(content) > tags.MOST_BYTES:
        raise ValueError(f"{name}: {len(content)} bytes: not a CT slice")
    plain = _plain_head(content)
    dataset = tags.parse(content, name) if plain is None else plain[0]
    check_ct(dataset, name)
    syntax = tags.tag(dataset.file_meta, "TransferSyntaxUID", name)
    if plain is None and syntax not in UncompressedTransferSyntaxes:
        return dataset, _decoded(dataset, name)
    pixels = memoryview(content)[plain[1] :][: plain[2]] if plain else _pixels(dataset, name)
    _check_length(dataset, len(pixels), name)
    shape = shape_of(dataset, name)
    words = np.frombuffer(pixels, ">u2" if syntax == ExplicitVRBigEndian else "<u2", shape[0] * shape[1])
    return dataset, words.reshape(shape)


def _pixels(dataset: pydicom.Dataset, name: str, *, encapsulated: bool = False) -> bytes:
    element = dataset.get_item("PixelData")
    if element is None or not element.value:
        raise ValueError(f"{name}: no PixelData")
    if not isinstance(element.value, bytes) or (element.length == UNDEFINED) != encapsulated:
        raise ValueError(f"{name}: PixelData is not as its transfer syntax says")
    return element.value


def _decoded(dataset: pydicom.Dataset, name: str) -> np.ndarray:
    _check_compressed(dataset, name)
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        dataset.pixel_array_options(decoding_plugin="pydicom")  # that of pylibjpeg panics
    try:
        words = dataset.pixel_array
    except Exception as error:
        if "missing dependencies" in str(error):
            syntax = dataset.file_meta.TransferSyntaxUID.name
            raise RuntimeError(f"{name}: {syntax} takes more packages: pip install 'ich_kaggle[codecs]'") from error
        raise tags.broken(error, name, "the pixels can't be decoded") from error
    if words.shape != shape_of(dataset, name) or words.itemsize != 2:
        raise ValueError(f"{name}: the compressed pixels are {words.dtype} {words.shape}")
    return np.ascontiguousarray(words).view(np.uint16)


def _check_compressed(dataset: pydicom.Dataset, name: str) -> None:
    """Raise ValueError if decoding could take far more memory than the pixels of the header do."""
    pixels, (rows, columns) = _pixels(dataset, name, encapsulated=True), shape_of(dataset, name)
    is_rle = dataset.file_meta.TransferSyntaxUID == RLELossless
    if len(pixels) > min(HEAD_BYTES + 4 * rows * columns, MOST_RLE if is_rle else tags.MOST_BYTES):
        raise ValueError(f"{name}: {len(pixels)} bytes of compressed pixels for {rows} x {columns}")
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # there is one frame, where it begins
        dataset.pop(keyword, None)
    try:
        frame = get_frame(pixels, 0, number_of_frames=1)
        found = (rows, columns, 1) if is_rle else codestreams.shape(frame)
    except Exception as error:
        raise tags.broken(error, name, "the pixels can't be decoded") from error
    if found != (rows, columns, 1):
        raise ValueError(f"{name}: the compressed pixels are {found}, not {(rows, columns, 1)}")


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
    with path.open("rb") as file:
        words, code = read_words(file.read(tags.MOST_BYTES + 1), str(path))
    return hu_table(code)[words]
