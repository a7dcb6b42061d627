"""The training loop with checkpoints, and the loss (`bce`)."""

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from ich_kaggle.common import cli, storage, zip_reader
from ich_kaggle.common.labels import WEIGHTS
from ich_kaggle.learning import datasets, ddp, devices, out_of_memory
from ich_kaggle.learning.training_state import BrokenStepError, Fit, FitSettings

log = logging.getLogger(__name__)

READ_EVERY = 10.0  # seconds between two readings of the losses, for which the host waits for the device
TO_BE_RESUMED = 75  # exit code of a command whose hours are over: EX_TEMPFAIL of sysexits.h


def set_seed(seed: int) -> None:
    torch.manual_seed(seed)


@functools.cache
def _weights(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    weight = torch.tensor(WEIGHTS, dtype=dtype)
    return (weight / weight.mean()).to(device)


def bce(logits: torch.Tensor, target: torch.Tensor, focal: float = 0.0) -> torch.Tensor:
    """Return the competition's metric of `logits` against `target`, both (..., 6), as a loss in float32 or float64.

    `focal` is the power of |target - probability| by which each term is weighted (https://arxiv.org/abs/1708.02002).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weight = _weights(logits.device, logits.dtype)
    if not focal:
        return nn.functional.binary_cross_entropy_with_logits(logits, target, weight=weight)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")
    return (losses * (torch.sigmoid(logits) - target).abs() ** focal).mean()


def write_log(path: Path, rows: list[dict]) -> None:
    """Write the `rows` of a training log, one per epoch, as CSV, and log the last."""
    if not rows:
        return
    with storage.writing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    last = rows[-1]
    skipped = f", {last['skipped']} steps skipped: their gradient was not finite" if last["skipped"] else ""
    log.info("epoch %d: train %.4f, valid %.4f%s", last["epoch"] + 1, last["train_loss"], last["valid_loss"], skipped)


@dataclass(frozen=True)
class Checkpoint:
    """The file that holds the state of a fit, and how often it is written."""

    path: Path
    every: float = 600.0  # seconds
    until: float = math.inf  # of time.monotonic(): the fit stops at its first checkpoint after that
    before: Callable[[], None] = lambda: None  # called before each write

    def write(self, run: Fit) -> None:
        if ddp.shard()[0] == 0:
            self.before()
            run.write(self.path)

    def is_over(self, now: float) -> bool:
        """Return whether it is time to stop. The first process decides: when it ends, torchrun ends the others."""
        return now > self.until and ddp.shard()[0] == 0

    def stop(self, run: Fit) -> None:
        """Exit with TO_BE_RESUMED, once the state is written."""
        cli.say(f"{self.path}: stopped at step {run.step} of {run.total}: to be resumed by the same command")
        raise SystemExit(TO_BE_RESUMED)

    def restore(self, run: Fit) -> None:
        """Put the state in the file into `run`. Raises ValueError if it is damaged or of another run."""
        try:
            zip_reader.check(self.path)
            run.restore(torch.load(self.path, map_location=run.device, weights_only=True))
        except Exception as error:  # damaged bytes raise errors of every type
            kind = type(error).__name__
            again = "remove it and run the same command again"
            raise ValueError(f"{self.path}: not a state of this run ({kind}): {again}") from error
        log.info("resumed at step %d of %d", run.step, run.total)


def _unnamed(rows: list[int]) -> list[str]:
    return [f"of {len(rows)}"]


def fit(
    model: nn.Module,
    loader: DataLoader,
    loss: Callable[[nn.Module, tuple], torch.Tensor],
    *,
    settings: FitSettings,
    validate: Callable[[nn.Module], dict],
    device: torch.device,
    checkpoint: Checkpoint,
    names: Callable[[list[int]], list[str]] = _unnamed,
) -> Iterator[list[dict]]:
    """Fit `model` by `loss(model, batch)` and leave the averaged weights in it.

    Yields all rows of the log after each epoch: epoch, lr, train_loss, skipped (steps without a finite gradient) and
    the result of `validate` on the averaged model. The state is written to `checkpoint` after each epoch, and within it
    every so often; if the checkpoint exists, the fit resumes from it and ends with the same weights, bit for bit on a
    CPU. When the time of the checkpoint is over, it ends in SystemExit after a step, or a validation, once the state is
    written. Raises RuntimeError with a remedy if the loss is not finite, with the `names` of the rows of the batch, if
    no gradient is finite any more, or if memory runs out.
    """
    set_seed(settings.seed)
    run = Fit(model, settings, len(loader), device)
    if checkpoint.path.exists():
        checkpoint.restore(run)
        yield run.rows
    while len(run.rows) < settings.epochs:  # not by steps: the last step of an epoch may not be validated yet
        try:
            _train_epoch(run, loader, loss, checkpoint)
        except BrokenStepError as error:
            raise RuntimeError(_why_broken(error, run, loader.batch_sampler, checkpoint.path, names)) from error
        run.end_epoch(validate(run.averaged()))
        checkpoint.write(run)
        yield run.rows
        if len(run.rows) < settings.epochs and checkpoint.is_over(time.monotonic()):
            checkpoint.stop(run)
    model.load_state_dict(run.ema.state_dict())


def _train_epoch(run: Fit, loader: DataLoader, loss: Callable, checkpoint: Checkpoint) -> None:
    epoch, start = len(run.rows), run.step - len(run.rows) * run.n_batches
    loader.batch_sampler.epoch, loader.batch_sampler.start = epoch, start
    run.start_epoch()
    began = saved = told = time.monotonic()
    n_seen = 0
    what = f"epoch {epoch + 1} of {run.settings.epochs}"
    bar = cli.progress(datasets.batches(loader), run.n_batches, what, " batches", initial=start)
    for batch in bar:
        careful_step(run, loss, batch, checkpoint.path)
        n_seen += len(batch[0])
        now = time.monotonic()
        is_over = checkpoint.is_over(now)
        is_due = (is_over or now - saved > checkpoint.every) and run.may_pause
        if is_due or now - told > READ_EVERY:
            bar.set_postfix_str(f"loss {run.read():.4f}, {n_seen / (now - began):.0f} img/s", refresh=False)
            told = now
        if is_due:
            checkpoint.write(run)
            saved = time.monotonic()
            if is_over:
                checkpoint.stop(run)
    run.read()


def _why_broken(error: BrokenStepError, run: Fit, sampler: datasets.Batches, checkpoint: Path, names: Callable) -> str:
    """Return what happened in which batch, and the remedy."""
    sampler.start = error.step % run.n_batches
    rows = [row for _, row in next(iter(sampler))]
    kept = f"; {checkpoint}, of an earlier step, is kept" if checkpoint.exists() else ""
    why = "the rate is too high for these weights, or a slice of the batch is damaged"
    what = f"{error} at step {error.step}, in the batch {', '.join(names(rows))}"
    return f"{what}: {why}: start another --run with a lower --lr{kept}"


def careful_step(run: Fit, loss: Callable, batch: tuple, checkpoint: Path | None = None) -> None:
    """Take one step with a batch of the loader. Raises RuntimeError with a remedy if memory runs out."""
    try:
        return run.train_step(loss, devices.moved(batch, run.device))
    except RuntimeError as error:
        if not out_of_memory.is_lack(error):
            raise
    # Outside the except clause, because its traceback keeps the memory in use.
    raise RuntimeError(f"out of memory at step {run.step}: {_smaller(run, loss, batch, checkpoint)}")


def _smaller(run: Fit, loss: Callable, batch: tuple, checkpoint: Path | None) -> str:
    """Return the flags of a step that fits, found by trying, which spoils `run`."""
    if not isinstance(batch[0], torch.Tensor):
        return "give a smaller --batch-size or --hidden"
    world = ddp.shard()[1]
    if world > 1:  # a trial would wait for the other processes
        n, tried = len(batch[0]) // 2 * world, ""
    else:
        n = out_of_memory.n_that_fit(lambda part: run.whole_step(loss, devices.moved(part, run.device)), batch)
        tried = f", {n} do"
    wanted = len(batch[0]) * world
    remedy = out_of_memory.smaller_steps(n, wanted * run.settings.accumulate)
    if checkpoint is not None and checkpoint.exists():  # its run keeps its settings
        remedy = f"resume with the same command when more memory is free, or {remedy} to another --run"
    return f"{wanted} at once do not fit{tried}: {remedy}"
