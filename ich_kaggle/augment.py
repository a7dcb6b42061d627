"""Training augmentation as one affine map and one gray-level table, and the views of test-time augmentation."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Augment:
    """How far a training slice is moved; each draw is uniform in plus or minus the value."""

    flip: float = 0.5  # probability of a left-right flip
    rotate: float = 30.0  # degrees
    scale: float = 0.1  # as a share of the size
    shift: float = 0.05  # as a share of the size
    gray: float = 0.1  # contrast, as a share; brightness, as a share of 255


NONE = Augment(0, 0, 0, 0, 0)

VIEWS = {"identity": lambda images: images, "hflip": lambda images: images.flip(2)}  # of images (n, h, w, c)


def draw(augment: Augment, rng: np.random.Generator, size: int, target_size: int) -> np.ndarray:
    """Return a random affine map, (2, 3), of images of `size` px onto `target_size` px, about their centres."""
    zoom = target_size / size * (1 + augment.scale * rng.uniform(-1, 1))
    angle = np.radians(augment.rotate * rng.uniform(-1, 1))
    mirror = -1 if rng.random() < augment.flip else 1
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [mirror, 1]
    centre = np.full(2, (target_size - 1) / 2) + augment.shift * target_size * rng.uniform(-1, 1, 2)
    return np.column_stack([turn, centre - turn @ np.full(2, (size - 1) / 2)])


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Return `image` (h, w, c; uint8) moved by `matrix` onto `size` px square, black outside."""
    if len(image) == size and np.allclose(matrix, np.eye(2, 3)):
        return image
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)


def jitter(image: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Return `image` (uint8) with contrast and brightness redrawn for each channel, as other windows would show it."""
    if not augment.gray:
        return image
    contrast = 1 + augment.gray * rng.uniform(-1, 1, image.shape[-1])
    offset = 255 * augment.gray / 2 * rng.uniform(-1, 1, image.shape[-1])
    gray = np.arange(256)[:, None] * contrast + offset
    gray[0] = 0  # air and padding stay black
    return cv2.LUT(image, np.clip(np.rint(gray), 0, 255).astype(np.uint8)[None])


def apply(image: np.ndarray, augment: Augment, rng: np.random.Generator, size: int) -> np.ndarray:
    """Return one random variant of `image` (h, h, c; uint8) at `size` px square."""
    return jitter(warp(image, draw(augment, rng, len(image), size), size), augment, rng)
