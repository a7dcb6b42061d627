import numpy as np
import pytest
from sklearn.metrics import log_loss

from ich_kaggle.common import metric
from ich_kaggle.common.labels import LABELS, WEIGHTS


def sklearn_score(target: np.ndarray, probability: np.ndarray) -> float:
    """Return what Kaggle computes: one log loss over the flattened rows, weighted, clipped at 1e-15."""
    weight = np.tile(WEIGHTS, len(target))
    return log_loss(target.ravel(), np.clip(probability, 1e-15, 1 - 1e-15).ravel(), sample_weight=weight)


@pytest.mark.parametrize("seed", range(5))
def test_the_score_is_scikit_learns_weighted_log_loss(seed):
    rng = np.random.default_rng(seed)
    target = (rng.random((300, 6)) < 0.2).astype(float)
    assert metric.log_loss(target, p := rng.random((300, 6))) == pytest.approx(sklearn_score(target, p), abs=1e-12)


def test_predictions_of_0_and_1_are_clipped_as_kaggle_clips_them():
    rng = np.random.default_rng(0)
    target = (rng.random((200, 6)) < 0.3).astype(float)
    certain = rng.integers(0, 2, (200, 6)).astype(float)
    assert metric.log_loss(target, certain) == pytest.approx(sklearn_score(target, certain), rel=1e-9)


def test_all_zero_and_all_one_submissions_together_score_what_kaggle_gave():
    target = (np.random.default_rng(1).random((500, 6)) < 0.1).astype(float)
    zero, one = (metric.log_loss(target, np.full(target.shape, value)) for value in (0.0, 1.0))
    # 16.353 + 18.185 on the leaderboard; 1 - 1e-15 in floats is 1 - 9.99e-16, which costs 8e-4 more.
    assert zero + one == pytest.approx(34.538, abs=2e-3)
    assert zero == pytest.approx(-np.log(1e-15) * (target.mean(axis=0) @ WEIGHTS) / 7, rel=1e-6)


def test_any_counts_twice():
    target = np.zeros((1, 6))
    wrong = [metric.log_loss(target, np.where(np.arange(6) == label, 0.5, 0.0)[None]) for label in range(6)]
    assert wrong == pytest.approx([np.log(2) / 7] * 5 + [2 * np.log(2) / 7])


def test_a_half_everywhere_costs_log_two_in_every_label():
    target = np.eye(6)
    assert metric.label_losses(target, np.full((6, 6), 0.5)) == pytest.approx([np.log(2)] * len(LABELS))


def test_the_prevalence_of_the_competition_scores_what_was_derived_for_it():
    n_positive, n = np.array([3145, 36118, 26205, 35675, 47166, 107933]), 752803
    target = (np.arange(n)[:, None] < n_positive).astype(float)
    assert metric.log_loss(target, np.broadcast_to(target.mean(axis=0), target.shape)) == pytest.approx(
        0.2311, abs=1e-4
    )


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.1, np.inf])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="not a number in \\[0, 1\\]"):
        metric.log_loss(np.zeros((1, 6)), np.full((1, 6), wrong))


def test_the_mean_does_not_depend_on_how_many_slices_are_worked_on_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    target, probability = (rng.random((100, 6)) < 0.2).astype(float), rng.random((100, 6))
    whole = metric.label_losses(target, probability)
    monkeypatch.setattr(metric, "CHUNK", 7)
    assert metric.label_losses(target, probability) == pytest.approx(whole, rel=1e-13)
    with pytest.raises(ValueError, match="predictions for"):
        metric.label_losses(target[:14], probability)


def test_predictions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 6\) predictions for \(3, 6\) targets"):
        metric.log_loss(np.zeros((3, 6)), np.zeros((2, 6)))
