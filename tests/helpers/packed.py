"""A small ensemble of everything that can be packed: two slice runs, second levels on them and on each other."""

import shutil
from pathlib import Path

import numpy as np
import torch

from ich_kaggle import ensemble, evaluate, predict, sequence, train
from ich_kaggle.common import paths
from ich_kaggle.learning import slice_model

SMALL = ["--arch", "test_resnet", "--weights", "none", "--image-size", "32", "--epochs", "1", "--workers", "0"]
QUICK = ["--epochs", "2", "--batch-size", "4", "--hidden", "8", "--device", "cpu", "--workers", "1"]
SLICE_RUNS = {"a": (["--cache-size", "64"], "none"), "b": (["--cache-size", "48", "--context", "both"], "study")}
LEVELS = {
    "g": ["--on", "a", "b", "--model", "gru", "--features", "fold", "--seeds", "2"],
    "c": ["--on", "a", "g", "--model", "conv", "--features", "oof"],
    "s": ["--on", "a", "b", "--model", "smooth"],
}
ENSEMBLES = {"slices": ["a", "b"], "levels": ["b", "c", "s"]}


def sharpen(folder: Path, seed: int) -> None:
    """Let the model in `folder`, which an epoch has taught nothing, answer differently for each slice it has seen."""
    model, seen = slice_model.load(folder / "model.pt"), np.load(folder / "embeddings.npy").astype(np.float32)
    middle, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-3
    weight = np.random.default_rng(seed).normal(0, 2 / len(middle) ** 0.5, (6, len(middle))).astype(np.float32) / spread
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(-weight @ middle - 1))
    slice_model.save(folder / "model.pt", model)


def work_of(prepared: Path) -> Path:
    """Return a work folder with the ensembles, evaluated and packed as <name>.zip beside it; not to be written to."""
    work = prepared.parent / "packed" / "work"
    if not (work.parent / "levels.zip").exists():
        make(prepared, work)
    return work


def make(prepared: Path, work: Path) -> None:
    torch.set_num_threads(1)
    shutil.copytree(prepared, work)
    common = ["--work-dir", str(work)]
    for run, (flags, crop) in SLICE_RUNS.items():
        train.main([*common, "--run", run, *SMALL, *flags, "--crop", crop])
        how = [*common, "--run", run, "--all-slices", "--workers", "0", "--overwrite"]
        predict.main(how)
        for k in range(3):
            sharpen(paths.fold(work, run, k), k)
        predict.main(how)
    for run, flags in LEVELS.items():
        sequence.main([*common, "--run", run, *QUICK, *flags])
    for name, runs in ENSEMBLES.items():
        how = ["--method", "equal", "--workers", "1"]
        ensemble.main([*common, "--name", name, "--runs", *runs, *how])
        evaluate.main([*common, "--ensemble", name, "--draws", "20", "--workers", "1"])
        ensemble.main([*common, "--name", name, "--export", str(work.parent / f"{name}.zip")])
