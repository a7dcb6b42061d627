"""Checks before anything costly: what a run of `train` needs, and cannot do without."""

import argparse
from pathlib import Path

from ich_kaggle.common import cli
from ich_kaggle.common.runs import Run
from ich_kaggle.learning import devices, fit, pretrained, profiling, slice_model, tasks

PROBE = 224  # px of the slices whose step is measured; larger ones take more in proportion to their pixels
COPIES = 4  # of all weights: gradient, two moments of AdamW, average
OVERHEAD = 1.15  # peak of a step to what it keeps for its gradient: 1.07 to 1.16 in four networks
SHARE = 0.8  # of the free memory that a step may take: the rest is for the loader's workers and a heap with gaps


def recipe_for(options: argparse.Namespace) -> str | None:
    """Return the recipe that suits the device where the flags name no model: no recipe, architecture or begun run."""
    is_begun = options.run is not None and Run(options.work_dir, options.run).begun
    return None if options.arch or is_begun else default_recipe(options.device)


def default_recipe(device: str) -> str:
    """Return the name of the recipe that suits `device`, auto for the first GPU or else the CPU, and say so."""
    is_gpu = device.startswith("cuda") or (device == "auto" and devices.pick_device(device).type == "cuda")
    name = "efficientnetv2_s_windows" if is_gpu else "cpu"
    cli.say(f"no --recipe or --arch given: using --recipe {name}, which suits a {'GPU' if is_gpu else 'CPU'}")
    return name


def check(
    config: slice_model.SliceConfig,
    recipe: fit.Recipe,
    task: tasks.Task,
    *,
    device,
    work_dir: Path,
    tensorboard: bool = False,
) -> None:
    """Raise an error that says what to do if the model can't be made, or weights, a package or memory are missing."""
    if tensorboard:
        profiling.summary_writer()
    model = slice_model.SliceModel(config)
    pretrained.check(model.backbone, config.arch, task.weights, work_dir / "weights")
    if device.type == "cpu":  # a GPU that has too little says so itself, and nothing is killed
        check_memory(model, task.batch_size, recipe.accumulate)


def check_memory(model: slice_model.SliceModel, batch_size: int, accumulate: int) -> None:
    """Raise RuntimeError with both numbers if the machine has too little memory for a step of `batch_size` slices."""
    free, (held, per_slice) = profiling.free_memory(), step_memory(model)
    room = SHARE * free
    if held + batch_size * per_slice <= room:
        return
    fitting = next((n for n in fit.halves(batch_size) if held + n * per_slice <= room), 0)
    raise RuntimeError(
        f"not enough memory: a step of {batch_size} slices at {model.config.image_size} px takes about "
        f"{(held + batch_size * per_slice) / 1e9:.1f} GB, too much for the {free / 1e9:.1f} GB that are free: "
        f"{fit.smaller_steps(fitting, batch_size * accumulate)}"
    )


def step_memory(model: slice_model.SliceModel) -> tuple[float, float]:
    """Return the bytes that training on a CPU takes beside the model: whatever the batch, and per slice of it."""
    image_size = model.config.image_size
    size = image_size if slice_model.has_fixed_size(model.config.arch) else min(image_size, PROBE)
    kept = profiling.activation_bytes(
        model, slice_model.blank(model.config, 2, size)
    )  # two: batch norm takes no single value
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return COPIES * weight_bytes, OVERHEAD * kept / 2 * (image_size / size) ** 2
