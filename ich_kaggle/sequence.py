"""Fit a second level over the slices of each study, on the predictions of other runs, fold by fold.

The folds are those of the runs that are read. Fold k is fitted on the slices of the other folds and scored on its own:
  --features oof    reads the out-of-fold logits of the runs. The logits of the fitted slices come from first levels
                    that were also fitted on fold k's patients, as in all stacking; nothing that is fitted here sees
                    fold k. A test slice is read like an out-of-fold slice: through the logits of one model, fold k's.
  --features fold   reads the embeddings and logits of fold k's own first level. It was fitted on the slices that the
                    second level is fitted on, but not on fold k, so it is more certain of the former.
--model smooth is a Gaussian along z per label; the others start from its result. gru, conv and transformer are networks
over a series; stack is gradient boosting on a slice and its neighbours. The boosters of stack are not saved, only their
predictions: the same settings fit the same boosters.

Reads:   work/runs/<run>/fold<k>/  oof.parquet, test.parquet, and for --features fold model.pt, embeddings.npy
         (made first if they do not exist)
Writes:  work/runs/<run>/run.json  (the settings that all folds share)
         work/runs/<run>/fold<k>/  widths.json (mm), oof.parquet, test.parquet, predict.json, and of networks
         model.pt, log.csv
Example: python -m ich_kaggle.sequence --on cpu resnet50 --model gru --seeds 4
"""

from dataclasses import asdict

from ich_kaggle.common import cli
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.learning import training_options
from ich_kaggle.scoring import patient_folds
from ich_kaggle.second_level import fold_fitting, sequence_models, series_dataset

NETWORK = ("seed", "seeds", "epochs", "batch_size", "lr", "ema", "hidden", "dropout")
SETTINGS = {  # flags per model
    **dict.fromkeys(sequence_models.KINDS, NETWORK),
    "stack": ("seed", "seeds", "rounds"),
    "smooth": (),
}


def sequence(
    *,
    on: list[str] | None,
    model: str,
    features: str,
    run: str | None = None,
    fold: list[int] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    **flags,
) -> None:
    """Fit a second level. `flags` are fields of Project, and settings, of which SETTINGS lists those of each model."""
    if not on:
        raise ValueError("name the runs to read with --on, or a second level that has begun with --run")
    name = run or "-".join([model, *on])
    if len(set(on)) < len(on):
        raise ValueError(f"--on {' '.join(on)}: a run is named twice")
    if name in on:
        raise ValueError(f"{name} can't read itself: give another --run")
    project = training_options.take(Project, flags)
    options = {"model": model, "on": on, "features": features} | {key: flags[key] for key in SETTINGS[model]}
    if model in sequence_models.KINDS:
        options["augment"] = asdict(series_dataset.SeriesAugment())
    project.need_runs()
    patient_folds.ensure(project)
    read = [project.run(one) for one in on]
    fold_fitting.fit_second_level(project, name, read, options, fold, device=device, overwrite=overwrite)


def recorded(options) -> dict:
    """Return the settings of the second level that `options` name, as flags; {} if it has not begun."""
    run = Run(options.work_dir, options.run or "-".join([options.model, *(options.on or [])]))
    if not run.path.exists() and not run.begun:
        return {}
    if not run.is_second_level:
        return {}
    return {key: value for key, value in run.settings.items() if key not in ("slices", "folds", "augment")}


def build_parser():
    flags = ("--data-dir", "--work-dir", "--fold", "--lr", "--seed", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags, lr=1e-3)
    add = parser.add_argument
    add("--run", help="name of a folder in work/runs (default: the model and the runs that it reads)")
    add("--on", nargs="+", metavar="RUN", help="runs to read")
    add("--model", choices=list(SETTINGS), default="gru", help="kind of second level")
    add("--features", choices=["oof", "fold"], default="oof", help="input from the runs, see above")
    add("--seeds", type=cli.POSITIVE, default=1, help="networks or boosters per fold, whose predictions are averaged")
    add("--epochs", type=cli.POSITIVE, default=25, help="passes over the training series")
    add("--batch-size", type=cli.POSITIVE, default=32, help="series per step")
    add("--hidden", type=cli.POSITIVE, default=96, help="width of a network, per direction")
    add("--dropout", type=cli.within(0, 1), default=0.5, help="dropout rate of a network")
    add("--ema", type=cli.within(0, 1), default=0.99, help="decay of the averaged weights per step")
    add("--rounds", type=cli.POSITIVE, default=150, help="trees per booster")
    return parser


def main(argv=None):
    cli.run(sequence, build_parser(), argv, recorded)


if __name__ == "__main__":
    main()
