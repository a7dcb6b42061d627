"""One process at a time at what several could write: a lock that goes with its process, however that ends."""

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

log = logging.getLogger(__name__)

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path`, a file or folder that may not be there yet, alone inside; wait, saying so, while another does.

    Where the lock can't be made for want of a permission nothing can be written either, and nothing is held.
    """
    with _lock_file(path) or contextlib.nullcontext() as file:
        if file is not None:
            _hold(file, path)
        yield


def _lock_file(path: Path) -> TextIO | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.lock").open("a")
    except OSError as error:
        if error.errno in READ_ONLY:
            return None
        raise


def _hold(file: TextIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("%s: another process is at work on it: waiting", path)
        fcntl.flock(file, fcntl.LOCK_EX)
