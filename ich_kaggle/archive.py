"""Kaggle's zip read in place: its directory once, then any member by its offset, from any process.

ZIP format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import zipfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

LOCAL_HEADER = 30  # bytes before the name in a member's own header, APPNOTE 4.3.7
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
def _directory(path: Path, _changed: int, _size: int) -> dict[str, Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename: Member(info.filename, info.file_size, info.header_offset, info.compress_size, info.CRC)
                for info in archive.infolist()
            }
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not a readable zip ({error}): download it again") from error


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
        content = packed if is_stored else zlib.decompress(packed, -15, member.size)
    except zlib.error as error:
        raise ValueError(f"{path}: {member.path} can't be inflated ({error}): get the zip again") from error
    if crc32(content) != member.stamp:
        raise ValueError(f"{path}: {member.path} is not what its checksum says: get the zip again")
    return content
