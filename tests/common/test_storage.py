import errno
import os
import subprocess
from pathlib import Path

import pytest

from ich_kaggle.common import storage


def test_a_file_is_moved_into_place_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with storage.writing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with pytest.raises(RuntimeError), storage.writing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left on device: .*file.txt"), storage.writing(tmp_path / "file.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_that_torch_covers_with_an_error_of_its_own_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left on device: .*file.txt"), storage.writing(tmp_path / "file.txt"):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("unexpected pos 41216 vs 41168") from None
    with pytest.raises(RuntimeError, match="out of memory"), storage.writing(tmp_path / "file.txt"):
        raise RuntimeError("out of memory")


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_of_a_file_goes_when_that_is_written_and_nothing_else(tmp_path, gone):
    end = "0123456789abcdef"
    kept = {f".file.txt.{os.getppid()}.{end}", f".other.txt.{gone}.{end}", f".file.txt.{gone}.mine", ".file.txt.lock"}
    for name in (*kept, "file.txt", f".file.txt.{gone}.{end}"):
        (tmp_path / name).write_text("half")
    for sweep in (False, True):
        with storage.writing(tmp_path / "file.txt", sweep=sweep) as temporary:
            temporary.write_text("whole")
        assert (tmp_path / f".file.txt.{gone}.{end}").exists() == (not sweep)
    assert {path.name for path in tmp_path.iterdir()} == kept | {"file.txt"}
    assert (tmp_path / "file.txt").read_text() == "whole"


def test_a_file_is_removed_with_what_a_killed_process_left_of_it(tmp_path, gone):
    for name in ("state.pt", f".state.pt.{gone}.0123456789abcdef", f".model.pt.{gone}.0123456789abcdef"):
        (tmp_path / name).touch()
    for _ in range(2):
        storage.remove(tmp_path / "state.pt")
        assert [path.name for path in tmp_path.iterdir()] == [f".model.pt.{gone}.0123456789abcdef"]


def test_a_temporary_file_has_another_name_each_time_and_is_never_a_link(tmp_path, monkeypatch):
    names = set()
    for _ in range(5):
        with storage.writing(tmp_path / "file.txt") as temporary:
            names.add(temporary.name)
    assert len(names) == 5
    (tmp_path / "others").write_text("kept")
    monkeypatch.setattr(storage.secrets, "token_hex", lambda n: "ab" * n)  # as if it could be foretold
    link = tmp_path / f".file.txt.{os.getpid()}.{'ab' * 8}"
    link.symlink_to(tmp_path / "others")
    with pytest.raises(FileExistsError, match="file.txt"), storage.writing(tmp_path / "file.txt") as temporary:
        temporary.write_text("lost")
    assert (tmp_path / "others").read_text() == "kept"


def test_a_file_that_cannot_be_made_is_named_by_its_own_name(tmp_path):
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(OSError) as error, storage.writing(tmp_path / "file.txt") as temporary:
        temporary.write_text("")
    assert error.value.filename == str(tmp_path / "file.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_is_replaced_by_the_command_that_made_it(tmp_path, gone):
    (tmp_path / f".page.{gone}.{'0' * 16}").mkdir()  # what a killed process left
    for text in ("first", "second"):
        with storage.replacing(tmp_path / "page", "report") as new:
            (new / text).write_text(text)
    with pytest.raises(RuntimeError), storage.replacing(tmp_path / "page", "report") as new:
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"second", storage.MARKER}
    assert (tmp_path / "page").stat().st_mode & 0o777 == 0o700  # pages may hold patients' ids


def test_a_process_killed_between_the_renames_loses_nothing(tmp_path, monkeypatch):
    folder, rename = tmp_path / "page", Path.rename

    def killed(path: Path, target: Path) -> None:
        if target == folder:
            raise KeyboardInterrupt
        rename(path, target)

    with storage.replacing(folder, "report") as new:
        (new / "first").touch()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", killed)
        with storage.replacing(folder, "report") as new:
            (new / "second").touch()
    assert not folder.exists()
    with pytest.raises(RuntimeError), storage.replacing(folder, "report"):
        raise RuntimeError  # the next attempt fails as well
    assert (folder / "first").exists()
    with storage.replacing(folder, "report") as new:
        (new / "third").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["page"] and (folder / "third").exists()


@pytest.mark.parametrize("made", ["by hand", "by another command", "a file", "a link to nothing"])
def test_a_folder_that_the_command_did_not_make_is_refused_and_left_alone(tmp_path, made):
    folder = tmp_path / "docs"
    match made:
        case "by hand":
            folder.mkdir()
            (folder / "thesis").write_text("mine")
        case "by another command":
            storage.claim(folder, "kernel weights")
        case "a file":
            folder.write_text("mine")
        case _:
            folder.symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    by = "kernel weights" if made == "by another command" else "something else"
    refused = f"docs exists, made by {by}, not by report: remove or rename"
    with pytest.raises(FileExistsError, match=refused), storage.replacing(folder, "report"):
        pass
    with pytest.raises(FileExistsError, match=refused):
        storage.claim(folder, "report")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_and_a_link_to_a_folder_of_the_command_may_be_used(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "page").symlink_to(tmp_path / "disk")
    for _ in range(2):
        with storage.replacing(tmp_path / "page", "report") as new:
            (new / "index.html").touch()
    assert (tmp_path / "page").is_symlink() and (tmp_path / "disk" / "index.html").exists()


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="folds.csv is missing: run python -m ich_kaggle.folds --seed 1"):
        storage.require(tmp_path / "folds.csv", "--seed 1")


@pytest.mark.parametrize(
    "path, command",
    [
        ("slices.parquet", "run python -m ich_kaggle.slices --overwrite"),
        ("defects.csv", "run python -m ich_kaggle.slices --overwrite"),
        ("folds.json", "run python -m ich_kaggle.folds --overwrite"),
        ("cache/512/cache.json", "remove it and run python -m ich_kaggle.cache"),
        ("runs/a/run.json", "remove {folder} and make the run anew: its settings are lost"),
        ("runs/a/fold3/model.pt", "run python -m ich_kaggle.train --run a --fold 3 --overwrite"),
        ("runs/a/fold3/oof.parquet", "run python -m ich_kaggle.predict --run a --fold 3 --overwrite"),
        ("runs/a/fold3/embeddings.npy", "run python -m ich_kaggle.predict --run a --fold 3 --all-slices --overwrite"),
        ("runs/second/fold0/oof.parquet", "run python -m ich_kaggle.sequence --run second --fold 0 --overwrite"),
        ("runs/a/evaluation/metrics.json", "run python -m ich_kaggle.evaluate --run a --overwrite"),
        ("ensemble/a/evaluation/metrics.json", "run python -m ich_kaggle.evaluate --ensemble a --overwrite"),
        ("ensemble/a/test.parquet", "run python -m ich_kaggle.ensemble --name a --overwrite"),
    ],
)
def test_a_damaged_file_is_made_anew_by_the_command_that_made_it(tmp_path, path, command):
    (tmp_path / "runs/second/fold0").mkdir(parents=True)
    (tmp_path / "runs/second/fold0/widths.json").touch()
    assert storage.remedy(tmp_path / path).startswith(command.format(folder=(tmp_path / path).parent))


def test_a_file_that_was_there_once_is_made_anew_and_not_only_made(tmp_path):
    storage.write_json(tmp_path / "fold0" / "predict.json", {})
    with pytest.raises(FileNotFoundError, match=r"oof.parquet is missing: run .*predict --run .* --overwrite"):
        storage.require(tmp_path / "fold0" / "oof.parquet", "--run a --fold 0")


def test_settings_that_differ_are_refused_with_both_named(tmp_path):
    storage.same_settings(tmp_path, {"a": [1, 2], "b": 3}, {"a": (1, 2)}, "mend it")
    with pytest.raises(ValueError, match=r"made with a \[1, 2\], not \[1, 3\]: mend it"):
        storage.same_settings(tmp_path, {"a": [1, 2]}, {"a": (1, 3)}, "mend it")


def test_a_damaged_json_is_refused_with_its_maker(tmp_path):
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(ValueError, match="cache.json: damaged .*: remove it and run python -m ich_kaggle.cache"):
        storage.read_json(tmp_path / "cache.json")


@pytest.mark.parametrize(
    "error, reason",
    [
        (ValueError("a bad byte\nand a long story"), "a bad byte"),
        (OSError("page checksum"), "page checksum"),
        (KeyError("config"), "KeyError 'config'"),
        (RecursionError(), "RecursionError"),
        (ValueError("x" * 1000), "x" * 197 + "..."),
    ],
)
def test_any_error_of_reading_a_damaged_file_becomes_one_line_with_what_to_do(tmp_path, error, reason):
    path = tmp_path / "folds.csv"
    for advice in ("", "get it again"):
        with pytest.raises(ValueError) as told, storage.reading(path, advice):
            raise error
        assert str(told.value) == f"{path}: damaged ({reason}): {advice or storage.remedy(path)}"


def test_a_missing_file_is_not_called_damaged_nor_one_without_permission(tmp_path):
    path = tmp_path / "folds.csv"
    with pytest.raises(FileNotFoundError) as told, storage.reading(path):
        path.read_text()
    assert str(told.value) == f"{path} is missing: run python -m ich_kaggle.folds --overwrite"
    with pytest.raises(PermissionError, match="^denied$"), storage.reading(path):
        raise PermissionError("denied")


def test_settings_that_are_none_are_told_with_the_remedy():
    with pytest.raises(ValueError, match=r"x\.json: damaged, \[1\] where settings should be: make it anew"):
        storage.same_settings(Path("x.json"), [1], {"a": 1}, "make it anew")
