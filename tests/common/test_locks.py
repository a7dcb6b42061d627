import contextlib
import errno
import os
import subprocess
import sys

import pytest
from filelock import FileLock, Timeout

from ich_kaggle.common import locks


def test_a_lock_is_held_alone_and_goes_with_its_process(tmp_path):
    folder = tmp_path / "512"
    code = "import sys; from pathlib import Path; from ich_kaggle.common import locks\n"
    code += "with locks.locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    lock = FileLock(tmp_path / ".512.lock")
    with pytest.raises(Timeout):
        lock.acquire(timeout=0)
    other.kill()
    other.wait()
    with locks.locked(folder), pytest.raises(Timeout):
        lock.acquire(timeout=0)
    lock.acquire(timeout=0)
    lock.release()
    other.stdin.close()
    other.stdout.close()


def test_whoever_waits_for_a_lock_says_so(tmp_path, monkeypatch, caplog):
    asked = []

    def acquire(self, timeout=None):
        asked.append(timeout)
        if timeout == 0:
            raise Timeout(self.lock_file)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with caplog.at_level("INFO"), locks.locked(tmp_path / "512"):
        assert asked == [0, None]
    assert "512: another process is working on it: waiting" in caplog.text


@pytest.mark.parametrize(
    "code, raised, said",
    [
        (errno.EROFS, None, ""),
        (errno.EACCES, None, ""),
        (errno.ENOLCK, None, "this disk has no locks (No locks available): run one command at a time on it"),
        (errno.ENOSPC, OSError, ""),
    ],
)
def test_where_no_lock_can_be_held_none_is_and_a_full_disk_is_told(tmp_path, monkeypatch, caplog, code, raised, said):
    def refuse(*_):
        raise OSError(code, os.strerror(code), ".512.lock")

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    told = pytest.raises(raised, match=r"\.512\.lock") if raised else contextlib.nullcontext()
    with told, locks.locked(tmp_path / "512"):
        (tmp_path / "512").touch()
    assert (tmp_path / "512").exists() == (raised is None)
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_a_link_in_the_place_of_a_lock_is_told_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / ".512.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"symbolic links: .*\.512\.lock"), locks.locked(tmp_path / "512"):
        pass
    assert (tmp_path / "mine").read_text() == "kept"
