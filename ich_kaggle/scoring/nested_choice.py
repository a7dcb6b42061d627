"""The choice of a blend by nested score, and the predictions that score the choice itself.

Nested: predictions of a fold come from a blend that was chosen and fitted without that fold. A method is chosen over
the default if it gains more than one standard error over patients (Breiman et al., Classification and Regression
Trees, 1984, 3.4.3), and more where a few patients decide: the bound is that of Student's t with the degrees of freedom
that the spread of the patients' gains leaves (Satterthwaite, Biometrics Bulletin 2, 1946). Fewer than LEAST patients
with blood decide nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit

from ich_kaggle.common import metric
from ich_kaggle.common.labels import ANY
from ich_kaggle.scoring import blending, patient_bootstrap
from ich_kaggle.scoring.blending import Blend

LEVEL = ndtr(1)  # of one standard error
LEAST = 5  # patients with blood: fewer decide nothing


class OutOfFold(NamedTuple):
    """Out-of-fold predictions of runs, `any` raised to the largest subtype, and the labels they are scored by."""

    target: np.ndarray  # (n, 6)
    probabilities: Sequence[np.ndarray]  # n_runs arrays (n, 6)
    fold: np.ndarray  # (n,)
    patient: np.ndarray  # (n,), an index from 0
    fit: Callable[[str, frozenset], Blend]  # a method, fitted without the folds left out


def prepare(target, probabilities, fold, patient) -> OutOfFold:
    """Return the arrays with a `fit` that fits each blend once, however often it is asked for."""

    @cache
    def fit(method: str, left_out: frozenset = frozenset()) -> Blend:
        weight = (~np.isin(fold, list(left_out))).astype(np.float32)
        return blending.METHODS[method](target, probabilities, weight)

    return OutOfFold(target, probabilities, fold, np.unique(patient, return_inverse=True)[1], fit)


def predict(blend: Blend, probabilities: Sequence[np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
    """Return the ensemble's probabilities, float32 (n, 6), of all slices or of `rows` (indices)."""
    return blending.raise_any(blending.combine(blend, probabilities, rows))


def of_folds(blend: Blend, of_runs: list[dict[int, np.ndarray]]) -> np.ndarray:
    """Return the ensemble's probabilities, float32 (n, 6): the mean over the folds of its runs.

    `of_runs` holds the probabilities (n, 6) of each run by fold. Each fold's models are combined as their out-of-fold
    predictions were; a run that lacks a fold is represented by the mean of its folds.
    """
    means = [blending.raise_any(np.mean(list(of_run.values()), axis=0)) for of_run in of_runs]
    per_fold = []
    for k in sorted(set().union(*of_runs)):
        combined = [of_run.get(k, mean) for of_run, mean in zip(of_runs, means, strict=True)]
        per_fold.append(predict(blend, [blending.raise_any(part.copy()) for part in combined]))
    return blending.raise_any(np.mean(per_fold, axis=0))


def _without(fold: np.ndarray, left_out: frozenset) -> list[int]:
    return [k for k in np.unique(fold).tolist() if k not in left_out]


def nested(data: OutOfFold, method: str, left_out: frozenset = frozenset()) -> Iterator[tuple]:
    """Yield the rows of each fold not `left_out` and their probabilities, fitted without it and those `left_out`."""
    for k in _without(data.fold, left_out):
        rows = np.flatnonzero(data.fold == k)
        yield rows, predict(data.fit(method, left_out | {k}), data.probabilities, rows)


def nested_sums(data: OutOfFold, method: str, left_out: frozenset = frozenset()) -> np.ndarray:
    """Return the summed nested log loss per patient, over all labels: (n_patients,), 0 in the folds left out."""
    total = np.zeros(data.patient.max() + 1)
    for rows, probability in nested(data, method, left_out):
        losses = metric.losses(data.target[rows], probability) @ blending.SHARE
        total += np.bincount(data.patient[rows], losses, len(total))
    return total


def sizes(data: OutOfFold, left_out: frozenset = frozenset()) -> np.ndarray:
    """Return the number of slices per patient in the folds not `left_out`: (n_patients,)."""
    return np.bincount(data.patient, ~np.isin(data.fold, list(left_out)), data.patient.max() + 1)


def gains(old: np.ndarray, new: np.ndarray, size: np.ndarray) -> bool:
    """Tell whether `new` sums of losses (n_patients,) are surely below `old`."""
    there = size > 0
    gain, size = (old - new)[there], size[there]
    spread = (gain - gain.sum() / size.sum() * size) ** 2
    kurtosis = (spread**2).sum() - spread.sum() ** 2 / len(spread)
    freedom = min(2 * spread.sum() ** 2 / max(kurtosis, 1e-300), len(spread) - 1)
    bound = stdtrit(freedom, LEVEL) * patient_bootstrap.standard_error(gain, size) if freedom > 0 else 0
    return bool(gain.sum() / size.sum() > bound)


def choose(data: OutOfFold, left_out: frozenset = frozenset()) -> str:
    """Return the method of least nested loss in the folds not `left_out`, the default if its gain is not sure."""
    default, *others = blending.CHOICES
    bleeds = data.patient[~np.isin(data.fold, list(left_out)) & (data.target[:, ANY] > 0)]
    if len(np.unique(bleeds)) < LEAST or len(_without(data.fold, left_out)) < 2:
        return default
    total = {method: nested_sums(data, method, left_out) for method in blending.CHOICES}
    best = min(others, key=lambda method: total[method].sum())
    return best if gains(total[default], total[best], sizes(data, left_out)) else default


def honest(data: OutOfFold, method: str = "auto") -> np.ndarray:
    """Return nested probabilities, float32 (n, 6): those of a fold are chosen and fitted on the other folds."""
    out = np.empty(data.target.shape, np.float32)
    for k in _without(data.fold, frozenset()):
        left_out, rows = frozenset({k}), np.flatnonzero(data.fold == k)
        chosen = choose(data, left_out) if method == "auto" else method
        out[rows] = predict(data.fit(chosen, left_out), data.probabilities, rows)
    return out


def without_each(data: OutOfFold, runs: list[str], method: str) -> dict:
    """Return the growth of the nested loss without each run, and its standard error over patients.

    A run with a negative growth is better dropped. The method is kept, and fitted again.
    """
    if len(runs) == 1:
        return {}
    size, gains = sizes(data), {}
    whole = nested_sums(data, method)
    for i, run in enumerate(runs):
        others = [p for j, p in enumerate(data.probabilities) if j != i]
        gain = nested_sums(prepare(data.target, others, data.fold, data.patient), method) - whole
        gains[run] = [float(gain.sum() / size.sum()), patient_bootstrap.standard_error(gain, size)]
    return gains


def try_methods(data: OutOfFold) -> dict:
    """Return the nested loss of each method, its gain over equal weights, and the standard error of the gain."""
    size = sizes(data)
    total = {method: nested_sums(data, method) for method in blending.METHODS}
    return {
        method: {
            "nested": float(losses.sum() / size.sum()),
            "gain": float((total["equal"] - losses).sum() / size.sum()),
            "standard_error": patient_bootstrap.standard_error(total["equal"] - losses, size),
        }
        for method, losses in total.items()
    }


def to_json(method: str, blend: Blend, runs: list[str]) -> dict:
    return {
        "method": method,
        "space": blend.space,
        "weights": dict(zip(runs, blend.weights.tolist(), strict=True)),
        "bias": blend.bias.tolist(),
    }


def from_json(content: dict, runs: list[str]) -> Blend:
    """Return the blend that a weights.json holds under "pipeline", for probabilities in the order of `runs`."""
    return Blend(content["space"], np.array([content["weights"][run] for run in runs]), np.array(content["bias"]))
