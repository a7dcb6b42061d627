import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom
from sklearn.metrics import fbeta_score

from ich_kaggle.scoring import thresholds

ALPHA, CONFIDENCE, N_PATIENTS, N_DRAWS = 0.1, 0.9, 150, 1000


def population(n_patients: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return target, probability and patient of slices, 12 a patient, all positive; patients differ in how well
    their slices are seen."""
    seen = np.repeat(rng.normal(1.5, 1.2, n_patients), 12)
    probability = expit(seen + 0.7 * rng.normal(size=len(seen)))
    return np.ones(len(seen)), probability, np.repeat(np.arange(n_patients), 12)


def simulate(choose) -> np.ndarray:
    """Return the true mean miss rate of the threshold that `choose` takes, in each of N_DRAWS draws of patients."""
    everyone = np.sort(population(100_000, np.random.default_rng(99))[1])
    found = []
    for seed in range(N_DRAWS):
        curve = thresholds.miss_curve(*population(N_PATIENTS, np.random.default_rng(seed)))
        found.append(np.searchsorted(everyone, choose(curve)) / len(everyone))
    return np.array(found)


def test_confident_recall_holds_in_the_promised_share_of_a_thousand_draws():
    rate = simulate(lambda curve: thresholds.confident(curve, ALPHA, CONFIDENCE))
    assert (rate <= ALPHA).mean() >= CONFIDENCE
    assert rate.mean() > ALPHA / 3  # nor is it kept by calling everything positive


def test_the_expected_miss_rate_holds_in_the_mean_of_a_thousand_draws():
    rate = simulate(lambda curve: thresholds.expected(curve, ALPHA))
    error = rate.std() / np.sqrt(N_DRAWS)
    assert rate.mean() <= ALPHA + 2 * error
    assert rate.mean() > ALPHA * 0.8


def test_the_threshold_that_just_keeps_the_rate_on_the_sample_breaks_both_promises():
    naive, controlled = (
        simulate(choose)
        for choose in (
            lambda curve: curve[0][curve[1] <= ALPHA].max(),
            lambda curve: thresholds.expected(curve, ALPHA),
        )
    )
    assert (naive <= ALPHA).mean() < CONFIDENCE - 0.2
    assert naive.mean() > controlled.mean()


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_the_best_f_beta_is_that_of_trying_every_threshold(beta):
    rng = np.random.default_rng(0)
    target = (rng.random(200) < 0.3).astype(int)
    probability = np.round(np.clip(target * 0.3 + rng.random(200) * 0.7, 0, 1), 2)  # with ties
    best = thresholds.best_f(target, probability, beta)
    every = {t: fbeta_score(target, probability >= t, beta=beta) for t in np.unique(probability)}
    assert every[best] == pytest.approx(max(every.values()))


def test_without_positives_nothing_is_called_positive_and_nothing_is_promised():
    chosen = thresholds.choose(np.zeros(5), np.full(5, 0.3), np.arange(5), beta=2, recall=0.9, confidence=0.9)
    assert chosen == {"f1": 1.0, "f2": 1.0, "recall_0.9_expected": 0.0, "recall_0.9": 0.0}


def test_the_miss_curve_weighs_patients_alike():
    # Patient 0 has one positive slice (0.2), patient 1 three (0.1, 0.5, 0.9) and a negative one.
    target = np.array([1, 1, 1, 1, 0])
    probability, patient = np.array([0.2, 0.1, 0.5, 0.9, 0.95]), np.array([0, 1, 1, 1, 1])
    levels, rate, n = thresholds.miss_curve(target, probability, patient)
    assert levels.tolist() == [0.1, 0.2, 0.5, 0.9] and n == 2
    assert rate == pytest.approx([0, (0 + 1 / 3) / 2, (1 + 1 / 3) / 2, (1 + 2 / 3) / 2])


def test_conformal_risk_control_by_hand():
    levels, rate = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 0.05, 0.1, 0.3])
    # (19 * rate + 1) / 20 <= 0.15 allows a rate of 2 / 19 = 0.105.
    assert thresholds.expected((levels, rate, 19), 0.15) == 0.3
    assert thresholds.expected((levels, rate, 19), 0.05) == 0.1  # 1 / 20 exactly
    assert thresholds.expected((levels, rate, 18), 0.05) == 0.0  # too few patients for anything


def test_the_p_value_of_no_miss_is_the_lesser_of_hoeffdings_and_bentkus():
    n, alpha = 50, 0.1
    assert thresholds.p_value(np.array([0.0]), n, alpha)[0] == pytest.approx(
        min((1 - alpha) ** n, np.e * binom.cdf(0, n, alpha))
    )
    rates = np.linspace(0, 0.3, 50)
    assert (np.diff(thresholds.p_value(rates, n, alpha)) >= -1e-12).all()
    assert thresholds.p_value(np.array([alpha]), n, alpha)[0] >= 0.5


def test_a_surer_promise_takes_a_lower_threshold():
    curve = thresholds.miss_curve(*population(300, np.random.default_rng(0)))
    levels = [thresholds.confident(curve, 0.1, c) for c in (0.5, 0.9, 0.99)]
    assert levels == sorted(levels, reverse=True) and levels[0] > levels[2] > 0


def test_nothing_is_guaranteed_for_the_mean_over_folds_that_is_deployed():
    from ich_kaggle import evaluate

    words = " ".join(evaluate.build_parser().format_help().split())
    assert "use the mean of these models, for which neither is guaranteed" in words
    assert words.count("guarant") == 1
