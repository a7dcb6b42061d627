import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_files import content, ct, head, write

from ich_kaggle import slices
from ich_kaggle.common import cli, paths, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import pixels, slice_table

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


def test_a_second_run_does_nothing_and_says_so(data_dir, tmp_path, capsys):
    flags = ["--data-dir", str(data_dir), "--work-dir", str(tmp_path / "work"), "--workers", "1"]
    slices.main(flags)
    before = paths.slices(tmp_path / "work").stat().st_mtime_ns
    capsys.readouterr()
    slices.main(flags)
    assert "exists: nothing to do" in capsys.readouterr().out
    assert paths.slices(tmp_path / "work").stat().st_mtime_ns == before


def one_line(flags: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        slices.main(flags)
    assert "\n" not in str(stopped.value.code)
    return str(stopped.value.code)


def test_other_data_over_the_same_table_is_refused_with_both_named(data_dir, tmp_path, capsys):
    other = shutil.copytree(data_dir, tmp_path / "other")
    flags = ["--work-dir", str(tmp_path / "work"), "--workers", "1"]
    slices.main([*flags, "--data-dir", str(data_dir)])
    message = one_line([*flags, "--data-dir", str(other)], capsys)
    assert f"was made with data_dir {data_dir}, not {other}" in message and "--overwrite" in message


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: train_file(root, 2).unlink(), "stage_2_train.csv lists ID_000000002, which has no file"),
        (
            lambda root: write(root / "stage_2_train/ID_00000000f.dcm", ct(HEAD)),
            "ID_00000000f.dcm exists, but is not in stage_2_train.csv",
        ),
        (lambda root: (root / paths.TRAIN_CSV).unlink(), "stage_2_train.csv is missing"),
        (
            lambda root: shutil.rmtree(root / "stage_2_test"),
            f"in stage_2_test or stage_2_test_images: get them ({paths.DOWNLOAD} --all)",
        ),
    ],
)
def test_tables_and_files_that_do_not_match_are_refused_with_their_name(data_dir, tmp_path, capsys, spoil, message):
    spoil(data_dir)
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
