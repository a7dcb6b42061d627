from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich_kaggle.common import labels, paths, tables
from ich_kaggle.common.labels import LABELS


def ids_of(n: int, seed: int = 0) -> np.ndarray:
    return np.array([f"ID_{i:09x}" for i in np.random.default_rng(seed).choice(16**9, n, replace=False)])


def write(root: Path, name: str, rows: list[str]) -> paths.Data:
    (root / name).write_text("ID,Label\n" + "\n".join(rows) + "\n")
    return paths.Data(root)


def rows_of(slice_ids, wide) -> list[str]:
    return [
        f"{i}_{label},{v:g}"
        for i, row in zip(slice_ids, wide, strict=True)
        for label, v in zip(LABELS, row, strict=True)
    ]


def test_the_label_table_equals_pandas_split_and_pivot(tmp_path):
    slice_ids = ids_of(50)
    wide = np.random.default_rng(0).integers(0, 2, (50, 6))
    rows = rows_of(slice_ids, wide)
    np.random.default_rng(1).shuffle(rows)
    found = tables.read_labels(write(tmp_path, paths.TRAIN_CSV, rows + rows[:9])).set_index("slice_id")
    long = pd.read_csv(tmp_path / paths.TRAIN_CSV).drop_duplicates()
    parts = long.ID.str.rsplit("_", n=1, expand=True)
    pivot = long.assign(slice_id=parts[0], label=parts[1]).pivot(index="slice_id", columns="label", values="Label")
    assert (found.loc[pivot.index, list(LABELS)].to_numpy() == pivot[list(LABELS)].to_numpy()).all()


def test_slice_ids_come_in_order_of_first_appearance(tmp_path):
    slice_ids = ids_of(5)
    rows = rows_of(slice_ids, np.zeros((5, 6)))
    rows = rows[6:] + rows[:6]
    found, slice_index, label_index, _ = tables.read_long(write(tmp_path, "x.csv", rows), "x.csv")
    assert found.tolist() == [*slice_ids[1:], slice_ids[0]]
    assert slice_index.tolist() == np.repeat(np.arange(5), 6).tolist()
    assert label_index.tolist() == list(range(6)) * 5


@pytest.mark.parametrize(
    "row, message",
    [
        ("ID_00000000_any,0", "'ID_00000000_' is not ID_ and 9 hex digits"),
        ("ID_00000000G_any,0", "'ID_00000000G' is not ID_ and 9 hex digits"),
        ("id_000000001_any,0", "'id_000000001' is not ID_ and 9 hex digits"),
        ("ID_1,0", "'ID_1' is not ID_ and 9 hex digits"),
        ("ID_000000001_none,0", "an ID ends in '_none', not in _ and one of epidural"),
        ("ID_000000001,0", "an ID ends in '', not in _ and one of epidural"),
        ("ID_000000001_any,", "row 8 has no value"),
        ("ID_000000001_any,x", "x"),
    ],
)
def test_a_bad_row_of_a_long_table_is_named(tmp_path, row, message):
    data = write(tmp_path, "x.csv", [*rows_of(ids_of(1), np.zeros((1, 6))), row])
    with pytest.raises(ValueError, match=message) as error:
        tables.read_long(data, "x.csv")
    assert "x.csv" in str(error.value)


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("id,value\n1,2\n")
    with pytest.raises(ValueError, match="columns are .*not ID,Label"):
        tables.read_long(paths.Data(tmp_path), "x.csv")


def test_a_label_that_is_neither_0_nor_1_is_named(tmp_path):
    rows = rows_of(ids_of(1), np.zeros((1, 6)))
    rows[2] = rows[2].replace(",0", ",2")
    with pytest.raises(ValueError, match="row 4 has label 2.0, not 0 or 1"):
        tables.read_labels(write(tmp_path, paths.TRAIN_CSV, rows))


def test_a_submission_keeps_the_order_of_the_sample_and_every_digit(tmp_path):
    slice_ids = ids_of(20)
    rows = rows_of(slice_ids, np.full((20, 6), 0.5))
    np.random.default_rng(2).shuffle(rows)
    data = write(tmp_path, paths.SAMPLE_CSV, rows)
    probability = np.random.default_rng(3).random((20, 6)).astype(np.float32)
    tables.write_submission(tmp_path / "out.csv", data, slice_ids, probability)
    written = pd.read_csv(tmp_path / "out.csv")
    assert written.ID.tolist() == [row.split(",")[0] for row in rows]
    back = labels.to_wide(*(tables.read_long(data, "out.csv")[i] for i in (1, 2, 3)), slice_ids)
    order = pd.Index(tables.read_long(data, "out.csv")[0]).get_indexer(slice_ids)
    assert np.array_equal(back[order], probability)


def test_a_sample_slice_without_a_prediction_is_named(tmp_path):
    slice_ids = ids_of(2)
    data = write(tmp_path, paths.SAMPLE_CSV, rows_of(slice_ids, np.zeros((2, 6))))
    with pytest.raises(ValueError, match=f"no prediction for {slice_ids[1]}"):
        tables.write_submission(tmp_path / "out.csv", data, slice_ids[:1], np.zeros((1, 6)))
    assert not (tmp_path / "out.csv").exists()


def test_predictions_are_read_in_the_order_asked_for(tmp_path):
    slice_ids, probability = ids_of(6), np.random.default_rng(0).random((6, 6)).astype(np.float32)
    tables.write_predictions(tmp_path / "oof.parquet", slice_ids, probability)
    assert np.array_equal(tables.read_predictions(tmp_path / "oof.parquet", slice_ids[::-1]), probability[::-1])


def test_a_missing_prediction_is_named_and_so_is_a_doubled_one(tmp_path):
    slice_ids, path = ids_of(3), tmp_path / "oof.parquet"
    tables.write_predictions(path, slice_ids[:2], np.zeros((2, 6)))
    with pytest.raises(ValueError, match=f"slice {slice_ids[2]} is missing \\(1 are\\)"):
        tables.read_predictions(path, slice_ids)
    tables.write_predictions(path, slice_ids[[0, 1, 1]], np.zeros((3, 6)))
    with pytest.raises(ValueError, match=f"slice {slice_ids[1]} appears twice"):
        tables.read_predictions(path, slice_ids[:2])


def test_a_missing_file_of_predictions_tells_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="run python -m ich_kaggle.predict --run a --fold 1"):
        tables.read_predictions(tmp_path / "oof.parquet", ids_of(1), "--run a --fold 1")


def slices_of(patients: list[str], splits: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": patients, "split": splits})


@pytest.mark.parametrize(
    "content, message",
    [
        ("patient_id,fold\np,0\nq,0\nq,1\n", "patient q is in folds 0, 1 \\(1 such patients\\)"),
        ("patient_id,fold\np,0\n", "no fold for patient q \\(1 such patients\\)"),
        ("patient,fold\np,0\n", "the columns are patient,fold, not patient_id,fold"),
    ],
)
def test_folds_that_leak_or_lack_a_patient_are_refused(tmp_path, content, message):
    (tmp_path / "folds.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        tables.read_folds(tmp_path, slices_of(["p", "q"], ["train", "train"]))


def test_test_slices_are_in_no_fold(tmp_path):
    (tmp_path / "folds.csv").write_text("patient_id,fold\np,1\n")
    assert tables.read_folds(tmp_path, slices_of(["p", "t"], ["train", "test"])).tolist() == [1, -1]


def test_settings_travel_inside_a_parquet_file(tmp_path):
    tables.write_parquet(tmp_path / "x.parquet", pd.DataFrame({"a": [1]}), {"slices": "abc"})
    assert tables.settings_of(tmp_path / "x.parquet") == {"slices": "abc"}
    tables.write_parquet(tmp_path / "x.parquet", pd.DataFrame({"a": [1]}))
    assert tables.settings_of(tmp_path / "x.parquet") == {}
