"""Time the loader against what others would write, on real slices, one core: from a 512 px cache to 448 px batches.

Example: python tests/benchmarks/bench_loader.py --data-dir rsna_sample --work-dir /tmp/bench

Every loader reads the same PNGs (ours, filter 0, which all of them read fast), turns, scales, shifts, flips and crops
them to 448 px, and collates batches of 32. Each runs in a process of its own, as its users have it, in turn, round by
round; the medians of one run are compared.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import albumentations
import cv2
import timm.data
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import read_image
from torchvision.transforms import v2

from ich_kaggle.common import paths, tables
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache, png
from ich_kaggle.learning import augment, tasks

SIZE, CACHE, BATCH = 448, 512, 32


class Files(Dataset):
    """Files, each read and changed by `make`."""

    def __init__(self, files: list[Path], make):
        self.files, self.make = files, make

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int):
        return self.make(self.files[i])


def with_albumentations():
    change = albumentations.Compose(
        [
            albumentations.RandomResizedCrop((SIZE, SIZE), scale=(0.7, 1.0), ratio=(1, 1)),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(rotate=(-30, 30), scale=(0.9, 1.1), translate_percent=(-0.05, 0.05), p=1),
            albumentations.RandomBrightnessContrast(0.1, 0.1, p=1),
            albumentations.Normalize(),
            albumentations.ToTensorV2(),
        ]
    )
    return lambda path: change(image=cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))["image"]


def with_timm():
    change = timm.data.create_transform(SIZE, is_training=True, auto_augment=None, color_jitter=0.1, scale=(0.7, 1.0))
    return lambda path: change(Image.open(path).convert("RGB"))


def with_torchvision():
    change = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(30, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomResizedCrop(SIZE, scale=(0.7, 1.0), ratio=(1, 1), antialias=True),
            v2.ColorJitter(0.1, 0.1),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.45] * 3, [0.22] * 3),
        ]
    )
    return lambda path: change(read_image(str(path)))


def inflate(path: Path) -> int:
    content = path.read_bytes()
    length = int.from_bytes(content[png.START : png.START + 4], "big")
    return len(png.zlib.decompress(memoryview(content)[png.START + 8 : png.START + 8 + length], bufsize=CACHE**2 * 4))


def ours(table, folder: Path, workers: int):
    config = tasks.slice_config("resnet50", image_size=SIZE, cache_size=CACHE)
    return tasks.slice_loader(
        table, folder, config, batch_size=BATCH, workers=workers, move=augment.Augment(random_crop=0.7), seed=0
    )


def seconds(run, clock=time.process_time) -> float:
    """Return what `run` takes: CPU time by default, which a busy machine spoils less than time on the wall."""
    began = clock()
    run()
    return clock() - began


def drain(loader) -> None:
    for _ in loader:
        pass


def runs(table, folder: Path) -> dict:
    files = [paths.cached(folder, slice_id) for slice_id in table.slice_id]

    def other(make):
        return lambda: drain(DataLoader(Files(files, make()), BATCH))

    return {
        "ISA-L inflate alone": lambda: [inflate(path) for path in files],
        "ours": lambda: drain(ours(table, folder, 0)),
        "OpenCV + albumentations": other(with_albumentations),
        "PIL + timm": other(with_timm),
        "torchvision read_image + v2": other(with_torchvision),
    }


def once(run, n_slices: int) -> float:
    """Return the CPU time that `run` takes a slice, ms: the median of three passes after a first one."""
    run()
    return 1000 * statistics.median(seconds(run) for _ in range(3)) / n_slices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # what a process of its own runs
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    folder = picture_cache.ensure(Project(options.data_dir, options.work_dir, 1), CACHE)
    table = tables.read_slices(options.work_dir).iloc[: options.slices]
    if options.only:
        print(once(runs(table, folder)[options.only], len(table)))
        return
    times = {name: [] for name in runs(table, folder)}
    for _ in range(options.rounds):
        for name, found in times.items():
            command = [sys.executable, *sys.argv, "--only", name]
            found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:28} {value:6.2f} ms a slice, {value / median['ours']:5.2f} of ours")
    scale(table, folder, options.rounds)


def scale(table, folder: Path, rounds: int) -> None:
    """Print how many more slices a second two workers load than one, over four passes, their start left out."""
    rates = {}
    for workers in (1, 2):
        loader = ours(table, folder, workers)
        drain(loader)
        times = [seconds(partial(drain, loader), time.perf_counter) for _ in range(rounds)]
        rates[workers] = len(table) / statistics.median(times)
    print(f"one worker {rates[1]:.0f}, two {rates[2]:.0f} slices a second: {rates[2] / rates[1]:.2f} times")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
