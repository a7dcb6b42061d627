import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ich_kaggle import locks


def test_a_lock_is_held_alone_and_goes_with_its_process(tmp_path):
    folder = tmp_path / "512"
    code = "import sys; from pathlib import Path; from ich_kaggle import locks\n"
    code += "with locks.locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    lock = tmp_path / ".512.lock"
    with lock.open("a") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with locks.locked(folder):
        assert lock.exists()
    other.stdin.close()
    other.stdout.close()


def test_whoever_waits_for_a_lock_says_so(tmp_path, monkeypatch, caplog):
    asked = []

    def flock(file, how):
        asked.append(how)
        if how & fcntl.LOCK_NB:
            raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level("INFO"), locks.locked(tmp_path / "512"):
        assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert "512: another process is at work on it: waiting" in caplog.text


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_where_nothing_can_be_written_nothing_is_held_and_a_full_disk_is_told(tmp_path, monkeypatch, code):
    def refuse(path, mode):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    if code == errno.ENOSPC:
        with pytest.raises(OSError, match=r"\.512\.lock"), locks.locked(tmp_path / "512"):
            pass
    else:
        with locks.locked(tmp_path / "512"):
            assert not list(tmp_path.iterdir())
