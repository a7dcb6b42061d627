"""Kaggle's zip read in place: its directory once, then any member by its offset, from any process.

ZIP format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import struct
import zipfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

LOCAL_HEADER = 30  # bytes before the name in a member's own header, APPNOTE 4.3.7
BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)  # of zipfile
SLACK = 1024  # bytes that deflate may take over what it holds, in a start of a member


class Member(NamedTuple):
    """Where the bytes of one file are."""

    path: str  # below the data folder, or the name inside the zip
    size: int  # bytes
    offset: int = 0  # byte of its header in the zip; 0 outside one
    packed: int = 0  # bytes it takes in the zip; 0 outside one
    stamp: int = 0  # tells other content from the same: its CRC-32 in the zip, the nanosecond of its change outside one


@lru_cache
def _zlib():
    """Return ISA-L's zlib, or the standard library's where it is missing, as in Kaggle's image."""
    try:
        from isal import isal_zlib as zlib
    except ImportError:
        import zlib
    return zlib


def crc32(content: bytes) -> int:
    return _zlib().crc32(content)


def directory(path: Path) -> dict[str, Member]:
    """Return every member of the zip `path` by name. Raises ValueError if it is not a readable zip."""
    status = path.stat()
    return _directory(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _directory(path: Path, _changed: int, size: int) -> dict[str, Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except BROKEN as error:
        raise ValueError(f"{path}: not a readable zip ({error}): download it again") from error
    found = {i.filename: Member(i.filename, i.file_size, i.header_offset, i.compress_size, i.CRC) for i in infos}
    if len(found) < len(infos):
        twice = Counter(info.filename for info in infos).most_common(1)[0][0]
        raise ValueError(f"{path}: {twice} is in it twice: download it again")
    if beyond := next((member for member in found.values() if not 0 <= member.offset <= size - member.packed), None):
        raise ValueError(f"{path}: {beyond.path} lies beyond its end: download it again")
    return found


def read(path: Path, member: Member, limit: int = -1) -> bytes:
    """Return a member of the zip `path`, or its first `limit` bytes.

    Raises ValueError naming the member if it is not where it should be, or damaged.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(member.offset)
        head = file.read(LOCAL_HEADER)
        if head[:4] != b"PK\3\4":
            again = "run python -m ich_kaggle.slices --overwrite"
            raise ValueError(f"{path}: {member.path} is not at byte {member.offset}: {again}")
        file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
        packed = file.read(member.packed if limit < 0 else min(member.packed, limit + SLACK))
    zlib, is_stored = _zlib(), head[8:10] == b"\0\0"
    try:
        if limit >= 0:
            return packed[:limit] if is_stored else zlib.decompressobj(-15).decompress(packed, limit)
        content = packed if is_stored else zlib.decompressobj(-15).decompress(packed, member.size + 1)
    except zlib.error as error:
        raise ValueError(f"{path}: {member.path} can't be inflated ({error}): get the zip again") from error
    if len(content) != member.size or crc32(content) != member.stamp:
        if directory(path).get(member.path) != member:
            again = "run python -m ich_kaggle.slices --overwrite"
            raise ValueError(f"{path}: {member.path} has changed since it was scanned: {again}")
        raise ValueError(f"{path}: {member.path} is not what its checksum says: get the zip again")
    return content


def check(file: Path | BinaryIO) -> None:
    """Raise ValueError unless every member of a zip, as torch.save writes one, is what its checksum says."""
    try:
        with zipfile.ZipFile(file) as content:
            damaged = content.testzip()
    except BROKEN as error:
        raise ValueError(f"not a readable zip ({error})") from error
    if damaged is not None:
        raise ValueError(f"{damaged} is not what its checksum says")
    if not isinstance(file, Path):
        file.seek(0)
