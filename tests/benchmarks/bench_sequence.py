"""An epoch of a network over all series of the competition, beside the same on padded batches; and the booster.

    python tests/benchmarks/bench_sequence.py epoch      21,744 series, 35 slices in the mean, 512 features
    python tests/benchmarks/bench_sequence.py padded     the same network, each series padded to 60 slices and masked
    python tests/benchmarks/bench_sequence.py booster    six labels on 752,803 slices of 21,744 series

Each is run in a process of its own, so that the peak of its memory is its own. --kind conv, --n-series 2000, --out.
"""

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from ich_kaggle.learning import fit as learning_fit
from ich_kaggle.second_level import boosting, sequence_models, series_dataset
from ich_kaggle.second_level import fit as second_level_fit

SHORTEST, LONGEST = 20, 60  # slices, as in the competition
SIZE = 512  # features
BATCH_SIZE = 32  # series


def lengths(n_series: int, mean: float = 35.0) -> np.ndarray:
    """Return series lengths between SHORTEST and LONGEST that have just about the `mean`."""
    share = (mean - SHORTEST) / (LONGEST - SHORTEST)
    rng = np.random.default_rng(0)
    return np.rint(SHORTEST + (LONGEST - SHORTEST) * rng.beta(4 * share, 4 * (1 - share), n_series)).astype(int)


def made_inputs(folder: Path, n_series: int, size: int) -> series_dataset.Inputs:
    length = lengths(n_series)
    n, rng = int(length.sum()), np.random.default_rng(0)
    number = np.repeat(np.arange(n_series), length)
    path = folder / "embeddings.npy"
    if size:
        store = np.lib.format.open_memmap(path, "w+", np.float16, (n, size))
        for start in range(0, n, 1 << 14):
            store[start : start + (1 << 14)] = rng.normal(size=(min(1 << 14, n - start), size))
        store.flush()
        del store
    embeddings = [np.load(path, mmap_mode="r")] if size else []
    target = (rng.random((n, 6)) < 0.1).astype(np.float32)
    logits = (4 * target - 3 + rng.normal(0, 1.5, target.shape)).astype(np.float32)[:, None]
    position = 5.0 * (np.arange(n) - np.repeat(np.cumsum(length) - length, length))
    return series_dataset.Inputs(embeddings, logits, logits[:, 0], target, position, number, number)


def pad(batch: tuple) -> tuple:
    """Return a batch with zeros behind each series up to LONGEST slices, and its target masked."""
    inputs, target, _ = batch
    lengths = inputs.length.tolist()

    def longer(x: torch.Tensor) -> torch.Tensor:
        parts = x.split(lengths)
        return torch.cat([torch.cat([part, part.new_zeros(LONGEST - len(part), *part.shape[1:])]) for part in parts])

    mask = longer(torch.ones(len(target), 1))
    length = torch.full_like(inputs.length, LONGEST)
    embeddings = [longer(part) for part in inputs.embeddings]
    inputs = replace(
        inputs,
        embeddings=embeddings,
        logits=longer(inputs.logits),
        smoothed=longer(inputs.smoothed),
        place=longer(inputs.place),
        length=length,
        **dict(zip(("series", "packed", "sizes"), series_dataset.layout(length), strict=True)),
    )
    return inputs, longer(target), mask


def masked_loss(model, batch: tuple) -> torch.Tensor:
    inputs, target, mask = batch
    seen = mask[:, 0] > 0
    logits, auxiliary = (part[seen] for part in model(inputs))
    return learning_fit.bce(logits, target[seen]) + second_level_fit.AUXILIARY * learning_fit.bce(
        auxiliary, target[seen]
    )


def epoch(folder: Path, kind: str, n_series: int, is_padded: bool) -> str:
    inputs = made_inputs(folder, n_series, SIZE)
    loader = second_level_fit.series_loader(
        inputs, np.ones(len(inputs.target), bool), BATCH_SIZE, series_dataset.NONE, seed=0
    )
    model = sequence_models.SequenceModel(sequence_models.SequenceConfig(kind, (SIZE,), 1))
    fit = learning_fit.Fit(model, learning_fit.FitSettings(epochs=1, lr=1e-3), len(loader), torch.device("cpu"))
    fit.start_epoch()
    began, n_rows = time.perf_counter(), 0
    for batch in loader:
        batch = pad(batch) if is_padded else batch
        n_rows += len(batch[1])
        fit.train_step(masked_loss if is_padded else second_level_fit.sequence_loss, batch)
    seconds = time.perf_counter() - began
    return (
        f"{kind}: {seconds:.0f} s an epoch of {n_series} series, {n_rows} rows computed for {len(inputs.target)} slices"
    )


def booster(folder: Path, n_slices: int = 752_803) -> str:
    inputs = made_inputs(folder, 21_744, 0)
    rows = slice(0, n_slices)
    began = time.perf_counter()
    seen = boosting.features(
        expit(inputs.logits[rows]),
        expit(inputs.smoothed[rows]),
        inputs.position[rows],
        inputs.series[rows],
        inputs.study[rows],
    )
    made = time.perf_counter() - began
    boosting.fit_predict(seen, inputs.target[rows], seen[:1000], rounds=150, seeds=[0])
    seconds = time.perf_counter() - began
    return f"{seconds:.0f} s for six labels on {len(seen)} slices, {made:.1f} s of them for {seen.shape[1]} features"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["epoch", "padded", "booster"])
    parser.add_argument("--kind", choices=list(sequence_models.KINDS), default="gru")
    parser.add_argument("--n-series", type=int, default=21_744)
    parser.add_argument("--out", type=Path, help="folder for the embeddings (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        if options.what == "booster":
            text = booster(Path(folder))
        else:
            text = epoch(Path(folder), options.kind, options.n_series, options.what == "padded")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{text}; {torch.get_num_threads()} threads, {peak / 1e9:.1f} GB at most")


if __name__ == "__main__":
    main()
