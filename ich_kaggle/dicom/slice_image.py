"""One DICOM slice as the picture that is cached: three CT windows as channels, cut to the head, resized."""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from ich_kaggle.common import paths, windows
from ich_kaggle.dicom import head_crop, pixels

STRIP = 64  # rows looked up at once, so that temporary results stay in the processor's cache
SHADES = 60  # of 255: a brain window that spans no more shows no tissue (the rule of the 4th and 11th places)


class Picture(NamedTuple):
    image: np.ndarray  # uint8 (size, size, 3)
    box: head_crop.Box  # the part of the slice that it shows
    defect: str  # of the slice, empty if none


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Return `image` (h, w, c; uint8) at `size` px square; a shorter side is padded with black first, centred."""
    height, width = image.shape[:2]
    if height != width:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        image = cv2.copyMakeBorder(
            image, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT, value=(0, 0, 0)
        )
    if len(image) == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if len(image) > size else cv2.INTER_LINEAR)


@lru_cache(maxsize=64)
def gray_table(code: pixels.Encoding) -> np.ndarray:
    """Return the cached windows of every 16-bit word that a slice can store, as the bytes of a uint32: (65536,)."""
    gray = np.zeros((1 << 16, 4), np.uint8)
    gray[:, :3] = windows.apply(pixels.hu_table(code), windows.CACHED)
    return gray.view(np.uint32)[:, 0]


def windowed(words: np.ndarray, code: pixels.Encoding) -> np.ndarray:
    """Return the stored `words` (h, w) in the three cached windows: uint8 (h, w, 3)."""
    table, image = gray_table(code), np.empty((*words.shape, 3), np.uint8)
    for top in range(0, len(words), STRIP):
        # One look-up of four bytes takes half the time of three; wrap skips the check of bounds, which all words pass.
        four = table.take(words[top : top + STRIP], mode="wrap").view(np.uint8)
        cv2.cvtColor(four.reshape(-1, words.shape[1], 4), cv2.COLOR_BGRA2BGR, dst=image[top : top + STRIP])
    return image


def bone(words: np.ndarray, code: pixels.Encoding, size: int) -> np.ndarray:
    """Return the stored `words` (h, w) in the bone window, which is not cached: uint8 (size, size)."""
    return resize(windows.apply(pixels.hu_table(code), (windows.BONE,))[words], size).reshape(size, size)


def pixel_defect(words: np.ndarray, brain: np.ndarray) -> str:
    """Return the defect of a slice by its stored `words` and its `brain` window (uint8), empty if none."""
    span = int(brain.max()) - int(brain.min())
    if span > SHADES:
        return ""
    if words.min() == words.max():
        return "constant: every pixel has one value"
    return f"blank: the brain window spans {span} of 255 gray levels"


def picture(
    content: bytes, name: str, size: int, box: head_crop.Box | None = None, plain: pixels.Plain | None = None
) -> Picture:
    """Return the cached picture of the DICOM slice in `content`, or its part in `box`; `plain` as in `read_words`."""
    return drawn(*pixels.read_words(content, name, plain), size, box)


def drawn(words: np.ndarray, code: pixels.Encoding, size: int, box: head_crop.Box | None = None) -> Picture:
    """Return the cached picture of the stored `words` (h, w), or of their part in `box`.

    Windows are applied before the resize, so that bone, clipped, does not bleed into adjacent blood.
    """
    box = box or head_crop.Box(0, 0, *words.shape)
    image = windowed(np.ascontiguousarray(box.cut(words)), code)
    return Picture(resize(image, size), box, pixel_defect(words, cv2.extractChannel(image, 0)))


def study_box(
    data: paths.Data, members: list[tuple[paths.Member, pixels.Plain | None]], spacing: float
) -> head_crop.Box:
    """Return the box of the head in the slices `members`, all of one shape, their pixels `spacing` mm apart."""
    return box_of((pixels.read_words(data.read(member), member.path, plain) for member, plain in members), spacing)


def box_of(slices: Iterable[tuple[np.ndarray, pixels.Encoding]], spacing: float) -> head_crop.Box:
    """Return the box of the head in `slices`, words (h, w) with their encoding, their pixels `spacing` mm apart."""
    step, tissue = head_crop.step_of(spacing), []
    for words, code in slices:
        tissue.append(pixels.hu_table(code)[head_crop.grid(words, step)] > head_crop.TISSUE)
    return head_crop.head_box(np.stack(tissue), words.shape, step, spacing)


def outlined(content: bytes, name: str, size: int, box: head_crop.Box) -> np.ndarray:
    """Return the whole slice in `content` with `box` drawn on it: uint8 (size, size, 3)."""
    image = picture(content, name, size).image
    scale = size / max(pixels.read_slice(content, name)[1].shape)
    corners = [(round(x * scale), round(y * scale)) for x, y in ((box.left, box.top), (box.right, box.bottom))]
    return cv2.rectangle(image, *corners, (255, 255, 255))


def sheet(images: list[np.ndarray], *, columns: int = 12) -> np.ndarray:
    """Return `images` (uint8, (size, size, 3)) left to right as gray RGB, each channel in a row of its own."""
    columns = min(columns, len(images))
    images = images + [np.zeros_like(images[0])] * (-len(images) % columns)
    strips = [np.hstack(images[i : i + columns]) for i in range(0, len(images), columns)]
    gray = np.vstack([strip[..., channel] for strip in strips for channel in range(strip.shape[2])])
    return np.repeat(gray[..., None], 3, axis=2)
