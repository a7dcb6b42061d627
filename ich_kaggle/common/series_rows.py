"""Where each series, or study, begins and ends in the sorted slice table, and where a slice lies in its series."""

import numpy as np


def number(ids: np.ndarray) -> np.ndarray:
    """Return, for `ids` that stand together where they are equal, their running number: int (n,)."""
    ids = np.asarray(ids)
    return np.cumsum(np.append(False, ids[1:] != ids[:-1]))[: len(ids)]


def bounds(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each of the `numbers` (n,), and the row after its last: int (n_different,) each."""
    start = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)])
    return start, np.append(start[1:], len(numbers))[: len(start)]


def relative(series: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return where each slice lies between the lowest (0) and the highest (1) of its series: float32 (n,).

    In a series without extent, of one slice or of one position, it is 0.5.
    """
    start, stop = bounds(series)
    lowest = np.repeat(position[start], stop - start)
    extent = np.repeat(position[stop - 1] - position[start], stop - start)
    share = np.divide(position - lowest, extent, out=np.full(len(position), 0.5), where=extent > 0)
    return share.astype(np.float32)
