"""Fit the slice model on every fold but one, and score it on that one.

Reads:   work/slices.parquet, work/folds.csv, work/cache/  (each made first where it is missing),
         work/weights/<arch>.safetensors  (if it is there, instead of a download)
Writes:  work/runs/<run>/fold<k>/  options.json, log.csv, model.pt  (state.pt until it is finished)
Example: python -m ich_kaggle.train --recipe cpu --fold 0
         python -m ich_kaggle.train --arch resnet50 --context slices --dry-run
         torchrun --nproc_per_node 2 -m -- ich_kaggle.train --recipe cpu --fold 0
"""

import argparse
import contextlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ich_kaggle import (
    augment,
    cache,
    cli,
    devices,
    disk,
    distributed,
    flags,
    folds,
    gauges,
    metric,
    models,
    paths,
    preflight,
    tables,
    tasks,
    training,
)

log = logging.getLogger(__name__)


def chosen_folds(fold: np.ndarray, wanted: int | str) -> list[int]:
    """Return the numbers of the `wanted` folds. Raises ValueError for a fold that does not exist."""
    there = sorted(set(fold[fold >= 0].tolist()))
    if wanted == "all":
        return there
    if wanted not in there:
        raise ValueError(f"no fold {wanted}: work/folds.csv has {', '.join(map(str, there))}")
    return [wanted]


def fit_fold(
    model: models.SliceModel,
    loaders: tuple,
    loss: Callable,
    seen: pd.DataFrame,
    held_out: pd.DataFrame,
    folder: Path,
    *,
    recipe: training.Recipe,
    device,
    every: float = 600.0,
    tensorboard: bool = False,
) -> None:
    """Fit `model` on the slices `seen` and write its log, scored on those `held_out`, and itself into `folder`.

    `loaders` give the two, a state is written every `every` seconds.
    """
    loader, valid_loader = loaders

    def validate(averaged) -> dict:
        logits = distributed.gather(training.predict(averaged, valid_loader, device, what="validate"))
        return metric.validation(tables.targets(held_out), logits)

    checkpoint = folder / "state.pt"
    is_told = checkpoint.exists()  # the last row of the log, when it comes
    with distributed.first() as is_first:
        tell = gauges.board(folder / "tensorboard") if tensorboard and is_first else None
    for rows in training.fit(
        model,
        loader,
        loss,
        recipe=recipe,
        validate=validate,
        device=device,
        checkpoint=checkpoint,
        every=every,
        names=lambda batch: seen.slice_id.iloc[batch[-1].tolist()].tolist(),
    ):
        if is_first:
            write_log(folder / "log.csv", rows)
        if tell and rows and not is_told:
            tell(rows[-1])
        is_told = False
    with distributed.first() as is_first:
        if is_first:
            models.save(folder / "model.pt", models.for_prediction(model))
            checkpoint.unlink(missing_ok=True)
    cli.say(f"{folder}: log loss {rows[-1]['valid_loss']:.4f} on {held_out.patient_id.nunique()} held-out patients")


def write_log(path: Path, rows: list[dict]) -> None:
    if not rows:
        return
    with disk.writing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    last = rows[-1]
    log.info("epoch %d: train %.4f, valid %.4f", last["epoch"] + 1, last["train_loss"], last["valid_loss"])


def start_fold(folder: Path, options: dict, *, overwrite: bool) -> bool:
    """Return whether the fold in `folder` is still to be fitted; write its `options` if it is new.

    Raises ValueError naming both settings if it was begun with other ones.
    """
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    path = folder / "options.json"
    if path.exists() and any(file.name not in (path.name, "tensorboard") for file in folder.iterdir()):
        remedy = "give another --run, or --overwrite"
        disk.same_settings(path, disk.read_json(path)["options"], options, remedy)
    else:  # nothing was made yet
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        versions = {name: version(name) for name in ("ich_kaggle", "torch", "timm", "numpy")}
        versions["opencv"] = cv2.__version__  # its package has several names
        disk.write_json(path, {"options": options, "versions": versions, "commit": paths.git_commit()})
    is_done, state = (folder / "model.pt").exists(), folder / "state.pt"
    if is_done and state.exists():  # asked first: where it is read-only a missing file can't be unlinked
        state.unlink()
    return not is_done


def rehearse(model: models.SliceModel, loaders: tuple, loss: Callable, *, recipe: training.Recipe, device) -> str:
    """Train and validate for up to a minute, keep nothing, and return what the run would take."""
    loader, valid_loader = loaders
    recipe = replace(recipe, freeze=0, accumulate=1)  # the costliest step: all of the network learns, in each batch
    run = training.Fit(model, recipe, len(loader), device)
    run.start_epoch()
    n_queued = loader.num_workers * (loader.prefetch_factor or 0)
    cli.say(f"dry run: timing training, then validation, for up to {gauges.LONGEST:.0f} s each")
    work = partial(training.careful_step, run, loss)
    step = gauges.seconds_per_batch(training.batches(loader), work, n_queued)
    valid = gauges.seconds_per_batch(training.outputs(run.averaged(), valid_loader, device), lambda _: None, n_queued)
    epoch, size = step * len(loader) + valid * len(valid_loader), len(loader.batch_sampler.rows()) / len(loader)
    memory, checkpoint = gauges.peak_memory(device), gauges.size_on_disk(run.write)
    return (
        f"dry run: {step:.2f} s a step of {size:.0f} slices, {size / step:.0f} img/s; {gauges.duration(epoch)} an "
        f"epoch, {gauges.duration(epoch * recipe.epochs)} a fold of {recipe.epochs} epochs; "
        f"{memory / 1e9:.1f} GB of memory, {checkpoint / 1e6:.0f} MB a checkpoint"
    )


def _ready(data_dir: Path | None, work_dir: Path, config: models.SliceConfig, workers: int) -> tuple:
    """Return the slice table, the fold of every slice and the folder of their cache, made where they are missing."""
    workers = max(1, workers)  # 0: load in this process
    with distributed.first():
        fold = folds.ensure(data_dir, work_dir, workers)
        folder = cache.ensure(data_dir, work_dir, config.cache_size, workers, config.crop)
    return tables.read_slices(work_dir), fold, folder


def train(
    *,
    data_dir: Path | None,
    work_dir: Path,
    run: str | None = None,
    arch: str | None,
    fold: int | str = "all",
    device: str = "auto",
    workers: int = 1,
    overwrite: bool = False,
    dry_run: bool = False,
    tensorboard: bool = False,
    checkpoint_every: float = 600.0,
    **settings,
) -> None:
    """Fit the chosen folds of a run, those left out that are finished.

    `settings` are fields of training.Recipe, augment.Augment and tasks.Task, and arguments of tasks.slice_config.
    """
    if arch is None:
        raise ValueError("no architecture: give --arch or --recipe")
    models.check_arch(arch)
    if overwrite or not any(paths.run(work_dir, run or arch).glob("fold*/options.json")):
        flags.check(settings)  # else it goes on with what it was begun with
    recipe, move, task = (flags.take(kind, settings) for kind in (training.Recipe, augment.Augment, tasks.Task))
    config = tasks.slice_config(arch, side_weight=task.side_weight, **settings)
    with distributed.processes(device) as name:
        same = dict(recipe=recipe, device=devices.pick_device(name))
        if overwrite or not preflight.is_finished(work_dir, run or arch, fold):
            preflight.check(config, recipe, task, device=same["device"], work_dir=work_dir, tensorboard=tensorboard)
        table, of_slice, cache_dir = _ready(data_dir, work_dir, config, workers)
        options = {**asdict(config), **asdict(recipe), **asdict(move), **asdict(task)}
        options |= {"slices": tables.slices_hash(table), "folds": tables.folds_hash(of_slice)}
        load = partial(tasks.slice_loader, folder=cache_dir, config=config, batch_size=task.batch_size, workers=workers)
        loss = partial(tasks.slice_loss, focal=task.focal, side_weight=task.side_weight)
        for k in (chosen := chosen_folds(of_slice, fold)):
            folder = paths.fold(work_dir, run or arch, k)
            with contextlib.nullcontext() if dry_run else distributed.alone(folder):
                if not dry_run and not _is_open(folder, options, overwrite):
                    continue
                seen, held_out = table[(of_slice >= 0) & (of_slice != k)], table[of_slice == k]
                loaders = tasks.loaders(seen, held_out, load, task, move, recipe.seed)
                model = tasks.new_model(config, task.weights, work_dir, seen, recipe.seed)
                if dry_run:
                    folders = [paths.fold(work_dir, run or arch, k) for k in chosen]
                    n_open = sum(overwrite or not (folder / "model.pt").exists() for folder in folders)
                    cli.say(f"{rehearse(model, loaders, loss, **same)}; folds to fit: {n_open}")
                    return
                rest = dict(every=checkpoint_every, tensorboard=tensorboard)
                fit_fold(model, loaders, loss, seen, held_out, folder, **same, **rest)


def _is_open(folder: Path, options: dict, overwrite: bool) -> bool:
    with distributed.first() as is_first:
        is_open = start_fold(folder, options, overwrite=overwrite and is_first)
    if not is_open:
        cli.say(f"{folder / 'model.pt'}{cli.THERE}")
    return is_open


class _ListRecipes(argparse.Action):
    def __call__(self, parser, *_):
        cli.say(cli.describe_recipes())
        parser.exit()


def build_parser():
    shared = ("--data-dir", "--work-dir", "--run", "--recipe", "--arch", "--fold", "--image-size", "--epochs")
    shared += ("--batch-size", "--lr", "--weights", "--seed", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *shared)
    flags.add(parser)
    add = parser.add_argument
    add("--checkpoint-every", type=cli.within(0), default=600.0, help="seconds")
    add("--tensorboard", action="store_true", help="write the log for TensorBoard too")
    add("--dry-run", action="store_true", help="train for up to a minute, keep nothing, say what the run would take")
    add("--recipes", action=_ListRecipes, nargs=0, dest=argparse.SUPPRESS, help="list the recipes and their sources")
    return parser


def main(argv=None):
    cli.run(train, build_parser(), argv, preflight.recipe_for)


if __name__ == "__main__":
    main()
