import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ich_kaggle.learning import datasets, devices, inference

CPU = torch.device("cpu")


class Rows(TensorDataset):
    """Items are asked for as (epoch, row)."""

    def __getitem__(self, item):
        return (*super().__getitem__(item[1]), item[1])


class Answers(nn.Module):
    """Gives the images back as logits, and remembers in which mode it was asked."""

    def outputs(self, images):
        assert not self.training
        return images[:, :6].float(), images[:, :2].float()


def test_predictions_come_in_the_order_of_the_rows_from_a_model_in_evaluation_mode():
    images = torch.arange(42).reshape(7, 6)
    model = Answers().train()
    loader = datasets.loader(Rows(images, torch.zeros(7, 6)), 3, 0)
    assert (inference.predict(model, loader, CPU) == images.numpy()).all()
    assert model.training


def test_views_are_averaged():
    images = torch.arange(42).reshape(7, 6)
    loader = datasets.loader(Rows(images, torch.zeros(7, 6)), 3, 0)
    views = [lambda x: x, lambda x: 3 * x]
    logits, embeddings = zip(*inference.outputs(Answers(), loader, CPU, views), strict=True)
    assert (np.concatenate(logits) == 2 * images.numpy()).all()
    assert np.concatenate(embeddings).dtype == np.float16


def test_several_devices_share_the_batches_and_change_nothing(monkeypatch):
    class Named(Answers):
        def outputs(self, images):
            asked.append((id(self), len(images)))
            return super().outputs(images)

    images, asked = torch.arange(66).reshape(11, 6), []
    loader = datasets.loader(Rows(images, torch.zeros(11, 6)), 3, 0)
    monkeypatch.setattr(devices, "together", lambda device: [device, CPU])
    assert (inference.predict(Named(), loader, CPU) == images.numpy()).all()
    who = [one for one, _ in asked]
    assert who == who[:2] * 2 and who[0] != who[1]


def test_out_of_memory_in_a_prediction_says_what_to_make_smaller():
    class Hungry(Answers):
        def outputs(self, images):
            raise torch.OutOfMemoryError("CUDA out of memory")

    loader = datasets.loader(Rows(torch.zeros(4, 6), torch.zeros(4, 6)), 2, 0)
    with pytest.raises(RuntimeError, match="^out of memory: predict does not fit: give a smaller --batch-size$"):
        inference.predict(Hungry(), loader, CPU)
