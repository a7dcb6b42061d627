"""The head around the brain, painted onto a slice: scalp, skull with operations, skull base and face."""

import numpy as np

from ich_kaggle.synthetic.anatomy import Head, Operation
from ich_kaggle.synthetic.canvas import AIR, Canvas, within
from ich_kaggle.synthetic.fields import LOW, Fields
from ich_kaggle.synthetic.shapes import ball, both, tube, union

FAT, MUSCLE, SKIN, DIPLOE = -95, 52, 40, 700  # HU


def scalp(canvas: Canvas, f: Fields, head: Head) -> None:
    x, y, z = f.mirror[:, 0]
    skin, deep = f.vault - head.scalp, f.vault
    if head.lump is not None:
        far = np.maximum(ball(f.p[:, 0], head.lump, 1), 0)
        skin -= 7 * np.exp(-(far**2) / 500)
    if f.lowest < 25:
        skin -= 2.5 * np.exp(-(((x - 70) / 20) ** 2) - ((y + 20) / 30) ** 2 - ((z + 25) / 25) ** 2)
        _paint_ears(canvas, f, head)
    if is_low := head.neck and f.lowest < LOW:
        skin, deep = union(skin, f.neck), union(deep, f.neck + 6)
    canvas.paint(skin, SKIN)
    canvas.paint(both(skin + 1.8, 2 - deep), FAT)
    if head.bruise:
        canvas.paint(both(skin + 2.5 + head.scalp * (far / 30) ** 2, 1 - f.vault), head.bruise, soft=2)
    muscle = deep - 2
    if f.lowest < 10:
        muscle = union(muscle, 0.45 * skin + 0.55 * deep + np.where(z > 10, f.nothing, np.float32(0.9)))
    canvas.paint(muscle, MUSCLE)
    if f.lowest < 10:
        between = np.abs(f.bumps(45 if is_low else 28))  # the muscles are planes and lumps of fat, large in a neck
        canvas.paint(both(deep, f.p[2] - f.floor + 8, union(11 - 7 * between, 5 * between - 1)), FAT)


@within((0, -130, -80), (100, 40, -14))
def _paint_ears(canvas: Canvas, f: Fields, head: Head) -> None:
    ears = ball(f.mirror, (head.half[0] + 7, 16, -36), (6, 13, 20))
    canvas.paint(union(ears, ball(f.p, (0, -head.half[1] - 1, -56), (11, 16, 20))), SKIN)


def skull(canvas: Canvas, f: Fields, head: Head) -> None:
    above = f.floor - 9 - f.p[2]
    if head.operation is not None:
        above = both(above, _opening(f, head.operation))
    canvas.paint(both(f.vault - 0.3, -f.inside, above), head.table)
    canvas.paint(both(f.vault + 2, 1.8 - f.inside, above), DIPLOE + 140 * f.bumps(9))


def _opening(f: Fields, operation: Operation) -> np.ndarray:
    """Return the distance into the bone that was left: outside a gap, or outside the cut around a flap."""
    from_center = ball(f.p, operation.center, operation.radius)
    return operation.width / 2 - np.abs(from_center) if operation.width else -from_center


def face(canvas: Canvas, f: Fields, head: Head) -> None:
    """Paint the base of the skull, sinuses and orbits."""
    if f.lowest > 12:
        return
    x, y, z = f.mirror
    grain = f.bumps(9)
    bone = union(
        both(f.vault, z - f.floor, f.floor - 5 - z),
        f.ridges,
        tube(f.mirror, (44, -72, -36), (64, -42, -44), 3.5, 3),
        tube(f.mirror, (50, -22, -50), (48, -32, -90), 4, 5),
        both(ball(f.mirror, (32, -60, -32), (18.2, 26, 17.2)), f.vault + 4),
    )
    if not head.neck:
        bone = union(bone, both(np.abs(np.sqrt(x**2 + (y - 28) ** 2) - 18) - 4, z + 68))
    canvas.paint(both(bone, 5 - f.stem, -f.cavity), 850 + 260 * grain)
    cells = union(
        ball(f.mirror, (7, -64, -36), (8, 20, 15)),
        ball(f.mirror, (6, -27, -40), (10, 10, 9)),
        both(ball(f.mirror, (57, 30, -44), (11, 12, 17)), 1.6 - 4 * np.abs(grain)),
        ball(f.mirror, (29, -60, -66), (15, 17, 15)),
        ball(f.mirror, (0, -22, -76), (12, 9, 14)),
        both(ball(f.mirror, (12, -78, -10), (17, 5, 14)), f.vault + 2.5, 0.5 - 2.5 * np.abs(grain)),
    )
    canvas.paint(both(cells, 1 - 5 * np.abs(f.bumps(16))), AIR)
    _paint_orbits(canvas, f)


@within((0, -100, -50), (50, -34, -14))
def _paint_orbits(canvas: Canvas, f: Fields) -> None:
    canvas.paint(both(ball(f.mirror, (32, -64, -32), (17, 28, 16)), f.vault), FAT)
    canvas.paint(tube(f.mirror, (31, -66, -32), (14, -40, -30), 2.4, 2), SKIN)
    for radius, hu in ((13, 48), (11.6, 9)):
        canvas.paint(ball(f.mirror, (32, -71, -33), radius), hu)
    canvas.paint(ball(f.mirror, (32, -80.5, -33), (4.6, 2.2, 4.6)), 85)
