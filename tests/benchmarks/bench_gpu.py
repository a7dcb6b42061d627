"""Time training and prediction on one GPU against bare timm loops, and print the ratios as a table.

Example: python tests/benchmarks/bench_gpu.py                       # about five minutes on an H100
         python tests/benchmarks/bench_gpu.py --recipes             # every recipe: images per second, memory
         python tests/benchmarks/bench_gpu.py --device cpu          # a small network, by CPU time

The bare loop has the same network, batch, mixed precision and channels_last, one batch that stays on the device, AdamW,
and nothing else. Ours adds normalisation of uint8, average (EMA), clipping and the check of the gradient. The loader
reads a cache of 512 px, made of a phantom, with --workers processes. All that is compared runs in turn, ROUNDS times;
medians are shown.
"""

import argparse
import logging
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pandas as pd
import timm
import torch

from ich_kaggle import phantom, train
from ich_kaggle.common import recipes
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache, slice_table
from ich_kaggle.learning import (
    augment,
    datasets,
    devices,
    fit,
    fold_training,
    inference,
    slice_model,
    tasks,
    training_options,
)

NETWORKS = {"resnet50": (224, 128), "seresnext50_32x4d": (448, 64), "tf_efficientnetv2_s": (384, 64)}  # px, batch
SMALL = {"resnet18": (96, 32)}  # on a CPU
COMPILED = "resnet50"  # compiling takes up to a minute a network
ROUNDS, CACHE = 3, 512
N_SLICES, N_STUDIES = 752_803, 21_744  # of stage 2's training data


class Bench:
    """One network: what is timed are functions that take a step, of `batch` images each."""

    def __init__(self, arch: str, px: int, batch: int, device: torch.device, seconds: float):
        self.arch, self.px, self.batch, self.device, self.seconds = arch, px, batch, device, seconds
        self.images = torch.randint(0, 256, (batch, px, px, 3), dtype=torch.uint8, device=device)
        self.target = torch.randint(0, 2, (batch, 6), device=device).float()

    def bare(self, compiled: bool = False):
        model = timm.create_model(self.arch, num_classes=6).to(self.device, memory_format=torch.channels_last)
        network = torch.compile(model, dynamic=False) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        images = self.images.permute(0, 3, 1, 2).float() / 255

        def step():
            with devices.autocast(self.device):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(network(images), self.target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def model(self) -> slice_model.SliceModel:
        return slice_model.SliceModel(slice_model.SliceConfig(self.arch, self.px, CACHE))

    def ours(self, batches=None, compiled: bool = False):
        run = fit.Fit(self.model(), fit.FitSettings(epochs=9999, compile=compiled), 10_000, self.device)
        run.start_epoch()
        batches = cycle([(self.images, self.target, self.target)]) if batches is None else batches

        def step():
            fit.careful_step(run, tasks.slice_loss, next(batches))
            if run.step % 100 == 0:  # about as often as a line of the log
                run.read()

        return step

    def bare_prediction(self):
        model = timm.create_model(self.arch, num_classes=6).to(self.device, memory_format=torch.channels_last).eval()
        images = self.images.permute(0, 3, 1, 2).float() / 255

        @torch.inference_mode()
        def step():
            with devices.autocast(self.device):
                model(images)

        return step

    def our_prediction(self):
        host = self.images.cpu()
        ready = Ready(host.pin_memory() if self.device.type == "cuda" else host)
        found = inference.outputs(self.model().to(self.device), ready, self.device)
        return lambda: next(found)

    def compare(self, **steps) -> dict[str, float]:
        """Return the images per second of each of `steps`, run in turn."""
        rates = {name: [] for name in steps}
        for step in steps.values():
            self.rate(step, 0.3 * self.seconds)
        for _ in range(ROUNDS):
            for name, step in steps.items():
                rates[name].append(self.rate(step, self.seconds))
        return {name: statistics.median(found) for name, found in rates.items()}

    def rate(self, step, seconds: float) -> float:
        is_gpu = self.device.type == "cuda"
        clock, wait = (time.perf_counter, torch.cuda.synchronize) if is_gpu else (time.process_time, lambda: None)
        wait()
        began, n = clock(), 0
        while n < 2 or clock() - began < seconds:
            step()
            n += 1
            if is_gpu and n % 20 == 0:
                wait()  # else the host runs ahead, and the clock with it
        wait()
        return n * self.batch / (clock() - began)


class Ready:
    """A loader whose one batch is ready, again and again."""

    def __init__(self, images: torch.Tensor):
        self.images, self.dataset = images, range(10**9)

    def __iter__(self):
        return cycle([(self.images,)])


def loader_of(folder: Path, table: pd.DataFrame, bench: Bench, workers: int):
    """Yield the batches of our loader without end."""
    config = bench.model().config
    move = augment.Augment()
    many = pd.concat([table] * (200 * bench.batch // len(table) + 1), ignore_index=True)
    loader = tasks.slice_loader(many, folder, config, batch_size=bench.batch, workers=workers, move=move, seed=0)
    while True:
        yield from datasets.batches(loader)


def made_cache(folder: Path, is_small: bool, workers: int) -> tuple[Path, pd.DataFrame]:
    size = ["--patients", "4", "--slices", "8", "--size", "256"] if is_small else ["--patients", "24", "--slices", "24"]
    phantom.main(["--out", str(folder / "data"), *size, "--defects", "0", "--workers", str(max(1, workers))])
    project = Project(folder / "data", folder / "work", workers)
    table = slice_table.ensure(project)
    return picture_cache.ensure(project, CACHE), table[table.split == "train"]


def row(bench: Bench, folder: Path, table: pd.DataFrame, workers: int) -> str:
    is_gpu = bench.device.type == "cuda"
    loaded = loader_of(folder, table, bench, workers)
    rates = bench.compare(bare=bench.bare(), ours=bench.ours(), loader=bench.ours(loaded))
    asked = bench.compare(bare=bench.bare_prediction(), ours=bench.our_prediction())
    alone = bench.compare(alone=lambda: next(loaded))["alone"]
    memory = "not measured"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
        bench.rate(bench.ours(), 1.0)
        memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    cells = [
        f"`{bench.arch}`, {bench.px} px, {bench.batch}",
        f"{rates['bare']:.1f}",
        f"{rates['ours'] / rates['bare']:.3f}",
        f"{rates['loader'] / rates['bare']:.3f}",
        f"{1 - rates['loader'] / rates['ours']:.1%}" if is_gpu else "not measured",
        f"{asked['ours'] / asked['bare']:.3f}",
        f"{alone / rates['ours']:.2f}",
        memory,
    ]
    return f"| {' | '.join(cells)} |"


def recipe_row(name: str, device: torch.device, seconds: float) -> str:
    """Return the row of a recipe: steps of random images that lie on the device, and the time of one fold of five."""
    settings = vars(recipes.flags(train.build_parser(), recipes.path_of(name))[1])
    for other in (Project, fold_training.Session):
        training_options.take(other, settings)
    names = [flag[2:].replace("-", "_") for group in training_options.FLAGS.values() for flag in group]
    flags = {name: settings[name] for name in names if name in settings}
    plan = training_options.plan_of(flags.pop("arch"), flags)
    config, task, n = plan.config, plan.task, plan.task.batch_size
    per_epoch = 0.8 * (task.per_study * N_STUDIES if task.sampler == "study" else N_SLICES)
    shape = slice_model.blank(config, n, config.image_size).shape
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    target = torch.randint(0, 2, (n, *([config.n_targets] if config.n_targets > 1 else []), 6), device=device).float()
    whole = replace(plan.settings, freeze=0)
    run = fit.Fit(slice_model.SliceModel(config), whole, 10_000, device)
    run.start_epoch()
    bench = Bench(config.arch, config.image_size, n, device, seconds)
    rate = bench.compare(step=lambda: fit.careful_step(run, plan.loss, (images, target, target)))["step"]
    memory, hours = torch.cuda.max_memory_allocated() / 1e9, plan.settings.epochs * per_epoch / rate / 3600
    return f"| `{name}` | {config.image_size} | {n} | {rate:.0f} | {memory:.1f} GB | {hours:.2f} h |"


HEAD = ("network, px, batch", "bare, img/s", "step", "step with loader", "card waits", "prediction", "loader", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--recipes", action="store_true", help="time steps of every recipe instead")
    options = parser.parse_args()
    device = devices.together(devices.pick_device(options.device))[0]
    is_small, workers = device.type != "cuda", options.workers if device.type == "cuda" else 0
    name = "one thread of a CPU" if is_small else torch.cuda.get_device_name()
    if is_small:
        torch.set_num_threads(1)
    if options.recipes and is_small:
        parser.error("--recipes takes a GPU")
    if options.recipes:
        print(f"torch {torch.__version__}, {name}\n\n| recipe | px | batch | img/s | memory | fold |\n|{'---|' * 6}")
        for path in recipes.files():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            print(recipe_row(path.stem, device, options.seconds), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        cache, table = made_cache(Path(folder), is_small, options.workers)
        logging.disable(logging.INFO)  # the progress of predictions without end
        print(f"torch {torch.__version__}, {name}, {workers} workers\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
        for arch, (px, batch) in (SMALL if is_small else NETWORKS).items():
            print(row(Bench(arch, px, batch, device, options.seconds), cache, table, workers), flush=True)
            if arch == COMPILED:
                bench = Bench(arch, px, batch, device, options.seconds)
                rates = bench.compare(bare=bench.bare(compiled=True), ours=bench.ours(compiled=True))
                compiled = f"compiled: bare {rates['bare']:.1f} img/s, ours {rates['ours'] / rates['bare']:.3f} of it"
        print("" if is_small else f"\n`{COMPILED}` {compiled}")


if __name__ == "__main__":
    main()
