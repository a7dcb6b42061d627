"""Download the competition's tables, or all of it, from Kaggle; an interrupted download is resumed.

The account must have accepted the competition's rules. The zip need not be unpacked: every command reads it in place.

Reads:   Kaggle's credentials (KAGGLE_API_TOKEN, ~/.kaggle/access_token or ~/.kaggle/kaggle.json)
Writes:  stage_2_train.csv and stage_2_sample_submission.csv in --data-dir, or with --all the zip beside that folder
Example: python -m ich_kaggle.download --all
         python -m ich_kaggle.download --data-dir /data/rsna
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ich_kaggle.common import cli, paths, storage
from ich_kaggle.kaggle_api import client

CSVS = (paths.SAMPLE_CSV, paths.TRAIN_CSV)
BLOCK = 1 << 20  # bytes


def tables(kaggle: client.Connection, folder: Path) -> list[Path]:
    """Return the competition's CSVs in `folder`, those fetched that it lacks."""
    return [table(kaggle, folder / name) for name in CSVS]


def table(kaggle: client.Connection, path: Path) -> Path:
    method = kaggle.competitions.download_data_file
    if not is_there(path):
        for name in (path.name, f"{paths.SLUG}/{path.name}"):  # Kaggle has listed the files in both ways
            fields = dict(competition_name=paths.SLUG, file_name=name, hint=client.RULES)
            try:
                fetch(kaggle, lambda fields=fields: kaggle.call(method, **fields), path)
                break
            except RuntimeError as error:
                if "/" in name or not client.is_missing(error):
                    raise
    return path


def everything(kaggle: client.Connection, path: Path) -> Path:
    """Return `path`, the zip of all the competition's files, about 180 GB, fetched if it is missing."""
    method, fields = kaggle.competitions.download_data_files, dict(competition_name=paths.SLUG)
    if not is_there(path):
        fetch(kaggle, lambda: kaggle.call(method, hint=client.RULES, **fields), path)
    return path


def is_there(path: Path) -> bool:
    if path.exists():
        cli.say(f"{path}{cli.THERE}")
    return path.exists()


def fetch(kaggle: client.Connection, ask: Callable[[], Any], path: Path) -> None:
    """Write what `ask` answers, a streamed response, to `path`; a CSV that came zipped is unzipped.

    Raises RuntimeError where the disk is too small, or Kaggle refuses, and ConnectionError once five tries in a row
    have brought nothing.
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
    """Return the file that holds all of what `source`, a response, began to send.

    It is named after what tells one state of the source from another, so that no other state is gone on from.
    """
    import requests

    total = int(source.headers["Content-Length"])
    state = f"{source.headers.get('ETag')} {source.headers.get('Last-Modified')} {total}"
    part = path.with_name(f".{path.name}.{hashlib.sha256(state.encode()).hexdigest()[:12]}.part")
    for stale in {*path.parent.glob(f".{path.name}.*.part")} - {part}:
        stale.unlink()
    n_there = part.stat().st_size if part.exists() else 0
    if (free := shutil.disk_usage(path.parent).free) < total - n_there:
        raise RuntimeError(f"{path} takes {total / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free: make room for it")
    if n_there == total:
        return part
    with requests.get(source.url, headers={"Range": f"bytes={n_there}-"}, stream=True, timeout=timeout) as answer:
        answer.raise_for_status()
        # Status 200: all of it comes again.
        _append(answer, part, n_there if answer.status_code == 206 else 0, total, path.name)
    if part.stat().st_size != total:
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes came")
    return part


def _append(answer: Any, part: Path, n_there: int, total: int, what: str) -> None:
    bar = cli.progress(None, total, what, "B", initial=n_there)
    with part.open("ab" if n_there else "wb") as file, bar:
        for block in answer.iter_content(BLOCK):
            file.write(block)
            bar.update(len(block))


def _settle(part: Path, path: Path) -> None:
    """Move a whole `part` to `path`, or the one file of that name that it holds, if it is a zip and `path` is not."""
    if path.suffix == ".zip" or not zipfile.is_zipfile(part):
        part.replace(path)
        return
    with zipfile.ZipFile(part) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).name == path.name]
        if len(names) != 1:
            raise ValueError(f"{part} holds {', '.join(archive.namelist()[:3])}, not one {path.name}: remove it")
        with archive.open(names[0]) as source, storage.writing(path) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(source, file, BLOCK)
    part.unlink()


def download(*, data_dir: Path | None, whole: bool, connect: Callable = client.connect) -> None:
    """Fetch the CSVs into `data_dir`, or if `whole` the zip of everything, beside it or called so."""
    place = data_dir or Path(os.environ.get("ICH_DATA_DIR") or paths.DEFAULT)
    if not whole:
        tables(connect(), place)
        return
    path = everything(connect(), place if place.suffix == ".zip" else place.with_name(f"{place.name}.zip"))
    cli.say(f"now run python -m ich_kaggle.slices --data-dir {path}")


def build_parser():
    parser = cli.command(__doc__)
    help_text = f"folder of the tables; --all writes this name with .zip (default: $ICH_DATA_DIR, or {paths.DEFAULT})"
    parser.add_argument("--data-dir", type=Path, help=help_text)
    parser.add_argument("--all", dest="whole", action="store_true", help="everything, as one zip of 180 GB")
    return parser


def main(argv=None):
    cli.run(download, build_parser(), argv)


if __name__ == "__main__":
    main()
