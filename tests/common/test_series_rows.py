import numpy as np

from ich_kaggle.common import series_rows


def test_equal_ids_that_stand_together_have_one_number():
    assert series_rows.number(["b", "b", "a", "c", "c"]).tolist() == [0, 0, 1, 2, 2]
    assert series_rows.number([]).tolist() == []


def test_bounds_are_the_first_row_and_the_row_after_the_last():
    start, stop = series_rows.bounds(np.array([0, 0, 1, 2, 2, 2]))
    assert start.tolist() == [0, 2, 3]
    assert stop.tolist() == [2, 3, 6]


def test_a_slice_lies_between_0_and_1_by_millimetres_not_by_rank():
    series = np.array([0, 0, 0, 1, 1])
    position = np.array([-10.0, 0.0, 30.0, 5.0, 6.0])
    assert series_rows.relative(series, position).tolist() == [0, 0.25, 1, 0, 1]


def test_a_series_without_extent_lies_in_the_middle():
    assert series_rows.relative(np.array([0, 1, 1]), np.array([7.0, 3.0, 3.0])).tolist() == [0.5, 0.5, 0.5]
