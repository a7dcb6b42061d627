"""A synthetic competition as a folder in Kaggle's layout: the slices of every patient, the tables and the truth."""

import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from ich_kaggle.common import cli, locks, paths, storage
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.synthetic import patients
from ich_kaggle.synthetic.patients import Settings

SETTINGS, TRUTH = paths.PHANTOM, "truth.parquet"
COMMENT = b"a phantom of ich_kaggle"  # in its zip, which lies where the competition's might


def make(out: Path, settings: Settings, *, workers: int = 1, overwrite: bool = False) -> None:
    """Write a synthetic competition to the folder `out`, unless it exists.

    Raises FileExistsError if `out` is something else, ValueError if it is a phantom with other settings.
    """
    wanted = asdict(settings)
    with locks.locked(out):
        if _exists(out, wanted, overwrite):
            cli.say(f"{out}{cli.THERE}")
            return
        if settings.zip and zip_of(out).exists():
            raise FileExistsError(f"{zip_of(out)} exists already: remove it, or give another --out")
        storage.write_json(out / SETTINGS, wanted)  # without n_slices: begun, not finished
        planned = patients.plan(settings)
        writes = (delayed(patients.write)(p, settings, out) for p in planned)
        made = Parallel(max(1, workers), return_as="generator")(writes)
        table = pd.concat(list(cli.progress(made, len(planned), "phantoms", " patients")), ignore_index=True)
        _write_tables(table, out)
        if settings.zip:
            _write_zip(out)
        storage.write_json(out / SETTINGS, {**wanted, "n_slices": len(table)})
        cli.say(_describe(table, out))


def _exists(out: Path, wanted: dict, overwrite: bool) -> bool:
    """Return whether `out` holds a finished phantom as `wanted`; remove one that is unfinished or to be replaced."""
    mark = out / SETTINGS
    if not mark.is_file():
        # A process killed at its very beginning leaves a half-written mark.
        if out.exists() and not (out.is_dir() and all(f.name.startswith(f".{SETTINGS}.") for f in out.iterdir())):
            raise FileExistsError(f"{out} exists and is no phantom: give another --out")
        return False
    found = {} if overwrite else storage.read_json(mark)  # a damaged mark is overwritten too
    if "n_slices" in found:
        found = {"variety": "plain"} | found  # older ones do not say it
        storage.same_settings(mark, found, wanted, "give another --out, or --overwrite")
        return True
    if _is_own(zip_of(out)):
        zip_of(out).unlink()
    shutil.rmtree(out)
    return False


def _write_tables(table: pd.DataFrame, out: Path) -> None:
    table = table.sort_values("slice_id", ignore_index=True)
    train, test = (table[table.split == split] for split in paths.SPLITS)
    train = pd.concat([train, train[train["listed_twice"]]])
    with storage.writing(out / TRUTH) as temporary:
        table.loc[:, : LABELS[ANY]].to_parquet(temporary, index=False)
    _write_long(out / paths.SAMPLE_CSV, test.slice_id, np.full((len(test), len(LABELS)), 0.5))
    _write_long(out / paths.TRAIN_CSV, train.slice_id, train[[f"read_{label}" for label in LABELS]].to_numpy())


def _write_long(path: Path, slice_ids: pd.Series, values: np.ndarray) -> None:
    names = np.char.add(np.array(slice_ids, str)[:, None] + "_", LABELS)
    with storage.writing(path) as temporary:
        pd.DataFrame({"ID": names.ravel(), "Label": values.ravel()}).to_csv(temporary, index=False)


def zip_of(out: Path) -> Path:
    return out.with_name(out.name + ".zip")


def _is_own(path: Path) -> bool:
    """Return whether `path` is the zip of a phantom, not the competition's."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return archive.comment == COMMENT


def _write_zip(out: Path) -> None:
    """Write `out` as a zip in the layout of Kaggle's download: the same bytes for the same files."""
    slices = [f for split in paths.SPLITS for f in sorted((out / f"stage_2_{split}").iterdir())]
    files = [out / paths.SAMPLE_CSV, out / paths.TRAIN_CSV, *slices]
    with storage.writing(zip_of(out)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = COMMENT
        for file in cli.progress(files, len(files), "zip", " files"):
            info = zipfile.ZipInfo(f"{paths.SLUG}/{file.relative_to(out).as_posix()}", (2019, 11, 4, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, file.read_bytes())


def _describe(table: pd.DataFrame, out: Path) -> str:
    n_train = (table.split == "train").sum()
    share = ", ".join(f"{label} {100 * table[label].mean():.1f} %" for label in LABELS)
    return f"{out}: {n_train} train, {len(table) - n_train} test slices, {table.patient_id.nunique()} patients; {share}"
