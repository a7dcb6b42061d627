import numpy as np
import pytest

from ich_kaggle.second_level import boosting

N_AROUND = 2 * boosting.REACH + 1


def seen(probability, *, series=None, study=None):
    n = len(probability)
    series = np.zeros(n, int) if series is None else series
    study = series if study is None else study
    return boosting.features(
        np.asarray(probability, float).reshape(n, 1, 1), np.full((n, 1), 0.6), np.arange(n) * 5.0, series, study
    )


def test_a_slice_sees_its_neighbours_in_order_and_the_last_slice_past_an_end():
    around = seen([0.1, 0.2, 0.3])[:, :N_AROUND]
    assert around[1] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.3, 0.3, 0.3])


def test_neighbours_are_of_the_series_but_maxima_and_means_of_the_study():
    table = seen([0.1, 0.2, 0.8, 0.9], series=np.array([0, 0, 1, 1]), study=np.zeros(4, int))
    assert table[:2, :N_AROUND].max() == pytest.approx(0.2)
    assert table[:, N_AROUND] == pytest.approx(0.9)
    assert table[:, N_AROUND + 1] == pytest.approx(0.5)


def test_the_place_of_a_slice_is_its_share_both_distances_and_the_number_of_slices():
    assert seen([0.0] * 3)[:, -4:].tolist() == [[0, 0, 2, 3], [0.5, 1, 1, 3], [1, 2, 0, 3]]


def test_a_series_of_one_slice_has_no_neighbour_but_itself():
    table = seen([0.3, 0.7], series=np.arange(2))
    assert table[0] == pytest.approx([0.3] * N_AROUND + [0.3, 0.3, 0.6, 0.5, 0, 0, 1])


def test_another_seed_gives_other_boosters_and_the_same_seed_the_same():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 10)).astype(np.float32)
    target = (inputs[:, :1] + rng.normal(size=(400, 1)) > 0).astype(np.float32)
    first, again, other = (boosting.fit_predict(inputs, target, inputs, rounds=5, seeds=[s]) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    both = boosting.fit_predict(inputs, target, inputs, rounds=5, seeds=[0, 1])
    assert both == pytest.approx((first + other) / 2)


def test_a_label_that_no_fitted_slice_has_gets_its_prevalence_by_the_rule_of_succession():
    inputs = np.zeros((8, 2), np.float32)
    target = np.column_stack([np.zeros(8), np.ones(8)])
    assert boosting.fit_predict(inputs, target, inputs[:1], rounds=5, seeds=[0])[0] == pytest.approx([0.1, 0.9])
