"""Saliency maps of slice models per label: Grad-CAM and layer-wise relevance propagation (LRP), both through captum.

Grad-CAM (https://arxiv.org/abs/1610.02391) works on any network that ends in a feature map. LRP
(https://doi.org/10.1371/journal.pone.0130140) is sound on plain convolutions, ReLUs and pools: here, on VGG.
"""

import copy
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ich_kaggle.common import cli, metric, paths, storage, tables
from ich_kaggle.common.labels import LABELS, SHARE
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache, png
from ich_kaggle.learning import datasets, devices, slice_model, tasks

METHODS = ("gradcam", "lrp")
DONE = "explain.json"  # written last
SIZE = 64  # px of a square map: it covers the whole cached image, as the network sees it
AT_ONCE = 8  # images: LRP holds several copies of every activation


def check(method: str, arch: str) -> None:
    """Raise ImportError if captum is missing, ValueError if `method` is not sound on the architecture `arch`."""
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise ImportError("explain needs the package captum: pip install 'ich_kaggle[explain]'") from error
    if method == "lrp" and not arch.startswith("vgg"):
        raise ValueError(f"--method lrp is sound on plain networks (vgg...), not on {arch}: give --method gradcam")


class _Head(nn.Module):
    """The part of a slice model after its last feature map: (n, c, h, w) -> logits (n, 6)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.features = model, nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.head(self.model.backbone.forward_head(self.features(features), pre_logits=True))


def gradcam(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the positive part of the Grad-CAM of each label at the last feature map: (n, 6, h, w).

    `images` are uint8 (n, s, s, c). Raises ValueError if `model` does not end in a feature map.
    """
    from captum.attr import LayerGradCam

    with torch.no_grad():
        features = model.backbone.forward_features(model.normalised(images))
    if isinstance(features, list) or features.ndim != 4 or features.shape[1] != model.backbone.num_features:
        raise ValueError(f"{model.config.arch} does not end in a feature map, which --method gradcam needs")
    head = _Head(model)
    cam = LayerGradCam(head, head.features)
    found = [cam.attribute(features, target=k, relu_attributions=True) for k in range(len(LABELS))]
    return torch.cat(found, dim=1).detach()


def over_image(maps: torch.Tensor, n_cells: float) -> torch.Tensor:
    """Return feature `maps` (n, 6, h, w) resampled over the image: (n, 6, SIZE, SIZE).

    The image is `n_cells` cells wide, and the map lies in its middle. The two widths differ if convolutions are not
    padded (InceptionV3), or if the image is not a multiple of the stride; beyond the map its border values continue.
    """
    scale = torch.tensor([[n_cells / maps.shape[3], 0, 0], [0, n_cells / maps.shape[2], 0]], device=maps.device)
    grid = nn.functional.affine_grid(scale.expand(len(maps), 2, 3), (*maps.shape[:2], SIZE, SIZE), align_corners=False)
    return nn.functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def plain_vgg(model: nn.Module) -> nn.Sequential:
    """Return a copy of a VGG as plain layers over normalised images: no in-place ReLU, batch norms fused."""
    layers = []
    for layer in copy.deepcopy(model.backbone.features).eval():
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(nn.ReLU() if isinstance(layer, nn.ReLU) else layer)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.deepcopy(model.head))


def lrp(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the relevance of each px of `images`, uint8 (n, s, s, c), for the logit of each label: (n, 6, s, s).

    The relevance sums to the logit minus the bias of the last layer. The rules are epsilon in the last layer and
    alpha 1 beta 0 in the convolutions (no relevance is lost to biases). The first convolution, of 3 px, is left out:
    a pixel gets the relevance of all channels at its position.
    """
    from captum.attr import LRP

    network = plain_vgg(model)
    with torch.no_grad():
        first = network[:2](model.normalised(images))
    rest, first = network[2:], first.requires_grad_()
    found = []
    for k in range(len(LABELS)):
        _set_rules(rest)  # captum removes them after each call
        found.append(LRP(rest).attribute(first, target=k).sum(dim=1))
    return torch.stack(found, dim=1).detach()


def _set_rules(layers: nn.Sequential) -> None:
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule

    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)
        elif isinstance(layer, nn.Flatten):
            layer.rule = EpsilonRule()


def maps_of(method: str, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the map of each label over `images` (n, s, s, c): (n, 6, SIZE, SIZE), higher is more salient."""
    if method == "lrp":
        return nn.functional.adaptive_avg_pool2d(lrp(model, images), SIZE)
    maps = gradcam(model, images)
    return over_image(maps, model.config.image_size / model.backbone.feature_info[-1]["reduction"])


def to_gray(maps: np.ndarray) -> np.ndarray:
    """Return the maps of one image, (6, h, w), stacked vertically, each scaled by its own maximum: uint8 (6 h, w)."""
    positive = np.maximum(maps, 0)
    highest = positive.max(axis=(1, 2), keepdims=True)
    gray = np.rint(255 * np.divide(positive, highest, out=np.zeros_like(positive), where=highest > 0))
    return gray.astype(np.uint8).reshape(-1, maps.shape[2])


def choose(study_id: np.ndarray, target: np.ndarray, probability: np.ndarray, n: int) -> list[str]:
    """Return the `n` studies of highest mean log loss, then per label the study of its most certain true positive.

    `study_id` is (n_slices,); `target` and `probability` are (n_slices, 6).
    """
    loss = pd.Series(metric.losses(target, probability) @ SHARE).groupby(study_id).mean()
    surest = np.where(target > 0, probability, -1).argmax(axis=0)
    return list(dict.fromkeys([*loss.nlargest(n).index, *study_id[surest[target.any(axis=0)]]]))


def _each(method: str, model: nn.Module, batches: Iterable) -> Iterator[np.ndarray]:
    device = next(model.parameters()).device
    for images, *_ in batches:
        for part in images.split(AT_ONCE):
            yield from maps_of(method, model, part.to(device)).cpu().numpy()


def write(folder: Path, method: str, model: nn.Module, batches: Iterable, slice_ids: list[str]) -> None:
    """Write the maps of `slice_ids` into `folder`; `batches` give their images in the same order."""
    bar = cli.progress(slice_ids, len(slice_ids), f"explain {method}")
    for slice_id, maps in zip(bar, _each(method, model, batches), strict=True):
        with storage.writing(folder / f"{slice_id}.png") as temporary:
            png.write(temporary, to_gray(maps))


def chosen_studies(folder: Path, table: pd.DataFrame, n_studies: int) -> list[str]:
    """Return the studies to explain by default: `choose` on the OOF predictions in `folder`, of the slices `table`."""
    flags = f"--run {folder.parent.name} --fold {folder.name.removeprefix('fold')}"
    probability = tables.read_predictions(folder / "oof.parquet", table.slice_id.to_numpy(), flags)
    return choose(table.study_id.to_numpy(), tables.targets(table), probability, n_studies)


def explain_fold(
    project: Project, folder: Path, chosen: np.ndarray, *, method: str, batch_size: int, device, overwrite: bool
) -> None:
    """Write the maps of the `chosen` rows of the slice table, whole studies, by the model in `folder`."""
    out, settings = folder / "explain" / method, {"method": method, "model": storage.file_hash(folder / "model.pt")}
    done, table = out / DONE, project.slices
    if overwrite or not done.exists():
        shutil.rmtree(out, ignore_errors=True)
    found = storage.read_json(done) if done.exists() else settings | {"studies": []}
    storage.same_settings(done, found, settings, "give --overwrite")
    todo = table[chosen & ~table.study_id.isin(found["studies"])]
    if done.exists() and not len(todo):
        cli.say(f"{done}{cli.THERE}")
        return
    model = slice_model.load(folder / "model.pt", device)
    cache_dir = picture_cache.ensure(project, model.config.cache_size, model.config.crop)
    loader = tasks.slice_loader(todo, cache_dir, model.config, batch_size=batch_size, workers=project.workers)
    write(out, method, model, datasets.batches(loader), todo.slice_id.tolist())
    whole = table[table.study_id.isin([*found["studies"], *todo.study_id])]
    about = {"labels": LABELS, "shape": [SIZE, SIZE], "studies": whole.study_id.unique().tolist()}
    storage.write_json(done, settings | {"cache": cache_dir.name, **about, "n_slices": len(whole)})
    cli.say(f"{out}: maps of {len(todo)} slices of {todo.study_id.nunique()} studies")


def explain_run(
    project: Project, name: str, folds: list[int], *, studies: list[str] | None, n_studies: int, device: str, **how
) -> None:
    """Explain `folds` of a run on held-out `studies`, or on the `chosen_studies` of each fold; see `explain_fold`.

    Raises ValueError for a study that does not exist, or that is neither in `folds` nor in the test set.
    """
    table, of_slice = project.slices, project.fold
    of_study = dict(zip(table.study_id, of_slice.tolist(), strict=True))
    for study in studies or []:
        if study not in of_study:
            raise ValueError(f"--studies {study}: {paths.slices(project.work_dir)} has no such study")
        if of_study[study] not in (-1, *folds):
            k = of_study[study]
            raise ValueError(f"--studies {study}: it is in fold {k}, and only the model of that fold never saw it")
    for k in folds:
        folder = project.run(name).fold(k)
        named = studies or chosen_studies(folder, table[of_slice == k], n_studies)
        chosen = np.isin(of_slice, (-1, k)) & table.study_id.isin(named).to_numpy()
        if chosen.any():
            explain_fold(project, folder, chosen, device=devices.pick_device(device), **how)
