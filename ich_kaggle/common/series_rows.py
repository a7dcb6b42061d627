"""The rows of each series or study in the sorted slice table, and each slice's relative position in its series."""

import numpy as np


def number(ids: np.ndarray) -> np.ndarray:
    """Return the running number of each of the `ids`, equal ones of which are adjacent: int (n,)."""
    ids = np.asarray(ids)
    return np.cumsum(np.append(False, ids[1:] != ids[:-1]))[: len(ids)]


def bounds(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each distinct one of the `numbers` (n,), and the row after its last: int (n_groups,)."""
    start = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)])
    return start, np.append(start[1:], len(numbers))[: len(start)]


def relative(series: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return the relative position of each slice in its series: float32 (n,), 0 for the lowest, 1 for the highest.

    It is 0.5 in a series without extent, that is of one slice or of one position.
    """
    start, stop = bounds(series)
    lowest = np.repeat(position[start], stop - start)
    extent = np.repeat(position[stop - 1] - position[start], stop - start)
    share = np.divide(position - lowest, extent, out=np.full(len(position), 0.5), where=extent > 0)
    return share.astype(np.float32)
