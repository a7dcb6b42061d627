"""What stands beside a slice in its series, and which slices an epoch shows. Rows are those of a sorted slice table."""

from collections.abc import Callable, Sequence

import numpy as np

SAME = 0.01  # mm: slices nearer than this are at one position

SAMPLERS = ("all", "balanced", "study")


def neighbours(series_id: Sequence[str], position: Sequence[float], offsets: Sequence[int]) -> np.ndarray:
    """Return for each row the rows of the slices `offsets` positions away in its series: int (n, n_offsets).

    Slices at one position, a repeated scan, count as one, and the first of them stands for all. Past an end of a
    series its last position stands in, and a slice that would have to stand in for itself does.
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
    """Return `target` (n, 6) moved by `share` to the mean target of the rows `beside` it, (n, k).

    Labels are set slice by slice and are least certain where a lesion begins and ends; only there do the two differ.
    """
    return (target + share * (target[beside].mean(axis=1) - target)).astype(np.float32)


def sampler(
    name: str, *, patient_id: Sequence[str], study_id: Sequence[str], is_positive: np.ndarray, per_study: int = 4
) -> Callable[[np.random.Generator], np.ndarray]:
    """Return a function that draws the rows of an epoch, always as many, in random order.

    all: every row once. balanced: as many slices of patients with a hemorrhage as of patients without, the larger
    group's drawn anew each time. study: `per_study` slices of each study, likelier the nearer to its middle.
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
    weight = np.minimum(rank + 1, np.repeat(length, length) - rank)  # a triangle over the study

    def rows(rng: np.random.Generator) -> np.ndarray:
        # The largest u^(1/w) of a study are a draw by weight without replacement (Efraimidis and Spirakis, 2006).
        order = np.lexsort((-(rng.random(len(weight)) ** (1 / weight)), study))
        return rng.permutation(order[rank < per_study])

    return rows
