import numpy as np
import pytest
from scipy.special import expit, logit

from ich_kaggle.common import metric
from ich_kaggle.scoring import calibration

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(-1, 2, 40_000)
TARGET = (RNG.random(40_000) < expit(TRUTH)).astype(float)


def test_a_temperature_is_found_again():
    a, b, c = calibration.fit("temperature", TARGET, expit(TRUTH * 2.5))
    assert a == b == pytest.approx(1 / 2.5, rel=0.03) and c == 0


def test_a_beta_calibration_is_found_again():
    # Predictions p with logit q = a ln p - b ln(1 - p) + c, q the truth: found by bisection.
    a, b, c = 0.6, 1.8, 0.5
    grid = expit(np.linspace(-40, 40, 400_001))
    z = a * np.log(grid) - b * np.log1p(-np.minimum(grid, 1 - 1e-15)) + c
    p = np.interp(TRUTH, z, grid)
    assert calibration.fit("beta", TARGET, p) == pytest.approx((a, b, c), abs=0.12)


def test_calibrated_loss_is_never_above_the_uncalibrated_one_in_sample():
    p = expit(TRUTH * 2 + 1)
    losses = []
    for kind in calibration.KINDS:
        parameters = np.tile(calibration.fit(kind, TARGET, p), (6, 1))
        losses.append(
            metric.losses(TARGET[:, None], calibration.apply(parameters, np.tile(p[:, None], 6))[:, :1]).mean()
        )
    assert losses[0] > losses[1] > losses[2]


def test_the_binned_fit_is_the_fit_of_every_slice(monkeypatch):
    p = expit(TRUTH * 1.7 - 0.3)
    coarse = calibration.fit("beta", TARGET, p)
    monkeypatch.setattr(calibration, "BINS", 1_000_000)
    assert coarse == pytest.approx(calibration.fit("beta", TARGET, p), abs=2e-3)


def test_the_identity_leaves_every_bit_alone():
    p = RNG.random((100, 6)).astype(np.float32)
    assert np.array_equal(calibration.apply(np.tile(calibration.IDENTITY, (6, 1)), p), p)


def test_one_label_is_calibrated_without_the_others():
    p = RNG.uniform(0.1, 0.9, (100, 6)).astype(np.float32)
    parameters = np.tile(calibration.IDENTITY, (6, 1))
    parameters[2] = (0.5, 0.5, 0.0)
    out = calibration.apply(parameters, p)
    assert np.array_equal(np.delete(out, 2, 1), np.delete(p, 2, 1))
    assert logit(out[:, 2]) == pytest.approx(logit(p[:, 2]) / 2, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_label_with_one_class_is_left_alone(value):
    assert calibration.fit("beta", np.full(10, value), np.full(10, 0.3)) == calibration.IDENTITY
