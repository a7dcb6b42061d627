"""Predicting a pile of DICOM with a bundle, beside the ordinary pipeline on the same slices: time and peak memory.

    python tests/benchmarks/bench_dicom.py --slices 1000 --arch tf_efficientnet_lite0

ours: `scan`, from the files to the tables. peer: `infer`, which scans, caches and predicts with the same
models (slices -> cache -> predict -> blend). Both on the same slices of 512 px, 40 a study, by slice models alone.
study: `scan` on all slices as one study of 150 mm, by a second level too, not spaced as in training.
Each is run in a process of its own, which loads its data itself, so that its peak memory is its own.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pydicom

from ich_kaggle import ensemble, evaluate, folds, kernel, phantom, predict, sequence, train
from ich_kaggle.common import labels, paths

PER_STUDY = 40  # slices
LONG = 150.0  # mm of the one study
STEP = 5.0  # mm between the slices of the others


def models(folder: Path, arch: str, image_size: int) -> None:
    """Fit a small ensemble in two folds and pack it: slices.zip, levels.zip, and a folder for `infer`."""
    data, work = folder / "small", folder / "work"
    small = ["--patients", "8", "--slices", "30", "--size", "64", "--test-fraction", "0.25", "--defects", "0"]
    phantom.main(["--out", str(data), *small])
    common = ["--work-dir", str(work), "--workers", "1"]
    folds.main(["--data-dir", str(data), *common, "--folds", "2"])
    size = ["--image-size", str(image_size), "--cache-size", "512", "--epochs", "1", "--weights", "none"]
    train.main([*common, "--run", "one", "--arch", arch, *size])
    predict.main([*common, "--run", "one", "--all-slices"])
    sequence.main([*common, "--on", "one", "--run", "two", "--model", "gru", "--features", "fold", "--epochs", "1"])
    for name, runs in (("slices", ["one"]), ("levels", ["one", "two"])):
        ensemble.main([*common, "--name", name, "--runs", *runs, "--method", "equal"])
        evaluate.main([*common, "--ensemble", name, "--draws", "10"])
        ensemble.main(["--work-dir", str(work), "--name", name, "--export", str(folder / f"{name}.zip")])
    kernel.pack(folder / "packed", *kernel.gather(work, "slices"))


def slices(folder: Path, n: int) -> None:
    """Write `n` slices as test slices of a competition, and once more as one study, out of a phantom of 512 px."""
    phantom.main(
        [
            "--out",
            str(folder / "seed"),
            "--patients",
            "2",
            "--slices",
            str(PER_STUDY),
            "--size",
            "512",
            "--defects",
            "0",
        ]
    )
    seeds = [pydicom.dcmread(path) for path in sorted((folder / "seed" / "stage_2_train").glob("*.dcm"))]
    for place in ("pile/stage_2_test", "study"):
        (folder / place).mkdir(parents=True)
    for number in range(n):
        dataset, study = seeds[number % len(seeds)], number // PER_STUDY
        dataset.SOPInstanceUID = slice_id = f"ID_{number:09x}"
        dataset.PatientID = dataset.StudyInstanceUID = dataset.SeriesInstanceUID = f"ID_{study:08x}"
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, number % PER_STUDY * STEP]
        dataset.save_as(folder / "pile" / "stage_2_test" / f"{slice_id}.dcm")
        dataset.PatientID = dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "ID_ffffffff"
        dataset.ImagePositionPatient = [0, 0, round(number * LONG / n, 3)]
        dataset.save_as(folder / "study" / slice_id)
    rows = [f"ID_{number:09x}_{label},0.5\n" for number in range(n) for label in labels.LABELS]
    (folder / "pile" / paths.SAMPLE_CSV).write_text("ID,Label\n" + "".join(rows))


def measure(*command: str) -> tuple[float, float, float]:
    """Return the seconds that a command takes, those of CPU in them, and its peak memory, GB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


def compare(folder: Path, n: int) -> None:
    same, pile = ["--workers", "0", "--device", "cpu"], str(folder / "pile" / "stage_2_test")
    ours = ["ich_kaggle.scan", *same, "--models", str(folder / "slices.zip"), "--out", str(folder / "a")]
    one = ["ich_kaggle.scan", *same, "--models", str(folder / "levels.zip"), "--out", str(folder / "b")]
    where = ["--work-dir", str(folder / "infer"), "--data-dir", str(folder / "pile")]
    written = ["--models", str(folder / "packed"), "--out", str(folder / "csv" / "submission.csv")]
    ways = {
        "ours": [*ours, "--dicom", pile],
        "peer": ["ich_kaggle.infer", *same, "--workers", "1", *where, *written],
        "study": [*one, "--dicom", str(folder / "study")],
    }
    took = {}
    for name, command in ways.items():
        wall, took[name], peak = measure(*command)
        rate = n / took[name]
        print(f"{name:6} {rate:5.1f} slices/s of CPU, {took[name]:.0f} s of it in {wall:.0f} s, {peak:.2f} GB at most")
    print(f"ours takes {took['ours'] / took['peer']:.2f} of the CPU time of the peer")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=224)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        with contextlib.redirect_stdout(io.StringIO()):
            models(Path(name), options.arch, options.image_size)
            slices(Path(name), options.slices)
        compare(Path(name), options.slices)


if __name__ == "__main__":
    main()
