import numpy as np
import pytest
from made_runs import synthetic
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from ich_kaggle.common import metric
from ich_kaggle.common.labels import ANY
from ich_kaggle.scoring import blending

TARGET, RUNS, PATIENT, FOLD = synthetic()
EVERY = np.ones(len(TARGET), np.float32)


def fit(method: str, target=TARGET, runs=RUNS, weight=EVERY) -> blending.Blend:
    return blending.METHODS[method](target, runs, weight)


def test_the_share_of_the_prevalence_is_the_one_of_least_penalised_loss():
    made = fit("shrunk")
    mean, constant = np.mean(RUNS, axis=0), blending.prevalence(TARGET, EVERY)

    def cost(share):
        mixed = (1 - share) * mean + share * constant
        return len(TARGET) * metric.log_loss(TARGET, mixed) + blending.PRIOR / 2 * share**2

    share = 1 - made.weights.sum(axis=0)[0]
    assert made.bias == pytest.approx(share * constant)
    assert share == pytest.approx(min(np.linspace(0, 1, 41), key=cost)) and 0 < share < 1


def test_runs_that_know_nothing_are_replaced_by_the_prevalence():
    rng = np.random.default_rng(0)
    sure = [expit(rng.normal(0, 6, TARGET.shape)).astype(np.float32) for _ in range(2)]
    made = fit("shrunk", runs=sure)
    assert made.weights.max() < 0.05
    mixed = metric.log_loss(TARGET, blending.combine(made, sure))
    constant = metric.log_loss(TARGET, np.tile(blending.prevalence(TARGET, EVERY), (len(TARGET), 1)))
    assert mixed < constant + 0.002


def test_the_prevalence_is_never_0_or_1():
    none = np.zeros((9, 6), np.float32)
    assert blending.prevalence(none, np.ones(9, np.float32)) == pytest.approx(np.full(6, 0.05))
    assert blending.prevalence(1 - none, np.ones(9, np.float32)) == pytest.approx(np.full(6, 0.95))


def test_gradient_and_hessian_are_those_of_finite_differences():
    runs = [np.clip(run, 0.05, 0.9) for run in RUNS]
    weights = np.hstack([np.random.default_rng(0).dirichlet([5] * 3, 6), np.full((6, 1), 0.1)])
    _, gradient, hessian = blending.moments(TARGET, runs, EVERY, weights)
    for i in range(weights.shape[1]):
        step = np.zeros_like(weights)
        step[:, i] = 1e-2
        up, down = (blending.moments(TARGET, runs, EVERY, weights + s) for s in (step, -step))
        assert (up[0] - down[0]) / 2e-2 == pytest.approx(gradient[:, i], rel=2e-3, abs=3e-4)
        assert (up[1] - down[1]) / 2e-2 == pytest.approx(hessian[:, i], rel=2e-2, abs=3e-3)


@pytest.mark.parametrize("method", list(blending.METHODS))
def test_the_order_of_the_runs_does_not_matter(method):
    order = [2, 0, 1]
    assert fit(method, runs=[RUNS[i] for i in order]).weights == pytest.approx(fit(method).weights[order], abs=2e-3)


def test_any_raised_in_every_run_stays_the_largest_in_the_blend():
    for method in ("equal", "shrunk"):
        mixed = blending.combine(fit(method), RUNS)
        assert (mixed[:, ANY] >= mixed.max(axis=1) - 1e-6).all(), method


def test_raising_any_changes_nothing_else():
    before = np.random.default_rng(0).random((50, 6)).astype(np.float32)
    after = blending.raise_any(before.copy())
    assert np.array_equal(after[:, :ANY], before[:, :ANY])
    assert np.array_equal(after[:, ANY], before.max(axis=1))


def test_slices_of_no_weight_leave_no_trace():
    weight = (FOLD != 2).astype(np.float32)
    spoilt = TARGET.copy()
    spoilt[FOLD == 2] = 1 - spoilt[FOLD == 2]
    for method in blending.METHODS:
        clean, other = (fit(method, target, weight=weight) for target in (TARGET, spoilt))
        assert np.array_equal(clean.weights, other.weights) and np.array_equal(clean.bias, other.bias), method


def test_the_stacker_is_a_logistic_regression_where_its_prior_is_weak(monkeypatch):
    monkeypatch.setattr(blending, "PRIOR", 1e-4)
    blend = fit("stack")
    x = logit(np.clip(np.stack([run[:, 4] for run in RUNS], axis=1).astype(float), 1e-6, 1 - 1e-6))
    model = LogisticRegression(C=1e6, tol=1e-9, max_iter=1000).fit(x, TARGET[:, 4])
    assert blend.weights[:, 4] == pytest.approx(model.coef_[0], abs=5e-3)
    assert blend.bias[4] == pytest.approx(model.intercept_[0], abs=5e-3)


def test_the_stacker_is_the_equal_blend_where_its_prior_is_strong(monkeypatch):
    monkeypatch.setattr(blending, "PRIOR", 1e9)
    assert fit("stack").weights == pytest.approx(np.full((3, 6), 1 / 3), abs=1e-4)


def test_a_label_without_positives_gives_finite_weights():
    target = TARGET.copy()
    target[:, 0] = 0
    for method in blending.METHODS:
        blend = fit(method, target)
        assert np.isfinite(blend.weights).all() and np.isfinite(blend.bias).all(), method


def test_predictions_of_exactly_0_and_1_do_not_break_a_fit():
    certain = (RUNS[0] > 0.5).astype(np.float32)
    for method in blending.METHODS:
        mixed = blending.combine(fit(method, runs=[certain, RUNS[1]]), [certain, RUNS[1]])
        assert np.isfinite(metric.log_loss(TARGET, mixed)), method


def test_a_part_of_the_rows_is_blended_as_in_the_whole():
    blend, rows = fit("stack"), np.array([5, 3, 1700])
    assert np.array_equal(blending.combine(blend, RUNS, rows), blending.combine(blend, RUNS)[rows])
