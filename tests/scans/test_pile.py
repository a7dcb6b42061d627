import gzip
import os
from pathlib import Path

import dicom_files
import pytest
import zip_files
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from small_series import HEAD, ct, write_series

from ich_kaggle.common import paths
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


def test_links_to_folders_are_followed_once_and_what_is_no_file_is_named(tmp_path):
    dicom_files.write(tmp_path / "pile" / "b" / "slice", ct(0))
    dicom_files.write(tmp_path / "other" / "slice", ct(1))
    for name, target in (("a", "pile/b"), ("c", "other"), ("d", "other"), ("other/back", "pile"), ("b/up", "pile")):
        folder = tmp_path / "pile" if not name.startswith("other") else tmp_path
        (folder / name).symlink_to(tmp_path / target)
    (tmp_path / "pile" / "nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pile" / "fifo")
    assert files_of(tmp_path / "pile") == (
        ["b/slice", "c/slice"],
        {"nowhere": "No such file or directory", "fifo": "neither a file nor a folder"},
    )


def test_the_folder_that_is_written_to_is_left_out(tmp_path):
    write_series(tmp_path, 2)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "slices.csv").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "predictions")
    assert slices.read(tmp_path, skip=tmp_path / "predictions").passed_over == {}


def test_a_pile_that_is_written_into_is_read(tmp_path):
    write_series(tmp_path / "pile", 2)
    (tmp_path / "link").symlink_to(tmp_path / "pile")
    for path, skip in (("pile", "pile"), ("link", "pile"), ("pile", "link")):
        assert len(slices.read(tmp_path / path, skip=tmp_path / skip).slices) == 2


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


# Zips, gzip, links, and what cannot be opened.


def small_zip(path: Path, *numbers: int) -> Path:
    return zip_files.zipped(path, *((f"{number}", dicom_files.content(ct(number))) for number in numbers))


def files_of(path: Path) -> tuple[list[str], dict[str, str]]:
    found = slices.read(path)
    return sorted(one.file for one in found.slices), found.passed_over


def test_zips_in_zips_and_in_folders_are_read_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    inner, other = (
        small_zip(tmp_path / f"{name}.zip", *numbers).read_bytes() for name, numbers in (("a", [1]), ("b", [2]))
    )
    (tmp_path / "pile").mkdir()
    outer = zip_files.zipped(tmp_path / "pile" / "outer.zip", ("case/a.zip", inner), ("b.zip", other))
    small_zip(tmp_path / "pile" / "c.zip", 3)
    files, passed_over = files_of(tmp_path / "pile")
    assert files == ["c.zip/3", "outer.zip/b.zip/2", "outer.zip/case/a.zip/1"] and passed_over == {}
    assert files_of(outer) == (["b.zip/2", "case/a.zip/1"], {})
    assert [path.name for path in (tmp_path / "temporary").iterdir()] == []


def test_zips_in_one_another_without_end_are_named(tmp_path):
    path = small_zip(tmp_path / "at0.zip", 0)
    for depth in range(1, 6):
        path = zip_files.zipped(tmp_path / f"at{depth}.zip", (f"{depth}.zip", path.read_bytes()))
    assert files_of(path) == ([], {"5.zip/4.zip/3.zip/2.zip": "more than 3 zips in one another: unpack it first"})


def test_a_damaged_or_hostile_zip_is_a_row_and_the_others_are_read(tmp_path):
    small_zip(tmp_path / "a.zip", 1)
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    zip_files.zipped(tmp_path / "c.zip", ("../up", b""))
    files, passed_over = files_of(tmp_path)
    assert files == ["a.zip/1"]
    assert passed_over.pop("b.zip").startswith("not a readable zip")
    assert passed_over == {"c.zip": "member '../up' has a path that leads out of the zip: not read"}


def test_a_zip_that_lists_a_folder_or_a_file_twice_is_read(tmp_path):
    first, second = (dicom_files.content(ct(number)) for number in (0, 1))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zip_files.zipped(
            tmp_path / "a.zip", ("d/", b""), ("d/", b""), ("d/0", first), ("d/0", second), ("e", first)
        )
    found = slices.read(path)
    assert sorted(one.position for one in found.slices) == [0, 5]
    assert found.passed_over == {"e": "a copy of d/0: 2.25.3.0"}


def test_gzipped_files_are_read_and_cut_ones_named(tmp_path):
    packed = gzip.compress(dicom_files.content(ct(0)))
    (tmp_path / "a.dcm.gz").write_bytes(packed)
    (tmp_path / "b.dcm.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "c.zip.gz").write_bytes(gzip.compress(small_zip(tmp_path / "c.zip", 1).read_bytes()))
    (tmp_path / "c.zip").unlink()
    (tmp_path / "d.gz").write_bytes(gzip.compress(b"hello"))
    files, passed_over = files_of(tmp_path)
    assert files == ["a.dcm.gz", "c.zip.gz/1"]
    assert passed_over.pop("b.dcm.gz").startswith("truncated, or more than")
    assert passed_over == {"d.gz": "not DICOM"}


def test_other_archives_are_named(tmp_path):
    (tmp_path / "a.7z").write_bytes(b"7z\xbc\xaf'\x1c" + bytes(200))
    (tmp_path / "b.tar").write_bytes(b"a/b".ljust(257, b"\0") + b"ustar" + bytes(300))
    (tmp_path / "c.iso").write_bytes(bytes(32768) + b"\1CD001\1" + bytes(300))
    assert files_of(tmp_path)[1] == {
        "a.7z": "a 7z archive: unpack it first",
        "b.tar": "a tar archive: unpack it first",
        "c.iso": "an image of a disc (ISO 9660): unpack it first",
    }


def test_what_cannot_be_opened_or_listed_is_a_row(tmp_path, monkeypatch):
    write_series(tmp_path / "a", 2)
    write_series(tmp_path / "b", 1, "2.25.9")
    opened, listed = paths.Data.read, os.scandir

    def read(self, member, limit=-1):
        if member.path == "a/2.25.3-001":
            raise PermissionError(13, "Permission denied", member.path)
        return opened(self, member, limit)

    def scandir(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(paths.Data, "read", read)
    monkeypatch.setattr(os, "scandir", scandir)
    assert files_of(tmp_path) == (
        ["a/2.25.3-000"],
        {"a/2.25.3-001": "Permission denied", "b": "its files can't be listed (Permission denied)"},
    )


def test_pydicoms_warnings_are_counted_by_kind(tmp_path, recwarn):
    for number in range(3):
        whole = dicom_files.content(ct(number))
        plain = dicom_files.content(ct(number, syntax=ImplicitVRLittleEndian))
        starts = [144 + int.from_bytes(one[140:144], "little") for one in (whole, plain)]
        (tmp_path / f"{number}").write_bytes(whole[: starts[0]] + plain[starts[1] :])
    found = slices.read(tmp_path)
    kind = "Expected explicit VR, but found implicit VR - using implicit VR for reading"
    assert {kind: len(files) for kind, files in found.pile.warned.items()} == {kind: 3}
    assert len(found.slices) == 3 and not [one for one in recwarn if "implicit" in str(one.message)]
