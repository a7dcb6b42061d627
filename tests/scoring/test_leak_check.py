import numpy as np
import pytest

from ich_kaggle.scoring import leak_check


def head(seed: int, size: int = 128) -> np.ndarray:
    """Return a slice in HU, int16 (size, size): smooth blobs in the brain window."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(6, 6))
    grid = np.linspace(0, np.pi, size)
    basis = np.cos(np.arange(6)[:, None] * grid)
    return (40 + 12 * basis.T @ waves @ basis).astype(np.int16)


def look(hu: np.ndarray) -> bytes:
    return leak_check.fingerprint(hu.view(np.uint16), hu).look


def test_one_changed_pixel_changes_the_pixels_but_not_the_look():
    hu, other = head(0), head(0)
    other[5, 5] += 1
    before, after = (leak_check.fingerprint(x.view(np.uint16), x) for x in (hu, other))
    assert before.pixels != after.pixels and before.look == after.look
    assert before == leak_check.fingerprint(hu.copy().view(np.uint16), hu)


def test_the_same_values_in_another_shape_are_other_pixels():
    flat = np.arange(64, dtype=np.int16)
    square, wide = (leak_check.fingerprint(hu.view(np.uint16), hu) for hu in (flat.reshape(8, 8), flat.reshape(4, 16)))
    assert square.pixels != wide.pixels


def test_a_slice_of_one_value_has_neither_pixels_nor_look():
    air = np.full((64, 64), -1000, np.int16)
    assert leak_check.fingerprint(air.view(np.uint16), air) == leak_check.Fingerprint(b"", b"")


def test_keys_in_two_groups_are_found_with_their_groups():
    keys = np.array(["a", "b", "a", "c", "b", "", ""])
    group = np.array([0, 1, 2, 1, 1, 0, 1])
    assert leak_check.shared(keys, group) == [("a", [0, 2])]


def test_near_finds_what_comparing_every_pair_finds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (60, 256)).astype(np.uint8)
    for i, n in enumerate((0, 3, 7, 8, 20)):
        bits[i + 30] = bits[i]
        bits[i + 30, rng.choice(256, n, replace=False)] ^= 1
    looks = [np.packbits(row).tobytes() for row in bits]
    group = np.repeat([0, 1], 30)
    distance = (bits[:, None] != bits[None]).sum(axis=2)
    pairs = [(a, b) for a in range(60) for b in range(a + 1, 60) if group[a] != group[b]]
    wanted = [(a, b, int(distance[a, b])) for a, b in pairs if distance[a, b] <= leak_check.NEAR]
    assert leak_check.near(looks, group) == sorted(wanted, key=lambda pair: pair[2]) and len(wanted) == 3


def test_noise_and_a_small_gain_leave_two_slices_near_and_another_head_does_not():
    hu = head(1)
    noisy = (hu * 1.02 + np.random.default_rng(0).normal(0, 1, hu.shape)).astype(np.int16)
    group = np.array([0, leak_check.TEST, 1])
    found = leak_check.near([look(hu), look(noisy), look(head(2))], group)
    assert [pair[:2] for pair in found] == [(0, 1)]


@pytest.mark.parametrize("looks", [[], [b""], [b"", b""]])
def test_nothing_looks_like_nothing(looks):
    assert leak_check.near(looks, np.arange(len(looks))) == []


def test_slices_of_one_fold_may_look_alike():
    assert leak_check.near([look(head(0))] * 2, np.array([3, 3])) == []
