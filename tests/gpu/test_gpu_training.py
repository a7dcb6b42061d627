"""Training on the GPU against training on the CPU, from the same weights, with the same batches."""

import copy
import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ich_kaggle.learning import datasets, devices, fit, inference, slice_model, tasks
from ich_kaggle.learning.fit import Checkpoint, Fit, FitSettings
from ich_kaggle.second_level import fit as second_level_fit
from ich_kaggle.second_level import sequence_models, series_dataset

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
SIZE, BATCH, STEPS = 64, 16, 30
# Largest difference of the mean loss of ten steps from that of the CPU. Float32 is TF32 on CUDA: ten bits, as float16.
BOUNDS = {torch.float32: 0.01, torch.float16: 0.01, torch.bfloat16: 0.03}


class Pictures(torch.utils.data.Dataset):
    """Images whose channels are as bright as their labels say, with noise; asked for as (epoch, row)."""

    def __len__(self) -> int:
        return 5 * BATCH

    def __getitem__(self, item):
        rng = np.random.default_rng(item[1])
        target = (rng.random(6) < 0.5).astype(np.float32)
        bright = 60 + 60 * (target[:3] + target[3:])
        image = rng.normal(bright, 30, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
        return torch.from_numpy(image), torch.from_numpy(target), item[1]


def asked_for(dtype: torch.dtype, device: torch.device, monkeypatch) -> None:
    """Let `device` compute in `dtype`, or skip where it cannot."""
    if device.type == "mps" and dtype != torch.float32:
        pytest.skip("MPS is used in float32 alone")
    if (device.type, dtype) == ("cuda", torch.bfloat16) and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    monkeypatch.setattr(devices, "precision", lambda _: dtype)


def loader():
    return datasets.loader(Pictures(), BATCH, 0, seed=0)


def batches(n: int = STEPS) -> list[tuple]:
    one = list(loader())
    return [tuple(one[k % len(one)]) for k in range(n)]


def network() -> slice_model.SliceModel:
    torch.manual_seed(0)
    return slice_model.SliceModel(slice_model.SliceConfig("test_resnet", SIZE, SIZE))


def trained(device: torch.device, model: nn.Module | None = None, **settings) -> tuple[Fit, np.ndarray]:
    """Return a run after STEPS steps, and its losses as means of ten."""
    run = Fit(model or network(), FitSettings(epochs=STEPS, lr=1e-3, ema=0.9, **settings), 5, device)
    run.start_epoch()
    losses = []
    for batch in batches():
        fit.careful_step(run, tasks.slice_loss, batch)
        losses.append(run.read())
    return run, np.reshape(losses, (-1, 10)).mean(axis=1)


@pytest.fixture(scope="module")
def on_cpu() -> tuple[Fit, np.ndarray]:
    return trained(CPU)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_thirty_steps_lower_the_loss_as_on_the_cpu(device, on_cpu, dtype, monkeypatch):
    expected = on_cpu[1]
    asked_for(dtype, device, monkeypatch)
    run, losses = trained(device)
    assert expected[-1] < 0.8 * expected[0]
    assert np.abs(losses - expected).max() < BOUNDS[dtype]
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


def test_the_average_and_channels_last_survive(device, on_cpu):
    run, _ = trained(device)
    for model in (run.model, run.averaged()):
        kernels = [weight for weight in model.parameters() if weight.ndim == 4]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    pairs = list(
        zip(run.model.parameters(), run.averaged().parameters(), on_cpu[0].averaged().parameters(), strict=True)
    )
    assert not any(torch.equal(one, mean) for one, mean, _ in pairs if one.ndim > 1)
    lag = max((mean.cpu() - expected).abs().max().item() for _, mean, expected in pairs)
    assert lag < 0.05  # thirty steps of at most 1e-3 each, in two precisions


def test_a_compiled_network_learns_the_same(device):
    plain, compiled = trained(device)[1], trained(device, compile=True)[1]
    assert np.abs(plain - compiled).max() < 0.03


class Head(nn.Module):
    """Learns without batch norm, which sees the size of a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 6)

    def forward(self, images):
        return self.head(images.float().mean((1, 2)) / 255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_accumulated_batches_step_as_one_of_their_size_with_the_scaler(device, dtype, monkeypatch):
    asked_for(dtype, device, monkeypatch)
    weights = []
    for n in (1, 2):
        run = Fit(Head(), FitSettings(epochs=9999, lr=0.1, accumulate=n, warmup=0), n, device)
        run.start_epoch()
        for part in zip(*(piece.split(BATCH // n) for piece in batches(1)[0]), strict=True):
            fit.careful_step(run, tasks.slice_loss, part)
        run.read()
        assert run.skipped == 0
        weights.append(run.model.head.weight.detach().cpu())
    torch.testing.assert_close(*weights, rtol=0, atol=2e-3)
    assert (weights[0] - Head().head.weight).abs().max() > 0.05


def test_float16_skips_steps_until_its_scale_fits_and_then_learns(device, monkeypatch):
    asked_for(torch.float16, device, monkeypatch)
    run = Fit(Head(), FitSettings(epochs=9999, lr=0.1), 5, device)
    run.start_epoch()
    before = run.model.head.weight.detach().clone()
    for k, batch in enumerate(batches(20)):
        fit.careful_step(run, lambda model, batch, k=k: tasks.slice_loss(model, batch) * (1e36 if k < 3 else 1), batch)
        if k == 2:
            assert torch.equal(run.model.head.weight, before)
    run.read()
    assert 3 <= run.skipped < 10 and run.in_a_row == 0
    assert torch.isfinite(run.model.head.weight).all() and not torch.equal(run.model.head.weight, before)


def fitted(device, folder, model=None, every=600.0, loss=tasks.slice_loss) -> list[dict]:
    settings = FitSettings(epochs=3, lr=1e-3)
    how = dict(settings=settings, validate=lambda _: {"valid_loss": 0.0}, device=device)
    model = model or network()
    names = lambda rows: [f"ID_{row}" for row in rows]  # noqa: E731
    checkpoint = Checkpoint(folder / "state.pt", every)
    return [list(rows) for rows in fit.fit(model, loader(), loss, checkpoint=checkpoint, names=names, **how)][-1]


def test_a_run_stopped_and_resumed_has_the_loss_of_one_that_was_not(device, tmp_path):
    class StopError(Exception):
        pass

    def stopping(model, batch):
        stopping.n += 1
        if stopping.n == 8:
            raise StopError
        return tasks.slice_loss(model, batch)

    stopping.n = 0
    whole = fitted(device, tmp_path / "whole")
    with pytest.raises(StopError):
        fitted(device, tmp_path / "cut", every=0.0, loss=stopping)
    resumed = fitted(device, tmp_path / "cut")
    expected, found = ([row["train_loss"] for row in rows] for rows in (whole, resumed))
    assert found == (expected if device.type == "cpu" else pytest.approx(expected, abs=0.01))


def test_a_loss_that_is_no_number_names_its_batch(device, tmp_path):
    def spoilt(model, batch):
        seen.append(batch[-1])
        return tasks.slice_loss(model, batch) * (float("nan") if len(seen) > 7 else 1)

    seen = []
    with pytest.raises(RuntimeError) as error:
        fitted(device, tmp_path, loss=spoilt)
    names = ", ".join(f"ID_{row}" for row in seen[7].tolist())
    assert str(error.value).startswith(f"the loss is nan at step 7, in the batch {names}: ")


def test_out_of_memory_gives_flags_that_fit(cuda):
    batch = (torch.zeros(512, 224, 224, 3, dtype=torch.uint8), torch.zeros(512, 6), torch.arange(512))
    settings = FitSettings(epochs=9999)

    def run() -> Fit:
        made = Fit(slice_model.SliceModel(slice_model.SliceConfig("resnet18", 224, 224)), settings, 100, cuda)
        made.start_epoch()
        return made

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3e9) / total)
    try:
        with pytest.raises(RuntimeError, match="512 at once do not fit, .* do: give --batch-size") as error:
            fit.careful_step(run(), tasks.slice_loss, batch)
        n, accumulate = map(int, re.search(r"--batch-size (\d+) --accumulate (\d+)", str(error.value)).groups())
        assert n * accumulate >= 512
        del error
        gc.collect()  # the traceback held the run
        torch.cuda.empty_cache()
        again = run()
        for _ in range(3):
            fit.careful_step(again, tasks.slice_loss, tuple(part[:n] for part in batch))
        assert np.isfinite(again.read())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("kind", sequence_models.KINDS)
def test_second_levels_answer_as_on_the_cpu(device, kind):
    torch.manual_seed(0)
    model = sequence_models.SequenceModel(sequence_models.SequenceConfig(kind, (5, 3), 2, hidden=32))
    nn.init.normal_(model.head.weight)
    inputs = series()
    rows = np.ones(len(inputs.target), bool)
    there = copy.deepcopy(model).to(device)
    expected, found = (
        inference.predict(one, second_level_fit.series_loader(inputs, rows, 4), where)
        for one, where in ((model, CPU), (there, device))
    )
    np.testing.assert_allclose(found, expected, atol=0.02)  # TF32; bfloat16 would be 0.1 off
    assert np.abs(found).max() > 1


def series() -> series_dataset.Inputs:
    rng, lengths = np.random.default_rng(0), (1, 7, 60, 30)
    n, number = sum(lengths), np.repeat(np.arange(len(lengths)), lengths)
    return series_dataset.Inputs(
        [rng.normal(size=(n, size)).astype(np.float16) for size in (5, 3)],
        rng.normal(size=(n, 2, 6)).astype(np.float32),
        rng.normal(size=(n, 6)).astype(np.float32),
        (rng.random((n, 6)) < 0.3).astype(np.float32),
        np.concatenate([np.arange(length) * 5.0 for length in lengths]),
        number,
        number,
    )


@pytest.mark.parametrize("kind", ["slices", *sequence_models.KINDS])
def test_no_step_waits_for_the_gpu(cuda, kind):
    if kind == "slices":
        model, loss, ready = network(), tasks.slice_loss, list(loader())
    else:
        inputs = series()
        model = sequence_models.SequenceModel(sequence_models.SequenceConfig(kind, (5, 3), 2))
        loss = second_level_fit.sequence_loss
        rows = np.ones(len(inputs.target), bool)
        ready = list(second_level_fit.series_loader(inputs, rows, 2, seed=0)) * 2
    run = Fit(model, FitSettings(epochs=9), len(ready), cuda)
    run.start_epoch()
    for batch in ready[:2]:
        fit.careful_step(run, loss, tuple(batch))
    run.read()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in ready[2:]:
            fit.careful_step(run, loss, tuple(batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(run.read())


def test_batches_arrive_whole_beside_the_computing(device):
    sums, busy = [], torch.ones(512, 512, device=device)
    parts = [tuple(part.pin_memory() if device.type == "cuda" else part for part in batch) for batch in batches(20)]
    for batch in parts:
        for _ in range(20):
            busy = busy @ busy / 512
        sums.append(devices.moved(batch, device)[0].long().sum())
    assert torch.stack(sums).tolist() == [batch[0].long().sum().item() for batch in parts]


RANK = """
import os, sys, torch
from torch import distributed
sys.path.insert(0, sys.argv[3])
import test_gpu_training as t
rank = int(os.environ["RANK"])
device = torch.device(sys.argv[1] if sys.argv[2] == "gloo" else f"cuda:{rank}")
if device.index is not None:
    torch.cuda.set_device(device)
distributed.init_process_group(sys.argv[2])
run = t.Fit(t.Head(), t.FitSettings(epochs=99, lr=0.1, accumulate=2), 10, device)
run.start_epoch()
for images, target, rows in t.batches(10):
    t.fit.careful_step(run, t.tasks.slice_loss, (images[rank::2], target[rank::2], rows[rank::2]))
run.read()
weight = run.model.head.weight.detach().cpu().flatten()
print("weights", *(round(value, 3) for value in weight.tolist()), flush=True)
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_two_processes_learn_as_one_does(device, tmp_path, backend):
    if backend == "nccl" and (device.type != "cuda" or torch.cuda.device_count() < 2):
        pytest.skip("nccl takes two GPUs")
    (tmp_path / "rank.py").write_text(RANK)
    where = str(device) if device.type == "cuda" else "cpu"  # gloo knows no MPS
    ranks = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    argv = [sys.executable, *ranks, str(tmp_path / "rank.py"), where, backend, str(Path(__file__).parent)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    one, other = (line for line in done.stdout.splitlines() if line.startswith("weights"))
    run = Fit(Head(), FitSettings(epochs=99, lr=0.1, accumulate=2), 10, CPU)
    run.start_epoch()
    for batch in batches(10):
        fit.careful_step(run, tasks.slice_loss, batch)
    assert one == other
    found = [float(value) for value in one.split()[1:]]
    np.testing.assert_allclose(found, run.model.head.weight.detach().flatten(), atol=0.02)
