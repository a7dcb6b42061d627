"""What the loaders read: slices from the cache."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ich_kaggle import augment, png


class SliceDataset(Dataset):
    """Cached slices: uint8 (size, size, c), their target float32 (6,), and their row.

    An item is asked for as (epoch, row): what is drawn for it depends on nothing else but the seed.
    """

    def __init__(self, files: Sequence[Path], target: np.ndarray, size: int, move: augment.Augment, seed: int):
        self.files, self.target, self.size, self.move, self.seed = files, target, size, move, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, int]:
        epoch, row = item
        rng = np.random.default_rng([self.seed, epoch, row])
        image = augment.apply(png.read(self.files[row]), self.move, rng, self.size)
        return torch.from_numpy(image), torch.tensor(self.target[row]), row


class Batches:
    """The batches of an epoch, as lists of (epoch, row): shuffled by seed and epoch, all of nearly one size.

    `epoch` and `start` (the first batch) may be set between epochs, so that a run can go on where it stopped.
    """

    def __init__(self, n: int, batch_size: int, seed: int | None = None):
        self.n, self.seed, self.epoch, self.start = n, seed, 0, 0
        self.n_batches = -(-n // batch_size)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.n)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        for rows in np.array_split(order, self.n_batches)[self.start :]:
            yield [(self.epoch, int(row)) for row in rows]


def loader(dataset: Dataset, batch_size: int, workers: int, seed: int | None = None) -> DataLoader:
    """Return a loader of `dataset`, shuffled by `seed`, or in order without one; no worker holds any state."""
    return DataLoader(
        dataset,
        batch_sampler=Batches(len(dataset), batch_size, seed),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # its own, so that making an iterator draws nothing from the global one
    )


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)
