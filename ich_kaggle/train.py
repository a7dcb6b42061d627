"""Fit the slice model on every fold but one, and score it on that one.

Reads:   work/slices.parquet, work/folds.csv, work/cache/  (each made first where it is missing),
         work/weights/<arch>.safetensors  (if it is there, instead of a download)
Writes:  work/runs/<run>/run.json  (the settings that all folds share)
         work/runs/<run>/fold<k>/  log.csv, model.pt  (state.pt until it is finished)
Example: python -m ich_kaggle.train --recipe cpu --fold 0
         python -m ich_kaggle.train --arch resnet50 --context slices --dry-run
         torchrun --nproc_per_node 2 -m -- ich_kaggle.train --recipe cpu --fold 0
"""

import argparse
import logging
from functools import partial
from pathlib import Path

from ich_kaggle.common import cli, runs
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache
from ich_kaggle.learning import (
    augment,
    ddp,
    devices,
    fit,
    fold_training,
    preflight,
    slice_model,
    tasks,
    training_options,
)
from ich_kaggle.scoring import patient_folds

log = logging.getLogger(__name__)


def train(
    *,
    data_dir: Path | None = None,
    work_dir: Path,
    run: str | None = None,
    arch: str | None,
    fold: list[int] | None = None,
    device: str = "auto",
    workers: int = 1,
    overwrite: bool = False,
    dry_run: bool = False,
    tensorboard: bool = False,
    checkpoint_every: float = 600.0,
    **settings,
) -> None:
    """Fit the chosen folds of a run, those left out that are finished.

    `settings` are fields of fit.Recipe, augment.Augment and tasks.Task, and arguments of tasks.slice_config.
    """
    if arch is None:
        raise ValueError("no architecture: give --arch or --recipe")
    project, flags_of_run = Project(data_dir, work_dir, workers), {"arch": arch, **settings}
    this = project.run(run or arch)
    slice_model.check_arch(arch)
    if overwrite or not this.begun:
        training_options.check(settings)  # else it is resumed with the settings that it has
    recipe, move, task = (training_options.take(kind, settings) for kind in (fit.Recipe, augment.Augment, tasks.Task))
    config = tasks.slice_config(arch, side_weight=task.side_weight, **settings)
    with ddp.processes(device) as name:
        same = dict(recipe=recipe, device=devices.pick_device(name))
        probe = partial(preflight.check, config, recipe, task, device=same["device"], tensorboard=tensorboard)
        if is_new := overwrite or not this.begun:
            probe(work_dir=work_dir)
        with ddp.first():
            patient_folds.ensure(project)
        chosen, recorded = project.chosen(fold), fold_training.settings_of(project, flags_of_run)
        this.check(recorded, replaced=chosen if overwrite else [])
        if not is_new and set(chosen) - set(this.finished):
            probe(work_dir=work_dir)
        with ddp.first():
            cache_dir = picture_cache.ensure(project, config.cache_size, config.crop)
        load = partial(tasks.slice_loader, folder=cache_dir, config=config, batch_size=task.batch_size, workers=workers)
        loss = partial(tasks.slice_loss, focal=task.focal, side_weight=task.side_weight)

        def parts(k: int) -> tuple:
            seen, held_out = project.slices[project.is_train & (project.fold != k)], project.slices[project.fold == k]
            loaders = tasks.loaders(seen, held_out, load, task, move, recipe.seed)
            return tasks.new_model(config, task.weights, work_dir, seen, recipe.seed), loaders, seen, held_out

        if dry_run:
            model, loaders, *_ = parts(chosen[0])
            n_open = sum(overwrite or not (this.fold(k) / "model.pt").exists() for k in chosen)
            cli.say(f"{fold_training.rehearse(model, loaders, loss, **same)}; folds to fit: {n_open}")
            return
        with ddp.first() as is_first:
            if overwrite and is_first:
                this.remove(chosen)
        rest = dict(every=checkpoint_every, tensorboard=tensorboard)
        rest["begin"] = partial(this.write, recorded, weights_from=flags_of_run["weights"])
        for k in chosen:
            with ddp.alone(this.fold(k)):
                with ddp.first():
                    is_open = fold_training.open_folds(this, [k], overwrite=False)
                if is_open:
                    model, loaders, seen, held_out = parts(k)
                    fold_training.fit_fold(model, loaders, loss, seen, held_out, this.fold(k), **same, **rest)


class _ListRecipes(argparse.Action):
    def __call__(self, parser, *_):
        cli.say(cli.describe_recipes())
        parser.exit()


def build_parser():
    shared = ("--data-dir", "--work-dir", "--run", "--recipe", "--arch", "--fold", "--image-size", "--epochs")
    shared += ("--batch-size", "--lr", "--weights", "--seed", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *shared)
    training_options.add(parser)
    add = parser.add_argument
    add("--checkpoint-every", type=cli.within(0), default=600.0, help="seconds")
    add("--tensorboard", action="store_true", help="write the log for TensorBoard too")
    add("--dry-run", action="store_true", help="train for up to a minute, keep nothing, say what the run would take")
    add("--recipes", action=_ListRecipes, nargs=0, dest=argparse.SUPPRESS, help="list the recipes and their sources")
    return parser


def recorded(options: argparse.Namespace) -> dict:
    """Return the settings of the run that `options` name, as flags; none if it has not begun."""
    run = runs.Run(options.work_dir, options.run or options.arch)
    if not run.begun:
        return {}
    known = {key: value for key, value in run.settings.items() if key not in ("slices", "folds")}
    return known | {"weights": run.record["weights_from"]}


def main(argv=None):
    cli.run(train, build_parser(), argv, recorded, preflight.recipe_for)


if __name__ == "__main__":
    main()
