"""Locks between processes: one writer at a time. A lock is released when its process ends, however it ends."""

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)  # some network disks


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, a file or folder that need not exist; log that it waits while another process holds it.

    No lock is held where the lock file cannot be written, as then nothing else can, or where the disk has no locks.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, path)
    except OSError as error:
        if error.errno in NO_LOCKS:
            log.warning("%s: this disk has no locks (%s): run one command at a time on it", path.parent, error.strerror)
        elif error.errno not in READ_ONLY:
            raise
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process is working on it: waiting", path)
        lock.acquire()
