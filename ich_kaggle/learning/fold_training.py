"""Training of the folds of a run: log, checkpoint and model of each, or a rehearsal of a few steps."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from ich_kaggle.common import cli, metric, runs, storage, tables
from ich_kaggle.common.project import Project
from ich_kaggle.learning import (
    datasets,
    ddp,
    fit,
    inference,
    initial_model,
    pretrained,
    profiling,
    side_by_side,
    slice_model,
    tasks,
)

log = logging.getLogger(__name__)

SOME = 16_384  # slices by which the bias of a kept head is moved


@dataclass(frozen=True)
class Session:
    """Flags of one call of `train` that change no result, so that run.json does not record them."""

    device: str = "auto"
    checkpoint_every: float = 600.0  # seconds
    hours: float = math.inf  # from the start of the command until training stops at a checkpoint
    tensorboard: bool = False
    dry_run: bool = False
    overwrite: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def until(self) -> float:
        return self.began + 3600 * self.hours


@dataclass(frozen=True)
class Fold:
    """A model before training, the slices of its training and of its validation, and a loader of each."""

    model: slice_model.SliceModel
    seen: pd.DataFrame
    held_out: pd.DataFrame
    loader: DataLoader
    valid_loader: DataLoader
    seen_before: np.ndarray | None  # hashes of the patients on which the model was fitted before; None: not known

    @property
    def patients(self) -> np.ndarray | None:
        """The hashes of the patients that the trained model was fitted on, if those of its start are known."""
        own, before = slice_model.patient_hashes(self.seen.patient_id.unique()), self.seen_before
        return None if before is None else np.union1d(own, before)

    def names(self, rows: list[int]) -> list[str]:
        """Return the ids of the slices of `rows` of a batch of `loader`."""
        return self.seen.slice_id.iloc[rows].tolist()

    def validate(self, averaged: slice_model.SliceModel, device: torch.device) -> dict:
        """Return the columns of the log that score `averaged` on all held-out slices."""
        logits = ddp.gather(inference.predict(averaged, self.valid_loader, device, what="validate"))
        return metric.validation(tables.targets(self.held_out), logits)


@dataclass(frozen=True)
class Training:
    """Training of a run in this process."""

    project: Project
    run: runs.Run
    plan: tasks.Plan
    session: Session
    device: torch.device
    cache_dir: Path

    def fold(self, k: int) -> Fold:
        """Return fold `k`, ready to be trained."""
        project, plan = self.project, self.plan
        seen, held_out = project.slices[project.is_train & (project.fold != k)], project.slices[project.fold == k]
        loaders = plan.loaders(seen, held_out, self.cache_dir, project.workers)
        model = tasks.new_model(plan, project.work_dir, tables.targets(seen).mean(axis=0), k)
        is_kept = plan.task.init is not None and plan.task.init_head == "keep"
        if is_kept and not self.session.dry_run and not (self.run.fold(k) / "state.pt").exists():
            log.info(self._move_bias(model, seen))
        before = initial_model.seen_by(project.work_dir, plan.config.arch, plan.task.weights, plan.task.init, k)
        return Fold(model, seen, held_out, *loaders, before)

    def _move_bias(self, model: slice_model.SliceModel, seen: pd.DataFrame) -> str:
        """Move the bias of the kept head by the labels of whole patients, drawn until they have SOME slices.

        Returns a line on it.
        """
        order = np.random.default_rng(self.plan.settings.seed).permutation(seen.patient_id.unique())
        before = seen.groupby("patient_id").size()[order].cumsum().shift(fill_value=0)
        some = seen[seen.patient_id.isin(before.index[before < SOME])]
        n, workers = self.plan.task.batch_size, self.project.workers
        loader = tasks.slice_loader(some, self.cache_dir, self.plan.config, batch_size=n, workers=workers)
        logits = inference.predict(model.to(self.device), loader, self.device, what="match the prevalence")
        return initial_model.move_bias(model, logits, tables.targets(some))

    def train(self, chosen: list[int], devices: list[torch.device], before_write: Callable[[], None]) -> None:
        """Train the `chosen` folds on the `devices`, or with --dry-run rehearse it. `before_write` as in fit_folds."""
        if self.session.dry_run:
            cli.say(self.rehearse(chosen))
        elif len(devices) > 1 and len(chosen) > 1:
            self.fit_side_by_side(chosen, devices, before_write)
        else:
            self.fit_folds(chosen, before_write)

    def fit_folds(self, chosen: list[int], before_write: Callable[[], None]) -> None:
        """Train the `chosen` folds in turn, each under a lock, except those that are finished.

        With --overwrite they are removed first. `before_write` is called before each write of a checkpoint.
        """
        with ddp.first() as is_first:
            if self.session.overwrite and is_first:
                self.run.remove(chosen)
        for k in chosen:
            with ddp.alone(self.run.fold(k)):
                with ddp.first():
                    is_open = not self._is_finished(k)
                if is_open:
                    self._fit_fold(self.fold(k), self.run.fold(k), before_write)

    def fit_side_by_side(
        self, chosen: list[int], devices: list[torch.device], before_write: Callable[[], None]
    ) -> None:
        """Train the `chosen` folds, except those that are finished, one on each of the `devices` at a time."""
        if self.session.overwrite:
            self.run.remove(chosen)
        before_write()  # from here on the settings of the run are those of each command
        flags = {"--run": self.run.name, "--work-dir": self.project.work_dir, "--data-dir": self.project.data_dir}
        flags["--checkpoint-every"] = self.session.checkpoint_every
        if self.project.workers != cli.n_workers(cli.AUTO):
            flags["--workers"] = self.project.workers
        given = [str(part) for flag in flags.items() if flag[1] is not None for part in flag]
        command = ["ich_kaggle.train", *given, *["--tensorboard"] * self.session.tensorboard]
        side_by_side.run(command, [k for k in chosen if not self._is_finished(k)], devices, self.session.until)

    def _is_finished(self, k: int) -> bool:
        """Return whether fold `k` has a model, and if so say it."""
        if is_finished := (path := self.run.fold(k) / "model.pt").exists():
            cli.say(f"{path}{cli.THERE}")
            storage.remove(path.with_name("state.pt"))  # left by a process killed between the two steps
        return is_finished

    def _fit_fold(self, fold: Fold, folder: Path, before_write: Callable[[], None]) -> None:
        """Train `fold` and write its log and its model into `folder`."""
        often = dict(every=self.session.checkpoint_every, until=self.session.until)
        checkpoint = fit.Checkpoint(folder / "state.pt", **often, before=before_write)
        is_resumed = checkpoint.path.exists()
        with ddp.first() as is_first:
            is_told = self.session.tensorboard and is_first
            tell = profiling.board(folder / "tensorboard") if is_told else lambda row: None
        validate = partial(fold.validate, device=self.device)
        how = dict(settings=self.plan.settings, validate=validate, device=self.device, checkpoint=checkpoint)
        for rows in fit.fit(fold.model, fold.loader, self.plan.loss, names=fold.names, **how):
            if is_first:
                fit.write_log(folder / "log.csv", rows)
            if rows and not is_resumed:  # the last row of a checkpoint has been told
                tell(rows[-1])
            is_resumed = False
        with ddp.first() as is_first:
            if is_first:
                before_write()  # the settings are still those of the run
                slice_model.save(folder / "model.pt", slice_model.for_prediction(fold.model), fold.patients)
                storage.remove(checkpoint.path)
        n_patients = fold.held_out.patient_id.nunique()
        cli.say(f"{folder}: log loss {rows[-1]['valid_loss']:.4f} on {n_patients} held-out patients")

    def rehearse(self, chosen: list[int]) -> str:
        """Train and validate for up to a minute, keep nothing, and return the cost of training the `chosen` folds."""
        n_open = sum(self.session.overwrite or not (self.run.fold(k) / "model.pt").exists() for k in chosen)
        return f"{rehearse(self.fold(chosen[0]), self.plan, self.device)}; folds to fit: {n_open}"


def rehearse(fold: Fold, plan: tasks.Plan, device: torch.device) -> str:
    """Return time and memory of the training of `fold`, measured on its first steps of training and validation."""
    loader = fold.loader
    n_batches, n_queued = len(loader), loader.num_workers * (loader.prefetch_factor or 0)
    cli.say(f"dry run: timing training, then validation, for up to {profiling.LONGEST:.0f} s each")

    def timed(freeze: int) -> tuple[fit.Fit, float]:
        """Return the fit, and the seconds per batch of its first epoch; every batch is a step of the optimizer."""
        run = fit.Fit(fold.model, replace(plan.settings, freeze=freeze, accumulate=1), n_batches, device)
        run.start_epoch()

        def take(batch: tuple) -> None:
            fit.careful_step(run, plan.loss, batch)
            run.read()  # waits for the device

        return run, profiling.seconds_per_batch(datasets.batches(loader), take, n_queued)

    run, step = timed(freeze=0)  # the whole network: the most memory
    outputs = inference.outputs(run.averaged(), fold.valid_loader, device)
    valid = profiling.seconds_per_batch(outputs, lambda _: None, n_queued) * len(fold.valid_loader)
    memory, checkpoint = profiling.peak_memory(device), profiling.size_on_disk(run.write)
    epochs, size = plan.settings.epochs, len(loader.batch_sampler.rows()) / n_batches
    frozen, n_frozen, epoch = "", min(plan.settings.freeze, epochs), step * n_batches + valid
    total = (epochs - n_frozen) * epoch
    if n_frozen:
        quick = timed(freeze=n_frozen)[1] * n_batches + valid
        total += n_frozen * quick
        frozen = f", {profiling.duration(quick)} while only the head learns"
    return (
        f"dry run: {step:.2f} s per step of {size:.0f} slices, {size / step:.0f} img/s; {profiling.duration(epoch)} "
        f"per epoch{frozen}, {profiling.duration(total)} per fold of {epochs} epochs; "
        f"{memory / 1e9:.1f} GB of memory, {checkpoint / 1e6:.0f} MB per checkpoint"
    )


def settings_of(project: Project, settings: dict) -> dict:
    """Return the settings that run.json records: weights and files by their content, slices and folds by a hash."""
    weights, init = settings["weights"], initial_model.identity(project.work_dir, settings.get("init"))
    start = {"weights": pretrained.identity(weights)} if init is None else {"weights": "none", "init": init}
    unused = () if init is not None else ("init", "init_head")
    return {key: value for key, value in settings.items() if key not in unused} | start | project.same
