"""Files of the work folder: atomic writes, errors that name the command to run again, and hashes."""

import contextlib
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from ich_kaggle.common import cli

MARKER = ".made_by"  # in a folder that a command may replace: which command
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
SCAN_AGAIN = f"run {MAKERS['slices.parquet']} --overwrite"


def require(path: str | Path, flags: str = "") -> Path:
    """Return `path` if it exists. Raises FileNotFoundError with the command, and its `flags`, that makes it."""
    path = Path(path)
    if not path.exists():
        was_there = any(path.with_name(done).exists() for done in ("predict.json", "weights.json"))
        what = remedy(path) if was_there else f"run {MAKERS[path.name]} {flags}".rstrip()
        raise FileNotFoundError(f"{path} is missing: {what}")
    return path


@contextlib.contextmanager
def writing(path: str | Path, *, sweep: bool = True) -> Iterator[Path]:
    """Yield a temporary file beside `path`; move it into place on success, else remove it.

    `sweep` also removes the temporary files that killed processes left; it lists the folder, which takes time.
    """
    path = Path(path)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    with naming(path, temporary):
        try:
            temporary.touch(exist_ok=False)  # so that it is no link that somebody else has put there
            yield temporary
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if sweep:
        _sweep(path)


def _temporary(path: Path) -> Path:
    """Return a name beside `path` that cannot be foretold, and tells which process gave it."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")


def _sweep(path: Path) -> None:
    """Remove what killed processes left under the names of `_temporary`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*"):
        named = re.fullmatch(r"\.(\d+)\.[0-9a-f]{16}", left.name[len(path.name) + 1 :])
        if named and not psutil.pid_exists(int(named[1])):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove the file `path`, if it exists, and what processes left that were killed while they wrote it."""
    if path.exists():  # asked first: on a read-only disk nothing can be removed
        path.unlink(missing_ok=True)
    _sweep(path)


@contextlib.contextmanager
def replacing(folder: Path, maker: str | None) -> Iterator[Path]:
    """Yield a new folder, of this user alone, that takes the place of `folder` on success, and is removed otherwise.

    For one process at a time. Raises FileExistsError like `check_made_by`, before anything is made; a `maker` of None
    is for folders inside work/, which need no marker.
    """
    if maker is not None:
        check_made_by(folder, maker)
    folder = folder.resolve()
    _sweep(folder)
    new, old = _temporary(folder), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # a process was killed between the two renames below
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    new.mkdir(mode=0o700, parents=True)
    try:
        if maker is not None:
            (new / MARKER).write_text(maker)
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_made_by(folder: Path, maker: str) -> None:
    """Raise FileExistsError if `folder` exists, is not empty, and has no marker of the command `maker`."""
    mark = folder / MARKER
    made_by = mark.read_text(errors="replace") if mark.is_file() else ""
    if os.path.lexists(folder) and made_by != maker and not (folder.is_dir() and not any(folder.iterdir())):
        other = cli.printable(made_by, 40) or "something else"
        raise FileExistsError(f"{folder} exists, made by {other}, not by {maker}: remove or rename it")


def claim(folder: Path, maker: str) -> None:
    """Make `folder`, if it does not exist, with the marker of the command `maker`. Raises like `check_made_by`."""
    check_made_by(folder, maker)
    if not (mark := folder / MARKER).exists():
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(maker)


@contextlib.contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Let an OSError name `path` where it names no file, as on a full disk, or the file `instead_of`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        fault = error if isinstance(error, OSError) else error.__context__  # torch.save hides it behind its own
        if not isinstance(fault, OSError):
            raise
        if fault.filename in (None, str(instead_of)):
            fault.filename = str(path)
        raise fault from None


@contextlib.contextmanager
def reading(path: Path | BinaryIO, advice: str = "") -> Iterator[None]:
    """Turn any error inside, as damaged bytes cause errors of every type, into a line on the file `path`.

    Raises ValueError `PATH: damaged (REASON): ADVICE`, by default the advice of `remedy`; FileNotFoundError with the
    same advice if the file is missing. PermissionError passes.
    """
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:
        advice = advice or remedy(path)
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{path} is missing: {advice}") from error
        kind, reason = type(error).__name__, str(error).strip().partition("\n")[0]
        reason = reason if reason and isinstance(error, (ValueError, OSError)) else f"{kind} {reason}".strip()
        raise ValueError(f"{path}: damaged ({cli.printable(reason, 200)}): {advice}") from error


def not_whole(path: Path | BinaryIO, what: str, error: Exception) -> str:
    """Return a line on the `error` of loading `path`: a file of the work folder, or a member of a bundle."""
    reason = cli.printable(f"{type(error).__name__} {error}".strip().partition("\n")[0], 200)
    if isinstance(path, Path):
        return f"{path}: not a whole {what} ({reason}): {remedy(path)}"
    return f"a {what} of the bundle can't be loaded ({reason}): get it again, or another version of timm"


def write_json(path: str | Path, content: dict) -> None:
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Object(dict):
    """A JSON object of the file `path`. Raises ValueError naming the file for a key that it lacks."""

    def __init__(self, content: dict, path: Path):
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str):
        raise ValueError(f"{self.path}: damaged, it has no {key}: {remedy(self.path)}")


def remedy(path: Path) -> str:
    """Return the advice for a damaged file of the work folder: the command that makes it again."""
    folder, name = path.parent, path.name
    if re.fullmatch(r"fold\d+", folder.name):
        is_second = (folder / "widths.json").exists()
        command = "sequence" if is_second else "predict" if name in PREDICTED else "train"
        what = f"{command} --run {folder.parent.name} --fold {folder.name[len('fold') :]}"
        what += " --all-slices" if name == "embeddings.npy" else ""  # the second level reads them all
        return f"run python -m ich_kaggle.{what} --overwrite"  # with the settings of the run
    if name == "run.json":
        return f"remove {folder} and make the run anew: its settings are lost"
    if folder.name == "evaluation":
        what = f"evaluate --{'ensemble' if folder.parents[1].name == 'ensemble' else 'run'} {folder.parent.name}"
    elif folder.parent.name == "ensemble":
        what = f"ensemble --name {folder.name}"
    elif name in ("slices.parquet", "defects.csv", "folds.csv", "folds.json", "phantom.json"):
        return f"run python -m ich_kaggle.{name.split('.')[0].replace('defects', 'slices')} --overwrite"
    else:
        return f"remove it and run {MAKERS.get(name, 'its command')}"
    return f"run python -m ich_kaggle.{what} --overwrite, with the other flags it was made with"


def read_json(path: str | Path) -> dict:
    """Return the JSON object in `path`. Raises the errors of `reading`."""
    path = Path(path)
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=lambda content: Object(content, path))
    if not isinstance(content, Object):
        raise ValueError(f"{path}: damaged, it holds a {type(content).__name__}, not an object: {remedy(path)}")
    return content


def file_hash(path: str | Path) -> str:
    """Return 12 hex digits that identify the content of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


TABLES = {"slices": "slices.parquet", "folds": "folds.csv"}


def same_settings(path: Path, found: dict, wanted: dict, remedy: str) -> None:
    """Raise ValueError naming both values where the settings `found` in `path` differ from those `wanted`."""
    if not isinstance(found, dict):
        raise ValueError(f"{path}: damaged, {found!r} where settings should be: {remedy}")
    found = json.loads(json.dumps(found))
    wanted = json.loads(json.dumps(wanted))
    for key, value in wanted.items():
        if found.get(key) != value:
            table = TABLES.get(key) if isinstance(value, str) else None  # of which the value is the hash
            changed = f" ({table} has changed, or is of other data)" if table else ""
            raise ValueError(f"{path} was made with {key} {found.get(key)}, not {value}{changed}: {remedy}")
