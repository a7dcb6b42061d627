"""Paths of files: the competition's data, in every layout that Kaggle has used, and the work folder."""

import contextlib
import gzip
import io
import itertools
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ich_kaggle.common import storage, zip_reader
from ich_kaggle.common.zip_reader import Member

SLUG = "rsna-intracranial-hemorrhage-detection"
TRAIN_CSV = "stage_2_train.csv"
PHANTOM = "phantom.json"  # in a folder of a synthetic competition
SAMPLE_CSV = "stage_2_sample_submission.csv"
PACKED = (".gz", ".zip")  # in which Kaggle takes a submission
MOST_TABLE = 1 << 30  # bytes; the labels take 119 MB
SPLITS = ("train", "test")
DICOM_FOLDERS = {split: (f"stage_2_{split}", f"stage_2_{split}_images") for split in SPLITS}
INPUT = Path(os.environ.get("KAGGLE_INPUT_DIR", "/kaggle/input"))  # the inputs attached to a Kaggle kernel
MOUNTS = (INPUT / "competitions" / SLUG, INPUT / SLUG)
DEFAULT = Path("input") / SLUG  # below the current folder

COPY = re.compile(r" \(\d+\)$")  # what browsers append to the name of a file that exists
DOWNLOAD = "python -m ich_kaggle.download"
NO_DATA = (
    f"no competition data in {{looked}}: download it ({DOWNLOAD} --all), name its folder or zip (--data-dir, or the "
    "environment variable ICH_DATA_DIR), make some (python -m ich_kaggle.phantom), or see it all run "
    "(python -m ich_kaggle.demo)"
)


@dataclass(frozen=True)
class Data:
    """The competition's data: a folder, or the zip as downloaded."""

    root: Path
    inner: str = ""  # the folder inside the zip that holds the tables

    @property
    def is_zip(self) -> bool:
        return self.root.is_file()

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a table of the competition. Raises FileNotFoundError naming the table and the data."""
        try:
            if (found := self._zipped(name)) is None:
                with _plain(self.root / name) as file:
                    yield file
                return
            path, member = found
            if member.size > MOST_TABLE:
                raise ValueError(f"{path}: {name} has {member.size} bytes: download the zip again")
            yield io.BytesIO(zip_reader.read(path, member))
        except (FileNotFoundError, KeyError) as error:
            again = "download the zip again" if self.is_zip else f"download it ({DOWNLOAD} --data-dir {self.root})"
            raise FileNotFoundError(f"{self.root}: {name} is missing: {again}") from error

    def _zipped(self, name: str) -> tuple[Path, Member] | None:
        """Return the zip that holds a table, and its place there; None if it is a file of its own."""
        if self.is_zip:
            return self.root, zip_reader.directory(self.root)[self.inner + name]
        if (self.root / name).exists() or not (path := self.root / f"{name}.zip").is_file():
            return None
        return path, zip_reader.directory(path)[name]  # as Kaggle gives a single file

    def checksum(self, name: str) -> str:
        """Return the CRC-32 of a table of the competition, as 8 hex digits."""
        if found := self._zipped(name):
            return f"{found[1].stamp:08x}"
        with self.open(name) as file:
            return f"{zip_reader.crc32(file.read()):08x}"

    def read(self, member: Member, limit: int = -1) -> bytes:
        """Return the content of a file, or its first `limit` bytes.

        Raises ValueError if the zip is damaged there, or if the file has changed since it was listed.
        """
        if self.is_zip:
            return zip_reader.read(self.root, member, limit)
        with (self.root / member.path).open("rb", buffering=0) as file:
            if member.stamp and os.fstat(file.fileno()).st_mtime_ns != member.stamp:
                raise ValueError(f"{self.root}: {member.path} has changed since it was scanned: {storage.SCAN_AGAIN}")
            return file.read(limit)

    @property
    def has_images(self) -> bool:
        """Whether there are images beside the tables. Assumed of a zip, whose directory takes seconds to read."""
        return self.is_zip or any((self.root / folder).is_dir() for split in SPLITS for folder in DICOM_FOLDERS[split])

    def members(self, split: str) -> list[Member]:
        """Return the DICOM file of every slice of `split`, sorted by path; empty if its folder does not exist."""
        return _zip_members(self, split) if self.is_zip else _folder_members(self.root, split)


def _plain(path: Path) -> BinaryIO:
    """Return the content of the table `path`, unpacked. Raises ValueError if it cannot be."""
    if path.suffix not in PACKED:
        return path.open("rb")
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                content = gzip.GzipFile(fileobj=file).read(MOST_TABLE)
            else:
                with zipfile.ZipFile(file) as archive:
                    names = [name for name in archive.namelist() if name.endswith(".csv") and "__MACOSX" not in name]
                    content = archive.open(names[0]).read(MOST_TABLE) if len(names) == 1 else b""
    except (OSError, EOFError, zlib.error, *zip_reader.BROKEN) as error:
        raise ValueError(f"{path}: cannot be unpacked ({error}): give the CSV itself") from error
    if not content:
        raise ValueError(f"{path}: not one CSV, packed: give the CSV itself")
    return io.BytesIO(content)


def slice_id(path: str) -> str:
    """Return the id of the slice in the file `path`, also of a copy as browsers name it, `ID_... (1).dcm`."""
    return COPY.sub("", path.rpartition("/")[2][: -len(".dcm")])


def _one_per_slice(members: Iterable[Member]) -> list[Member]:
    """Return the DICOM files among `members`, sorted by path: no hidden ones, and no copies of others."""
    found = {}
    for member in sorted(members):  # a copy before the original: " " < "."
        if member.path.lower().endswith(".dcm") and not member.path.rpartition("/")[2].startswith("."):
            found[slice_id(member.path)] = member
    return sorted(found.values())


def _folder_members(root: Path, split: str) -> list[Member]:
    for folder in DICOM_FOLDERS[split]:
        found = []
        for place in (folder, f"{folder}/{folder}"):  # as some programs unpack a zip
            if (root / place).is_dir():
                with os.scandir(root / place) as entries:
                    files = [(f"{place}/{entry.name}", entry.stat()) for entry in entries if entry.is_file()]
                found += [Member(path, status.st_size, stamp=status.st_mtime_ns) for path, status in files]
        if members := _one_per_slice(found):
            return members
    return []


def _zip_members(data: Data, split: str) -> list[Member]:
    folders = tuple(data.inner + folder + "/" for folder in DICOM_FOLDERS[split])
    members = zip_reader.directory(data.root).items()
    return _one_per_slice(member for name, member in members if name.startswith(folders))


def no_images(data: Data, split: str) -> str:
    """Return a line on the missing DICOM files of `split`, with the remedy."""
    folders = DICOM_FOLDERS[split]
    packed = [f"{folder}.zip" for folder in folders if (data.root / f"{folder}.zip").is_file()]
    remedy = f"unpack {packed[0]} there" if packed else f"get them ({DOWNLOAD} --all)"
    return f"{data.root}: no DICOM files in {' or '.join(folders)}: {remedy}"


def places(data_dir: str | Path | None = None) -> list[Path]:
    """Return `data_dir`, or else the default places of the competition's data, whether they exist or not."""
    if named := data_dir or os.environ.get("ICH_DATA_DIR"):
        return [Path(named).expanduser()]
    attached = sorted(folder for folder in (*INPUT.glob("datasets/*/*"), *INPUT.glob("*")) if _has_table(folder))
    return [*map(Path, MOUNTS), *attached, DEFAULT, Path(f"{DEFAULT}.zip")]


def _has_table(folder: Path) -> bool:
    return any((folder / f"{name}{end}").is_file() for name in (SAMPLE_CSV, TRAIN_CSV) for end in ("", ".zip"))


def find_data(data_dir: str | Path | None = None) -> Data:
    """Return the competition's data in `data_dir`, or in the first default place that has it.

    If no place has the images, a folder with the tables alone is returned. Raises FileNotFoundError with the ways to
    get the data if no place has either.
    """
    looked, tables = places(data_dir), None
    for found in itertools.chain.from_iterable(map(_layouts, looked)):
        if found.has_images:
            return found
        tables = tables or found
    if tables is None:
        if old := next((place for place in looked if any(place.glob("stage_1_*"))), None):
            raise FileNotFoundError(
                f"{old}: data of stage 1, which Kaggle has replaced: get stage 2 ({DOWNLOAD} --all)"
            )
        raise FileNotFoundError(NO_DATA.format(looked=", ".join(map(str, looked))))
    return tables


def _layouts(place: Path) -> Iterator[Data]:
    """Yield the data found at `place`: a folder, a zip, a zip inside it, or a zip beside a folder with the tables."""
    # The tables mark the folder; a search by pattern would list 874,035 files first.
    above = [place.parent] if place.name in itertools.chain(*DICOM_FOLDERS.values()) else []
    folders = [folder for folder in (place, place / SLUG, place / SLUG / SLUG, *above) if _has_table(folder)]
    yield from map(Data, folders)
    for path in (place, place / f"{SLUG}.zip", *(Path(f"{folder}.zip") for folder in folders)):
        if path.is_file() and (found := _zipped(path)):
            yield found


def _zipped(path: Path) -> Data | None:
    names = [PurePosixPath(name) for name in zip_reader.directory(path) if name.endswith((SAMPLE_CSV, TRAIN_CSV))]
    if not names:
        return None
    parent = min(names, key=lambda name: len(name.parts)).parent
    return Data(path, "" if str(parent) == "." else f"{parent}/")


def dataset(name: str) -> Path:
    """Return the folder of the dataset `name`, attached to this kernel. Raises FileNotFoundError if it is not."""
    found = [folder for folder in (*INPUT.glob(f"datasets/*/{name}"), INPUT / name) if folder.is_dir()]
    if len(found) != 1:
        raise FileNotFoundError(f"{INPUT}: {len(found)} datasets {name}, not one: attach it to the kernel")
    return found[0]


def slices(work_dir: str | Path) -> Path:
    return Path(work_dir) / "slices.parquet"


def defects(work_dir: str | Path) -> Path:
    return Path(work_dir) / "defects.csv"


def folds(work_dir: str | Path) -> Path:
    return Path(work_dir) / "folds.csv"


def cache(work_dir: str | Path, name: str) -> Path:
    return Path(work_dir) / "cache" / name


def cached(cache_dir: str | Path, slice_id: str) -> Path:
    """Return the PNG of a slice, in one of 256 folders by the first two hex digits of its id."""
    return Path(cache_dir) / slice_id[3:5] / f"{file_name(slice_id)}.png"


def sheet(work_dir: str | Path, study_id: str) -> Path:
    return Path(work_dir) / "sheets" / f"{file_name(study_id)}.png"


def run(work_dir: str | Path, name: str) -> Path:
    return Path(work_dir) / "runs" / file_name(name)


FILE_NAME = re.compile(r"(?!.*\.\.)\w[\w.+-]*")


def file_name(name: str) -> str:
    """Return `name`. Raises ValueError if it is not a plain name of a file."""
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't name a folder: use letters, digits and . _ + -")
    return name


def fold(work_dir: str | Path, run_name: str, k: int) -> Path:
    return run(work_dir, run_name) / f"fold{k}"


def folds_of(folder: Path) -> dict[int, Path]:
    """Return the folders of the folds of the run in `folder`, by number; others, such as copies, do not count."""
    folders = folder.glob("fold*")
    return dict(sorted((int(one.name[4:]), one) for one in folders if one.name[4:].isdecimal()))


def run_names(work_dir: str | Path) -> list[str]:
    """Return the names of the runs with at least one fold folder, sorted."""
    folders = sorted((Path(work_dir) / "runs").glob("*"))
    return [folder.name for folder in folders if FILE_NAME.fullmatch(folder.name) and folds_of(folder)]


def ensemble(work_dir: str | Path, name: str) -> Path:
    return Path(work_dir) / "ensemble" / file_name(name)


def ensemble_names(work_dir: str | Path) -> list[str]:
    """Return the names of the finished ensembles, sorted."""
    names = (path.parent.name for path in (Path(work_dir) / "ensemble").glob("*/weights.json"))
    return sorted(filter(FILE_NAME.fullmatch, names))
