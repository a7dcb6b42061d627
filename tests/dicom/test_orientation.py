import numpy as np
import pytest
from dicom_files import ct

from ich_kaggle.dicom import orientation, pixels

USUAL = np.arange(6, dtype=np.uint16).reshape(2, 3)  # front left, as seen on a screen, is 0


def along(*directions: str) -> list[int]:
    """Return ImageOrientationPatient by the letters of PS3.3 C.7.6.1.1.1: where rows and columns run to."""
    axes = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0)}
    return [part for one in directions for part in axes[one]]


@pytest.mark.parametrize(
    "directions, stored, upwards",
    [
        ("LP", USUAL, True),
        ("LA", USUAL[::-1], False),  # bottom-up
        ("RP", USUAL[:, ::-1], False),  # mirrored
        ("RA", USUAL[::-1, ::-1], True),  # prone
        ("PL", USUAL.T, False),
        ("AL", USUAL.T[:, ::-1], True),
        ("PR", USUAL.T[::-1], True),
        ("AR", USUAL.T[::-1, ::-1], False),
    ],
)
def test_every_orientation_is_turned_to_the_usual_one(directions, stored, upwards):
    turn = orientation.turn_of(ct(stored, ImageOrientationPatient=along(*directions)), "one.dcm")
    assert np.array_equal(orientation.turned(stored, turn), USUAL)
    assert turn.upwards is upwards


def test_a_tilted_gantry_turns_nothing():
    turn = orientation.turn_of(ct(ImageOrientationPatient=[1, 0, 0, 0, 0.9, -0.44]), "one.dcm")
    assert turn == (False, False, False, True)


@pytest.mark.parametrize(
    "shape, spacing, wanted",
    [
        ((4, 6), (0.5, 0.5), (4, 6)),
        ((4, 6), (0.5, 0.502), (4, 6)),
        ((4, 6), (1, 0.5), (8, 6)),
        ((4, 6), (1, 2), (4, 12)),
    ],
)
def test_pixels_are_made_square_at_the_finer_spacing(shape, spacing, wanted):
    assert orientation.square(shape, spacing) == wanted


def test_pixels_that_are_no_pixels_are_refused():
    with pytest.raises(ValueError, match="pixels of 10 x 0.5 mm"):
        orientation.square((4, 6), (10, 0.5))


def test_resampled_pixels_are_interpolated_in_hu():
    code = pixels.Encoding(12, False, 2.0, -1000)
    words = np.array([[500, 600], [500, 600]], np.uint16)
    found, encoding = orientation.resampled(words, code, (2, 4))
    assert pixels.hu_table(encoding)[found].tolist() == [[0, 50, 150, 200]] * 2
    assert orientation.resampled(words, code, (2, 2))[1] is code
