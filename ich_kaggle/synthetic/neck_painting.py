"""Jaw and neck below the skull, painted onto a slice: many scans begin there, and nothing in them is a brain."""

import numpy as np

from ich_kaggle.synthetic.anatomy import Head
from ich_kaggle.synthetic.canvas import AIR, Canvas
from ich_kaggle.synthetic.fields import Fields
from ich_kaggle.synthetic.shapes import Points, along, both, tube, union

CORD, CSF, BONE = 34, 12, 700  # HU
BASE = -65.0  # mm, height of the lowest bone of the skull
VERTEBRA = 18.0  # mm, height with its disc


def neck(canvas: Canvas, f: Fields, head: Head) -> None:
    """Paint spine, airway, jaw and teeth over muscles and fat."""
    if not head.neck or f.lowest > BASE:
        return
    x, y, z = p = f.mirror / along(np.float32([head.width, head.width, 1]), f.mirror)
    _paint_spine(canvas, f, p)
    canvas.paint(both(tube(p, (0, -14, -60), (0, -20, -160), 7, 9), z - BASE), AIR)
    around = np.sqrt(x**2 + ((y + 32) / 1.25) ** 2)
    jaw = both(np.abs(around - 41) - 4.5, y + 14, np.abs(z + 104) - 13)
    canvas.paint(jaw, BONE + 400)
    teeth = both(np.abs(around - 36) - 4, y + 42, np.abs(z + 86) - 9)
    canvas.paint(teeth, 1500 + 900 * np.sin(30 * np.arctan2(x[0], -32 - y[0])))


def _paint_spine(canvas: Canvas, f: Fields, p: Points) -> None:
    """Paint vertebrae around the canal, with discs and gaps between them, and the cord in it."""
    x, y, z = p
    disc = np.abs(z % VERTEBRA - VERTEBRA / 2) - 7
    canal = np.sqrt(x**2 + (y - 27) ** 2) - 8.5
    body = both(np.sqrt(x**2 + (y - 7) ** 2) - 10, disc)
    arch = both(np.abs(canal - 3) - 3, disc + 2)
    sides = both(np.sqrt((x - 21) ** 2 + (y - 17) ** 2) - 7.5, disc)
    spine = both(x - 2.5, np.abs(y - 46) - 9, disc + 3)
    canvas.paint(both(union(body, arch, sides, spine), z - BASE, -canal), BONE + 220 * f.bumps(9))
    canvas.paint(both(canal, z - BASE), CSF)
    canvas.paint(both(canal + 3, z - BASE), CORD)
