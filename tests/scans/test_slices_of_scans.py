import io
from pathlib import Path

import dicom_files
import enhanced_ct
import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut
from pydicom.uid import ExplicitVRBigEndian, RLELossless
from small_series import CORONAL, LOCALIZER, MR, SR, ct, of_pile, write_series

from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import pixels, tags
from ich_kaggle.scans import chosen_series, page, pile, results, series_choice, slices


@pytest.mark.parametrize(
    "tags, fault",
    [
        (MR, "Modality is MR, not CT: not a CT slice"),
        (SR, "Modality is SR, not CT: not a CT slice"),
        (LOCALIZER, "ImageType says LOCALIZER: not a CT slice"),
        (dict(ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"]), "ImageType says MIP: not a CT slice"),
        (
            dict(ImageType=["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"]),
            "ImageType says EFF_ATOMIC_NUM: not a CT slice",
        ),
        (dict(ImageType=["DERIVED", "PRIMARY", "VOLUME", "SUBTRACTION"]), "ImageType says SUBTRACTION: not a CT slice"),
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


@pytest.mark.parametrize(
    "tags", [dict(PatientID=None), dict(PatientID=""), dict(SOPInstanceUID=None), dict(BodyPartExamined="HEAD NECK")]
)
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


@pytest.mark.parametrize("image_type", [["DERIVED", "SECONDARY", "AXIAL"], ["DERIVED", "PRIMARY"]])
def test_derived_ct_with_hu_and_geometry_is_read(tmp_path, image_type):
    write_series(tmp_path, 2, ImageType=image_type)
    assert [one.is_original for one in of_pile(tmp_path)[0].slices] == [False, False]


def test_ids_longer_than_allowed_are_told_apart(tmp_path):
    for number in range(2):
        dicom_files.write(
            tmp_path / f"{number}", ct(0, SOPInstanceUID="1." * 60 + str(number), StudyInstanceUID="2." * 80)
        )
    assert len(slices.read(tmp_path).slices) == 2


def test_a_head_stored_from_the_back_up_or_mirrored_has_the_same_slices(tmp_path):
    """Row by row, column by column, and in order along +z."""
    words = [np.arange(6, dtype=np.uint16).reshape(2, 3) + 10 * number for number in range(3)]
    ways = {
        "usual": ([1, 0, 0, 0, 1, 0], 1, 1),
        "up": ([1, 0, 0, 0, -1, 0], -1, 1),
        "left": ([-1, 0, 0, 0, 1, 0], 1, -1),
    }
    for name, (orientation, rows, columns) in ways.items():
        for number, one in enumerate(words):
            where = dict(ImageOrientationPatient=orientation, ImagePositionPatient=[0, 0, 5 * number])
            ids = dict(StudyInstanceUID=name, SOPInstanceUID=f"{name}{number}")
            dicom_files.write(tmp_path / f"{name}{number}", dicom_files.ct(one[::rows, ::columns], **where, **ids))
    for (series,) in series_choice.studies(slices.read(tmp_path)).values():
        assert series.position.tolist() == [0, 5, 10]
        assert [one.words()[0].tolist() for one in series.slices] == [one.tolist() for one in words]


def test_pixels_that_are_not_square_are_resampled(tmp_path):
    words = np.repeat(np.arange(8, dtype=np.uint16)[None] * 100, 4, axis=0)
    dicom_files.write(tmp_path / "a", dicom_files.ct(words, PixelSpacing=[1.0, 0.5]))
    (one,) = slices.read(tmp_path).slices
    found, code = one.words()
    assert (found.shape, one.shape, one.spacing) == ((8, 8), (8, 8), 0.5)
    assert np.array_equal(pixels.hu_table(code)[found], np.repeat(words[:1].astype(int) - 1024, 8, axis=0))


def test_patients_under_one_study_are_told_apart_and_what_names_no_patient_is_not(tmp_path):
    for patient in ("b", "B"):
        write_series(tmp_path / patient, 2, PatientID=patient, SOPInstanceUID="1.2")
    dicom_files.write(tmp_path / "report", ct(0, **SR, PatientID=None, SeriesInstanceUID="2.25.9"))
    found = {name: [one.series for one in of] for name, of in series_choice.studies(slices.read(tmp_path)).items()}
    assert found == {"2.25.2": ["2.25.9"], "2.25.2, patient 1": ["2.25.3"], "2.25.2, patient 2": ["2.25.3"]}
    assert {one.file[0] for one in slices.read(tmp_path).slices if one.study.endswith("1")} == {"B"}


# Enhanced CT.


def written(path, frames, compress: str | None = None, **tags):
    dataset = enhanced_ct.enhanced(frames, **tags)
    if compress:
        dataset.compress(compress, generate_instance_uid=False)
    return dicom_files.write(path, dataset)


@pytest.mark.parametrize("compress", [None, RLELossless])
def test_the_frames_of_an_enhanced_ct_are_the_slices_that_it_was_made_of(tmp_path, compress):
    kinds = dict(ConvolutionKernel="H31s", RescaleType="HU")
    words = [np.arange(6, dtype=np.uint16).reshape(2, 3) + 10 * number for number in range(12)]
    frames = [dicom_files.ct(one, ImagePositionPatient=[0, 0, 60 - 5 * i], **kinds) for i, one in enumerate(words)]
    written(tmp_path / "all.dcm", frames, compress)
    (series,) = of_pile(tmp_path)
    assert (series.kernel, series.gap, series.position.tolist()) == ("H31S", 5, list(range(5, 61, 5)))
    assert series.notes == []
    for one, expected in zip(series.slices, reversed(words), strict=True):
        found, code = one.words()
        assert np.array_equal(pixels.hu_table(code)[found], expected.astype(int) - 1024)
    assert (series.slices[0].file, series.slices[0].slice_id) == ("all.dcm frame 12", "2.25.1 frame 12")


def test_an_enhanced_ct_larger_than_a_slice_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tags, "MOST_BYTES", 1000)
    written(tmp_path / "all.dcm", [dicom_files.ct(ImagePositionPatient=[0, 0, number]) for number in range(3)])
    (series,) = of_pile(tmp_path)
    assert (len(series.slices), slices.read(tmp_path).passed_over) == (3, {})


def test_a_frame_is_judged_by_its_own_type_and_a_cut_file_by_its_pixels(tmp_path):
    frames = [dicom_files.ct(ImagePositionPatient=[0, 0, number]) for number in range(3)]
    path = written(tmp_path / "scout.dcm", frames, frame_type=("ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"))
    assert {one.fault for one in slices.read(path).slices} == {"ImageType says LOCALIZER: not a CT slice"}
    frames = [dicom_files.ct(ImagePositionPatient=[0, 0, number]) for number in range(3)]
    path = written(tmp_path / "cut.dcm", frames)
    path.write_bytes(path.read_bytes()[:-10])
    *_, last = slices.read(path).slices
    with pytest.raises(ValueError, match="truncated: 1910 bytes of pixels, 1920 expected"):
        last.words()


def test_an_enhanced_ct_without_its_groups_is_named(tmp_path):
    dataset = enhanced_ct.enhanced([dicom_files.ct() for _ in range(3)])
    del dataset.PerFrameFunctionalGroupsSequence
    dicom_files.write(tmp_path / "all.dcm", dataset)
    (one,) = slices.read(tmp_path).slices
    assert one.fault == "its functional groups can't be read (3 frames, of which 0 are described)"


# Copies.


def test_slices_of_one_id_are_copies_only_if_they_are_equal(tmp_path):
    for number in range(12):
        dicom_files.write(tmp_path / f"{number:02}", ct(number, SOPInstanceUID="1.2.3"))
    dicom_files.write(tmp_path / "copy", ct(3, SOPInstanceUID="1.2.3", syntax=ExplicitVRBigEndian))
    dicom_files.write(tmp_path / "other", ct(0, SOPInstanceUID="1.2.3", RescaleIntercept=-1023))
    found = slices.read(tmp_path)
    assert (len(found.slices), found.passed_over) == (13, {"copy": "a copy of 03: 1.2.3"})
    (series,) = of_pile(tmp_path)
    assert series.notes == ["13 images at 12 positions", "13 images share 1 SOPInstanceUID"]


@pytest.mark.parametrize("names", [("", "A"), ("A", "")])
def test_a_copy_without_its_patient_is_a_copy(tmp_path, names):
    for folder, patient in zip("ab", names, strict=True):
        write_series(tmp_path / folder, 2, PatientID=patient)
    found = slices.read(tmp_path)
    assert {one.study for one in found.slices} == {"2.25.2"}
    assert (len(found.slices), len(found.passed_over)) == (2, 2)


def test_a_second_reading_is_silent_and_names_what_went_wrong(tmp_path, recwarn):
    path = dicom_files.write(tmp_path / "a", ct(0, Rows=31))
    (one,) = slices.read(tmp_path).slices
    assert slices.look_at(one)[0] == pixels.LONGER
    assert np.array_equal(slices.read_again(one)[0], slices.look_at(one)[1][0])
    assert not recwarn.list
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(ValueError, match="a has changed"):
        slices.read_again(one)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        slices.read_again(one)


@pytest.mark.parametrize("n_before", [1, 2])
def test_a_slice_that_goes_while_its_series_is_read_is_named(tmp_path, monkeypatch, n_before):
    """It goes before the box of the head is found, or before the picture is cut to the box."""
    write_series(tmp_path, 1)
    (series,) = of_pile(tmp_path)
    words, calls = slices.Slice.words, []

    def once(one):
        calls.append(one)
        if len(calls) > n_before:
            raise FileNotFoundError(2, "No such file or directory", one.file)
        return words(one)

    monkeypatch.setattr(slices.Slice, "words", once)
    with pytest.raises(FileNotFoundError, match="2.25.3-000"):
        chosen_series.read_series(series, [(32, "study")])
    assert len(calls) == n_before + 1


def test_a_slice_that_goes_before_the_page_is_written_is_named(tmp_path):
    write_series(tmp_path, 1)
    (one,) = slices.read(tmp_path).slices
    Path(tmp_path / one.file).unlink()
    row = results.Row(one.slice_id, one.file, 0.0, "", one)
    part = {"slice": one.slice_id, "position_mm": 0.0, "note": "", "probability": dict.fromkeys(LABELS, 0.5)}
    with pytest.raises(FileNotFoundError, match=one.file):
        page.study({"study": "1", "slices": [part]}, [row], 32)


def test_a_series_that_is_asked_for_must_be_there(tmp_path):
    write_series(tmp_path, 1, "2.25.30")
    with pytest.raises(ValueError, match="no series 7, which --series names: it has 2.25.30"):
        slices.read(tmp_path, wanted=slices.Wanted(("7",)))


def test_odd_piles_have_the_hu_of_pydicoms_modality_lut(real_data):
    folder = Path(real_data).with_name("odd_scans")
    if not folder.is_dir():
        pytest.skip("no odd_scans beside ICH_REAL_DATA")
    n = 0
    for file in pile.Pile(folder).files():
        content = file.read()
        words, code = pixels.read_words(content, file.name)
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        if "Modality" not in dataset:  # pydicom drops a file without the end of its pixels
            continue
        expected = apply_modality_lut(dataset.pixel_array, dataset)
        expected = np.where(expected <= pixels.PADDING_BELOW, pixels.AIR, expected)
        assert np.array_equal(pixels.hu_table(code)[words], expected), file.name
        n += 1
    assert n >= 400
