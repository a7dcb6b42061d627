"""The training loop with checkpoints, the prediction loop, and the loss (`bce`)."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from ich_kaggle.common import cli, storage, zip_reader
from ich_kaggle.common.labels import WEIGHTS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSettings:
    """The settings of optimisation."""

    epochs: int = 4
    lr: float = 2e-4  # the peak, after a linear warm-up and before a half cosine to zero
    weight_decay: float = 0.01
    warmup: float = 0.1  # fraction of all steps
    ema: float = 0.999  # decay of the averaged weights per step
    clip: float = 1.0  # maximum norm of the gradient; 0: no clipping
    accumulate: int = 1  # batches per optimizer step
    freeze: int = 0  # first epochs that train the head only
    layer_decay: float = 1.0  # learning rate of a layer, as a fraction of that of the next layer
    compile: bool = False
    seed: int = 0


def set_seed(seed: int) -> None:
    torch.manual_seed(seed)


def precision(device: torch.device) -> tuple[torch.dtype, bool]:
    """Return the dtype of autocast and whether it is on: bfloat16 or float16 on a GPU, off on the CPU."""
    if device.type != "cuda":
        return torch.bfloat16, False
    return (torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16), True


def bce(logits: torch.Tensor, target: torch.Tensor, focal: float = 0.0) -> torch.Tensor:
    """Return the competition's metric of `logits` against `target`, both (..., 6), as a loss.

    `focal` is the power of |target - probability| by which each term is weighted (https://arxiv.org/abs/1708.02002).
    """
    weight = torch.tensor(WEIGHTS, dtype=logits.dtype, device=logits.device)
    weight = weight / weight.mean()
    if not focal:
        return nn.functional.binary_cross_entropy_with_logits(logits, target, weight=weight)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")
    return (losses * (torch.sigmoid(logits) - target).abs() ** focal).mean()


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Return the fraction of the peak learning rate at `step` of `total`: linear up, then a half cosine down."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _ema(decay: float) -> Callable:
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], n: torch.Tensor) -> None:
        # A shorter average in the first steps: (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage.
        keep = min(decay, (1 + float(n)) / (10 + float(n)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - keep)
        else:
            torch._foreach_copy_(averaged, current)

    return update


def parameter_groups(model: nn.Module, settings: FitSettings) -> list[dict]:
    """Return the optimizer's parameter groups: no weight decay on biases and norms, `lr_scale` with layer decay."""
    if settings.layer_decay < 1:
        from timm.optim import param_groups_layer_decay

        return param_groups_layer_decay(model.backbone, settings.weight_decay, layer_decay=settings.layer_decay)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]


def write_log(path: Path, rows: list[dict]) -> None:
    """Write the `rows` of a training log, one per epoch, as CSV, and log the last."""
    if not rows:
        return
    with storage.writing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    last = rows[-1]
    log.info("epoch %d: train %.4f, valid %.4f", last["epoch"] + 1, last["train_loss"], last["valid_loss"])


class Fit:
    """The state of a training run, all of which a checkpoint holds."""

    def __init__(self, model: nn.Module, settings: FitSettings, n_batches: int, device: torch.device):
        self.model, self.settings, self.n_batches, self.device = model.to(device), settings, n_batches, device
        self.network, self.is_frozen = None, None
        self.ema = AveragedModel(model, multi_avg_fn=_ema(settings.ema), use_buffers=True)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=settings.lr, fused=True)
        self.dtype, self.is_mixed = precision(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.step, self.train_loss, self.rows = 0, 0.0, []

    @property
    def total(self) -> int:
        return self.settings.epochs * self.n_batches

    @property
    def rate(self) -> float:
        return self.settings.lr * warmup_cosine(self.step, self.total, round(self.settings.warmup * self.total))

    @property
    def rank(self) -> int:
        return distributed.get_rank() if distributed.is_initialized() else 0

    def start_epoch(self) -> None:
        """Put the model into training mode; in the first `freeze` epochs all but its head is frozen."""
        is_frozen = len(self.rows) < self.settings.freeze
        self.model.train(not is_frozen)
        if is_frozen == self.is_frozen:
            return
        self.is_frozen = is_frozen
        if self.settings.freeze:
            self.model.requires_grad_(not is_frozen)
            self.model.head.requires_grad_(True)
        self.network = torch.compile(self.model) if self.settings.compile else self.model
        if distributed.is_initialized():
            self.network = DistributedDataParallel(self.network)

    def train_step(self, loss: Callable, batch: tuple) -> float:
        """Take one step and return the loss of the batch. Raises FloatingPointError if it is not finite."""
        # A seed from the step alone: a checkpoint needs no state of a generator.
        torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, self.step, self.rank]).generate_state(1)[0]))
        with torch.autocast(self.device.type, self.dtype, enabled=self.is_mixed):
            value = loss(self.network, batch)
        if not torch.isfinite(value):
            raise FloatingPointError(f"the loss is {value.item()}")
        group = self.step % self.n_batches // self.settings.accumulate * self.settings.accumulate
        n_in_group = min(self.settings.accumulate, self.n_batches - group)
        self.scaler.scale(value / n_in_group).backward()
        if self.step % self.n_batches + 1 == group + n_in_group:
            self._update()
        self.step += 1
        return value.item()

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group.get("lr_scale", 1)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm.item()}")
        if norm > self.settings.clip > 0:  # scaling by 1 would take as long as scaling
            nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.model)

    @property
    def may_pause(self) -> bool:
        """Whether no gradient is being accumulated, so that a checkpoint holds everything."""
        return self.step % self.n_batches % self.settings.accumulate == 0

    def mean_loss(self) -> float:
        """Return the mean loss of the epoch's batches over all processes."""
        loss = torch.tensor(self.train_loss / self.n_batches, dtype=torch.float64, device=self.device)
        if distributed.is_initialized():
            distributed.all_reduce(loss)
            loss /= distributed.get_world_size()
        return loss.item()

    def averaged(self) -> nn.Module:
        """Return the model with the averaged weights, the same in all processes."""
        if distributed.is_initialized():
            for buffer in self.ema.module.buffers():
                distributed.broadcast(buffer, 0)
        return self.ema.module

    def state(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "ema", "optimizer", "scaler")}
        return parts | {"step": self.step, "train_loss": self.train_loss, "rows": self.rows}

    def restore(self, state: dict) -> None:
        for name in ("model", "ema", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.train_loss, self.rows = state["step"], state["train_loss"], state["rows"]

    def write(self, path: Path) -> None:
        with storage.writing(path) as temporary, temporary.open("wb") as file:
            torch.save(self.state(), file)

    def n_that_fit(self, loss: Callable, batch: tuple) -> int:
        """Return the number of items of `batch`, halved until a step fits into memory; 0 if not even one fits."""
        for n in halves(len(batch[0])):
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            try:
                with torch.autocast(self.device.type, self.dtype, enabled=self.is_mixed):
                    loss(self.network, tuple(part[:n] for part in batch)).backward()
                return n
            except RuntimeError as error:
                if not _is_memory(error):
                    raise
        return 0


@dataclass(frozen=True)
class Checkpoint:
    """The file that holds the state of a fit, and how often it is written."""

    path: Path
    every: float = 600.0  # seconds
    before: Callable[[], None] = lambda: None  # called before each write

    def write(self, run: Fit) -> None:
        if run.rank == 0:
            self.before()
            run.write(self.path)

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


def halves(n: int) -> Iterator[int]:
    """Yield half of `n`, a quarter and so on, as long as it is one or more."""
    while n := n // 2:
        yield n


def smaller_steps(n: int, wanted: int) -> str:
    """Return the flags that make a step of `wanted` slices from batches of `n`; for 0 those of a smaller model."""
    return f"give --batch-size {n} --accumulate {-(-wanted // n)}" if n else "give a smaller --image-size or --arch"


def _is_memory(error: RuntimeError) -> bool:
    # From torch on Linux, from torch on Windows, and from oneDNN if it cannot allocate its buffers.
    said = ("can't allocate memory", "not enough memory", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in said)


def _unnamed(batch: tuple) -> list[str]:
    return [f"of {len(batch[0])}"]


def fit(
    model: nn.Module,
    loader: DataLoader,
    loss: Callable[[nn.Module, tuple], torch.Tensor],
    *,
    settings: FitSettings,
    validate: Callable[[nn.Module], dict],
    device: torch.device,
    checkpoint: Checkpoint,
    names: Callable[[tuple], list[str]] = _unnamed,
) -> Iterator[list[dict]]:
    """Fit `model` by `loss(model, batch)` and leave the averaged weights in it.

    Yields all rows of the log after each epoch: epoch, lr, train_loss and the result of `validate` on the averaged
    model. The state is written to `checkpoint` after each epoch, and within it every so often; if the checkpoint
    exists, the fit resumes from it and ends with the same weights, bit for bit on a CPU. Raises RuntimeError with a
    remedy if the loss is not finite, with the `names` of the batch, or if memory runs out.
    """
    set_seed(settings.seed)
    run = Fit(model, settings, len(loader), device)
    if checkpoint.path.exists():
        checkpoint.restore(run)
        yield run.rows
    while len(run.rows) < settings.epochs:  # not by steps: the last step of an epoch may not be validated yet
        _train_epoch(run, loader, loss, checkpoint, names)
        validation = validate(run.averaged())
        train_loss = run.mean_loss()
        lr = run.optimizer.param_groups[-1]["lr"]
        run.rows.append({"epoch": len(run.rows), "lr": lr, "train_loss": train_loss, **validation})
        run.train_loss = 0.0
        checkpoint.write(run)
        yield run.rows
    model.load_state_dict(run.ema.module.state_dict())


def batches(loader: DataLoader) -> Iterator[tuple]:
    """Yield the batches of `loader`. An error in a worker is raised with its own message, without the traceback."""
    try:
        yield from loader
    except (ValueError, OSError) as error:
        told = str(error).strip().splitlines()[-1]  # the line below the worker's traceback
        raise ValueError(told.removeprefix(f"{type(error).__name__}: ")) from error


def _train_epoch(run: Fit, loader: DataLoader, loss: Callable, checkpoint: Checkpoint, names: Callable) -> None:
    epoch, start = len(run.rows), run.step - len(run.rows) * run.n_batches
    loader.batch_sampler.epoch, loader.batch_sampler.start = epoch, start
    run.start_epoch()
    began = saved = time.monotonic()
    n_seen = 0
    what = f"epoch {epoch + 1} of {run.settings.epochs}"
    bar = cli.progress(batches(loader), run.n_batches, what, " batches", initial=start)
    for batch in bar:
        value = careful_step(run, loss, batch, checkpoint.path, names)
        run.train_loss += value
        n_seen += len(batch[0])
        bar.set_postfix_str(f"loss {value:.4f}, {n_seen / (time.monotonic() - began):.0f} img/s", refresh=False)
        if time.monotonic() - saved > checkpoint.every and run.may_pause:
            checkpoint.write(run)
            saved = time.monotonic()


def careful_step(
    run: Fit, loss: Callable, batch: tuple, checkpoint: Path | None = None, names: Callable = _unnamed
) -> float:
    """Take one step with a batch of the loader and return its loss. Raises RuntimeError with a remedy if it fails."""
    batch = tuple(part.to(run.device, non_blocking=True) for part in batch)
    try:
        return run.train_step(loss, batch)
    except FloatingPointError as error:
        kept = f"; {checkpoint}, of an earlier step, is kept" if _is_begun(checkpoint) else ""
        what = f"{error} at step {run.step}, in the batch {', '.join(names(batch))}"
        why = "the rate is too high for these weights, or a slice of the batch is damaged"
        raise RuntimeError(f"{what}: {why}: start another --run with a lower --lr{kept}") from error
    except RuntimeError as error:
        if not _is_memory(error):
            raise
    # Outside the except clause, because its traceback keeps the memory in use.
    if not isinstance(batch[0], torch.Tensor):
        raise RuntimeError(f"out of memory at step {run.step}: give a smaller --batch-size or --hidden")
    n, wanted = run.n_that_fit(loss, batch), len(batch[0])
    remedy = smaller_steps(n, wanted * run.settings.accumulate)
    if _is_begun(checkpoint):  # its run keeps its settings
        remedy = f"resume with the same command when more memory is free, or {remedy} to another --run"
    raise RuntimeError(f"out of memory at step {run.step}: {wanted} at once do not fit, {n} do: {remedy}")


def _is_begun(checkpoint: Path | None) -> bool:
    return checkpoint is not None and checkpoint.exists()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode for the block, then back into its previous mode."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


def outputs(
    model: nn.Module, loader: DataLoader, device: torch.device, views: Sequence[Callable] = (), what: str = "predict"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield logits, float32 (n, 6), and embeddings, float16 (n, d), per batch of `loader`, in its order.

    Both are means over the `views` of the images.
    """
    dtype, is_mixed = precision(device)
    bar = cli.progress(None, len(loader.dataset), what)
    with evaluating(model), torch.inference_mode(), torch.autocast(device.type, dtype, enabled=is_mixed), bar:
        for images, *_ in batches(loader):
            images = images.to(device, non_blocking=True)
            seen = [model.outputs(view(images)) for view in views] or [model.outputs(images)]
            logits, embeddings = (sum(part.float() for part in parts) / len(seen) for parts in zip(*seen, strict=True))
            yield logits.cpu().numpy(), embeddings.half().cpu().numpy()
            bar.update(len(images))


def predict(model: nn.Module, loader: DataLoader, device: torch.device, what: str = "predict") -> np.ndarray:
    """Return the logits of all items of `loader`, in its order: float32 (n, 6)."""
    return np.concatenate([logits for logits, _ in outputs(model, loader, device, what=what)])
