"""Zips for tests, honest and damaged ones."""

import zipfile
from pathlib import Path


def zipped(path: Path, *members, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a zip of `members`: names or ZipInfos, each with its bytes."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def patched(path: Path, offset: int, value: int, size: int = 4) -> Path:
    """Change a field of the first entry of the directory of the zip `path`."""
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2") + offset
    content[place : place + size] = value.to_bytes(size, "little")
    path.write_bytes(content)
    return path
