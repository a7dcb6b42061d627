"""Scan every DICOM header and the label table into one sorted table of slices.

Reads:   stage_2_train.csv, stage_2_sample_submission.csv, the headers in stage_2_train/ and stage_2_test/
Writes:  work/slices.parquet  (a row a slice: ids, position, split, path, six labels, header facts)
         work/defects.csv     (slice_id, path, defect, action)
Example: python -m ich_kaggle.slices --data-dir input/rsna-intracranial-hemorrhage-detection
"""

from pathlib import Path, PurePosixPath

import pandas as pd
from joblib import Parallel, delayed

from ich_kaggle import cli, dicom, paths, tables
from ich_kaggle.labels import LABELS

BATCH = 64  # headers in a task of one worker
ORDER = ["patient_id", "study_id", "series_id", "position", "slice_id"]  # ties in position fall to the slice id


def scan_header(data: paths.Data, member: paths.Member) -> dict:
    """Return the header facts of one slice and where its bytes are, or, as `defect`, why it can't be read."""
    row = {"slice_id": PurePosixPath(member.path).stem, **member._asdict()}
    try:
        dataset = dicom.read_head(data.root, *member)
        dicom.encoding(dataset, member.path)
        return row | dicom.read_header(dataset, member.path)._asdict()
    except ValueError as error:
        return row | {"defect": str(error)}


def _scan_batch(data: paths.Data, members: list[paths.Member]) -> list[dict]:
    return [scan_header(data, member) for member in members]


def scan(data: paths.Data, split: str, workers: int) -> pd.DataFrame:
    """Return a row for each DICOM file of `split`; `defect` says why one can't be read, and is empty for the others.

    Raises FileNotFoundError if there is no file, ValueError if a test slice can't be read.
    """
    members = data.members(split)
    if not members:
        raise FileNotFoundError(f"{data.root}: no DICOM files in {' or '.join(paths.DICOM_FOLDERS[split])}")
    batches = [members[i : i + BATCH] for i in range(0, len(members), BATCH)]
    rows = []
    with cli.progress(None, len(members), f"scan {split}") as bar:
        for found in Parallel(workers, return_as="generator")(delayed(_scan_batch)(data, batch) for batch in batches):
            rows += found
            bar.update(len(found))
    table = pd.DataFrame(rows).reindex(columns=[*rows[0], "defect"]) if "defect" not in rows[0] else pd.DataFrame(rows)
    unread = table.defect[table.defect.notna()]
    if split == "test" and len(unread):
        raise ValueError(f"{data.root}: test slice {unread.iloc[0]} ({len(unread)} such slices)")
    return table.assign(split=split)


def build(data: paths.Data, workers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the slice table, sorted, and the table of defects.

    Raises ValueError naming slices that have a file but no label row, or a label row but no file.
    """
    targets = tables.read_labels(data)
    sample_ids = tables.read_long(data, paths.SAMPLE_CSV)[0]
    train = scan(data, "train", workers)
    _match(data, paths.TRAIN_CSV, targets.slice_id, train.slice_id)
    test = scan(data, "test", workers)
    _match(data, paths.SAMPLE_CSV, sample_ids, test.slice_id)
    is_unread = train.defect.notna()
    defects = train.loc[is_unread, ["slice_id", "path", "defect"]].assign(action="left out")
    train = train[~is_unread].merge(targets, on="slice_id", validate="1:1")
    slices = pd.concat([train.sort_values(ORDER), test.sort_values(ORDER)], ignore_index=True).drop(columns="defect")
    return slices[tables.SLICE_COLUMNS + [c for c in slices if c not in tables.SLICE_COLUMNS]], defects


def _match(data: paths.Data, table: str, in_table, in_files) -> None:
    in_table, in_files = pd.Index(in_table), pd.Index(in_files)
    if len(lost := in_table.difference(in_files)):
        raise ValueError(f"{data.root}: {table} lists {lost[0]}, which has no file ({len(lost)} such slices)")
    if len(lost := in_files.difference(in_table)):
        raise ValueError(f"{data.root}: {lost[0]}.dcm is there, but not in {table} ({len(lost)} such files)")


def describe(slices: pd.DataFrame, defects: pd.DataFrame) -> str:
    train = slices[slices.split == "train"]
    lines = [
        f"{split}: {len(part)} slices, {part.series_id.nunique()} series, {part.patient_id.nunique()} patients"
        for split, part in slices.groupby("split", sort=False)
    ]
    lines.append("labels: " + ", ".join(f"{label} {train[label].mean():.2%}" for label in LABELS))
    lines.append(
        f"defects: {len(defects)}" + "".join(f"\n  {d.defect}: {d.action}" for d in defects.head(5).itertuples())
    )
    return "\n".join(lines)


def ensure(data_dir: Path | None, work_dir: Path, workers: int) -> pd.DataFrame:
    """Return the slice table, made where it is missing. Raises ValueError if it was made from other data."""
    path = paths.slices(work_dir)
    if not path.exists():
        slices(data_dir=data_dir, work_dir=work_dir, workers=workers)
    elif data_dir is not None:
        settings = {"data_dir": str(paths.find_data(data_dir).root.absolute())}
        remedy = "give another --work-dir, or run python -m ich_kaggle.slices --overwrite"
        paths.same_settings(path, tables.slices_settings(work_dir), settings, remedy)
    return tables.read_slices(work_dir)


def slices(*, data_dir: Path | None, work_dir: Path, workers: int, overwrite: bool = False) -> None:
    path = paths.slices(work_dir)
    if path.exists() and not overwrite:
        table = ensure(data_dir, work_dir, workers)
        cli.say(f"{path}{cli.THERE}\n{describe(table, pd.read_csv(paths.defects(work_dir)))}")
        return
    data = paths.find_data(data_dir)
    table, defects = build(data, workers)
    with paths.writing(paths.defects(work_dir)) as temporary:
        defects.to_csv(temporary, index=False)
    tables.write_slices(work_dir, table, {"data_dir": str(data.root.absolute())})
    cli.say(f"{path}\n{describe(table, defects)}")


def data_of(data_dir: Path | None, work_dir: Path) -> paths.Data:
    """Return the competition's data: in `data_dir`, or those that the slice table was made from."""
    return paths.find_data(data_dir or Path(tables.slices_settings(work_dir)["data_dir"]))


def build_parser():
    return cli.command(__doc__, "--data-dir", "--work-dir", "--workers", "--overwrite")


def main(argv=None):
    cli.run(slices, build_parser(), argv)


if __name__ == "__main__":
    main()
