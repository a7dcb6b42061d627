"""Time and memory of training steps, and the log for TensorBoard."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch
from torch import nn

# Files of the memory of a Linux control group: folder, limit, usage, and the key of the file cache in memory.stat.
GROUPS = (
    ("", "memory.max", "memory.current", "file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)

WINDOW, LONGEST = 10.0, 30.0  # seconds: shortest and longest measurement of a rate


def seconds_per_batch(batches: Iterable[tuple], work: Callable[[tuple], object], n_queued: int = 0) -> float:
    """Return the mean time in seconds of loading a batch and doing `work` with it, in the steady state.

    The first `n_queued` batches, which the loader prepares before the first request, and the one after them are not
    timed; with few batches, the first half is not. The measurement ends after WINDOW seconds and three times as many
    batches as were not timed, after LONGEST seconds, or at the end of `batches`.
    """
    n_first, ends = n_queued + 1, [time.perf_counter()]
    for batch in batches:
        work(batch)
        ends.append(time.perf_counter())
        timed = ends[n_first:]
        is_enough = len(timed) > 3 * n_first and timed[-1] - timed[0] >= WINDOW
        if is_enough or ends[-1] - ends[0] >= LONGEST:
            break
    n = len(ends) - 1
    first = min(n_first, n // 2)
    return (ends[-1] - ends[first]) / (n - first)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process on `device` in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int:
    """Return the free memory for this process in bytes: of the machine, or of its control group if that is less."""
    room = min([psutil.virtual_memory().available, *_group_room(Path("/sys/fs/cgroup"))])
    return max(0, room) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes share it


def _group_room(root: Path) -> list[int]:
    """Return the free bytes of the control group at `root`, counting its file cache as free; [] without a limit."""
    for folder, limit, used, cache in GROUPS:
        try:
            room = int((root / folder / limit).read_text()) - int((root / folder / used).read_text())
            return [room + int(dict(map(str.split, (root / folder / "memory.stat").open()))[cache])]
        except (OSError, ValueError, KeyError):  # "max" is not a number
            continue
    return []


def activation_bytes(model: nn.Module, inputs: torch.Tensor) -> int:
    """Return the bytes of activations that a training step of `model` on `inputs` keeps for the gradient."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model.train()(inputs)  # kept until the sum is taken, so that no address is reused
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    total = sum(size for place, size in kept.items() if place not in own)
    del outputs
    return total


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


def summary_writer() -> type:
    """Return TensorBoard's writer. Raises ImportError naming the extra to install."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs its package: pip install 'ich_kaggle[tensorboard]'") from error
    return SummaryWriter


def board(folder: Path) -> Callable[[dict], None]:
    """Return a function that adds a row of the log to the TensorBoard files in `folder`."""
    writer = summary_writer()(folder)

    def add(row: dict) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    return add
