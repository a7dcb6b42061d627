import os
import subprocess
import sys

import pytest
import torch

from ich_kaggle.learning import devices


@pytest.mark.parametrize("name", ["gpu", "cuda:77"])
def test_a_device_that_there_is_not_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match=f"^--device {name}: .*: give auto or cpu$") as error:
        devices.pick_device(name)
    assert "\n" not in str(error.value)


def test_a_device_that_is_named_is_taken():
    assert devices.pick_device("cpu") == torch.device("cpu")


class Machine:
    """A machine with `n_gpus` GPUs of CUDA, or Apple's; an operation on them runs, or fails as if torch knew none."""

    def __init__(self, monkeypatch, n_gpus: int = 0, has_mps: bool = False, runs: bool = True):
        zeros = torch.zeros

        def tried(*size, device):
            if not runs:
                raise RuntimeError("no kernel image is available\nmore")
            return zeros(*size)

        monkeypatch.setattr(torch, "zeros", tried)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
        monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
        devices._say_once.cache_clear()


@pytest.mark.parametrize(
    "machine, name, said",
    [
        (dict(), "cpu", "no GPU found: using the CPU"),
        (dict(n_gpus=2), "cuda", ""),
        (dict(has_mps=True), "mps", "using the Apple GPU (MPS) in float32; operations that it lacks run on the CPU"),
        (dict(n_gpus=1, runs=False), "cpu", "the GPU can't run this build of torch (no kernel image is available): "),
        (dict(has_mps=True, runs=False), "cpu", "the Apple GPU can't run this build of torch"),
    ],
)
def test_auto_takes_the_gpu_that_runs_and_says_in_one_line_what_it_lacks(machine, name, said, monkeypatch, caplog):
    caplog.set_level("INFO")
    Machine(monkeypatch, **machine)
    assert devices.pick_device("auto") == torch.device(name)
    assert len(caplog.records) == bool(said) and said in caplog.text


@pytest.mark.parametrize(
    "name, found",
    [
        ("auto", ["cuda:0", "cuda:1"]),
        ("cuda", ["cuda:0", "cuda:1"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:1,cuda:0", ["cuda:1", "cuda:0"]),
        ("cpu,cpu", ["cpu", "cpu"]),
    ],
)
def test_auto_and_cuda_are_all_gpus_and_a_list_is_taken_in_its_order(name, found, monkeypatch):
    Machine(monkeypatch, n_gpus=2)
    assert [str(device) for device in devices.pick_devices(name)] == found


def test_the_cpu_and_apples_gpu_compute_in_float32():
    assert [devices.precision(torch.device(name)) for name in ("cpu", "mps")] == [torch.float32] * 2
    assert not devices.autocast(torch.device("cpu"))._enabled


def test_what_mps_lacks_falls_back_to_the_cpu_because_torch_is_told_before_it_is_imported():
    code = "import sys, os, ich_kaggle; print('torch' in sys.modules, os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])"
    env = {key: value for key, value in os.environ.items() if key != "PYTORCH_ENABLE_MPS_FALLBACK"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "False 1\n"
