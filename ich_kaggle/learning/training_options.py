"""The settings of training as flags, in groups, and the check for settings without an effect."""

import argparse
import logging
import math
from dataclasses import fields

from ich_kaggle.common import cli
from ich_kaggle.learning import initial_model, neighbours, slice_model, tasks
from ich_kaggle.learning.augment import Augment
from ich_kaggle.learning.fit import FitSettings
from ich_kaggle.learning.tasks import Task

log = logging.getLogger(__name__)


def _number(default: float, help: str, low: float = 0, high: float = math.inf) -> dict:
    """Return the options of a flag that takes a number of the type of its `default`, from `low` to `high`."""
    return dict(type=cli.within(low, high, type(default)), default=default, help=help)


def _fraction(default: float, help: str, low: float = 0) -> dict:
    return _number(default, help, low, 1)


STRIDES = (8, 16, slice_model.STRIDE)
FLAGS = {  # by group; each is a field of FitSettings, Augment or Task, or an argument of tasks.slice_config
    "model": {
        "--arch": cli.FLAGS["--arch"],
        "--weights": cli.FLAGS["--weights"],
        "--init": dict(
            metavar="RUN_OR_FILE",
            type=lambda text: None if text == "none" else text,
            help="instead of --weights: start fold k from fold k of a run, or each fold from a model file or a bundle; "
            "none: from --weights",
        ),
        "--init-head": dict(
            choices=initial_model.HEADS,
            default=Task.init_head,
            help="keep the head of --init, its bias moved so that the mean predictions on up to 16,384 training slices "
            "are their prevalence, or start a new one",
        ),
        "--output-stride": dict(
            type=int,
            choices=STRIDES,
            default=slice_model.STRIDE,
            help="px of the image per pixel of the last feature map; 8 and 16 dilate",
        ),
        "--drop-path": _fraction(0.0, "rate of stochastic depth"),
    },
    "input": {
        **{name: cli.FLAGS[name] for name in ("--image-size", "--cache-size", "--crop")},
        "--context": dict(
            choices=tasks.CONTEXTS,
            default="windows",
            help="three windows of a slice, one window of three slices, or three windows of three slices",
        ),
        "--stride": dict(type=cli.POSITIVE, default=1, help="distance of the neighbours of --context, in slices"),
        "--window": dict(choices=list(tasks.WINDOWS), default=tasks.WINDOW, help="window of --context slices"),
        "--sampler": dict(
            choices=neighbours.SAMPLERS,
            default=Task.sampler,
            help="slices per epoch: all, as many of patients with as without hemorrhage, or a few per study",
        ),
        "--per-study": _number(Task.per_study, "slices per study and epoch, for --sampler study", 1),
    },
    "augmentation": {
        "--flip": _fraction(Augment.flip, "probability of a left-right flip"),
        "--vflip": _fraction(Augment.vflip, "probability of a top-bottom flip"),
        "--rotate": _number(Augment.rotate, "largest rotation in degrees"),
        "--scale": _fraction(Augment.scale, "largest change of size, as a fraction"),
        "--shift": _fraction(Augment.shift, "largest shift, as a fraction of the size"),
        "--random-crop": _fraction(Augment.random_crop, "smallest fraction of the area that a random crop keeps", 0.01),
        "--window-jitter": _fraction(Augment.window_jitter, "largest change of a window, as a fraction of its width"),
        "--cutout": _fraction(Augment.cutout, "probability of a black rectangle"),
        "--swap": _fraction(
            Augment.swap, "probability of reversing the neighbouring slices, for --context slices or both"
        ),
    },
    "optimisation": {
        **{name: cli.FLAGS[name] for name in ("--epochs", "--batch-size", "--lr", "--seed")},
        "--weight-decay": _number(FitSettings.weight_decay, "weight decay of AdamW, none on biases and norms"),
        "--warmup": _fraction(FitSettings.warmup, "fraction of all steps in which the learning rate rises to --lr"),
        "--ema": _fraction(FitSettings.ema, "decay of the averaged weights per step"),
        "--clip": _number(FitSettings.clip, "maximum norm of the gradient; 0: no clipping"),
        "--accumulate": _number(FitSettings.accumulate, "batches per optimizer step", 1),
        "--freeze": _number(FitSettings.freeze, "first epochs that train the head only"),
        "--layer-decay": _fraction(
            FitSettings.layer_decay, "learning rate of a layer, as a fraction of that of the next layer", 0.01
        ),
        "--compile": dict(action="store_true", help="use torch.compile"),
    },
    "loss": {
        "--focal": _number(Task.focal, "exponent of the focal loss; 0: cross entropy"),
        "--soften": _fraction(Task.soften, "label smoothing: share of the mean label of the neighbouring slices"),
        "--side-weight": _fraction(
            Task.side_weight, "weight of the loss on the neighbouring slices' labels, for --context slices or both"
        ),
    },
}

USES = {  # setting: (its value without an effect, the setting it depends on, the values of that which use it)
    "side_weight": (Task.side_weight, "context", ("slices", "both")),
    "stride": (1, "context", ("slices", "both")),
    "swap": (Augment.swap, "context", ("slices", "both")),
    "window": (tasks.WINDOW, "context", ("slices",)),
    "per_study": (Task.per_study, "sampler", ("study",)),
}


RUN = {
    **{
        flag: cli.FLAGS[flag]
        for flag in ("--run", "--fold", "--device", "--data-dir", "--work-dir", "--workers", "--overwrite")
    },
    "--checkpoint-every": dict(type=cli.within(0), default=600.0, help="seconds between checkpoints within an epoch"),
    "--hours": dict(
        type=cli.within(0), default=math.inf, help="time after which training stops at a checkpoint, with exit code 75"
    ),
    "--tensorboard": dict(action="store_true", help="write the log for TensorBoard too"),
    "--dry-run": dict(action="store_true", help="make folds and cache, time a minute of training, report its cost"),
}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the settings to `parser`, a group of arguments per group."""
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, options in flags.items():
            group.add_argument(name, **options)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are no settings of the run to `parser`."""
    group = parser.add_argument_group("run")
    for name, options in RUN.items():
        group.add_argument(name, **options)


def check(settings: dict) -> None:
    """Raise ValueError naming the settings that have no effect."""
    idle, cures = [], []
    for name, (unused, other, values) in USES.items():
        if settings.get(name, unused) != unused and settings.get(other) not in values:
            flag, need = f"--{name.replace('_', '-')}", f"--{other} {' or '.join(values)}"
            idle.append(f"{flag} {settings[name]} does nothing without {need}")
            cures.append(f"{flag} {unused}")
    check_start(settings)
    if idle:
        raise ValueError(f"{', '.join(idle)}: give that, or {' '.join(cures)}")
    _warn_of_freeze(*(take(kind, dict(settings)) for kind in (FitSettings, Task)))


def _warn_of_freeze(fitting: FitSettings, task: Task) -> None:
    """Log that the backbone is never trained, and that its weights are random if they are."""
    if fitting.epochs <= fitting.freeze:
        is_random = task.weights == "none" and not task.init
        on = ", on a backbone of random weights: give --freeze 0" if is_random else ""
        log.warning(
            "WARNING --freeze %d of --epochs %d: the head alone is trained%s", fitting.freeze, fitting.epochs, on
        )


def check_start(settings: dict) -> None:
    """Raise ValueError if `settings` name two files to start from."""
    if settings.get("init") and settings.get("weights", Task.weights) not in ("none", "imagenet"):
        raise ValueError("--init and a file of --weights are two starts: give one of them")


def take(kind: type, settings: dict):
    """Remove those `settings` that are fields of the dataclass `kind`, and return an instance with them."""
    return kind(**{field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings})


def plan_of(arch: str, settings: dict) -> tasks.Plan:
    """Return the plan of a run. Raises TypeError naming a setting that does not exist."""
    kinds = (FitSettings, Augment, Task)
    fitting, move, task = (take(kind, settings) for kind in kinds)
    return tasks.Plan(tasks.slice_config(arch, side_weight=task.side_weight, **settings), fitting, move, task)
