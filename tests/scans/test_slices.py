import dicom_files
import numpy as np
import pytest
from small_series import CORONAL, LOCALIZER, MR, SR, ct, of_pile, write_series

from ich_kaggle.scans import series_choice, slices


@pytest.mark.parametrize(
    "tags, fault",
    [
        (MR, "Modality is MR, not CT: not a CT slice"),
        (SR, "Modality is SR, not CT: not a CT slice"),
        (LOCALIZER, "ImageType says LOCALIZER: not a CT slice"),
        (dict(ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"]), "ImageType says MIP: not a CT slice"),
        (dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "a derived secondary capture"),
        (dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2"), "a derived secondary capture"),
        (dict(BodyPartExamined="CHEST"), "BodyPartExamined is CHEST: not a head"),
        (dict(ImageOrientationPatient=CORONAL), "not axial: 90 degrees from the patient's axis"),
        (dict(ImageOrientationPatient=None), "no ImageOrientationPatient in the header"),
        (dict(NumberOfFrames=20), "NumberOfFrames is 20, not 1 or 0: not a CT slice"),
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
    (one,) = slices.read(tmp_path).slices
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
