"""Data sets and batches of cached slices."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ich_kaggle.common import parallel, paths
from ich_kaggle.dicom import png

SMALL_SHM = "/dev/shm is too small for the batches of the loader's workers"
LONGEST_TEMP = (103 if sys.platform == "darwin" else 107) - 32  # bytes; workers add 32 for sockets, or hang
LARGER_SHM = "give the container --shm-size 8g or --ipc=host, or this command fewer --workers (0: none)"


class SliceDataset(Dataset):
    """Cached slices: uint8 (size, size, c), their target float32 (6,), and their row.

    `beside` (n, k) are the rows whose `channels` an image is made of, in turn; a `target` (n, k, 6) is theirs. `swap`
    is the probability of reversing their order. An item is indexed by (epoch, row): the random numbers of
    `move(image, rng)` depend on these and the seed only.
    """

    def __init__(
        self,
        folder: Path,
        slice_ids: Sequence[str],
        target: np.ndarray,
        move: Callable[[np.ndarray, np.random.Generator], np.ndarray],
        *,
        beside: np.ndarray | None = None,
        channels: Sequence[int] = (0, 1, 2),
        swap: float = 0.0,
        seed: int = 0,
    ):
        # One block of bytes: a list of a million paths takes seconds, and a gigabyte in each worker.
        self.folder, self.slice_ids = folder, np.asarray(slice_ids, dtype="S")
        self.beside = np.arange(len(self.slice_ids))[:, None] if beside is None else beside
        self.target, self.move, self.channels, self.seed = target, move, list(channels), seed
        self.swap = swap

    def __len__(self) -> int:
        return len(self.slice_ids)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, int]:
        epoch, row = item
        rng = np.random.default_rng([self.seed, epoch, row])
        rows, target = self.beside[row], self.target[row]
        if self.swap and rng.random() < self.swap:
            rows, target = rows[::-1], target[::-1] if target.ndim == 2 else target
        image = self.move(self.image(rows), rng)
        return (
            torch.from_numpy(np.require(image, requirements=("C", "W"))),
            torch.tensor(np.ascontiguousarray(target)),
            row,
        )

    def image(self, rows: np.ndarray) -> np.ndarray:
        """Return the channels of the slices `rows`, one after the other: uint8 (h, w, c)."""
        seen = {row: self.read(row) for row in rows}
        if self.channels != [0, 1, 2]:
            seen = {
                row: cv2.merge([cv2.extractChannel(image, c) for c in self.channels]) for row, image in seen.items()
            }
        image = cv2.merge([seen[row] for row in rows]) if len(rows) > 1 else seen[rows[0]]
        return image.reshape(*image.shape[:2], -1)

    def read(self, row: int) -> np.ndarray:
        """Return the cached image of a row. Raises ValueError naming a damaged file and its remedy."""
        path = paths.cached(self.folder, self.slice_ids[row].decode())
        try:
            return png.read(path)
        except (OSError, ValueError) as error:
            size, _, crop = self.folder.name.partition("-")
            command = f"python -m ich_kaggle.cache --cache-size {size}" + (f" --crop {crop}" if crop else "")
            raise ValueError(
                f"{path} can't be read ({type(error).__name__}): run {command} --verify, then {command} to make it anew"
            ) from error


class Batches:
    """The batches of an epoch, as lists of (epoch, row): shuffled by seed and epoch, of at most two sizes, n and n - 1.

    `draw(rng)` gives the rows of an epoch, in random order (None: all rows). Each of several processes, `shard` (rank,
    number), takes its part of every batch, or without a seed its part of the rows: none is dropped or doubled. `epoch`
    and `start` (the first batch) may be set between epochs, so that a run can resume.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int | None = None,
        *,
        draw: Callable[[np.random.Generator], np.ndarray] | None = None,
        shard: tuple[int, int] = (0, 1),
    ):
        self.n, self.seed, self.epoch, self.start, self.draw = n, seed, 0, 0, draw
        self.rank, self.n_shards = shard
        n_rows = len(self.rows())
        self.n_batches = -(-n_rows // batch_size)
        if seed is not None and n_rows:
            self.n_batches = max(1, min(self.n_batches, n_rows // self.n_shards))

    def __len__(self) -> int:
        return self.n_batches

    def rows(self) -> np.ndarray:
        if self.seed is None:
            return np.arange(self.n)[self.rank :: self.n_shards]
        rng = np.random.default_rng([self.seed, self.epoch])
        return rng.permutation(self.n) if self.draw is None else self.draw(rng)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if not self.n_batches:
            return
        for rows in np.array_split(self.rows(), self.n_batches)[self.start :]:
            mine = rows if self.seed is None else rows[self.rank :: self.n_shards]
            yield [(self.epoch, int(row)) for row in mine]


def in_parts(sizes: Sequence[int], batch_size: int) -> list[list[tuple[int, int]]]:
    """Return the batches of consecutive parts of `sizes` rows, as those of Batches: none crosses into the next part."""
    stops = np.cumsum(sizes)
    parts = [np.arange(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
    batches = [batch for part in parts for batch in np.array_split(part, -(-len(part) // batch_size))]
    return [[(0, int(row)) for row in batch] for batch in batches]


def loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    seed: int | None = None,
    *,
    sizes: Sequence[int] | None = None,
    **batches,
) -> DataLoader:
    """Return a loader of `dataset`, shuffled by `seed`, or in order without one; no worker holds any state.

    `batches` are further arguments of `Batches`; with `sizes`, the batches are those of `in_parts` instead. Workers end
    with each pass, so that training and validation never have theirs at once; ICH_START_METHOD=spawn starts them anew
    instead of by fork.
    """
    ordered = Batches(len(dataset), batch_size, seed, **batches) if sizes is None else in_parts(sizes, batch_size)
    return in_processes(dataset, ordered, workers)


def in_processes(dataset: Dataset, batches: Iterable, workers: int, joined: Callable | None = None) -> DataLoader:
    """Return a loader of the `batches` of `dataset`, loaded by `workers` processes and put together by `joined`.

    Raises ValueError if the path of the folder for temporary files is too long for them.
    """
    if workers and os.name == "posix" and len(os.fsencode(folder := tempfile.gettempdir())) > LONGEST_TEMP:
        raise ValueError(f"TMPDIR {folder} is too long for the loader's workers: set it to a shorter path, as /tmp")
    parallel.keep_memory()
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=joined,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=os.environ.get("ICH_START_METHOD") if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own, so that making an iterator draws nothing from the global one
    )


def batches(loader: DataLoader) -> Iterator[tuple]:
    """Yield the batches of `loader`. An error in a worker is raised with its own message, without the traceback.

    Raises RuntimeError with the remedy where /dev/shm, through which workers pass batches, is too small.
    """
    try:
        yield from loader
    except (ValueError, OSError) as error:
        told = str(error).strip().splitlines()[-1]  # the line below the worker's traceback
        raise ValueError(told.removeprefix(f"{type(error).__name__}: ")) from error
    except RuntimeError as error:
        if not any(text in str(error) for text in ("shared memory", "</torch_", "Bus error")):
            raise
        raise RuntimeError(f"{SMALL_SHM}: {LARGER_SHM}") from error


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    parallel.keep_memory()
