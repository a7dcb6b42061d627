"""The start of a model from another one: its weights, its head, and the patients that it has seen.

Only a model that says on which patients it was fitted can be kept from those that it is to be scored on.
"""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from scipy import optimize
from scipy.special import expit

from ich_kaggle.common import paths, storage, windows
from ich_kaggle.common.runs import Run
from ich_kaggle.learning import pretrained, slice_model

HEADS = ("keep", "new")
CLASSIFIER = re.compile(r"(^|\.)(fc|classifier|head|last_linear|logits)\.weight$")
N_CLASSES = 1000  # of ImageNet: weights with a classifier of as many were not fitted on patients


def _source(work_dir: Path, init: str) -> Run | Path:
    """Return the run `init`, or else the file. Raises FileNotFoundError if there is neither."""
    if paths.FILE_NAME.fullmatch(init) and (run := Run(work_dir, init)).path.exists():
        return run
    if not Path(init).is_file():
        moved = "a run that began with it is resumed with --init and its new path"
        raise FileNotFoundError(f"--init {init}: neither a run in {work_dir / 'runs'} nor a file ({moved})")
    return Path(init)


def find(work_dir: Path, init: str, k: int) -> Path | io.BytesIO:
    """Return the model that fold `k` starts from: that fold's of the run `init`, or the file or bundle `init`.

    Raises FileNotFoundError if it does not exist.
    """
    source = _source(work_dir, init)
    if isinstance(source, Path):
        return _of_bundle(source, k) if _is_bundle(source) else source
    if source.is_second_level:
        raise ValueError(f"--init {init} is a second level, not a slice model: give another run")
    if not (path := source.fold(k) / "model.pt").exists():
        raise FileNotFoundError(f"--init {init}: {path} is missing: run {source.resume(k)}")
    return path


def _is_bundle(path: Path) -> bool:
    return zipfile.is_zipfile(path) and "models.json" in zipfile.ZipFile(path).namelist()


def _of_bundle(path: Path, k: int) -> io.BytesIO:
    """Return the only slice model of a bundle, or the only one of fold `k`. Raises ValueError if there is none."""
    with storage.reading(path, "make it again"), zipfile.ZipFile(path) as bundle:
        models = json.loads(bundle.read("models.json"))["models"].values()
        every = [(one["fold"], one["file"]) for entries in models for one in entries if "widths" not in one]
        found = [file for fold, file in every if fold == k or len(every) == 1]
        content = bundle.read(found[0]) if len(found) == 1 else None
    if content is None:
        raise ValueError(f"--init {path}: it has {len(found)} slice models of fold {k}, not one: give a model file")
    found = io.BytesIO(content)
    found.name = str(path)
    return found


def identity(work_dir: Path, init: str | None) -> str | None:
    """Return the identity of `init`: the name of a run, or the hash of a file, whatever its path.

    Raises FileNotFoundError if it is neither.
    """
    if init is None:
        return None
    source = _source(work_dir, init)
    return storage.file_hash(source) if isinstance(source, Path) else init


def start(model: slice_model.SliceModel, source: Path | io.BytesIO, head: str, prevalence: np.ndarray) -> str:
    """Load the model `source` into `model`, with a new head that predicts `prevalence` (6,), or that of `source`.

    Returns a line on the loaded weights. Raises ValueError listing weights that do not fit.
    """
    name = str(source) if isinstance(source, Path) else source.name
    try:
        other = slice_model.load(source)
    except ValueError as error:
        wanted = "give a run, a model.pt or a bundle (weights alone: --weights)"
        raise ValueError(f"--init: {name} is not a slice model ({type(error.__cause__).__name__}): {wanted}") from error
    try:
        line = pretrained.fill(model.backbone, other.backbone.state_dict(), name, model.config.arch).partition(";")[0]
    except ValueError as error:
        if (arch := other.config.arch) == model.config.arch:
            raise
        raise ValueError(f"--init {name} holds {arch}, not {model.config.arch}: give --arch {arch}") from error
    line += _other_input(other.config, model.config)
    if head == "new":
        slice_model.start_at_prevalence(model, prevalence)
        return f"{line}; the head is new"
    with torch.no_grad():
        for own, kept in ((model.head.weight, other.head.weight), (model.head.bias, other.head.bias)):
            own.copy_(torch.cat([kept[other.config.own]] * model.config.n_targets))
    return f"{line}; the head is kept"


def _other_input(before: slice_model.SliceConfig, now: slice_model.SliceConfig) -> str:
    """Return what differs between the images that the start was trained on and those of `now`; empty if nothing."""
    names = {"image_size": "image size", "cache_size": "cache size", "crop": "crop", "offsets": "slices"}
    pairs = [(shown, getattr(before, name), getattr(now, name)) for name, shown in names.items()]
    pairs += [("windows", *([windows.NAMES.get(one, one) for one in config.windows] for config in (before, now)))]
    told = [f"{name} {_listed(old)}, here {_listed(new)}" for name, old, new in pairs if old != new]
    return f"; it was trained with {'; '.join(told)}" if told else ""


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def moves(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return what to add to `logits` (n, 6) so that the mean predictions are the means of `target` (n, 6): (6,).

    The means are kept slice_model.RARE away from 0 and 1. (Recalibration in the large: Steyerberg, Clinical Prediction
    Models, 2nd ed., 15.3.)
    """
    wanted = np.clip(target.mean(axis=0, dtype=float), slice_model.RARE, 1 - slice_model.RARE)
    return np.array(
        [
            optimize.brentq(lambda move, one=one, mean=mean: expit(one + move).mean() - mean, -1000, 1000)
            for one, mean in zip(logits.T.astype(float).clip(-500, 500), wanted, strict=True)
        ]
    )


def move_bias(model: slice_model.SliceModel, logits: np.ndarray, target: np.ndarray) -> str:
    """Move the biases of the head of `model` so that its mean predictions are the means of the labels.

    `logits` and `target` (n, 6) are those of slices that it will be trained on. Other scanners move the logits of all
    slices, by far more than a few steps of training do. Returns a line on it. Raises ValueError if the logits are not
    finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError("the predictions of --init are not finite: its weights are damaged: give another")
    found = moves(logits, target)
    with torch.no_grad():
        model.head.bias += model.head.bias.new_tensor(np.tile(found, model.config.n_targets))
    what = f"the prevalence of {len(target):,} training slices"
    return f"bias of the head moved by {found.min():+.2f} to {found.max():+.2f}, to {what}"


def seen_by(work_dir: Path, arch: str, weights: str, init: str | None, k: int) -> np.ndarray | None:
    """Return the hashes of the patients on which the start of fold `k` was fitted; None if it does not say."""
    if init is not None:
        return slice_model.patients(find(work_dir, init, k))
    path = None if weights == "none" else pretrained.local(arch, weights, work_dir / "weights")
    if path is None or pretrained.LITE0_PACKAGE in path.parts:
        return np.empty(0, np.int64)
    found = [len(value) for name, value in pretrained.read(path).items() if CLASSIFIER.search(name)]
    if max(found, default=0) >= N_CLASSES:
        return np.empty(0, np.int64)
    return None if path.suffix == ".safetensors" else slice_model.patients(path)


def check(work_dir: Path, arch: str, weights: str, init: str | None, held_out: dict[int, np.ndarray]) -> str:
    """Return a line if the start of a fold does not say on which patients it was fitted; empty if all do.

    `held_out` are the ids of the patients of each fold. Raises ValueError naming a fold whose start has seen them.
    """
    doubts = ""
    for k, patient_ids in held_out.items():
        seen = seen_by(work_dir, arch, weights, init, k)
        source = init or pretrained.local(arch, weights, work_dir / "weights") or weights
        if seen is None:
            doubts = f"{source} does not say on which patients it was fitted"
        elif n := int(np.isin(slice_model.patient_hashes(patient_ids), seen).sum()):
            flag = "--init" if init else "--weights"
            raise ValueError(
                f"{flag} {source} was fitted on {n} of the {len(patient_ids)} patients that fold {k} is scored on: "
                "start from another file, or from a run, whose folds are those of this one"
            )
    return doubts
