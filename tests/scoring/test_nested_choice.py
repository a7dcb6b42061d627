import json

import numpy as np
import pytest
from made_runs import synthetic
from scipy.special import expit, logit

from ich_kaggle.common import metric
from ich_kaggle.common.labels import ANY
from ich_kaggle.scoring import blending, nested_choice

TARGET, RUNS, PATIENT, FOLD = synthetic()


def prepare(target=TARGET, runs=RUNS) -> nested_choice.OutOfFold:
    return nested_choice.prepare(target, runs, FOLD, PATIENT)


@pytest.mark.parametrize("method", ["auto", "shrunk", "stack"])
def test_the_labels_of_a_fold_touch_nothing_that_predicts_it(method):
    spoilt = TARGET.copy()
    spoilt[FOLD == 1] = 1 - spoilt[FOLD == 1]
    clean, other = (nested_choice.honest(prepare(target), method) for target in (TARGET, spoilt))
    assert np.array_equal(clean[FOLD == 1], other[FOLD == 1])
    assert not np.array_equal(clean[FOLD != 1], other[FOLD != 1])


def test_nested_predictions_are_those_of_weights_fitted_on_the_other_folds():
    for rows, probability in nested_choice.nested(prepare(), "stack"):
        rest = ~np.isin(FOLD, FOLD[rows[0]])
        blend = blending.stack(TARGET[rest], [run[rest] for run in RUNS], np.ones(rest.sum(), np.float32))
        assert probability == pytest.approx(blending.raise_any(blending.combine(blend, RUNS, rows)), abs=1e-4)


def test_the_bound_is_a_standard_error_where_all_patients_say_the_same_and_more_where_few_do():
    """df = 2 (sum r^2)^2 / (sum r^4 - (sum r^2)^2 / n): about 2 where one patient makes all the spread, t = 1.3."""
    size, zero = np.full(40, 30), np.zeros(40)
    even = np.where(np.arange(40) % 2, 1.0, -1.0)
    error = np.sqrt(40 / 39 * 40) / size.sum()
    for times, sure in ((0.99, False), (1.02, True)):  # t of 39 degrees of freedom at one standard error: 1.013
        assert nested_choice.gains(zero, -(even + times * error * 30), size) == sure
    one = np.zeros(40)
    one[0] = 40.0
    spread = one - 1
    error = np.sqrt(40 / 39 * (spread**2).sum()) / size.sum()
    for times, sure in ((1.2, False), (1.4, True)):
        assert nested_choice.gains(zero, -(spread + times * error * 30), size) == sure
    assert not nested_choice.gains(even, even, size)
    assert nested_choice.gains(even, even - 0.1, size)


def test_a_gain_that_one_patient_of_three_makes_is_not_believed():
    size = np.full(3, 30)
    assert not nested_choice.gains(np.array([10.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0]), size)


def test_miscalibrated_runs_make_auto_stack_them_and_the_nested_score_gains():
    target = blending.raise_any(TARGET.copy())
    high = [blending.raise_any(expit(2 * logit(np.clip(run, 1e-4, 1 - 1e-4)) + 2)) for run in RUNS]
    data = prepare(target, high)
    assert nested_choice.choose(data) == "stack"
    auto, equal = (metric.log_loss(target, nested_choice.honest(data, method)) for method in ("auto", "equal"))
    assert auto < equal - 0.05


def test_too_few_patients_with_blood_decide_nothing(monkeypatch):
    target = blending.raise_any(TARGET.copy())
    data = prepare(target, [blending.raise_any(expit(2 * logit(np.clip(run, 1e-4, 1 - 1e-4)) + 2)) for run in RUNS])
    for least, method in ((60, "stack"), (61, "shrunk")):  # all 60 bleed
        monkeypatch.setattr(nested_choice, "LEAST", least)
        assert nested_choice.choose(data) == method


def test_runs_that_only_know_the_prevalence_are_left_alone():
    target, _, patient, fold = synthetic(seed=5)
    truth = np.tile(target.mean(axis=0), (len(target), 1)).astype(np.float32)
    assert nested_choice.choose(nested_choice.prepare(target, [truth], fold, patient)) == "shrunk"


def test_on_eight_patients_runs_too_sure_of_themselves_are_not_worse_than_the_prevalence():
    worse = []
    for seed in range(4):
        target, runs, patient, fold = synthetic(8, 30, noise=(4.0, 4.0), seed=seed)
        data = nested_choice.prepare(target, [blending.raise_any(expit(4 * logit(run))) for run in runs], fold, patient)
        constant = np.concatenate([np.tile(blending.prevalence(target[fold != k], np.ones((fold != k).sum())), (1, 1))
                                   for k in fold])  # fmt: skip
        worse.append(metric.log_loss(target, nested_choice.honest(data)) - metric.log_loss(target, constant))
    assert np.mean(worse) < 0.03


def test_any_is_the_largest_after_weights_for_each_label():
    out = nested_choice.predict(prepare().fit("stack", frozenset()), RUNS)
    assert (out[:, ANY] >= out.max(axis=1)).all() and out.min() > 0 and out.max() < 1


def test_two_folds_leave_nothing_to_choose_by_inside_one():
    fold = FOLD % 2
    data = nested_choice.prepare(TARGET, RUNS, fold, PATIENT)
    assert nested_choice.choose(data, frozenset({0})) == "shrunk"
    assert np.isfinite(nested_choice.honest(data)).all()


def test_a_blend_goes_through_json_and_comes_back_the_same():
    blend, names = prepare().fit("stack", frozenset()), ["a", "b", "c"]
    content = json.loads(json.dumps(nested_choice.to_json("stack", blend, names)))
    again = nested_choice.from_json(content, names)
    assert np.array_equal(nested_choice.predict(again, RUNS), nested_choice.predict(blend, RUNS))
    swapped = nested_choice.from_json(content, ["c", "a", "b"])
    reordered = nested_choice.predict(swapped, [RUNS[2], RUNS[0], RUNS[1]])
    assert reordered == pytest.approx(nested_choice.predict(blend, RUNS), abs=1e-6)


def test_a_run_that_is_a_copy_adds_nothing_and_the_best_run_most():
    data = prepare(runs=[RUNS[0], RUNS[2], RUNS[2]])
    gains = nested_choice.without_each(data, ["good", "twin", "copy"], "stack")
    assert gains["good"][0] > 3 * abs(gains["copy"][0])
    assert gains["twin"][0] == pytest.approx(gains["copy"][0], abs=1e-6)


def test_each_method_is_reported_with_its_gain_over_equal_weights():
    tried = nested_choice.try_methods(prepare())
    assert tried["equal"]["gain"] == 0 and set(tried) == set(blending.METHODS)
    for method in tried.values():
        assert method["gain"] == pytest.approx(tried["equal"]["nested"] - method["nested"])
