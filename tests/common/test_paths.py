import os
import zipfile
from pathlib import Path

import pytest

from ich_kaggle.common import paths

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
    ways = (f"{paths.DOWNLOAD} --all", "--data-dir", "ICH_DATA_DIR", "ich_kaggle.phantom", "ich_kaggle.demo")
    for word in (f"{tmp_path}/mount", f"input/{paths.SLUG}.zip", *ways):
        assert word in str(refused.value)


def only_tables(root: Path) -> Path:
    for name in (paths.TRAIN_CSV, paths.SAMPLE_CSV):
        root.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(FILES[name])
    return root


@pytest.mark.parametrize("asked", ["nothing", "the folder", "its parent", "the environment: the folder", "its mount"])
def test_a_folder_with_tables_alone_does_not_hide_the_zip_beside_it(tmp_path, monkeypatch, asked):
    monkeypatch.delenv("ICH_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "MOUNTS", (str(tmp_path / "mount"),))
    tables = only_tables(Path("mount") if asked == "its mount" else paths.DEFAULT)
    whole = packed(Path(f"{paths.DEFAULT}.zip"), f"{paths.SLUG}/")
    if asked == "the environment: the folder":
        monkeypatch.setenv("ICH_DATA_DIR", str(tables))
    found = paths.find_data({"the folder": tables, "its parent": tables.parent}.get(asked))
    assert found == paths.Data(whole, f"{paths.SLUG}/")
    assert len(found.members("train")) == 2


def test_a_folder_with_images_wins_over_the_zip_beside_it(tmp_path):
    whole = folder(tmp_path / "rsna")
    (tmp_path / "rsna.zip").write_bytes(b"half a download")
    assert paths.find_data(whole) == paths.Data(whole)


def test_a_folder_with_tables_alone_is_found_where_there_is_nothing_else(tmp_path):
    tables = only_tables(tmp_path / "rsna")
    assert paths.find_data(tables) == paths.Data(tables)


def test_the_zip_inside_the_folder_that_is_named_is_found(tmp_path):
    whole = packed(tmp_path / f"{paths.SLUG}.zip", "")
    assert paths.find_data(tmp_path) == paths.Data(whole)


def test_the_folder_that_the_environment_names_is_the_only_default(tmp_path, monkeypatch):
    monkeypatch.setenv("ICH_DATA_DIR", str(folder(tmp_path / "mine")))
    assert paths.find_data().root == tmp_path / "mine"


def test_a_damaged_zip_is_refused_with_its_name(tmp_path):
    (tmp_path / "all.zip").write_bytes(b"PK half a download")
    with pytest.raises(ValueError, match="all.zip: not a readable zip .*: download it again"):
        paths.find_data(tmp_path / "all.zip")


def test_a_cached_slice_lies_under_the_first_digits_of_its_id():
    assert paths.cached(Path("512"), "ID_ab12cd34e") == Path("512/ab/ID_ab12cd34e.png")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_run_that_cannot_name_a_folder_is_refused(name):
    with pytest.raises(ValueError, match="can't name a folder"):
        paths.run(Path("work"), name)
