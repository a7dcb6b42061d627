"""Hostile zips, tables, models, recipes and settings: one line, nothing written, and no code of theirs runs."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import second_level
import torch
from dicom_files import content, ct, head
from dicom_mutations import mutated_bytes
from safetensors.torch import save_file
from stages import trial

from ich_kaggle import cache, ensemble, evaluate, folds, predict, sequence, slices, submit, train
from ich_kaggle.common import paths, run_predictions, runs, tables, zip_reader
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import slice_table
from ich_kaggle.learning import pretrained, slice_model
from ich_kaggle.second_level import sequence_models

WORDS = (head((32, 32), 12, (16, 16)) + 1024).astype(np.uint16)
N_DAMAGED = 150  # files of each format, a few bytes of each damaged
LONGEST = 2010  # characters of a line


def state(folder: Path) -> dict[str, str]:
    """Return the checksum of every file below `folder`, locks left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refusal(command, *flags: str, folder: Path) -> str:
    """Return the one line that a command ends with, after which everything in `folder` is as it was."""
    before = state(folder)
    with trial("hostile files", command.__name__.removeprefix("ich_kaggle.")):
        with pytest.raises(SystemExit) as stopped:
            command.main(list(flags))
        line = stopped.value.code
        assert isinstance(line, str), line
        assert line.startswith("error: ") and line.isprintable() and len(line) < LONGEST, line
        assert state(folder) == before
    return line


def only_value_errors(what: str, read, path: Path, original: bytes) -> None:
    """Read `path` with bytes damaged in many ways: what can't be read is a ValueError that names the file."""
    for number in range(N_DAMAGED):
        path.write_bytes(mutated_bytes(original, number))
        with trial("damaged files", what):
            try:
                read()
            except ValueError as error:
                assert path.name in str(error), (number, error)


# Kaggle's zip


def long_table(slice_ids: list[str], value: float = 0) -> bytes:
    rows = [f"{slice_id}_{label},{value}" for slice_id in slice_ids for label in LABELS]
    return ("\n".join(["ID,Label", *rows]) + "\n").encode()


def competition_files() -> dict[str, bytes]:
    """Return the files of a competition by name: three train patients of two slices, and a test patient."""
    ids = [f"ID_{i:09x}" for i in range(8)]
    files = {paths.TRAIN_CSV: long_table(ids[:6]), paths.SAMPLE_CSV: long_table(ids[6:], 0.5)}
    for i, slice_id in enumerate(ids):
        uid = f"2.25.{i // 2}"
        tags = dict(PatientID=f"ID_p{i // 2}", StudyInstanceUID=uid, SeriesInstanceUID=uid)
        made = content(ct(WORDS, ImagePositionPatient=[0, 0, i], **tags))
        files[f"stage_2_{'train' if i < 6 else 'test'}/{slice_id}.dcm"] = made
    return files


FILES = competition_files()
FIRST = "stage_2_train/ID_000000000.dcm"


def write_zip(path: Path, files: dict[str, bytes] | list[tuple]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, stored in files.items() if isinstance(files, dict) else files:
            packed.writestr(name, stored)
    return path


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, stored in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored)
    return root


def scan_flags(data: Path, tmp_path: Path) -> list[str]:
    return ["--data-dir", str(data), "--work-dir", str(tmp_path / "work"), "--workers", "1"]


OUTSIDE = ["stage_2_train/../../escaped.dcm", "stage_2_train//tmp/escaped.dcm", "stage_2_train/ID_..escaped.dcm"]
OUTSIDE += ["stage_2_train/\x1b[2J.dcm"]
HIDDEN = ["stage_2_train/..\\..\\escaped.dcm", "stage_2_train/...dcm", "stage_2_train/._ID_000000000.dcm"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_member_whose_name_leads_elsewhere_is_refused(name, tmp_path):
    packed = write_zip(tmp_path / "all.zip", FILES | {name: FILES[FIRST]})
    assert "exists, but is not in stage_2_train.csv" in refusal(slices, *scan_flags(packed, tmp_path), folder=tmp_path)


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_member_is_no_slice(name, tmp_path):
    packed = write_zip(tmp_path / "all.zip", FILES | {name: FILES[FIRST]})
    slices.main(scan_flags(packed, tmp_path))
    assert len(tables.read_slices(tmp_path / "work")) == sum(file.endswith(".dcm") for file in FILES)


@pytest.mark.parametrize("slice_id", ["ID_..escaped", "ID_0/../../x", "", "../x", "ID_\0", "/etc/x", "ID_a\nb"])
def test_no_slice_id_leads_out_of_the_cache(slice_id, tmp_path):
    with pytest.raises(ValueError, match="can't name a folder|can't name a file"):
        paths.cached(tmp_path, slice_id)


@pytest.mark.parametrize("study", ["../../x", "/x", "..", "a/b", "a\nb", "\0", ""])
def test_no_study_of_a_header_leads_out_of_the_sheets(study, tmp_path):
    with pytest.raises(ValueError, match="can't name a folder|can't name a file"):
        paths.sheet(tmp_path, study)


def test_a_link_in_the_zip_is_no_slice_and_nothing_is_followed(tmp_path):
    secret = tmp_path / "secret.dcm"
    secret.write_bytes(FILES[FIRST])
    link = zipfile.ZipInfo(FIRST)
    link.external_attr = 0o120777 << 16
    files = [(link if name == FIRST else name, str(secret) if name == FIRST else FILES[name]) for name in FILES]
    slices.main(scan_flags(write_zip(tmp_path / "all.zip", files), tmp_path))
    assert slice_table.read_defects(tmp_path / "work").slice_id.tolist() == ["ID_000000000"]


@pytest.mark.parametrize("name", [FIRST, paths.TRAIN_CSV])
def test_a_member_that_is_there_twice_is_refused(name, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        packed = write_zip(tmp_path / "all.zip", [*FILES.items(), (name, FILES[name])])
    assert f"{name} is in it twice" in refusal(slices, *scan_flags(packed, tmp_path), folder=tmp_path)


def entry(packed: bytes, name: str) -> int:
    """Return where the entry of `name` in the central directory begins."""
    at = packed.index(b"PK\1\2")
    while packed[at + 46 : at + 46 + len(name)] != name.encode():
        at = packed.index(b"PK\1\2", at + 4)
    return at


# What a central directory may say of a member: offset in its entry, new value, bytes (APPNOTE 4.3.12).
LIES = {
    "size too small": (24, 100, 4),
    "size too large": (24, 1 << 20, 4),
    "size huge": (24, 0xFFFFFFF0, 4),
    "packed huge": (20, 0x7FFFFFFF, 4),
    "offset beyond the end": (42, 0x7FFFFFFF, 4),
    "offset of another": (42, 0, 4),
    "other checksum": (16, 1, 4),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", [FIRST, paths.TRAIN_CSV])
def test_a_zip_that_lies_about_a_member_is_refused_or_the_slice_left_out(lie, name, tmp_path):
    packed = bytearray(write_zip(tmp_path / "all.zip", dict(sorted(FILES.items()))).read_bytes())
    offset, value, n_bytes = LIES[lie]
    at = entry(packed, name) + offset
    packed[at : at + n_bytes] = value.to_bytes(n_bytes, "little")
    (tmp_path / "all.zip").write_bytes(packed)
    flags = scan_flags(tmp_path / "all.zip", tmp_path)
    if name == FIRST and lie not in ("packed huge", "offset beyond the end"):
        with trial("hostile files", "slices"):
            slices.main([*flags, "--pixels"])
            assert slice_table.read_defects(tmp_path / "work").slice_id.tolist() == ["ID_000000000"]
    else:
        assert "all.zip" in refusal(slices, *flags, folder=tmp_path)


def peak_of(*command: str, cwd: Path) -> tuple[subprocess.CompletedProcess, float]:
    """Return a process that was run to its end, and the most memory it took, in MB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command], capture_output=True, text=True, cwd=cwd, check=False, timeout=300
    )
    return done, float(done.stderr.splitlines()[-1])


PEAK = """
import pathlib, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code, file=sys.stderr)
finally:
    print(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024, file=sys.stderr)
"""


def zeros_zip(path: Path, name: str, n_megabytes: int) -> Path:
    """Write FILES with `name` replaced by zeros, which deflate to a thousandth."""
    write_zip(path, {other: stored for other, stored in FILES.items() if other != name})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as packed, packed.open(name, "w", force_zip64=True) as file:
        for _ in range(n_megabytes):
            file.write(bytes(1 << 20))
    return path


@pytest.mark.slow
def test_bombs_in_the_zip_are_not_inflated(tmp_path):
    slice_bomb = zeros_zip(tmp_path / "slice.zip", FIRST, 1500)
    table_bomb = zeros_zip(tmp_path / "table.zip", paths.TRAIN_CSV, 1500)
    (tmp_path / "cwd").mkdir()
    done, peak = peak_of("ich_kaggle.slices", *scan_flags(slice_bomb, tmp_path), cwd=tmp_path / "cwd")
    assert "1 ID_000000000" in done.stdout and peak < 1000
    shutil.rmtree(tmp_path / "work")
    done, peak = peak_of("ich_kaggle.slices", *scan_flags(table_bomb, tmp_path), cwd=tmp_path / "cwd")
    assert "stage_2_train.csv has 1572864000 bytes" in done.stderr and peak < 1000
    assert not (tmp_path / "work").exists() and not list((tmp_path / "cwd").iterdir())


def test_a_zip_damaged_anywhere_gives_what_it_held_or_a_refusal(tmp_path):
    path = tmp_path / "all.zip"

    def read() -> None:
        for name, member in zip_reader.directory(path).items():
            stored = zip_reader.read(path, member)
            assert name not in FILES or stored == FILES[name]
            zip_reader.read(path, member, 100)

    only_value_errors("zip", read, path, write_zip(path, FILES).read_bytes())


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_no_slice(kind, tmp_path):
    root = write_folder(tmp_path / "data", FILES)
    (root / FIRST).unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[kind](root / FIRST)
    with pytest.raises(ValueError, match="ID_000000000, which has no file"):
        slice_table.build(paths.find_data(root), workers=1)


# Ids in headers


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize(
    "text", ["../../x", "a/b", "/etc/x", "a\nb", "a\r\nb", "\x1b[2J", "a\\b", "x" * 257, '=1+1,"', "NA"]
)
def test_ids_of_headers_stay_ids_or_the_slice_is_left_out(keyword, text, tmp_path):
    dataset = ct(WORDS, ImagePositionPatient=[0, 0, 0], **{keyword: text})
    root = write_folder(tmp_path / "data", FILES | {FIRST: content(dataset)})
    flags = scan_flags(root, tmp_path)
    with trial("hostile files", "headers"):
        folds.main([*flags, "--folds", "2"])
        cache.main([*flags, "--cache-size", "32"])
        table = tables.read_slices(tmp_path / "work")
        fold = tables.read_folds(tmp_path / "work", table)
        is_plain = text.isprintable() and "\\" not in text and len(text) <= 256
        assert (table.slice_id == "ID_000000000").any() == is_plain and (fold >= 0).sum() == 5 + is_plain
        assert {path.name for path in tmp_path.iterdir()} == {"data", "work"}
        if is_plain:
            column = {"PatientID": "patient_id", "StudyInstanceUID": "study_id", "SeriesInstanceUID": "series_id"}
            assert table[column[keyword]][table.slice_id == "ID_000000000"].item() == text


# Kaggle's tables

TABLE = FILES[paths.TRAIN_CSV]
HEAD, *ROWS = TABLE.splitlines()
SAME = {
    "byte order mark": b"\xef\xbb\xbf" + TABLE,
    "CRLF": TABLE.replace(b"\n", b"\r\n"),
    "no last line end": TABLE[:-1],
    "quotes": TABLE.replace(b"_any,", b'_any",').replace(b"\nID", b"\nID").replace(b"ID_", b"ID_"),
}
SAME["quotes"] = b"\n".join([HEAD, *(b'"' + row.replace(b",", b'",') for row in ROWS), b""])
OTHER = {
    "empty": b"",
    "header alone": HEAD + b"\n",
    "nothing but lines": b"\n\n\n",
    "NUL in an id": TABLE.replace(b"ID_000000001_any", b"ID_00000\x000001_any", 1),
    "NULs": bytes(1000),
    "formula": TABLE.replace(b"ID_000000001_any", b"=cmd|'/c calc'!A1", 1),
    "quoted line end": TABLE.replace(b"ID_000000001_any", b'"ID_00000\n0001_any"', 1),
    "open quote": TABLE.replace(b"ID_000000001_any", b'"ID_000000001_any', 1),
    "path": TABLE.replace(b"ID_000000001_any", b"ID_../../etc_any", 1),
    "missing column": b"\n".join(row.split(b",")[0] for row in TABLE.splitlines()),
    "further column": b"\n".join(row + b",1" for row in TABLE.splitlines()),
    "a longer row": TABLE.replace(b"ID_000000001_any,0", b"ID_000000001_any,0,0,0", 1),
    "a shorter row": TABLE.replace(b"ID_000000001_any,0", b"ID_000000001_any", 1),
    "twice a column": TABLE.replace(b"ID,Label", b"ID,ID", 1),
    "text": TABLE.replace(b"_any,0", b"_any,yes", 1),
    "nan": TABLE.replace(b"_any,0", b"_any,nan", 1),
    "inf": TABLE.replace(b"_any,0", b"_any,inf", 1),
    "negative": TABLE.replace(b"_any,0", b"_any,-1", 1),
    "missing row": b"\n".join([HEAD, *ROWS[1:], b""]),
    "row with another value": TABLE + ROWS[0].replace(b",0", b",1") + b"\n",
    "UTF-16": TABLE.decode().encode("utf-16"),
    "latin 1": TABLE.replace(b"ID_000000001_any", b"ID_00000000\xe9_any", 1),
    "a megabyte of id": TABLE.replace(b"ID_000000001_any", b"ID_" + b"0" * (1 << 20), 1),
    "semicolons": TABLE.replace(b",", b";"),
    "a zip": b"PK\3\4" + bytes(range(256)),
}


@pytest.mark.parametrize("kind", SAME)
def test_a_label_table_as_a_spreadsheet_writes_it_is_the_same_table(kind, tmp_path):
    root = write_folder(tmp_path / "data", FILES)
    expected = tables.read_labels(paths.Data(root))
    (root / paths.TRAIN_CSV).write_bytes(SAME[kind])
    pd.testing.assert_frame_equal(tables.read_labels(paths.Data(root)), expected)


@pytest.mark.parametrize("kind", OTHER)
def test_a_label_table_that_is_none_is_refused(kind, tmp_path):
    root = write_folder(tmp_path / "data", FILES | {paths.TRAIN_CSV: OTHER[kind]})
    assert paths.TRAIN_CSV in refusal(slices, *scan_flags(root, tmp_path), folder=tmp_path)


@pytest.mark.parametrize("kind", OTHER)
def test_a_sample_submission_that_is_none_is_refused(kind, tmp_path):
    sample = OTHER[kind].replace(b"ID_00000000", b"ID_00000000")
    root = write_folder(tmp_path / "data", FILES | {paths.SAMPLE_CSV: sample})
    assert paths.SAMPLE_CSV in refusal(slices, *scan_flags(root, tmp_path), folder=tmp_path)


@pytest.mark.parametrize("kind", OTHER)
def test_a_submission_that_is_none_is_refused(kind, tmp_path):
    root = write_folder(tmp_path / "data", FILES | {paths.SAMPLE_CSV: TABLE})
    (tmp_path / "mine.csv").write_bytes(OTHER[kind])
    flags = ["--data-dir", str(root), "--work-dir", str(tmp_path / "work"), "--submissions-dir", str(tmp_path / "sent")]
    line = refusal(submit, "--file", str(tmp_path / "mine.csv"), "--dry-run", *flags, folder=tmp_path)
    assert "mine.csv" in line


PROBABILITIES = {"nan": "has no value", "inf": "not in", "-inf": "not in", "-0.1": "not in", "1.5": "not in"}
PROBABILITIES |= {"yes": "yes", "1e999": "not in", "": "no value", "0.5.5": "0.5.5", "0x1p-1": "0x1p-1", "50%": "50%"}


@pytest.mark.parametrize("value", PROBABILITIES)
def test_a_submission_with_a_value_that_is_no_probability_is_refused(value, tmp_path):
    ids = ["ID_000000006", "ID_000000007"]
    good = long_table(ids, 0.25).replace(b"_any,0.25", b"_any,0.5")
    root = write_folder(tmp_path / "data", FILES)
    (tmp_path / "mine.csv").write_bytes(good)
    flags = ["--data-dir", str(root), "--work-dir", str(tmp_path / "work"), "--submissions-dir", str(tmp_path / "sent")]
    flags += ["--file", str(tmp_path / "mine.csv"), "--dry-run"]
    submit.main(flags)
    (tmp_path / "mine.csv").write_bytes(good.replace(b"subdural,0.25", f"subdural,{value}".encode(), 1))
    assert PROBABILITIES[value] in refusal(submit, *flags, folder=tmp_path)


@pytest.mark.slow
def test_ten_million_rows_of_one_id_take_bounded_memory_and_time(tmp_path):
    """Measured: 10,000,000 rows (210 MB) of one slice, all alike, are read in 3 s and 1.3 GB."""
    root = write_folder(tmp_path / "data", FILES)
    with (root / paths.TRAIN_CSV).open("ab") as file:
        for _ in range(1000):
            file.write(b"ID_000000000_any,0\n" * 10_000)
    done, peak = peak_of("ich_kaggle.slices", *scan_flags(root, tmp_path), cwd=tmp_path)
    assert done.returncode == 0 and "counted once" in done.stdout, done.stderr
    assert peak < 2500


FOLDS = {
    "empty": "",
    "no columns": "\n\n",
    "other columns": "patient,fold\nID_p000,0\n",
    "missing patient": "patient_id,fold\nID_p000,0\n",
    "text": "patient_id,fold\nID_p000,zero\n",
    "nan": "patient_id,fold\nID_p000,nan\n",
    "half": "patient_id,fold\nID_p000,0.5\n",
    "negative": "patient_id,fold\nID_p000,-1\n",
    "huge": "patient_id,fold\nID_p000,99999999999999999999\n",
    "longer row": "patient_id,fold\nID_p000,0\nID_p001,1,2,3\n",
    "open quote": 'patient_id,fold\n"ID_p000,0\n',
    "NULs": "\0" * 100,
    "bytes": "\xff\xfe\xfd",
}


@pytest.fixture(scope="module")
def first_level(tmp_path_factory):
    """A work folder with slices, folds and two runs, a and b; not to be written into."""
    work = tmp_path_factory.mktemp("first") / "work"
    second_level.write_slices(work, [4, 6, 5, 7, 5, 6, 5, 4])
    for seed, run in enumerate("ab"):
        second_level.write_run(work, run, seed)
    return work


@pytest.fixture
def work(first_level, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(first_level, tmp_path / "work"))


@pytest.mark.parametrize("kind", FOLDS)
def test_folds_that_are_none_are_refused(kind, work, tmp_path):
    (work / "folds.csv").write_bytes(FOLDS[kind].encode("latin-1"))
    line = refusal(ensemble, "--work-dir", str(work), "--runs", "a", "b", folder=tmp_path)
    assert "folds.csv" in line


@pytest.mark.parametrize("kind", FOLDS)
def test_folds_of_others_that_are_none_are_refused(kind, prepared, tmp_path):
    work = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    (tmp_path / "theirs.csv").write_bytes(FOLDS[kind].encode("latin-1"))
    (work / "folds.csv").unlink()
    line = refusal(folds, "--work-dir", str(work), "--from", str(tmp_path / "theirs.csv"), folder=tmp_path)
    assert "theirs.csv" in line


# Our own tables


def predictions_of(work: Path) -> tuple[Path, pd.DataFrame]:
    path = work / "runs" / "a" / "fold0" / "oof.parquet"
    return path, pd.read_parquet(path)


def with_value(value: float):
    def spoil(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[1, "any"] = value
        return table

    return spoil


SPOILT = {
    "text": lambda t: t.assign(any="0.5"),
    "whole numbers": lambda t: t.assign(any=1),
    "booleans": lambda t: t.assign(any=True),
    "dates": lambda t: t.assign(any=pd.Timestamp("2020-01-01")),
    "lists": lambda t: t.assign(any=[[0.5]] * len(t)),
    "missing column": lambda t: t.drop(columns="any"),
    "further column": lambda t: t.assign(other=0.5),
    "columns in another order": lambda t: t[t.columns[::-1]],
    "ids that are numbers": lambda t: t.assign(slice_id=range(len(t))),
    "ids that are none": lambda t: t.assign(slice_id=None),
    "missing row": lambda t: t.iloc[1:],
    "row twice": lambda t: pd.concat([t, t.iloc[:1]]),
    "no rows": lambda t: t.iloc[:0],
    "nan": with_value(np.nan),
    "inf": with_value(np.inf),
    "negative": with_value(-0.1),
    "above one": with_value(1.5),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_predictions_of_another_kind_are_refused(kind, work, tmp_path):
    path, table = predictions_of(work)
    SPOILT[kind](table).to_parquet(path, index=False)
    line = refusal(ensemble, "--work-dir", str(work), "--runs", "a", "b", folder=tmp_path)
    assert "oof.parquet" in line


def test_predictions_in_another_order_of_rows_are_the_same(work):
    path, table = predictions_of(work)
    expected = tables.read_predictions(path, table.slice_id.to_numpy())
    table.iloc[::-1].to_parquet(path, index=False)
    assert np.array_equal(tables.read_predictions(path, table.slice_id.to_numpy()), expected)


SLICES = {
    "missing column": lambda t: t.drop(columns="study_id"),
    "position is text": lambda t: t.assign(position="1"),
    "position is nan": lambda t: t.assign(position=np.nan),
    "ids are numbers": lambda t: t.assign(slice_id=range(len(t))),
    "patients are none": lambda t: t.assign(patient_id=None),
    "labels are text": lambda t: t.assign(any="1"),
    "split is a number": lambda t: t.assign(split=1),
    "paths are lists": lambda t: t.assign(path=[["a"]] * len(t)),
}


@pytest.mark.parametrize("kind", SLICES)
def test_a_slice_table_of_another_kind_is_refused(kind, work, tmp_path):
    path = work / "slices.parquet"
    SLICES[kind](pd.read_parquet(path)).to_parquet(path, index=False)
    line = refusal(ensemble, "--work-dir", str(work), "--runs", "a", "b", folder=tmp_path)
    assert "slices.parquet" in line


@pytest.mark.parametrize("stored", [b"", b"PAR1", b"PAR1" * 100, bytes(1000), b"slice_id,any\n"])
@pytest.mark.parametrize("name", ["slices.parquet", "runs/a/fold0/oof.parquet"])
def test_what_is_no_parquet_is_refused(stored, name, work, tmp_path):
    (work / name).write_bytes(stored)
    line = refusal(ensemble, "--work-dir", str(work), "--runs", "a", "b", folder=tmp_path)
    assert Path(name).name in line


def test_damaged_predictions_are_refused_by_name(work):
    path, table = predictions_of(work)
    ids, original = table.slice_id.to_numpy(), path.read_bytes()
    only_value_errors("predictions", lambda: tables.read_predictions(path, ids), path, original)


def test_a_damaged_slice_table_is_refused_by_name(work):
    path = work / "slices.parquet"
    original = path.read_bytes()
    only_value_errors("slice table", lambda: tables.read_slices(work), path, original)
    only_value_errors("settings of a table", lambda: tables.settings_of(path), path, original)


# Models


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def legacy(trap: Trap) -> bytes:
    return pickle.dumps({"weights": trap, "config": "{}"})


def in_zip(trap: Trap) -> bytes:
    stream = io.BytesIO()
    torch.save({"config": json.dumps({"arch": "test_resnet"}), "weights": {"a": trap}, "sequence": trap}, stream)
    return stream.getvalue()


def in_npy(trap: Trap) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([trap], object), allow_pickle=True)
    return stream.getvalue()


@pytest.fixture(params=[legacy, in_zip, in_npy])
def trap(request, tmp_path):
    """Return bytes that would leave `tmp_path`/ran if they were unpickled; that they were not is checked at the end."""
    yield request.param(Trap(tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()


def test_the_trap_works(tmp_path):
    pickle.loads(legacy(Trap(tmp_path / "ran")))["weights"].close()
    assert (tmp_path / "ran").exists()


SEQUENCE = ["--on", "a", "--run", "c", "--features", "fold", "--epochs", "1", "--hidden", "8", "--device", "cpu"]


@pytest.mark.parametrize("name", ["model.pt", "embeddings.npy"])
def test_no_code_of_a_first_level_runs(name, trap, work, tmp_path):
    (work / "runs" / "a" / "fold0" / name).write_bytes(trap)
    line = refusal(sequence, "--work-dir", str(work), *SEQUENCE, "--fold", "0", folder=tmp_path)
    assert name in line


def test_no_code_of_a_model_runs_where_it_predicts(trap, work, tmp_path):
    folder = work / "runs" / "a" / "fold0"
    (folder / "model.pt").write_bytes(trap)
    (folder / "predict.json").unlink()
    line = refusal(predict, "--work-dir", str(work), "--run", "a", "--fold", "0", "--device", "cpu", folder=tmp_path)
    assert "model.pt: not a whole model" in line


def test_no_code_of_a_sequence_model_runs(trap, tmp_path):
    (tmp_path / "model.pt").write_bytes(trap)
    with pytest.raises(ValueError, match="model.pt: not a whole sequence model"):
        sequence_models.load(tmp_path / "model.pt", {})


def test_no_code_of_a_state_runs(trap, work, tmp_path):
    flags = ["--work-dir", str(work), *SEQUENCE, "--fold", "0"]
    sequence.main([*flags, "--model", "gru"])
    folder = work / "runs" / "c" / "fold0"
    for name in ("model.pt", "predict.json"):
        (folder / name).unlink()
    (folder / "state0.pt").write_bytes(trap)
    with trial("hostile files", "sequence"), pytest.raises(SystemExit) as stopped:
        sequence.main([*flags, "--model", "gru"])
    assert "state0.pt: not a state of this run" in stopped.value.code


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
def test_no_code_of_weights_runs(name, trap, prepared, tmp_path):
    path, work = tmp_path / name, Path(shutil.copytree(prepared, tmp_path / "prepared"))
    path.write_bytes(trap)
    flags = ["--arch", "test_resnet", "--image-size", "32", "--cache-size", "64", "--epochs", "1", "--workers", "0"]
    flags += ["--device", "cpu", "--run", "x", "--fold", "0", "--work-dir", str(work), "--weights", str(path)]
    with trial("hostile files", "train"), pytest.raises(SystemExit) as stopped:
        train.main(flags)
    assert f"{name}: not a file of weights alone" in stopped.value.code
    assert not list((work / "runs").rglob("*.pt"))


def test_damaged_models_are_refused_by_name(tmp_path):
    path = tmp_path / "model.pt"
    slice_model.save(path, slice_model.SliceModel(second_level.CONFIG))
    only_value_errors("model", lambda: slice_model.load(path), path, path.read_bytes())


def test_damaged_weights_are_refused_by_name(tmp_path):
    backbone = slice_model.SliceModel(second_level.CONFIG).backbone
    held = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    save_file(held, tmp_path / "w.safetensors")
    torch.save(held, tmp_path / "w.pth")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        only_value_errors(path.suffix, lambda path=path: pretrained.read(path), path, path.read_bytes())


def test_damaged_embeddings_are_refused_by_name(work):
    table = tables.read_slices(work)
    path = work / "runs" / "a" / "fold0" / "embeddings.npy"
    only_value_errors(
        "embeddings", lambda: run_predictions.embeddings(runs.Run(work, "a"), 0, table), path, path.read_bytes()
    )


# Recipes and settings

RECIPES = {
    "unknown key": "epoch = 3",
    "help": "help = true",
    "another recipe": 'recipe = "cpu"',
    "list of recipes": "recipes = true",
    "text for a number": 'epochs = "three"',
    "fraction for a whole number": "epochs = 1.5",
    "number for text": "arch = 3",
    "table for a number": "lr = {a = 1}",
    "table for text": "run = {a = 1}",
    "switch that is none": "epochs = true",
    "number for a switch": "overwrite = 1",
    "date": "epochs = 2020-01-01",
    "nan": "lr = nan",
    "inf": "lr = inf",
    "not a choice": 'context = "none"',
    "no TOML": "epochs: 3",
    "twice a key": "epochs = 3\nepochs = 4",
    "NUL": "epochs = 3\0",
    "latin 1": 'arch = "\xe9"',
    "deep": "a = " + "[" * 5000 + "]" * 5000,
    "names a folder": 'run = "../../x"',
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_of_another_kind_is_refused(kind, work, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(RECIPES[kind].encode("latin-1"))
    flags = ["--work-dir", str(work), "--recipe", str(path), "--device", "cpu", "--workers", "0"]
    line = refusal(train, *flags, folder=tmp_path)
    assert "mine.toml" in line or kind in ("names a folder", "number for text")


DAMAGED = {
    "empty": b"",
    "open": b"{",
    "list": b"[]",
    "nothing": b"null",
    "number": b"1",
    "no keys": b"{}",
    "NULs": bytes(100),
    "latin 1": b'{"settings": "\xe9"}',
    "deep": b"[" * 100_000,
    "UTF-16": "{}".encode("utf-16"),
}
ENSEMBLE = ["--runs", "a", "b", "--name", "c"]


@pytest.fixture(scope="module")
def third_level(first_level, tmp_path_factory):
    work = Path(shutil.copytree(first_level, tmp_path_factory.mktemp("third") / "work"))
    ensemble.main(["--work-dir", str(work), *ENSEMBLE])
    return work


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("name, command", [("folds.json", folds), ("cache/64/cache.json", cache)])
def test_settings_of_the_data_that_are_damaged_are_refused(kind, name, command, prepared, tmp_path):
    work = Path(shutil.copytree(prepared, tmp_path / "work"))
    (work / name).write_bytes(DAMAGED[kind])
    flags = ["--folds", "3"] if command is folds else ["--cache-size", "64"]
    assert Path(name).stem in refusal(command, "--work-dir", str(work), "--workers", "1", *flags, folder=tmp_path)


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize(
    "name, command, flags",
    [
        ("runs/a/fold0/predict.json", predict, ["--run", "a", "--fold", "0", "--device", "cpu"]),
        ("ensemble/c/weights.json", ensemble, ENSEMBLE),
        ("ensemble/c/weights.json", submit, ["--ensemble", "c", "--dry-run"]),
        ("ensemble/c/evaluation/metrics.json", evaluate, ["--ensemble", "c"]),
    ],
)
def test_settings_that_are_damaged_are_refused(kind, name, command, flags, third_level, tmp_path):
    work = Path(shutil.copytree(third_level, tmp_path / "work"))
    (work / name).parent.mkdir(exist_ok=True)
    (work / name).write_bytes(DAMAGED[kind])
    if command is submit:
        root = write_folder(tmp_path / "data", FILES)
        tables.write_slices(work, tables.read_slices(work), {"data_dir": str(root)})
        flags = [*flags, "--submissions-dir", str(tmp_path / "sent")]
    assert Path(name).name in refusal(command, "--work-dir", str(work), *flags, folder=tmp_path)


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize(
    "command, flags",
    [
        (train, ["--run", "a", "--fold", "0", "--device", "cpu"]),
        (predict, ["--run", "a", "--fold", "0", "--device", "cpu"]),
        (sequence, SEQUENCE),
        (ensemble, []),
        (ensemble, ["--name", "c", "--export", "model.zip"]),
        (evaluate, ["--run", "a"]),
    ],
)
def test_damaged_settings_of_a_run_are_refused_with_a_remedy(kind, command, flags, third_level, tmp_path, monkeypatch):
    work = Path(shutil.copytree(third_level, tmp_path / "work"))
    (work / "runs/a/run.json").write_bytes(DAMAGED[kind])
    monkeypatch.chdir(tmp_path)
    line = refusal(command, "--work-dir", str(work), *flags, folder=tmp_path)
    assert "runs/a/run.json" in line and f"remove {work / 'runs/a'} and make the run anew" in line
