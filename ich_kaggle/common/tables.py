"""The tables that commands exchange: slices, folds, predictions, and Kaggle's CSVs."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ich_kaggle.common import labels, paths, storage
from ich_kaggle.common.labels import LABELS

SLICE_COLUMNS = ["slice_id", "patient_id", "study_id", "series_id", "position", "split", "path", *LABELS]
PREDICTION_COLUMNS = ["slice_id", *LABELS]
LONGEST = 1 << 10  # bytes of an ID that are read


def read_long(data: paths.Data, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return Kaggle's long table `name`: slice ids in order of first appearance, and three arrays with a value per row:
    the index of its slice, the index of its label, and its value (float32).

    Raises ValueError naming the table and the first row that is not `ID_<9 hex digits>_<label>,number`.
    """
    with data.open(name) as file:
        types = pyarrow.csv.ConvertOptions(column_types={"ID": pa.binary(), "Label": pa.float32()})
        try:
            table = pyarrow.csv.read_csv(file, convert_options=types)
            columns = table.column_names
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise ValueError(f"{data.root}: {name}: {error}") from error
    if columns != ["ID", "Label"]:
        raise ValueError(f"{data.root}: {name}: the columns are {columns}, not ID,Label")
    slice_ids, slice_index = _encode(pc.binary_slice(table["ID"], 0, labels.ID_LENGTH))
    names, name_index = _encode(pc.binary_slice(table["ID"], labels.ID_LENGTH, LONGEST))
    if odd := next((one for one in slice_ids if not labels.SLICE_ID.fullmatch(one)), None):
        raise ValueError(f"{data.root}: {name}: {odd!r} is not ID_ and 9 hex digits")
    known = {f"_{label}": i for i, label in enumerate(LABELS)}
    if odd := [one for one in names if one not in known]:
        raise ValueError(f"{data.root}: {name}: an ID ends in {odd[0]!r}, not in _ and one of {', '.join(LABELS)}")
    values = table["Label"].to_numpy()
    if np.isnan(values).any():
        raise ValueError(f"{data.root}: {name}: row {int(np.isnan(values).argmax()) + 2} has no value")
    return np.array(slice_ids, object), slice_index, np.array([known[one] for one in names], int)[name_index], values


def _encode(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Return the distinct texts of `column`, in order of first appearance, and per row the index of its text."""
    encoded = column.combine_chunks().dictionary_encode()
    return [text.decode(errors="replace") for text in encoded.dictionary.to_pylist()], encoded.indices.to_numpy()


def read_labels(data: paths.Data) -> pd.DataFrame:
    """Return the training labels, a row per slice: `slice_id` and six float32 of 0 or 1."""
    slice_ids, slice_index, label_index, values = read_long(data, paths.TRAIN_CSV)
    if len(odd := np.flatnonzero((values != 0) & (values != 1))):
        raise ValueError(
            f"{data.root}: {paths.TRAIN_CSV}: row {int(odd[0]) + 2} has label {values[odd[0]]}, not 0 or 1"
        )
    try:
        wide = labels.to_wide(slice_index, label_index, values, slice_ids)
    except ValueError as error:
        raise ValueError(f"{data.root}: {paths.TRAIN_CSV}: {error}") from error
    return predictions(slice_ids, wide)


def predictions(slice_ids: np.ndarray, probability: np.ndarray) -> pd.DataFrame:
    """Return a table of `slice_ids` (n,) and `probability` (n, 6), as float32."""
    table = pd.DataFrame(np.asarray(probability, np.float32), columns=list(LABELS))
    table.insert(0, "slice_id", np.asarray(slice_ids))
    return table


def write_parquet(path: Path, table: pd.DataFrame, settings: dict | None = None) -> None:
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    if settings is not None:
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"settings": json.dumps(settings)})
    with storage.writing(path) as temporary:
        pq.write_table(arrow, temporary, write_page_checksum=True)


def _read_parquet(path: Path, flags: str = "") -> pd.DataFrame:
    with storage.reading(storage.require(path, flags)):
        return pd.read_parquet(path, page_checksum_verification=True)


def write_slices(work_dir: Path, slices: pd.DataFrame, settings: dict) -> None:
    write_parquet(paths.slices(work_dir), slices, settings)


def read_slices(work_dir: Path) -> pd.DataFrame:
    """Return the slice table: a row per slice, sorted by split (train first), patient, study, series and position."""
    slices = _read_parquet(path := paths.slices(work_dir))
    if missing := [column for column in SLICE_COLUMNS if column not in slices]:
        raise ValueError(f"{path}: no column {missing[0]}: {storage.SCAN_AGAIN}")
    if wrong := [column for column in SLICE_COLUMNS if not _has_right_type(slices[column], column)]:
        raise ValueError(f"{path}: column {wrong[0]} has the wrong type: {storage.SCAN_AGAIN}")
    return slices


def _has_right_type(values: pd.Series, column: str) -> bool:
    if column in LABELS:
        return pd.api.types.is_float_dtype(values)
    if column == "position":
        return pd.api.types.is_float_dtype(values) and bool(np.isfinite(values).all())
    return pd.api.types.infer_dtype(values, skipna=False) == "string" and bool(values.notna().all())


def slices_settings(work_dir: Path) -> dict:
    """Return the settings that the slice table was made with: the data folder and the checksums of its tables."""
    return settings_of(storage.require(paths.slices(work_dir)))


def settings_of(path: Path) -> dict:
    """Return the settings that a Parquet file was written with; empty for a file without."""
    with storage.reading(path):
        metadata = pq.read_schema(path).metadata or {}
        return storage.Object(json.loads(metadata.get(b"settings", b"{}")), path)


def slices_hash(slices: pd.DataFrame) -> str:
    """Return 12 hex digits that identify a slice table: its ids, their order and their labels."""
    digest = hashlib.sha256("\n".join(slices.slice_id.to_numpy(object)).encode())
    digest.update(np.nan_to_num(slices[list(LABELS)].to_numpy(np.float32), nan=-1).tobytes())
    return digest.hexdigest()[:12]


def targets(slices: pd.DataFrame) -> np.ndarray:
    """Return the labels of `slices`: float32 (n, 6), NaN for test slices."""
    return slices[list(LABELS)].to_numpy(np.float32)


def read_csv(path: Path, remedy: str = "give another") -> pd.DataFrame:
    """Return the CSV `path` as strings, empty ones included. Raises ValueError with the `remedy` if it is damaged."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable CSV ({error}): {remedy}") from error


def write_folds(work_dir: Path, folds: pd.DataFrame, settings: dict) -> None:
    path, content = paths.folds(work_dir), folds.to_csv(index=False).encode()
    storage.write_json(path.with_suffix(".json"), settings | {"hash": hashlib.sha256(content).hexdigest()[:12]})
    with storage.writing(path) as temporary:
        temporary.write_bytes(content)


def folds_settings(work_dir: Path) -> dict:
    """Return the settings that the folds were made with; empty for a file from elsewhere."""
    path = paths.folds(work_dir).with_suffix(".json")
    return storage.read_json(path) if path.exists() else {}


def read_folds(work_dir: Path, slices: pd.DataFrame) -> np.ndarray:
    """Return the fold of every slice: int (n,), -1 for test slices.

    Raises ValueError naming patients that are in two folds or in none, and a file that was changed since.
    """
    path = storage.require(paths.folds(work_dir))
    known = folds_settings(work_dir).get("hash")
    if known is not None and known != storage.file_hash(path):
        again = "to use other folds, give them to --from with --overwrite"
        raise ValueError(f"{path}: damaged or changed since it was written: {storage.remedy(path)}; {again}")
    of_patient = _fold_of_patient(path)
    fold = slices.patient_id.map(of_patient).where(slices.split == "train", -1)
    if len(unknown := slices.patient_id[fold.isna()].unique()):
        remedy = f"run {storage.MAKERS[path.name]} --overwrite"
        raise ValueError(f"{path}: no fold for patient {unknown[0]} ({len(unknown)} such patients): {remedy}")
    return fold.to_numpy(np.int64)


def _fold_of_patient(path: Path) -> pd.Series:
    """Return the folds in the CSV `path`, by patient id."""
    folds = read_csv(path, storage.remedy(path))
    if list(folds.columns) != ["patient_id", "fold"]:
        raise ValueError(f"{path}: the columns are {','.join(folds.columns)}, not patient_id,fold")
    if not (is_number := folds.fold.str.fullmatch("[0-9]{1,4}")).all():
        raise ValueError(f"{path}: row {int(is_number.argmin()) + 2}: {folds.fold[is_number.argmin()]!r} is not a fold")
    folds = folds.astype({"fold": int}).drop_duplicates()
    if (is_leaked := folds.patient_id.duplicated(keep=False)).any():
        leaked = folds[is_leaked].groupby("patient_id").fold.unique()
        ids = "; ".join(
            f"{patient} is in folds {', '.join(map(str, sorted(k)))}" for patient, k in leaked.head(3).items()
        )
        raise ValueError(f"{path}: patient {ids} ({len(leaked)} such patients): a patient belongs to one fold")
    return folds.set_index("patient_id").fold


def folds_hash(fold: np.ndarray) -> str:
    """Return 12 hex digits that identify a split of the slices."""
    return hashlib.sha256(fold.astype("<i8").tobytes()).hexdigest()[:12]


def write_predictions(path: Path, slice_ids: np.ndarray, probability: np.ndarray) -> None:
    write_parquet(path, predictions(slice_ids, probability))


def read_predictions(path: Path, slice_ids: np.ndarray, flags: str = "", *, partial: bool = False) -> np.ndarray:
    """Return the probabilities of `slice_ids` in `path`: float32 (n, 6), NaN for a slice that a `partial` file lacks.

    Raises ValueError naming a slice that is missing or appears twice, and FileNotFoundError with the command, and its
    `flags`, that makes the file.
    """
    table = _read_parquet(path, flags)
    if list(table.columns) != PREDICTION_COLUMNS:
        found, wanted = ", ".join(map(str, table.columns)), ", ".join(PREDICTION_COLUMNS)
        raise ValueError(f"{path}: the columns are {found}, not {wanted}: {storage.remedy(path)}")
    probability = _probability(path, table)
    if np.array_equal(table.slice_id, slice_ids):
        return probability
    if table.slice_id.duplicated().any():
        raise ValueError(f"{path}: slice {table.slice_id[table.slice_id.duplicated()].iloc[0]} appears twice")
    row = pd.Index(table.slice_id).get_indexer(slice_ids)
    if (row < 0).any() and not partial:
        raise ValueError(f"{path}: slice {slice_ids[(row < 0).argmax()]} is missing ({int((row < 0).sum())} are)")
    return np.where((row < 0)[:, None], np.float32(np.nan), probability[row])


def mean_prediction(path: Path) -> np.ndarray:
    """Return the mean probability per label, (6,), over all slices in the predictions `path`."""
    return _probability(path, _read_parquet(path)).mean(axis=0)


def _probability(path: Path, table: pd.DataFrame) -> np.ndarray:
    if odd := [label for label in LABELS if not pd.api.types.is_float_dtype(table[label])]:
        raise ValueError(f"{path}: {odd[0]} is a column of {table[odd[0]].dtype}, not of probabilities")
    probability = table[list(LABELS)].to_numpy(np.float32)
    if not (valid := (probability >= 0) & (probability <= 1)).all():
        row, label = np.argwhere(~valid)[0]
        raise ValueError(f"{path}: {table.slice_id[row]} has {probability[row, label]:g} for {LABELS[label]}")
    return probability


def write_submission(path: Path, data: paths.Data, slice_ids: np.ndarray, probability: np.ndarray) -> None:
    """Write Kaggle's long table of `probability` (n, 6), rows in the order of the sample submission."""
    sample_ids, slice_index, label_index, _ = read_long(data, paths.SAMPLE_CSV)
    row = pd.Index(slice_ids).get_indexer(sample_ids)
    if (row < 0).any():
        raise ValueError(f"{data.root}: {paths.SAMPLE_CSV}: no prediction for {sample_ids[(row < 0).argmax()]}")
    values = np.asarray(probability, np.float32)[row[slice_index], label_index]
    ids = pc.binary_join_element_wise(
        pa.array(sample_ids).take(pa.array(slice_index)), pa.array(LABELS).take(pa.array(label_index)), "_"
    )
    with storage.writing(path) as temporary:
        temporary.write_bytes(b"ID,Label\n")
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
        with temporary.open("ab") as file:
            pyarrow.csv.write_csv(pa.table({"ID": ids, "Label": values}), file, options)
