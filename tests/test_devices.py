import torch

from ich_kaggle import devices


def test_a_device_that_is_named_is_taken():
    assert devices.pick_device("cpu") == torch.device("cpu")
