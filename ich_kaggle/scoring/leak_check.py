"""Leaks between folds, or between train and test: shared ids, identical pixels, and slices that look the same."""

import hashlib
from typing import NamedTuple

import cv2
import numpy as np

from ich_kaggle.common import windows

SIDE = 16  # px of the compared image: SIDE * SIDE bits
NEAR = 7  # bits that may differ; two such slices share at least one of the 8 words of 32 bits
FEWEST_BITS = 24  # set or unset; with fewer, a slice is nearly empty, and all such slices look the same
NEIGHBOURS = 64  # slices with the same word to which each slice is compared
TEST = -1  # the group of the test slices; the others are folds


class Fingerprint(NamedTuple):
    pixels: bytes  # 16, a hash of the stored values; empty if they are all equal
    look: bytes  # 32, a bit per pixel of the small image; empty if the slice is nearly empty


def fingerprint(words: np.ndarray, hu: np.ndarray) -> Fingerprint:
    """Return the fingerprint of a slice from its stored values `words` and its `hu`, both (h, w).

    The look is a difference hash: whether each pixel of the brain window, scaled down, is brighter than its left
    neighbour.
    """
    pixels = hashlib.blake2b(repr(words.shape).encode() + np.ascontiguousarray(words).tobytes(), digest_size=16)
    gray = windows.apply(hu, (windows.BRAIN,))[..., 0]
    small = cv2.resize(gray, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    bits = small[:, 1:] > small[:, :-1]
    shows = FEWEST_BITS <= bits.sum() <= bits.size - FEWEST_BITS
    return Fingerprint(pixels.digest() if np.ptp(words) else b"", np.packbits(bits).tobytes() if shows else b"")


def shared(keys: np.ndarray, group: np.ndarray) -> list[tuple[str, list[int]]]:
    """Return each of `keys` (n,) in more than one `group` (n,), with its groups. Empty keys are ignored."""
    _, code = np.unique(keys, return_inverse=True)
    pairs = np.unique(np.stack([code, group], axis=1), axis=0)
    found = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
    first = np.zeros(code.max(initial=-1) + 1, int)
    first[code] = np.arange(len(code))
    places = ((keys[first[k]], pairs[pairs[:, 0] == k, 1].tolist()) for k in found)
    return [(key, groups) for key, groups in places if key]


def near(looks: list[bytes], group: np.ndarray) -> list[tuple[int, int, int]]:
    """Return the pairs of rows in different groups whose looks differ in at most NEAR bits, with the number of bits,
    fewest first. Empty looks are ignored."""
    rows = np.array([i for i, look in enumerate(looks) if look], int)
    bits = np.frombuffer(b"".join(looks), np.uint32).reshape(len(rows), SIDE * SIDE // 32)
    found = {}
    for word in bits.T:
        order = np.argsort(word, kind="stable")
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            a, b = order[:-step], order[step:]
            same = word[a] == word[b]
            if not same.any():
                break
            a, b = a[same], b[same]
            apart = group[rows[a]] != group[rows[b]]
            a, b = a[apart], b[apart]
            distance = np.bitwise_count(bits[a] ^ bits[b]).sum(axis=1)
            for i in np.flatnonzero(distance <= NEAR):
                found[tuple(sorted((int(rows[a[i]]), int(rows[b[i]]))))] = int(distance[i])
    return sorted(((a, b, distance) for (a, b), distance in found.items()), key=lambda pair: (pair[2], pair))


def name(group: int) -> str:
    return "test" if group == TEST else f"fold {group}"
