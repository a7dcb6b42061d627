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
