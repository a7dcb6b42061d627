import numpy as np
import pytest
from scipy.special import expit

from ich_kaggle.second_level import smoothing

SERIES = np.zeros(5, int)


def test_a_neighbour_weighs_by_the_gaussian_of_its_distance():
    weight = np.exp(-0.5 * (5 / 4) ** 2)
    smoothed = smoothing.smooth(np.array([[1.0], [0.0]]), np.array([0.0, 5.0]), SERIES[:2], 4.0)
    assert smoothed[:, 0] == pytest.approx([1 / (1 + weight), weight / (1 + weight)])


def test_it_equals_the_full_matrix_of_distances():
    rng = np.random.default_rng(0)
    series, position = np.repeat([0, 1, 2], [1, 30, 9]), np.append(0, np.sort(rng.uniform(0, 99, 39)))
    position[31:] = np.sort(position[31:])
    values = rng.random((40, 2))
    distance = np.abs(position[:, None] - position)
    weight = np.exp(-0.5 * (distance / 6) ** 2) * (series[:, None] == series) * (distance <= smoothing.REACH * 6)
    expected = weight @ values / weight.sum(axis=1, keepdims=True)
    assert smoothing.smooth(values, position, series, 6.0) == pytest.approx(expected)


def test_width_0_and_a_series_of_one_slice_keep_their_values():
    values = np.array([[0.1], [0.9], [0.4]])
    assert np.array_equal(smoothing.smooth(values, np.arange(3.0), SERIES[:3], 0.0), values)
    assert smoothing.smooth(values, np.zeros(3), np.arange(3), 50.0) == pytest.approx(values)


def test_slices_at_one_position_share_their_mean():
    smoothed = smoothing.smooth(np.array([[0.2], [0.6], [1.0]]), np.array([4.0, 4.0, 99.0]), SERIES[:3], 2.0)
    assert smoothed[:, 0] == pytest.approx([0.4, 0.4, 1.0])


def test_each_label_has_its_own_width():
    values = np.tile([[1.0], [0.0], [1.0]], 2)
    smoothed = smoothing.smooth_labels(values, np.arange(3.0), SERIES[:3], np.array([0.0, 1.0]))
    assert smoothed[:, 0].tolist() == [1, 0, 1]
    assert 0 < smoothed[1, 1] < 1


def test_fitted_widths_are_wide_where_noise_hides_long_lesions_and_0_where_single_slices_are_right():
    rng = np.random.default_rng(0)
    series, position = np.repeat(np.arange(40), 30), np.tile(np.arange(30) * 5.0, 40)
    long = np.repeat(rng.random(120) < 0.5, 10).astype(float)
    short = (rng.random(1200) < 0.3).astype(float)
    noisy = expit(2 * long - 1 + rng.normal(0, 2, 1200))
    clear = np.where(short > 0, 0.95, 0.05)
    widths = smoothing.fit_widths(np.stack([long, short], 1), np.stack([noisy, clear], 1), position, series)
    assert widths[0] > 5
    assert widths[1] == 0


def test_a_series_of_400_slices_half_a_millimetre_apart_is_smoothed_over_its_whole_reach():
    values = np.zeros((400, 1))
    values[200] = 1
    smoothed = smoothing.smooth(values, np.arange(400) * 0.5, np.zeros(400, int), 10.0)
    assert (smoothed[:, 0] > 0).sum() == 2 * 60 + 1
