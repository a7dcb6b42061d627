"""The devices on which models run, their precision, and the way of a batch to them."""

import functools
import logging
import os

import torch

from ich_kaggle.common import cli, parallel

log = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """Return the device `name`; auto is a GPU if an operation runs on it, else Apple's, else the CPU.

    A `cuda` without a number is the first GPU, and all of them for predictions (`together`). Raises ValueError for a
    device that does not exist.
    """
    device = _first_that_runs() if name == "auto" else _named(name)
    if device.type == "cpu":
        parallel.keep_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, which cuDNN's convolutions use anyway
    return device


def pick_devices(names: str) -> list[torch.device]:
    """Return the devices `names`, as cuda:0,cuda:1; a `cuda` without a number, and auto, are all GPUs."""
    return [one for name in names.split(",") for one in together(pick_device(name))]


def together(device: torch.device) -> list[torch.device]:
    """Return the devices that share the batches of a prediction: all GPUs for a `cuda` without a number."""
    if device.type == "cuda" and device.index is None:
        return [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    return [device]


def _named(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        told = cli.printable(str(error).strip().partition("\n")[0], 200)
        raise ValueError(f"--device {name}: {told}: give auto or cpu") from error
    return device


def _first_that_runs() -> torch.device:
    # Each process of torchrun tries its own GPU, because the trial keeps some memory.
    found = [("GPU", "cuda", f"cuda:{os.environ.get('LOCAL_RANK', 0)}")] * torch.cuda.is_available()
    found += [("Apple GPU", "mps", "mps")] * torch.backends.mps.is_available()
    for kind, name, tried in found:
        try:
            torch.zeros(8, device=tried).add_(1).sum().item()
        except RuntimeError as error:
            _say_once(f"the {kind} can't run this build of torch ({str(error).splitlines()[0]}): using the CPU")
        else:
            if name == "mps":
                _say_once("using the Apple GPU (MPS) in float32; operations that it lacks run on the CPU")
            return torch.device(name)
    if not found:
        _say_once("no GPU found: using the CPU")
    return torch.device("cpu")


@functools.cache
def _say_once(text: str) -> None:
    log.info(text)


def precision(device: torch.device) -> torch.dtype:
    """Return the dtype of autocast: bfloat16 or float16 on CUDA, float32 (no autocast) elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device) -> torch.autocast:
    """Return the context of mixed precision on `device`, which does nothing where that is float32."""
    dtype = precision(device)
    is_mixed = dtype != torch.float32
    return torch.autocast(device.type, dtype if is_mixed else None, enabled=is_mixed)


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def moved(batch: tuple, device: torch.device) -> tuple:
    """Return `batch` on `device`. On CUDA it is copied while the device computes, and the host does not wait."""
    if device.type != "cuda":
        return tuple(part.to(device) for part in batch)
    stream, main = _copies(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        batch = tuple(part.to(device, non_blocking=True) for part in batch)
    main.wait_stream(stream)
    for part in batch:
        part.record_stream(main)  # its memory is free when what was computed with it is done
    return batch
