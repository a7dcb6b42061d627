"""Predict with each fold's model: the slices it never saw, the test slices, and the embeddings of both.

Reads:   work/runs/<run>/fold<k>/model.pt, work/cache/
Writes:  work/runs/<run>/fold<k>/  oof.parquet, test.parquet, embeddings.npy
         (embeddings: float16, row for row the slice table; NaN where a slice was not asked for)
Example: python -m ich_kaggle.predict --run cpu --fold all
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle import augment, cache, cli, folds, models, paths, tables, tasks, train, training
from ich_kaggle.labels import LABELS

VIEWS = ["identity", "hflip"]


def predict_rows(
    model: models.SliceModel, loader, rows: np.ndarray, *, n_slices: int, views: list[str], device, embeddings: Path
) -> np.ndarray:
    """Return the probabilities, float32 (n_slices, 6), of the slices `rows` that `loader` gives; NaN for the others.

    Their embeddings are written to the file `embeddings`, float16 (n_slices, d).
    """
    probability = np.full((n_slices, len(LABELS)), np.nan, np.float32)
    start = 0
    with paths.writing(embeddings) as temporary:
        store = np.lib.format.open_memmap(temporary, "w+", np.float16, (n_slices, model.embedding_size))
        store[:] = np.nan
        for logits, embedding in training.outputs(model, loader, device, [augment.VIEWS[view] for view in views]):
            place = rows[start : start + len(logits)]
            probability[place], store[place] = expit(logits), embedding
            start += len(logits)
        store.flush()
    return probability


def predict_fold(
    k: int,
    folder: Path,
    table: pd.DataFrame,
    fold: np.ndarray,
    *,
    data_dir: Path | None,
    work_dir: Path,
    views: list[str],
    all_slices: bool,
    batch_size: int,
    workers: int,
    device,
) -> None:
    """Write the predictions of fold `k`'s model into `folder`. Raises ValueError if it was fitted on other folds."""
    flags = f"--run {folder.parent.name} --fold {k}"
    model = models.load(paths.require(folder / "model.pt", flags), device)
    same = {"slices": tables.slices_hash(table), "folds": tables.folds_hash(fold)}
    options = folder / "options.json"
    remedy = f"run python -m ich_kaggle.train {flags} --overwrite"
    paths.same_settings(options, paths.read_json(options)["options"], same, remedy)
    cache_dir = cache.ensure(data_dir, work_dir, model.config.cache_size, max(1, workers), model.config.crop)
    is_test = (table.split == "test").to_numpy()
    rows = np.arange(len(table)) if all_slices else np.flatnonzero((fold == k) | is_test)
    loader = tasks.slice_loader(table.iloc[rows], cache_dir, model.config, batch_size=batch_size, workers=workers)
    probability = predict_rows(
        model, loader, rows, n_slices=len(table), views=views, device=device, embeddings=folder / "embeddings.npy"
    )
    tables.write_predictions(folder / "oof.parquet", table.slice_id[fold == k], probability[fold == k])
    tables.write_predictions(folder / "test.parquet", table.slice_id[is_test], probability[is_test])


def predict(
    *,
    data_dir: Path | None,
    work_dir: Path,
    run: str,
    fold: int | str = "all",
    views: list[str] = VIEWS,
    all_slices: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Predict with the models of `run`, those folds left out that have been predicted with these settings."""
    of_slice = folds.ensure(data_dir, work_dir, max(1, workers))
    table = tables.read_slices(work_dir)
    for k in train.chosen_folds(of_slice, fold):
        folder = paths.fold(work_dir, run, k)
        model = paths.require(folder / "model.pt", f"--run {run} --fold {k}")
        if "on" in paths.read_json(folder / "options.json")["options"]:
            raise ValueError(f"{folder} is a second level: run python -m ich_kaggle.sequence --run {run}")
        settings = {"views": views, "all_slices": all_slices, "model": paths.file_hash(model)}
        done = folder / "predict.json"
        if done.exists() and not overwrite:
            paths.same_settings(done, paths.read_json(done), settings, "give --overwrite")
            cli.say(f"{folder / 'oof.parquet'}{cli.THERE}")
            continue
        done.unlink(missing_ok=True)
        predict_fold(
            k,
            folder,
            table,
            of_slice,
            data_dir=data_dir,
            work_dir=work_dir,
            views=views,
            all_slices=all_slices,
            batch_size=batch_size,
            workers=workers,
            device=training.pick_device(device),
        )
        paths.write_json(done, settings)
        cli.say(f"{folder}: predictions of {', '.join(views)}")


def build_parser():
    flags = ("--data-dir", "--work-dir", "--run", "--fold", "--batch-size", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags, batch_size=64, run="tf_efficientnetv2_s")
    parser.add_argument("--views", nargs="+", choices=list(augment.VIEWS), default=VIEWS, help="averaged (TTA)")
    parser.add_argument("--all-slices", action="store_true", help="embed the slices of the other folds as well")
    return parser


def main(argv=None):
    cli.run(predict, build_parser(), argv)


if __name__ == "__main__":
    main()
