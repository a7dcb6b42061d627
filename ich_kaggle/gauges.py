"""What a run tells of itself beside its log: time and memory of a few steps, and TensorBoard."""

import itertools
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch


def seconds_per_batch(batches: Iterable[tuple], work: Callable[[tuple], object], n: int = 3) -> float:
    """Return the median time of taking one of the first `n` of `batches` and doing `work` with it."""
    times, began = [], time.perf_counter()
    for batch in itertools.islice(batches, n):
        work(batch)
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return float(np.median(times))


def peak_memory(device: torch.device) -> int:
    """Return the bytes that this process has held at most on `device`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def size_on_disk(write: Callable[[Path], None]) -> int:
    """Return the bytes of the file that `write(path)` writes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").stat().st_size


def duration(seconds: float) -> str:
    """Return `seconds` as 42 s, 17 min or 3.5 h."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5999 else f"{seconds / 3600:.1f} h"


def board(folder: Path) -> Callable[[dict], None]:
    """Return a function that adds a row of the log to TensorBoard's files in `folder`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs its package: pip install 'ich_kaggle[tensorboard]'") from error
    writer = SummaryWriter(folder)

    def add(row: dict) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    return add
