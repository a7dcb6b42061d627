import numpy as np
import pandas as pd
import pytest

from ich_kaggle.common import paths, storage
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import png
from ich_kaggle.scoring import dataset_shift


def table_of(n_train: int, n_test: int, seed: int = 0, tilt: float = 0.0) -> pd.DataFrame:
    """Return a slice table, a study of 4 slices a patient; the test scans are tilted by `tilt` degrees more."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_train + n_test), 4)
    is_test = patient >= n_train
    return pd.DataFrame(
        {
            "slice_id": [f"ID_{i:09x}" for i in range(len(patient))],
            "patient_id": [f"p{p}" for p in patient],
            "study_id": [f"s{p}" for p in patient],
            "position": np.tile(np.arange(4) * 5.0, n_train + n_test),
            "split": np.where(is_test, "test", "train"),
            "tilt": np.repeat(rng.normal(10, 2, n_train + n_test), 4) + tilt * is_test,
        }
    )


def features(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    return dataset_shift.features(table, np.random.default_rng(seed).random((len(table), 6)), None)


def test_tilted_test_scans_are_told_apart_and_the_tilt_is_named():
    found = features(table_of(150, 120, tilt=4))
    test = dataset_shift.two_sample(found, seed=0)
    assert test["auc"] > 0.8 and test["p"] < 1e-6
    rows = dataset_shift.differences(found)
    assert rows[0]["feature"] == "tilt" and rows[0]["p"] < 1e-6
    assert [row["feature"] for row in rows if row["p"] < dataset_shift.LEVEL] == ["tilt"]
    assert "they differ" in dataset_shift.describe(test, rows) and "tilt" in dataset_shift.describe(test, rows)


def test_scans_of_one_kind_are_called_different_no_more_often_than_promised():
    p = [dataset_shift.two_sample(features(table_of(60, 50, seed), seed), seed)["p"] for seed in range(40)]
    assert np.mean(np.array(p) < 0.05) <= 0.15 and np.median(p) > 0.2


def test_features_of_a_study_by_hand():
    row = features(table_of(2, 1)).iloc[0]
    assert (row["slices"], row.height, row.spacing) == (4, 15, 5)


def test_gray_values_are_those_of_the_middle_slice(tmp_path):
    table = table_of(1, 1)
    for i, slice_id in enumerate(table.slice_id):
        path = paths.cached(tmp_path, slice_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        png.write(path, np.full((4, 4, 3), 10 * i, np.uint8))
    found = dataset_shift.features(table, np.zeros((8, 6)), tmp_path)
    assert found["mean of window 0"].tolist() == [60, 20] and found["spread of window 0"].tolist() == [0, 0]


def test_a_patient_in_both_splits_is_in_one_half_only():
    table = table_of(80, 60)
    table["patient_id"] = [f"p{i // 4 % 70}" for i in range(len(table))]
    test = dataset_shift.two_sample(features(table), seed=0)
    assert test["n_train"] == 70 and test["n_test"] == 60


def test_too_few_patients_are_said_to_be_too_few():
    found = features(table_of(30, 5))
    test = dataset_shift.two_sample(found, 0)
    assert test["p"] is None
    assert "too few for a two-sample test" in dataset_shift.describe(test, dataset_shift.differences(found))


def test_holms_p_values_are_never_below_the_raw_ones_and_keep_their_order():
    rows = dataset_shift.differences(features(table_of(40, 40, tilt=1)))
    adjusted = [row["p"] for row in rows]
    assert adjusted == sorted(adjusted) and max(adjusted) <= 1


def test_the_smallest_whole_cache_of_these_slices_is_used(work):
    project, whole = Project(None, work), paths.cache(work, "64")
    state = storage.read_json(whole / "cache.json")
    others = {
        "32": {"image_size": 32, "n_slices": None},  # not finished
        "48": {"image_size": 48, "slices": "0" * 12},  # of other slices
        "256": {"image_size": 256},
    }
    for name, other in others.items():
        storage.write_json(paths.cache(work, name) / "cache.json", state | other)
    assert dataset_shift.smallest_cache(project) == whole
    (whole / "cache.json").unlink()
    assert dataset_shift.smallest_cache(project) == paths.cache(work, "256")
    (paths.cache(work, "256") / "cache.json").unlink()
    assert dataset_shift.smallest_cache(project) is None


@pytest.mark.parametrize("column", ["tilt", "rows"])
def test_a_header_fact_that_the_table_has_not_is_left_out(column):
    table = table_of(12, 12)
    assert (column in features(table)) == (column in table)
