"""A CT scanner: slices of a head in HU, painted shape by shape from the outside in, then blurred and noisy."""

import cv2
import numpy as np

from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.synthetic.anatomy import (
    Fields,
    Gantry,
    Head,
    ball,
    both,
    cisterns,
    midline,
    step,
    sulci,
    tract,
    tube,
    union,
)

AIR, FAT, MUSCLE, SKIN, DIPLOE = -1000, -95, 52, 40, 700  # HU
KINDS = LABELS[:ANY]
COVERED = 0.35  # share of blood from which a pixel counts as blood
UNDER = 3.5  # mm by which shapes at the skull extend below it: the skull is painted over them


class Canvas:
    """One slice in HU, painted shape by shape."""

    def __init__(self, gantry: Gantry):
        self.gantry = gantry
        self.hu = np.full(gantry.shape, AIR, np.float32)

    def cover(self, shape: np.ndarray, soft: float = 0) -> tuple[tuple[slice, slice], np.ndarray] | None:
        """Return the window of pixels that `shape` touches and its share of each; None if it touches none.

        `soft` (mm) widens the edge.
        """
        middle = shape[0] + shape[1]
        middle *= 0.5
        edge = np.sqrt((2 * (shape[1] - shape[0])) ** 2 + np.float32(self.gantry.pixel**2 + soft**2))
        middle /= edge
        hit = middle < 0.5
        if not hit.any():
            return None
        box = tuple(_span(hit.any(axis)) for axis in (1, 0))
        window, fine = self._fine(middle, box)
        np.subtract(0.5, fine, out=fine)
        return window, np.clip(fine, 0, 1, out=fine)

    def _fine(self, coarse: np.ndarray, box: tuple[slice, slice]) -> tuple[tuple[slice, slice], np.ndarray]:
        zoom = self.gantry.zoom
        ends = (min(b.stop * zoom, n) for b, n in zip(box, self.gantry.shape, strict=True))
        window = tuple(slice(b.start * zoom, end) for b, end in zip(box, ends, strict=True))
        fine = coarse[box] if zoom == 1 else cv2.resize(coarse[box], None, fx=zoom, fy=zoom)
        return window, fine[: window[0].stop - window[0].start, : window[1].stop - window[1].start].copy()

    def paint(self, shape: np.ndarray, hu: float | np.ndarray, opacity: float = 1, soft: float = 0):
        """Paint `shape` with `hu`, a number or coarse (h, w), and return the result of `cover`."""
        if (found := self.cover(shape, soft)) is None:
            return None
        window, share = found
        if isinstance(hu, np.ndarray):
            zoom = self.gantry.zoom
            box = tuple(slice(w.start // zoom, -(-w.stop // zoom)) for w in window)
            hu = self._fine(hu, box)[1]
        self.blend(window, share * opacity if opacity != 1 else share, hu)
        return found

    def blend(self, window: tuple[slice, slice], share: np.ndarray, hu: float | np.ndarray) -> None:
        part = self.hu[window]
        part += share * (hu - part)

    def add(self, hu: np.ndarray) -> None:
        """Add coarse `hu` (h, w) everywhere."""
        rows, columns = hu.shape
        self.hu += self._fine(hu, (slice(0, rows), slice(0, columns)))[1]


def _span(hit: np.ndarray) -> slice:
    """Return the range from the first to the last true value of `hit`, widened by two on either side."""
    where = np.flatnonzero(hit)
    return slice(max(0, where[0] - 2), min(len(hit), where[-1] + 3))


def scan(head: Head, gantry: Gantry, z: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the slice at table position `z` (mm): float32 HU (h, w), and blood as uint8 bits (h, w), bit i = KINDS[i].

    `rng` draws the noise.
    """
    fields, canvas = Fields(head, gantry, z), Canvas(gantry)
    blood = np.zeros(gantry.shape, np.uint8)
    _paint_holder(canvas, fields)
    if (fields.vault < head.scalp + 12).any():
        _paint_scalp(canvas, fields, head)
        if (found := canvas.cover(fields.cavity)) is not None:
            csf = _paint_brain(canvas, fields, head, found)
            _paint_dura(canvas, fields, head)
            _paint_bleeds(canvas, fields, head, csf, blood)
            _paint_spots(canvas, fields, head)
            blood[found[0]] *= found[1] > COVERED
        _paint_skull(canvas, fields, head)
        _paint_face(canvas, fields)
        _beam_hardening(canvas, fields)
    _acquire(canvas, fields, rng)
    return canvas.hu, blood


def _paint_holder(canvas: Canvas, f: Fields) -> None:
    if not (radius := canvas.gantry.holder):
        return
    cradle = np.abs(np.hypot(f.right, np.maximum(f.back, 0)) - radius) - 1.4
    cradle = both(cradle, -30 - f.back)
    canvas.paint(np.stack([cradle, cradle]), 500)


def _paint_scalp(canvas: Canvas, f: Fields, head: Head) -> None:
    x, y, z = f.mirror
    scalp = head.scalp + 2.5 * np.exp(-(((x - 70) / 20) ** 2) - ((y + 20) / 30) ** 2 - ((z + 25) / 25) ** 2)
    if head.lump is not None:
        scalp = scalp + 7 * np.exp(-(np.maximum(ball(f.p, head.lump, 1), 0) ** 2) / 500)
    ears = ball(f.mirror, (head.half[0] + 7, 16, -36), (6, 13, 20))
    skin = union(f.vault - scalp, ears, ball(f.p, (0, -head.half[1] - 1, -56), (11, 16, 20)))
    canvas.paint(skin, SKIN)
    canvas.paint(both(f.vault - scalp + 1.8, 2 - f.vault), FAT)
    canvas.paint(f.vault - 2, MUSCLE)
    canvas.paint(f.vault - 0.45 * (scalp - 2) * (z < 10), MUSCLE)
    canvas.paint(both(f.vault, z - f.floor + 8, 6.5 - 7 * np.abs(f.bumps(28))), FAT)


def _paint_skull(canvas: Canvas, f: Fields, head: Head) -> None:
    above = f.floor - 9 - f.p[2]
    canvas.paint(both(f.vault - 0.3, -f.inside, above), head.table)
    canvas.paint(both(f.vault + 2, 1.8 - f.inside, above), DIPLOE + 140 * f.bumps(9).mean(0))


def _paint_face(canvas: Canvas, f: Fields) -> None:
    """Paint the base of the skull, sinuses and orbits."""
    x, y, z = f.mirror
    if not (z < f.floor + 12).any():
        return
    grain = f.bumps(9)
    bone = union(
        both(f.vault, z - f.floor, f.floor - 5 - z),
        f.ridges,
        tube(f.mirror, (44, -72, -36), (64, -42, -44), 3.5, 3),
        tube(f.mirror, (50, -22, -50), (48, -32, -90), 4, 5),
        both(ball(f.mirror, (32, -60, -32), (18.2, 26, 17.2)), f.vault + 4),
        both(np.abs(np.sqrt(x**2 + (y - 28) ** 2) - 18) - 4, z + 68),
    )
    canvas.paint(both(bone, 5 - f.stem, -f.cavity), (850 + 260 * grain).mean(0))
    cells = union(
        ball(f.mirror, (7, -64, -36), (8, 20, 15)),
        ball(f.mirror, (6, -27, -40), (10, 10, 9)),
        both(ball(f.mirror, (57, 30, -44), (11, 12, 17)), 1.6 - 4 * np.abs(grain)),
        ball(f.mirror, (29, -60, -66), (15, 17, 15)),
        ball(f.mirror, (0, -22, -76), (12, 9, 14)),
        both(ball(f.mirror, (12, -78, -10), (17, 5, 14)), f.vault + 2.5, 1 - 2.5 * np.abs(grain)),
    )
    canvas.paint(both(cells, 1 - 5 * np.abs(f.bumps(16))), AIR)
    orbit = both(ball(f.mirror, (32, -64, -32), (17, 28, 16)), f.vault)
    canvas.paint(orbit, FAT)
    canvas.paint(tube(f.mirror, (31, -66, -32), (14, -40, -30), 2.4, 2), SKIN)
    for radius, hu in ((13, 48), (11.6, 9)):
        canvas.paint(ball(f.mirror, (32, -71, -33), radius), hu)
    canvas.paint(ball(f.mirror, (32, -80.5, -33), (4.6, 2.2, 4.6)), 85)


def _paint_brain(canvas: Canvas, f: Fields, head: Head, cavity) -> np.ndarray:
    """Paint CSF, extended below the bone, and brain; return the share of CSF outside the ventricles: (h, w)."""
    csf = np.zeros_like(canvas.hu)
    csf[cavity[0]] = cavity[1]
    canvas.paint(f.cavity - UNDER, head.csf)
    brain = f.cavity + head.gap * (1 + 0.25 * f.bumps(30))
    if (found := canvas.paint(brain, head.gray)) is not None:
        csf[found[0]] *= 1 - found[1]
    depth = sulci(f, head)
    ribbon = both(brain + 3.2, head.sulcus + 2.6 - depth, 3.5 - f.mirror[0] + np.maximum(-midline(f), -2))
    canvas.paint(ribbon, head.white - head.leukoaraiosis * step(f.bumps(40).mean(0)), soft=1.5)
    nuclei = union(
        ball(f.mirror, (24, -4, 3), (6.5, 16, 11)),
        ball(f.mirror, (11, 11, 5), (8, 13, 9)),
        ball(f.mirror, (12, -21, 11), (4, 9, 9)),
        f.stem + 3,
    )
    canvas.paint(both(nuclei, brain), head.gray - 1, soft=2)
    cerebellum = both(brain, f.tent + 0.5, 8 - f.p[1])
    canvas.paint(cerebellum, head.gray - 2.5 + 2 * f.bumps(9).mean(0))
    canvas.paint(both(f.stem, brain - 1), head.gray - 4)
    for center, radii, hu in head.old_strokes:
        canvas.paint(both(ball(f.p, center, radii) + 2.5 * f.bumps(14), brain), hu, opacity=0.8, soft=2)
    width = head.sulcus * np.maximum(0.4, 1 + 0.4 * f.bumps(45))
    _paint_csf(canvas, csf, both(depth - width, brain, -f.tent), head)
    fissure = both(f.mirror[0] - 0.8 - head.atrophy, midline(f), brain, -f.tent)
    _paint_csf(canvas, csf, fissure, head)
    _paint_csf(canvas, csf, both(cisterns(f, head), f.cavity), head)
    canvas.paint(both(tract(f, head), brain + 2), head.csf)
    return csf


def _paint_csf(canvas: Canvas, csf: np.ndarray, shape: np.ndarray, head: Head) -> None:
    if (found := canvas.paint(shape, head.csf, soft=0.5)) is not None:
        window, share = found
        csf[window] += share * (1 - csf[window])


def _paint_dura(canvas: Canvas, f: Fields, head: Head) -> None:
    x, y, z = f.mirror
    canvas.paint(both(x - 0.7, midline(f), f.cavity, -f.tent), head.dura)
    canvas.paint(both(x - 4.5 - 0.6 * f.inside, f.cavity, -25 - y - z), head.sinus)  # superior sagittal
    if f.lowest > 10:
        return
    canvas.paint(both(np.abs(f.tent) - 0.45, 3 - f.stem, 12 - y, f.cavity), head.dura)
    straight = tube(f.mirror, (0, 30, 3), (0, head.half[1] - 12, -14), 1.6, 2.2)
    transverse = both(tube(f.mirror, (2, head.half[1] - 12, -18), (54, 32, -32), 3.4, 3.2), f.cavity)
    canvas.paint(union(straight, transverse), head.sinus)


def _paint_bleeds(canvas: Canvas, f: Fields, head: Head, csf: np.ndarray, blood: np.ndarray) -> None:
    clot = f.bumps(11).mean(0) * 3.5 if head.bleeds else None
    for bleed in head.bleeds:
        shape = bleed.shape(f, head)
        if bleed.edema:
            canvas.paint(both(shape - bleed.edema, f.cavity + 2), 22, opacity=0.7, soft=3)
        if bleed.kind == "subarachnoid":
            if (found := canvas.cover(shape, bleed.soft)) is None:
                continue
            window, share = found
            share *= np.minimum(1, 1.6 * csf[window])  # it widens what it fills
            canvas.blend(window, share, bleed.hu)
        elif (found := canvas.paint(shape, bleed.hu + clot, soft=bleed.soft)) is None:
            continue
        window, share = found
        blood[window] |= (share > COVERED).astype(np.uint8) << KINDS.index(bleed.kind)


def _paint_spots(canvas: Canvas, f: Fields, head: Head) -> None:
    for center, radii, hu in head.spots:
        if f.reaches(center, max(radii)):
            canvas.paint(both(ball(f.p, center, radii), f.cavity), hu, soft=0.6)


def _beam_hardening(canvas: Canvas, f: Fields) -> None:
    x, y, z = f.mirror
    rim = 5 * np.exp(np.minimum(f.inside, 0) / 7) * (f.inside < 1)
    bar = -9 * np.exp(-(((y - 12) / 9) ** 2) - ((z + 38) / 9) ** 2 - (x / 40) ** 4)
    canvas.add((rim + bar).mean(0) - 1)


def _acquire(canvas: Canvas, f: Fields, rng: np.random.Generator) -> None:
    """Apply the blur of the kernel, the noise of the dose, and streaks of dense bone or of motion."""
    gantry = canvas.gantry
    sigma = gantry.kernel / gantry.pixel
    noise = rng.standard_normal(gantry.shape, np.float32)
    noise *= np.float32(gantry.noise * 2 * np.sqrt(np.pi) * sigma)  # gantry.noise is left after the blur
    canvas.hu += noise
    canvas.hu = cv2.GaussianBlur(canvas.hu, (0, 0), sigma)
    streaks = rng.standard_normal(f.vault.shape[1:], np.float32)
    streaks = cv2.GaussianBlur(streaks, (0, 0), sigmaX=14, sigmaY=0.8)
    moved = rng.random() < 0.06
    height = (3 + 6 * moved) * np.exp(-(((f.p[2][0] + 38) / 14) ** 2)) + rng.uniform(2, 6) * moved
    canvas.add(streaks / streaks.std() * height * (f.vault[0] < 4))
