import numpy as np
import pytest

from ich_kaggle import aggregates, evaluate

RNG = np.random.default_rng(0)
LARGEST = RNG.random((60, 6))
MEAN = LARGEST * RNG.random((60, 6))
TARGET = (RNG.random((60, 6)) < LARGEST).astype(float)


def test_fitted_on_the_other_folds_it_is_the_aggregate_that_is_evaluated():
    fold = np.arange(60) % 3
    expected = evaluate.aggregate(TARGET, LARGEST, MEAN, fold)
    for k in range(3):
        rest, own = fold != k, fold == k
        found = aggregates.apply(aggregates.fit(TARGET[rest], LARGEST[rest], MEAN[rest]), LARGEST[own], MEAN[own])
        np.testing.assert_allclose(found, expected[own], atol=1e-12)


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_that_all_have_or_none_is_the_largest(value):
    target = TARGET.copy()
    target[:, 2] = value
    found = aggregates.apply(aggregates.fit(target, LARGEST, MEAN), LARGEST, MEAN)
    np.testing.assert_allclose(found[:, 2], LARGEST[:, 2], atol=1e-6)
    assert not np.allclose(found[:, 3], LARGEST[:, 3])


def test_it_is_the_logistic_function_of_both_logits():
    parameters = np.tile([2.0, 0.5, -1.0], (6, 1))
    found = aggregates.apply(parameters, np.full((1, 6), 0.8), np.full((1, 6), 0.5))
    odds = 4**2 * 1**0.5 * np.exp(-1)  # odds of 0.8 are 4, of 0.5 they are 1
    np.testing.assert_allclose(found, odds / (1 + odds))
