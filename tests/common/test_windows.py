import numpy as np
import pytest

from ich_kaggle.common.windows import BONE, BRAIN, CACHED, HIGHEST, LOWEST, SOFT, SUBDURAL, Window, apply


@pytest.mark.parametrize("hu, gray", [(-1000, 0), (0, 0), (20, 64), (40, 128), (80, 255), (3000, 255)])
def test_brain_window_spreads_0_to_80_hu_over_the_gray_scale(hu, gray):
    assert apply(np.array([[hu]]), (BRAIN,)).item() == gray


def test_channels_follow_the_order_of_the_windows():
    blood = np.array([[70]])
    assert apply(blood, (BRAIN, SUBDURAL, SOFT)).tolist() == [[[223, 115, 148]]]
    assert apply(blood, (SOFT, BRAIN)).tolist() == [[[148, 223]]]


def test_a_wider_window_never_shows_more_contrast():
    pair = np.array([[35, 65]])
    contrast = [int(np.ptp(apply(pair, (Window(50, width),)))) for width in (60, 100, 400, 2000)]
    assert contrast == sorted(contrast, reverse=True)


def test_padding_below_every_window_is_black():
    assert not apply(np.array([[-3024, -2000]]), CACHED).any()


def test_values_outside_the_table_are_clipped_to_its_ends():
    hu = np.array([[-40000.0, LOWEST - 1, HIGHEST + 1, 70000.0]], np.float32)
    assert apply(hu, (BONE,))[..., 0].tolist() == [[0, 0, 255, 255]]


def test_every_hu_is_the_nearest_gray_of_the_float64_formula():
    hu = np.arange(LOWEST, HIGHEST + 1)[None]
    for window in (BRAIN, SUBDURAL, SOFT, BONE):
        exact = 255 * np.clip((hu - window.center) / window.width + 0.5, 0, 1)
        assert np.abs(apply(hu, (window,))[..., 0] - exact).max() <= 0.5


def test_fractions_of_a_hu_are_rounded_before_the_look_up():
    assert np.array_equal(apply(np.array([[39.6, 40.4]]), CACHED), apply(np.array([[40, 40]]), CACHED))
