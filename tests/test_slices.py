import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_files import content, ct, head, write

from ich_kaggle import slices, submit
from ich_kaggle.common import cli, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache, pixels, png, slice_table

HEAD = (head((32, 32), 12, (16, 16)) + 1024).astype(np.uint16)


def write_long(path: Path, slice_ids: list[str], value: float) -> None:
    rows = [f"{slice_id}_{label},{value}" for slice_id in slice_ids for label in LABELS]
    path.write_text("\n".join(["ID,Label", *rows]) + "\n")


@pytest.fixture
def data_dir(tmp_path):
    """Two train studies, of 4 and 3 slices, and a test study of 2, in an order that their names do not have."""
    root, n = tmp_path / "input", 0
    ids = {"train": [], "test": []}
    for split, patient, positions in [
        ("train", "b", [20, 10, 0, 10]),
        ("train", "a", [3, 2, 1]),
        ("test", "c", [5, 0]),
    ]:
        for position in positions:
            slice_id, n = f"ID_{n:09x}", n + 1
            ids[split].append(slice_id)
            uid = f"2.25.{ord(patient)}"
            tags = dict(PatientID=patient, StudyInstanceUID=uid, SeriesInstanceUID=uid)
            dataset = ct(HEAD, ImagePositionPatient=[0, 0, position], **tags)
            write(root / f"stage_2_{split}" / f"{slice_id}.dcm", dataset)
    write_long(root / paths.TRAIN_CSV, ids["train"], 0)
    write_long(root / paths.SAMPLE_CSV, ids["test"], 0.5)
    return root


def zipped(root: Path) -> Path:
    path = root.with_name("all.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, f"{paths.SLUG}/{file.relative_to(root)}")
    return path


def build(root: Path, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    return slice_table.build(paths.find_data(root), workers=1, **options)


def train_file(root: Path, k: int) -> Path:
    return root / "stage_2_train" / f"ID_{k:09x}.dcm"


def replace(path: Path, **tags) -> None:
    path.write_bytes(content(ct(HEAD, **tags)))


def test_slices_are_sorted_by_patient_and_position_and_ties_by_their_id(data_dir):
    table, _ = build(data_dir)
    assert table.patient_id.tolist() == ["a"] * 3 + ["b"] * 4 + ["c"] * 2
    assert table.position.tolist() == [1, 2, 3, 0, 10, 10, 20, 0, 5]
    assert table.slice_id.tolist()[3:7] == ["ID_000000002", "ID_000000001", "ID_000000003", "ID_000000000"]
    assert table.split.tolist() == ["train"] * 7 + ["test"] * 2


def test_the_order_does_not_depend_on_the_workers_or_on_how_files_are_listed(data_dir, monkeypatch):
    alone, _ = build(data_dir)
    members = paths.Data.members
    monkeypatch.setattr(paths.Data, "members", lambda data, split: members(data, split)[::-1])
    monkeypatch.setattr(slice_table, "BATCH", 2)
    pd.testing.assert_frame_equal(alone, build(data_dir)[0])


def test_the_zip_gives_the_same_table_as_the_folder(data_dir):
    unpacked, _ = build(data_dir)
    packed, _ = build(zipped(data_dir))
    where = list(paths.Member._fields)
    pd.testing.assert_frame_equal(unpacked.drop(columns=where), packed.drop(columns=where))
    assert (packed["size"] == unpacked["size"]).all() and (packed.packed < packed["size"]).all()


@pytest.mark.parametrize("packed", [False, True])
def test_the_places_of_a_table_lead_to_the_bytes_and_the_pixels_of_its_slices(data_dir, packed):
    data = paths.find_data(zipped(data_dir) if packed else data_dir)
    table = slice_table.build(data, workers=1)[0].iloc[2:8]
    found = slice_table.places(table)
    assert [place.slice_id for place in found] == table.slice_id.tolist()
    for _, member, plain in found:
        stored = data.read(member)
        assert stored == (data_dir / member.path.removeprefix(f"{paths.SLUG}/")).read_bytes()
        assert np.array_equal(pixels.read_words(stored, member.path, plain)[0], HEAD)
        assert plain.code == pixels.read_words(stored, member.path)[1]


def test_header_facts_are_kept(data_dir):
    first = build(data_dir)[0].iloc[0]
    assert (first.rows, first.columns, first.row_spacing, first.column_spacing, first.tilt) == (32, 32, 0.5, 0.5, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_train_slice_is_left_out_and_listed(data_dir, packed):
    whole, path = shutil.copytree(data_dir, data_dir.with_name("whole")), train_file(data_dir, 1)
    path.write_bytes(path.read_bytes()[:-100])
    table, defects = build(zipped(data_dir) if packed else data_dir)
    assert len(table) == 8 and "ID_000000001" not in set(table.slice_id)
    assert defects.slice_id.tolist() == ["ID_000000001"] and defects.action.tolist() == ["left out"]
    assert defects.defect.item() == "truncated: 1948 bytes of pixels, 2048 expected"
    pd.testing.assert_series_equal(table.dtypes, build(whole)[0].dtypes)


@pytest.mark.parametrize(
    "tags, defect",
    [
        (dict(ImageType=["DERIVED", "PRIMARY", "LOCALIZER"]), "ImageType says LOCALIZER: not a CT slice"),
        (dict(Modality="SR", PixelData=None), "Modality is SR, not CT: not a CT slice"),
        (dict(RescaleSlope=None), "no RescaleSlope in the header, so pixel values cannot be converted to HU"),
        (dict(NumberOfFrames=2), "NumberOfFrames is 2, not 1"),
    ],
)
def test_train_files_that_are_no_ct_slices_are_left_out_with_the_reason(data_dir, tags, defect):
    replace(train_file(data_dir, 5), **tags)
    table, defects = build(data_dir)
    assert "ID_000000005" not in set(table.slice_id)
    assert defects.defect.item().startswith(defect)


def test_a_test_slice_that_cannot_be_read_stops_the_run_with_its_name(data_dir):
    path = data_dir / "stage_2_test" / "ID_000000007.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"test slice stage_2_test/ID_000000007.dcm: truncated: .* \(1 such slices\)"):
        build(data_dir)


def test_duplicated_label_rows_count_once_and_are_listed(data_dir):
    table = data_dir / paths.TRAIN_CSV
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows, *rows[1:13]]) + "\n")
    slices_, defects = build(data_dir)
    assert len(slices_) == 9
    assert defects.slice_id.tolist() == ["ID_000000000", "ID_000000001"]
    assert set(defects.defect) == {"duplicated label rows"} and set(defects.action) == {"counted once"}


def test_blank_and_constant_slices_are_found_where_pixels_are_asked_for(data_dir):
    train_file(data_dir, 4).write_bytes(content(ct(np.full((32, 32), 24, np.uint16), PatientID="a")))
    train_file(data_dir, 5).write_bytes(content(ct(np.where(HEAD > 1000, 40, 24).astype(np.uint16), PatientID="a")))
    assert not len(build(data_dir)[1])
    table, defects = build(data_dir, pixels=True)
    assert len(table) == 9  # they can be read: kept
    assert defects.defect.str.split(":").str[0].tolist() == ["constant", "blank"]
    assert set(defects.action) == {"kept"}


def test_the_run_ends_with_a_table_of_what_it_found(data_dir, tmp_path, capsys):
    for k in (0, 1):
        train_file(data_dir, k).write_bytes(train_file(data_dir, k).read_bytes()[:-100])
    replace(train_file(data_dir, 5), Modality="MR")
    slices.main(["--data-dir", str(data_dir), "--work-dir", str(tmp_path / "work"), "--workers", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4] == "defects: 3"
    assert lines[-2].split() == ["Modality", "is", "MR,", "not", "CT", "left", "out", "1", "ID_000000005"]
    assert lines[-1].split() == ["truncated", "left", "out", "2", "ID_000000000"]
    assert len(slice_table.read_defects(tmp_path / "work")) == 3


def test_without_defects_the_table_says_none(data_dir, tmp_path, capsys):
    slices.main(["--data-dir", str(data_dir), "--work-dir", str(tmp_path / "work"), "--workers", "1"])
    assert capsys.readouterr().out.splitlines()[-1] == "defects: none"


def test_paths_may_be_strings(data_dir, tmp_path):
    work = str(tmp_path / "work")
    project = Project(str(data_dir), work, 1)
    table = slice_table.ensure(project)
    assert tables.read_slices(work).equals(table) and not len(slice_table.read_defects(work))
    assert paths.find_data(str(data_dir)) == slice_table.data_of(project) == paths.Data(data_dir)
    assert np.array_equal(pixels.read_hu(str(train_file(data_dir, 0))), HEAD.astype(int) - 1024)
    storage.write_json(f"{work}/new/a.json", {"a": 1})
    assert storage.read_json(f"{work}/new/a.json") == {"a": 1}
    assert storage.file_hash(f"{work}/new/a.json") == storage.file_hash(tmp_path / "work/new/a.json")
    folder = picture_cache.ensure(project, 32)
    assert png.read(str(paths.cached(str(folder), "ID_000000000"))).shape == (32, 32, 3)
    assert paths.run(work, "a") == tmp_path / "work/runs/a" and paths.run_names(work) == []


def test_a_second_run_does_nothing_and_says_so(data_dir, tmp_path, capsys):
    flags = ["--data-dir", str(data_dir), "--work-dir", str(tmp_path / "work"), "--workers", "1"]
    slices.main(flags)
    before = paths.slices(tmp_path / "work").stat().st_mtime_ns
    capsys.readouterr()
    slices.main(flags)
    assert "exists: nothing to do" in capsys.readouterr().out
    assert paths.slices(tmp_path / "work").stat().st_mtime_ns == before


def one_line(flags: list[str], capsys, command=slices) -> str:
    with pytest.raises(SystemExit) as stopped:
        command.main(flags)
    assert "\n" not in str(stopped.value.code)
    return str(stopped.value.code)


def test_other_data_over_the_same_table_is_refused_with_both_named(data_dir, tmp_path, capsys):
    other = shutil.copytree(data_dir, tmp_path / "other")
    replace(train_file(other, 2), PatientID="somebody else")
    flags = ["--work-dir", str(tmp_path / "work"), "--workers", "1"]
    slices.main([*flags, "--data-dir", str(data_dir)])
    message = one_line([*flags, "--data-dir", str(other)], capsys)
    assert f"was made with data_dir {data_dir}, not {other}, where ID_000000002 differs" in message
    assert "--overwrite" in message
    train_file(other, 2).unlink()
    assert "ID_000000002 is missing (1 slices are)" in one_line([*flags, "--data-dir", str(other)], capsys)


@pytest.mark.parametrize("how", ["a link", "..", "~", "a link, moved", "moved", "copied without times", "a zip"])
def test_the_same_data_under_another_path_are_the_same_data(data_dir, tmp_path, capsys, monkeypatch, how):
    flags = ["--work-dir", str(tmp_path / "work"), "--workers", "1"]
    slices.main([*flags, "--data-dir", str(data_dir)])
    before, read, other = tables.read_slices(tmp_path / "work"), [], tmp_path / "other"
    monkeypatch.setattr(
        slice_table, "scan_slice", lambda *given, real=slice_table.scan_slice: read.append(0) or real(*given)
    )
    match how:
        case "a link":
            other.symlink_to(data_dir)
        case "..":
            other = data_dir / ".." / data_dir.name
        case "~":
            monkeypatch.setenv("HOME", str(tmp_path))
            other = "~/input"
        case "copied without times":
            shutil.copytree(data_dir, other, copy_function=shutil.copyfile)
            shutil.rmtree(data_dir)
        case "a zip":
            other = zipped(data_dir)
        case _:
            data_dir.rename(other)
            if how == "a link, moved":
                (tmp_path / "link").symlink_to(other)
                other = tmp_path / "link"
    slices.main([*flags, "--data-dir", str(other)])
    assert "exists: nothing to do" in capsys.readouterr().out
    assert len(read) == (9 if how in ("copied without times", "a zip") else 0)  # moved headers are not read again
    table = slice_table.ensure(project := Project(None, tmp_path / "work", 1))
    assert tables.slices_hash(table) == tables.slices_hash(before)
    data = slice_table.data_of(project)
    assert [data.read(place.member)[128:132] for place in slice_table.places(table)] == [b"DICM"] * 9


def test_a_moved_project_finds_its_data_in_the_default_place(data_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("ICH_DATA_DIR", raising=False)
    for project in ("old", "new"):
        (tmp_path / project).mkdir()
    shutil.move(data_dir, tmp_path / "old" / paths.DEFAULT)
    monkeypatch.chdir(tmp_path / "old")
    slices.main(["--workers", "1"])
    shutil.rmtree(tmp_path / "new")
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    assert slice_table.data_of(Project()).root.resolve() == tmp_path / "new" / paths.DEFAULT
    assert tables.slices_settings(Path("work"))["data_dir"] == str(tmp_path / "new" / paths.DEFAULT)


def spoil(root: Path, how: str) -> Path:
    """Arrange the data as people have them; return the path to give to --data-dir."""
    train, first = root / "stage_2_train", train_file(root, 0)
    match how:
        case "files of macOS":
            for name in ("._ID_000000000.dcm", ".DS_Store"):
                (train / name).write_bytes(b"no DICOM")
        case "a copy beside the original":
            first.with_name(f"{first.stem} (1).dcm").write_bytes(b"half a download")
        case "only a copy":
            first.rename(first.with_name(f"{first.stem} (1).dcm"))
        case "upper case":
            first.rename(first.with_suffix(".DCM"))
        case "doubled folders":
            train.rename(root / "inner")
            train.mkdir()
            (root / "inner").rename(train / train.name)
        case "zipped tables":
            for name in (paths.TRAIN_CSV, paths.SAMPLE_CSV):
                with zipfile.ZipFile(root / f"{name}.zip", "w") as packed:
                    packed.write(root / name, name)
                (root / name).unlink()
        case "the images' folder":
            return train
    return root


HOWS = ["files of macOS", "a copy beside the original", "only a copy", "upper case", "doubled folders", "zipped tables"]


@pytest.mark.parametrize("how", [*HOWS, "the images' folder"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_competitions_folder_is_read_as_people_have_it(data_dir, how, packed):
    usual, _ = build(data_dir)
    given = spoil(data_dir, how)
    if packed and how in ("zipped tables", "the images' folder"):
        pytest.skip("of folders only")
    table, defects = build(zipped(data_dir) if packed else given)
    pd.testing.assert_frame_equal(*(one.drop(columns=[*paths.Member._fields]) for one in (table, usual)))
    assert not len(defects)


@pytest.mark.parametrize(
    "how, line",
    [
        ("packed images", "no DICOM files in stage_2_train or stage_2_train_images: unpack stage_2_train.zip there"),
        ("stage 1", "data of stage 1, which Kaggle has replaced: get stage 2 (python -m ich_kaggle.download --all)"),
        ("no table", "stage_2_train.csv is missing: download it (python -m ich_kaggle.download --data-dir {root})"),
        ("an unknown file", "ID_00000000f.dcm exists, but is not in stage_2_train.csv (1 such files): remove it, or"),
    ],
)
def test_a_folder_that_cannot_be_read_gets_the_remedy_that_helps(data_dir, tmp_path, capsys, how, line):
    match how:
        case "packed images":
            shutil.make_archive(str(data_dir / "stage_2_train"), "zip", data_dir / "stage_2_train")
            shutil.rmtree(data_dir / "stage_2_train")
        case "stage 1":
            for path in sorted(data_dir.iterdir()):
                path.rename(path.with_name(path.name.replace("stage_2", "stage_1")))
        case "no table":
            (data_dir / paths.TRAIN_CSV).unlink()
        case "an unknown file":
            write(data_dir / "stage_2_train/ID_00000000f.dcm", ct(HEAD))
    flags = ["--data-dir", str(data_dir), "--work-dir", str(tmp_path / "work"), "--workers", "1"]
    assert line.format(root=data_dir) in one_line(flags, capsys)


@pytest.mark.parametrize("place", [f"datasets/owner/{paths.SLUG}", "datasets/owner/mine", "mine"])
def test_data_attached_to_a_kernel_as_a_dataset_are_found(data_dir, tmp_path, monkeypatch, place):
    monkeypatch.delenv("ICH_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "INPUT", tmp_path / "kaggle")
    (tmp_path / "kaggle" / place).parent.mkdir(parents=True)
    data_dir.rename(tmp_path / "kaggle" / place)
    assert paths.find_data().root == tmp_path / "kaggle" / place


@pytest.mark.parametrize("has_test", [True, False])
def test_a_subset_has_the_slices_that_exist_and_every_command_says_so(data_dir, tmp_path, capsys, caplog, has_test):
    train_file(data_dir, 0).unlink()
    if not has_test:
        shutil.rmtree(data_dir / "stage_2_test")
    flags = ["--data-dir", str(data_dir), "--work-dir", str(tmp_path / "work"), "--workers", "1"]
    assert "--subset to use the slices that exist" in one_line(flags, capsys)
    slices.main([*flags, "--subset"])
    n_test = 2 * has_test
    table = slice_table.ensure(Project(data_dir, tmp_path / "work", 1))
    assert (table.split == "train").sum() == 6 and (table.split == "test").sum() == n_test
    assert f"a subset, 6 of 7 train slices and {n_test} of 2 test slices" in caplog.text
    line = one_line(["--dry-run", *flags], capsys, submit)  # before anything is predicted
    assert ("0 of 2 test slices, and Kaggle wants all" in line) != has_test


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: train_file(root, 2).unlink(), "stage_2_train.csv lists ID_000000002, which has no file"),
        (
            lambda root: shutil.rmtree(root / "stage_2_test"),
            f"in stage_2_test or stage_2_test_images: get them ({paths.DOWNLOAD} --all)",
        ),
    ],
)
def test_tables_and_files_that_do_not_match_are_refused_with_their_name(data_dir, tmp_path, capsys, damage, message):
    damage(data_dir)
    flags = ["--data-dir", str(data_dir), "--work-dir", str(tmp_path / "work"), "--workers", "1"]
    assert message in one_line(flags, capsys)


def test_a_table_of_an_older_version_is_refused_with_what_to_do(data_dir, tmp_path):
    work = tmp_path / "work"
    slice_table.ensure(Project(data_dir, work, 1))
    old = tables.read_slices(work).drop(columns="stamp")
    tables.write_slices(work, old, tables.slices_settings(work))
    with pytest.raises(ValueError, match="no column stamp: run python -m ich_kaggle.slices --overwrite"):
        slice_table.ensure(Project(data_dir, work, 1))


def test_a_scheduler_without_dask_is_refused(data_dir, tmp_path, capsys):
    flags = ["--data-dir", str(data_dir), "--work-dir", str(tmp_path / "work"), "--scheduler", "tcp://localhost:1"]
    assert "--scheduler tcp://localhost:1 goes with --backend dask" in one_line(flags, capsys)


def test_real_slices_at_one_position_are_ordered_by_their_id(real_data):
    table, _ = slice_table.build(paths.find_data(real_data), workers=1)
    ties = table[table.duplicated(["series_id", "position"], keep=False)]
    assert (ties.groupby("study_id").size() // 2).to_dict() == {"ID_4fef99f0df": 8}
    assert all(pair.slice_id.is_monotonic_increasing for _, pair in ties.groupby("position"))
    steps = table.groupby("series_id").position.diff().dropna()
    assert (steps >= 0).all()
    assert table.tilt.between(0, 30).all() and (table.tilt > 7).sum() > 100


def test_short_work_shows_no_progress_off_a_terminal(data_dir, tmp_path, capsys):
    slices.main(["--data-dir", str(data_dir), "--work-dir", str(tmp_path / "work"), "--workers", "1"])
    assert capsys.readouterr().err == "" and cli.IS_FIRST
