"""Before training: the default recipe of the device, and checks of model, weights, packages and memory."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch

from ich_kaggle.common import cli
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.learning import (
    datasets,
    devices,
    initial_model,
    out_of_memory,
    pretrained,
    profiling,
    slice_model,
    tasks,
)

PROBE = 224  # px: the size at which a step is measured; memory grows with the number of pixels
COPIES = 4  # of all weights: gradient, two moments of AdamW, average
OVERHEAD = 1.15  # peak memory of a step relative to its activations: 1.07 to 1.16 in four networks
SHARED = Path("/dev/shm")
SHARE = 0.8  # fraction of the free memory for a step; the rest is for the loader's workers and fragmentation


def recipe_for(options: argparse.Namespace) -> str | None:
    """Return the recipe for the device, or None if the flags name an architecture or a run that has begun."""
    is_begun = options.run is not None and Run(options.work_dir, options.run).path.exists()
    return None if options.arch or is_begun else default_recipe(options.device)


def default_recipe(device: str) -> str:
    """Return the name of the recipe that suits `device` and say so; auto is the first GPU, or else the CPU."""
    is_gpu = device.startswith("cuda") or (device == "auto" and devices.pick_device(device).type == "cuda")
    name = "efficientnetv2_s_windows" if is_gpu else "cpu"
    cli.say(f"no --recipe or --arch given: using --recipe {name}, which suits a {'GPU' if is_gpu else 'CPU'}")
    return name


def check(plan: tasks.Plan, device: torch.device, project: Project, tensorboard: bool = False) -> None:
    """Raise an error with a remedy if the model cannot be made, or weights, a package or memory are missing."""
    if tensorboard:
        profiling.summary_writer()
    model = slice_model.SliceModel(plan.config)
    if plan.task.init is None:
        pretrained.check(model.backbone, plan.config.arch, plan.task.weights, project.work_dir / "weights")
    check_shared_memory(slice_model.blank(plan.config, 1, plan.config.image_size).nbytes, plan.task, project.workers)
    if device.type == "cpu":  # a GPU reports the lack of memory itself, and no process is killed
        check_memory(model, plan.task.batch_size, plan.settings.accumulate)


def check_init(plan: tasks.Plan, work_dir: Path, chosen: list[int]) -> None:
    """Raise an error if the initial model of one of the `chosen` folds, where there is one, is missing or misfits."""
    if plan.task.init is None:
        return
    model = slice_model.SliceModel(plan.config)
    for k in chosen:
        source = initial_model.find(work_dir, plan.task.init, k)
        initial_model.start(model, source, plan.task.init_head, np.full(len(LABELS), 0.5))


def check_start(plan: tasks.Plan, project: Project, chosen: list[int]) -> str:
    """Return a line if the `chosen` folds may start from weights that have seen their held-out patients, or "".

    Raises ValueError if they have, or if the initial model does not fit.
    """
    task, work_dir = plan.task, project.work_dir
    check_init(plan, work_dir, chosen)
    held_out = {k: project.slices.patient_id[project.fold == k].unique() for k in chosen}
    return initial_model.check(work_dir, plan.config.arch, task.weights, task.init, held_out)


def check_shared_memory(per_slice: int, task: tasks.Task, workers: int) -> None:
    """Raise RuntimeError if /dev/shm, which Docker makes 64 MB, has no room for the two batches that a worker keeps."""
    if not SHARED.is_dir():
        return
    needed, free = 2 * workers * task.batch_size * per_slice, shutil.disk_usage(SHARED).free
    if needed > free:
        held = f"it has {free / 1e6:.0f} MB, and those of {workers} workers take {needed / 1e6:.0f} MB"
        raise RuntimeError(f"{datasets.SMALL_SHM}: {held}: {datasets.LARGER_SHM}")


def check_memory(model: slice_model.SliceModel, batch_size: int, accumulate: int) -> None:
    """Raise RuntimeError with the needed and the free memory if a step of `batch_size` slices does not fit."""
    free, (held, per_slice) = profiling.free_memory(), step_memory(model)
    room = SHARE * free
    if held + batch_size * per_slice <= room:
        return
    fitting = next((n for n in out_of_memory.halves(batch_size) if held + n * per_slice <= room), 0)
    raise RuntimeError(
        f"not enough memory: a step of {batch_size} slices at {model.config.image_size} px takes about "
        f"{(held + batch_size * per_slice) / 1e9:.1f} GB, too much for the {free / 1e9:.1f} GB that are free: "
        f"{out_of_memory.smaller_steps(fitting, batch_size * accumulate)}"
    )


def step_memory(model: slice_model.SliceModel) -> tuple[float, float]:
    """Return the memory in bytes of training on a CPU beside the model: independent of the batch, and per slice."""
    image_size = model.config.image_size
    size = image_size if slice_model.has_fixed_size(model.config.arch) else min(image_size, PROBE)
    images = slice_model.blank(model.config, 2, size)  # two, because batch norm refuses a single value
    kept = profiling.activation_bytes(model, images)
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return COPIES * weight_bytes, OVERHEAD * kept / 2 * (image_size / size) ** 2
