import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ich_kaggle.common import paths, provenance, tables
from ich_kaggle.dicom import slice_table


@pytest.fixture
def data(competition, tmp_path):
    """A copy of the competition that a test may change."""
    return paths.Data(shutil.copytree(competition, tmp_path / "input"))


def test_a_folder_and_its_zip_have_the_same_checksums(data, tmp_path):
    packed = paths.find_data(Path(shutil.make_archive(str(tmp_path / "all"), "zip", data.root)))
    assert packed.is_zip
    folder, zipped = provenance.settings(data), provenance.settings(packed)
    assert {name: folder[name] for name in provenance.NAMES} == {name: zipped[name] for name in provenance.NAMES}


@pytest.mark.parametrize("name", provenance.NAMES)
def test_an_edited_table_is_named_with_both_checksums(data, tmp_path, name):
    found = provenance.settings(data)
    provenance.same_tables(tmp_path / "slices.parquet", found, data)
    (data.root / name).write_bytes((data.root / name).read_bytes().replace(b",", b", ", 1))
    with pytest.raises(
        ValueError, match=f"slices.parquet was made with {name} {found[name]}, not {data.checksum(name)}"
    ):
        provenance.same_tables(tmp_path / "slices.parquet", found, data)


def test_a_table_from_before_the_checksums_is_taken_as_it_is(data, tmp_path):
    provenance.same_tables(tmp_path / "slices.parquet", {"data_dir": "elsewhere"}, data)


def test_data_that_were_removed_are_not_asked_for_unless_they_are_named(tmp_path):
    assert provenance.find({"data_dir": str(tmp_path / "gone")}, None) is None
    assert provenance.find({}, None) is None
    with pytest.raises(FileNotFoundError):
        provenance.find({}, tmp_path / "gone")


def test_a_zip_is_looked_into_only_on_demand(data, tmp_path):
    packed = Path(shutil.make_archive(str(tmp_path / "all"), "zip", data.root))
    found = {"data_dir": str(packed)}
    assert provenance.find(found, None, zips=False) is None
    assert provenance.find(found, None).root == provenance.find({}, packed, zips=False).root == packed


def test_a_slice_that_changed_or_went_is_named(data, tmp_path):
    slice_table.make(data_dir=data.root, work_dir=tmp_path / "work", workers=1)
    table = tables.read_slices(tmp_path / "work")
    provenance.same_files(data, table)
    provenance.same_files(None, table)
    path = data.root / table.path[3]
    os.utime(path, ns=(1, 1))
    with pytest.raises(
        ValueError, match=rf"{table.path[3]} has changed since it was scanned \(.*now \d+ bytes, stamp 1\)"
    ):
        provenance.same_files(data, table)
    path.unlink()
    with pytest.raises(ValueError, match=f"{table.path[3]} was scanned and is gone: get it again, or run python -m"):
        provenance.same_files(data, table)


def git(folder: Path, *command: str) -> str:
    about = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", "-C", folder, *about, *command], env=environment, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout of the project with one commit."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "setup.cfg").write_text("")
    git(root, "init", "-q")
    git(root, "add", "setup.cfg")
    git(root, "commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "CHECKOUT", root)
    return root


def test_the_commit_is_that_of_the_projects_own_checkout(checkout, monkeypatch, tmp_path):
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    assert provenance.git_commit() == commit
    (checkout / "setup.cfg").write_text("changed")
    assert provenance.git_commit() == f"{commit}+"
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))  # as inside a hook of another repository
    assert provenance.git_commit() == f"{commit}+"


@pytest.mark.parametrize("inside", ["site-packages", "an empty .git"])
def test_a_repository_around_the_package_is_not_asked(checkout, monkeypatch, inside):
    root = checkout / "site-packages"
    root.mkdir()
    if inside == "an empty .git":
        (root / ".git").mkdir()
        (root / "setup.cfg").touch()
    monkeypatch.setattr(provenance, "CHECKOUT", root)
    assert provenance.git_commit() is None


def test_nothing_that_the_settings_of_a_repository_name_is_run(checkout, tmp_path):
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    script.chmod(0o755)
    git(checkout, "config", "core.fsmonitor", str(script))
    (checkout / ".git" / "hooks").mkdir(exist_ok=True)
    shutil.copy(script, checkout / ".git" / "hooks" / "post-index-change")
    os.utime(checkout / "setup.cfg", ns=(1, 1))  # so that the index would be written anew
    assert provenance.git_commit() == git(checkout, "rev-parse", "HEAD")[:12]
    assert not (tmp_path / "ran").exists()
