import os

import pytest
import torch

FOUND = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
DEVICE = os.environ.get("ICH_GPU_DEVICE", FOUND)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or the device that ICH_GPU_DEVICE names: cpu runs all that needs no GPU of these tests."""
    if DEVICE is None:
        pytest.skip("no GPU: ICH_GPU_DEVICE=cpu runs these tests on the CPU")
    return torch.device(DEVICE)


@pytest.fixture
def cuda(device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("for CUDA alone")
    return device
