"""Predictions of a run: out of fold, of the test slices, and the embeddings of both."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from scipy.special import expit

from ich_kaggle.common import cli, runs, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache
from ich_kaggle.learning import augment, devices, inference, slice_model, tasks

log = logging.getLogger(__name__)


VIEWS = ["identity", "hflip"]


def run_model(
    model: slice_model.SliceModel,
    loader,
    views: list[str],
    device,
    *,
    sizes: Sequence[int] | None = None,
    what: str = "predict",
    is_late: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield logits, float32 (n, 6), and embeddings, float16 (n, d), batch by batch, each a mean over `views`.

    With `sizes`, they come part by part instead: `sizes` are the numbers of slices of the parts, which the batches of
    `loader` respect (`datasets.in_parts`). Once `is_late()` after a batch, the iterator ends and drops that part.
    """
    with closing(inference.outputs(model, loader, device, [augment.VIEWS[view] for view in views], what)) as batches:
        if sizes is None:
            yield from batches
            return
        for size in sizes:
            found, n = [], 0
            while n < size:
                found.append(next(batches))
                n += len(found[-1][0])
                if is_late():
                    return
            logits, embeddings = map(np.concatenate, zip(*found, strict=True))
            yield logits, embeddings


def predict_rows(
    model: slice_model.SliceModel,
    loader,
    rows: np.ndarray,
    *,
    n_slices: int,
    views: list[str],
    device,
    embeddings: Path,
) -> np.ndarray:
    """Return the probabilities, float32 (n_slices, 6), of the slices `rows` of `loader`; NaN for the others.

    Their embeddings are written to the file `embeddings`, float16 (n_slices, d).
    """
    probability = np.full((n_slices, len(LABELS)), np.nan, np.float32)
    start = 0
    with storage.writing(embeddings) as temporary:
        with temporary.open("wb") as file:  # not through the memory map: on a full disk that ends in a bus error
            header = {"descr": "<f2", "fortran_order": False, "shape": (n_slices, model.embedding_size)}
            np.lib.format.write_array_header_1_0(file, header)
            file.writelines([np.full(model.embedding_size, np.nan, "<f2").tobytes()] * n_slices)
        store = np.lib.format.open_memmap(temporary, "r+")
        for logits, embedding in run_model(model, loader, views, device):
            place = rows[start : start + len(logits)]
            probability[place], store[place] = expit(logits), embedding
            start += len(logits)
        store.flush()
    return probability


def predict_fold(
    project: Project, run: runs.Run, k: int, *, views: list[str], all_slices: bool, batch_size: int, device
) -> None:
    """Write the predictions of the model of fold `k` into its folder."""
    folder, table, fold = run.fold(k), project.slices, project.fold
    model = slice_model.load(folder / "model.pt", device)
    cache_dir = picture_cache.ensure(project, model.config.cache_size, model.config.crop)
    rows = np.arange(len(table)) if all_slices else np.flatnonzero((fold == k) | (fold < 0))
    loader = tasks.slice_loader(
        table.iloc[rows], cache_dir, model.config, batch_size=batch_size, workers=project.workers
    )
    probability = predict_rows(
        model, loader, rows, n_slices=len(table), views=views, device=device, embeddings=folder / "embeddings.npy"
    )
    for name, part in (("oof.parquet", fold == k), ("test.parquet", fold < 0)):
        tables.write_predictions(folder / name, table.slice_id[part], probability[part])


def agree_on_views(run: runs.Run, folds_predicted: list[int], views: list[str] | None) -> list[str]:
    """Return the views of all predictions of `run`: those recorded, or these `views`, None for the default.

    Raises ValueError naming both if folds other than those `folds_predicted` now were predicted with other views.
    """
    known, record = run.record.get("views"), run.record
    views = views or known or VIEWS
    kept = [k for k in run.predicted if k not in folds_predicted]
    if known not in (None, views) and kept:
        remedy = f"give the same, or --overwrite --fold {' '.join(map(str, sorted({*kept, *folds_predicted})))}"
        storage.same_settings(run.path, record, {"views": views}, remedy)
    if known != views:
        storage.write_json(run.path, record | {"views": views})
    return views


def predict_run(
    project: Project,
    name: str,
    fold: list[int] | None = None,
    *,
    views: list[str] | None = None,
    all_slices: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Predict with the finished folds of a run, except those already predicted with the same settings."""
    run = project.run(name)
    chosen = project.finished(run, fold)
    if run.is_second_level:
        raise ValueError(f"{run.folder} is a second level: run python -m ich_kaggle.sequence --run {name}")
    project.check_same(run)
    views = agree_on_views(run, chosen if overwrite else [k for k in chosen if k not in run.predicted], views)
    for k in chosen:
        folder = run.fold(k)
        settings = {"views": views, "all_slices": all_slices, "model": storage.file_hash(folder / "model.pt")}
        done = folder / "predict.json"
        if done.exists() and not overwrite:
            found = storage.read_json(done)  # of all slices: as good as of these
            wider = {"all_slices": found.get("all_slices") or all_slices}
            storage.same_settings(done, found, settings | wider, "give --overwrite")
            cli.say(f"{folder / 'oof.parquet'}{cli.THERE}")
            continue
        done.unlink(missing_ok=True)
        how = dict(views=views, all_slices=all_slices, batch_size=batch_size, device=devices.pick_device(device))
        predict_fold(project, run, k, **how)
        storage.write_json(done, settings | {"files": runs.written(folder)})
        cli.say(f"{folder}: predictions of {', '.join(views)}")


def ensure(project: Project, run: runs.Run, chosen: list[int], *, all_slices: bool = False) -> None:
    """Predict with those `chosen` folds of `run` that lack predictions.

    Raises FileNotFoundError for an unfinished fold of a second level.
    """
    missing = [k for k in chosen if k not in run.predicted]
    if missing and run.is_second_level:
        done = run.fold(missing[0]) / "predict.json"
        raise FileNotFoundError(f"{done} is missing: finish {run.resume(missing[0])}")
    if missing:
        log.info("%s: fold %s is not predicted yet: predicting", run.folder, ", ".join(map(str, missing)))
        predict_run(project, run.name, missing, all_slices=all_slices)
