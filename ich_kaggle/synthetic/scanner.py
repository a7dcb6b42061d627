"""A CT scanner: slices of a head in HU, with beam hardening, streaks, blur and noise."""

import cv2
import numpy as np

from ich_kaggle.synthetic import brain_painting, head_painting, neck_painting
from ich_kaggle.synthetic.anatomy import Head
from ich_kaggle.synthetic.brain_painting import COVERED
from ich_kaggle.synthetic.canvas import Canvas
from ich_kaggle.synthetic.fields import Fields, around
from ich_kaggle.synthetic.gantry import Gantry
from ich_kaggle.synthetic.shapes import along, ball, union


def scan(head: Head, gantry: Gantry, z: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the slice at table position `z` (mm): float32 HU (h, w), and blood as uint8 bits (h, w), bit i = label i.

    `rng` draws motion and noise.
    """
    canvas = Canvas(gantry)
    if gantry.holder:
        canvas.paint(gantry.cradle, 500)
    if window := around(head, gantry, z):
        part, fields = canvas.cut(window), Fields(head, gantry, z, window)
        _paint(part, fields, head)
        _beam_hardening(part, fields, gantry)
        _metal(part, fields, head)
        _base_streaks(part, fields, gantry, rng)
        _move(part, gantry, rng)
    _acquire(canvas, gantry, rng)
    return canvas.hu, canvas.blood


def _paint(canvas: Canvas, f: Fields, head: Head) -> None:
    head_painting.scalp(canvas, f, head)
    if (found := canvas.cover(f.cavity)) is not None:
        window, share = found
        canvas.csf[window] = share
        for paint in (brain_painting.brain, brain_painting.falx, brain_painting.tentorium, brain_painting.vessels):
            paint(canvas, f, head)
        for bleed in head.bleeds:
            brain_painting.bleed(canvas, f, head, bleed)
        for spot in head.spots:
            brain_painting.spot(canvas, f, spot)
        canvas.blood[window] *= share > COVERED
    head_painting.skull(canvas, f, head)
    head_painting.face(canvas, f, head)
    neck_painting.neck(canvas, f, head)
    if head.operation is not None:
        brain_painting.operation(canvas, f, head)


def _beam_hardening(canvas: Canvas, f: Fields, gantry: Gantry) -> None:
    x, y, z = f.mirror[:, 0]
    depth = np.minimum(f.inside[0], 0) / np.float32(gantry.reach)
    shade = np.float32(gantry.hardening) * np.exp(depth) * (f.inside[0] < 1) - np.float32(1 - gantry.offset)
    if f.lowest < 0:
        band = ((y - 12) / 9) ** 2 + ((z + 38) / 9) ** 2 + np.square((x / 40) ** 2)
        shade -= np.float32(3 * gantry.streaks) * np.exp(-band)
    canvas.add(shade)


def _metal(canvas: Canvas, f: Fields, head: Head) -> None:
    """Paint a clip, a coil or a filling with bright and dark streaks through it."""
    for place in head.metal:
        if not f.lowest - 9 < place[2] < f.highest + 9:
            continue
        x, y, z = f.p[:, 0] - along(np.float32(place), f.p[:, 0])
        angle, phase = np.arctan2(y, x), float(place[0])
        streaks = np.sin(5 * angle + phase) * np.sin(11 * angle - phase) + np.sin(29 * angle + 3 * phase) / 2
        canvas.add(90 * streaks * np.exp(-np.hypot(x, y) / 25 - z**2 / 30) * (union(f.vault, f.neck)[0] < 4))
        canvas.paint(ball(f.p, place, 2.5), 3000)


def _base_streaks(canvas: Canvas, f: Fields, gantry: Gantry, rng: np.random.Generator) -> None:
    """Add the streaks of dense bone at the base."""
    if f.lowest > 5:
        return
    streaks = cv2.GaussianBlur(rng.standard_normal(f.vault.shape[1:], np.float32), (0, 0), sigmaX=14, sigmaY=0.8)
    canvas.add(streaks / streaks.std() * gantry.streaks * np.exp(-(((f.p[2][0] + 38) / 14) ** 2)) * (f.vault[0] < 4))


def _move(canvas: Canvas, gantry: Gantry, rng: np.random.Generator) -> None:
    """Show the head twice, a few mm apart, in the share of slices in which it moved."""
    if rng.random() < gantry.motion:
        dx, dy = rng.normal(0, 1.5 / gantry.pixel, 2)
        shape = canvas.hu.shape[::-1]
        moved = cv2.warpAffine(canvas.hu, np.array([[1, 0, dx], [0, 1, dy]]), shape, borderMode=cv2.BORDER_REPLICATE)
        share = rng.uniform(0.2, 0.5)
        canvas.hu[:] = (1 - share) * canvas.hu + share * moved


def _acquire(canvas: Canvas, gantry: Gantry, rng: np.random.Generator) -> None:
    """Add the noise of the dose and apply the kernel, which blurs and may enhance edges."""
    point = np.zeros((33, 33), np.float32)
    point[16, 16] = 1
    noise = rng.standard_normal(gantry.shape, np.float32)
    noise *= np.float32(gantry.noise / np.linalg.norm(_kernel(point, gantry)))  # gantry.noise is left after the kernel
    canvas.hu += noise
    canvas.hu = _kernel(canvas.hu, gantry)


def _kernel(hu: np.ndarray, gantry: Gantry) -> np.ndarray:
    hu = cv2.GaussianBlur(hu, (0, 0), gantry.kernel / gantry.pixel)
    if gantry.sharpness:
        smooth = cv2.GaussianBlur(hu, (0, 0), 1.0 / gantry.pixel)
        hu = cv2.addWeighted(hu, 1 + gantry.sharpness, smooth, -gantry.sharpness, 0)
    return hu
