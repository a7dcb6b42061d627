"""Fit the slice model on every fold but one, and score it on that one.

Reads:   work/slices.parquet, work/folds.csv, work/cache/  (each made first where it is missing)
Writes:  work/runs/<run>/fold<k>/  options.json, log.csv, model.pt
Example: python -m ich_kaggle.train --recipe cpu --fold 0
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle import augment, cache, cli, datasets, folds, metric, models, paths, tables, training
from ich_kaggle.labels import LABELS, WEIGHTS

log = logging.getLogger(__name__)


def chosen_folds(fold: np.ndarray, wanted: int | str) -> list[int]:
    """Return the numbers of the `wanted` folds. Raises ValueError for a fold that does not exist."""
    there = sorted(set(fold[fold >= 0].tolist()))
    if wanted == "all":
        return there
    if wanted not in there:
        raise ValueError(f"no fold {wanted}: work/folds.csv has {', '.join(map(str, there))}")
    return [wanted]


def slice_loss(model, batch: tuple):
    images, target, _ = batch
    return training.bce(model(images), target)


def slice_loader(
    table: pd.DataFrame,
    folder: Path,
    config: models.SliceConfig,
    *,
    batch_size: int,
    workers: int,
    move: augment.Augment = augment.NONE,
    seed: int | None = None,
):
    """Return a loader of the cached slices of `table`, in its order, or shuffled and moved where `seed` is given."""
    files = [paths.cached(folder, slice_id) for slice_id in table.slice_id]
    dataset = datasets.SliceDataset(files, tables.targets(table), config.image_size, move, seed or 0)
    return datasets.loader(dataset, batch_size, workers, seed)


def fit_fold(
    k: int,
    table: pd.DataFrame,
    fold: np.ndarray,
    load: Callable,
    model: models.SliceModel,
    recipe: training.Recipe,
    folder: Path,
    device,
) -> None:
    """Fit `model` on all folds but `k` and write its log and itself into `folder`.

    `load(table, seed=, move=)` returns a loader of slices.
    """
    held_out = table[fold == k]
    train_loader = load(table[(fold >= 0) & (fold != k)], seed=recipe.seed, move=augment.Augment())
    valid_loader = load(held_out)
    target = tables.targets(held_out)

    def validate(averaged) -> dict:
        logits = training.predict(averaged, valid_loader, device, what="validate")
        losses = metric.label_losses(target, expit(logits.astype(float))).tolist()
        total = float(np.average(losses, weights=WEIGHTS))
        return {"valid_loss": total, **dict(zip(LABELS, losses, strict=True))}

    checkpoint = folder / "state.pt"
    steps = training.fit(
        model, train_loader, slice_loss, recipe=recipe, validate=validate, device=device, checkpoint=checkpoint
    )
    for rows in steps:
        write_log(folder / "log.csv", rows)
    models.save(folder / "model.pt", model)
    checkpoint.unlink()
    cli.say(f"{folder}: log loss {rows[-1]['valid_loss']:.4f} on {held_out.patient_id.nunique()} held-out patients")


def write_log(path: Path, rows: list[dict]) -> None:
    with paths.writing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    if rows:
        log.info("epoch %(epoch)d: train %(train_loss).4f, valid %(valid_loss).4f", rows[-1])


def start_fold(folder: Path, options: dict, *, overwrite: bool) -> bool:
    """Return whether the fold in `folder` is still to be fitted; write its `options` if it is new.

    Raises ValueError naming both settings if it was begun with other ones.
    """
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    path = folder / "options.json"
    if path.exists():
        remedy = "give another --run, or --overwrite"
        paths.same_settings(path, paths.read_json(path)["options"], options, remedy)
    else:
        versions = {name: version(name) for name in ("ich_kaggle", "torch", "timm", "numpy", "opencv-python-headless")}
        paths.write_json(path, {"options": options, "versions": versions, "commit": paths.git_commit()})
    return not (folder / "model.pt").exists()


def train(
    *,
    data_dir: Path | None,
    work_dir: Path,
    run: str | None,
    arch: str,
    fold: int | str,
    image_size: int,
    cache_size: int,
    epochs: int,
    batch_size: int,
    lr: float,
    drop_path: float,
    ema: float,
    weights: str,
    seed: int,
    device: str,
    workers: int,
    overwrite: bool,
) -> None:
    models.check_arch(arch)
    of_slice = folds.ensure(data_dir, work_dir, workers)
    chosen = chosen_folds(of_slice, fold)
    cache_dir = cache.ensure(data_dir, work_dir, cache_size, workers)
    table = tables.read_slices(work_dir)
    config = models.SliceConfig(arch, image_size, cache_size, drop_path=drop_path)
    recipe = training.Recipe(epochs=epochs, lr=lr, ema=ema, seed=seed)
    options = {
        **asdict(config),
        **asdict(recipe),
        "batch_size": batch_size,
        "weights": weights,
        "slices": tables.slices_hash(table),
        "folds": tables.folds_hash(of_slice),
    }
    load = partial(slice_loader, folder=cache_dir, config=config, batch_size=batch_size, workers=workers)
    for k in chosen:
        folder = paths.fold(work_dir, run or arch, k)
        if not start_fold(folder, options, overwrite=overwrite):
            cli.say(f"{folder / 'model.pt'}{cli.THERE}")
            continue
        training.set_seed(seed)
        model = models.create(config, weights)
        models.start_at_prevalence(model, tables.targets(table[(of_slice >= 0) & (of_slice != k)]).mean(axis=0))
        fit_fold(k, table, of_slice, load, model, recipe, folder, training.pick_device(device))


def build_parser():
    flags = (
        "--data-dir",
        "--work-dir",
        "--run",
        "--recipe",
        "--arch",
        "--fold",
        "--image-size",
        "--epochs",
        "--batch-size",
        "--lr",
        "--weights",
        "--seed",
        "--device",
        "--workers",
        "--overwrite",
    )
    parser = cli.command(__doc__, *flags, image_size=384)
    parser.add_argument("--cache-size", type=int, default=512, help="px of the cached slices that are read")
    parser.add_argument("--drop-path", type=float, default=0.0, help="stochastic depth")
    parser.add_argument("--ema", type=float, default=0.999, help="share the averaged weights keep in a step")
    return parser


def main(argv=None):
    cli.run(train, build_parser(), argv)


if __name__ == "__main__":
    main()
