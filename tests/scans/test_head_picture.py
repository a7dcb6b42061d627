import dicom_files
import numpy as np
import pytest

from ich_kaggle.scans import head_picture, series_choice, slices

SPACING = 2.0  # mm


def disk(radius: float, center: tuple[float, float] = (80, 80), stretch: float = 1.0) -> np.ndarray:
    """Return which pixels (160, 160) lie within `radius` mm of the center."""
    y, x = np.ogrid[:160, :160]
    return np.hypot((y - center[0]) / stretch, x - center[1]) * SPACING < radius


def head(radius: float = 75, *, gap: float = 0) -> np.ndarray:
    """Return HU of a head in a skull, which may have a gap of some mm, on a thin head-holder."""
    hu = np.full((160, 160), -1000)
    hu[disk(radius + 40) & ~disk(radius + 36)] = 0
    hu[disk(radius)] = 40
    hu[disk(radius - 3, stretch=1.2)] = 1000
    hu[disk(radius - 9, stretch=1.2)] = 40
    hu[:80, 80 : 80 + int(gap / SPACING)] = np.minimum(hu[:80, 80 : 80 + int(gap / SPACING)], 40)
    return hu


def chest() -> np.ndarray:
    hu = np.full((160, 160), -1000)
    hu[disk(120, stretch=0.7)] = 20
    for x in (50, 110):
        hu[disk(40, (80, x))] = -850
    hu[disk(15, (110, 80))] = 600
    return hu


def knee() -> np.ndarray:
    hu = np.full((160, 160), -1000)
    hu[disk(60)] = 30
    hu[disk(20) & ~disk(14)] = 1200
    return hu


def series(tmp_path, pictures: list[np.ndarray], **tags) -> series_choice.Series:
    for number, hu in enumerate(pictures):
        words = (hu + 1024).astype(np.uint16)
        where = dict(PixelSpacing=[SPACING] * 2, ImagePositionPatient=[0, 0, 5 * number], SOPInstanceUID=f"1.{number}")
        dicom_files.write(tmp_path / f"{number}", dicom_files.ct(words, **where, **tags))
    ((found,),) = series_choice.studies(slices.read(tmp_path)).values()
    return found


@pytest.mark.parametrize("hu", [head(), head(45), head(90), head(gap=4)], ids=["adult", "newborn", "large", "suture"])
def test_a_closed_skull_of_any_size_is_a_head(tmp_path, hu):
    found = series(tmp_path, [np.full((160, 160), -1000)] * 6 + [hu] * 6)
    assert (head_picture.refusal(found), found.notes) == ("", [])


@pytest.mark.parametrize(
    "hu, what", [(chest(), "lungs, not a head"), (knee(), "no closed skull"), (head(gap=60), "no closed skull")]
)
def test_anything_else_is_refused_with_the_flag_that_reads_it(tmp_path, hu, what):
    flag = "and no tag says which part of the body it shows (--any-body-part reads it)"
    assert head_picture.refusal(series(tmp_path, [hu] * 12)) == f"the picture shows {what}, {flag}"


def test_a_few_slices_without_a_skull_get_a_note_and_lungs_are_refused(tmp_path):
    few = series(tmp_path / "few", [knee()] * 3)
    assert head_picture.refusal(few) == ""
    assert few.notes == ["neither a tag nor the picture says that it is a head"]
    assert "shows lungs" in head_picture.refusal(series(tmp_path / "one", [chest()]))


@pytest.mark.parametrize(
    "hu, intercept, notes",
    [
        (head(), -1024, []),
        (head(), 0, ["the picture shows no closed skull: operated on, or values that are not HU"]),
        (head(), -2048, ["the picture shows no closed skull: operated on, or values that are not HU"]),
        (chest(), -1024, ["the picture shows no closed skull: operated on, or values that are not HU"]),
    ],
    ids=["head", "intercept lost", "intercept twice", "chest"],
)
def test_a_tag_is_believed_with_a_note_where_the_picture_shows_no_skull_in_hu(tmp_path, hu, intercept, notes):
    found = series(tmp_path, [hu] * 12, BodyPartExamined="KOPF", RescaleIntercept=intercept)
    assert (head_picture.refusal(found), found.notes) == ("", notes)


def test_every_real_study_shows_a_skull(real_data):
    for (found,) in series_choice.studies(slices.read(real_data)).values():
        seen = [head_picture.shows(*one.words(), one.spacing) for one in found.slices]
        assert sum(skull for skull, _ in seen) >= len(seen) / 4 and not any(lungs for _, lungs in seen)
