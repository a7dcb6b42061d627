"""Training of one fold of a run: its log, checkpoints and model, and a rehearsal of a few steps."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from ich_kaggle.common import cli, metric, runs, tables
from ich_kaggle.common.project import Project
from ich_kaggle.learning import (
    ddp,
    fit,
    pretrained,
    profiling,
    slice_model,
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
