import os
from pathlib import Path

import dicom_files
import numpy as np
import pytest
import zip_files
from pydicom.uid import ExplicitVRBigEndian

from ich_kaggle.common import paths
from ich_kaggle.dicom import tags
from ich_kaggle.scans import series_choice

HEAD = dicom_files.head((32, 32), 10, (16, 16))
CORONAL = [1, 0, 0, 0, 0, -1]
MR, SR, LOCALIZER = dict(Modality="MR"), dict(Modality="SR"), dict(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
PORTION = ["DERIVED", "SECONDARY", "OTHER"]


def ct(number: int, series: str = "2.25.3", gap: float = 5.0, **tags):
    where = {"ImagePositionPatient": [-125, -125, number * gap], "SOPInstanceUID": f"{series}.{number}"}
    return dicom_files.ct(HEAD, **({"SeriesInstanceUID": series} | where | tags))


def write_series(folder: Path, n: int = 12, series: str = "2.25.3", gap: float = 5.0, **tags) -> None:
    for number in range(n):
        dicom_files.write(folder / f"{series}-{number:03}", ct(number, series, gap, **tags))


def of_pile(path: Path) -> list[series_choice.Series]:
    (series,) = series_choice.studies(series_choice.read(path)).values()
    return series


def chosen(path: Path, step: float = 5.0) -> tuple[str, dict[str, str]]:
    """Return the series that is read, and why each of the others is not."""
    series = of_pile(path)
    first, *rest = series_choice.rank(series, step)
    for one in rest:
        one.reason = series_choice.compare(first, one, step)
    return first.series, {one.series: one.reason for one in series if one is not first}


# What is found.


def test_files_are_found_at_any_depth_with_any_suffix_or_none(tmp_path):
    for number, name in enumerate(("IM1", "a/b/c/x.dcm", "a/y.jpg", "a/.hidden")):
        dicom_files.write(tmp_path / name, ct(number))
    pile = series_choice.read(tmp_path)
    assert sorted(one.file for one in pile.slices) == ["IM1", "a/.hidden", "a/b/c/x.dcm", "a/y.jpg"]
    assert pile.passed_over == {}


def test_of_two_copies_of_a_slice_the_whole_one_is_read(tmp_path):
    content = dicom_files.content(ct(0))
    (tmp_path / "a").write_bytes(content[:-500])
    (tmp_path / "b").write_bytes(content)
    pile = series_choice.read(tmp_path)
    assert [one.file for one in pile.slices] == ["b"]
    assert pile.passed_over == {"a": "2.25.3.0 is there already: b"}


def test_what_is_not_a_dicom_slice_is_passed_over_with_the_reason(tmp_path):
    dicom_files.write(tmp_path / "slice", ct(0))
    dicom_files.write(tmp_path / "DICOMDIR", ct(1, SOPClassUID=series_choice.DICOMDIR))
    dicom_files.write(tmp_path / "nameless", ct(2, StudyInstanceUID=None))
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(dicom_files.content(ct(3))[:180])
    (tmp_path / "copy").write_bytes((tmp_path / "slice").read_bytes())
    pile = series_choice.read(tmp_path)
    assert pile.passed_over.pop("cut").startswith(("not a readable DICOM file", "no StudyInstanceUID"))
    assert pile.passed_over == {
        "DICOMDIR": "a DICOMDIR: the files are found without it",
        "nameless": "no StudyInstanceUID in the header",
        "readme.txt": "not DICOM",
        "empty": "not DICOM",
        "slice": "2.25.3.0 is there already: copy",
    }
    assert [one.file for one in pile.slices] == ["copy"]


def test_a_file_larger_than_a_slice_is_not_read_whole(tmp_path):
    path = dicom_files.write(tmp_path / "large", ct(0))
    os.truncate(path, tags.MOST_BYTES + 1)
    assert series_choice.read(tmp_path).passed_over == {
        "large": f"{tags.MOST_BYTES + 1} bytes: more than a CT slice has"
    }


def test_links_to_folders_and_what_is_no_file_are_not_followed(tmp_path):
    dicom_files.write(tmp_path / "pile" / "slice", ct(0))
    (tmp_path / "pile" / "round").symlink_to(tmp_path / "pile")
    os.mkfifo(tmp_path / "pile" / "fifo")
    assert [one.file for one in series_choice.read(tmp_path / "pile").slices] == ["slice"]


def test_the_folder_that_is_written_to_is_left_out(tmp_path):
    write_series(tmp_path, 2)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "slices.csv").write_text("")
    assert series_choice.read(tmp_path, skip=tmp_path / "predictions").passed_over == {}


def test_one_file_is_a_pile(tmp_path):
    path = dicom_files.write(tmp_path / "one", ct(0))
    assert [one.file for one in series_choice.read(path).slices] == ["one"]


def test_a_pile_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone is missing: give a folder, a zip or a file"):
        series_choice.read(tmp_path / "gone")


def test_names_that_steer_a_terminal_are_shown_harmless(tmp_path):
    dicom_files.write(tmp_path / "a\x1b[31m", ct(0))
    (tmp_path / "a\x1b[31m").rename(tmp_path / os.fsdecode(b"a\x1b\xff"))
    assert [one.file for one in series_choice.read(tmp_path).slices] == ["a??"]


def test_every_transfer_syntax_tells_the_same_position(real_data):
    folder = Path(real_data).with_name("odd_dicom")
    if not folder.is_dir():
        pytest.skip("no odd_dicom beside ICH_REAL_DATA")
    found = [series_choice.look(paths.Data(folder), member) for member in series_choice.find(folder)[1]]
    assert len(found) == 7
    assert {(one.fault, one.position, one.shape, one.kernel) for one in found} == {
        ("", found[0].position, (512, 512), "STANDARD")
    }


def test_big_endian_headers_are_read(tmp_path):
    dicom_files.write(tmp_path / "big", ct(3))
    dataset = dicom_files.ct(HEAD, ExplicitVRBigEndian)
    dicom_files.write(tmp_path / "endian", dataset)
    assert {one.position for one in series_choice.read(tmp_path).slices} == {15.0, 40.0}


def test_real_studies_are_read_from_kaggles_zip_with_all_their_slices(real_data):
    pile = series_choice.read(real_data)
    studies = series_choice.studies(pile)
    assert len(studies) == 10
    assert all(len(series_choice.rank(series, 5.0)) == 1 for series in studies.values())
    assert sum(len(series[0].slices) for series in studies.values()) == 335
    assert all(not one.fault for one in pile.slices)


def test_a_zip_is_read_in_place(tmp_path):
    members = [(f"deep/{number}", dicom_files.content(ct(number))) for number in range(3)]
    pile = series_choice.read(zip_files.zipped(tmp_path / "pile.zip", ("deep/", b""), *members, ("note.txt", b"hello")))
    assert [one.position for one in pile.slices] == [0, 5, 10]
    assert pile.passed_over == {"note.txt": "not DICOM"}
    assert [path.name for path in tmp_path.iterdir()] == ["pile.zip"]


def test_a_member_that_inflates_to_more_than_it_says_is_not_read(tmp_path):
    bomb = dicom_files.content(ct(0)) + bytes(1 << 20)
    path = zip_files.patched(
        zip_files.zipped(tmp_path / "pile.zip", ("bomb", bomb), ("good", dicom_files.content(ct(1)))), 24, 3000
    )
    pile = series_choice.read(path)
    assert "is not what its checksum says" in pile.passed_over["bomb"]
    assert [one.file for one in pile.slices] == ["good"]


# Which slices are of a series.


@pytest.mark.parametrize(
    "tags, fault",
    [
        (MR, "Modality is MR, not CT: not a CT slice"),
        (SR, "Modality is SR, not CT: not a CT slice"),
        (LOCALIZER, "ImageType says LOCALIZER: not a CT slice"),
        (dict(ImageType=PORTION), "a derived secondary capture"),
        (dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "a derived secondary capture"),
        (dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2"), "a derived secondary capture"),
        (dict(BodyPartExamined="CHEST"), "BodyPartExamined is CHEST: not a head"),
        (dict(ImageOrientationPatient=CORONAL), "not axial: 90 degrees from the patient's axis"),
        (dict(ImageOrientationPatient=None), "no ImageOrientationPatient in the header"),
        (dict(NumberOfFrames=20), "NumberOfFrames is 20, not 1: not a CT slice"),
    ],
)
def test_what_is_no_axial_slice_of_a_head_is_left_aside_and_refuses_a_series_of_nothing_else(tmp_path, tags, fault):
    write_series(tmp_path, 3, **tags)
    (series,) = of_pile(tmp_path)
    assert {one.fault for one in series.aside} == {fault}
    assert series_choice.rank([series], 5.0) == []
    assert series.reason == f"{fault} (3 of 3 files)"


@pytest.mark.parametrize("tags", [dict(PatientID=None), dict(PatientID=""), dict(BodyPartExamined="HEAD NECK")])
def test_what_is_not_needed_may_be_missing(tmp_path, tags):
    write_series(tmp_path, 2, **tags)
    assert len(of_pile(tmp_path)[0].slices) == 2


@pytest.mark.parametrize("degrees, fault", [(30, ""), (40, "not axial: 40 degrees from the patient's axis")])
def test_a_gantry_tilts_no_further(tmp_path, degrees, fault):
    tilt = np.deg2rad(degrees)
    dicom_files.write(tmp_path / "a", ct(0, ImageOrientationPatient=[1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)]))
    (one,) = series_choice.read(tmp_path).slices
    assert one.fault == fault


def test_a_localizer_within_a_series_is_left_aside_alone(tmp_path):
    write_series(tmp_path, 12)
    dicom_files.write(tmp_path / "scout", ct(99, **LOCALIZER))
    (series,) = of_pile(tmp_path)
    assert (len(series.slices), [one.file for one in series.aside]) == (12, ["scout"])


def test_slices_are_in_order_of_position_then_id_whatever_the_files_are_called(tmp_path):
    for place, name in zip((3, 1, 2, 0), "abcd", strict=True):
        dicom_files.write(tmp_path / name, ct(place))
    dicom_files.write(tmp_path / "0", ct(1, SOPInstanceUID="2.25.3.0.5"))
    (series,) = of_pile(tmp_path)
    assert [one.slice_id for one in series.slices] == ["2.25.3.0", "2.25.3.0.5", "2.25.3.1", "2.25.3.2", "2.25.3.3"]
    assert series.position.tolist() == [0, 5, 5, 10, 15]


def test_a_series_longer_than_a_head_is_refused(tmp_path):
    write_series(tmp_path, 12, gap=50.0)
    (series,) = of_pile(tmp_path)
    assert series_choice.rank([series], 5.0) == []
    assert series.reason == "550 mm long: not a head"


# Which series is read.


def test_a_brain_kernel_is_preferred_to_a_bone_kernel_even_at_another_spacing(tmp_path):
    write_series(tmp_path, 12, "2.25.30", ConvolutionKernel=["H70h", "3"])
    write_series(tmp_path, 40, "2.25.31", 1.0, ConvolutionKernel="H31s")
    write_series(tmp_path, 12, "2.25.32")
    less_fit = "2.25.31 is preferred: this one has a kernel less fit for the brain"
    assert chosen(tmp_path) == ("2.25.31", {"2.25.30": less_fit, "2.25.32": less_fit})


def test_the_spacing_of_the_training_is_preferred(tmp_path):
    write_series(tmp_path, 60, "2.25.30", 0.625)
    write_series(tmp_path, 24, "2.25.31", 5.0)
    write_series(tmp_path, 30, "2.25.32", 2.5)
    first, others = chosen(tmp_path)
    assert first == "2.25.31"
    assert set(others.values()) == {"2.25.31 is preferred: this one has slices less like the training's in distance"}
    assert chosen(tmp_path, step=0.7)[0] == "2.25.30"


def test_originals_are_preferred_to_what_is_derived(tmp_path):
    write_series(tmp_path, 20, "2.25.30", ImageType=["DERIVED", "PRIMARY", "AXIAL"], ConvolutionKernel="H31s")
    write_series(tmp_path, 12, "2.25.31", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], ConvolutionKernel="H60s")
    assert chosen(tmp_path) == (
        "2.25.31",
        {"2.25.30": "2.25.31 is preferred: this one is derived from other images"},
    )


def test_enough_slices_come_before_everything(tmp_path):
    write_series(tmp_path, 4, "2.25.30", ConvolutionKernel="H31s")
    write_series(tmp_path, 12, "2.25.31", ConvolutionKernel="H70h")
    assert chosen(tmp_path) == ("2.25.31", {"2.25.30": "2.25.31 is preferred: this one has fewer than 10 slices"})


def test_of_series_alike_the_longer_is_read_then_the_first_by_id(tmp_path):
    write_series(tmp_path, 12, "2.25.30")
    write_series(tmp_path, 14, "2.25.31")
    write_series(tmp_path, 14, "2.25.32")
    assert chosen(tmp_path) == (
        "2.25.31",
        {
            "2.25.30": "2.25.31 is preferred: this one has fewer slices",
            "2.25.32": "2.25.31 is preferred: this one comes later by its id",
        },
    )


def test_a_mixed_pile_ends_in_the_brain_series_with_a_reason_for_each_other(tmp_path):
    write_series(tmp_path / "brain", 12, "2.25.30", ConvolutionKernel="STANDARD")
    write_series(tmp_path / "bone", 12, "2.25.31", ConvolutionKernel="BONEPLUS")
    write_series(tmp_path / "scout", 2, "2.25.32", **LOCALIZER)
    write_series(tmp_path / "dose", 1, "2.25.33", **SR)
    write_series(tmp_path / "mr", 5, "2.25.34", **MR)
    write_series(tmp_path / "coronal", 12, "2.25.35", ImageOrientationPatient=CORONAL)
    (tmp_path / "read me.txt").write_text("hello")
    series = of_pile(tmp_path)
    assert chosen(tmp_path)[0] == "2.25.30"
    assert [one.series for one in series_choice.rank(series, 5.0)] == ["2.25.30", "2.25.31"]
    assert {one.series: one.reason for one in series if one.reason} == {
        "2.25.32": "ImageType says LOCALIZER: not a CT slice (2 of 2 files)",
        "2.25.33": "Modality is SR, not CT: not a CT slice (1 of 1 files)",
        "2.25.34": "Modality is MR, not CT: not a CT slice (5 of 5 files)",
        "2.25.35": "not axial: 90 degrees from the patient's axis (12 of 12 files)",
    }


def test_studies_are_told_apart(tmp_path):
    write_series(tmp_path / "a", 2, "2.25.30", StudyInstanceUID="2.25.200")
    write_series(tmp_path / "b", 2, "2.25.31", StudyInstanceUID="2.25.201")
    assert list(series_choice.studies(series_choice.read(tmp_path))) == ["2.25.200", "2.25.201"]


# Kernels.


@pytest.mark.parametrize("kernel", ["H31s", "J40s", "Hr40d 3", "Br36", "STANDARD", "Soft", "FC26", "FC68", "UB", "B"])
def test_kernels_for_the_brain_are_soft(kernel):
    assert series_choice.sharpness(kernel) == series_choice.SOFT


@pytest.mark.parametrize(
    "kernel", ["H70h", "B60s", "Hr59", "BONE", "BONEPLUS", "Bone 2", "LUNG", "EDGE", "FC30", "FC81"]
)
def test_kernels_for_bone_and_lung_are_sharp(kernel):
    assert series_choice.sharpness(kernel) == series_choice.SHARP


@pytest.mark.parametrize("kernel", ["", "DETAIL", "7", "something else"])
def test_of_the_others_nothing_is_said(kernel):
    assert series_choice.sharpness(kernel) == series_choice.UNKNOWN


def test_what_is_not_known_stands_between():
    assert series_choice.SOFT < series_choice.UNKNOWN < series_choice.SHARP
