"""Time the loader against what others would write, on real slices, one core: from a 512 px cache to 448 px batches.

Example: python tests/benchmarks/bench_loader.py --data-dir rsna_sample --work-dir /tmp/bench

Every loader reads the same PNGs (ours, filter 0, which all of them read fast), turns, scales, shifts, flips and crops
them to 448 px, and collates batches of 32. All are timed in turn, round by round; the medians of one run are compared.
"""

import argparse
import os
import statistics
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

from ich_kaggle import augment, cache, paths, png, tables, tasks

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    folder = cache.ensure(options.data_dir, options.work_dir, CACHE, 1)
    table = tables.read_slices(options.work_dir).iloc[: options.slices]
    files = [paths.cached(folder, slice_id) for slice_id in table.slice_id]

    def other(make, workers=0):
        return DataLoader(Files(files, make), BATCH, num_workers=workers)

    runs = {
        "ISA-L inflate alone": lambda: [inflate(path) for path in files],
        "ours": partial(drain, ours(table, folder, 0)),
        "OpenCV + albumentations": partial(drain, other(with_albumentations())),
        "PIL + timm": partial(drain, other(with_timm())),
        "torchvision read_image + v2": partial(drain, other(with_torchvision())),
    }
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:28} {1000 * value / len(files):6.2f} ms a slice, {value / median['ours']:5.2f} of ours")
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
