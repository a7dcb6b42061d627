"""DICOM elements, and the size of a compressed image, read from untrusted files with limits.

A file is parsed no further than a CT slice can need, and each value is checked as it is read.
DICOM PS3.5: https://www.dicomstandard.org/current; JPEG: T.81 B.2, B.3; JPEG-LS: T.87 C.2; JPEG 2000: T.800 A.5.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from ich_kaggle.common import cli

MOST_BYTES = 1 << 25  # of a file, inflated: four times the pixels of the largest slice
MOST_READS = 50_000  # of values and their tags while a header is parsed; CT has some hundreds
LONGEST = 1 << 10  # bytes of a value that is read
MOST_TILES = 1024  # of a JPEG 2000 image

SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xDE, 0xF7}  # JPEG markers that give the size: SOF, DHP, SOF55
SCAN = 0xDA  # the JPEG marker before the pixels
CHARACTER_SET = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")  # its tag, in either byte order
DEFLATED = DeflatedExplicitVRLittleEndian.encode()
INFLATED = ExplicitVRLittleEndian.encode().ljust(len(DEFLATED), b"\0")


class _Stream(io.BytesIO):
    """A file of which pydicom parses no more than the header of a slice can hold, and inflates nothing.

    Raises ValueError for more than MOST_READS; a character set counts per byte, as each name in one takes long.
    """

    n_reads = 0

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        if size == -1:  # pydicom reads only deflated content to its end, and `_inflated` left none
            raise ValueError("deflated, but not where the length of its meta information says")
        head = self.getbuffer()[max(0, at - 12) : at].tobytes()
        self.n_reads += size if any(tag in head for tag in CHARACTER_SET) else 1
        if self.n_reads > MOST_READS:
            raise ValueError("its header has no end")
        return super().read(size)


def _inflated(content: bytes, name: str) -> bytes:
    """Return a deflated file as the Explicit VR Little Endian file that was deflated (PS3.5 A.5), others unchanged."""
    start = 144 + int.from_bytes(content[140:144], "little")  # after the group length, the first element: PS3.10 7.1
    meta = content[:start]
    if DEFLATED not in meta:
        return content
    unpacker = zlib.decompressobj(-15)
    try:
        body = unpacker.decompress(content[start:], MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"{name}: can't be inflated ({error}): get it again") from error
    if not unpacker.eof:
        raise ValueError(f"{name}: truncated, or more than {MOST_BYTES} bytes when inflated")
    return meta.replace(DEFLATED, INFLATED) + body


@contextlib.contextmanager
def reading(name: str, fault: str) -> Iterator[None]:
    """Turn any error of pydicom, which raises nearly every type for damaged bytes, into ValueError `NAME: FAULT (...)`.

    MemoryError passes.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name}: {fault} ({shown(error)})") from error


def shown(value) -> str:
    """Return a value of a file as a short text that is safe to print."""
    return cli.printable(str(value), 100)


def parse(content: bytes, name: str, **options) -> pydicom.Dataset:
    """Return the data set in `content`, parsed with `options` of pydicom. Raises ValueError if it is not DICOM."""
    content = _inflated(content, name)
    with reading(name, "not a readable DICOM file, get it again"):
        return pydicom.dcmread(_Stream(content), **options)


def optional(dataset: pydicom.Dataset, keyword: str, name: str):
    """Return the value of a tag, None where it is missing or empty. Raises ValueError naming a damaged tag."""
    with reading(name, f"{keyword} can't be read"):
        if (element := dataset.get_item(keyword)) is None:
            return None
        if element.VR == "SQ" or (isinstance(element, RawDataElement) and len(element.value or b"") > LONGEST):
            raise ValueError("a sequence, or too long")
        value = dataset.get(keyword)
    return None if value == "" else value


def tag(dataset: pydicom.Dataset, keyword: str, name: str):
    """Return the value of a tag. Raises ValueError naming a tag that is missing or empty."""
    if (value := optional(dataset, keyword, name)) is None:
        raise ValueError(f"{name}: no {keyword} in the header")
    return value


def whole(dataset: pydicom.Dataset, keyword: str, name: str) -> int:
    """Return the value of a tag that holds a whole number. Raises ValueError naming a tag that does not."""
    if not isinstance(value := tag(dataset, keyword, name), int):
        raise ValueError(f"{name}: {keyword} is {shown(value)}, not a whole number")
    return int(value)


def numbers(dataset: pydicom.Dataset, keyword: str, n: int, name: str) -> np.ndarray:
    """Return the value of a tag that holds `n` finite numbers. Raises ValueError naming a tag that does not."""
    value = tag(dataset, keyword, name)
    try:
        found = np.array(value, float).reshape(n)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {keyword} is {shown(value)}, not {n} numbers") from error
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: {keyword} is {shown(value)}, not {n} numbers")
    return found


def frame_shape(frame: bytes) -> tuple[int, int, int]:
    """Return rows and columns (px) and components of a JPEG, JPEG-LS or JPEG 2000 image, which is not decoded.

    Raises ValueError if it does not give them, or for more than MOST_TILES tiles.
    """
    try:
        return _jpeg_2000(frame) if frame[:4] == b"\xff\x4f\xff\x51" else _jpeg(frame)
    except (struct.error, IndexError, ZeroDivisionError) as error:
        raise ValueError("it ends before its size") from error


def _jpeg_2000(frame: bytes) -> tuple[int, int, int]:
    right, bottom, left, top, width, height, *_, components = struct.unpack_from(">8IH", frame, 8)
    if -(-right // width) * -(-bottom // height) > MOST_TILES:
        raise ValueError(f"tiles of {width} x {height} px")
    return bottom - top, right - left, components


def _jpeg(frame: bytes) -> tuple[int, int, int]:
    if frame[:2] != b"\xff\xd8":
        raise ValueError("it is neither JPEG nor JPEG 2000")
    at = 2
    while frame[at] == 0xFF and frame[at + 1] != SCAN:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in SIZES:
            return struct.unpack_from(">HHB", frame, at + 5)
        at += 1 if marker == 0xFF else 2 + length  # 0xFF may pad a marker
    raise ValueError("it does not give its size")
