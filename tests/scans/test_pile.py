import os
from pathlib import Path

import dicom_files
import pytest
import zip_files
from pydicom.uid import ExplicitVRBigEndian
from small_series import HEAD, ct, write_series

from ich_kaggle.dicom import tags
from ich_kaggle.scans import pile, series_choice, slices


def test_files_are_found_at_any_depth_with_any_suffix_or_none(tmp_path):
    for number, name in enumerate(("IM1", "a/b/c/x.dcm", "a/y.jpg", "a/.hidden")):
        dicom_files.write(tmp_path / name, ct(number))
    pile = slices.read(tmp_path)
    assert sorted(one.file for one in pile.slices) == ["IM1", "a/.hidden", "a/b/c/x.dcm", "a/y.jpg"]
    assert pile.passed_over == {}


def test_of_two_copies_of_a_slice_the_whole_one_is_read(tmp_path):
    content = dicom_files.content(ct(0))
    (tmp_path / "a").write_bytes(content[:-500])
    (tmp_path / "b").write_bytes(content)
    pile = slices.read(tmp_path)
    assert [one.file for one in pile.slices] == ["b"]
    assert pile.passed_over == {"a": "a copy of b: 2.25.3.0"}


def test_what_is_not_a_dicom_slice_is_passed_over_with_the_reason(tmp_path):
    dicom_files.write(tmp_path / "slice", ct(0))
    dicom_files.write(tmp_path / "DICOMDIR", ct(1, SOPClassUID=slices.DICOMDIR))
    dicom_files.write(tmp_path / "nameless", ct(2, StudyInstanceUID=None))
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(dicom_files.content(ct(3))[:180])
    (tmp_path / "copy").write_bytes((tmp_path / "slice").read_bytes())
    pile = slices.read(tmp_path)
    assert pile.passed_over.pop("cut").startswith("truncated: cut short")
    assert pile.passed_over == {
        "DICOMDIR": "a DICOMDIR: the files are found without it",
        "nameless": "no StudyInstanceUID in the header",
        "readme.txt": "not DICOM",
        "empty": "not DICOM",
        "slice": "a copy of copy: 2.25.3.0",
    }
    assert [one.file for one in pile.slices] == ["copy"]


def test_a_file_larger_than_a_slice_is_not_read_whole(tmp_path):
    path = dicom_files.write(tmp_path / "large", ct(0))
    os.truncate(path, tags.MOST_BYTES + 1)
    assert slices.read(tmp_path).passed_over == {"large": f"{tags.MOST_BYTES + 1} bytes: more than a CT slice has"}


def test_links_to_folders_and_what_is_no_file_are_not_followed(tmp_path):
    dicom_files.write(tmp_path / "pile" / "slice", ct(0))
    (tmp_path / "pile" / "round").symlink_to(tmp_path / "pile")
    os.mkfifo(tmp_path / "pile" / "fifo")
    assert [one.file for one in slices.read(tmp_path / "pile").slices] == ["slice"]


def test_the_folder_that_is_written_to_is_left_out(tmp_path):
    write_series(tmp_path, 2)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "slices.csv").write_text("")
    assert slices.read(tmp_path, skip=tmp_path / "predictions").passed_over == {}


def test_one_file_is_a_pile(tmp_path):
    path = dicom_files.write(tmp_path / "one", ct(0))
    assert [one.file for one in slices.read(path).slices] == ["one"]


def test_a_pile_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone is missing: give a folder, a zip or a file"):
        slices.read(tmp_path / "gone")


def test_names_that_steer_a_terminal_are_shown_harmless(tmp_path):
    dicom_files.write(tmp_path / "a\x1b[31m", ct(0))
    (tmp_path / "a\x1b[31m").rename(tmp_path / os.fsdecode(b"a\x1b\xff"))
    assert [one.file for one in slices.read(tmp_path).slices] == ["a??"]


def test_every_transfer_syntax_tells_the_same_position(real_data):
    folder = Path(real_data).with_name("odd_dicom")
    if not folder.is_dir():
        pytest.skip("no odd_dicom beside ICH_REAL_DATA")
    found = [one for file in pile.Pile(folder).files() for one in slices.look(file, slices.Wanted(any_body_part=True))]
    assert len(found) == 7
    assert {(one.fault, one.position, one.shape, one.kernel) for one in found} == {
        ("", found[0].position, (512, 512), "STANDARD")
    }


def test_big_endian_headers_are_read(tmp_path):
    dicom_files.write(tmp_path / "big", ct(3))
    dataset = dicom_files.ct(HEAD, ExplicitVRBigEndian)
    dicom_files.write(tmp_path / "endian", dataset)
    assert {one.position for one in slices.read(tmp_path).slices} == {15.0, 40.0}


def test_real_studies_are_read_from_kaggles_zip_with_all_their_slices(real_data):
    pile = slices.read(real_data)
    studies = series_choice.studies(pile)
    assert len(studies) == 10
    assert all(len(series_choice.rank(series, 5.0)) == 1 for series in studies.values())
    assert sum(len(series[0].slices) for series in studies.values()) == 335
    assert all(not one.fault for one in pile.slices)


def test_a_zip_is_read_in_place(tmp_path):
    members = [(f"deep/{number}", dicom_files.content(ct(number))) for number in range(3)]
    pile = slices.read(zip_files.zipped(tmp_path / "pile.zip", ("deep/", b""), *members, ("note.txt", b"hello")))
    assert [one.position for one in pile.slices] == [0, 5, 10]
    assert pile.passed_over == {"note.txt": "not DICOM"}
    assert [path.name for path in tmp_path.iterdir()] == ["pile.zip"]


def test_a_member_that_inflates_to_more_than_it_says_is_not_read(tmp_path):
    bomb = dicom_files.content(ct(0)) + bytes(1 << 20)
    path = zip_files.patched(
        zip_files.zipped(tmp_path / "pile.zip", ("bomb", bomb), ("good", dicom_files.content(ct(1)))), 24, 3000
    )
    pile = slices.read(path)
    assert "is not what its checksum says" in pile.passed_over["bomb"]
    assert [one.file for one in pile.slices] == ["good"]
