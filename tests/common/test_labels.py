import numpy as np
import pytest

from ich_kaggle.common import labels
from ich_kaggle.common.labels import LABELS

IDS = np.array(["ID_000000001", "ID_000000002"])


def long_of(wide: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = len(wide)
    return np.repeat(np.arange(n), 6), np.tile(np.arange(6), n), wide.ravel()


def test_wide_to_long_and_back_in_any_order_is_the_same():
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 2, (2, 6)).astype(np.float32)
    slice_index, label_index, values = long_of(wide)
    order = rng.permutation(12)
    assert np.array_equal(labels.to_wide(slice_index[order], label_index[order], values[order], IDS), wide)


def test_a_row_repeated_with_the_same_value_counts_once():
    slice_index, label_index, values = (np.append(part, part[3]) for part in long_of(np.eye(2, 6)))
    assert np.array_equal(labels.to_wide(slice_index, label_index, values, IDS), np.eye(2, 6))


def test_a_row_repeated_with_another_value_is_refused_by_name():
    slice_index, label_index, values = (np.append(part, part[7]) for part in long_of(np.eye(2, 6)))
    values[-1] = 0.0
    with pytest.raises(ValueError, match="ID_000000002_intraparenchymal appears twice with different values"):
        labels.to_wide(slice_index, label_index, values, IDS)


def test_a_slice_without_one_of_its_labels_is_named():
    slice_index, label_index, values = (np.delete(part, 11) for part in long_of(np.eye(2, 6)))
    with pytest.raises(ValueError, match=r"ID_000000002 has no row for any \(1 rows are missing\)"):
        labels.to_wide(slice_index, label_index, values, IDS)


def test_any_is_the_last_label_and_weighs_two():
    assert LABELS[labels.ANY] == "any" and labels.WEIGHTS[labels.ANY] == 2 and sum(labels.WEIGHTS) == 7
