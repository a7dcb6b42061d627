"""Training augmentation in one affine map and one intensity map, and the views of test-time augmentation."""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch


@dataclass(frozen=True)
class Augment:
    """The ranges of the augmentation; draws are uniform within plus or minus the value, unless noted otherwise.

    There is no top-bottom flip by default, because patients lie on their backs and blood settles.
    """

    flip: float = 0.5  # probability of a left-right flip
    vflip: float = 0.0  # probability of a top-bottom flip
    rotate: float = 30.0  # degrees
    scale: float = 0.1  # as a fraction of the size
    shift: float = 0.05  # as a fraction of the size
    random_crop: float = 1.0  # smallest fraction of the area that a random crop keeps
    window_jitter: float = (
        0.1  # of the window width, as a fraction of it, and of the center, as a fraction of half of it
    )
    cutout: float = 0.0  # probability of a black rectangle of 2 to 20 % of the area
    swap: float = 0.0  # probability of reversing the order of the neighbouring slices


NONE = Augment(flip=0, rotate=0, scale=0, shift=0, window_jitter=0)


def draw(augment: Augment, rng: np.random.Generator, size: int, target_size: int) -> np.ndarray:
    """Return a random affine map, (2, 3), from images of `size` px to `target_size` px, about their centres."""
    side = np.sqrt(rng.uniform(augment.random_crop, 1))
    zoom = target_size / size / side * (1 + augment.scale * rng.uniform(-1, 1))
    angle = np.radians(augment.rotate * rng.uniform(-1, 1))
    mirror = [-1 if rng.random() < p else 1 for p in (augment.flip, augment.vflip)]
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * mirror
    reach = target_size * (augment.shift + (1 - side) / (2 * side))  # a random crop is anywhere in the image
    centre = np.full(2, (target_size - 1) / 2) + reach * rng.uniform(-1, 1, 2)
    return np.column_stack([turn, centre - turn @ np.full(2, (size - 1) / 2)])


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Return `image` (h, h, c; uint8) mapped by `matrix` to `size` px square, black outside the image."""
    n_channels = image.shape[2]
    if n_channels % 3:
        return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR).reshape(size, size, n_channels)
    if n_channels == 3:
        four = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)  # OpenCV warps four channels in half the time of three
        return cv2.cvtColor(cv2.warpAffine(four, matrix, (size, size), flags=cv2.INTER_LINEAR), cv2.COLOR_BGRA2BGR)
    planes = cv2.split(image)
    return cv2.merge([warp(cv2.merge(planes[i : i + 3]), matrix, size) for i in range(0, n_channels, 3)])


def jitter(image: np.ndarray, augment: Augment, rng: np.random.Generator, n_windows: int) -> np.ndarray:
    """Return `image` (h, w, c; uint8) as if its windows had other, random centers and widths.

    Its channels are the `n_windows` windows of each slice in turn. A window changes in the same way in all slices.
    """
    if not augment.window_jitter:
        return image
    contrast = 1 + augment.window_jitter * rng.uniform(-1, 1, n_windows)
    offset = 255 * augment.window_jitter / 2 * rng.uniform(-1, 1, n_windows)
    columns = image.reshape(len(image), -1, n_windows)
    changed = cv2.transform(columns, np.column_stack([np.diag(contrast), offset]))
    is_lit = cv2.threshold(columns, 0, 255, cv2.THRESH_BINARY)[1]
    return cv2.bitwise_and(changed, is_lit, dst=changed).reshape(image.shape)  # air and padding stay black


def cut(image: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Return `image` (h, h, c), one rectangle of it blackened in some draws (https://arxiv.org/abs/1708.04896)."""
    if rng.random() >= augment.cutout:
        return image
    size = len(image)
    area, aspect = rng.uniform(0.02, 0.2), np.exp(rng.uniform(-0.7, 0.7))
    height, width = (int(size * side) for side in (np.sqrt(area * aspect), np.sqrt(area / aspect)))
    top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
    image = image.copy()
    image[top : top + height, left : left + width] = 0
    return image


def apply(image: np.ndarray, rng: np.random.Generator, augment: Augment, size: int, n_windows: int = 3) -> np.ndarray:
    """Return a random variant, `size` px square, of `image` (h, h, c; uint8), where c is a multiple of `n_windows`."""
    matrix = draw(augment, rng, len(image), size)
    image = jitter(image, augment, rng, n_windows)
    if len(image) != size or not np.allclose(matrix, np.eye(2, 3)):
        image = warp(image, matrix, size)
    return cut(image, augment, rng)


def turned(images: torch.Tensor, *, degrees: float = 0.0, zoom: float = 1.0) -> torch.Tensor:
    """Return `images` (n, h, w, c; uint8) rotated about their centres and enlarged, black outside, as float32."""
    angle = np.radians(degrees)
    turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]
    matrix = torch.tensor(turn, dtype=torch.float32, device=images.device) / zoom
    x = images.permute(0, 3, 1, 2).float()
    grid = torch.nn.functional.affine_grid(matrix.expand(len(x), 2, 3), x.shape, align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, align_corners=False).permute(0, 2, 3, 1)


VIEWS = {  # of images (n, h, w, c)
    "identity": lambda images: images,
    "hflip": lambda images: images.flip(2),
    "left": partial(turned, degrees=10),
    "right": partial(turned, degrees=-10),
    "zoom": partial(turned, zoom=1.1),
}
