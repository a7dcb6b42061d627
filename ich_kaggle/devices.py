"""Where a model computes, and how that keeps its memory."""

import contextlib
import ctypes
import logging

import torch

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def _keep_memory() -> None:
    # Activations are given back and asked for anew at every step; their fresh pages took a quarter of its time.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; auto is the first GPU on which an operation runs, else the CPU."""
    device = torch.device(name) if name != "auto" else _first_that_runs()
    if device.type == "cpu":
        _keep_memory()
    return device


def _first_that_runs() -> torch.device:
    if torch.cuda.is_available():
        try:
            torch.zeros(8, device="cuda").add_(1).sum().item()
            return torch.device("cuda")
        except RuntimeError as error:
            log.info("the GPU can't run this build of torch (%s): using the CPU", str(error).splitlines()[0])
    return torch.device("cpu")
