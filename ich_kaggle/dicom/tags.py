"""The data elements of a DICOM file: parsed no further than a CT slice can need, each value checked as it is looked at.

DICOM PS3.5: https://www.dicomstandard.org/current
"""

import io
import zlib

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from ich_kaggle.common import cli

MOST_BYTES = 1 << 25  # of a file, inflated: four times the pixels of the largest slice
MOST_READS = 50_000  # of values and what stands before them, while a header is parsed; CT has some hundreds
LONGEST = 1 << 10  # bytes of a value that is looked at

CHARACTER_SET = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")  # its tag, in either byte order
DEFLATED = DeflatedExplicitVRLittleEndian.encode()
INFLATED = ExplicitVRLittleEndian.encode().ljust(len(DEFLATED), b"\0")


class _Stream(io.BytesIO):
    """A file of which no more is parsed than the header of a slice can hold; and pydicom inflates none of it.

    Raises ValueError for more than MOST_READS; a character set counts by the byte, for each name in one takes long.
    """

    n_reads = 0

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        if size == -1:  # only what is deflated is read to its end: `_inflated` would have done it
            raise ValueError("deflated, but the length of its meta information does not say where")
        head = self.getbuffer()[max(0, at - 12) : at].tobytes()
        self.n_reads += size if any(tag in head for tag in CHARACTER_SET) else 1
        if self.n_reads > MOST_READS:
            raise ValueError("its header has no end")
        return super().read(size)


def _inflated(content: bytes, name: str) -> bytes:
    """Return a deflated file as the Explicit VR Little Endian one that was deflated (PS3.5 A.5), others as they are."""
    start = 144 + int.from_bytes(content[140:144], "little")  # behind the group length, which comes first: PS3.10 7.1
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


def broken(error: Exception, name: str, what: str) -> ValueError:
    """Return what to raise for an `error` of pydicom, which meets damaged bytes with errors of nearly every type."""
    if isinstance(error, MemoryError):
        raise error
    return ValueError(f"{name}: {what} ({shown(error)})")


def shown(value) -> str:
    """Return what a file says as a few words that can be printed."""
    return cli.printable(str(value), 100)


def parse(content: bytes, name: str, **how) -> pydicom.Dataset:
    """Return the data set in `content`, `how` as pydicom.dcmread. Raises ValueError naming a file that is not DICOM."""
    content = _inflated(content, name)
    try:
        return pydicom.dcmread(_Stream(content), **how)
    except Exception as error:
        raise broken(error, name, "not a readable DICOM file, get it again") from error


def optional(dataset: pydicom.Dataset, keyword: str, name: str):
    """Return the value of a tag, None where it is missing or empty. Raises ValueError naming one that is damaged."""
    try:
        if (element := dataset.get_item(keyword)) is None:
            return None
        if element.VR == "SQ" or (isinstance(element, RawDataElement) and len(element.value or b"") > LONGEST):
            raise ValueError("a sequence, or too long")
        value = dataset.get(keyword)
    except Exception as error:
        raise broken(error, name, f"{keyword} can't be read") from error
    return None if value == "" else value


def tag(dataset: pydicom.Dataset, keyword: str, name: str):
    """Return the value of a tag. Raises ValueError naming one that is missing or empty."""
    if (value := optional(dataset, keyword, name)) is None:
        raise ValueError(f"{name}: no {keyword} in the header")
    return value


def whole(dataset: pydicom.Dataset, keyword: str, name: str) -> int:
    """Return the whole number of a tag. Raises ValueError naming one that has none."""
    if not isinstance(value := tag(dataset, keyword, name), int):
        raise ValueError(f"{name}: {keyword} is {shown(value)}, not a whole number")
    return int(value)


def numbers(dataset: pydicom.Dataset, keyword: str, n: int, name: str) -> np.ndarray:
    """Return the `n` finite numbers of a tag. Raises ValueError naming one that has others."""
    value = tag(dataset, keyword, name)
    try:
        found = np.array(value, float).reshape(n)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {keyword} is {shown(value)}, not {n} numbers") from error
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: {keyword} is {shown(value)}, not {n} numbers")
    return found
