"""For each fold, train a slice model on the other folds and score it on that fold.

Without --recipe, --arch or the --run of a begun run, the recipe that suits the device gives the settings. Several GPUs
train several folds side by side, one each.

Reads:   work/slices.parquet, work/folds.csv, work/cache/  (made first if they do not exist),
         work/weights/<arch>.safetensors  (if it exists, instead of a download)
Writes:  work/runs/<run>/run.json  (the settings that all folds share)
         work/runs/<run>/fold<k>/  log.csv, model.pt  (and state.pt until training is finished)
Example: python -m ich_kaggle.train --recipe cpu --fold 0
         python -m ich_kaggle.train --arch resnet50 --context slices --dry-run
         torchrun --nproc_per_node 2 -m -- ich_kaggle.train --recipe cpu --fold 0
"""

import argparse
from functools import partial

from ich_kaggle.common import cli, recipes, runs
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache
from ich_kaggle.learning import (
    ddp,
    devices,
    fold_training,
    preflight,
    slice_model,
    training_options,
)
from ich_kaggle.scoring import patient_folds


def train(*, arch: str | None, run: str | None = None, fold: list[int] | None = None, **flags) -> None:
    """Train the chosen folds of a run, except those that are finished.

    `flags` are fields of Project, fold_training.Session and the dataclasses of tasks.Plan, and arguments of
    tasks.slice_config.
    """
    if arch is None:
        raise ValueError("no architecture: give --arch or --recipe")
    project, session = (training_options.take(kind, flags) for kind in (Project, fold_training.Session))
    settings, this = {"arch": arch, **flags}, project.run(run or arch)
    is_new = session.overwrite or not this.begun
    slice_model.check_arch(arch)
    if is_new:
        training_options.check(settings)  # a run that has begun is resumed with the settings that it has
    plan = training_options.plan_of(arch, flags)
    if plan.task.init == this.name:
        raise ValueError(f"--init {this.name} is the run itself: give another --run")
    with ddp.processes(session.device) as name:
        on = devices.pick_devices(name)
        probe = partial(preflight.check, plan, on[0], project, session.tensorboard)
        if is_new:
            probe()
        with ddp.first():
            patient_folds.ensure(project)
        chosen, recorded = project.chosen(fold), fold_training.settings_of(project, settings)
        this.check(recorded, replaced=chosen if session.overwrite else [])
        still_open = chosen if session.overwrite else sorted(set(chosen) - set(this.finished))
        if not is_new and still_open:
            probe()
        doubt = preflight.check_start(plan, project, still_open)
        with ddp.first():
            cache_dir = picture_cache.ensure(project, plan.config.cache_size, plan.config.crop)
        training = fold_training.Training(project, this, plan, session, on[0], cache_dir)
        origin = {"weights_from": settings["weights"], "init_from": settings.get("init"), "possible_leak": doubt}
        write = partial(this.write, recorded, **{key: value for key, value in origin.items() if value})
        training.train(chosen, on, write)


def build_parser():
    parser = cli.command(__doc__)
    training_options.add(parser)
    training_options.add_run(parser)
    parser.add_argument("--recipe", **cli.FLAGS["--recipe"])
    listing = "list the recipes and their sources; with --markdown as a table"
    parser.add_argument("--recipes", action=recipes.Listing, help=listing)
    return parser


def recorded(options: argparse.Namespace) -> dict:
    """Return the settings of the run that `options` name, as flags; {} if it does not exist.

    Those of a run whose folds are removed, to be trained anew, still hold. Raises ValueError for a second level.
    """
    run = runs.Run(options.work_dir, options.run or options.arch)
    if not run.path.exists() and not run.begun:
        return {}
    if run.is_second_level:
        raise ValueError(f"{run.folder} is a second level: run python -m ich_kaggle.sequence --run {run.name}")
    known = {key: value for key, value in run.settings.items() if key not in ("slices", "folds")}
    origin = {"weights": run.record["weights_from"], "init": run.record.get("init_from")}
    return known | {key: value for key, value in origin.items() if value is not None}


def main(argv=None):
    cli.run(train, build_parser(), argv, recorded, preflight.recipe_for)


if __name__ == "__main__":
    main()
