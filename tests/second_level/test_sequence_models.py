import contextlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_series_dataset import made_inputs

from ich_kaggle.second_level import fit, sequence_models, series_dataset

KINDS = list(sequence_models.KINDS)


def new_model(kind: str, sizes=(5, 3), n_runs=2, seed=0) -> sequence_models.SequenceModel:
    torch.manual_seed(seed)
    model = sequence_models.SequenceModel(sequence_models.SequenceConfig(kind, sizes, n_runs, hidden=8)).eval()
    for head in (model.head, model.auxiliary):
        torch.nn.init.normal_(head.weight)  # they begin at zero, where every answer is the smoothed one
    return model


def batch_of(inputs: series_dataset.Inputs, numbers) -> series_dataset.Batch:
    dataset = series_dataset.SeriesDataset(inputs, np.asarray(numbers))
    return series_dataset.join([dataset[0, i] for i in range(len(numbers))])[0]


@torch.inference_mode()
def logits_of(model, inputs, numbers) -> list[torch.Tensor]:
    batch = batch_of(inputs, numbers)
    return list(model.outputs(batch)[0].split(batch.length.tolist()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_for_a_series_does_not_depend_on_those_beside_it(kind):
    model, inputs = new_model(kind), made_inputs()
    together = logits_of(model, inputs, [0, 1, 2, 3])
    for number in range(4):
        (alone,) = logits_of(model, inputs, [number])
        assert torch.allclose(alone, together[number], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_series_in_a_batch_changes_no_answer(kind):
    model, inputs = new_model(kind), made_inputs()
    there, back = logits_of(model, inputs, [1, 2, 3]), logits_of(model, inputs, [3, 2, 1])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(there, back[::-1], strict=True))


def test_a_gru_without_packing_would_answer_otherwise():
    gru, x = torch.nn.GRU(4, 3, bidirectional=True), torch.randn(5, 1, 4)
    padded = torch.cat([x, torch.zeros(3, 1, 4)])
    assert not torch.allclose(gru(padded)[0][:5], gru(x)[0], atol=1e-5)


def test_packing_agrees_with_torch():
    x, length = torch.randn(12, 4), torch.tensor([2, 7, 3])
    series, packed, sizes = series_dataset.layout(length)
    expected = torch.nn.utils.rnn.pack_sequence(x.split(length.tolist()), enforce_sorted=False)
    assert torch.equal(x[packed], expected.data)
    assert torch.equal(sizes, expected.batch_sizes)
    assert series.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbour_changes_the_answer_and_a_slice_of_another_series_does_not(kind):
    model, inputs = new_model(kind), made_inputs((7, 7))
    before = logits_of(model, inputs, [0, 1])
    inputs.logits[3] += 5
    inputs.embeddings[0][3] += 5
    after = logits_of(model, inputs, [0, 1])
    assert not torch.allclose(before[0][2], after[0][2], atol=1e-4)
    assert torch.equal(before[1], after[1])


@torch.inference_mode()
def test_a_transformer_tells_slices_apart_by_their_distance_in_mm():
    batch, x = batch_of(made_inputs((7,)), [0]), torch.ones(7, 16)
    body = sequence_models.Transformer(8, 0.0).eval()
    apart = replace(batch, place=torch.tensor([[0.0, 0, 0], *[[0.5, 0, 0]] * 6]))
    assert all(part.std(0).max() > 1e-3 for part in body(x, apart))
    twin = replace(batch, place=torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.0, 0, 0], *[[0.5, 0, 0]] * 4]))
    for part in body(x, twin):
        torch.testing.assert_close(part[1], part[2])
        assert not torch.allclose(part[1], part[3], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_read_from_its_other_end_has_the_same_answers(kind):
    model, batch = new_model(kind), batch_of(made_inputs((9, 4)), [0, 1])
    with torch.inference_mode():
        flipped, rows = batch.flip()
        assert torch.allclose(model.outputs(flipped)[0][rows], model.outputs(batch)[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(), (5, 3)])
def test_fitting_starts_from_the_smoothed_logits(kind, sizes):
    inputs = made_inputs((9, 4), sizes=sizes)
    model = sequence_models.SequenceModel(sequence_models.SequenceConfig(kind, sizes, 2, hidden=8)).eval()
    with torch.inference_mode():
        for logits in model(batch_of(inputs, [0, 1])):
            assert torch.allclose(logits, torch.from_numpy(inputs.smoothed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_never_waits_for_the_device(kind, monkeypatch):
    """On the device `meta`, which holds no values, every reading of one is an error."""
    monkeypatch.setattr(sequence_models, "in_float32", lambda batch: contextlib.nullcontext())  # unknown to meta
    inputs, target, rows = series_dataset.join(
        [series_dataset.SeriesDataset(made_inputs(), np.arange(4))[0, i] for i in range(4)]
    )
    model = new_model(kind).to("meta")
    fit.sequence_loss(model.train(), (inputs.to("meta"), target.to("meta"), rows)).backward()
    assert model.eval().outputs(inputs.to("meta"))[0].is_meta


@pytest.mark.parametrize("kind", KINDS)
def test_networks_compute_in_float32_under_mixed_precision(kind):
    model, batch = new_model(kind), batch_of(made_inputs(), [0, 1, 3])
    plain = [*model.outputs(batch), *model(batch)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [*model.outputs(batch), *model(batch)]
    assert all(
        torch.equal(one, other) and other.dtype == torch.float32 for one, other in zip(plain, mixed, strict=True)
    )


def test_every_weight_of_both_heads_and_layers_learns():
    for kind in KINDS:
        model = new_model(kind).train()
        logits, auxiliary = model(batch_of(made_inputs((9, 4)), [0, 1]))
        (logits.square().mean() + auxiliary.square().mean()).backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_saved_models_answer_as_before_and_know_what_they_read(tmp_path):
    models, inputs = [new_model("gru", seed=0), new_model("gru", seed=1)], made_inputs()
    reads = {"b0/fold0/oof.parquet": "aa"}
    sequence_models.save(tmp_path / "model.pt", models, reads)
    loaded = sequence_models.load(tmp_path / "model.pt", reads)
    for before, after in zip(models, loaded, strict=True):
        assert torch.equal(logits_of(before, inputs, [1])[0], logits_of(after, inputs, [1])[0])
    with pytest.raises(ValueError, match=r"made with b0/fold0/oof.parquet aa, not bb: give another --run"):
        sequence_models.load(tmp_path / "model.pt", {"b0/fold0/oof.parquet": "bb"})


def test_a_damaged_model_is_refused_by_name(tmp_path):
    path = tmp_path / "model.pt"
    sequence_models.save(path, [new_model("conv")], {})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a whole sequence model")):
        sequence_models.load(path, {})
    torch.save({"config": "{}"}, path)
    with pytest.raises(ValueError, match="not a whole sequence model"):
        sequence_models.load(path, {})
