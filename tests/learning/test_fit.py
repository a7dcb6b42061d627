import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from ich_kaggle.common import metric
from ich_kaggle.learning import datasets, training_state
from ich_kaggle.learning import fit as fit_module
from ich_kaggle.learning.fit import Checkpoint, Fit, FitSettings
from ich_kaggle.second_level import series_dataset

CPU = torch.device("cpu")
N = 24


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Rows(TensorDataset):
    """Items are asked for as (epoch, row)."""

    def __getitem__(self, item):
        return (*super().__getitem__(item[1]), item[1])


class Net(nn.Module):
    """Two layers, a batch norm and dropout: what a resumed run could get wrong."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        return self.head(self.body(x))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def data(batch_size: int = 5, n: int = N):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    target = (x @ rng.normal(size=(4, 6)) > 0).astype(np.float32)
    return datasets.loader(Rows(torch.from_numpy(x), torch.from_numpy(target)), batch_size, 0, seed=0)


def loss(model, batch):
    return fit_module.bce(model(batch[0]), batch[1])


def fit(model, folder, loader=None, settings=None, validate=lambda _: {"valid_loss": 0.0}, every=600.0, **options):
    settings = settings or FitSettings(epochs=3, lr=0.05)
    steps = fit_module.fit(
        model,
        loader or data(),
        options.pop("loss", loss),
        settings=settings,
        validate=validate,
        device=CPU,
        checkpoint=Checkpoint(folder / "state.pt", every),
        **options,
    )
    return [list(rows) for rows in steps][-1]


def test_the_loss_is_the_metric():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 3, (50, 6)), rng.integers(0, 2, (50, 6)).astype(float)
    ours = fit_module.bce(torch.from_numpy(logits), torch.from_numpy(target)).item()
    assert ours == pytest.approx(metric.log_loss(target, 1 / (1 + np.exp(-logits))), abs=1e-9)


def test_the_focal_loss_counts_each_term_by_how_wrong_it_is():
    logits, target = torch.tensor([[math.log(3)] * 6]), torch.ones(1, 6)  # probability 0.75
    assert fit_module.bce(logits, target, 2.0).item() == pytest.approx(-math.log(0.75) * 0.25**2, rel=1e-5)
    assert fit_module.bce(logits, target, 0.0).item() == pytest.approx(-math.log(0.75), rel=1e-5)


def test_the_focal_loss_can_be_learned_by():
    logits = torch.zeros(2, 6, requires_grad=True)
    fit_module.bce(logits, torch.ones(2, 6), 2.0).backward()
    assert (logits.grad < 0).all()


def test_the_rate_warms_up_and_falls_along_a_cosine_to_zero():
    rates = [training_state.warmup_cosine(step, 100, 10) for step in range(101)]
    assert rates[:11] == pytest.approx([(i + 1) / 11 for i in range(10)] + [1])
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def test_fitting_lowers_the_loss_and_leaves_the_averaged_weights(tmp_path):
    model, averaged = net(), []
    rows = fit(model, tmp_path, settings=FitSettings(epochs=15, lr=0.05), validate=lambda m: averaged.append(m) or {})
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), averaged[-1].parameters(), strict=True))


def test_the_average_lags_behind_the_weights_and_follows_them_wholly_at_share_0():
    for ema, is_same in ((0.0, True), (0.99, False)):
        run = Fit(net(), FitSettings(epochs=1, lr=0.1, ema=ema), 5, CPU)
        run.start_epoch()
        for batch in data():
            run.train_step(loss, tuple(batch))
        pairs = zip(run.model.parameters(), run.ema.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == is_same


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", range(1, 15))
def test_a_run_stopped_at_any_step_ends_as_one_that_was_not(tmp_path, stop, accumulate):
    class StopError(Exception):
        pass

    def stopping(model, batch):
        stopping.n += 1
        if stopping.n > stop:
            raise StopError
        return loss(model, batch)

    settings = FitSettings(epochs=3, lr=0.05, accumulate=accumulate)
    whole, resumed = net(), net()
    rows = fit(whole, tmp_path / "whole", settings=settings)
    stopping.n = 0
    with pytest.raises(StopError):
        fit(resumed, tmp_path / "cut", settings=settings, loss=stopping, every=0.0)
    torch.manual_seed(99)
    resumed = net()
    assert fit(resumed, tmp_path / "cut", settings=settings) == rows
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_state_of_the_last_step_is_still_validated_and_logged(tmp_path):
    rows = fit(net(), tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        scored = iter([{"valid_loss": 0.0}] * 2)
        fit(net(), tmp_path / "cut", every=0.0, validate=lambda _: next(scored, None) or 1 / 0)
    assert fit(net(), tmp_path / "cut") == rows


def test_accumulated_batches_step_as_one_batch_of_their_size():
    x, target = torch.randn(12, 4), torch.randint(0, 2, (12, 6)).float()
    weights = []
    for size in (12, 4):
        torch.manual_seed(0)
        n = 12 // size
        run = Fit(nn.Linear(4, 6), FitSettings(epochs=9999, lr=0.1, accumulate=n, warmup=0), n, CPU)
        run.start_epoch()
        before = run.model.weight.clone()
        for i in range(0, 12, size):
            assert run.may_pause == (i == 0)
            assert torch.equal(run.model.weight, before)
            run.train_step(loss, (x[i : i + size], target[i : i + size]))
        moment = run.optimizer.state[run.model.weight]["exp_avg"]
        weights.append((run.model.weight.detach(), moment, before))
    torch.testing.assert_close(weights[0], weights[1])
    assert (weights[0][0] - weights[0][2]).abs().min() > 0.05  # Adam's first step is the rate, 0.1


def test_the_last_group_of_an_epoch_is_stepped_though_it_is_short():
    run = Fit(net(), FitSettings(epochs=2, accumulate=4, warmup=0), 5, CPU)
    run.start_epoch()
    stepped = []
    for _ in range(2):
        for batch in data():
            before = run.model.head.weight.clone()
            run.train_step(loss, tuple(batch))
            stepped.append(not torch.equal(before, run.model.head.weight))
    assert stepped == [False, False, False, True, True] * 2


def test_a_frozen_epoch_changes_the_head_alone_and_the_next_one_all(tmp_path):
    model = net()
    run = Fit(model, FitSettings(epochs=2, lr=0.1, freeze=1), 5, CPU)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run.start_epoch()
    for batch in data():
        run.train_step(loss, tuple(batch))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"head.weight", "head.bias"}
    run.rows.append({})
    run.start_epoch()
    for batch in data():
        run.train_step(loss, tuple(batch))
    assert not torch.equal(model.body[0].weight, before["body.0.weight"])


def test_layers_nearer_to_the_image_learn_more_slowly_with_layer_decay():
    import timm

    class Slices(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model("test_resnet", num_classes=6)

    model = Slices()
    groups = training_state.parameter_groups(model, FitSettings(layer_decay=0.5))
    share = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    names = ["conv1.0.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight", "fc.weight"]
    shares = [share[id(model.backbone.get_parameter(name))] for name in names]
    assert shares == sorted(shares) and shares[0] < shares[-1] == 1
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("clip", [1e-3, 1e9, 0.0])
def test_a_gradient_is_cut_to_its_norm_and_a_shorter_one_left(clip):
    model, batch = nn.Linear(4, 6), tuple(next(iter(data())))
    loss(model, batch).backward()
    gradient = model.weight.grad.clone()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    model.zero_grad(set_to_none=True)
    run = Fit(model, FitSettings(epochs=1, clip=clip), 5, CPU)
    run.start_epoch()
    run.train_step(loss, batch)
    moment = run.optimizer.state[model.weight]["exp_avg"]  # a tenth of the gradient, after the first step of AdamW
    torch.testing.assert_close(moment * 10, gradient * min(1, (clip or math.inf) / norm), rtol=1e-4, atol=0)


def test_on_apples_gpu_a_step_is_clipped_and_skipped_as_elsewhere():
    runs = []
    for name in ("cpu", "mps"):
        run = Fit(net(), FitSettings(epochs=1, clip=0.01), 5, CPU)
        run.device = torch.device(name)  # alone: the tensors stay where they are
        run.start_epoch()
        for k, batch in enumerate(data()):
            run.train_step(infinite if k == 2 else loss, tuple(batch))
        run.read()
        runs.append(run)
    assert [run.skipped for run in runs] == [1, 1]
    for one, other in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one, other)


def test_biases_and_norms_do_not_decay():
    groups = training_state.parameter_groups(net(), FitSettings(weight_decay=0.3))
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.3, {2}), (0.0, {1})]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_step_batch_and_checkpoint_and_spoils_nothing(tmp_path, value):
    def spoilt(model, batch):
        seen.append(batch[-1].tolist())
        return loss(model, batch) * (value if len(seen) > 7 else 1)

    seen = []
    with pytest.raises(RuntimeError) as error:
        fit(net(), tmp_path, loss=spoilt, names=lambda rows: [f"ID_{row}" for row in rows])
    said = str(error.value)
    assert said.startswith(f"the loss is {value} at step 7, in the batch {', '.join(f'ID_{row}' for row in seen[7])}: ")
    assert said.endswith(f"start another --run with a lower --lr; {tmp_path / 'state.pt'}, of an earlier step, is kept")
    assert "--overwrite" not in said
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.isfinite(part).all() for part in state["model"].values())


def infinite(model, batch):
    """Return a loss that is 0, and whose gradient is not finite."""
    return torch.sqrt(model(batch[0]) * 0).sum()


def test_a_gradient_that_is_no_number_skips_its_step_and_is_counted(tmp_path):
    def sometimes(model, batch):
        sometimes.n += 1
        return infinite(model, batch) if sometimes.n == 7 else loss(model, batch)

    run = Fit(net(), FitSettings(epochs=1), 5, CPU)
    run.start_epoch()
    before = run.model.head.weight.clone()
    run.train_step(infinite, tuple(next(iter(data()))))
    assert torch.equal(run.model.head.weight, before)
    assert all(state["step"] == 0 and not state["exp_avg"].any() for state in run.optimizer.state.values())
    sometimes.n = 0
    rows = fit(net(), tmp_path, loss=sometimes)
    assert [row["skipped"] for row in rows] == [0, 1, 0]


def test_gradients_that_stay_no_numbers_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "PATIENCE", 7)
    with pytest.raises(RuntimeError, match=r"^the gradient was not finite in 7 steps in a row at step \d"):
        fit(net(), tmp_path, loss=infinite)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["in_a_row"] == 5  # after the first epoch: it counts on


@pytest.mark.parametrize("room, told", [(4, "2 do: give --batch-size 2 --accumulate 3"), (0, "smaller --image-size")])
def test_out_of_memory_says_which_batch_size_would_fit(tmp_path, room, told):
    def hungry(model, batch):
        if len(batch[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(model, batch)

    with pytest.raises(RuntimeError, match=f"out of memory at step 0: 5 at once do not fit, .*{told}"):
        fit(net(), tmp_path, loss=hungry)


def test_out_of_memory_keeps_the_size_of_a_step_that_gathers_batches(tmp_path):
    def hungry(model, batch):
        if len(batch[0]) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return loss(model, batch)

    with pytest.raises(RuntimeError, match="5 at once do not fit, 2 do: give --batch-size 2 --accumulate 8$"):
        fit(net(), tmp_path, loss=hungry, settings=FitSettings(epochs=1, accumulate=3))


def test_out_of_memory_after_a_checkpoint_says_how_to_resume_and_to_leave_it_as_it_is(tmp_path):
    def hungry(model, batch):
        hungry.n += 1
        if hungry.n > 3 and len(batch[0]) > 2:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")
        return loss(model, batch)

    hungry.n = 0
    with pytest.raises(RuntimeError, match="resume with the same command when more memory is free, or give") as error:
        fit(net(), tmp_path, loss=hungry, every=0.0)
    assert str(error.value).endswith("or give --batch-size 2 --accumulate 3 to another --run")


def test_a_cpu_that_really_has_no_memory_says_so_with_what_fits(tmp_path):
    def hungry(model, batch):
        if len(batch[0]) > 2:
            torch.empty(2**60, dtype=torch.uint8)
        return loss(model, batch)

    with pytest.raises(RuntimeError, match="out of memory at step 0: 5 at once do not fit, 2 do: give --batch-size 2"):
        fit(net(), tmp_path, loss=hungry)


def test_out_of_memory_over_series_which_cannot_be_cut_says_what_to_make_smaller():
    def hungry(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    length = torch.tensor([2, 1])
    parts = torch.zeros(3, 1, 6), torch.zeros(3, 6), torch.zeros(3, 3), length
    series_batch = series_dataset.Batch([], *parts, *series_dataset.layout(length))
    run = Fit(net(), FitSettings(epochs=1), 5, CPU)
    run.start_epoch()
    with pytest.raises(RuntimeError, match="out of memory at step 0: give a smaller --batch-size or --hidden"):
        fit_module.careful_step(run, hungry, (series_batch, torch.zeros(3, 6)))


def test_other_errors_of_the_loss_are_told_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(net(), tmp_path, loss=lambda model, batch: model(batch[0][:, :3]).sum())


def test_a_step_draws_the_same_wherever_the_generator_stands():
    def drawn(seed):
        run = Fit(net(), FitSettings(epochs=1), 5, CPU)
        run.start_epoch()
        torch.manual_seed(seed)
        run.train_step(loss, tuple(next(iter(data()))))
        return run.read()

    assert drawn(1) == drawn(2)


class Waits(TorchDispatchMode):
    """Counts the operations for which a host waits for its device, by name."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "repeat_interleave", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        moved = name == "_to_copy" and "device" in (kwargs or {})
        if name in self.NAMES or moved:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"clip": 0.0}])
def test_the_host_never_waits_for_the_device_within_a_step(monkeypatch, settings):
    run = Fit(net(), FitSettings(epochs=2, **settings), 5, CPU)
    run.start_epoch()
    batches = [tuple(batch) for batch in data()]
    run.train_step(loss, batches[0])  # the first makes what stays on the device: the weights of the loss, the moments
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    with Waits() as waits:
        for batch in batches[1:]:
            fit_module.careful_step(run, loss, batch)
    monkeypatch.undo()
    assert waits.found == []
    with Waits() as waits:
        run.losses[0].item()
    assert waits.found == ["_local_scalar_dense"]


def test_a_checkpoint_whose_average_lies_inside_a_module_is_resumed():
    run, again = (Fit(net(), FitSettings(epochs=1, lr=0.1), 5, CPU) for _ in range(2))
    run.start_epoch()
    for batch in data():
        run.train_step(loss, tuple(batch))
    run.read()
    state = run.state()
    state["ema"] = {f"module.{key}": value for key, value in state["ema"].items()}
    again.restore(state)
    pairs = zip(run.averaged().parameters(), again.averaged().parameters(), strict=True)
    assert again.step == 5 and all(torch.equal(one, other) for one, other in pairs)


class Operations(TorchDispatchMode):
    n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += 1
        return function(*args, **(kwargs or {}))


def test_what_a_step_adds_to_a_bare_one_is_not_one_operation_per_weight():
    layers = [layer for _ in range(40) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4))]
    model, batch = nn.Sequential(*layers, nn.Linear(4, 6)), (torch.rand(8, 4), torch.zeros(8, 6))
    plain = lambda model, batch: fit_module.bce(model(batch[0]), batch[1])  # noqa: E731
    run = Fit(model, FitSettings(), 5, CPU)
    run.start_epoch()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):  # the first makes the moments
        with Operations() as ours:
            run.train_step(plain, batch)
        with Operations() as bare:
            plain(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert 0 < ours.n - bare.n < 40 < len(list(model.parameters()))


def test_the_average_of_the_loss_is_of_all_batches_and_read_ten_times_a_minute(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module.time, "monotonic", iter(range(0, 99999, 4)).__next__)  # 4 s a batch
    reads, read = [], Fit.read
    monkeypatch.setattr(Fit, "read", lambda run: reads.append(run.step) or read(run))
    seen = []
    rows = fit(net(), tmp_path, loss=lambda *a: seen.append(loss(*a)) or seen[-1], settings=FitSettings(epochs=1))
    assert reads == [3, 5]
    assert rows[0]["train_loss"] == pytest.approx(sum(value.item() for value in seen) / 5, rel=1e-6)
