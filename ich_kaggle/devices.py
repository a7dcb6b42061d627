"""Where a model computes."""

import logging

import torch

from ich_kaggle import parallel

log = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; auto is the first GPU on which an operation runs, else the CPU."""
    device = torch.device(name) if name != "auto" else _first_that_runs()
    if device.type == "cpu":
        parallel.keep_memory()
    return device


def _first_that_runs() -> torch.device:
    if torch.cuda.is_available():
        try:
            torch.zeros(8, device="cuda").add_(1).sum().item()
            return torch.device("cuda")
        except RuntimeError as error:
            log.info("the GPU can't run this build of torch (%s): using the CPU", str(error).splitlines()[0])
    return torch.device("cpu")
