"""The folder that a scan writes to: what may be replaced in it, and who may read it."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ich_kaggle.common import storage
from ich_kaggle.scans import page, results

# How the files begin that a scan has written: other files of their names are not replaced.
MADE = {
    results.DONE: b'{\n "intended_use"',
    "slices.csv": b"study,series,",
    "studies.csv": b"study,series,",
}


def check(out: str | Path, overwrite: bool, report: bool) -> None:
    """Raise ValueError if predictions or a page in `out` would be overwritten, or a page would become outdated.

    Files and folders that a scan did not make are not replaced, whatever `overwrite` says. Raises FileExistsError for
    such a folder.
    """
    out = Path(out)
    done, shown = out / results.DONE, page.index(out)
    files = [out / name for name in MADE if (out / name).exists()]
    for there in [*files, *([shown] if report and shown.exists() else [])]:
        if not overwrite:
            raise ValueError(f"{there} exists: give another --out, or --overwrite")
    for there in files:
        if not _begins(there, MADE[there.name]):
            raise ValueError(f"{there} was not made by scan, and is not replaced: give another --out")
    if report:
        storage.check_made_by(shown.parent, "report")
    if done.exists() and shown.exists() and not report:
        raise ValueError(f"{shown} shows the predictions to be overwritten: give --report as well, or remove it")


def check_writable(out: str | Path) -> None:
    """Raise OSError if nothing can be written to the folder `out`, or where it will be made."""
    out = Path(out).absolute()
    place = next(one for one in (out, *out.parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(f"{place}: can't be written to ({error.strerror}): give another --out") from error


def _begins(path: Path, start: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(start)) == start


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Make files inside readable by this user only, as they hold ids and pictures of patients."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
