"""Ensembles on few patients: what the choices of `auto` cost where little can be known, and what they bring later.

Patients are drawn from a pool of phantoms; their slices are embedded once by an ImageNet network. Two kinds of
ensembles of three members are made for each draw. "trained": logistic regressions on the embeddings, trained out of
fold on the drawn patients, two of them too sharp, one smoothed along the study. "moved": such regressions trained on
other phantoms and shown these of another scanner, with more noise and HU that are off by a few. A third kind,
"made", are logits by formula, with errors that the slices of a patient share and slopes of their own.
Example: python tests/benchmarks/bench_small_data.py /tmp/small --draws 20
"""

import argparse
from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from ich_kaggle.common import metric, windows
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.learning import pretrained, slice_model
from ich_kaggle.scoring import blending, ensembling, nested_choice, patient_folds
from ich_kaggle.synthetic import studies

SIZES = (8, 16, 32, 64, 128)  # patients
POOL, OTHERS = 150, 50  # patients to draw from, and to train the members on that are moved
OFFSET = np.array([-7, -4.8, -5.3, -4.6, -4.3, -3.2])  # logits of "made"
SLOPE = np.array([0.88, 0.96, 0.96, 0.95, 0.93, 0.76])  # with SHIFT, the logits of "made" are about calibrated
SHIFT = np.array([-2.0, -1.3, -1.45, -1.4, -1.25, -0.7])
KINDS = ("trained", "moved", "made")


def study(seed: int, moved: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the windowed slices, uint8 (n, 64, 64, 3), and the labels (n, 6) of a phantom patient."""
    rng = np.random.default_rng([seed, 1])
    off, images, labels = rng.normal(3, 3), [], []
    for hu, label, _ in studies.draw([seed, 0], size=64, prevalence=0.42):
        if moved:
            hu = cv2.GaussianBlur(hu, (0, 0), 0.6) + np.float32(off) + rng.normal(0, 4, hu.shape).astype(np.float32)
        images.append(windows.apply(hu, windows.CACHED))
        labels.append(label)
    return np.stack(images), np.stack(labels)


def pool(folder: Path, workers: int) -> dict[str, np.ndarray]:
    """Return the embeddings, (n, 128), labels, patients and whether they are to draw from, of all slices; kept."""
    path = folder / "pool.npz"
    if not path.exists():
        found = joblib.Parallel(workers)(joblib.delayed(study)(k, k < POOL) for k in range(POOL + OTHERS))
        patient = np.repeat(np.arange(len(found)), [len(labels) for _, labels in found])
        features = embed(np.concatenate([images for images, _ in found]))
        pca = PCA(128, random_state=0).fit(features[patient >= POOL])
        x = pca.transform(features) / np.sqrt(pca.explained_variance_)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, x=x.astype(np.float32), y=np.concatenate([labels for _, labels in found]), patient=patient)
    return dict(np.load(path))


def embed(images: np.ndarray) -> np.ndarray:
    config = slice_model.SliceConfig(arch=pretrained.LITE0, image_size=64, cache_size=64)
    model = slice_model.SliceModel(config)
    pretrained.load(model.backbone, pretrained.LITE0, "imagenet", Path())
    model.eval()
    with torch.inference_mode():
        batches = torch.from_numpy(images).split(64)
        return np.concatenate([model.embed(batch).numpy() for batch in batches])


def regress(x, y, fresh, strength: float) -> np.ndarray:
    """Return logits (n, 6) of `fresh` by a regression per label, drawn to 0 by 1 / `strength`."""
    out = np.empty((len(fresh), len(LABELS)), np.float32)
    for label, target in enumerate(y.T):
        if target.min() == target.max():
            out[:, label] = -8 if target.max() == 0 else 8
            continue
        out[:, label] = LogisticRegression(C=strength, max_iter=200).fit(x, target).decision_function(fresh)
    return out


def smoothed(logits: np.ndarray, patient: np.ndarray, width: float) -> np.ndarray:
    return np.concatenate([gaussian_filter1d(logits[patient == p], width, axis=0) for p in pd.unique(patient)])


def members(x, y, fresh, patient) -> list[np.ndarray]:
    """Return the logits of three members, trained on `x` and `y`, for `fresh` slices of `patient`."""
    return [
        smoothed(regress(x, y, fresh, 1e-3), patient, 1.0),
        regress(x[:, ::2], y, fresh[:, ::2], 1e-1),
        regress(x[:, 1::2], y, fresh[:, 1::2], 1e-2),
    ]


def folds(y: np.ndarray, patient: np.ndarray, seed: int) -> np.ndarray:
    table = pd.DataFrame(y, columns=list(LABELS)).assign(patient_id=patient)
    drawn = patient_folds.assign_folds(table, n_folds=5, seed=seed).set_index("patient_id").fold
    return table.patient_id.map(drawn).to_numpy()


def draw(kind: str, data: dict, n_patients: int, seed: int) -> tuple:
    """Return targets (n, 6), the out-of-fold probabilities of three runs, folds and patients."""
    rng = np.random.default_rng([seed, n_patients, KINDS.index(kind)])
    if kind == "made":
        y, logits, patient = made(rng, n_patients)
        return y, [expit(z) for z in logits], folds(y, patient, seed), patient
    rows = np.flatnonzero(np.isin(data["patient"], rng.choice(POOL, n_patients, replace=False)))
    x, y, patient = (data[name][rows] for name in ("x", "y", "patient"))
    fold = folds(y, patient, seed)
    if kind == "moved":
        part = data["patient"] >= POOL
        logits = members(data["x"][part], data["y"][part], x, patient)
    else:
        logits = np.empty((3, len(y), len(LABELS)), np.float32)
        for k in np.unique(fold):
            own = fold == k
            logits[:, own] = members(x[~own], y[~own], x[own], patient[own])
    return y.astype(np.float32), [expit(z) for z in logits], fold, patient


def made(rng: np.random.Generator, n_patients: int) -> tuple:
    patient = np.repeat(np.arange(n_patients), 33)
    shape = (len(patient), len(LABELS))

    def along(scale):  # within a study neighbouring slices are alike
        noise = gaussian_filter1d(rng.normal(size=(n_patients, 33, 6)), 2.5, axis=1).reshape(shape)
        return scale * noise / noise.std()

    sick = rng.random((n_patients, 6))[patient] < 0.1
    truth = OFFSET + np.where(sick, 4, -1) + along(2.0)
    truth[:, ANY] = truth.max(axis=1) + 0.3
    target = (truth > rng.logistic(scale=0.3, size=shape)).astype(np.float32)
    shared = rng.normal(0, 1, (n_patients, 6))[patient]
    slopes, shifts = np.exp(rng.normal(0.1, 0.3, 3)), rng.normal(0, 0.4, (3, 6))
    runs = [b * (SLOPE * (truth + shared + along(1.5)) + SHIFT) + c for b, c in zip(slopes, shifts, strict=True)]
    return target, np.array(runs, np.float32), patient


def losses(kind: str, data: dict, n_patients: int, seed: int) -> dict:
    """Return the nested losses of a draw."""
    target, runs, fold, patient = draw(kind, data, n_patients, seed)
    prepared = nested_choice.prepare(target, [blending.raise_any(run) for run in runs], fold, patient)
    found = {"kind": kind, "patients": n_patients, "seed": seed}
    found["constant"] = metric.log_loss(target, ensembling.constant(target, fold))
    found["equal"] = metric.log_loss(target, blending.raise_any(np.mean(runs, axis=0)))
    found["shrunk"] = metric.log_loss(target, nested_choice.honest(prepared, "shrunk"))
    found["auto"] = metric.log_loss(target, nested_choice.honest(prepared))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the embeddings are kept")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    data = pool(options.folder, options.workers)
    seeds = range(options.first, options.first + options.draws)
    jobs = [joblib.delayed(losses)(kind, data, n, seed) for kind in KINDS for n in SIZES for seed in seeds]
    found = pd.DataFrame(joblib.Parallel(options.workers)(jobs))
    best = found[["equal", "shrunk"]].min(axis=1)
    found["auto - better"], found["auto - constant"] = found.auto - best, found.auto - found.constant
    groups = found.drop(columns="seed").groupby(["kind", "patients"], sort=False)
    table = groups.mean()
    table["worst"], table["worst to constant"] = groups["auto - better"].max(), groups["auto - constant"].max()
    print(table.round(4).to_markdown())


if __name__ == "__main__":
    main()
