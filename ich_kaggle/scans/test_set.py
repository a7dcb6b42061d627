"""The test set in `infer`: its slice table, the blend of the passes made so far, and the submission."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import slice_table
from ich_kaggle.kaggle_api import submissions
from ich_kaggle.scans import model_bundle, passes
from ich_kaggle.scans.passes import Pass
from ich_kaggle.scoring import blending, ensembling, nested_choice

MODELS = model_bundle.MANIFEST
LEAST = 1e-6  # weight of a run that is read by others only


def read_models(folder: str | Path) -> dict:
    """Return the manifest of the models in `folder`.

    Raises FileNotFoundError, or ValueError naming a file that has changed.
    """
    folder = Path(folder)
    path = folder / MODELS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: make the folder with python -m ich_kaggle.kernel weights")
    packed = storage.read_json(path)
    model_bundle.check(packed, path, passes.AGAIN)
    for run in packed["models"].values():
        for model in (model for model in run if "file" in model):
            file = folder / model["file"]
            if Path(model["file"]).name != model["file"] or not file.is_file():
                raise FileNotFoundError(f"{path} lists {model['file']}, which is not beside it: pack it again")
            if storage.file_hash(file) != model["hash"]:
                raise ValueError(f"{file} is not the file that was packed: upload the folder again")
    return packed


def test_table(data: paths.Data, work_dir: str | Path, workers: int) -> pd.DataFrame:
    """Return the slice table of the test slices only, so that `picture_cache.ensure` caches no others.

    Raises ValueError if a slice is missing, or if the table in `work_dir` is damaged, holds training slices, or is of
    other data.
    """
    work_dir = Path(work_dir)
    path, wanted = paths.slices(work_dir), tables.read_long(data, paths.SAMPLE_CSV)[0]
    if not path.exists():
        table = slice_table.scan(data, "test", workers).sort_values(slice_table.ORDER, ignore_index=True)
        if len(gone := np.setdiff1d(wanted, table.slice_id.to_numpy(str))):
            raise ValueError(f"{data.root}: {paths.SAMPLE_CSV} has {gone[0]}, stage_2_test has not: get it again")
        slice_table.write_defects(work_dir, table[table.defect.notna()])
        table = table.drop(columns=["defect", "action"]).assign(**dict.fromkeys(LABELS, np.float32(np.nan)))
        tables.write_slices(work_dir, table, {"data_dir": str(data.root.absolute())})
    try:
        table = tables.read_slices(work_dir)
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}): remove it and run the same command again") from error
    if (table.split != "test").any():
        raise ValueError(f"{path} holds training slices: give another --work-dir")
    if len(gone := np.setdiff1d(wanted, table.slice_id.to_numpy(str))):
        raise ValueError(f"{path} lacks {gone[0]} of {data.root}: it is of other data: give another --work-dir")
    return table


def blend(packed: dict, values: dict[Pass, np.ndarray], n_slices: int) -> np.ndarray:
    """Return the ensemble's probabilities, (n_slices, 6): per slice the mean over the folds that have seen it."""
    of_fold, folds = [], {run: [entry["fold"] for entry in entries] for run, entries in packed["models"].items()}
    for k in sorted({one.fold for one in values}):
        # A run without this fold stands in with the mean of those that it has.
        of_runs = {run: [k] if k in own else own for run, own in folds.items()}
        said = {run: passes.mean_of_known([passes.said(values, run, j) for j in own]) for run, own in of_runs.items()}
        of_fold.append(blend_fold(packed, said))
    out = passes.mean_of_known(of_fold)
    return blending.raise_any(np.where(np.isnan(out), np.tile(packed["mean"], (n_slices, 1)), out))


def blend_fold(packed: dict, probabilities: dict[str, np.ndarray]) -> np.ndarray:
    """Return the blend of the `probabilities` of each run, (n, 6), NaN where it has not seen a slice: (n, 6).

    A slice that all runs of the ensemble have seen gets the fitted blend, any other slice the weighted mean of the runs
    that have seen it. A run that is only read by others counts where no other run has seen the slice.
    """
    stack = np.stack(list(probabilities.values()))
    weight = np.array([packed["runs"].get(run, 0.0) for run in probabilities])
    blended = [list(probabilities).index(run) for run in packed["runs"]]
    pipeline = nested_choice.from_json(packed["pipeline"], list(packed["runs"]))
    out = np.full(stack.shape[1:], np.nan, np.float32)
    known = ~np.isnan(stack[..., 0])
    for pattern in np.unique(known, axis=1).T:
        rows = (known == pattern[:, None]).all(axis=0)
        if pattern[blended].all():
            out[rows] = nested_choice.predict(pipeline, [blending.raise_any(stack[run][rows]) for run in blended])
        elif pattern.any():
            share = np.clip(weight[pattern], LEAST, None)
            out[rows] = ensembling.blend(
                share / share.sum(), [blending.raise_any(part) for part in stack[pattern][:, rows]]
            )
    return out


def write(
    out: str | Path, work_dir: str | Path, data: paths.Data, slice_ids: np.ndarray, probability: np.ndarray
) -> None:
    """Write the submission `out`: it is replaced after the new one has been verified."""
    out, work_dir = Path(out), Path(work_dir)
    draft = work_dir / out.name
    tables.write_submission(draft, data, slice_ids, probability)
    submissions.verify(draft, data, quiet=True)
    with storage.writing(out) as temporary:
        shutil.copyfile(draft, temporary)


def report(planned: list[Pass], n_done: dict[Pass, int], n_slices: int) -> str:
    """Return a line on the passes that were made and those that were left out."""
    whole = [one for one in planned if n_done[one] == n_slices]
    left_out = [f"{one} ({n_done[one] / n_slices:.0%} done)" for one in planned if n_done[one] < n_slices]
    made = f"{len(whole)} of {len(planned)} passes over {n_slices} slices"
    return f"{made}; left out for lack of time: {'; '.join(left_out)}" if left_out else made
