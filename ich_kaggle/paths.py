"""Where files are: Kaggle's data in every layout it has used, and the work folder, with who makes which file."""

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ich_kaggle import archive
from ich_kaggle.archive import Member

SLUG = "rsna-intracranial-hemorrhage-detection"
TRAIN_CSV = "stage_2_train.csv"
SAMPLE_CSV = "stage_2_sample_submission.csv"
MOST_TABLE = 1 << 30  # bytes; the labels take 119 MB
SPLITS = ("train", "test")
DICOM_FOLDERS = {split: (f"stage_2_{split}", f"stage_2_{split}_images") for split in SPLITS}
INPUT = Path(os.environ.get("KAGGLE_INPUT_DIR", "/kaggle/input"))  # what a Kaggle kernel has attached
MOUNTS = (INPUT / "competitions" / SLUG, INPUT / SLUG)

NO_DATA = (
    "no competition data in {looked}: download it (kaggle competitions download -c " + SLUG + "), or make some "
    "(python -m ich_kaggle.phantom), or see it all run (python -m ich_kaggle.demo)"
)


@dataclass(frozen=True)
class Data:
    """Kaggle's data: a folder, or the zip as downloaded."""

    root: Path
    inner: str = ""  # the folder inside the zip that holds the tables

    @property
    def is_zip(self) -> bool:
        return self.root.is_file()

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a table of the competition. Raises FileNotFoundError naming it and where it was looked for."""
        try:
            if not self.is_zip:
                with (self.root / name).open("rb") as file:
                    yield file
                return
            member = archive.directory(self.root)[self.inner + name]
            if member.size > MOST_TABLE:
                raise ValueError(f"{self.root}: {name} has {member.size} bytes: download the zip again")
            yield io.BytesIO(self.read(member))
        except (FileNotFoundError, KeyError) as error:
            raise FileNotFoundError(f"{self.root}: {name} is missing: download the competition's data again") from error

    def checksum(self, name: str) -> str:
        """Return the CRC-32 of a table of the competition, as 8 hex digits."""
        if self.is_zip:
            return f"{archive.directory(self.root)[self.inner + name].stamp:08x}"
        with self.open(name) as file:
            return f"{archive.crc32(file.read()):08x}"

    def read(self, member: Member, limit: int = -1) -> bytes:
        """Return a file of the data, or its first `limit` bytes.

        Raises ValueError if the zip is damaged there, or the file is no longer the one that was listed.
        """
        if self.is_zip:
            return archive.read(self.root, member, limit)
        with (self.root / member.path).open("rb", buffering=0) as file:
            if member.stamp and os.fstat(file.fileno()).st_mtime_ns != member.stamp:
                again = "run python -m ich_kaggle.slices --overwrite"
                raise ValueError(f"{self.root}: {member.path} has changed since it was scanned: {again}")
            return file.read(limit)

    def members(self, split: str) -> list[Member]:
        """Return every DICOM file of `split`, sorted by path; empty if there is no folder of it."""
        return _zip_members(self, split) if self.is_zip else _folder_members(self.root, split)


def _folder_members(root: Path, split: str) -> list[Member]:
    for folder in DICOM_FOLDERS[split]:
        if (root / folder).is_dir():
            with os.scandir(root / folder) as entries:
                files = [entry for entry in entries if entry.name.endswith(".dcm") and entry.is_file()]
                return sorted(_member(folder, file) for file in files)
    return []


def _member(folder: str, file: os.DirEntry) -> Member:
    status = file.stat()
    return Member(f"{folder}/{file.name}", status.st_size, stamp=status.st_mtime_ns)


def _zip_members(data: Data, split: str) -> list[Member]:
    folders = tuple(data.inner + folder + "/" for folder in DICOM_FOLDERS[split])
    members = archive.directory(data.root).items()
    return sorted(member for name, member in members if name.startswith(folders) and name.endswith(".dcm"))


def find_data(data_dir: Path | None = None) -> Data:
    """Return the competition's data in `data_dir`, or in the first default place that has it.

    Raises FileNotFoundError with the ways to get data where there is none.
    """
    default = Path("input") / SLUG
    places = [data_dir] if data_dir else [*map(Path, MOUNTS), default, default.with_name(SLUG + ".zip")]
    if not data_dir and os.environ.get("ICH_DATA_DIR"):
        places = [Path(os.environ["ICH_DATA_DIR"])]
    for place in places:
        if (found := _layout(place)) is not None:
            return found
    raise FileNotFoundError(NO_DATA.format(looked=", ".join(map(str, places))))


def _layout(place: Path) -> Data | None:
    # The tables mark the folder; a search by pattern would list 874,035 files first.
    for folder in (place, place / SLUG, place / SLUG / SLUG):
        if any((folder / name).is_file() for name in (SAMPLE_CSV, TRAIN_CSV)):
            return Data(folder)
    if not place.is_file():
        return None
    names = [PurePosixPath(name) for name in archive.directory(place) if name.endswith((SAMPLE_CSV, TRAIN_CSV))]
    if not names:
        return None
    parent = min(names, key=lambda name: len(name.parts)).parent
    return Data(place, "" if str(parent) == "." else f"{parent}/")


def dataset(name: str) -> Path:
    """Return the folder of the dataset `name` that a Kaggle kernel has attached. Raises FileNotFoundError."""
    found = [folder for folder in (*INPUT.glob(f"datasets/*/{name}"), INPUT / name) if folder.is_dir()]
    if len(found) != 1:
        raise FileNotFoundError(f"{INPUT}: {len(found)} datasets {name}, not one: attach it to the kernel")
    return found[0]


def slices(work_dir: Path) -> Path:
    return work_dir / "slices.parquet"


def defects(work_dir: Path) -> Path:
    return work_dir / "defects.csv"


def folds(work_dir: Path) -> Path:
    return work_dir / "folds.csv"


def cache(work_dir: Path, name: str) -> Path:
    return work_dir / "cache" / name


def cached(cache_dir: Path, slice_id: str) -> Path:
    """Return the PNG of a slice; the first two hex digits of its id spread them over 256 folders."""
    return cache_dir / slice_id[3:5] / f"{_file_name(slice_id)}.png"


def sheet(work_dir: Path, study_id: str) -> Path:
    return work_dir / "sheets" / f"{_file_name(study_id)}.png"


def run(work_dir: Path, name: str) -> Path:
    return work_dir / "runs" / _file_name(name)


FILE_NAME = re.compile(r"(?!.*\.\.)\w[\w.+-]*")


def _file_name(name: str) -> str:
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't name a folder: use letters, digits and . _ + -")
    return name


def fold(work_dir: Path, run_name: str, k: int) -> Path:
    return run(work_dir, run_name) / f"fold{k}"


def run_folds(work_dir: Path, run_name: str) -> dict[int, Path]:
    """Return the folders of the folds of a run by their numbers, in order; a copy of one under another name is none."""
    folders = run(work_dir, run_name).glob("fold*")
    return dict(sorted((int(one.name[4:]), one) for one in folders if one.name[4:].isdecimal()))


def run_names(work_dir: Path) -> list[str]:
    """Return the names of the runs of which there is a fold, sorted."""
    names = sorted(folder.name for folder in (work_dir / "runs").glob("*"))
    return [name for name in names if FILE_NAME.fullmatch(name) and run_folds(work_dir, name)]


def ensemble(work_dir: Path, name: str) -> Path:
    return work_dir / "ensemble" / _file_name(name)


def ensemble_names(work_dir: Path) -> list[str]:
    """Return the names of the ensembles that are made, sorted."""
    names = (path.parent.name for path in (work_dir / "ensemble").glob("*/weights.json"))
    return sorted(filter(FILE_NAME.fullmatch, names))


PREDICTED = ("oof.parquet", "test.parquet", "embeddings.npy", "predict.json")
MAKERS = {
    "slices.parquet": "python -m ich_kaggle.slices",
    "folds.csv": "python -m ich_kaggle.folds",
    "cache.json": "python -m ich_kaggle.cache",
    "model.pt": "python -m ich_kaggle.train",
    "oof.parquet": "python -m ich_kaggle.predict",
    "test.parquet": "python -m ich_kaggle.predict",
    "embeddings.npy": "python -m ich_kaggle.predict",
    "weights.json": "python -m ich_kaggle.ensemble",
    "nested.parquet": "python -m ich_kaggle.ensemble",
}


def require(path: Path, flags: str = "") -> Path:
    """Return `path` if it is there. Raises FileNotFoundError with the command, and its `flags`, that makes it."""
    if not path.exists():
        was_there = any(path.with_name(done).exists() for done in ("predict.json", "weights.json"))
        what = remedy(path) if was_there else f"run {MAKERS[path.name]} {flags}".rstrip()
        raise FileNotFoundError(f"{path} is missing: {what}")
    return path


@contextlib.contextmanager
def writing(path: Path, *, sweep: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it into place if all went well, else remove it.

    What killed processes left of `path` half written is removed too, but not without `sweep`, which lists the folder.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path, temporary):
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    for left in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*") if sweep else ():
        if left.suffix[1:].isdigit() and not _is_running(int(left.suffix[1:])):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Let an OSError inside name `path` where it names no file, as that of a full disk, or `instead_of`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        fault = error if isinstance(error, OSError) else error.__context__  # torch.save covers it with its own
        if not isinstance(fault, OSError):
            raise
        if fault.filename in (None, str(instead_of)):
            fault.filename = str(path)
        raise fault from None


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def write_json(path: Path, content: dict) -> None:
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Object(dict):
    """A JSON object of the file `path`. Raises ValueError naming the file for a key that it has not."""

    def __init__(self, content: dict, path: Path):
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str):
        raise ValueError(f"{self.path}: damaged, it has no {key}: {remedy(self.path)}")


def remedy(path: Path) -> str:
    """Return what to do about a damaged file of the work folder: the command that makes it anew."""
    folder, name = path.parent, path.name
    if re.fullmatch(r"fold\d+", folder.name):
        is_second = (folder / "widths.json").exists()
        command = "sequence" if is_second else "predict" if name in PREDICTED else "train"
        what = f"{command} --run {folder.parent.name} --fold {folder.name[len('fold') :]}"
        what += " --all-slices" if name == "embeddings.npy" else ""  # who reads them needs all
    elif folder.name == "evaluation":
        what = f"evaluate --{'ensemble' if folder.parents[1].name == 'ensemble' else 'run'} {folder.parent.name}"
    elif folder.parent.name == "ensemble":
        what = f"ensemble --name {folder.name}"
    elif name in ("slices.parquet", "defects.csv", "folds.csv", "folds.json", "phantom.json"):
        return f"run python -m ich_kaggle.{name.split('.')[0].replace('defects', 'slices')} --overwrite"
    else:
        return f"remove it and run {MAKERS.get(name, 'its command')}"
    return f"run python -m ich_kaggle.{what} --overwrite, with the other flags it was made with"


def read_json(path: Path) -> dict:
    """Return the JSON object in `path`. Raises ValueError naming the file if it is damaged, or missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=lambda content: Object(content, path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: {remedy(path)}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}): {remedy(path)}") from error
    if not isinstance(content, Object):
        raise ValueError(f"{path}: damaged, a {type(content).__name__} and no object: {remedy(path)}")
    return content


def file_hash(path: Path) -> str:
    """Return 12 hex digits that tell one content of a file from another."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def same_settings(path: Path, found: dict, wanted: dict, remedy: str) -> None:
    """Raise ValueError naming both values where the settings recorded in `path` are not the wanted ones."""
    if not isinstance(found, dict):
        raise ValueError(f"{path}: damaged, {found!r} where settings should be: {remedy}")
    found = json.loads(json.dumps(found))
    wanted = json.loads(json.dumps(wanted))
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(f"{path} was made with {key} {found.get(key)}, not {value}: {remedy}")


def git_commit() -> str | None:
    """Return the commit of the package's checkout, with + behind it if files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--match="]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
