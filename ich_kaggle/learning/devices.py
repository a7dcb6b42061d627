"""Choice of the device on which a model runs."""

import functools
import logging
import os

import torch

from ich_kaggle.common import cli, parallel

log = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """Return the device `name`; auto is the first GPU if an operation runs on it, and otherwise the CPU.

    Raises ValueError for a device that does not exist.
    """
    device = _first_that_runs() if name == "auto" else _named(name)
    if device.type == "cpu":
        parallel.keep_memory()
    return device


def _named(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        told = cli.printable(str(error).strip().partition("\n")[0], 200)
        raise ValueError(f"--device {name}: {told}: give auto or cpu") from error
    return device


def _first_that_runs() -> torch.device:
    if torch.cuda.is_available():
        try:
            # Each process of torchrun tries its own GPU, because the trial keeps some memory.
            torch.zeros(8, device=f"cuda:{os.environ.get('LOCAL_RANK', 0)}").add_(1).sum().item()
            return torch.device("cuda")
        except RuntimeError as error:
            _say_once(f"the GPU can't run this build of torch ({str(error).splitlines()[0]}): using the CPU")
    else:
        _say_once("no GPU found: using the CPU")
    return torch.device("cpu")


@functools.cache
def _say_once(text: str) -> None:
    log.info(text)
