"""Methods to blend runs, fitted by the competition's log loss with exact gradients.

Every method results in a `Blend`, so that test predictions are combined exactly like the out-of-fold predictions:
    probability = inverse(sum over runs of weights * space(probability of the run) + bias)
`probabilities` is always a sequence of n_runs arrays (n, 6), never copied as a whole; `weight` (n,) is the weight of
each slice, 0 for slices that are held out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from threadpoolctl import threadpool_limits

from ich_kaggle.common.labels import ANY, LABELS, SHARE
from ich_kaggle.common.metric import floored

CHUNK = 1 << 13  # slices per block: 4 MB for 20 runs, about the cache of a core
CLOSE = 1e-8  # the fit stops if one more step would gain less log loss than this
PRIOR = 100.0  # weight of a ridge, in slices: those of three studies

# The blocks are so small that threads would wait several times as long as they work.
one_thread = threadpool_limits.wrap(limits=1, user_api="blas")


class Blend(NamedTuple):
    space: str  # "probability" or "logit"
    weights: np.ndarray  # (n_runs, 6)
    bias: np.ndarray  # (6,)


def raise_any(probability: np.ndarray) -> np.ndarray:
    """Return `probability` (n, 6) with `any` raised to the largest subtype, in place.

    If it is raised in every run first, `any` stays the largest in every blend with one set of weights, and the fit
    stays convex.
    """
    np.maximum(probability[:, ANY], probability.max(axis=1), out=probability[:, ANY])
    return probability


def features(probabilities: Sequence[np.ndarray], rows, space: str) -> np.ndarray:
    """Return the `rows` of every run in `space`: float32 (6, n_runs, n_rows)."""
    block = np.stack([run[rows] for run in probabilities]).astype(np.float32, copy=False)
    if space == "logit":
        block = floored(block)
        block = np.log(block / (1 - block))
    return np.ascontiguousarray(block.transpose(2, 0, 1))


@one_thread
def combine(blend: Blend, probabilities: Sequence[np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
    """Return the blended probabilities, float32 (n, 6), of all slices or of `rows` (indices)."""
    rows = np.arange(len(probabilities[0])) if rows is None else rows
    out = np.empty((len(rows), len(LABELS)), np.float32)
    weights = blend.weights.T[:, None].astype(np.float32)
    for start in range(0, len(rows), CHUNK):
        x = features(probabilities, rows[start : start + CHUNK], blend.space)
        mean = (weights @ x)[:, 0] + blend.bias[:, None]
        out[start : start + CHUNK] = (expit(mean) if blend.space == "logit" else np.clip(mean, 0, 1)).T
    return out


def moments(target, probabilities, weight, weights: np.ndarray) -> tuple:
    """Return the mean log loss of each label, (6,), its gradient (6, k) and its Hessian (6, k, k) in `weights` (6, k).

    k is the number of runs and one, for the bias.
    """
    k = weights.shape[1]
    loss, gradient, hessian = np.zeros(len(LABELS)), np.zeros((len(LABELS), k)), np.zeros((len(LABELS), k, k))
    for rows in _kept(weight):
        x = features(probabilities, rows, "logit")
        x = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
        z = (weights[:, None].astype(np.float32) @ x)[:, 0]
        mean, share = expit(z), weight[rows]
        loss += ((np.logaddexp(0, z) - target[rows].T * z) * share).sum(axis=1)
        gradient += (x @ ((mean - target[rows].T) * share)[..., None])[..., 0]
        x *= np.sqrt(mean * (1 - mean) * share)[:, None]
        hessian += x @ x.transpose(0, 2, 1)
    total = weight.sum(dtype=float)
    return loss / total, gradient / total, hessian / total


def _kept(weight: np.ndarray) -> Iterator[np.ndarray]:
    rows = np.flatnonzero(weight)
    yield from (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


@one_thread
def newton(evaluate: Callable, weights: np.ndarray) -> np.ndarray:
    """Return the weights (n_groups, k) that minimise `evaluate`, each group on its own, by Newton's method.

    `evaluate(weights)` returns values (n_groups,), gradients and Hessians.
    """
    here = evaluate(weights)
    for _ in range(50):
        way = -np.linalg.solve(here[2], here[1][..., None])[..., 0]
        if -(here[1] * way).sum() < CLOSE:
            break
        length = np.ones((len(weights), 1))
        there = evaluate(weights + way)
        while (worse := there[0] > here[0] + 10 * CLOSE).any() and length.min() > 1e-4:
            length[worse] /= 2
            there = evaluate(weights + length * way)
        weights, here = weights + length * way, there
    return weights


def prevalence(target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the share of positive slices of each label, (6,), never 0 or 1 (Krichevsky and Trofimov, 1981)."""
    return (weight.astype(float) @ target + 0.5) / (weight.sum(dtype=float) + 1)


def ridge(parts: tuple, weights: np.ndarray, prior: np.ndarray | float, strength: float) -> tuple:
    """Return loss, gradient and Hessian with the squared distance of `weights` (n, k) to `prior` added."""
    (loss, gradient, hessian), away = parts, weights - prior
    loss = loss + strength / 2 * (away**2).sum(axis=1)
    return loss, gradient + strength * away, hessian + strength * np.eye(away.shape[1])


def equal(target, probabilities, weight) -> Blend:
    n_runs = len(probabilities)
    return Blend("probability", np.full((n_runs, len(LABELS)), 1 / n_runs), np.zeros(len(LABELS)))


def shrunk(target, probabilities, weight) -> Blend:
    """Return the mean of the runs mixed with the prevalence: a share of least log loss, with a ridge to none."""
    constant, shares, loss = prevalence(target, weight), np.linspace(0, 0.975, 40), 0.0
    for rows in _kept(weight):
        mean = np.mean([run[rows] for run in probabilities], axis=0)
        mixed = mean + shares[:, None, None] * (constant - mean)
        likelihood = np.where(target[rows] > 0.5, mixed, 1 - mixed)
        loss = loss - np.log(floored(likelihood)) @ SHARE @ weight[rows]
    share = shares[np.argmin(loss + PRIOR / 2 * shares**2)]
    n_runs = len(probabilities)
    return Blend("probability", np.full((n_runs, len(LABELS)), (1 - share) / n_runs), share * constant)


def stack(target, probabilities, weight) -> Blend:
    """Return a logistic regression per label on the logits of the runs, with a ridge to equal weights."""
    n_runs, total = len(probabilities), weight.sum(dtype=float)
    prior = np.append(np.full(n_runs, 1 / n_runs), 0)

    def evaluate(weights: np.ndarray) -> tuple:
        return ridge(moments(target, probabilities, weight, weights), weights, prior, PRIOR / total)

    weights = newton(evaluate, np.tile(prior, (len(LABELS), 1)))
    return Blend("logit", weights[:, :-1].T, weights[:, -1])


# What was tried besides, and gained nothing over these: tests/benchmarks/RESULTS.md.
METHODS = {"equal": equal, "shrunk": shrunk, "stack": stack}
CHOICES = ("shrunk", "stack")  # of auto; the first if no other is surely better
