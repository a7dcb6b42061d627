"""Draw the picture of the README: one bloody slice of a phantom in the three windows that the models see.

Example: python tests/benchmarks/draw_phantom.py ich_kaggle/html/pictures/windows.png --seed 2
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ich_kaggle.common import windows
from ich_kaggle.common.labels import LABELS
from ich_kaggle.synthetic import hemorrhages, scanner, studies
from ich_kaggle.synthetic.anatomy import Head


def draw_picture(path: Path, *, seed: int = 0, size: int = 512) -> None:
    """Write a PNG of one bloody slice in the three windows that the models see."""

    hu, kinds = _striking(seed, size)
    gray = windows.apply(hu, windows.CACHED)
    edge, gap, head, foot = 388, 12, 46, 40
    sheet = Image.new("RGB", (3 * edge + 4 * gap, head + edge + foot), (16, 18, 22))
    pen, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(size=19), ImageFont.load_default(size=16)
    for k, window in enumerate(windows.CACHED):
        left = gap + k * (edge + gap)
        image = Image.fromarray(gray[..., k]).resize((edge, edge), Image.Resampling.LANCZOS)
        sheet.paste(image, (left, head))
        pen.text((left, 12), windows.NAMES[window], (236, 239, 242), large)
        low, high = window.center - window.width / 2, window.center + window.width / 2
        pen.text((left + edge, 14), f"{low:g} to {high:g} HU", (140, 148, 158), small, anchor="ra")
    pen.text((gap, head + edge + 10), " · ".join(kinds), (240, 180, 90), small)
    sheet.save(path, "PNG", optimize=True)


def _striking(seed: int, size: int) -> tuple[np.ndarray, list[str]]:
    """Return, of six patients with much blood, the slice (HU) with most kinds, and most, of it; and the kinds."""
    scores, depths = {}, range(-20, 60, 5)
    for number in range(6):
        for depth, (_, area) in zip(depths, _bloody(seed, number, 96, depths), strict=True):
            scores[number, depth] = np.minimum(area, 400).sum()
    number, depth = max(scores, key=scores.get)
    [(hu, area)] = _bloody(seed, number, size, [depth])
    return hu, [label for label, a in zip(LABELS, area, strict=False) if a >= studies.SMALLEST]


def _bloody(seed: int, number: int, size: int, depths) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return slices (HU) of a patient with blood of four kinds, and the area (mm2) of each."""
    rng = np.random.default_rng([seed, 2**32 - 2, number])
    head = Head(rng)
    hemorrhages.bleed(rng, head, ["intraparenchymal", "intraventricular", "subdural", "subarachnoid"])
    gantry = studies.draw_gantry(rng, (size, size), 5.0, 10.0)
    slices = [scanner.scan(head, gantry, depth / np.cos(gantry.tilt), rng) for depth in depths]
    return [(hu, studies.pixels_of(blood) * gantry.pixel**2) for hu, blood in slices]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw_picture(options.path, seed=options.seed)
