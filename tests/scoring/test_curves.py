import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, recall_score, roc_auc_score

from ich_kaggle.scoring import curves


def label(seed: int = 0, n_patients: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 15)
    target = (rng.random(len(patient)) < 0.25).astype(float)
    return target, np.clip(rng.normal(0.3 + 0.25 * target, 0.15), 0, 1), patient


def test_each_metric_is_scikit_learns():
    target, probability, _ = label()
    found = curves.exact(target, probability, 0.4)
    called = probability >= 0.4
    assert found["auc"] == pytest.approx(roc_auc_score(target, probability))
    assert found["average_precision"] == pytest.approx(average_precision_score(target, probability))
    assert found["brier"] == pytest.approx(brier_score_loss(target, probability))
    assert found["f1"] == pytest.approx(f1_score(target, called))
    assert found["sensitivity"] == pytest.approx(recall_score(target, called))
    assert found["specificity"] == pytest.approx(recall_score(1 - target, ~called))


def test_a_bootstrap_draw_scores_as_its_rows_do():
    target, probability, patient = label()
    found = curves.bootstrap(target, probability, patient, 0.4, n_draws=4, seed=7)
    counts = next(curves.patient_bootstrap.draws(80, 4, 7)).astype(int)
    for i, count in enumerate(counts):
        rows = np.repeat(np.arange(len(target)), count[patient])
        for name, value in curves.exact(target[rows], probability[rows], 0.4).items():
            assert found[name][i] == pytest.approx(value, abs=2e-3), name


def test_calibration_error_by_hand():
    # Cells of 1/15: 0.1 (two slices, one positive) and 0.9 (two, both positive).
    target, probability = np.array([0, 1, 1, 1.0]), np.array([0.1, 0.1, 0.9, 0.9])
    assert curves.calibration_error(target, probability) == pytest.approx((0.4 * 2 + 0.1 * 2) / 4)
    assert curves.calibration_error(target, target) == 0


def test_a_label_with_one_class_has_no_area():
    found = curves.exact(np.zeros(4), np.linspace(0, 1, 4), 0.5)
    assert np.isnan([found["auc"], found["average_precision"], found["sensitivity"]]).all() and found["f1"] == 0


def test_a_threshold_for_each_slice_is_taken_slice_by_slice():
    found = curves.at_threshold(np.array([1, 1, 0, 0]), np.full(4, 0.5), np.array([0.4, 0.6, 0.4, 0.6]))
    assert (found["sensitivity"], found["specificity"], found["precision"]) == (0.5, 0.5, 0.5)
