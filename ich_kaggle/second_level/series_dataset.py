"""The dataset of the second level: series with the embeddings and logits of runs, in batches without padding.

The slices of the series of a batch are concatenated.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ich_kaggle.common import series_rows


@dataclass(frozen=True)
class Inputs:
    """The inputs of a fold of the second level, a row per slice in the order of the slice table."""

    embeddings: list[np.ndarray]  # per run float16 (n_slices, d), memory-mapped; empty for out-of-fold features
    logits: np.ndarray  # float32 (n_slices, n_runs, 6)
    smoothed: np.ndarray  # float32 (n_slices, 6): logits, the starting point of the fit
    target: np.ndarray  # float32 (n_slices, 6)
    position: np.ndarray  # mm (n_slices,)
    series: np.ndarray  # int (n_slices,), series_rows.number
    study: np.ndarray  # int (n_slices,)


@dataclass(frozen=True)
class SeriesAugment:
    """The augmentation of a training series: probabilities, and a length."""

    reverse: float = 0.5
    halve: float = 0.25  # keep every second slice
    window: float = 0.25  # keep `length` neighbouring slices
    drop: float = 0.2  # per run: its embeddings become 0 and its logits the mean of the other runs'
    length: int = 24  # slices


NONE = SeriesAugment(0, 0, 0, 0)


@dataclass(frozen=True)
class Batch:
    """The concatenated slices of several series."""

    embeddings: list[torch.Tensor]  # per run (n, d)
    logits: torch.Tensor  # (n, n_runs, 6)
    smoothed: torch.Tensor  # (n, 6)
    place: torch.Tensor  # (n, 3): gap to the previous and next slice in cm, 0 at the ends; relative position
    length: torch.Tensor  # (n_series,)
    series: torch.Tensor  # (n,), number of the series of each row
    packed: torch.Tensor  # (n,), the rows in the order of a PackedSequence
    sizes: torch.Tensor  # (longest,), the batch sizes of that, on the host always

    def __len__(self) -> int:
        return len(self.length)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """Return the batch with `change` made to all tensors that a device reads."""
        rest = (self.logits, self.smoothed, self.place, self.length, self.series, self.packed)
        return Batch([change(part) for part in self.embeddings], *map(change, rest), self.sizes)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return self.each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self.each(torch.Tensor.pin_memory)

    def record_stream(self, stream) -> None:
        self.each(lambda part: part.record_stream(stream))

    def flip(self) -> tuple["Batch", torch.Tensor]:
        """Return the batch with each series reversed, and the row numbers in that order.

        Indexing the outputs with the same row numbers restores the original order.
        """
        rows = (2 * self.length.cumsum(0) - self.length - 1)[self.series]
        rows = rows - torch.arange(len(rows), device=rows.device)
        gap_before, gap_after, relative = self.place[rows].unbind(1)
        place = torch.stack([gap_after, gap_before, relative], 1)
        embeddings = [part[rows] for part in self.embeddings]
        return replace(
            self, embeddings=embeddings, logits=self.logits[rows], smoothed=self.smoothed[rows], place=place
        ), rows


def draw_rows(start: int, stop: int, augment: SeriesAugment, rng: np.random.Generator) -> np.ndarray:
    """Return one random selection of the rows from `start` to `stop` of a series, in the order of the slices drawn."""
    rows = np.arange(start, stop)
    reverse, halve, window = rng.random(3) < (augment.reverse, augment.halve, augment.window)
    if halve and len(rows) > 1:
        rows = rows[rng.integers(2) :: 2]
    if window and len(rows) > augment.length:
        first = rng.integers(len(rows) - augment.length + 1)
        rows = rows[first : first + augment.length]
    return rows[::-1] if reverse else rows


def draw_dropped(n_runs: int, augment: SeriesAugment, rng: np.random.Generator) -> np.ndarray:
    """Return a random choice of runs to drop, bool (n_runs,): never all of them."""
    dropped = rng.random(n_runs) < augment.drop
    dropped[rng.integers(n_runs)] = False
    return dropped


class SeriesDataset(Dataset):
    """The series `numbers` of `inputs`. An item is (embeddings, logits, smoothed logits, place, target, rows).

    Its index is (epoch, i): the random draws depend on these and the seed alone.
    """

    def __init__(self, inputs: Inputs, numbers: np.ndarray, augment: SeriesAugment = NONE, seed: int = 0):
        start, stop = series_rows.bounds(inputs.series)
        self.spans = list(zip(start[numbers].tolist(), stop[numbers].tolist(), strict=True))
        self.inputs, self.augment, self.seed = inputs, augment, seed
        self.relative = series_rows.relative(inputs.series, inputs.position)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, item: tuple[int, int]) -> tuple:
        epoch, index = item
        rng = np.random.default_rng([self.seed, epoch, index])
        rows = draw_rows(*self.spans[index], self.augment, rng)
        logits, embeddings = self.inputs.logits[rows], [part[rows] for part in self.inputs.embeddings]
        dropped = draw_dropped(logits.shape[1], self.augment, rng)
        if dropped.any():
            logits[:, dropped] = logits[:, ~dropped].mean(axis=1, keepdims=True)
            embeddings = [part * np.float16(not gone) for part, gone in zip(embeddings, dropped, strict=False)]
        gap = np.abs(np.diff(self.inputs.position[rows])) / 10
        place = np.column_stack([np.append(0, gap), np.append(gap, 0), self.relative[rows]]).astype(np.float32)
        return embeddings, logits, self.inputs.smoothed[rows], place, self.inputs.target[rows], rows


def join(items: list[tuple]) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Return the items of a SeriesDataset as one batch, and the target (n, 6) and rows (n,) of its slices."""
    embeddings, *rest, target, rows = zip(*items, strict=True)
    embeddings = [_cat(parts) for parts in zip(*embeddings, strict=True)]
    length = torch.tensor([len(part) for part in rows])
    return Batch(embeddings, *map(_cat, rest), length, *layout(length)), _cat(target), _cat(rows)


def layout(length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return series, packed and sizes of a Batch of series of `length`, on the host: a device would be waited for."""
    series = torch.arange(len(length)).repeat_interleave(length)
    ordered, by_length = length.sort(descending=True, stable=True)
    start = (length.cumsum(0) - length)[by_length]
    step = torch.arange(int(ordered[0]))[:, None]
    is_there = step < ordered
    return series, (start + step)[is_there], is_there.sum(1)


def _cat(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))


def loader(dataset: SeriesDataset, batches: Iterable[list[tuple[int, int]]]) -> DataLoader:
    """Return a loader of the `batches` of `dataset`, each a list of (epoch, index).

    It has no workers: reading a series takes less time than passing it between processes.
    """
    pin = torch.cuda.is_available()
    return DataLoader(dataset, batch_sampler=batches, collate_fn=join, pin_memory=pin, generator=torch.Generator())
