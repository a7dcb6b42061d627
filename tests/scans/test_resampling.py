import numpy as np
import pytest
from scipy.special import expit, logit

from ich_kaggle.learning import neighbours
from ich_kaggle.scans import resampling

SERIES = np.array([0.0, 5.0, 5.0, 10.0, 12.5, 20.0])  # a repeated position, and other distances
RNG = np.random.default_rng(0)


def test_the_gap_is_the_median_over_different_positions():
    assert resampling.gap(SERIES) == 5.0
    assert resampling.gap(np.array([0.0, 5.0, 5.005, 10.0])) == pytest.approx(5.0)
    assert np.isnan(resampling.gap(np.array([3.0, 3.0])))


@pytest.mark.parametrize("found, near", [(5.0, True), (3.6, True), (7.0, True), (3.5, False), (7.1, False)])
def test_a_spacing_is_near_unless_it_is_nearer_to_half_or_double(found, near):
    assert resampling.is_near(found, 5.0) is near


def test_a_series_of_one_position_is_like_any():
    assert resampling.is_near(float("nan"), 5.0)


@pytest.mark.parametrize(
    "last, expected", [(10, [0, 5, 10]), (12, [0, 5, 10]), (12.5, [0, 5, 10]), (13, [0, 5, 10, 15])]
)
def test_a_grid_ends_as_near_to_the_series_as_can_be(last, expected):
    assert resampling.grid(np.array([0.0, last]), 5.0).tolist() == expected


def test_a_grid_begins_where_the_series_does():
    assert resampling.grid(np.array([-7.0, -1.0]), 2.0).tolist() == [-7, -5, -3, -1]


def test_interpolation_is_numpys_column_by_column():
    position = np.array([0.0, 1.0, 4.0, 9.0])
    values = RNG.normal(size=(4, 2, 3)).astype(np.float32)
    wanted = np.array([-1.0, 0.0, 0.5, 4.0, 8.9, 9.0, 30.0])
    found = resampling.interpolate(values, position, wanted)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(found[:, *i], np.interp(wanted, position, values[:, *i]), rtol=1e-6)


def test_interpolation_at_the_positions_changes_no_bit_and_no_type():
    position = np.cumsum(RNG.uniform(0.3, 7, 20))
    for kind in (np.float16, np.float32):
        values = RNG.normal(size=(20, 5)).astype(kind)
        found = resampling.interpolate(values, position, position)
        assert found.dtype == kind
        assert np.array_equal(found, values)


def test_what_lies_at_one_position_is_averaged():
    values = np.array([[0.0], [2.0], [4.0], [8.0]])
    assert resampling.interpolate(values, np.array([0.0, 1.0, 1.0, 2.0]), np.array([1.0, 1.5])).ravel().tolist() == [
        3,
        5.5,
    ]


def test_the_value_at_a_single_position_holds_everywhere():
    found = resampling.interpolate(np.array([[1.0], [3.0]]), np.array([2.0, 2.0]), np.array([0.0, 2.0, 9.0]))
    assert found.ravel().tolist() == [2, 2, 2]


@pytest.mark.parametrize("offsets", [(0,), (-1, 0, 1), (-2, 0, 2), (1,)])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_neighbours_at_the_training_spacing_are_those_of_the_contexts(n, offsets):
    position = 5.0 * np.arange(n)
    expected = neighbours.neighbours(np.zeros(n), position, offsets)
    assert resampling.nearest(position, offsets, 5.0).tolist() == expected.tolist()


def test_repeated_slices_have_the_neighbours_of_the_contexts():
    position = np.repeat(5.0 * np.arange(5), [1, 2, 1, 3, 2])
    expected = neighbours.neighbours(np.zeros(9), position, (-1, 0, 1))
    assert resampling.nearest(position, (-1, 0, 1), 5.0).tolist() == expected.tolist()


def test_in_a_denser_series_neighbours_are_as_far_away_as_in_training():
    position = 1.25 * np.arange(17)
    rows = resampling.nearest(position, (-1, 0, 1), 5.0)
    assert rows[8].tolist() == [4, 8, 12]
    assert rows[0].tolist() == [0, 0, 4]  # past an end the last position stands in
    assert rows[15].tolist() == [11, 15, 16]


def test_in_a_sparser_series_a_neighbour_is_never_the_slice_itself():
    rows = resampling.nearest(20.0 * np.arange(4), (-1, 0, 1), 5.0)
    assert rows.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_the_second_level_is_asked_at_the_training_spacing_and_answers_between():
    frame = resampling.Frame([np.array([0.0, 5.0, 10.0]), 2.5 * np.arange(5)], 5.0)
    position, number = frame.place()
    assert position.tolist() == [0, 5, 10, 0, 5, 10]
    assert number.tolist() == [0, 0, 0, 1, 1, 1]
    values = np.arange(8, dtype=np.float32)[:, None] ** 2
    assert frame.resample(values).ravel().tolist() == [0, 1, 4, 9, 25, 49]
    probability = np.tile([[0.2], [0.5], [0.8], [0.2], [0.5], [0.8]], (1, 6)).astype(np.float32)
    expected = [0.2, 0.5, 0.8, 0.2, expit(logit(0.2) / 2), 0.5, expit(logit(0.8) / 2), 0.8]
    np.testing.assert_allclose(frame.back(probability)[:, 3], expected, atol=1e-6)
    assert frame.back(probability)[:3].tolist() == probability[:3].tolist()


def test_neighbours_of_several_scans_stay_in_their_own():
    frame = resampling.Frame([np.array([0.0, 5.0]), 2.5 * np.arange(5)], 5.0)
    assert frame.neighbours((-1, 0, 1)).tolist() == [
        [0, 0, 1],
        [0, 1, 1],
        [2, 2, 4],
        [2, 3, 5],
        [2, 4, 6],
        [3, 5, 6],
        [4, 6, 6],
    ]


def test_a_series_shorter_than_a_step_is_read_at_one_position():
    frame = resampling.Frame([np.array([0.0, 0.6, 1.2])], 5.0)
    assert frame.place()[0].tolist() == [0]
    assert frame.resample(np.array([[1.0], [2.0], [3.0]])).tolist() == [[1]]
    np.testing.assert_allclose(frame.back(np.full((1, 6), 0.3, np.float32)), np.full((3, 6), 0.3), atol=1e-6)
