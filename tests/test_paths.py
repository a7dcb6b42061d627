import errno
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from ich_kaggle import paths

FILES = {
    paths.TRAIN_CSV: b"ID,Label\n",
    paths.SAMPLE_CSV: b"ID,Label\nx,0.5\n",
    "stage_2_train/ID_00000000b.dcm": b"second",
    "stage_2_train/ID_00000000a.dcm": b"first",
    "stage_2_train/notes.txt": b"",
    "stage_2_test/ID_00000000c.dcm": b"third",
}


def folder(root: Path) -> Path:
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def packed(path: Path, prefix: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(prefix + name, content)
    return path


@pytest.fixture(params=["folder", "twice", "zip", "flat zip", "zip twice"])
def data(request, tmp_path) -> paths.Data:
    place = {
        "folder": lambda: folder(tmp_path),
        "twice": lambda: folder(tmp_path / paths.SLUG / paths.SLUG).parents[1],
        "zip": lambda: packed(tmp_path / "all.zip", paths.SLUG + "/"),
        "flat zip": lambda: packed(tmp_path / "all.zip", ""),
        "zip twice": lambda: packed(tmp_path / "all.zip", f"{paths.SLUG}/{paths.SLUG}/"),
    }[request.param]()
    return paths.find_data(place)


def test_the_data_are_found_in_every_layout(data):
    with data.open(paths.SAMPLE_CSV) as file:
        assert file.read() == FILES[paths.SAMPLE_CSV]


def test_members_are_the_dicom_files_of_a_split_sorted_by_name(data):
    members = data.members("train")
    assert [Path(member.path).name for member in members] == ["ID_00000000a.dcm", "ID_00000000b.dcm"]
    assert [data.read(member) for member in members] == [b"first", b"second"]
    assert [member.size for member in members] == [5, 6]
    assert [data.read(member, 2) for member in data.members("test")] == [b"th"]


def test_the_stamp_of_a_member_changes_with_its_content(data):
    before = data.members("test")[0].stamp
    if data.is_zip:
        with zipfile.ZipFile(data.root, "w") as archive:
            archive.writestr(data.inner + "stage_2_test/ID_00000000c.dcm", b"THIRD")
    else:
        path = data.root / "stage_2_test/ID_00000000c.dcm"
        path.write_bytes(b"THIRD")
        os.utime(path, ns=(7, 7))
    assert data.members("test")[0].stamp != before


def test_the_folders_of_2019_are_found_too(tmp_path):
    folder(tmp_path)
    (tmp_path / "stage_2_test").rename(tmp_path / "stage_2_test_images")
    assert [member.path for member in paths.Data(tmp_path).members("test")] == ["stage_2_test_images/ID_00000000c.dcm"]


def test_a_missing_table_is_refused_with_its_name(data):
    with pytest.raises(FileNotFoundError, match="other.csv is missing: download"), data.open("other.csv"):
        pass


def test_no_data_anywhere_says_where_it_looked_and_how_to_get_some(tmp_path, monkeypatch):
    monkeypatch.delenv("ICH_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "MOUNTS", (str(tmp_path / "mount"),))
    with pytest.raises(FileNotFoundError) as refused:
        paths.find_data()
    for word in (f"{tmp_path}/mount", "kaggle competitions download", "ich_kaggle.phantom", "ich_kaggle.demo"):
        assert word in str(refused.value)


def test_the_folder_that_the_environment_names_is_the_only_default(tmp_path, monkeypatch):
    monkeypatch.setenv("ICH_DATA_DIR", str(folder(tmp_path / "mine")))
    assert paths.find_data().root == tmp_path / "mine"


def test_a_damaged_zip_is_refused_with_its_name(tmp_path):
    (tmp_path / "all.zip").write_bytes(b"PK half a download")
    with pytest.raises(ValueError, match="all.zip: not a readable zip .*: download it again"):
        paths.find_data(tmp_path / "all.zip")


def test_a_file_is_moved_into_place_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with paths.writing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with pytest.raises(RuntimeError), paths.writing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left on device: .*file.txt"), paths.writing(tmp_path / "file.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_that_torch_covers_with_an_error_of_its_own_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left on device: .*file.txt"), paths.writing(tmp_path / "file.txt"):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("unexpected pos 41216 vs 41168") from None
    with pytest.raises(RuntimeError, match="out of memory"), paths.writing(tmp_path / "file.txt"):
        raise RuntimeError("out of memory")


def test_what_a_killed_process_left_of_a_file_goes_when_that_is_written_and_nothing_else(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    kept = {f".file.txt.{os.getppid()}", f".other.txt.{gone.pid}", ".file.txt.lock", "file.txt"}
    for name in (*kept, f".file.txt.{gone.pid}"):
        (tmp_path / name).write_text("half")
    with paths.writing(tmp_path / "file.txt", sweep=False) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / f".file.txt.{gone.pid}").exists()
    with paths.writing(tmp_path / "file.txt") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert (tmp_path / "file.txt").read_text() == "whole"


def test_a_file_that_cannot_be_made_is_named_by_its_own_name(tmp_path):
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(OSError) as error, paths.writing(tmp_path / "file.txt") as temporary:
        temporary.mkdir()
        temporary.write_text("")
    assert error.value.filename == str(tmp_path / "file.txt")
    temporary.rmdir()


def test_a_cached_slice_lies_under_the_first_digits_of_its_id():
    assert paths.cached(Path("512"), "ID_ab12cd34e") == Path("512/ab/ID_ab12cd34e.png")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_run_that_cannot_name_a_folder_is_refused(name):
    with pytest.raises(ValueError, match="can't name a folder"):
        paths.run(Path("work"), name)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="folds.csv is missing: run python -m ich_kaggle.folds --seed 1"):
        paths.require(tmp_path / "folds.csv", "--seed 1")


@pytest.mark.parametrize(
    "path, command",
    [
        ("slices.parquet", "run python -m ich_kaggle.slices --overwrite"),
        ("defects.csv", "run python -m ich_kaggle.slices --overwrite"),
        ("folds.json", "run python -m ich_kaggle.folds --overwrite"),
        ("cache/512/cache.json", "remove it and run python -m ich_kaggle.cache"),
        ("runs/a/fold3/options.json", "run python -m ich_kaggle.train --run a --fold 3 --overwrite, with the other"),
        ("runs/a/fold3/oof.parquet", "run python -m ich_kaggle.predict --run a --fold 3 --overwrite, with the other"),
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
    assert paths.remedy(tmp_path / path).startswith(command)


def test_a_file_that_was_there_once_is_made_anew_and_not_only_made(tmp_path):
    paths.write_json(tmp_path / "fold0" / "predict.json", {})
    with pytest.raises(FileNotFoundError, match=r"oof.parquet is missing: run .*predict --run .* --overwrite"):
        paths.require(tmp_path / "fold0" / "oof.parquet", "--run a --fold 0")


def test_settings_that_differ_are_refused_with_both_named(tmp_path):
    paths.same_settings(tmp_path, {"a": [1, 2], "b": 3}, {"a": (1, 2)}, "mend it")
    with pytest.raises(ValueError, match=r"made with a \[1, 2\], not \[1, 3\]: mend it"):
        paths.same_settings(tmp_path, {"a": [1, 2]}, {"a": (1, 3)}, "mend it")


def test_a_damaged_json_is_refused_with_its_maker(tmp_path):
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(ValueError, match="cache.json: damaged .*: remove it and run python -m ich_kaggle.cache"):
        paths.read_json(tmp_path / "cache.json")


def test_settings_that_are_none_are_told_with_the_remedy():
    with pytest.raises(ValueError, match=r"x\.json: damaged, \[1\] where settings should be: make it anew"):
        paths.same_settings(Path("x.json"), [1], {"a": 1}, "make it anew")
