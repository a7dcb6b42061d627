"""Read each study as a sequence: fit a second level on the predictions of other runs, fold by fold.

The folds are those of the runs it reads. Fold k is fitted on the slices of the other folds and scored on its own:
  --features oof    the out-of-fold logits of the runs. Those of the fitted slices come from first levels that were
                    fitted on fold k's patients too, as in all stacking; nothing fitted here sees fold k. A test slice
                    is read as an out-of-fold slice is: through the logits of one model, that of fold k.
  --features fold   the embeddings and logits of fold k's own first level, which was fitted on the slices that the
                    second level is fitted on, but not on fold k: it is surer of the former than of the latter.
--model smooth is a Gaussian for each label along z; the others start from it. gru and conv are networks over a series,
stack is gradient boosting on a slice's neighbours. The boosters of stack aren't kept, only what they predict: the same
options make them again.

Reads:   work/runs/<run>/fold<k>/  oof.parquet, test.parquet, and for --features fold model.pt, embeddings.npy
         (predicted first where nothing is)
Writes:  work/runs/<run>/fold<k>/  options.json, widths.json (mm), oof.parquet, test.parquet, predict.json, and for
         gru and conv model.pt, log.csv
Example: python -m ich_kaggle.sequence --on cpu resnet50 --model gru --seeds 4
"""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle import (
    cli,
    disk,
    folds,
    levels,
    locks,
    metric,
    models,
    paths,
    predict,
    runs,
    sequence_models,
    series,
    spans,
    tables,
    train,
)

log = logging.getLogger(__name__)

NETWORK = ("seed", "seeds", "epochs", "batch_size", "lr", "ema", "hidden", "dropout")
SETTINGS = {"gru": NETWORK, "conv": NETWORK, "stack": ("seed", "seeds", "rounds"), "smooth": ()}  # flags of each model


def read_inputs(
    work_dir: Path, on: list[str], k: int, features: str, table: pd.DataFrame, fold: np.ndarray
) -> series.Inputs:
    """Return what fold `k` reads of the runs `on`."""
    if features == "oof":
        embeddings, logits = [], [runs.oof_logits(work_dir, run, k, table, fold) for run in on]
    else:
        embeddings = [runs.embeddings(work_dir, run, k, table) for run in on]
        models_of = [paths.fold(work_dir, run, k) / "model.pt" for run in on]
        logits = [models.head_logits(models.load(path), part) for path, part in zip(models_of, embeddings, strict=True)]
    return series.Inputs(
        embeddings,
        np.stack(logits, axis=1),
        np.mean(logits, axis=0),
        tables.targets(table),
        table.position.to_numpy(float),
        spans.number(table.series_id),
        spans.number(table.study_id),
    )


def need_predictions(
    data_dir: Path | None, work_dir: Path, run: str, wanted: list[int], features: str, same: dict, workers: int
) -> None:
    """Predict with those `wanted` folds of `run` that have not.

    Raises FileNotFoundError naming a fold that isn't fitted, ValueError for a run on other slices or folds (`same`
    holds their hashes), and for the embeddings of a run that has none.
    """
    for k in wanted:
        folder, flags = paths.fold(work_dir, run, k), f"--run {run} --fold {k}"
        done = folder / "predict.json"
        if not done.exists():
            disk.require(folder / "model.pt", flags)
        options = disk.read_json(folder / "options.json")["options"]
        disk.same_settings(folder / "options.json", options, same, f"fit {run} again with --overwrite")
        is_second = "on" in options
        if is_second and features == "fold":
            raise ValueError(f"{run} is a second level and has no embeddings: read it with --features oof")
        if is_second and not done.exists():
            raise FileNotFoundError(f"{done} is missing: finish python -m ich_kaggle.sequence {flags}")
        if not done.exists():
            log.info("%s: not predicted yet: predicting", folder)
            predict.predict(
                data_dir=data_dir, work_dir=work_dir, run=run, fold=k, all_slices=features == "fold", workers=workers
            )
        if features == "fold":
            disk.require(folder / "embeddings.npy", f"{flags} --all-slices")


def write_fold(k: int, folder: Path, table: pd.DataFrame, fold: np.ndarray, inputs: series.Inputs, **how) -> None:
    """Fit the second level on all folds but `k` and write its predictions of `k` and of the test slices."""
    fitted = (fold >= 0) & (fold != k)
    probability = np.full(inputs.target.shape, np.nan)
    tell = partial(train.write_log, folder / "log.csv")
    probability[~fitted] = levels.second_level(inputs, fitted, folder, tell=tell, **how)
    held_out, is_test = fold == k, fold < 0
    for name, rows in (("oof.parquet", held_out), ("test.parquet", is_test)):
        tables.write_predictions(folder / name, table.slice_id[rows], probability[rows])
    before = metric.log_loss(inputs.target[held_out], expit(inputs.logits[held_out].astype(float)).mean(axis=1))
    after = metric.log_loss(inputs.target[held_out], probability[held_out])
    n_patients = table.patient_id[held_out].nunique()
    cli.say(f"{folder}: log loss {after:.4f} on {n_patients} held-out patients, {before:.4f} before")


def sequence(
    *,
    data_dir: Path | None,
    work_dir: Path,
    run: str | None,
    on: list[str],
    model: str,
    features: str,
    fold: int | str,
    device: str,
    workers: int,
    overwrite: bool,
    **settings,
) -> None:
    """Fit the chosen folds of a second level on the runs `on`, those left out that are finished.

    `settings` are the flags that SETTINGS lists for its model; the others say nothing to it.
    """
    run = run or "-".join([model, *on])
    if len(set(on)) < len(on):
        raise ValueError(f"--on {' '.join(on)}: a run is named twice")
    if run in on:
        raise ValueError(f"{run} can't read itself: give another --run")
    of_slice = folds.ensure(data_dir, work_dir, workers)
    table = tables.read_slices(work_dir)
    every, chosen = train.chosen_folds(of_slice, "all"), train.chosen_folds(of_slice, fold)
    same = {"slices": tables.slices_hash(table), "folds": tables.folds_hash(of_slice)}
    for name in on:
        need_predictions(data_dir, work_dir, name, every if features == "oof" else chosen, features, same, workers)
    options = {"model": model, "on": on, "features": features, **same}
    options |= {name: settings[name] for name in SETTINGS[model]}
    if model in sequence_models.KINDS:
        options["augment"] = asdict(series.Augment())
    for k in chosen:
        folder = paths.fold(work_dir, run, k)
        reads = {name: runs.hash_of(work_dir / "runs" / name) for name in runs.files(on, k, features, every)}
        with locks.locked(folder):
            is_done = (folder / "predict.json").exists() and not overwrite
            inputs = None if is_done else read_inputs(work_dir, on, k, features, table, of_slice)
            # The hash of a file is an option of its own, so that a changed one is refused by its name.
            train.start_fold(folder, options | reads, overwrite=overwrite)
            if is_done:
                cli.say(f"{folder / 'oof.parquet'}{cli.THERE}")
                continue
            write_fold(k, folder, table, of_slice, inputs, options=options, reads=reads, device=device)
            facts = {"on": on, "features": features, "reads": reads, "files": runs.written(folder)}
            disk.write_json(folder / "predict.json", facts)


def build_parser():
    flags = ("--data-dir", "--work-dir", "--recipe", "--fold", "--lr", "--seed", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags, lr=1e-3)
    parser.add_argument("--run", help="name of a folder in work/runs (default: the model and the runs it reads)")
    parser.add_argument("--on", nargs="+", required=True, metavar="RUN", help="the runs to read")
    parser.add_argument("--model", choices=list(SETTINGS), default="gru", help="the second level")
    parser.add_argument("--features", choices=["oof", "fold"], default="oof", help="what is read of the runs")
    parser.add_argument("--seeds", type=cli.POSITIVE, default=1, help="networks, or boosters, whose mean is the run")
    parser.add_argument("--epochs", type=cli.POSITIVE, default=25, help="passes over the training series")
    parser.add_argument("--batch-size", type=cli.POSITIVE, default=32, help="series in a step")
    parser.add_argument("--hidden", type=cli.POSITIVE, default=96, help="width of a network, in each direction")
    parser.add_argument(
        "--dropout", type=cli.within(0, 1), default=0.5, help="share of a network's features that a step drops"
    )
    parser.add_argument("--ema", type=cli.within(0, 1), default=0.99, help="share the averaged weights keep in a step")
    parser.add_argument("--rounds", type=cli.POSITIVE, default=150, help="trees of a booster")
    return parser


def main(argv=None):
    cli.run(sequence, build_parser(), argv)


if __name__ == "__main__":
    main()
