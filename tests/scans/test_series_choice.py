import dicom_files
import numpy as np
import pytest
from small_series import CORONAL, LOCALIZER, MR, SR, chosen, ct, of_pile, write_series

from ich_kaggle.scans import series_choice, slices


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
    assert chosen(tmp_path) == ("2.25.31", {"2.25.30": "2.25.31 is preferred: this one has fewer than 10 positions"})


def test_of_series_alike_the_longer_is_read_then_the_first_by_id(tmp_path):
    write_series(tmp_path, 12, "2.25.30")
    write_series(tmp_path, 14, "2.25.31")
    write_series(tmp_path, 14, "2.25.32")
    assert chosen(tmp_path) == (
        "2.25.31",
        {
            "2.25.30": "2.25.31 is preferred: this one has fewer positions",
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
    assert list(series_choice.studies(slices.read(tmp_path))) == ["2.25.200", "2.25.201"]


# Contrast medium, and what leaves doubt.


CONTRAST = dict(ContrastBolusAgent="ULTRAVIST 370")


@pytest.mark.parametrize(
    "tags",
    [
        CONTRAST,
        dict(SeriesDescription="Head C+"),
        dict(ProtocolName="CTA Head"),
        dict(SeriesDescription="PERF 4CC/SEC"),
        dict(ImageType=["ORIGINAL", "PRIMARY", "POST_CONTRAST", "NONE"]),
    ],
)
def test_a_plain_series_comes_before_one_with_contrast_medium_that_has_more_slices_and_a_better_kernel(tmp_path, tags):
    write_series(tmp_path, 33, "2.25.31", ConvolutionKernel="H60s", ImageType=["DERIVED", "PRIMARY"])
    write_series(tmp_path, 34, "2.25.30", ConvolutionKernel="H31s", **tags)
    assert chosen(tmp_path) == (
        "2.25.31",
        {"2.25.30": "2.25.31 is preferred: this one may show contrast medium"},
    )


def test_where_there_is_no_other_it_is_read_with_a_note(tmp_path):
    write_series(tmp_path, 12, **CONTRAST)
    (series,) = of_pile(tmp_path)
    assert series_choice.rank([series], 5.0) == [series]
    assert series.describe()["notes"] == ["may show contrast medium: ContrastBolusAgent is ULTRAVIST 370"]


def phases(folder, n: int, series: str) -> None:
    """Write a series with `n` images at each of 12 positions."""
    for phase in range(n):
        for number in range(12):
            ids = dict(SOPInstanceUID=f"{series}.{phase}.{number}", AcquisitionNumber=phase)
            dicom_files.write(folder / f"{series}-{phase}-{number}", ct(number, series, **ids))


def test_positions_are_counted_and_not_images(tmp_path):
    phases(tmp_path, 4, "2.25.30")
    write_series(tmp_path, 12, "2.25.31", ConvolutionKernel="H60s")
    reason = "2.25.31 is preferred: this one has several images at a position"
    assert chosen(tmp_path) == ("2.25.31", {"2.25.30": reason})


def test_a_perfusion_of_a_few_positions_has_not_enough(tmp_path):
    for number in range(60):
        dicom_files.write(tmp_path / f"{number}", ct(number % 4, "2.25.30", SOPInstanceUID=f"2.25.30.{number}"))
    write_series(tmp_path, 12, "2.25.31", ConvolutionKernel="H60s", **CONTRAST)
    assert chosen(tmp_path)[1] == {"2.25.30": "2.25.31 is preferred: this one has fewer than 10 positions"}


def notes_of(path) -> list[str]:
    (series,) = of_pile(path)
    return series.notes


def test_repeated_positions_and_acquisitions_are_said(tmp_path):
    phases(tmp_path, 2, "2.25.30")
    expected = ["24 images at 12 positions", "2 acquisitions (AcquisitionNumber) in one series"]
    assert notes_of(tmp_path) == expected


def test_a_step_and_shoot_scan_has_an_acquisition_per_position_and_no_note(tmp_path):
    for number in range(12):
        dicom_files.write(tmp_path / f"{number}", ct(number, AcquisitionNumber=number))
    assert notes_of(tmp_path) == []


def test_missing_positions_are_said_and_a_change_of_spacing_is_not(tmp_path):
    write_series(tmp_path / "gaps", 14)
    for number in (4, 5, 9):
        (tmp_path / "gaps" / f"2.25.3-{number:03}").unlink()
    assert notes_of(tmp_path / "gaps") == ["about 3 positions are missing, the first between 15.0 and 30.0 mm"]
    write_series(tmp_path / "two", 8, gap=2.5)
    for number in range(4, 12):
        dicom_files.write(tmp_path / "two" / f"{number}", ct(number, SOPInstanceUID=f"9.{number}"))
    assert notes_of(tmp_path / "two") == []


def test_of_two_kernels_or_phases_in_a_series_the_plainest_image_of_each_position_is_read(tmp_path):
    write_series(tmp_path / "a", 12, ConvolutionKernel="H31s")
    for number in range(6):
        ids = dict(SOPInstanceUID=f"2.25.3.9.{number}", InstanceNumber=-number)
        dicom_files.write(tmp_path / "b" / f"{number}", ct(number, **ids, ConvolutionKernel="H60s"))
        ids = dict(SOPInstanceUID=f"2.25.3.8.{number}", InstanceNumber=-number)
        dicom_files.write(tmp_path / "c" / f"{number}", ct(number, **ids, **CONTRAST, ConvolutionKernel="H31s"))
    (series,) = of_pile(tmp_path)
    assert [one.file for one in series.slices] == [f"a/2.25.3-{number:03}" for number in range(12)]
    assert {one.fault for one in series.aside} == {
        "another image at its position has no contrast medium, or a kernel more fit for the brain"
    }
    assert (len(series.aside), series.notes) == (12, ["several kernels in one series: H31S, H60S"])


def test_slices_that_all_have_one_position_are_ordered_by_slice_location_and_said(tmp_path):
    for number in range(12):
        where = dict(ImagePositionPatient=[0, 0, 0], SliceLocation=100 - 5 * number, InstanceNumber=number)
        dicom_files.write(tmp_path / f"{number}", ct(number, **where))
    (series,) = of_pile(tmp_path)
    assert [one.number for one in series.slices] == list(range(11, -1, -1)) and series.gap == 5
    assert "ordered by SliceLocation" in series.notes[0]


def test_slices_of_several_tilts_are_ordered_by_the_height_of_their_middles(tmp_path):
    """Far from the origin, positions along two normals differ by more than slices do."""
    for number, degrees in enumerate((15, -15, 15, 0)):
        tilt, z = np.deg2rad(degrees), 5 * number - 800
        row, column = np.array([1, 0, 0]), np.array([0, np.cos(tilt), -np.sin(tilt)])
        corner = [0, 0, z] - 8 * row - 8 * column  # of 32 px of 0.5 mm
        where = dict(ImageOrientationPatient=[*row, *column], ImagePositionPatient=[f"{part:.6f}" for part in corner])
        dicom_files.write(tmp_path / f"{number}", ct(number, **where))
    (series,) = of_pile(tmp_path)
    np.testing.assert_allclose(series.position, [-800, -795, -790, -785], atol=1e-5)
    assert series.notes == ["slices of several tilts in one series"]


def test_compression_with_loss_is_said(tmp_path):
    write_series(tmp_path, 3, LossyImageCompression="00")
    dicom_files.write(tmp_path / "lossy", ct(3, LossyImageCompression="01"))
    assert of_pile(tmp_path)[0].notes == ["1 images are compressed with loss"]


def test_a_series_that_is_asked_for_is_read_whatever_the_rules_say(tmp_path):
    write_series(tmp_path, 12, "2.25.30")
    write_series(tmp_path, 12, "2.25.31", BodyPartExamined="CHEST", gap=50.0)
    write_series(tmp_path, 12, "2.25.32", Modality="MR")
    for name, read in (("2.25.31", ["2.25.31"]), ("2.25.32", []), ("none", ["2.25.30"])):
        wanted = slices.Wanted((name,))
        found = slices.read(tmp_path, wanted=slices.Wanted((name,) if name != "none" else ()))
        (of_study,) = series_choice.studies(found).values()
        assert [one.series for one in series_choice.rank(of_study, 5.0, wanted)] == read
        if read != ["2.25.30"]:
            assert of_study[0].reason == f"--series names {name}"
