"""Neighbours of slices in their series, and samplers of the slices of an epoch, as rows of a sorted slice table."""

from collections.abc import Callable, Sequence

import numpy as np

SAME = 0.01  # mm: slices closer than this are at the same position

SAMPLERS = ("all", "balanced", "study")


def neighbours(series_id: Sequence[str], position: Sequence[float], offsets: Sequence[int]) -> np.ndarray:
    """Return per row the rows of the slices `offsets` positions away in its series: int (n, n_offsets).

    Slices at the same position, of a repeated scan, count as one position, and the first of them represents it. Beyond
    the end of a series its last position is used; a slice at its own position is represented by itself.
    """
    series_id, position = np.asarray(series_id), np.asarray(position, float)
    row = np.arange(len(position))
    is_new = np.r_[True, series_id[1:] != series_id[:-1]][: len(row)]
    place = np.cumsum(is_new | (np.abs(np.diff(position, prepend=np.inf)) > SAME)) - 1
    first = np.flatnonzero(np.diff(place, prepend=-1))
    series, low = np.cumsum(is_new) - 1, place[is_new]
    high = np.append(low[1:], len(first)) - 1
    wanted = [np.clip(place + offset, low[series], high[series]) for offset in offsets]
    return np.stack([np.where(other == place, row, first[other]) for other in wanted], axis=1)


def soften(target: np.ndarray, beside: np.ndarray, share: float) -> np.ndarray:
    """Return `target` (n, 6) moved by the fraction `share` to the mean target of the rows `beside`, (n, k).

    Only the labels at the ends of a lesion change, where labels that were set slice by slice are least certain.
    """
    return (target + share * (target[beside].mean(axis=1) - target)).astype(np.float32)


def sampler(
    name: str, *, patient_id: Sequence[str], study_id: Sequence[str], is_positive: np.ndarray, per_study: int = 4
) -> Callable[[np.random.Generator], np.ndarray]:
    """Return a function that draws the rows of an epoch, the same number each time, in random order.

    all: every row once. balanced: as many slices of patients with a hemorrhage as of patients without; those of the
    larger group are drawn anew each time. study: `per_study` slices per study, more often from its middle.
    """
    n = len(is_positive)
    if name == "all":
        return lambda rng: rng.permutation(n)
    if name == "balanced":
        has_blood = np.isin(patient_id, np.unique(np.asarray(patient_id)[is_positive]))
        groups = np.flatnonzero(has_blood), np.flatnonzero(~has_blood)
        size = min(map(len, groups))
        if not size:
            raise ValueError("--sampler balanced: no patient with a hemorrhage, or none without, in the training folds")
        return lambda rng: rng.permutation(np.concatenate([rng.choice(g, size, replace=False) for g in groups]))
    return _mid_study(np.asarray(study_id), per_study)


def _mid_study(study_id: np.ndarray, per_study: int) -> Callable[[np.random.Generator], np.ndarray]:
    start = np.flatnonzero(np.append(True, study_id[1:] != study_id[:-1]))
    length = np.diff(start, append=len(study_id))
    study, rank = np.repeat(np.arange(len(start)), length), np.arange(len(study_id)) - np.repeat(start, length)
    weight = np.minimum(rank + 1, np.repeat(length, length) - rank)  # triangular over the study

    def rows(rng: np.random.Generator) -> np.ndarray:
        # The largest u^(1/w) are a weighted sample without replacement (Efraimidis and Spirakis, 2006).
        order = np.lexsort((-(rng.random(len(weight)) ** (1 / weight)), study))
        return rng.permutation(order[rank < per_study])

    return rows
