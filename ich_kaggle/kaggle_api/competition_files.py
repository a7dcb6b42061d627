"""The competition's files, downloaded from Kaggle: every download is resumed from its last byte."""

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ich_kaggle.common import cli, paths, storage
from ich_kaggle.kaggle_api import client

BLOCK = 1 << 20  # bytes


def table(kaggle: client.Connection, path: Path) -> None:
    """Download `path`, one of the competition's CSVs, unless it exists."""
    method = kaggle.competitions.download_data_file
    if not exists(path):
        for name in (path.name, f"{paths.SLUG}/{path.name}"):  # Kaggle has used both forms
            fields = dict(competition_name=paths.SLUG, file_name=name, hint=client.RULES)
            try:
                fetch(kaggle, lambda fields=fields: kaggle.call(method, **fields), path)
                break
            except RuntimeError as error:
                if "/" in name or not client.is_missing(error):
                    raise


def everything(kaggle: client.Connection, path: Path) -> None:
    """Download the zip of all the competition's files (about 180 GB) to `path`, unless it exists."""
    method, fields = kaggle.competitions.download_data_files, dict(competition_name=paths.SLUG)
    if not exists(path):
        fetch(kaggle, lambda: kaggle.call(method, hint=client.RULES, **fields), path)


def exists(path: Path) -> bool:
    """Return whether `path` exists, and say so. Raises FileExistsError if a phantom is there, not the real data."""
    folder = path.with_suffix("") if path.suffix == ".zip" else path.parent
    if (folder / paths.PHANTOM).exists():
        raise FileExistsError(f"{folder} holds a phantom, which would pass for the real data: remove it, or rename it")
    if path.exists():
        cli.say(f"{path}{cli.THERE}")
    return path.exists()


def fetch(kaggle: client.Connection, ask: Callable[[], Any], path: Path) -> None:
    """Write the streamed response that `ask` returns to `path`, unzipped if it is a zipped CSV.

    Raises RuntimeError if the disk is too small or Kaggle refuses, and ConnectionError after client.TRIES attempts
    in a row without a byte.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before, answer = _arrived(path), ask()
        answer.close()
        receive = partial(_receive, answer, path, kaggle.timeout)
        try:
            part = client.retry(receive, path.name, client.AGAIN, kaggle.sleep)
            break
        except OSError:
            if _arrived(path) <= before:
                raise
    _settle(part, path)
    cli.say(f"{path}: {path.stat().st_size} bytes")


def _arrived(path: Path) -> int:
    return sum(part.stat().st_size for part in path.parent.glob(f".{path.name}.*.part"))


def _receive(source: Any, path: Path, timeout: float) -> Path:
    """Return a file with the whole body of `source`, a response whose body has not been read.

    Its name depends on the version of the file at Kaggle, so that a part of another version is never resumed.
    """
    import requests

    total = int(source.headers["Content-Length"])
    state = f"{source.headers.get('ETag')} {source.headers.get('Last-Modified')} {total}"
    part = path.with_name(f".{path.name}.{hashlib.sha256(state.encode()).hexdigest()[:12]}.part")
    for stale in {*path.parent.glob(f".{path.name}.*.part")} - {part}:
        stale.unlink()
    n_done = part.stat().st_size if part.exists() else 0
    if (free := shutil.disk_usage(path.parent).free) < total - n_done:
        raise RuntimeError(f"{path}: {total / 1e9:.0f} GB to download, {free / 1e9:.0f} GB free: make room on the disk")
    if n_done == total:
        return part
    with requests.get(source.url, headers={"Range": f"bytes={n_done}-"}, stream=True, timeout=timeout) as answer:
        answer.raise_for_status()
        # Status 200: the server ignores the range and sends the whole file.
        _append(answer, part, n_done if answer.status_code == 206 else 0, total, path.name)
    if part.stat().st_size != total:
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes arrived")
    return part


def _append(answer: Any, part: Path, n_done: int, total: int, what: str) -> None:
    bar = cli.progress(None, total, what, "B", initial=n_done)
    with part.open("ab" if n_done else "wb") as file, bar:
        for block in answer.iter_content(BLOCK):
            file.write(block)
            bar.update(len(block))


def _settle(part: Path, path: Path) -> None:
    """Move a complete `part` to `path`; if it is a zip and `path` is not, extract the one file of that name."""
    if path.suffix == ".zip" or not zipfile.is_zipfile(part):
        part.replace(path)
        return
    with zipfile.ZipFile(part) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).name == path.name]
        if len(names) != 1:
            raise ValueError(
                f"{part} holds {', '.join(archive.namelist()[:3])}, not one {path.name}: remove it and download again"
            )
        with archive.open(names[0]) as source, storage.writing(path) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(source, file, BLOCK)
    part.unlink()
