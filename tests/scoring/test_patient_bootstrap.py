import numpy as np
import pytest

from ich_kaggle.common import metric
from ich_kaggle.scoring import comparison, patient_bootstrap


def patients(n_patients: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values and patients of slices, 10 to 29 a patient, whose values share a patient's own level."""
    rng = np.random.default_rng(seed)
    size = rng.integers(10, 30, n_patients)
    patient = np.repeat(np.arange(n_patients), size)
    return rng.normal(size=n_patients)[patient] + 0.3 * rng.normal(size=len(patient)), patient


def test_sums_add_each_patients_slices():
    found = patient_bootstrap.sums(np.array([[1.0, 10], [2, 20], [4, 40]]), np.array([1, 0, 1]), 3)
    assert found.tolist() == [[2, 20], [5, 50], [0, 0]]


def test_the_bootstrap_spreads_as_its_standard_error_says():
    values, patient = patients(300, 0)
    total, size = np.bincount(patient, values), np.bincount(patient)
    draws = patient_bootstrap.bootstrap(total[:, None], size, n_draws=4000, seed=1)[:, 0]
    assert draws.std() == pytest.approx(patient_bootstrap.standard_error(total, size), rel=0.06)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)


def test_a_draw_is_the_mean_over_the_slices_of_the_patients_drawn():
    values, patient = patients(7, 0)
    total, size = np.bincount(patient, values), np.bincount(patient)
    count = next(patient_bootstrap.draws(7, 3, 5))
    assert count.sum(axis=1).tolist() == [7, 7, 7]
    rows = [np.concatenate([np.flatnonzero(patient == p) for p in range(7) for _ in range(int(n[p]))]) for n in count]
    assert patient_bootstrap.bootstrap(total[:, None], size, n_draws=3, seed=5)[:, 0] == pytest.approx(
        [values[r].mean() for r in rows]
    )


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        values, patient = patients(60, seed)
        total, size = np.bincount(patient, values), np.bincount(patient)
        low, high = patient_bootstrap.interval(
            patient_bootstrap.bootstrap(total[:, None], size, n_draws=300, seed=seed)[:, 0]
        )
        hits += low <= 0 <= high
    assert 0.89 <= hits / 200 <= 0.985


def test_one_patient_has_no_standard_error():
    assert patient_bootstrap.standard_error(np.array([3.0]), np.array([10])) == np.inf


def test_the_interval_of_nothing_is_not_a_number():
    assert np.isnan(patient_bootstrap.interval(np.array([np.nan]))).all()


def test_equal_runs_differ_by_exactly_nothing_on_the_same_draws():
    values, patient = patients(20, 3)
    total = np.bincount(patient, values)
    found = comparison.compare(["a", "b"], np.stack([total, total], 1), np.bincount(patient), n_draws=50, seed=0)
    assert found["differences"] == {"a - b": [0, 0, 0]} and found["intervals"]["a"] == found["intervals"]["b"]


def test_patient_losses_add_up_to_the_score():
    rng = np.random.default_rng(0)
    target = (rng.random((300, 6)) < 0.3).astype(np.float32)
    runs = [rng.random((300, 6)).astype(np.float32) for _ in range(2)]
    total = comparison.patient_losses(target, runs, np.arange(300) // 30)
    assert total.shape == (10, 2)
    assert total.sum(axis=0) / 300 == pytest.approx([metric.log_loss(target, run) for run in runs])


def test_error_correlation_is_numpys_corrcoef():
    rng = np.random.default_rng(0)
    target = (rng.random((300, 6)) < 0.3).astype(np.float32)
    runs = [rng.random((300, 6)).astype(np.float32) for _ in range(3)]
    wanted = np.corrcoef([(run - target).ravel() for run in runs])
    assert comparison.error_correlation(target, runs) == pytest.approx(wanted, abs=1e-6)
