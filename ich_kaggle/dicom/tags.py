"""DICOM elements, read from untrusted files with limits.

A file is parsed no further than a CT slice can need, and each value is checked as it is read.
DICOM PS3.5 and PS3.10: https://www.dicomstandard.org/current
"""

import contextlib
import io
import logging
import re
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ich_kaggle.common import cli

MOST_BYTES = 1 << 25  # of a file, inflated: four times the pixels of the largest slice
MOST_READS = 50_000  # of values and their tags while a header is parsed; CT has some hundreds
LONGEST = 1 << 10  # bytes of a value that is read
PREAMBLE = 132  # bytes before the header, the last four of them DICM, PS3.10 7.1
UNDEFINED = 0xFFFFFFFF  # the length of an element that ends with a delimiter, PS3.5 7.1.1
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"

CHARACTER_SET = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")  # its tag, in either byte order
DEFLATED = DeflatedExplicitVRLittleEndian.encode()
INFLATED = ExplicitVRLittleEndian.encode().ljust(len(DEFLATED), b"\0")
UNENDED = "truncated: cut short after its last fragment of pixels"
CUT = "truncated: cut short, get it again"
# The first element of a file without a preamble: of the meta information, or of a data set alone.
BARE_META = re.compile(rb"\x02\0[\0-\x10]\0[A-Z]{2}")
BARE = (
    (re.compile(rb"\x08\0[\0-\x18]\0[A-Z]{2}"), ExplicitVRLittleEndian),
    (re.compile(rb"\0\x08\0[\0-\x18][A-Z]{2}"), ExplicitVRBigEndian),
    (re.compile(rb"\x08\0[\0-\x18]\0.[\0-\3]\0\0", re.DOTALL), ImplicitVRLittleEndian),
)

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it logs, it also warns of or raises


class _Stream(io.BytesIO):
    """A file of which pydicom parses no more than the header of a slice can hold, and inflates nothing.

    Raises ValueError for more than `most` reads; a character set counts per byte, as each name in one takes long.
    `is_cut` tells whether the file ends within the tag or the length of an element.
    """

    def __init__(self, content: bytes, most: int):
        super().__init__(content)
        self.most, self.n_reads, self.is_cut = most, 0, False

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        if size == -1:  # pydicom reads only deflated content to its end, and `_inflated` left none
            raise ValueError("deflated, but not where the length of its meta information says")
        head = self.getbuffer()[max(0, at - 12) : at].tobytes()
        self.n_reads += size if any(tag in head for tag in CHARACTER_SET) else 1
        if self.n_reads > self.most:
            raise ValueError("its header has no end")
        found = super().read(size)
        self.is_cut |= len(found) < size <= 8 and (found != b"" or size < 8)
        return found


def is_dicom(head: bytes) -> bool:
    """Return whether a file that begins with `head`, PREAMBLE bytes, is DICOM, with a preamble or without."""
    bare = any(form.match(head) for form in (BARE_META, *(form for form, _ in BARE)))
    return head[PREAMBLE - 4 : PREAMBLE] == b"DICM" or head[:4] == b"DICM" or bare


def _part_10(content: bytes) -> bytes:
    """Return `content` with the preamble and the transfer syntax that it lacks (PS3.10 7.1)."""
    if content[PREAMBLE - 4 : PREAMBLE] == b"DICM":
        return _in_order(content)
    if content[:4] == b"DICM":
        return bytes(PREAMBLE - 4) + content
    if BARE_META.match(content):
        return bytes(PREAMBLE - 4) + b"DICM" + content
    if syntax := next((syntax for form, syntax in BARE if form.match(content)), None):
        value = syntax.encode() + b"\0" * (len(syntax) % 2)
        head = b"\2\0\x10\0UI" + len(value).to_bytes(2, "little") + value
        return bytes(PREAMBLE - 4) + b"DICM" + head + content
    return content


def _in_order(content: bytes) -> bytes:
    """Return `content` with the byte order in its meta information that its first element has."""
    start = 144 + int.from_bytes(content[140:144], "little")
    said, stored = ExplicitVRBigEndian.encode() + b"\0", ExplicitVRLittleEndian.encode() + b"\0"
    if content[start : start + 2] == b"\0\x08":
        said, stored = stored, said
    elif content[start : start + 2] != b"\x08\0":
        return content
    return content[:start].replace(said, stored) + content[start:] if said in content[:start] else content


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


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Turn errors inside that are no line on the file `name`, wherever damaged bytes met pydicom, into one."""
    try:
        yield
    except Exception as error:
        if type(error) in (MemoryError, RuntimeError) or (type(error) is ValueError and str(error).startswith(name)):
            raise
        raise ValueError(f"{name}: damaged ({shown(error)})") from error


@contextlib.contextmanager
def warned(kinds: list[str]) -> Iterator[None]:
    """Append each kind of warning inside to `kinds`, once; none is printed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    kinds += dict.fromkeys(shown(re.sub(r"[\d.]+|'[^']*'", "...", str(one.message))) for one in caught)


def shown(value, longest: int = 100) -> str:
    """Return a value of a file as a short text that is safe to print."""
    return cli.printable(str(value), longest)


def parse(content: bytes, name: str, *, most_reads: int | None = None, **options) -> pydicom.Dataset:
    """Return the data set in `content`, parsed with `options` of pydicom. Raises ValueError if it is not DICOM.

    A file without a preamble or meta information is read, and one whose last sequence lacks its end.
    """
    content = _inflated(_part_10(content), name)
    most_reads = most_reads or MOST_READS
    stream = _Stream(content, most_reads)
    try:
        with reading(name, "not a readable DICOM file, get it again"):
            dataset = pydicom.dcmread(stream, **options)
            if not len(dataset):  # pydicom drops everything if a sequence lacks its end
                warnings.warn(UNENDED, stacklevel=2)
                stream = _Stream(content + SEQUENCE_END, most_reads)
                dataset = pydicom.dcmread(stream, **options)
    except ValueError as error:
        if stream.is_cut:
            raise ValueError(f"{name}: {CUT}") from error
        raise
    if not len(dataset) or stream.is_cut or _is_cut(dataset):
        raise ValueError(f"{name}: {CUT}")
    return dataset


def _is_cut(dataset: pydicom.Dataset) -> bool:
    """Return whether an element other than the pixels has fewer bytes than its length says."""
    elements = (dataset.get_item(tag) for tag in sorted(dataset.keys()) if tag.group != 0x7FE0)
    raw = (one for one in elements if isinstance(one, RawDataElement) and one.length != UNDEFINED)
    return any(len(one.value or b"") < one.length for one in raw)


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
