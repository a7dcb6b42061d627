"""Do the maps point at the blood? On phantoms, whose lesions are known, beside chance and the edges of the picture.

    python tests/benchmarks/bench_explain.py --out /tmp/explained     about 15 minutes on two cores
    python tests/benchmarks/bench_explain.py --out ... --run cpu --method gradcam --fold 0     of what is trained there

Of each label, on the positive slices of patients the model never saw: how often the brightest px of a map is in the
lesion or within --tolerance mm of it (pointing game, https://arxiv.org/abs/1608.00507), and what share of the map's
sum is inside the lesion. Beside them a uniform map (over the image, and over the head alone) and the edges of the
brain window (Sobel magnitude), which know no label.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from ich_kaggle import explain, folds, phantom, train
from ich_kaggle.common import paths, tables
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.dicom import png
from ich_kaggle.learning import saliency
from ich_kaggle.scoring import patient_bootstrap

RUNS = {  # what is trained where nothing is named; both start from what is there offline
    "cpu": ["--recipe", "cpu", "--image-size", "192", "--epochs", "4", "--freeze", "0"],
    "vgg": ["--arch", "vgg11_bn", "--weights", "none", "--image-size", "96", "--epochs", "6", "--ema", "0.99"]
    + ["--lr", "5e-4"],
}
METHODS = {"cpu": ["gradcam"], "vgg": ["gradcam", "lrp"]}
SIZE = 256  # px of the phantoms and of the cache
AIR = 8  # of 255 in the soft-tissue window: what is brighter is the head


class Score(NamedTuple):
    hit: np.ndarray  # (n,)
    energy: np.ndarray  # (n,)


def prepare(out: Path, *, patients: int, slices: int, seed: int) -> None:
    """Make the phantoms, train the runs on two of three folds, and explain the positive studies of the third."""
    data, work = out / "input", out / "work"
    phantom.phantom(out=data, patients=patients, slices=slices, size=SIZE, seed=seed, masks=True, defects=0.0)
    folds.main(["--data-dir", str(data), "--work-dir", str(work), "--folds", "3", "--workers", "1"])
    shared = ["--work-dir", str(work), "--fold", "0", "--workers", "0"]
    table = tables.read_slices(work)
    rows = (tables.read_folds(work, table) == 0) & (table["any"] > 0)
    studies = table.study_id[rows].unique().tolist()
    for run, flags in RUNS.items():
        train.main([*flags, "--cache-size", str(SIZE), "--run", run, *shared])
        for method in METHODS[run]:
            explain.main(["--run", run, "--method", method, "--studies", *studies, *shared])


def to_square(image: np.ndarray) -> np.ndarray:
    side = max(image.shape)
    top, left = ((side - n) // 2 for n in image.shape)
    return np.pad(image, ((top, side - image.shape[0] - top), (left, side - image.shape[1] - left)))


def score(shown: np.ndarray, near: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Return how often a brightest px of `shown` is `near` a lesion, and what share of it is `inside`; all (h, w)."""
    if not shown.any():
        return 0.0, 0.0
    return float(near[shown == shown.max()].mean()), float((shown * inside).sum() / shown.sum())


def shrink(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image.astype(np.float32), (saliency.SIZE, saliency.SIZE), interpolation=cv2.INTER_AREA)


def edges(image: np.ndarray) -> np.ndarray:
    brain = image[..., 0].astype(np.float32)
    return shrink(np.hypot(cv2.Sobel(brain, cv2.CV_32F, 1, 0), cv2.Sobel(brain, cv2.CV_32F, 0, 1)))


def score_slice(maps: np.ndarray, image: np.ndarray, mask: np.ndarray, spacing: float, k: int, tolerance: float):
    """Return hit and energy of the map of label `k`, of chance, of chance in the head, and of edges: (4, 2)."""
    inside, near = shrink(mask), shrink(ndimage.distance_transform_edt(~mask) * spacing) <= tolerance
    near |= inside > 0
    head = shrink(image[..., 2] > AIR)
    candidates = (maps[k], np.ones_like(head), (head > 0.5).astype(float), edges(image))
    return [score(np.asarray(shown, float), near, inside) for shown in candidates]


def measure(out: Path, run: str, method: str, k_fold: int, tolerance: float) -> dict[str, pd.DataFrame]:
    """Return for each label a row a positive slice: patient, probability, and what score_slice says."""
    work = out / "work"
    table = tables.read_slices(work)
    fold = tables.read_folds(work, table)
    folder = paths.fold(work, run, k_fold)
    probability = tables.read_predictions(folder / "oof.parquet", table.slice_id[fold == k_fold].to_numpy())
    rows = {label: [] for label in LABELS}
    for (_, one), p in zip(table[fold == k_fold].iterrows(), probability, strict=True):
        path = folder / "explain" / method / f"{one.slice_id}.png"
        if not one["any"] or not (out / "input" / "masks" / f"{one.slice_id}.png").exists():
            continue  # no label, or one that a reader has set beside the lesion
        bits = to_square(cv2.imread(str(out / "input" / "masks" / f"{one.slice_id}.png"), cv2.IMREAD_UNCHANGED))
        maps = png.read(path).reshape(len(LABELS), saliency.SIZE, saliency.SIZE)
        image = png.read(paths.cached(work / "cache" / str(SIZE), one.slice_id))
        for k, label in enumerate(LABELS):
            mask = bits > 0 if k == ANY else bits & (1 << k) > 0
            if one[label] and mask.any():
                found = score_slice(maps, image, mask, one.row_spacing, k, tolerance)
                rows[label].append([one.patient_id, p[k], *np.ravel(found)])
    names = [f"{who} {what}" for who in ("map", "chance", "head", "edges") for what in ("hit", "energy")]
    return {label: pd.DataFrame(found, columns=["patient_id", "p", *names]) for label, found in rows.items()}


def with_interval(values: pd.Series, patient: pd.Series) -> str:
    code = np.unique(patient, return_inverse=True)[1]
    total = patient_bootstrap.sums(values.to_numpy()[:, None].astype(float), code, code.max() + 1)
    low, high = patient_bootstrap.interval(patient_bootstrap.bootstrap(total, np.bincount(code))[:, 0])
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def describe(found: dict[str, pd.DataFrame]) -> str:
    """Return the table, in Markdown: where a baseline is ahead of the map, it is marked with a star."""
    head = ["label", "slices", "patients", "hit", "chance", "in the head", "edges", "hit, p >= 0.5"]
    head += ["energy", "chance", "in the head", "edges"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for label, rows in found.items():
        if not len(rows):
            continue
        cells = [label, len(rows), rows.patient_id.nunique()]
        for what in ("hit", "energy"):
            cells.append(with_interval(rows[f"map {what}"], rows.patient_id))
            for who in ("chance", "head", "edges"):
                value = rows[f"{who} {what}"].mean()
                cells.append(f"{value:.3f}" + "*" * bool(value >= rows[f"map {what}"].mean()))
            if what == "hit":
                called = rows[rows.p >= 0.5]
                cells.append(f"{called['map hit'].mean():.2f} of {len(called)}" if len(called) else "none")
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(f"| {line} |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the phantoms and of the work; gone on with if it is there")
    add("--patients", type=int, default=120)
    add("--slices", type=int, default=16, help="of a study, about")
    add("--seed", type=int, default=4)
    add("--tolerance", type=float, default=10.0, help="mm (default: 10)")
    add("--run", help="only tell of this run, which is trained and explained (default: make all)")
    add("--method", choices=saliency.METHODS, default="gradcam")
    add("--fold", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.run is None:
        prepare(options.out, patients=options.patients, slices=options.slices, seed=options.seed)
    of_runs = METHODS if options.run is None else {options.run: [options.method]}
    for run, methods in of_runs.items():
        for method in methods:
            print(f"\n{run}, {method}, a hit within {options.tolerance:g} mm; 95 % intervals over patients\n")
            print(describe(measure(options.out, run, method, options.fold, options.tolerance)), flush=True)


if __name__ == "__main__":
    main()
