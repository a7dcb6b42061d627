"""The brain, its vessels and its blood, painted onto a slice."""

import numpy as np

from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.synthetic.anatomy import Head
from ich_kaggle.synthetic.canvas import AIR, Canvas, within, within_ball
from ich_kaggle.synthetic.fields import Fields, cisterns, midline, sulci, tract
from ich_kaggle.synthetic.hemorrhages import Bleed
from ich_kaggle.synthetic.shapes import ball, both, step, tube, union

KINDS = LABELS[:ANY]
COVERED = 0.35  # share of blood from which a pixel counts as blood
UNDER = 3.5  # mm by which shapes at the skull extend below it: the skull is painted over them


def brain(canvas: Canvas, f: Fields, head: Head) -> None:
    """Paint CSF, extended below the bone, and brain."""
    canvas.paint(f.cavity - UNDER, head.csf)
    if (found := canvas.paint(f.brain, head.gray)) is not None:
        canvas.csf[found[0]] *= 1 - found[1]
    depth = sulci(f, head)
    ribbon = both(f.brain + 3.2, head.sulcus + 2.6 - depth, 3.5 - f.mirror[0] + np.maximum(-midline(f), -2))
    canvas.paint(ribbon, head.white - head.leukoaraiosis * step(f.bumps(40)), soft=3)
    _paint_nuclei(canvas, f, head)
    if f.lowest < 10:
        cerebellum = both(f.brain, f.tent + 0.5, 8 - f.p[1])
        canvas.paint(cerebellum, head.gray - 2.5 + 2 * f.bumps(9))
        canvas.paint(both(f.stem, f.brain - 1), head.gray - 4)
    for stroke in head.strokes:
        _paint_stroke(canvas, f, stroke)
    width = head.sulcus + 0.45 * f.bumps(45)
    _paint_csf(canvas, both(depth - width, f.brain, -f.tent), head)
    _paint_fissure(canvas, f, head)
    _paint_cisterns(canvas, f, head)
    _paint_ventricles(canvas, f, head)


@within((0, -32, -70), (32, 30, 22))
def _paint_nuclei(canvas: Canvas, f: Fields, head: Head) -> None:
    nuclei = union(
        ball(f.mirror, (24, -4, 3), (6.5, 16, 11)),
        ball(f.mirror, (11, 11, 5), (8, 13, 9)),
        ball(f.mirror, (12, -21, 11), (4, 9, 9)),
        f.stem + 3,
    )
    canvas.paint(both(nuclei, f.brain), head.gray - 1, soft=2)


def _paint_stroke(canvas: Canvas, f: Fields, stroke: tuple) -> None:
    center, radii, hu = stroke

    @within_ball(center, max(radii) + 6)
    def paint(canvas: Canvas, f: Fields) -> None:
        canvas.paint(both(ball(f.p, center, radii) + 2.5 * f.bumps(14), f.brain), hu, opacity=0.8, soft=2)

    paint(canvas, f)


def _paint_csf(canvas: Canvas, shape: np.ndarray, head: Head) -> None:
    if (found := canvas.paint(shape, head.csf, soft=0.5)) is not None:
        window, share = found
        canvas.csf[window] += share * (1 - canvas.csf[window])


@within((0, -95, -30), (8, 100, 100))
def _paint_fissure(canvas: Canvas, f: Fields, head: Head) -> None:
    _paint_csf(canvas, both(f.mirror[0] - 0.2 - 1.2 * head.atrophy, midline(f), f.brain, -f.tent), head)


@within((0, -48, -70), (80, 75, 28))
def _paint_cisterns(canvas: Canvas, f: Fields, head: Head) -> None:
    _paint_csf(canvas, both(cisterns(f, head), f.cavity), head)


@within((0, -52, -48), (52, 75, 44))
def _paint_ventricles(canvas: Canvas, f: Fields, head: Head) -> None:
    canvas.paint(both(tract(f, head), f.brain + 2), head.csf)


@within((0, -100, -30), (30, 110, 100))
def falx(canvas: Canvas, f: Fields, head: Head) -> None:
    x, y, z = f.mirror
    canvas.paint(both(x - 0.7, midline(f), f.cavity, -f.tent), head.dura)
    canvas.paint(both(x - 4.5 - 0.6 * f.inside, f.cavity, -25 - y - z), head.sinus)  # superior sagittal


@within((0, 8, -75), (80, 110, 10))
def tentorium(canvas: Canvas, f: Fields, head: Head) -> None:
    canvas.paint(both(np.abs(f.tent) - 0.45, 3 - f.stem, 12 - f.p[1], f.cavity), head.dura)
    straight = tube(f.mirror, (0, 30, 3), (0, head.half[1] - 12, -14), 1.6, 2.2)
    transverse = both(tube(f.mirror, (2, head.half[1] - 12, -18), (54, 32, -32), 3.4, 3.2), f.cavity)
    canvas.paint(union(straight, transverse), head.sinus)


@within((0, -44, -24), (48, 2, 14))
def vessels(canvas: Canvas, f: Fields, head: Head) -> None:
    """Paint the arteries at the base of the brain, as bright as the sinuses."""
    p = f.mirror
    middle = union(tube(p, (8, -13, -15), (30, -16, -14), 1.5, 1.2), tube(p, (30, -16, -14), (46, -6, 2), 1.2, 0.8))
    front = union(tube(p, (8, -13, -15), (1.5, -24, -10), 1.3, 1.1), tube(p, (1.5, -24, -10), (1.5, -42, 12), 1.1, 0.8))
    basilar = tube(p, (0, -5, -18), (0, -8, -45), 1.8, 1.5)
    canvas.paint(both(union(middle, front, basilar), f.cavity), 0.8 * head.sinus + 6)


def bleed(canvas: Canvas, f: Fields, head: Head, one: Bleed) -> None:
    within(*one.box)(_paint_bleed)(canvas, f, head, one)


def _paint_bleed(canvas: Canvas, f: Fields, head: Head, one: Bleed) -> None:
    shape = one.shape(f, head)
    if one.edema:
        canvas.paint(both(shape - one.edema, f.cavity + 2), 22, opacity=0.7, soft=3)
    if (found := canvas.cover(shape, one.soft)) is None:
        return
    window, share = found
    if one.kind == "subarachnoid":
        share *= np.minimum(1, 1.6 * canvas.csf[window])  # it widens what it fills
        canvas.blend(window, share, one.hu)
    else:
        sediment = 0 if one.level is None else 12 * np.tanh((f.level - one.level) / 3)
        canvas.paint(shape, one.hu + sediment + 3.5 * f.bumps(11), soft=one.soft)
    canvas.blood[window] |= (share > COVERED).astype(np.uint8) << KINDS.index(one.kind)


def operation(canvas: Canvas, f: Fields, head: Head) -> None:
    """Paint the drain and the air of an operation."""
    _, _, _, drain, air = head.operation
    if air:
        highest = f.level + head.half[1] - head.skull - air  # behind the highest point: the patient lies on the back
        canvas.paint(both(f.cavity, highest, 2 - np.sign(head.operation.center[0]) * f.p[0]), AIR)
    if drain is not None:
        canvas.paint(tube(f.p, head.operation.center, drain, 1.3, 1.3), 350)


def spot(canvas: Canvas, f: Fields, one: tuple) -> None:
    center, radii, hu = one

    @within_ball(center, max(radii))
    def paint(canvas: Canvas, f: Fields) -> None:
        canvas.paint(both(ball(f.p, center, radii), f.cavity), hu, soft=0.6)

    paint(canvas, f)
