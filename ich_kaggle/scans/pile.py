"""The files of a pile: a folder, a zip or one file, with the zips and gzipped files in it.

What cannot be read is passed over with the reason. A zip inside a zip is unpacked into a private temporary folder,
which goes with the pile.
"""

import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ich_kaggle.common import cli, paths, zip_reader
from ich_kaggle.dicom import frames, tags

GZIP, ZIP = b"\x1f\x8b", b"PK\3\4"
DEEPEST = 3  # zips in zips
LARGEST_ZIP = 1 << 32  # bytes of a zip in a zip, which is held in memory
TAR, ISO = slice(257, 262), slice(32769, 32774)  # bytes that hold "ustar", "CD001"
ARCHIVES = {  # what a file begins with
    b"7z\xbc\xaf'": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
}


@dataclass(frozen=True)
class File:
    """A file of a pile, the gzip around it removed."""

    data: paths.Data
    member: zip_reader.Member
    inside: str = ""  # the names of the zips that it is in, each with a slash

    @property
    def name(self) -> str:
        return cli.printable(self.inside + self.member.path, 1000)

    def read(self, limit: int = -1) -> bytes:
        """Return the content, or its first `limit` bytes. Raises OSError or ValueError."""
        content = self.data.read(self.member, limit)
        if content[:2] != GZIP:
            return content
        content = self.data.read(self.member, limit + zip_reader.SLACK if limit >= 0 else -1)
        unpacker = zlib.decompressobj(31)
        try:
            content = unpacker.decompress(content, limit if limit >= 0 else frames.MOST_BYTES)
        except zlib.error as error:
            raise ValueError(f"{self.name}: not a readable gzip ({error})") from error
        if limit < 0 and not unpacker.eof:
            raise ValueError(f"{self.name}: truncated, or more than {frames.MOST_BYTES} bytes when inflated")
        return content


def why(error: Exception, *prefixes: str) -> str:
    """Return the reason of `error` as one line, without the `prefixes` that name the file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    for prefix in prefixes:
        text = text.removeprefix(f"{prefix}: ").removeprefix(f"{prefix} ")
    return cli.printable(text, 300)


@dataclass
class Pile:
    path: Path
    skip: Path | None = None  # a folder below it that is not read; if it is the pile itself, everything is
    passed_over: dict[str, str] = field(default_factory=dict)  # file -> why
    warned: dict[str, list[str]] = field(default_factory=dict)  # kind of warning -> files
    unpacked: tempfile.TemporaryDirectory | None = None

    def pass_over(self, file: File, error: Exception) -> None:
        self.passed_over[file.name] = why(error, str(file.data.root), file.name, file.member.path)

    def files(self) -> Iterator[File]:
        """Yield the DICOM files, those of zips in the pile included; the others are passed over.

        Raises FileNotFoundError if the pile does not exist, ValueError if it is a damaged or hostile zip.
        """
        if self.path.is_dir():
            found = list(self._folder())
        elif not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is missing: give a folder, a zip or a file")
        else:
            found = [_on_disk(self.path.parent, self.path)]
            if found[0].data.read(found[0].member, 2) == ZIP[:2]:
                found = [File(paths.Data(self.path), member) for member in zip_reader.untrusted(self.path)]
        for file in cli.progress(found, len(found), "read headers", " files"):
            yield from self._dicom(file, 0)

    def _dicom(self, file: File, depth: int) -> Iterator[File]:
        """Yield `file` if it is DICOM, or the DICOM files in it if it is a zip."""
        try:
            head = file.read(tags.PREAMBLE)
            if tags.is_dicom(head):
                yield file
                return
            if head[:4] != ZIP:
                raise ValueError(_kind(file.read(ISO.stop)))
            if depth == DEEPEST:
                raise ValueError(f"more than {DEEPEST} zips in one another: unpack it first")
            data = paths.Data(self._as_zip(file))
            inner = [File(data, one, f"{file.inside}{file.member.path}/") for one in _members(data.root)]
        except (OSError, ValueError) as error:
            self.pass_over(file, error)
            return
        for one in inner:
            yield from self._dicom(one, depth + 1)

    def _as_zip(self, file: File) -> Path:
        """Return the path of a zip of the pile, unpacked if it is inside another."""
        if not file.data.is_zip and file.data.read(file.member, 2) != GZIP:
            return file.data.root / file.member.path
        if file.member.size > LARGEST_ZIP:
            raise ValueError(f"a zip of {file.member.size} bytes in a zip: unpack it first")
        self.unpacked = self.unpacked or tempfile.TemporaryDirectory(prefix="ich_kaggle-")
        folder = Path(self.unpacked.name)
        path = folder / f"{len(list(folder.iterdir()))}.zip"
        path.write_bytes(file.read())
        return path

    def _folder(self) -> Iterator[File]:
        """Yield the regular files below the pile, except those in `skip`; links to folders are followed, each once."""
        seen, roots = {os.path.realpath(self.skip)} if self.skip else set(), [self.path]
        seen.discard(os.path.realpath(self.path))
        for root in roots:  # which the links in it join
            for folder, folders, files in os.walk(root, onerror=self._unlisted):
                place = Path(folder)
                if (real := os.path.realpath(folder)) in seen:
                    folders.clear()
                    continue
                seen.add(real)
                roots += [place / name for name in sorted(folders) if (place / name).is_symlink()]
                folders[:] = sorted(name for name in folders if not (place / name).is_symlink())
                yield from self._files_of(place, files)

    def _files_of(self, folder: Path, names: list[str]) -> Iterator[File]:
        for path in (folder / name for name in sorted(names)):
            try:
                if not stat.S_ISREG(path.stat().st_mode):
                    raise ValueError("neither a file nor a folder")
                yield _on_disk(self.path, path)
            except (OSError, ValueError) as error:
                self.passed_over[self._name(path)] = why(error)

    def _name(self, path: Path) -> str:
        return cli.printable(path.relative_to(self.path).as_posix(), 1000)

    def _unlisted(self, error: OSError) -> None:
        self.passed_over[self._name(Path(error.filename))] = f"its files can't be listed ({error.strerror})"


def _kind(head: bytes) -> str:
    if head[TAR] == b"ustar":
        return "a tar archive: unpack it first"
    if head[ISO] == b"CD001":
        return "an image of a disc (ISO 9660): unpack it first"
    return next((what for form, what in ARCHIVES.items() if head.startswith(form)), "not DICOM")


def _on_disk(root: Path, path: Path) -> File:
    status = path.stat()
    name = path.relative_to(root).as_posix()
    return File(paths.Data(root), zip_reader.Member(name, status.st_size, stamp=status.st_mtime_ns))


def _members(path: Path) -> list[zip_reader.Member]:
    try:
        return zip_reader.untrusted(path)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from error
