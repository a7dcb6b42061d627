import numpy as np
import pandas as pd
import pytest

from ich_kaggle.learning import neighbours

SERIES = ["a"] * 5 + ["b"] * 3
POSITION = [0, 5, 5, 10, 15, 0, 4, 8]  # two slices at 5 mm: a repeated scan


def beside(*offsets: int) -> list[list[int]]:
    return neighbours.neighbours(SERIES, POSITION, offsets).tolist()


def test_a_slice_is_its_own_neighbour_at_offset_0():
    assert beside(0) == [[i] for i in range(8)]


def test_neighbours_are_a_position_away_and_past_an_end_the_slice_stands_in_for_itself():
    assert beside(-1, 0, 1)[5:] == [[5, 5, 6], [5, 6, 7], [6, 7, 7]]


def test_neighbours_never_cross_into_another_series():
    rows = neighbours.neighbours(SERIES, POSITION, (-2, -1, 0, 1, 2))
    assert all(SERIES[other] == SERIES[row] for row, others in enumerate(rows) for other in others)


def test_a_repeated_position_counts_as_one_step_and_its_first_slice_stands_for_it():
    assert beside(-1, 1)[:5] == [[0, 1], [0, 3], [0, 3], [1, 4], [3, 4]]


def test_a_longer_stride_is_cut_off_at_the_last_position():
    assert beside(-2, 2)[:5] == [[0, 3], [0, 4], [0, 4], [0, 4], [1, 4]]


def test_neighbours_of_nothing_are_nothing():
    assert neighbours.neighbours([], [], (-1, 0, 1)).shape == (0, 3)


def test_softening_changes_labels_only_where_a_lesion_begins_or_ends():
    target = np.zeros((5, 6), np.float32)
    target[2:4] = 1
    soft = neighbours.soften(target, neighbours.neighbours(["s"] * 5, range(5), (-1, 1)), 0.2)
    assert soft[:, 0].tolist() == pytest.approx([0, 0.1, 0.9, 0.9, 0.1])
    assert soft.dtype == np.float32


STUDIES = pd.DataFrame({"patient_id": list("ppqqqqrrrr"), "study_id": list("11222344444"[:10])})
IS_POSITIVE = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0], bool)


def draw(name: str, seed: int = 0, **options) -> np.ndarray:
    rows = neighbours.sampler(name, **STUDIES, is_positive=IS_POSITIVE, **options)
    return rows(np.random.default_rng(seed))


def test_all_shows_every_slice_once_in_an_order_of_its_own():
    assert sorted(draw("all")) == list(range(10))
    assert draw("all").tolist() != draw("all", 1).tolist()


def test_balanced_shows_as_many_slices_of_patients_with_a_hemorrhage_as_of_patients_without():
    rows = draw("balanced")
    assert sorted(STUDIES.patient_id[rows].isin(["p"])) == [False, False, True, True]
    assert len(set(rows)) == 4


def test_balanced_refuses_a_training_set_of_one_kind():
    with pytest.raises(ValueError, match="balanced"):
        neighbours.sampler("balanced", **STUDIES, is_positive=np.zeros(10, bool))


def test_study_shows_so_many_slices_of_each_study_and_all_of_a_shorter_one():
    rows = draw("study", per_study=2)
    assert STUDIES.study_id[rows].value_counts().to_dict() == {"1": 2, "2": 2, "3": 1, "4": 2}
    assert len(set(rows)) == len(rows)


def test_study_shows_the_middle_of_a_study_more_often():
    rows = neighbours.sampler(
        "study", patient_id=["p"] * 9, study_id=["s"] * 9, is_positive=np.zeros(9, bool), per_study=2
    )
    seen = np.bincount(np.concatenate([rows(np.random.default_rng(i)) for i in range(500)]), minlength=9)
    assert seen[4] == seen.max() and seen[4] > 2 * seen[[0, 8]].max()
