"""Fit the slice model on every fold but one, and score it on that one.

Reads:   work/slices.parquet, work/folds.csv, work/cache/  (each made first where it is missing),
         work/weights/<arch>.safetensors  (if it is there, instead of a download)
Writes:  work/runs/<run>/run.json  (the settings that all folds share)
         work/runs/<run>/fold<k>/  log.csv, model.pt  (state.pt until it is finished)
Example: python -m ich_kaggle.train --recipe cpu --fold 0
         python -m ich_kaggle.train --arch resnet50 --context slices --dry-run
         torchrun --nproc_per_node 2 -m -- ich_kaggle.train --recipe cpu --fold 0
"""

import argparse
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from ich_kaggle import cache, folds
from ich_kaggle.common import cli, metric, runs, tables
from ich_kaggle.common.project import Project
from ich_kaggle.learning import (
    augment,
    ddp,
    devices,
    fit,
    preflight,
    pretrained,
    profiling,
    slice_model,
    tasks,
    training_options,
)

log = logging.getLogger(__name__)


def fit_fold(
    model: slice_model.SliceModel,
    loaders: tuple,
    loss: Callable,
    seen: pd.DataFrame,
    held_out: pd.DataFrame,
    folder: Path,
    *,
    recipe: fit.Recipe,
    device,
    begin: Callable[[], None],
    every: float = 600.0,
    tensorboard: bool = False,
) -> None:
    """Fit `model` on the slices `seen` and write its log, scored on those `held_out`, and itself into `folder`.

    `loaders` give the two. A checkpoint is written every `every` seconds; `begin` is called before each.
    """
    loader, valid_loader = loaders

    def validate(averaged) -> dict:
        logits = ddp.gather(fit.predict(averaged, valid_loader, device, what="validate"))
        return metric.validation(tables.targets(held_out), logits)

    checkpoint = folder / "state.pt"
    is_told = checkpoint.exists()  # the last row of the log, when it comes
    with ddp.first() as is_first:
        tell = profiling.board(folder / "tensorboard") if tensorboard and is_first else None
    for rows in fit.fit(
        model,
        loader,
        loss,
        recipe=recipe,
        validate=validate,
        device=device,
        checkpoint=checkpoint,
        begin=begin,
        every=every,
        names=lambda batch: seen.slice_id.iloc[batch[-1].tolist()].tolist(),
    ):
        if is_first:
            fit.write_log(folder / "log.csv", rows)
        if tell and rows and not is_told:
            tell(rows[-1])
        is_told = False
    with ddp.first() as is_first:
        if is_first:
            slice_model.save(folder / "model.pt", slice_model.for_prediction(model))
            checkpoint.unlink(missing_ok=True)
    cli.say(f"{folder}: log loss {rows[-1]['valid_loss']:.4f} on {held_out.patient_id.nunique()} held-out patients")


def rehearse(model: slice_model.SliceModel, loaders: tuple, loss: Callable, *, recipe: fit.Recipe, device) -> str:
    """Train and validate for up to a minute, keep nothing, and return what the run would take."""
    loader, valid_loader = loaders
    recipe = replace(recipe, freeze=0, accumulate=1)  # the costliest step: all of the network learns, in each batch
    run = fit.Fit(model, recipe, len(loader), device)
    run.start_epoch()
    n_queued = loader.num_workers * (loader.prefetch_factor or 0)
    cli.say(f"dry run: timing training, then validation, for up to {profiling.LONGEST:.0f} s each")
    work = partial(fit.careful_step, run, loss)
    step = profiling.seconds_per_batch(fit.batches(loader), work, n_queued)
    valid = profiling.seconds_per_batch(fit.outputs(run.averaged(), valid_loader, device), lambda _: None, n_queued)
    epoch, size = step * len(loader) + valid * len(valid_loader), len(loader.batch_sampler.rows()) / len(loader)
    memory, checkpoint = profiling.peak_memory(device), profiling.size_on_disk(run.write)
    return (
        f"dry run: {step:.2f} s a step of {size:.0f} slices, {size / step:.0f} img/s; {profiling.duration(epoch)} an "
        f"epoch, {profiling.duration(epoch * recipe.epochs)} a fold of {recipe.epochs} epochs; "
        f"{memory / 1e9:.1f} GB of memory, {checkpoint / 1e6:.0f} MB a checkpoint"
    )


def settings_of(project: Project, settings: dict) -> dict:
    """Return what run.json records of the flags `settings`: weights by their content, slices and folds by a hash."""
    return settings | {"weights": pretrained.identity(settings["weights"])} | project.same


def open_folds(run: runs.Run, chosen: list[int], overwrite: bool) -> list[int]:
    """Return those of the `chosen` folds that are still to be fitted; the others are named."""
    finished = [] if overwrite else [k for k in chosen if (run.fold(k) / "model.pt").exists()]
    for k in finished:
        cli.say(f"{run.fold(k) / 'model.pt'}{cli.THERE}")
        with contextlib.suppress(FileNotFoundError):  # of a process killed between the two
            (run.fold(k) / "state.pt").unlink()
    return [k for k in chosen if k not in finished]


def train(
    *,
    data_dir: Path | None = None,
    work_dir: Path,
    run: str | None = None,
    arch: str | None,
    fold: list[int] | None = None,
    device: str = "auto",
    workers: int = 1,
    overwrite: bool = False,
    dry_run: bool = False,
    tensorboard: bool = False,
    checkpoint_every: float = 600.0,
    **settings,
) -> None:
    """Fit the chosen folds of a run, those left out that are finished.

    `settings` are fields of fit.Recipe, augment.Augment and tasks.Task, and arguments of tasks.slice_config.
    """
    if arch is None:
        raise ValueError("no architecture: give --arch or --recipe")
    project, flags_of_run = Project(data_dir, work_dir, workers), {"arch": arch, **settings}
    this = project.run(run or arch)
    slice_model.check_arch(arch)
    if overwrite or not this.begun:
        training_options.check(settings)  # else it is resumed with the settings that it has
    recipe, move, task = (training_options.take(kind, settings) for kind in (fit.Recipe, augment.Augment, tasks.Task))
    config = tasks.slice_config(arch, side_weight=task.side_weight, **settings)
    with ddp.processes(device) as name:
        same = dict(recipe=recipe, device=devices.pick_device(name))
        probe = partial(preflight.check, config, recipe, task, device=same["device"], tensorboard=tensorboard)
        if is_new := overwrite or not this.begun:
            probe(work_dir=work_dir)
        with ddp.first():
            folds.ensure(project)
        chosen, recorded = project.chosen(fold), settings_of(project, flags_of_run)
        this.check(recorded, replaced=chosen if overwrite else [])
        if not is_new and set(chosen) - set(this.finished):
            probe(work_dir=work_dir)
        with ddp.first():
            cache_dir = cache.ensure(project, config.cache_size, config.crop)
        load = partial(tasks.slice_loader, folder=cache_dir, config=config, batch_size=task.batch_size, workers=workers)
        loss = partial(tasks.slice_loss, focal=task.focal, side_weight=task.side_weight)

        def parts(k: int) -> tuple:
            seen, held_out = project.slices[project.is_train & (project.fold != k)], project.slices[project.fold == k]
            loaders = tasks.loaders(seen, held_out, load, task, move, recipe.seed)
            return tasks.new_model(config, task.weights, work_dir, seen, recipe.seed), loaders, seen, held_out

        if dry_run:
            model, loaders, *_ = parts(chosen[0])
            n_open = sum(overwrite or not (this.fold(k) / "model.pt").exists() for k in chosen)
            cli.say(f"{rehearse(model, loaders, loss, **same)}; folds to fit: {n_open}")
            return
        with ddp.first() as is_first:
            if overwrite and is_first:
                this.remove(chosen)
        rest = dict(every=checkpoint_every, tensorboard=tensorboard)
        rest["begin"] = partial(this.write, recorded, weights_from=flags_of_run["weights"])
        for k in chosen:
            with ddp.alone(this.fold(k)):
                with ddp.first():
                    is_open = open_folds(this, [k], overwrite=False)
                if is_open:
                    model, loaders, seen, held_out = parts(k)
                    fit_fold(model, loaders, loss, seen, held_out, this.fold(k), **same, **rest)


class _ListRecipes(argparse.Action):
    def __call__(self, parser, *_):
        cli.say(cli.describe_recipes())
        parser.exit()


def build_parser():
    shared = ("--data-dir", "--work-dir", "--run", "--recipe", "--arch", "--fold", "--image-size", "--epochs")
    shared += ("--batch-size", "--lr", "--weights", "--seed", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *shared)
    training_options.add(parser)
    add = parser.add_argument
    add("--checkpoint-every", type=cli.within(0), default=600.0, help="seconds")
    add("--tensorboard", action="store_true", help="write the log for TensorBoard too")
    add("--dry-run", action="store_true", help="train for up to a minute, keep nothing, say what the run would take")
    add("--recipes", action=_ListRecipes, nargs=0, dest=argparse.SUPPRESS, help="list the recipes and their sources")
    return parser


def recorded(options: argparse.Namespace) -> dict:
    """Return the settings of the run that `options` name, as flags; none if it has not begun."""
    run = runs.Run(options.work_dir, options.run or options.arch)
    if not run.begun:
        return {}
    known = {key: value for key, value in run.settings.items() if key not in ("slices", "folds")}
    return known | {"weights": run.record["weights_from"]}


def main(argv=None):
    cli.run(train, build_parser(), argv, recorded, preflight.recipe_for)


if __name__ == "__main__":
    main()
