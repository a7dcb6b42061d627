"""A zip from anywhere, checked before any of it is read. Nothing of it is ever written under a name of its own."""

import stat
import zipfile
from pathlib import Path, PureWindowsPath

from ich_kaggle.common import cli, zip_reader

MOST_TOTAL = 1 << 36  # bytes that all members may say they have


def members(path: Path) -> list[zip_reader.Member]:
    """Return the files in the zip `path`, sorted. Raises ValueError naming a member that no honest zip has."""
    found = zip_reader.directory(path)
    with zipfile.ZipFile(path) as zipped:
        infos = zipped.infolist()
    for info in infos:
        if fault := _fault(info):
            raise ValueError(f"{path}: member {cli.printable(info.filename, 200)!r} {fault}: not read")
    if (total := sum(info.file_size for info in infos)) > MOST_TOTAL:
        raise ValueError(f"{path}: {total} bytes when inflated, more than {MOST_TOTAL}: give a part of it")
    end = 0
    for member in sorted(found.values(), key=lambda member: member.offset):
        if member.offset < end:
            raise ValueError(f"{path}: member {cli.printable(member.path, 200)!r} overlaps another: not read")
        end = member.offset + zip_reader.LOCAL_HEADER + member.packed
    return sorted(member for member in found.values() if not member.path.endswith("/"))


def _fault(info: zipfile.ZipInfo) -> str:
    path = PureWindowsPath(info.filename)  # knows both kinds of separators
    if path.root or path.drive or ".." in path.parts:
        return "has a path that leads out of the zip"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed in another way (method {info.compress_type}) than deflate"
    if info.compress_size > zip_reader.SLACK + info.file_size + info.file_size // 100:
        return "is larger packed than it says it is"
    return ""
