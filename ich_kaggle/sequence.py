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
Writes:  work/runs/<run>/run.json  (the settings that all folds share)
         work/runs/<run>/fold<k>/  widths.json (mm), oof.parquet, test.parquet, predict.json, and for gru and conv
         model.pt, log.csv
Example: python -m ich_kaggle.sequence --on cpu resnet50 --model gru --seeds 4
"""

from dataclasses import asdict
from pathlib import Path

from ich_kaggle.common import cli
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.scoring import patient_folds
from ich_kaggle.second_level import fold_fitting, sequence_models, series_dataset

NETWORK = ("seed", "seeds", "epochs", "batch_size", "lr", "ema", "hidden", "dropout")
SETTINGS = {"gru": NETWORK, "conv": NETWORK, "stack": ("seed", "seeds", "rounds"), "smooth": ()}  # flags of each model


def sequence(
    *,
    data_dir: Path | None,
    work_dir: Path,
    run: str | None,
    on: list[str] | None,
    model: str,
    features: str,
    fold: list[int] | None,
    device: str,
    workers: int,
    overwrite: bool,
    **settings,
) -> None:
    """Fit a second level. `settings` are the flags that SETTINGS lists for its model; the others say nothing to it."""
    if not on:
        raise ValueError("name the runs to read with --on, or a second level that has begun with --run")
    name = run or "-".join([model, *on])
    if len(set(on)) < len(on):
        raise ValueError(f"--on {' '.join(on)}: a run is named twice")
    if name in on:
        raise ValueError(f"{name} can't read itself: give another --run")
    options = {"model": model, "on": on, "features": features} | {key: settings[key] for key in SETTINGS[model]}
    if model in sequence_models.KINDS:
        options["augment"] = asdict(series_dataset.Augment())
    project = Project(data_dir, work_dir, workers)
    patient_folds.ensure(project)
    read = [project.run(one) for one in on]
    fold_fitting.fit_second_level(project, name, read, options, fold, device=device, overwrite=overwrite)


def recorded(options) -> dict:
    """Return the settings of the second level that `options` name, as flags; none if it has not begun."""
    run = Run(options.work_dir, options.run or "-".join([options.model, *(options.on or [])]))
    if not run.begun:
        return {}
    return {key: value for key, value in run.settings.items() if key not in ("slices", "folds", "augment")}


def build_parser():
    flags = ("--data-dir", "--work-dir", "--recipe", "--fold", "--lr", "--seed", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags, lr=1e-3)
    parser.add_argument("--run", help="name of a folder in work/runs (default: the model and the runs it reads)")
    parser.add_argument("--on", nargs="+", metavar="RUN", help="the runs to read")
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
    cli.run(sequence, build_parser(), argv, recorded)


if __name__ == "__main__":
    main()
