"""Train a slice model on phantoms that are drawn as it learns: new heads in each batch, no patient, no file.

The phantoms vary in scanner, anatomy and blood as patients do, and more. The model is scored on phantoms that it does
not learn from. `train --init` starts folds from it (README, Few patients), and `scan --models` reads it as it is.
Settings of `train` that need folds or a series (sampler, crop, epochs, freeze, soften, side weight) have no effect; a
head of --init is kept as it is. The same flags give the same model, also after an interruption.

Reads:   work/weights/<arch>.safetensors  (if it exists, instead of a download)
Writes:  work/pretrained/<name>.zip  (a bundle: the model, a smoothing along z, and thresholds on phantoms)
         work/pretrained/<name>/  settings.json, log.csv, model.pt  (and state.pt until training is finished)
Example: python -m ich_kaggle.pretrain --recipe cpu --image-size 160 --slices 120000
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import expit

from ich_kaggle.common import cli, locks, metric, paths, storage
from ich_kaggle.common.project import Project
from ich_kaggle.learning import (
    devices,
    endless_phantoms,
    fit,
    inference,
    initial_model,
    preflight,
    slice_model,
    tasks,
    training_options,
)
from ich_kaggle.scans import model_bundle, single_model

EPOCH = 20_000  # slices between two scores
N_VALID = 64  # studies that score the model, and fit the smoothing along z
OTHER = "give another --name, or remove {} and its zip"


def bundle_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.zip")  # a name may hold dots


def pretrain(project: Project, folder: Path, settings: dict, plan: tasks.Plan, device, every: float) -> None:
    """Train the model of `plan` in `folder` and write its bundle beside it; `every` s a checkpoint is written."""
    config, n_epochs = plan.config, plan.settings.epochs
    valid = endless_phantoms.validation(config, plan.settings.seed, N_VALID, project.workers)
    target, place = (part.numpy() for part in valid.dataset.tensors[1:])
    model = tasks.new_model(plan, project.work_dir, target.mean(axis=0), 0)
    studies = endless_phantoms.PhantomStudies(config, plan.move, plan.settings.seed)
    loader = endless_phantoms.loader(studies, settings["n_slices"] / n_epochs, plan.task.batch_size, project.workers)

    def validate(averaged: slice_model.SliceModel) -> dict:
        return metric.validation(target, inference.predict(averaged, valid, device, what="validate"))

    rows = fit.fit(
        model,
        loader,
        plan.loss,
        settings=plan.settings,
        validate=validate,
        device=device,
        checkpoint=fit.Checkpoint(folder / "state.pt", every),
    )
    for found in rows:
        fit.write_log(folder / "log.csv", found)
    before = initial_model.seen_by(project.work_dir, config.arch, plan.task.weights, plan.task.init, 0)
    slice_model.save(folder / "model.pt", model, before)
    probability = expit(inference.predict(model, valid, device, what="validate").astype(float))
    bundle = bundle_of(folder)
    smoothed = single_model.export(bundle, folder / "model.pt", settings, (target, probability, place))
    storage.remove(folder / "state.pt")
    constant = np.broadcast_to(target.mean(axis=0), target.shape)
    losses = [metric.log_loss(target, one) for one in (probability, smoothed, constant)]
    told = "log loss {:.4f}, smoothed (widths fitted on the same) {:.4f}, of the prevalence {:.4f}".format(*losses)
    cli.say(f"{bundle}: {told}, on {N_VALID} phantoms that it did not learn from")


def command(*, arch: str | None, slices: int, name: str | None, run: str | None = None, **flags) -> None:
    """Read the flags, and pretrain unless the bundle exists. `flags` are settings of `train`, and fields of Project."""
    if arch is None:
        raise ValueError("no architecture: give --arch or --recipe")
    slice_model.check_arch(arch)
    project, device = training_options.take(Project, flags), devices.pick_device(flags.pop("device"))
    every = flags.pop("checkpoint_every")
    settings = {"arch": arch, "n_slices": slices, **flags}
    training_options.check_start(settings)
    plan = training_options.plan_of(arch, flags)
    fitting = replace(plan.settings, epochs=max(1, round(slices / EPOCH)), freeze=0)
    plan = replace(plan, settings=fitting, config=replace(plan.config, n_targets=1))
    folder = project.work_dir / "pretrained" / paths.file_name(name or run or arch)
    with locks.locked(folder):
        done = folder / "settings.json"
        if done.exists() and any((folder / name).exists() for name in ("state.pt", "model.pt")):
            storage.same_settings(done, storage.read_json(done), settings, OTHER.format(folder))
        if bundle_of(folder).exists():
            model_bundle.read(bundle_of(folder))
            cli.say(f"{bundle_of(folder)}{cli.THERE}")
            return
        preflight.check(plan, device, project)
        preflight.check_init(plan, project.work_dir, [0])
        storage.write_json(done, settings)
        pretrain(project, folder, settings, plan, device, every)


def build_parser():
    parser = cli.command(__doc__, "--recipe", "--device", "--work-dir", "--workers")
    training_options.add(parser)
    add = parser.add_argument
    add("--slices", type=cli.POSITIVE, default=200_000, help="slices of phantoms to learn from")
    add("--name", help="name of the model (default: that of the recipe, or the architecture)")
    add("--checkpoint-every", type=cli.within(0), default=600.0, help="seconds between checkpoints")
    return parser


def main(argv=None):
    cli.run(command, build_parser(), argv)


if __name__ == "__main__":
    main()
