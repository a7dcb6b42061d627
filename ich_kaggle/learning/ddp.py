"""Several processes on one run, as torchrun starts them: who waits for whom, and what they bring together."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from ich_kaggle.common import locks


@contextlib.contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the other processes if torchrun started this one; give the device it works on."""
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    # A first run caches a million slices while the others wait.
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(days=2))
    try:
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        yield f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu"
    finally:
        distributed.destroy_process_group()


def shard() -> tuple[int, int]:
    """Return which process this is, and of how many."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


@contextlib.contextmanager
def first() -> Iterator[bool]:
    """Let the first process do what follows before the others do, who then find it done; give whether this is it."""
    rank, world = shard()
    if rank > 0:
        distributed.barrier()
    yield rank == 0
    if rank == 0 and world > 1:
        distributed.barrier()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep all other commands from `path` inside, see locks.locked: the first process does, for all of them."""
    with locks.locked(path) if shard()[0] == 0 else contextlib.nullcontext():
        yield


def gather(part: np.ndarray) -> np.ndarray:
    """Return the rows that `shard` dealt out, `part` (m, ...) to this process, in their order: (n, ...)."""
    rank, world = shard()
    if world == 1:
        return part
    parts = [None] * world
    distributed.all_gather_object(parts, part)
    whole = np.empty((sum(map(len, parts)), *part.shape[1:]), part.dtype)
    for k, other in enumerate(parts):
        whole[k::world] = other
    return whole
