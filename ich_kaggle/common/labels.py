"""The six labels of the competition, their weights in its metric, and its long table.

Kaggle's tables have a row per slice and label, `ID_<9 hex digits>_<label>,value`; ours have a row per slice.
https://www.kaggle.com/competitions/rsna-intracranial-hemorrhage-detection/overview/evaluation
"""

import re

import numpy as np

LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
WEIGHTS = (1, 1, 1, 1, 1, 2)
SHARE = np.asarray(WEIGHTS) / sum(WEIGHTS)  # of each label in the metric
ANY = LABELS.index("any")

ID_LENGTH = len("ID_000012eaf")
SLICE_ID = re.compile("ID_[0-9a-f]{9}")


def to_wide(slice_index: np.ndarray, label_index: np.ndarray, values: np.ndarray, slice_ids: np.ndarray) -> np.ndarray:
    """Return the long table's `values` as (n_slices, 6) float32, rows in the order of `slice_ids`.

    `slice_index` and `label_index` give the cell of each value. Rows repeated with the same value count once.
    Raises ValueError for a slice that lacks a label, and for a row repeated with another value.
    """
    n_slices = len(slice_ids)
    cell = slice_index.astype(np.int64) * len(LABELS) + label_index
    wide = np.full(n_slices * len(LABELS), np.nan, np.float32)
    wide[cell] = values
    if len(other := np.flatnonzero(wide[cell] != values.astype(np.float32))):
        row, label = divmod(int(cell[other[0]]), len(LABELS))
        raise ValueError(f"{slice_ids[row]}_{LABELS[label]} appears twice with different values")
    if len(empty := np.flatnonzero(np.isnan(wide))):
        row, label = divmod(int(empty[0]), len(LABELS))
        raise ValueError(f"{slice_ids[row]} has no row for {LABELS[label]} ({len(empty)} rows are missing)")
    return wide.reshape(n_slices, len(LABELS))
