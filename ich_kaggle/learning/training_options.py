"""The settings of training that are flags: what each takes, and where it would do nothing."""

import argparse
import math
from collections.abc import Callable
from dataclasses import fields

from ich_kaggle.common import cli
from ich_kaggle.learning import augment, fit, neighbours, slice_model, tasks

HELP = {
    augment.Augment: {
        "flip": "probability of a left-right flip",
        "vflip": "probability of a top-bottom flip",
        "rotate": "degrees to either side",
        "scale": "share of the size, to either side",
        "shift": "share of the size, to either side",
        "random_crop": "smallest share of the area that a random crop keeps",
        "window_jitter": "share of a window's width, to either side",
        "cutout": "probability of a blackened rectangle",
        "swap": "probability that the order of neighbouring slices is turned round",
    },
    fit.Recipe: {
        "weight_decay": "of AdamW, none on biases and norms",
        "warmup": "share of all steps that lead up to --lr",
        "ema": "share the averaged weights keep in a step",
        "clip": "norm that a gradient is cut to; 0: not cut",
        "accumulate": "batches in a step of the optimizer",
        "freeze": "first epochs in which only the head learns",
        "layer_decay": "learning rate of a layer, as a share of the next one's",
    },
    tasks.Task: {
        "per_study": "slices of a study in an epoch of --sampler study",
        "soften": "share by which labels move to their neighbours' where a lesion ends",
        "focal": "power of the focal loss",
        "side_weight": "weight of the neighbours' labels, learned beside the slice's own; for --context slices or both",
    },
}

SHARES = {
    *("flip", "vflip", "scale", "shift", "random_crop", "window_jitter", "cutout", "swap", "warmup", "ema", "soften"),
    "layer_decay",
}
LEAST = {"accumulate": 1, "per_study": 1, "random_crop": 0.01, "layer_decay": 0.01}
USES = {  # a setting that does something only where another one is as it says
    "side_weight": ("context", ("slices", "both")),
    "stride": ("context", ("slices", "both")),
    "swap": ("context", ("slices", "both")),
    "window": ("context", ("slices",)),
    "per_study": ("sampler", ("study",)),
}


def _range(name: str, kind: type) -> Callable:
    """Return what reads the number of a setting."""
    return cli.within(LEAST.get(name, 0), 1 if name in SHARES else math.inf, kind)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the settings to `parser`."""
    flag = parser.add_argument
    for name in ("--cache-size", "--crop"):
        flag(name, **cli.FLAGS[name])
    shown = "three windows of a slice, three slices of one, or nine"
    flag("--context", choices=tasks.CONTEXTS, default="windows", help=shown)
    flag("--stride", type=cli.POSITIVE, default=1, help="positions between the slices of a context")
    flag("--window", choices=list(tasks.WINDOWS), default="subdural", help="what --context slices shows")
    strides = dict(type=int, choices=(8, 16, slice_model.STRIDE), default=slice_model.STRIDE)
    flag("--output-stride", **strides, help="px to a pixel of the last features: 8 and 16 dilate")
    flag("--drop-path", type=cli.within(0, 1), default=0.0, help="stochastic depth")
    flag("--sampler", choices=neighbours.SAMPLERS, default="all", help="all slices, balanced patients, mid-study")
    flag("--compile", action="store_true", help="with torch.compile")
    for kind, texts in HELP.items():
        for name, text in texts.items():
            default = getattr(kind, name)
            flag(f"--{name.replace('_', '-')}", type=_range(name, type(default)), default=default, help=text)


def check(settings: dict) -> None:
    """Raise ValueError for settings that would do nothing."""
    parser = argparse.ArgumentParser()
    add(parser)
    defaults = vars(parser.parse_args([]))
    given = defaults | settings
    idle, cures = [], []
    for name, (other, values) in USES.items():
        if given[name] != defaults[name] and given[other] not in values:
            flag, need = f"--{name.replace('_', '-')}", f"--{other} {' or '.join(values)}"
            idle.append(f"{flag} {given[name]} does nothing without {need}")
            cures.append(f"{flag} {defaults[name]}")
    if idle:
        raise ValueError(f"{', '.join(idle)}: give that, or {' '.join(cures)}")


def take(kind: type, settings: dict):
    """Return `kind` with those of the `settings` that are its fields, which are taken out of them."""
    return kind(**{field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings})
