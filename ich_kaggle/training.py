"""The one fit loop, which goes on where it was stopped, and the one predict loop."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from ich_kaggle import cli, paths
from ich_kaggle.labels import WEIGHTS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a model is fitted."""

    epochs: int = 4
    lr: float = 2e-4  # the highest; warm-up leads to it and a cosine from it to zero
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    ema: float = 0.999  # share that the averaged weights keep in a step
    clip: float = 1.0  # norm of the gradient
    seed: int = 0


def set_seed(seed: int) -> None:
    torch.manual_seed(seed)


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; auto is the first GPU on which an operation runs, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        try:
            torch.zeros(8, device="cuda").add_(1).sum().item()
            return torch.device("cuda")
        except RuntimeError as error:
            log.info("the GPU can't run this build of torch (%s): using the CPU", str(error).splitlines()[0])
    return torch.device("cpu")


def precision(device: torch.device) -> tuple[torch.dtype, bool]:
    """Return the dtype for autocast, and whether autocast is on: bfloat16 or float16 on a GPU, off on the CPU."""
    if device.type != "cuda":
        return torch.bfloat16, False
    return (torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16), True


def bce(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the competition's metric of `logits` against `target`, both (n, 6), as a loss."""
    weight = torch.tensor(WEIGHTS, dtype=logits.dtype, device=logits.device)
    return nn.functional.binary_cross_entropy_with_logits(logits, target, weight=weight / weight.mean())


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Return the share of the highest learning rate at `step` of `total`: a line up, then half a cosine down."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _ema(decay: float) -> Callable:
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], n: torch.Tensor) -> None:
        # The first steps average over few: (1 + n) / (10 + n), as in Tensorflow's ExponentialMovingAverage.
        keep = min(decay, (1 + float(n)) / (10 + float(n)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - keep)
        else:
            torch._foreach_copy_(averaged, current)

    return update


class Fit:
    """All that a training run is made of, so that it can be written down and taken up again."""

    def __init__(self, model: nn.Module, recipe: Recipe, n_batches: int, device: torch.device):
        self.model, self.recipe, self.n_batches, self.device = model.to(device), recipe, n_batches, device
        self.ema = AveragedModel(model, multi_avg_fn=_ema(recipe.ema), use_buffers=True)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
        self.dtype, self.is_mixed = precision(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.step, self.train_loss, self.rows = 0, 0.0, []

    @property
    def total(self) -> int:
        return self.recipe.epochs * self.n_batches

    def train_step(self, loss: Callable, batch: tuple) -> float:
        """Take one step and return the loss of the batch. Raises FloatingPointError where that is not a number."""
        rate = self.recipe.lr * warmup_cosine(self.step, self.total, round(self.recipe.warmup * self.total))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, self.dtype, enabled=self.is_mixed):
            value = loss(self.model, batch)
        if not torch.isfinite(value):
            raise RuntimeError(f"the loss is {value.item()} at step {self.step}: try a lower --lr")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(value).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update_parameters(self.model)
        self.step += 1
        return value.item()

    def state(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "ema", "optimizer", "scaler")}
        return parts | {
            "step": self.step,
            "train_loss": self.train_loss,
            "rows": self.rows,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }

    def restore(self, state: dict) -> None:
        for name in ("model", "ema", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.train_loss, self.rows = state["step"], state["train_loss"], state["rows"]
        torch.set_rng_state(state["rng"])
        torch.cuda.set_rng_state_all(state["cuda_rng"])


def fit(
    model: nn.Module,
    loader: DataLoader,
    loss: Callable[[nn.Module, tuple], torch.Tensor],
    *,
    recipe: Recipe,
    validate: Callable[[nn.Module], dict],
    device: torch.device,
    checkpoint: Path,
    every: float = 600.0,
) -> Iterator[list[dict]]:
    """Fit `model` by `loss(model, batch)` and leave the averaged weights in it.

    Yields all rows of the log after each epoch: epoch, lr, train_loss and what `validate` returns of the averaged
    model. Its state is written to `checkpoint` after each epoch and every `every` seconds; a state that is there is
    gone on from, to the same weights bit for bit on a CPU.
    """
    set_seed(recipe.seed)
    run = Fit(model, recipe, len(loader), device)
    if checkpoint.exists():
        run.restore(torch.load(checkpoint, map_location=device, weights_only=True))
        log.info("going on from step %d of %d", run.step, run.total)
        yield run.rows
    while run.step < run.total:
        _train_epoch(run, loader, loss, checkpoint, every)
        validation = validate(run.ema.module)
        lr = run.optimizer.param_groups[0]["lr"]
        train_loss = run.train_loss / run.n_batches
        run.rows.append({"epoch": len(run.rows), "lr": lr, "train_loss": train_loss, **validation})
        run.train_loss = 0.0
        _write(checkpoint, run.state())
        yield run.rows
    model.load_state_dict(run.ema.module.state_dict())


def _train_epoch(run: Fit, loader: DataLoader, loss: Callable, checkpoint: Path, every: float) -> None:
    epoch, start = len(run.rows), run.step - len(run.rows) * run.n_batches
    loader.batch_sampler.epoch, loader.batch_sampler.start = epoch, start
    run.model.train()
    saved = time.monotonic()
    bar = cli.progress(loader, run.n_batches, f"epoch {epoch}", " batches")
    bar.update(start)
    for batch in bar:
        value = run.train_step(loss, tuple(part.to(run.device, non_blocking=True) for part in batch))
        run.train_loss += value
        bar.set_postfix(loss=f"{value:.4f}", refresh=False)
        if time.monotonic() - saved > every:
            _write(checkpoint, run.state())
            saved = time.monotonic()


def _write(path: Path, state: dict) -> None:
    with paths.writing(path) as temporary:
        torch.save(state, temporary)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode, and back into the mode it was in."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


def outputs(
    model: nn.Module, loader: DataLoader, device: torch.device, views: Sequence[Callable] = (), what: str = "predict"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield logits, float32 (n, 6), and embeddings, float16 (n, d), a batch of `loader` at a time, in its order.

    Both are means over `views` of the images.
    """
    dtype, is_mixed = precision(device)
    bar = cli.progress(None, len(loader.dataset), what)
    with evaluating(model), torch.inference_mode(), torch.autocast(device.type, dtype, enabled=is_mixed), bar:
        for images, *_ in loader:
            images = images.to(device, non_blocking=True)
            seen = [model.outputs(view(images)) for view in views] or [model.outputs(images)]
            logits, embeddings = (sum(part.float() for part in parts) / len(seen) for parts in zip(*seen, strict=True))
            yield logits.cpu().numpy(), embeddings.half().cpu().numpy()
            bar.update(len(images))


def predict(model: nn.Module, loader: DataLoader, device: torch.device, what: str = "predict") -> np.ndarray:
    """Return the logits of all that `loader` gives, in its order: float32 (n, 6)."""
    return np.concatenate([logits for logits, _ in outputs(model, loader, device, what=what)])
