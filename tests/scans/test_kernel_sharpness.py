import pytest

from ich_kaggle.scans.kernel_sharpness import SHARP, SOFT, UNKNOWN, sharpness


@pytest.mark.parametrize("kernel", ["H31s", "J40s", "Hr40d 3", "Br36", "STANDARD", "Soft", "FC26", "FC68", "UB", "B"])
def test_kernels_for_the_brain_are_soft(kernel):
    assert sharpness(kernel) == SOFT


@pytest.mark.parametrize(
    "kernel", ["H70h", "B60s", "Hr59", "BONE", "BONEPLUS", "Bone 2", "LUNG", "EDGE", "FC30", "FC81"]
)
def test_kernels_for_bone_and_lung_are_sharp(kernel):
    assert sharpness(kernel) == SHARP


@pytest.mark.parametrize("kernel", ["", "DETAIL", "7", "something else"])
def test_of_the_others_nothing_is_said(kernel):
    assert sharpness(kernel) == UNKNOWN


def test_what_is_not_known_stands_between():
    assert SOFT < UNKNOWN < SHARP
