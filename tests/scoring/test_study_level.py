import numpy as np
import pytest
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from ich_kaggle.scoring import study_level

RNG = np.random.default_rng(0)
LARGEST = RNG.random((60, 6))
MEAN = LARGEST * RNG.random((60, 6))
TARGET = (RNG.random((60, 6)) < LARGEST).astype(float)


def test_it_is_the_logistic_regression_of_scikit_learn():
    found = study_level.apply(study_level.fit(TARGET[:40], LARGEST[:40], MEAN[:40]), LARGEST[40:], MEAN[40:])
    for label in range(6):
        x = logit(np.stack([LARGEST[:, label], MEAN[:, label]], axis=1))
        model = LogisticRegression().fit(x[:40], TARGET[:40, label])
        np.testing.assert_allclose(found[:, label], model.predict_proba(x[40:])[:, 1], atol=1e-12)


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_that_all_have_or_none_is_the_largest(value):
    target = TARGET.copy()
    target[:, 2] = value
    found = study_level.apply(study_level.fit(target, LARGEST, MEAN), LARGEST, MEAN)
    np.testing.assert_allclose(found[:, 2], LARGEST[:, 2], atol=1e-6)
    assert not np.allclose(found[:, 3], LARGEST[:, 3])


def test_it_is_the_logistic_function_of_both_logits():
    parameters = np.tile([2.0, 0.5, -1.0], (6, 1))
    found = study_level.apply(parameters, np.full((1, 6), 0.8), np.full((1, 6), 0.5))
    odds = 4**2 * 1**0.5 * np.exp(-1)  # odds of 0.8 are 4, of 0.5 they are 1
    np.testing.assert_allclose(found, odds / (1 + odds))


def test_studies_are_summed_up_by_their_own_slices():
    labels = np.tile([[0.0], [1.0], [1.0]], (1, 6))
    probability = np.tile([[0.2], [0.5], [0.4]], (1, 6)).astype(np.float32)
    target, largest, mean = study_level.of_studies(["t", "s", "t"], labels, probability)
    assert (target[:, 0].tolist(), largest[:, 0].tolist()) == ([1, 1], pytest.approx([0.5, 0.4]))
    assert mean[:, 0].tolist() == pytest.approx([0.5, 0.3])
