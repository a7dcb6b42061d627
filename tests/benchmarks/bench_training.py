"""Time a training step, a prediction and the start against bare loops and fastai, in one process on the CPU.

Example: python tests/benchmarks/bench_training.py
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, TensorDataset

from ich_kaggle.common import tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import picture_cache
from ich_kaggle.learning import datasets, devices, fit, inference, slice_model, tasks
from ich_kaggle.scoring import patient_folds

SIZE, BATCH, STEPS = 224, 16, 4


class Ready(TensorDataset):
    """Batches already in memory, asked for as (epoch, row)."""

    def __getitem__(self, item):
        return super().__getitem__(item[1] if isinstance(item, tuple) else item)


def slices(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8))
    return images, torch.from_numpy(rng.integers(0, 2, (n, 6)).astype(np.float32)), torch.arange(n)


def model_of(arch: str) -> slice_model.SliceModel:
    torch.manual_seed(0)
    return slice_model.SliceModel(slice_model.SliceConfig(arch, SIZE, SIZE))


def bare_step(arch: str):
    model = model_of(arch).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(batch):
        loss = fit.bce(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(arch: str):
    run = fit.Fit(model_of(arch), fit.FitSettings(epochs=1000), 100, torch.device("cpu"))
    run.start_epoch()
    return lambda batch: fit.careful_step(run, tasks.slice_loss, batch)


def fastai_step(arch: str):
    """Return a function that trains an epoch with fastai's Learner, without the validation it would add."""
    import fastai.callback.progress  # noqa: F401, for no_bar
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    images, target, _ = slices(BATCH * STEPS)
    loader = DataLoader(TensorDataset(images, target), BATCH)
    learner = Learner(DataLoaders(loader, []), model_of(arch), loss_func=fit.bce)

    def epoch():
        with learner.no_bar(), learner.no_logging():
            learner.fit(1, 1e-4)

    return epoch


def seconds(run, clock=time.perf_counter) -> float:
    began = clock()
    run()
    return clock() - began


def compare(name: str, runs: dict, rounds: int, n: int) -> None:
    """Print the medians of `runs`, timed in turn by the CPU's clock, as images a second and as a share of the first."""
    times = {key: [] for key in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(seconds(run, clock=time.process_time))
    rate = {key: n / statistics.median(values) for key, values in times.items()}
    first = next(iter(rate.values()))
    for key, value in rate.items():
        print(f"{name:12} {key:28} {value:8.1f} img/s {value / first:6.3f}")


def training_rates(arch: str, rounds: int) -> None:
    images, target, rows = slices(BATCH * STEPS)
    batches = list(zip(images.split(BATCH), target.split(BATCH), rows.split(BATCH), strict=True))
    bare, ours, fastai = bare_step(arch), our_step(arch), fastai_step(arch)
    runs = {
        "bare loop": lambda: [bare(batch) for batch in batches],
        "ours (with EMA and clipping)": lambda: [ours(batch) for batch in batches],
        "fastai": fastai,
    }
    compare("training", runs, rounds, len(images))


def alone(way: str, arch: str, rounds: int) -> None:
    """Print the images a second of `way` in a process of its own, set up as its users find it."""
    images, target, rows = slices(BATCH * STEPS)
    if way == "fastai":
        run = fastai_step(arch)
    else:
        devices.pick_device("cpu")  # which lets the process keep its memory
        step = our_step(arch)
        batches = list(zip(images.split(BATCH), target.split(BATCH), rows.split(BATCH), strict=True))

        def run():
            return [step(batch) for batch in batches]

    run()
    took = [seconds(run, clock=time.process_time) for _ in range(rounds)]
    print(len(images) / statistics.median(took))


def each_alone(arch: str, rounds: int) -> None:
    command = [sys.executable, __file__, "--arch", arch, "--rounds", str(rounds), "--alone"]
    rates = {"fastai": [], "ours": []}
    for _ in range(3):
        for way, found in rates.items():
            found.append(float(subprocess.run([*command, way], check=True, capture_output=True, text=True).stdout))
    fastai, ours = (statistics.median(found) for found in rates.values())
    print(f"training     each in a process of its own: fastai {fastai:.1f}, ours {ours:.1f} img/s: {ours / fastai:.3f}")


def prediction_rates(arch: str, rounds: int) -> None:
    images, target, rows = slices(BATCH * STEPS)
    model, device = model_of(arch).eval(), torch.device("cpu")
    loader = datasets.loader(Ready(images, target, rows), BATCH, 0)
    plain = DataLoader(TensorDataset(images), BATCH)

    def bare():
        with torch.inference_mode():
            for (batch,) in plain:
                model(batch)

    runs = {"bare inference_mode loop": bare, "ours": lambda: inference.predict(model, loader, device)}
    compare("prediction", runs, rounds, len(images))


BIG = """
import sys, time
import torch, timm, pandas, cv2, scipy.special, sklearn
from pathlib import Path
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before, began, worked = peak(), time.perf_counter(), time.process_time()
from ich_kaggle import cache, train
from ich_kaggle.common.project import Project
class Started(BaseException): pass
def stop(*_, **__): raise Started
picture_cache.ensure = lambda *_, **__: Path(sys.argv[1]) / "cache" / "512"
train.fit_fold = stop
try:
    train.train(data_dir=None, work_dir=Path(sys.argv[1]), arch="test_resnet", weights="none", fold=0)
except Started:
    pass
took, cpu = time.perf_counter() - began, time.process_time() - worked
print(f"start        874,035 slices: {took:.2f} s ({cpu:.2f} s of CPU), {(peak() - before) / 1e6:.2f} GB over torch")
"""


def big_table(n: int = 874_035, n_test: int = 121_232) -> pd.DataFrame:
    """Return a slice table of the competition's size, 35 slices a study."""
    rng = np.random.default_rng(0)
    study = np.arange(n) // 35
    table = pd.DataFrame({"slice_id": [f"ID_{i:09x}" for i in range(n)]})
    for name in ("patient_id", "study_id", "series_id"):
        table[name] = pd.Series(study).map("ID_{:08x}".format)
    table["position"] = 5.0 * (np.arange(n) % 35)
    table["split"] = np.where(np.arange(n) < n - n_test, "train", "test")
    table["path"] = "stage_2_" + table.split + "/" + table.slice_id + ".dcm"
    table[list(LABELS)] = (rng.random((n, 6)) < 0.05).astype(np.float32)
    table.loc[table.split == "test", list(LABELS)] = np.nan
    return table[tables.SLICE_COLUMNS].astype(dict.fromkeys(LABELS, np.float32))


def start_up() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work, table = Path(folder), big_table()
        tables.write_slices(work, table, {})
        patients = table.patient_id[table.split == "train"].unique()
        tables.write_folds(work, pd.DataFrame({"patient_id": patients, "fold": np.arange(len(patients)) % 5}), {})
        subprocess.run([sys.executable, "-c", BIG, folder], check=True)


def first_batch(data_dir: Path, work_dir: Path) -> None:
    """Print the time to the first batch of our loader and of a bare DataLoader on the same files, two workers each."""
    from bench_loader import Files

    from ich_kaggle.common import paths
    from ich_kaggle.common.project import Project
    from ich_kaggle.dicom import png

    folder = picture_cache.ensure(Project(data_dir, work_dir, 1), 512)
    table = tables.read_slices(work_dir)
    files = [paths.cached(folder, slice_id) for slice_id in table.slice_id]
    config = tasks.slice_config("resnet50", image_size=512, cache_size=512)
    patient_folds.ensure(Project(data_dir, work_dir, 1))
    for name, loader in (
        ("bare", DataLoader(Files(files, lambda path: torch.from_numpy(png.read(path).copy())), 32, num_workers=2)),
        ("ours", tasks.slice_loader(table, folder, config, batch_size=32, workers=2)),
    ):
        print(f"first batch  {name}: {seconds(lambda loader=loader: next(iter(loader))):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, help="real slices, for the first batch")
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--alone", choices=("ours", "fastai"), help="only this one, for the others' comparison")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.alone:
        alone(options.alone, options.arch, options.rounds)
        return
    training_rates(options.arch, options.rounds)
    each_alone(options.arch, options.rounds)
    prediction_rates(options.arch, options.rounds)
    if options.data_dir:
        first_batch(options.data_dir, options.work_dir)
    start_up()


if __name__ == "__main__":
    main()
