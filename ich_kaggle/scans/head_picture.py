"""Whether a series shows a head, by its picture, for headers that do not say.

A head is a closed ring of bone that surrounds most of the section; a chest has air inside it.
"""

import cv2
import numpy as np
from scipy import ndimage

from ich_kaggle.dicom import head_crop, pixels
from ich_kaggle.scans import series_choice, slices

MOST = 24  # slices that are looked at, evenly spaced
BONE = 250  # HU
SHELL = 4.0  # mm: half the thickness of what is no body: sheets, straps, head-holders
GAP = 4.0  # mm: half the width of what is closed in a ring of bone: sutures, burr holes
SKULL = (25.0, 330.0)  # cm2 inside the skull and with it, from a newborn's vertex to the largest adult section
SHARE = 0.5  # of the section inside the skull
LUNG_SLICES = 0.2  # the share of slices with lungs of a chest
LUNG, LUNG_SHARE = 15.0, 0.2  # cm2 of air inside the section, and its share; all sinuses have less


def refusal(series: series_choice.Series) -> str:
    """Return the reason why a series is none of a head by its picture, empty if it is one or its header says so.

    A series that is too short to tell, or whose header says so though the picture does not, gets a note.
    """
    is_head = all(one.is_head for one in series.slices)
    n = series_choice.ENOUGH if is_head else MOST
    rows = np.unique(np.linspace(0, len(series.slices) - 1, n).round().astype(int))
    looked = ((slices.look_at(series.slices[row])[1], series.slices[row].spacing) for row in rows)
    seen = [shows(*words, spacing) for words, spacing in looked if words]
    if is_head:
        if series.n_positions >= series_choice.ENOUGH and seen and not any(skull for skull, _ in seen):
            series.notes.append("the picture shows no closed skull: operated on, or values that are not HU")
        return ""
    overrule = "no tag says which part of the body it shows (--any-body-part reads it)"
    if seen and sum(lungs for _, lungs in seen) >= LUNG_SLICES * len(seen):
        return f"the picture shows lungs, not a head, and {overrule}"
    if seen and not any(skull for skull, _ in seen):
        if series.n_positions >= series_choice.ENOUGH:
            return f"the picture shows no closed skull, and {overrule}"
        series.notes.append("neither a tag nor the picture says that it is a head")
    return ""


def shows(words: np.ndarray, code: pixels.Encoding, spacing: float) -> tuple[bool, bool]:
    """Return whether a slice shows a closed skull, and whether it shows lungs; its pixels are `spacing` mm apart."""
    step = head_crop.step_of(spacing)
    side, hu = step * spacing, pixels.hu_table(code)[words].astype(np.float32)
    tissue = _opened(head_crop.grid(hu, step) > head_crop.TISSUE, round(SHELL / side))
    section = ndimage.binary_fill_holes(head_crop.largest(tissue))
    bone = head_crop.grid(cv2.dilate(hu, np.ones((step, step))), step) > BONE  # thin bone lies between the samples
    closed = np.pad(bone & section, 8)
    closed = ndimage.binary_closing(closed, _disk(round(GAP / side)))
    inside = head_crop.largest(ndimage.binary_fill_holes(closed))[8:-8, 8:-8]
    is_ring = inside.sum() > 1.5 * (bone & inside).sum()  # filled, unlike a vertebra
    cm2 = (side / 10) ** 2
    area, share = inside.sum() * cm2, inside.sum() / max(1, section.sum())
    air = (section & (head_crop.grid(hu, step) < head_crop.TISSUE)).sum()
    is_skull = bool(is_ring and SKULL[0] <= area <= SKULL[1] and share >= SHARE)
    return is_skull, bool(air * cm2 >= LUNG and air >= LUNG_SHARE * section.sum())


def _disk(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def _opened(image: np.ndarray, radius: int) -> np.ndarray:
    return ndimage.binary_opening(image, _disk(radius)) if radius else image
