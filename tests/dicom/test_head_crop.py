import numpy as np
import pytest
from dicom_files import head

from ich_kaggle.dicom import head_crop

SPACING = 2.0  # mm: every pixel is looked at
MARGIN = round(head_crop.MARGIN / SPACING)


def box_of(*slices: np.ndarray, spacing: float = SPACING) -> head_crop.Box:
    step = head_crop.step_of(spacing)
    stack = np.stack([head_crop.grid(hu, step) > head_crop.TISSUE for hu in slices])
    return head_crop.head_box(stack, slices[0].shape, step, spacing)


def test_the_box_is_a_square_round_the_head_with_its_margin():
    box = box_of(head(radius=30, center=(50, 44)))
    # a disc of radius 30 about (50, 44) covers rows 21 ... 79 and columns 15 ... 73
    assert box == (21 - MARGIN, 15 - MARGIN, 59 + 2 * MARGIN, 59 + 2 * MARGIN)


def test_a_long_head_has_a_square_box_centred_on_it():
    y, x = np.ogrid[:96, :96]
    hu = np.where(((y - 48) / 40) ** 2 + ((x - 48) / 24) ** 2 < 1, 40, -1000)
    box = box_of(hu)
    assert box.height == box.width == 79 + 2 * MARGIN
    assert abs((box.left + box.right) / 2 - 48) <= 1


def test_one_box_holds_the_head_of_every_slice():
    small, moved = head(radius=16, center=(40, 40)), head(radius=16, center=(60, 50))
    box = box_of(small, small, moved, moved)
    for hu in (small, moved):
        assert (box.cut(hu) > head_crop.TISSUE).sum() == (hu > head_crop.TISSUE).sum()


def test_table_and_head_holder_are_left_out():
    hu = head(radius=28, center=(44, 48))
    alone = box_of(hu)
    y, x = np.ogrid[:96, :96]
    distance = np.hypot(y - 44, x - 48)
    hu[(distance > 27) & (distance < 30) & (y > 50)] = 200  # a shell that touches the head
    hu[80:83] = 200  # a table from edge to edge
    hu[10:12, 10:90] = 200  # a strap
    held = box_of(hu)
    assert max(abs(a - b) for a, b in zip(held, alone, strict=True)) <= 2 + MARGIN
    assert held.bottom < 82


def test_the_largest_piece_is_the_head():
    hu = head(radius=24, center=(40, 40))
    hu[78:95, 78:95] = 40
    assert box_of(hu) == box_of(head(radius=24, center=(40, 40)))


def test_a_finer_grid_of_pixels_gives_the_same_box_in_mm():
    coarse = box_of(head(radius=30, center=(50, 44)))
    fine = box_of(np.kron(head(radius=30, center=(50, 44)), np.ones((4, 4))), spacing=SPACING / 4)
    assert np.abs(np.array(fine) / 4 - np.array(coarse)).max() <= 1


def test_a_head_at_the_edge_keeps_the_box_inside_and_square():
    box = box_of(head(radius=30, center=(20, 70)))
    assert box.top == 0 and box.right == 96 and box.height == box.width


def test_a_head_wider_than_the_slice_is_cut_to_it():
    hu = head(shape=(60, 120), radius=55, center=(30, 60))
    box = box_of(hu)
    assert (box.top, box.height) == (0, 60) and box.width == 109 + 2 * MARGIN


@pytest.mark.parametrize("value", [-1000, -600])
def test_where_there_is_no_tissue_the_whole_slice_is_shown(value):
    assert box_of(np.full((30, 40), value)) == (0, 0, 30, 40)
