"""The slice table: every DICOM header and the labels in one sorted table, and the table of defects beside it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, parallel, paths, provenance, storage, tables, windows
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.zip_reader import Member
from ich_kaggle.dicom import geometry, slice_image, tags
from ich_kaggle.dicom import pixels as pixels_module
from ich_kaggle.dicom.pixels import Encoding, Plain

BATCH = 128  # headers in a task of one worker
ORDER = ["patient_id", "study_id", "series_id", "position", "slice_id"]
DEFECT_COLUMNS = ["slice_id", "path", "defect", "action"]
CSVS = {"train": paths.TRAIN_CSV, "test": paths.SAMPLE_CSV}
KEPT = "kept"
SUBSET = "give --subset to use the slices that exist"
FACTS = (*Member._fields, *Plain._fields[:-1], *Encoding._fields)  # the columns that `places` reads
WHOLE = {**dict.fromkeys(["start", "rows", "columns", "bits", "padding_low", "padding_high"], "int64"), "signed": bool}


class Place(NamedTuple):
    """The place of a slice in the data, and the layout of its pixels."""

    slice_id: str
    member: Member
    plain: Plain


def places(table: pd.DataFrame) -> list[Place]:
    """Return the place of every slice of `table`, a slice table or some rows of one."""
    members, layouts, codes = (
        zip(*(table[column].tolist() for column in columns), strict=True)
        for columns in (Member._fields, Plain._fields[:-1], Encoding._fields)
    )
    found = zip(table.slice_id, members, layouts, codes, strict=True)
    return [Place(one, Member(*member), Plain(*layout, Encoding(*code))) for one, member, layout, code in found]


def scan_slice(data: paths.Data, member: Member, pixels: bool) -> dict:
    """Return the row of one slice: its header, the place of its bytes, its `defect`, and the `action` taken on it.

    `pixels` reads the pixels too, to find blank slices.
    """
    row, kinds = {"slice_id": paths.slice_id(member.path), **member._asdict()}, []
    try:
        with tags.warned(kinds), tags.named(member.path):
            row |= _facts(data, member, pixels)
    except ValueError as error:
        return row | {"defect": str(error).removeprefix(f"{member.path}: "), "action": "left out"}
    if kinds and not row.get("defect"):
        row |= {"defect": kinds[0], "action": KEPT}
    return row


def _facts(data: paths.Data, member: Member, pixels: bool) -> dict:
    dataset, start = pixels_module.read_head(data, member)
    code = pixels_module.encoding(dataset, member.path)
    row = geometry.read_header(dataset, member.path)._asdict() | {"start": start} | code._asdict()
    if pixels:
        words = pixels_module.read_slice(data.read(member), member.path)[1]
        brain = windows.apply(pixels_module.hu_table(code), (windows.BRAIN,))[words]
        row |= {"defect": slice_image.pixel_defect(words, brain) or None, "action": KEPT}
    return row


def _scan_batch(data: paths.Data, members: list[Member], pixels: bool) -> tuple[pd.DataFrame, int, int]:
    rows = pd.DataFrame([scan_slice(data, member, pixels) for member in members])
    n_bytes = sum(member.size if pixels else min(member.size, pixels_module.HEAD_BYTES) for member in members)
    return rows, len(rows), n_bytes


def _scan(data: paths.Data, members: list[Member], what: str, workers: int, pixels: bool = False) -> pd.DataFrame:
    tasks = ((data, members[i : i + BATCH], pixels) for i in range(0, len(members), BATCH))
    found = list(parallel.work(_scan_batch, tasks, len(members), what, workers))
    columns = dict.fromkeys([*max(found, key=lambda rows: rows.shape[1]), "defect", "action"])
    return pd.concat(found, ignore_index=True).reindex(columns=list(columns))


def scan(data: paths.Data, split: str, workers: int, pixels: bool = False) -> pd.DataFrame:
    """Return a row per DICOM file of `split`, in no order, with a `defect` where it has one.

    Raises FileNotFoundError if there is no file, ValueError if a test slice cannot be read.
    """
    members = data.members(split)
    if not members:
        raise FileNotFoundError(paths.no_images(data, split))
    table = _scan(data, members, f"scan {split}", workers, pixels).assign(split=split)
    unread = table[table.action == "left out"].sort_values("path")
    if split == "test" and len(unread):
        first = unread.iloc[0]
        raise ValueError(f"{data.root}: test slice {first.path}: {first.defect} ({len(unread)} such slices)")
    return table


def build(
    data: paths.Data, workers: int, pixels: bool = False, subset: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the slice table, sorted, and the table of defects; with `subset` of the slices that have a file.

    Raises ValueError naming slices that have a file but no label row, or, without `subset`, a label row but no file.
    """
    targets = tables.read_labels(data)
    sample_ids = tables.read_long(data, paths.SAMPLE_CSV)[0]
    train = scan(data, "train", workers, pixels)
    _match(data, paths.TRAIN_CSV, targets.slice_id, train.slice_id, subset)
    has_test = not subset or data.members("test")
    test = scan(data, "test", workers, pixels) if has_test else train.iloc[:0]
    _match(data, paths.SAMPLE_CSV, sample_ids, test.slice_id, subset)
    found = pd.concat([train, test], ignore_index=True)
    twice = found.loc[found.slice_id.isin(_labelled_twice(data)), ["slice_id", "path"]]
    twice = twice.assign(defect="duplicated label rows", action="counted once")
    defects = pd.concat([found[found.defect.notna()], twice])[DEFECT_COLUMNS]
    train = train[train.action != "left out"].merge(targets, on="slice_id", validate="1:1")
    slices = pd.concat([train.sort_values(ORDER), test.sort_values(ORDER)], ignore_index=True)
    slices = slices.drop(columns=["defect", "action"]).astype(WHOLE)
    return slices[tables.SLICE_COLUMNS + [c for c in slices if c not in tables.SLICE_COLUMNS]], defects


def subset_of(data: paths.Data, table: pd.DataFrame) -> str:
    """Return a line on the slices of `table`, made with `subset`; empty if it has all that the data list."""
    listed = {split: len(tables.read_long(data, name)[0]) for split, name in CSVS.items()}
    n = {split: int((table.split == split).sum()) for split in listed}
    few = any(n[split] < listed[split] for split in listed)
    return " and ".join(f"{n[split]:,} of {listed[split]:,} {split} slices" for split in listed) if few else ""


def _labelled_twice(data: paths.Data) -> np.ndarray:
    slice_ids, slice_index, _, _ = tables.read_long(data, paths.TRAIN_CSV)
    return slice_ids[np.bincount(slice_index, minlength=len(slice_ids)) > len(LABELS)]


def _match(data: paths.Data, table: str, in_table, in_files, subset: bool) -> None:
    in_table, in_files = pd.Index(in_table), pd.Index(in_files)
    if not subset and len(lost := in_table.difference(in_files)):
        remedy = f"get them ({paths.DOWNLOAD} --all), or {SUBSET}"
        raise ValueError(f"{data.root}: {table} lists {lost[0]}, which has no file ({len(lost)} such slices): {remedy}")
    if len(lost := in_files.difference(in_table)):
        remedy = f"remove it, or get the table again ({paths.DOWNLOAD})"
        raise ValueError(f"{data.root}: {lost[0]}.dcm exists, but is not in {table} ({len(lost)} such files): {remedy}")


def describe(slices: pd.DataFrame, defects: pd.DataFrame) -> str:
    """Return the counts of the slice table, its label rates, and a line per kind of defect."""
    train = slices[slices.split == "train"]
    lines = [
        f"{split}: {len(part)} slices, {part.series_id.nunique()} series, {part.patient_id.nunique()} patients"
        for split, part in slices.groupby("split", sort=False)
    ]
    lines.append("labels: " + ", ".join(f"{label} {train[label].mean():.2%}" for label in LABELS))
    kinds = f"{len(defects)}\n{kinds_of(defects).to_string(index=False)}" if len(defects) else "none"
    return "\n".join([*lines, f"defects: {kinds}"])


def kinds_of(defects: pd.DataFrame) -> pd.DataFrame:
    """Return a row per kind of defect: defect, action, slices (their number), first (of their ids)."""
    kind = defects.defect.str.split(r":| \(", regex=True).str[0].rename("defect")
    groups = defects.groupby([kind, "action"]).agg(slices=("slice_id", "size"), first=("slice_id", "min"))
    return groups.reset_index()


def read_defects(work_dir: str | Path) -> pd.DataFrame:
    """Return the defects (slice_id, path, defect, action); empty without the file."""
    path = paths.defects(Path(work_dir))
    if not path.exists():
        return pd.DataFrame(columns=DEFECT_COLUMNS, dtype=str)
    return tables.read_csv(path, storage.remedy(path))


def write_defects(work_dir: str | Path, defects: pd.DataFrame) -> None:
    """Write the columns of `defects` that `read_defects` returns, sorted."""
    with storage.writing(paths.defects(Path(work_dir))) as temporary:
        defects[DEFECT_COLUMNS].sort_values(DEFECT_COLUMNS).to_csv(temporary, index=False)


def ensure(project: Project) -> pd.DataFrame:
    """Return the slice table, built if it is missing. Raises ValueError if it was built from other data."""
    path = paths.slices(project.work_dir)
    if not path.exists():
        make(data_dir=project.data_dir, work_dir=project.work_dir, workers=project.workers)
        project.is_checked = True
    _compare(project)
    if missing := [column for column in FACTS if column not in project.slices]:
        raise ValueError(f"{path}: no column {missing[0]}: {storage.SCAN_AGAIN}")
    return project.slices


def _compare(project: Project) -> None:
    """Raise ValueError if the slice table is not of the project's data as they are now."""
    if project.is_checked:
        return
    found = tables.slices_settings(project.work_dir)
    data = provenance.find(found, project.data_dir, zips=False)
    provenance.same_tables(paths.slices(project.work_dir), found, data)
    if data is not None and not provenance.is_there(found, data):
        adopt(project, data)
    project.is_checked = True


def adopt(project: Project, data: paths.Data) -> None:
    """Let the slice table, whose data had another path, be of `data`, if these are the same.

    Their tables are known to be. Files are the same if they have the same size and time, or, read again, the same
    header. Raises ValueError naming the first slice that is missing or differs.
    """
    path, table = paths.slices(project.work_dir), project.slices
    found = tables.slices_settings(project.work_dir)
    old = f"{path} was made with data_dir {found.get('data_dir')}, not {data.root}, where"
    members = {paths.slice_id(member.path): member for split in paths.SPLITS for member in data.members(split)}
    if len(gone := table.slice_id[~table.slice_id.isin(members.keys())]):
        raise ValueError(f"{old} {gone.iloc[0]} is missing ({len(gone)} slices are): {provenance.REMEDY}")
    now = pd.DataFrame([members[slice_id] for slice_id in table.slice_id], index=table.index)
    doubtful = table[(now.stamp != table.stamp) | (now["size"] != table["size"])]
    if len(doubtful):
        again = [members[slice_id] for slice_id in doubtful.slice_id]
        read = _scan(data, again, "compare headers", project.workers).set_index("slice_id").loc[doubtful.slice_id]
        is_read = read.get("action", pd.Series("", read.index)).ne("left out").to_numpy()
        facts = [column for column in read if column in table and column not in Member._fields] + ["size"]
        read, was = read[facts].reset_index(drop=True), doubtful[facts].reset_index(drop=True)
        is_same = ((read == was) | (read.isna() & was.isna())).all(axis=1).to_numpy()
        is_same = is_same & is_read
        if not is_same.all():
            raise ValueError(f"{old} {doubtful.slice_id.to_numpy()[~is_same][0]} differs: {provenance.REMEDY}")
    tables.write_slices(project.work_dir, table.assign(**now), found | provenance.settings(data))
    project.__dict__.pop("slices", None)  # read anew
    cli.say(f"{path}: its data are now {data.root}")


def make(
    *,
    data_dir: str | Path | None,
    work_dir: str | Path,
    workers: int,
    pixels: bool = False,
    subset: bool = False,
    overwrite: bool = False,
    backend: str = "loky",
    scheduler: str | None = None,
) -> None:
    """Write the slice table and the defects, and say what they hold; an existing table is checked against the data."""
    data_dir, work_dir = data_dir and Path(data_dir), Path(work_dir)
    path = paths.slices(work_dir)
    if path.exists() and not overwrite:
        table = ensure(Project(data_dir, work_dir, workers))
        found = tables.slices_settings(work_dir)
        data = provenance.find(found, data_dir)
        provenance.same_tables(path, found, data)
        provenance.same_files(data, table)
        cli.say(f"{path}{cli.THERE}\n{describe(table, read_defects(work_dir))}")
        return
    data = paths.find_data(data_dir)
    with parallel.using(backend, scheduler):
        table, defects = build(data, workers, pixels, subset)
    write_defects(work_dir, defects)
    part = {"subset": subset_of(data, table)} if subset else {}
    tables.write_slices(work_dir, table, provenance.settings(data) | part)
    cli.say(f"{path}\n{describe(table, defects)}")


def data_of(project: Project) -> paths.Data:
    """Return the competition's data: those of the project, or those that the slice table was built from."""
    _compare(project)
    found = tables.slices_settings(project.work_dir)
    data = provenance.find(found, project.data_dir) or paths.find_data(found["data_dir"])
    provenance.same_tables(paths.slices(project.work_dir), found, data)
    return data
