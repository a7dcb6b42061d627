"""Zips read in place: the directory once, then any member by its offset, from any process.

A zip from elsewhere is checked before any of it is read, and nothing of it is ever written under a name of its own.
ZIP format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import stat
import struct
import zipfile
from collections import Counter
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import BinaryIO, NamedTuple

from ich_kaggle.common import cli, storage

LOCAL_HEADER = 30  # bytes before the name in a member's own header, APPNOTE 4.3.7
BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)  # raised by zipfile
SLACK = 1024  # bytes by which deflated content may exceed the original
MOST_TOTAL = 1 << 36  # bytes of all members, inflated


class Member(NamedTuple):
    """The place of the bytes of one file, in a folder or in a zip."""

    path: str  # below the data folder, or the name inside the zip
    size: int  # bytes
    offset: int = 0  # byte of its header in the zip; 0 in a folder
    packed: int = 0  # bytes in the zip; 0 in a folder
    stamp: int = 0  # changes with the content: the CRC-32 in a zip, the time of the last change (ns) in a folder


@lru_cache
def _zlib():
    """Return ISA-L's zlib, or the standard library's where ISA-L is missing, as in Kaggle's image."""
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
    members = [_member(info) for info in _infos(path) if not info.is_dir()]
    if len(found := {member.path: member for member in members}) < len(members):
        twice = Counter(member.path for member in members).most_common(1)[0][0]
        raise ValueError(f"{path}: {twice} is in it twice: download it again")
    if beyond := next((member for member in members if not 0 <= member.offset <= size - member.packed), None):
        raise ValueError(f"{path}: {beyond.path} lies beyond its end: download it again")
    return found


def _infos(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except BROKEN as error:
        raise ValueError(f"{path}: not a readable zip ({error}): download it again") from error


def _member(info: zipfile.ZipInfo) -> Member:
    return Member(info.filename, info.file_size, info.header_offset, info.compress_size, info.CRC)


def read(path: Path, member: Member, limit: int = -1) -> bytes:
    """Return a member of the zip `path`, or its first `limit` bytes.

    Raises ValueError naming a member that is damaged, or is not at its offset.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(member.offset)
        head = file.read(LOCAL_HEADER)
        if head[:4] != b"PK\3\4":
            raise ValueError(f"{path}: {member.path} is not at byte {member.offset}: {storage.SCAN_AGAIN}")
        file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
        wanted = member.packed if limit < 0 else min(member.packed, limit + SLACK)
        packed = file.read(wanted)
        while len(packed) < wanted and (more := file.read(wanted - len(packed))):  # one call reads up to 2 GB
            packed += more
    zlib, is_stored = _zlib(), head[8:10] == b"\0\0"
    try:
        if limit >= 0:
            return packed[:limit] if is_stored else zlib.decompressobj(-15).decompress(packed, limit)
        content = packed if is_stored else zlib.decompressobj(-15).decompress(packed, member.size + 1)
    except zlib.error as error:
        raise ValueError(f"{path}: {member.path} can't be inflated ({error}): get the zip again") from error
    if len(content) != member.size or crc32(content) != member.stamp:
        if directory(path).get(member.path) != member:
            raise ValueError(f"{path}: {member.path} has changed since it was scanned: {storage.SCAN_AGAIN}")
        raise ValueError(f"{path}: {member.path} is not what its checksum says: get the zip again")
    return content


def check(file: Path | BinaryIO) -> None:
    """Raise ValueError unless every member of a zip, such as torch.save writes, matches its checksum."""
    try:
        with zipfile.ZipFile(file) as content:
            damaged = content.testzip()
    except BROKEN as error:
        raise ValueError(f"not a readable zip ({error})") from error
    if damaged is not None:
        raise ValueError(f"{damaged} is not what its checksum says")
    if not isinstance(file, Path):
        file.seek(0)


def untrusted(path: Path) -> list[Member]:
    """Return the files in a zip from elsewhere, sorted; two may have one name.

    Raises ValueError naming a member that no honest zip has.
    """
    infos = _infos(path)
    for info in infos:
        if fault := _fault(info):
            raise ValueError(f"{path}: member {cli.printable(info.filename, 200)!r} {fault}: not read")
    if (total := sum(info.file_size for info in infos)) > MOST_TOTAL:
        raise ValueError(f"{path}: {total} bytes when inflated, more than {MOST_TOTAL}: give a part of it")
    end, found = 0, [_member(info) for info in infos if not info.is_dir()]
    for member in sorted(found, key=lambda member: member.offset):
        if member.offset < end:
            raise ValueError(f"{path}: member {cli.printable(member.path, 200)!r} overlaps another: not read")
        end = member.offset + LOCAL_HEADER + member.packed
    if end > path.stat().st_size:
        raise ValueError(f"{path}: a member lies beyond its end: get the zip again")
    return sorted(found)


def _fault(info: zipfile.ZipInfo) -> str:
    path = PureWindowsPath(info.filename)  # knows both separators
    if path.root or path.drive or ".." in path.parts:
        return "has a path that leads out of the zip"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed with method {info.compress_type}, not with deflate"
    if info.compress_size > SLACK + info.file_size + info.file_size // 100:
        return "is larger compressed than inflated"
    return ""
