"""Training of one fold by several processes of torchrun: order, sharding and gathering."""

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
    """Join the process group if torchrun started this process, and yield the name of its device."""
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    # In a first run the others wait until a million slices are cached.
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(days=2))
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    yield f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu"
    distributed.destroy_process_group()  # after an error it would wait for the others, which torchrun ends


def shard() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


@contextlib.contextmanager
def first() -> Iterator[bool]:
    """Run the block in the first process before the others, and yield whether this is the first."""
    rank, world = shard()
    if rank > 0:
        distributed.barrier()
    yield rank == 0
    if rank == 0 and world > 1:
        distributed.barrier()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lock `path` against other commands, see locks.locked; the first process holds the lock for all."""
    with locks.locked(path) if shard()[0] == 0 else contextlib.nullcontext():
        yield


def mean(value: float, device: torch.device) -> float:
    """Return the mean of `value` over all processes."""
    world = shard()[1]
    if world == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return total.item() / world


def gather(part: np.ndarray) -> np.ndarray:
    """Return the rows of all processes in the original order, (n, ...), from the `part` (m, ...) of this one."""
    rank, world = shard()
    if world == 1:
        return part
    parts = [None] * world
    distributed.all_gather_object(parts, part)
    whole = np.empty((sum(map(len, parts)), *part.shape[1:]), part.dtype)
    for k, other in enumerate(parts):
        whole[k::world] = other
    return whole
