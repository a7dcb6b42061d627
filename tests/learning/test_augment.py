import cv2
import numpy as np
import pytest
import torch

from ich_kaggle.learning import augment
from ich_kaggle.learning.augment import NONE, VIEWS, Augment

LEFT = np.zeros((64, 64, 3), np.uint8)
LEFT[20:40, 8:24] = 200


def variants(move: Augment, n: int = 40, image: np.ndarray = LEFT, size: int = 64, n_windows: int = 3) -> list:
    return [augment.apply(image, np.random.default_rng(i), move, size, n_windows) for i in range(n)]


def test_without_augmentation_an_image_stays_as_it_is():
    assert all((variant == LEFT).all() for variant in variants(NONE))


def test_without_augmentation_a_smaller_image_is_the_same_picture():
    small = augment.apply(LEFT, np.random.default_rng(0), NONE, 32)
    assert np.abs(small.astype(int) - cv2.resize(LEFT, (32, 32), interpolation=cv2.INTER_AREA)).mean() < 3


def test_the_same_seed_draws_the_same_variant_and_another_seed_another():
    first, again = variants(Augment(), 2), variants(Augment(), 2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != first[1]).any()


def test_a_flip_mirrors_left_and_right_in_about_half_of_the_draws():
    flipped = [(v == LEFT[:, ::-1]).all() for v in variants(Augment(0.5, rotate=0, scale=0, shift=0, window_jitter=0))]
    assert 10 < sum(flipped) < 30


def test_top_stays_top_by_default():
    still = Augment(flip=0.5, rotate=0, scale=0, shift=0, window_jitter=0)
    assert all(np.array_equal(np.flatnonzero(v.any((1, 2))), np.arange(20, 40)) for v in variants(still))


@pytest.mark.parametrize("name, limit", [("rotate", 30.0), ("scale", 0.1), ("shift", 0.05)])
def test_each_draw_moves_the_image_and_stays_within_its_limit(name, limit):
    still = dict(flip=0, rotate=0, scale=0, shift=0, window_jitter=0)
    for seed in range(50):
        matrix = augment.draw(Augment(**{**still, name: limit}), np.random.default_rng(seed), 100, 100)
        turn, centre = matrix[:, :2], matrix @ [49.5, 49.5, 1] - 49.5
        assert abs(np.sqrt(np.linalg.det(turn)) - 1) <= (limit if name == "scale" else 1e-9)
        assert abs(np.degrees(np.arctan2(turn[1, 0], turn[0, 0]))) <= (limit if name == "rotate" else 1e-9)
        assert np.abs(centre).max() <= (100 * limit if name == "shift" else 1e-9)
        assert not np.allclose(matrix, np.eye(2, 3))


def test_a_random_crop_keeps_its_share_of_the_area_and_lies_inside_the_image():
    crop = Augment(flip=0, rotate=0, scale=0, shift=0, random_crop=0.5, window_jitter=0)
    corners = np.array([[-0.5, -0.5, 1], [99.5, 99.5, 1]]).T
    for seed in range(50):
        matrix = np.vstack([augment.draw(crop, np.random.default_rng(seed), 100, 100), [0, 0, 1]])
        low, high = (np.linalg.inv(matrix) @ corners)[:2].T
        assert (low >= -0.51).all() and (high <= 99.51).all()
        assert 0.49 < np.prod(high - low) / 100**2 <= 1.001


def test_a_window_changes_alike_in_all_slices_of_a_context():
    gray = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    jittered = augment.jitter(np.concatenate([gray] * 3, axis=2), Augment(), np.random.default_rng(1), 3)
    assert (jittered[..., :3] == jittered[..., 3:6]).all() and (jittered[..., :3] == jittered[..., 6:]).all()
    assert (jittered[..., :3] != gray).any()


def test_window_jitter_stretches_and_shifts_each_window_and_rounds():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    change, rng = Augment(window_jitter=0.2), np.random.default_rng(3)
    contrast, offset = 1 + 0.2 * rng.uniform(-1, 1, 3), 255 * 0.1 * rng.uniform(-1, 1, 3)
    wanted = np.clip(np.rint(gray * contrast + offset), 0, 255) * (gray > 0)
    assert (augment.jitter(gray, change, np.random.default_rng(3), 3) == wanted).all()


def test_window_jitter_leaves_air_black():
    assert not augment.jitter(np.zeros((8, 8, 3), np.uint8), Augment(), np.random.default_rng(1), 3).any()


def test_cutout_blackens_one_rectangle_of_2_to_20_percent_and_leaves_the_source():
    white = np.full((100, 100, 3), 255, np.uint8)
    for seed in range(30):
        image = augment.cut(white, Augment(cutout=1), np.random.default_rng(seed))
        rows, columns = np.nonzero(image[..., 0] == 0)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0.015 < len(rows) / 1e4 <= 0.2
    assert (white == 255).all()


@pytest.mark.parametrize("n_channels", [1, 3, 4, 9])
@pytest.mark.parametrize("seed", range(5))
def test_every_channel_is_moved_as_opencv_moves_it_alone(seed, n_channels):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (64, 64, n_channels), dtype=np.uint8)
    matrix = augment.draw(Augment(vflip=0.5, shift=0.5, random_crop=0.3), rng, 64, 48)
    moved = augment.warp(image, matrix, 48)
    assert moved.shape == (48, 48, n_channels)
    for channel in range(n_channels):
        alone = cv2.warpAffine(image[..., channel].copy(), matrix, (48, 48))
        assert np.abs(alone.astype(int) - moved[..., channel]).max() <= 2


def test_a_black_slice_stays_black():
    assert not augment.apply(np.zeros_like(LEFT), np.random.default_rng(0), Augment(), 48).any()


def test_one_channel_keeps_its_axis():
    assert augment.apply(LEFT[..., :1], np.random.default_rng(0), Augment(cutout=1), 48, 1).shape == (48, 48, 1)


def test_nine_channels_are_moved_together():
    image = np.concatenate([LEFT] * 3, axis=2)
    for variant in variants(Augment(window_jitter=0), 5, image):
        assert (variant == variant[..., :1]).all()


def test_the_views_show_the_same_slice():
    images = torch.from_numpy(np.stack([LEFT, LEFT[:, ::-1].copy()]))
    assert (VIEWS["identity"](images) == images).all()
    assert (VIEWS["hflip"](images)[0] == images[1]).all()
    for view in ("left", "right", "zoom"):
        seen = VIEWS[view](images)
        assert seen.shape == images.shape
        assert 0.8 < seen[0].sum() / images[0].sum().float() < 1.3
        assert (seen[0] != images[0]).any()


def test_turning_by_nothing_changes_nothing():
    images = torch.from_numpy(LEFT)[None]
    torch.testing.assert_close(augment.turned(images), images.float(), atol=0.01, rtol=0)


def test_left_and_right_are_turned_opposite_ways():
    images = torch.from_numpy(LEFT)[None]
    mirrored = VIEWS["hflip"](VIEWS["right"](VIEWS["hflip"](images)))
    torch.testing.assert_close(VIEWS["left"](images), mirrored, atol=0.1, rtol=0)
