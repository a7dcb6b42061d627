import json

import numpy as np
import pytest
from made_runs import synthetic
from scipy.special import expit, logit

from ich_kaggle.common import metric
from ich_kaggle.common.labels import ANY
from ich_kaggle.scoring import blending, nested_choice, patient_bootstrap

TARGET, RUNS, PATIENT, FOLD = synthetic()


def prepare(target=TARGET, runs=RUNS) -> nested_choice.OutOfFold:
    return nested_choice.prepare(target, runs, FOLD, PATIENT)


@pytest.mark.parametrize("method", ["auto", "simplex", "stack"])
def test_the_labels_of_a_fold_touch_nothing_that_predicts_it(method):
    spoilt = TARGET.copy()
    spoilt[FOLD == 1] = 1 - spoilt[FOLD == 1]
    clean, other = (nested_choice.honest(prepare(target), method) for target in (TARGET, spoilt))
    assert np.array_equal(clean[FOLD == 1], other[FOLD == 1])
    assert not np.array_equal(clean[FOLD != 1], other[FOLD != 1])


def test_nested_predictions_are_those_of_weights_fitted_on_the_other_folds():
    for rows, probability in nested_choice.nested(prepare(), nested_choice.Choice("simplex")):
        rest = ~np.isin(FOLD, FOLD[rows[0]])
        blend = blending.simplex(TARGET[rest], [run[rest] for run in RUNS], np.ones(rest.sum(), np.float32))
        assert probability == pytest.approx(blending.combine(blend, RUNS, rows), abs=1e-4)


def test_equal_weights_stay_where_nothing_gains_a_standard_error():
    target, runs, patient, fold = synthetic(noise=(1.0, 1.0, 1.0), seed=3)
    runs = [blending.raise_any(expit(0.8 * logit(np.clip(run, 1e-5, 1 - 1e-5)))) for run in runs]
    size = np.bincount(patient)
    base = np.random.default_rng(0).random(60)
    assert not nested_choice.gains(base, base - np.random.default_rng(1).normal(0, 1, 60), size)
    assert nested_choice.gains(base, base - 0.1, size)
    assert not nested_choice.gains(base, base, size)
    data = nested_choice.prepare(target, [runs[0]] * 3, fold, patient)
    assert nested_choice.choose(data, calibrate=False).method in ("equal", "stack")


def test_a_much_better_run_makes_auto_leave_equal_weights():
    noise = np.random.default_rng(0).normal(0, 3, TARGET.shape)
    bad = blending.raise_any(expit(noise).astype(np.float32))
    data = prepare(runs=[RUNS[0], bad])
    choice = nested_choice.choose(data, calibrate=False)
    assert choice.method != "equal"
    losses = {method: nested_choice.nested_sums(data, nested_choice.Choice(method)).sum(axis=0) @ blending.SHARE
              for method in blending.METHODS}  # fmt: skip
    assert losses[choice.method] == min(losses.values())


def test_overconfident_runs_are_calibrated_and_the_nested_score_gains():
    sharp = [blending.raise_any(expit(3 * logit(np.clip(run, 1e-4, 1 - 1e-4)))) for run in RUNS]
    data = prepare(runs=sharp)
    choice = nested_choice.choose(data, "equal")
    assert choice.calibration[ANY] != "none"
    plain, calibrated = (
        metric.log_loss(TARGET, nested_choice.honest(data, "equal", calibrate=c)) for c in (False, True)
    )
    assert calibrated < plain - 0.02


def test_calibrated_runs_are_left_alone():
    target, _, patient, fold = synthetic(seed=5)
    truth = np.tile(target.mean(axis=0), (len(target), 1)).astype(np.float32)
    choice = nested_choice.choose(nested_choice.prepare(target, [truth], fold, patient), "equal")
    assert choice == nested_choice.Choice("equal")


def test_any_is_the_largest_after_weights_for_each_label_and_calibration():
    choice = nested_choice.Choice("stack", ("beta",) * 6, True)
    out = nested_choice.predict(nested_choice.fit_pipeline(prepare(), choice), RUNS)
    assert (out[:, ANY] >= out.max(axis=1)).all() and out.min() > 0 and out.max() < 1


def test_the_clip_is_the_best_of_those_tried():
    certain = (RUNS[0] > 0.5).astype(np.float32)
    best = nested_choice.best_clip(TARGET, certain)
    losses = {clip: metric.log_loss(TARGET, np.clip(certain, clip, 1 - clip)) for clip in nested_choice.CLIPS}
    assert losses[best] == min(losses.values()) and best > metric.EPS


def test_two_folds_leave_nothing_to_choose_by_inside_one():
    fold = FOLD % 2
    data = nested_choice.prepare(TARGET, RUNS, fold, PATIENT)
    assert nested_choice.choose(data, left_out=frozenset({0})) == nested_choice.Choice("equal")
    assert np.isfinite(nested_choice.honest(data)).all()


def test_a_pipeline_goes_through_json_and_comes_back_the_same():
    choice = nested_choice.Choice("stack", ("none", "beta", "temperature", "none", "none", "beta"), True)
    pipeline = nested_choice.fit_pipeline(prepare(), choice)
    names = ["a", "b", "c"]
    content = json.loads(json.dumps(nested_choice.to_json(choice, pipeline, names)))
    again = nested_choice.from_json(content, names)
    assert np.array_equal(nested_choice.predict(again, RUNS), nested_choice.predict(pipeline, RUNS))
    swapped = nested_choice.from_json(content, ["c", "a", "b"])
    reordered = nested_choice.predict(swapped, [RUNS[2], RUNS[0], RUNS[1]])
    assert reordered == pytest.approx(nested_choice.predict(pipeline, RUNS), abs=1e-6)


def test_a_run_that_is_a_copy_adds_nothing_and_the_best_run_most():
    data = prepare(runs=[RUNS[0], RUNS[2], RUNS[2]])
    gains = nested_choice.without_each(data, ["good", "twin", "copy"], nested_choice.Choice("simplex"))
    assert gains["good"][0] > 10 * abs(gains["copy"][0])
    assert gains["twin"][0] == pytest.approx(gains["copy"][0], abs=1e-6)


def test_each_method_is_reported_with_its_gain_over_equal_weights():
    tried = nested_choice.try_methods(prepare())
    assert tried["equal"]["gain"] == 0 and set(tried) == set(blending.METHODS)
    for method in tried.values():
        assert method["gain"] == pytest.approx(tried["equal"]["nested"] - method["nested"])


def test_the_rule_is_one_standard_error_of_the_ratio_of_sums():
    rng = np.random.default_rng(0)
    old, size = rng.random(40) * 10, rng.integers(20, 60, 40)
    gain = rng.normal(0.5, 3, 40)
    is_sure = gain.sum() / size.sum() > patient_bootstrap.standard_error(gain, size)
    assert nested_choice.gains(old, old - gain, size) == is_sure
