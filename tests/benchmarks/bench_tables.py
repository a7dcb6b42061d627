"""Kaggle's tables at full size: seconds and peak memory beside the usual pandas way.

Each measurement is a process of its own, so that its peak memory is its own.
Example: python tests/benchmarks/bench_tables.py
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import labels, paths, tables
from ich_kaggle.common.labels import LABELS

N_TRAIN, N_TEST = 752_803, 121_232


def write_long(path: Path, n_slices: int, seed: int, value: str) -> None:
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(0, 16**9, int(n_slices * 1.01)))[:n_slices]
    rng.shuffle(ids)
    positive = rng.random((n_slices, len(LABELS))) < 0.06
    with path.open("w") as file:
        file.write("ID,Label\n")
        for i, row in zip(ids.tolist(), positive.tolist(), strict=True):
            for label, is_positive in zip(LABELS, row, strict=True):
                file.write(f"ID_{i:09x}_{label},{int(is_positive) if value == 'label' else 0.5}\n")


def usual_read(root: Path) -> pd.DataFrame:
    long = pd.read_csv(root / paths.TRAIN_CSV).drop_duplicates()
    parts = long.ID.str.rsplit("_", n=1, expand=True)
    return long.assign(slice_id=parts[0], label=parts[1]).pivot(index="slice_id", columns="label", values="Label")


def our_read(root: Path) -> pd.DataFrame:
    return tables.read_labels(paths.Data(root))


def predictions(root: Path) -> tuple[np.ndarray, np.ndarray]:
    slice_ids = tables.read_long(paths.Data(root), paths.SAMPLE_CSV)[0]
    return slice_ids, np.random.default_rng(0).random((len(slice_ids), len(LABELS)), np.float32)


def usual_write(root: Path, slice_ids: np.ndarray, probability: np.ndarray) -> None:
    wide = pd.DataFrame(probability, columns=list(LABELS)).assign(slice_id=slice_ids)
    long = wide.melt("slice_id", var_name="label", value_name="Label")
    long["ID"] = long.slice_id + "_" + long.label
    sample = pd.read_csv(root / paths.SAMPLE_CSV)
    sample[["ID"]].merge(long[["ID", "Label"]], on="ID", how="left").to_csv(root / "usual.csv", index=False)


def our_write(root: Path, slice_ids: np.ndarray, probability: np.ndarray) -> None:
    tables.write_submission(root / "ours.csv", paths.Data(root), slice_ids, probability)


def usual_verify(root: Path) -> None:
    written, sample = pd.read_csv(root / "usual.csv"), pd.read_csv(root / paths.SAMPLE_CSV)
    assert written.ID.is_unique and set(written.ID) == set(sample.ID)
    assert written.Label.between(0, 1).all()


def our_verify(root: Path) -> None:
    slice_ids, slice_index, label_index, values = tables.read_long(paths.Data(root), "ours.csv")
    sample_ids, sample_slice, sample_label, _ = tables.read_long(paths.Data(root), paths.SAMPLE_CSV)
    assert all(map(np.array_equal, (slice_ids, slice_index, label_index), (sample_ids, sample_slice, sample_label)))
    wide = labels.to_wide(slice_index, label_index, values, slice_ids)
    assert ((wide >= 0) & (wide <= 1)).all()


def _timed(function, prepare, root, pipe) -> None:
    arguments = prepare(root) if prepare else ()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, core = time.perf_counter(), time.process_time()
    function(root, *arguments)
    seconds, core = time.perf_counter() - began, time.process_time() - core
    pipe.send((seconds, core, base / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def measure(function, prepare, root: Path) -> tuple[float, float, float, float]:
    """Return the seconds of `function`, those of all cores, and the peak memory before and after it (GB)."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_timed, args=(function, prepare, root, send))
    process.start()
    process.join()
    return receive.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shrink", type=int, default=1, help="divide the number of slices by this")
    shrink = parser.parse_args().shrink
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_long(root / paths.TRAIN_CSV, N_TRAIN // shrink, 0, "label")
        write_long(root / paths.SAMPLE_CSV, N_TEST // shrink, 1, "sample")
        for what, prepare, mine, usual in (
            ("read labels", None, our_read, usual_read),
            ("write submission", predictions, our_write, usual_write),
            ("verify submission", None, our_verify, usual_verify),
        ):
            ours, theirs = measure(mine, prepare, root), measure(usual, prepare, root)
            for who, (seconds, core, before, peak) in (("ours", ours), ("pandas", theirs)):
                print(f"{what:18} {who:6} {seconds:6.2f} s ({core:.2f} s of cores), {before:.2f} to {peak:.2f} GB")
            print(f"{what:18} pandas takes {theirs[0] / ours[0]:.1f} x as long")


if __name__ == "__main__":
    main()
