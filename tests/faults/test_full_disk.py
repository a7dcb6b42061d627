"""A disk that is full, read-only or forbidden: one line that names the file and the reason, and nothing half written.

ICH_FULL is how often each stage meets a full disk (2): once with no room at all, then with a drawn part of what it
writes.
"""

import ctypes
import os
import struct
import subprocess

import numpy as np
import pytest
import stages

N_FULL = int(os.environ.get("ICH_FULL", "2"))
PAGE = os.sysconf("SC_PAGE_SIZE")


class Disk:
    """A file system in memory under the project's folder."""

    def __init__(self, folder):
        self.folder = str(folder)
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "ich-faults", self.folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def set(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def used(self) -> int:
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def remove(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(project):
    disk = Disk(project.folder)
    yield disk
    disk.remove()


def reason(project: stages.Project, name: str, **options) -> str:
    """Run a stage that fails; return the reason that its one line gives, which names a file that it writes."""
    path, _, reason = project.run(name, **options).line.removeprefix("error: ").partition(": ")
    assert project.is_written_by(name, path), path
    assert project.half_written() == []
    return reason


@pytest.mark.slow
@pytest.mark.parametrize("number", range(N_FULL))
@pytest.mark.parametrize("name", stages.NAMES)
def test_a_full_disk_is_one_line_and_with_room_again_the_same_command_ends_as_if_undisturbed(
    project, server, disk, name, number
):
    project.reset(name)
    before, whole = project.files(), project.after[name]
    needed = sum(-(-len(whole[path]) // PAGE) for path in whole if whole[path] != before.get(path)) - 1
    room = int(np.random.default_rng(number).uniform(0, needed)) if number else 0
    disk.set(f"size={disk.used() + room * PAGE}")
    with stages.trial("full disk", name):
        line = reason(project, name)  # the cache asks for its room before it begins
        assert "No space left on device" in line or (name == "cache" and "the disk has 0.0 GB free" in line)
        assert not server.submissions
        disk.set("size=64m")
        project.make(name)
        assert project.differences(name) == []
        assert len(server.submissions) == (name == "submit")


@pytest.mark.slow
@pytest.mark.parametrize("name", stages.NAMES)
def test_a_read_only_disk_is_one_line_that_names_the_path(project, server, disk, name):
    project.reset(name)
    before = project.files()
    disk.set("ro")
    with stages.trial("read-only", name):
        assert "Read-only file system" in reason(project, name)
        assert project.files() == before
        assert not server.submissions
    disk.set("rw")


@pytest.mark.slow
@pytest.mark.parametrize("name", stages.NAMES[:-1])
def test_a_finished_stage_on_a_read_only_disk_has_nothing_to_do(project, disk, name):
    project.reset("end")
    disk.set("ro")
    with stages.trial("finished, read-only", name):
        assert "exists: nothing to do" in project.make(name).out
    disk.set("rw")


CAPABILITIES = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # <linux/capability.h>: version 3, this process; none


def _unprivileged() -> None:
    # Not another user, who may not reach the interpreter: root itself, bound by permissions like anyone.
    assert ctypes.CDLL(None, use_errno=True).capset(*CAPABILITIES) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def forbid(project):
    """Take permissions from everything in the project, and give them back at the end."""

    def forbid(folders: int, files: int) -> None:
        for path in (project.folder, *project.folder.rglob("*")):
            path.chmod(folders if path.is_dir() else files)

    yield forbid
    forbid(0o755, 0o644)


@pytest.mark.slow
@pytest.mark.parametrize("name", stages.NAMES)
def test_a_folder_that_may_not_be_written_to_is_one_line_that_names_it(project, server, forbid, name):
    project.reset(name)
    before = project.files()
    forbid(0o555, 0o444)
    with stages.trial("permission denied", name):
        assert "Permission denied" in reason(project, name, first=_unprivileged)
        assert project.files() == before
        assert not server.submissions


@pytest.mark.slow
@pytest.mark.parametrize("path, name", [("work/slices.parquet", "folds"), ("work/folds.csv", "train")])
def test_a_file_that_may_not_be_read_is_one_line_that_names_it(project, forbid, path, name):
    project.reset(name)
    (project.folder / path).chmod(0)
    with stages.trial("permission denied", name):
        line = project.run(name, first=_unprivileged).line
        assert path in line and "Permission denied" in line and "damaged" not in line
