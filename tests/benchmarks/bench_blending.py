"""Which ways to blend earn their place: on made-up competitions, what each gains on patients that no fit has seen.

Every case is drawn several times. `auto` chooses as the ensemble does; the loss of what it chose is measured on fresh
patients. "without it" is what that loss grows by, on the mean of all draws, when `auto` may not choose the method.
Example: python tests/benchmarks/bench_blending.py --draws 4
"""

import argparse
import sys

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle.common import metric
from ich_kaggle.scoring import blending, nested_choice

COMMON = np.array([-3.5, -2.0, -2.5, -2.0, -1.8, -1.0])  # logits; about a sixth of the slices have a label
RARE = np.array([-8.2, -5.4, -5.9, -5.4, -5.0, -3.6])  # as the competition's
FRESH = 1500  # patients

THREE = (0.6, 0.9, 1.4)
CASES = {  # patients, noise of each run, and what is special
    "three runs": (60, THREE, {}),
    "three runs alike": (60, (1.0, 1.0, 1.0), {}),
    "two runs": (60, (0.7, 0.8), {}),
    "few patients": (15, THREE, {}),
    "many patients": (1500, THREE, {}),
    "rare labels": (600, THREE, {"offset": RARE}),
    "many runs": (60, tuple(np.linspace(0.5, 1.5, 12)), {}),
    "many runs, many patients": (600, tuple(np.linspace(0.5, 1.5, 12)), {}),
    "correlated runs": (150, THREE, {"shared": 0.8}),
    "one run that knows nothing": (60, (0.7, 0.9, 6.0), {}),
    "overconfident runs": (150, THREE, {"slope": 2.5}),
    "underconfident runs": (150, THREE, {"slope": 0.5}),
    "shifted runs": (150, THREE, {"shift": 1.0}),
    "each run good at other labels": (150, (1.0, 1.0, 1.0), {"specialist": 1.2}),
    "one overconfident run of three": (150, THREE, {"slope": (1.0, 1.0, 3.0)}),
    "rare labels, alike runs": (2000, (0.8, 0.9, 1.0, 1.2), {"offset": RARE, "shared": 0.8}),
}


def draw(rng, n_patients, noise, *, offset=COMMON, shared=0.0, slope=1.0, shift=0.0, specialist=0.0) -> tuple:
    """Return targets (n, 6), the probabilities of the runs, and the patient of each slice."""
    patient = np.repeat(np.arange(n_patients), 30)
    shape = (len(patient), 6)
    truth = 1.5 * rng.normal(size=(n_patients, 6))[patient] + rng.normal(size=shape) + offset
    target = (rng.random(shape) < expit(truth)).astype(np.float32)
    same = rng.normal(size=shape)
    runs = []
    for i, (spread, steep) in enumerate(zip(noise, np.broadcast_to(slope, len(noise)), strict=True)):
        spread = spread + specialist * (np.arange(6) % len(noise) != i)
        errors = np.sqrt(shared) * same + np.sqrt(1 - shared) * rng.normal(size=shape)
        run = expit(offset + steep * (truth - offset + spread * errors) + shift).astype(np.float32)
        runs.append(blending.raise_any(run))
    return target, runs, patient


def measure(case: str, seed: int) -> pd.DataFrame:
    """Return for each method the nested losses, by patient, and the loss on fresh patients."""
    n_patients, noise, special = CASES[case]
    rng = np.random.default_rng([seed, sorted(CASES).index(case)])
    target, runs, patient = draw(rng, n_patients, noise, **special)
    data = nested_choice.prepare(target, runs, patient % 5, patient)
    fresh, fresh_runs, _ = draw(rng, FRESH, noise, **special)
    rows = []
    for method in blending.METHODS:
        loss = metric.log_loss(fresh, nested_choice.predict(data.fit(method, frozenset()), fresh_runs))
        rows.append((case, seed, method, nested_choice.nested_sums(data, method), loss))
    return pd.DataFrame(rows, columns=["case", "seed", "method", "nested", "fresh"]).set_index("method")


def choice(found: pd.DataFrame, methods) -> str:
    """Return what `auto` chooses of `methods` by the nested losses `found`."""
    default, *_ = (method for method in blending.CHOICES if method in methods)
    total = found.nested[list(methods)]
    best = min(methods, key=lambda method: total[method].sum())
    return best if nested_choice.gains(total[default], total[best], np.full(len(total[best]), 30)) else default


def regret(found: list[pd.DataFrame], methods) -> np.ndarray:
    """Return by how much, per draw, the loss of what `auto` chooses of `methods` is above that of all methods."""
    return np.array([one.fresh[choice(one, methods)] - one.fresh[choice(one, one.index)] for one in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=6)
    options = parser.parse_args()
    found = []
    for case in CASES:
        found += [measure(case, seed) for seed in range(options.draws)]
        print(case, [choice(one, one.index) for one in found[-options.draws :]], file=sys.stderr, flush=True)
    gain = 1e5 * pd.DataFrame([one.fresh["equal"] - one.fresh for one in found])
    chosen = [choice(one, one.index) for one in found]
    print("| method | chosen | best on fresh patients | gain over equal, 1e-5 | least, most | without it, 1e-5 |")
    print("|---|---|---|---|---|---|")
    for method in blending.METHODS:
        n_best = sum(one.fresh.idxmin() == method for one in found)
        lost = regret(found, [m for m in blending.METHODS if m != method]) if method != "equal" else np.zeros(1)
        print(
            f"| `{method}` | {chosen.count(method)} | {n_best} | {gain[method].mean():+.0f} "
            f"| {gain[method].min():+.0f}, {gain[method].max():+.0f} | {1e5 * lost.mean():+.1f} |"
        )


if __name__ == "__main__":
    main()
