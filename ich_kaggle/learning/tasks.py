"""From the settings of a run to its model's config, loss (`slice_loss`), data loaders and initial weights."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import tables, windows
from ich_kaggle.common.labels import ANY
from ich_kaggle.learning import augment, datasets, ddp, fit, initial_model, neighbours, pretrained, slice_model

log = logging.getLogger(__name__)

CONTEXTS = ("windows", "slices", "both")
WINDOWS = {windows.NAMES[one].split()[0]: one for one in windows.CACHED}
WINDOW = list(WINDOWS)[1]  # of three slices, unless another is named


@dataclass(frozen=True)
class Task:
    """The settings of sampling, labels and loss, and the initial weights."""

    batch_size: int = 32
    weights: str = "imagenet"
    init: str | None = None
    init_head: str = "keep"
    sampler: str = "all"
    per_study: int = 4
    soften: float = 0.0
    focal: float = 0.0
    side_weight: float = 0.0


def slice_config(
    arch: str,
    *,
    image_size: int = 384,
    cache_size: int = 512,
    context: str = "windows",
    stride: int = 1,
    window: str = WINDOW,
    side_weight: float = 0.0,
    **rest,
) -> slice_model.SliceConfig:
    """Return the config of a model whose input is three windows of a slice, one `window` of three slices, or both."""
    offsets = (0,) if context == "windows" else (-stride, 0, stride)
    shown = (WINDOWS[window],) if context == "slices" else windows.CACHED
    n_targets = len(offsets) if side_weight else 1
    return slice_model.SliceConfig(
        arch, image_size, cache_size, windows=shown, offsets=offsets, n_targets=n_targets, **rest
    )


def slice_loss(model, batch: tuple, focal: float = 0.0, side_weight: float = 0.0):
    """Return the loss of a batch.

    With targets of neighbouring slices, (n, k, 6), theirs is weighted by `side_weight` and the middle one by 1.
    """
    images, target, _ = batch
    logits = model(images)
    if logits.ndim == 2:
        return fit.bce(logits, target, focal)
    middle = logits.shape[1] // 2
    losses = [fit.bce(logits[:, i], target[:, i], focal) for i in range(logits.shape[1])]
    shares = [1 if i == middle else side_weight for i in range(len(losses))]
    return sum(share * loss for share, loss in zip(shares, losses, strict=True)) / sum(shares)


def slice_loader(
    table: pd.DataFrame,
    folder: Path,
    config: slice_model.SliceConfig,
    *,
    batch_size: int,
    workers: int,
    move: augment.Augment = augment.NONE,
    seed: int | None = None,
    soften: float = 0.0,
    **batches,
):
    """Return a loader of the cached slices of `table`, in its order, or shuffled and moved where `seed` is given.

    `table` holds whole series, in the order of the slice table. `batches` go to `datasets.loader`.
    """
    target = tables.targets(table)
    if soften:
        target = neighbours.soften(target, neighbours.neighbours(table.series_id, table.position, (-1, 1)), soften)
    beside = neighbours.neighbours(table.series_id, table.position, config.offsets)
    dataset = datasets.SliceDataset(
        folder,
        table.slice_id,
        target if config.n_targets == 1 else target[beside],
        partial(augment.apply, augment=move, size=config.image_size, n_windows=len(config.windows)),
        beside=beside,
        channels=config.channels,
        swap=move.swap,
        seed=seed or 0,
    )
    return datasets.loader(dataset, batch_size, workers, seed, **batches)


@dataclass(frozen=True)
class Plan:
    """The settings by which every fold of a run is trained."""

    config: slice_model.SliceConfig
    settings: fit.FitSettings
    move: augment.Augment
    task: Task

    @property
    def loss(self) -> Callable:
        return partial(slice_loss, focal=self.task.focal, side_weight=self.task.side_weight)

    def loaders(self, seen: pd.DataFrame, held_out: pd.DataFrame, cache_dir: Path, workers: int) -> tuple:
        """Return a loader of the slices `seen`, sampled, augmented and shuffled, and one of `held_out`, in order.

        Each of several processes loads its part of both.
        """
        draw = neighbours.sampler(
            self.task.sampler,
            patient_id=seen.patient_id,
            study_id=seen.study_id,
            is_positive=tables.targets(seen)[:, ANY] > 0,
            per_study=self.task.per_study,
        )
        same = dict(batch_size=self.task.batch_size, workers=workers, shard=ddp.shard())
        load = partial(slice_loader, folder=cache_dir, config=self.config, **same)
        return load(seen, seed=self.settings.seed, move=self.move, soften=self.task.soften, draw=draw), load(held_out)


def new_model(plan: Plan, work_dir: Path, prevalence: np.ndarray, k: int) -> slice_model.SliceModel:
    """Return the model of fold `k` at its start: from the initial model, or from weights with a head for `prevalence`.

    `prevalence` (6,) is that of the slices it will be trained on.
    """
    fit.set_seed(plan.settings.seed)
    model, task = slice_model.SliceModel(plan.config), plan.task
    if task.init is not None:
        log.info(initial_model.start(model, initial_model.find(work_dir, task.init, k), task.init_head, prevalence))
        return model
    log.info(pretrained.load(model.backbone, plan.config.arch, task.weights, work_dir / "weights"))
    slice_model.start_at_prevalence(model, prevalence)
    return model
