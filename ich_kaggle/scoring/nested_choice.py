"""The choice of blend, calibration and clip by nested score, and the predictions that score the choice itself.

Nested: predictions of a fold come from a blend that was chosen and fitted without that fold. A change is accepted if
it gains more than one standard error over patients (Breiman et al., Classification and Regression Trees, 1984, 3.4.3).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ich_kaggle.common import metric
from ich_kaggle.common.labels import LABELS
from ich_kaggle.scoring import blending, calibration, patient_bootstrap

CLIPS = (metric.EPS, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


class Choice(NamedTuple):
    """The parts of an ensemble, decided before they are fitted."""

    method: str
    calibration: tuple[str, ...] = ("none",) * len(LABELS)
    clip: bool = False


class Pipeline(NamedTuple):
    """The fitted way from the probabilities of the runs to those of the ensemble."""

    blend: blending.Blend
    calibration: np.ndarray  # (6, 3)
    clip: float


class OutOfFold(NamedTuple):
    """Out-of-fold predictions of runs, `any` raised to the largest subtype, and the labels they are scored by."""

    target: np.ndarray  # (n, 6)
    probabilities: Sequence[np.ndarray]  # n_runs arrays (n, 6)
    fold: np.ndarray  # (n,)
    patient: np.ndarray  # (n,), an index from 0
    fit: Callable[[str, frozenset], blending.Blend]  # a method, fitted without the folds left out


def prepare(target, probabilities, fold, patient) -> OutOfFold:
    """Return the arrays with a `fit` that fits each blend once, however often it is asked for."""

    @cache
    def fit(method: str, left_out: frozenset) -> blending.Blend:
        weight = (~np.isin(fold, list(left_out))).astype(np.float32)
        return blending.METHODS[method](target, probabilities, weight)

    return OutOfFold(target, probabilities, fold, np.unique(patient, return_inverse=True)[1], fit)


def _without(fold: np.ndarray, left_out: frozenset) -> list[int]:
    return [k for k in np.unique(fold).tolist() if k not in left_out]


def fit_pipeline(data: OutOfFold, choice: Choice, left_out: frozenset = frozenset()) -> Pipeline:
    """Return `choice` fitted on all folds but those `left_out`."""
    rows = np.flatnonzero(~np.isin(data.fold, list(left_out)))
    blend = data.fit(choice.method, left_out)
    if not choice.clip and set(choice.calibration) == {"none"}:
        return Pipeline(blend, np.tile(calibration.IDENTITY, (len(LABELS), 1)), 0.0)
    target, mixed = data.target[rows], blending.combine(blend, data.probabilities, rows)
    curves = zip(choice.calibration, target.T, mixed.T, strict=True)
    parameters = np.array([calibration.fit(kind, t, p) for kind, t, p in curves])
    return Pipeline(blend, parameters, best_clip(target, finish(mixed, parameters, 0.0)) if choice.clip else 0.0)


def best_clip(target: np.ndarray, probability: np.ndarray) -> float:
    return min(CLIPS, key=lambda clip: metric.log_loss(target, np.clip(probability, clip, 1 - clip)))


def finish(mixed: np.ndarray, parameters: np.ndarray, clip: float) -> np.ndarray:
    """Return the blended probabilities (n, 6) calibrated, `any` raised to the largest subtype, and clipped."""
    out = blending.raise_any(calibration.apply(parameters, mixed))
    return np.clip(out, np.float32(clip), np.float32(1 - clip))


def predict(pipeline: Pipeline, probabilities: Sequence[np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
    """Return the ensemble's probabilities, float32 (n, 6), of all slices or of `rows` (indices)."""
    return finish(blending.combine(pipeline.blend, probabilities, rows), pipeline.calibration, pipeline.clip)


def of_folds(pipeline: Pipeline, of_runs: list[dict[int, np.ndarray]]) -> np.ndarray:
    """Return the ensemble's probabilities, float32 (n, 6): the mean over the folds of its runs.

    `of_runs` holds the probabilities (n, 6) of each run by fold. Each fold's models are combined as their out-of-fold
    predictions were; a run that lacks a fold is represented by the mean of its folds.
    """
    means = [blending.raise_any(np.mean(list(of_run.values()), axis=0)) for of_run in of_runs]
    per_fold = []
    for k in sorted(set().union(*of_runs)):
        combined = [of_run.get(k, mean) for of_run, mean in zip(of_runs, means, strict=True)]
        per_fold.append(predict(pipeline, [blending.raise_any(part.copy()) for part in combined]))
    return blending.raise_any(np.mean(per_fold, axis=0))


def nested(data: OutOfFold, choice: Choice, left_out: frozenset = frozenset()) -> Iterator[tuple]:
    """Yield the rows of each fold not `left_out` and their probabilities, fitted without it and those `left_out`."""
    for k in _without(data.fold, left_out):
        rows = np.flatnonzero(data.fold == k)
        yield rows, predict(fit_pipeline(data, choice, left_out | {k}), data.probabilities, rows)


def nested_sums(data: OutOfFold, choice: Choice, left_out: frozenset = frozenset()) -> np.ndarray:
    """Return the summed nested log loss per patient and label: (n_patients, 6), 0 in the folds left out."""
    total = np.zeros((data.patient.max() + 1, len(LABELS)))
    for rows, probability in nested(data, choice, left_out):
        losses = metric.losses(data.target[rows], probability)
        total += patient_bootstrap.sums(losses, data.patient[rows], len(total))
    return total


def sizes(data: OutOfFold, left_out: frozenset = frozenset()) -> np.ndarray:
    """Return the number of slices per patient in the folds not `left_out`: (n_patients,)."""
    weight = ~np.isin(data.fold, list(left_out))
    return np.bincount(data.patient, weight, data.patient.max() + 1)


def gains(old: np.ndarray, new: np.ndarray, size: np.ndarray) -> bool:
    """Tell whether `new` sums of losses (n_patients,) are below `old` by more than one standard error."""
    there = size > 0
    gain = (old - new)[there]
    return bool(gain.sum() / size.sum() > patient_bootstrap.standard_error(gain, size[there]))


def choose_method(data: OutOfFold, left_out: frozenset, size: np.ndarray) -> str:
    """Return the method of least nested loss, or "equal" if it gains no more than one standard error."""
    if len(data.probabilities) == 1 or len(_without(data.fold, left_out)) < 2:
        return "equal"
    total = {method: nested_sums(data, Choice(method), left_out) @ blending.SHARE for method in blending.METHODS}
    best = min(total, key=lambda method: total[method].sum())
    return best if gains(total["equal"], total[best], size) else "equal"


def choose(data: OutOfFold, method: str = "auto", *, calibrate: bool = True, left_out=frozenset()) -> Choice:
    """Return the choice by the folds not `left_out`: the method if it is "auto", then a calibration per label, then
    whether to clip."""
    size = sizes(data, left_out)
    choice = Choice(choose_method(data, left_out, size) if method == "auto" else method)
    if not calibrate or len(_without(data.fold, left_out)) < 2:
        return choice
    base = nested_sums(data, choice, left_out)
    kept, least = list(choice.calibration), base.copy()
    for kind in calibration.KINDS[1:]:
        total = nested_sums(data, choice._replace(calibration=(kind,) * len(LABELS)), left_out)
        for label in range(len(LABELS)):
            if total[:, label].sum() < least[:, label].sum() and gains(base[:, label], total[:, label], size):
                kept[label], least[:, label] = kind, total[:, label]
    choice = choice._replace(calibration=tuple(kept))
    clipped = choice._replace(clip=True)
    base, total = (nested_sums(data, r, left_out) @ blending.SHARE for r in (choice, clipped))
    return clipped if gains(base, total, size) else choice


def honest(data: OutOfFold, method: str = "auto", *, calibrate: bool = True) -> np.ndarray:
    """Return nested probabilities, float32 (n, 6): those of a fold are chosen and fitted on the other folds."""
    out = np.empty(data.target.shape, np.float32)
    for k in _without(data.fold, frozenset()):
        choice = choose(data, method, calibrate=calibrate, left_out=frozenset({k}))
        rows = np.flatnonzero(data.fold == k)
        out[rows] = predict(fit_pipeline(data, choice, frozenset({k})), data.probabilities, rows)
    return out


def without_each(data: OutOfFold, runs: list[str], choice: Choice) -> dict:
    """Return the growth of the nested loss without each run, and its standard error over patients.

    A run with a negative growth is better dropped. The choice is kept, and fitted again.
    """
    if len(runs) == 1:
        return {}
    size, gains = sizes(data), {}
    whole = nested_sums(data, choice) @ blending.SHARE
    for i, run in enumerate(runs):
        others = [p for j, p in enumerate(data.probabilities) if j != i]
        rest = prepare(data.target, others, data.fold, data.patient)
        gain = nested_sums(rest, choice) @ blending.SHARE - whole
        gains[run] = [float(gain.sum() / size.sum()), patient_bootstrap.standard_error(gain, size)]
    return gains


def try_methods(data: OutOfFold) -> dict:
    """Return the nested loss of each method, its gain over equal weights, and the standard error of the gain."""
    size = sizes(data)
    total = {m: nested_sums(data, Choice(m)) @ blending.SHARE for m in blending.METHODS}
    return {
        method: {
            "nested": float(losses.sum() / size.sum()),
            "gain": float((total["equal"] - losses).sum() / size.sum()),
            "standard_error": patient_bootstrap.standard_error(total["equal"] - losses, size),
        }
        for method, losses in total.items()
    }


def to_json(choice: Choice, pipeline: Pipeline, runs: list[str]) -> dict:
    return {
        "method": choice.method,
        "space": pipeline.blend.space,
        "weights": dict(zip(runs, pipeline.blend.weights.tolist(), strict=True)),
        "bias": pipeline.blend.bias.tolist(),
        "calibration": dict(zip(LABELS, choice.calibration, strict=True)),
        "calibration_parameters": np.asarray(pipeline.calibration).tolist(),
        "clip": pipeline.clip,
    }


def from_json(content: dict, runs: list[str]) -> Pipeline:
    """Return the pipeline that a weights.json holds under "pipeline", for probabilities in the order of `runs`."""
    weights = np.array([content["weights"][run] for run in runs])
    mix = blending.Blend(content["space"], weights, np.array(content["bias"]))
    return Pipeline(mix, np.array(content["calibration_parameters"]), content["clip"])
