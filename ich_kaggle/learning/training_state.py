"""The state of a training run, and steps that never wait for the device."""

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import swa_utils

from ich_kaggle.common import storage
from ich_kaggle.learning import ddp, devices

PATIENCE = 50  # optimizer steps in a row without a finite gradient; float16 takes up to 20 to find its scale


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


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Return the fraction of the peak learning rate at `step` of `total`: linear up, then a half cosine down."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def parameter_groups(model: nn.Module, settings: FitSettings) -> list[dict]:
    """Return the optimizer's parameter groups: no weight decay on biases and norms, `lr_scale` with layer decay."""
    if settings.layer_decay < 1:
        from timm.optim import param_groups_layer_decay

        return param_groups_layer_decay(model.backbone, settings.weight_decay, layer_decay=settings.layer_decay)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]


class BrokenStepError(RuntimeError):
    """A step that cannot be taken, with its number."""

    def __init__(self, told: str, step: int):
        super().__init__(told)
        self.step = step


def _floats(model: nn.Module) -> list[torch.Tensor]:
    """Return the weights and statistics of `model`; what else it holds counts, or is constant."""
    return [value for value in model.state_dict().values() if value.is_floating_point()]


class Fit:
    """The state of a training run, all of which a checkpoint holds."""

    PARTS = ("model", "ema", "optimizer", "scaler")
    NUMBERS = ("step", "n_updates", "rows", "train_loss", "skipped", "in_a_row")

    def __init__(self, model: nn.Module, settings: FitSettings, n_batches: int, device: torch.device):
        self.model, self.settings, self.n_batches, self.device = model.to(device), settings, n_batches, device
        self.network, self.is_frozen = None, None
        # The second `to` brings the weights of a copied recurrent layer together in memory, as cuDNN wants them.
        self.ema = copy.deepcopy(model).to(device).eval()
        self.averages, self.values = _floats(self.ema), _floats(model)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=settings.lr, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=devices.precision(device) == torch.float16)
        self.step, self.n_updates, self.rows = 0, 0, []
        self.train_loss, self.skipped, self.in_a_row = 0.0, 0, 0  # of the epoch, up to the last reading
        self.losses, self.infinite = [], []  # since then, on the device

    @property
    def total(self) -> int:
        return self.settings.epochs * self.n_batches

    @property
    def rate(self) -> float:
        return self.settings.lr * warmup_cosine(self.step, self.total, round(self.settings.warmup * self.total))

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
        self.network = torch.compile(self.model, dynamic=False) if self.settings.compile else self.model
        if distributed.is_initialized():
            self.network = DistributedDataParallel(self.network)

    def train_step(self, loss: Callable, batch: tuple) -> None:
        """Take one step with a batch on the device. The host does not wait: `read` tells the losses."""
        # A seed from the step alone: a checkpoint needs no state of a generator.
        rank = ddp.shard()[0]
        torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, self.step, rank]).generate_state(1)[0]))
        group = self.step % self.n_batches // self.settings.accumulate * self.settings.accumulate
        n_in_group = min(self.settings.accumulate, self.n_batches - group)
        is_last = self.step % self.n_batches + 1 == group + n_in_group
        is_shared = is_last or not distributed.is_initialized()
        with contextlib.nullcontext() if is_shared else self.network.no_sync():
            with devices.autocast(self.device):
                value = loss(self.network, batch)
            self.scaler.scale(value / n_in_group).backward()
        self.losses.append(value.detach())
        if is_last:
            self._update()
        self.step += 1

    def whole_step(self, loss: Callable, batch: tuple) -> None:
        """Take the last step of an epoch, which updates the weights, whatever was accumulated."""
        self.optimizer.zero_grad(set_to_none=True)
        self.step = self.n_batches - 1
        self.train_step(loss, batch)

    def _update(self) -> None:
        """Step by the gradient, divided by what it exceeds the clip by, or, if it is not finite, skip the step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group.get("lr_scale", 1)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        norm = norm / self.scaler.scale(torch.ones_like(norm))
        excess = (norm / (self.settings.clip or math.inf)).clamp(min=1)
        self.infinite.append((~torch.isfinite(norm)).float())
        if self.device.type != "mps":
            self.optimizer.grad_scale, self.optimizer.found_inf = excess, self.infinite[-1]
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif not self.infinite[-1]:  # the fused AdamW of MPS reads neither of the two
            torch._foreach_div_(gradients, excess)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # A shorter average in the first steps. All weights in one call: timm's, a call each, makes a GPU wait.
        decay = min(self.settings.ema, self.n_updates / (9 + self.n_updates))
        swa_utils.get_ema_multi_avg_fn(decay)(self.averages, self.values, self.n_updates)
        self.n_updates += 1

    def read(self) -> float:
        """Wait for the device and return the loss of the last step; sum the losses, and count the skipped steps.

        Raises BrokenStepError for a loss that is not finite, or if PATIENCE steps in a row were skipped.
        """
        losses, infinite = (torch.stack(found).tolist() if found else [] for found in (self.losses, self.infinite))
        first = self.step - len(losses)
        self.losses, self.infinite = [], []
        for k, value in enumerate(losses):
            if not math.isfinite(value):
                raise BrokenStepError(f"the loss is {value}", first + k)
            self.train_loss += value
        for is_infinite in infinite:
            self.skipped += int(is_infinite)
            self.in_a_row = self.in_a_row + 1 if is_infinite else 0
            if self.in_a_row == PATIENCE:
                raise BrokenStepError(f"the gradient was not finite in {PATIENCE} steps in a row", self.step - 1)
        return losses[-1] if losses else math.nan

    @property
    def may_pause(self) -> bool:
        """Whether no gradient is being accumulated, so that a checkpoint holds everything."""
        return self.step % self.n_batches % self.settings.accumulate == 0

    def end_epoch(self, validation: dict) -> None:
        """Add the row of the epoch to the log, with the mean loss of its batches over all processes."""
        loss = ddp.mean(self.train_loss / self.n_batches, self.device)
        lr = self.optimizer.param_groups[-1]["lr"]
        row = {"epoch": len(self.rows), "lr": lr, "train_loss": loss, "skipped": self.skipped}
        self.rows.append(row | validation)
        self.train_loss, self.skipped = 0.0, 0

    def averaged(self) -> nn.Module:
        """Return the model with the averaged weights, the same in all processes."""
        if distributed.is_initialized():
            for buffer in self.ema.buffers():
                distributed.broadcast(buffer, 0)
        return self.ema

    def state(self) -> dict:
        """Return the state after the last `read`."""
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return parts | {name: getattr(self, name) for name in self.NUMBERS}

    def restore(self, state: dict) -> None:
        # Older checkpoints hold the average inside a module.
        state = state | {"ema": {key.removeprefix("module."): value for key, value in state["ema"].items()}}
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        for name in self.NUMBERS:
            setattr(self, name, state[name])

    def write(self, path: Path) -> None:
        with storage.writing(path) as temporary, temporary.open("wb") as file:
            torch.save(self.state(), file)
