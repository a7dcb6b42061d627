import numpy as np
import pytest

from ich_kaggle.synthetic.anatomy import Head
from ich_kaggle.synthetic.fields import Fields, tract
from ich_kaggle.synthetic.gantry import Gantry, turn
from ich_kaggle.synthetic.shapes import ball, tube


def gantry(**changes):
    settings = dict(shape=(96, 96), pixel=2.4, thickness=5.0, tilt=0.0, pose=np.eye(3), center=(0.0, 0.0))
    return Gantry(**settings | dict(noise=0.0, kernel=0.4, holder=0.0) | changes)


def point(*xyz):
    return np.stack([np.full((2, 1, 1), v, np.float32) for v in xyz])


@pytest.mark.parametrize("x, distance", [(0, -5), (5, 0), (9, 4)])
def test_shapes_give_the_signed_distance_to_their_surface(x, distance):
    assert ball(point(x, 0, 0), (0, 0, 0), 5) == pytest.approx(distance)
    assert tube(point(x, 0, 3), (0, 0, -9), (0, 0, 9), 5, 5) == pytest.approx(distance)


def test_the_midline_ventricle_is_a_hole_in_the_brain_and_the_skull_is_around_it():
    head = Head(np.random.default_rng(0))
    fields = Fields(head, gantry(), 2.0)
    assert fields.cavity[0, 48, 48] < -20
    assert tract(fields, head).min() < 0
    assert fields.vault[0, 48, 0] > 0


def test_the_table_moves_along_z_and_the_image_of_a_tilted_gantry_with_it():
    scan = gantry(tilt=0.2)
    low, high = np.array(scan.corner(0.0)), np.array(scan.corner(10.0))
    assert np.allclose(high - low, (0, 0, 10))
    assert np.allclose(scan.planes(10.0)[2] - scan.planes(0.0)[2], 10 * np.cos(0.2), atol=1e-5)
    assert low[2] == pytest.approx(47.5 * 2.4 * np.sin(0.2))


def test_points_do_not_move_when_the_grid_gets_finer():
    coarse, fine = gantry(), gantry(shape=(192, 192), pixel=1.2)
    for a, b in zip(coarse.planes(3.0), fine.planes(3.0), strict=True):
        assert np.allclose(a, b, atol=1e-3)


def test_a_pose_only_turns():
    assert np.allclose(turn(0.1, 0.2, 0.3) @ turn(0.1, 0.2, 0.3).T, np.eye(3))
