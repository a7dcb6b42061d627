"""Where a slice model sees a label: Grad-CAM, and layer-wise relevance propagation, both through captum.

Grad-CAM (https://arxiv.org/abs/1610.02391) takes any network that ends in a feature map. Relevance propagation
(https://doi.org/10.1371/journal.pone.0130140) is sound on plain convolutions, ReLUs and pools: here, on VGG.
"""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ich_kaggle.common import cli, metric, storage
from ich_kaggle.common.labels import LABELS, SHARE
from ich_kaggle.dicom import png

METHODS = ("gradcam", "lrp")
DONE, BEGUN = "explain.json", "begun.json"
SIZE = 64  # px of a map, square: it covers the image as the network saw it, the whole of the cached one
AT_ONCE = 8  # images: relevance propagation holds several copies of every activation


def check(method: str, arch: str) -> None:
    """Raise ImportError without captum, ValueError where `method` does not fit `arch`."""
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise ImportError("--explain takes another package: pip install 'ich_kaggle[explain]'") from error
    if method == "lrp" and not arch.startswith("vgg"):
        raise ValueError(f"--explain lrp is sound on plain networks (vgg...), not on {arch}: give --explain gradcam")


class _Head(nn.Module):
    """What lies behind the last feature map of a slice model: (n, c, h, w) -> logits (n, 6)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.features = model, nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.head(self.model.backbone.forward_head(self.features(features), pre_logits=True))


def gradcam(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the Grad-CAM of each label at the last feature map, without what is negative: (n, 6, h, w).

    `images` are uint8 (n, s, s, c). Raises ValueError if `model` does not end in a feature map.
    """
    from captum.attr import LayerGradCam

    with torch.no_grad():
        features = model.backbone.forward_features(model.normalised(images))
    if features.ndim != 4 or features.shape[1] != model.backbone.num_features:
        raise ValueError(f"{model.config.arch} does not end in a feature map, which --explain gradcam takes")
    head = _Head(model)
    cam = LayerGradCam(head, head.features)
    found = [cam.attribute(features, target=k, relu_attributions=True) for k in range(len(LABELS))]
    return torch.cat(found, dim=1).detach()


def over_image(maps: torch.Tensor, n_cells: float) -> torch.Tensor:
    """Return feature `maps` (n, 6, h, w) over the image: (n, 6, SIZE, SIZE).

    The image is `n_cells` cells wide, in its middle lies that of the map. The two differ where convolutions are not
    padded (InceptionV3), and where the image is no multiple of the stride; past the outermost cells their values stay.
    """
    scale = torch.tensor([[n_cells / maps.shape[3], 0, 0], [0, n_cells / maps.shape[2], 0]], device=maps.device)
    grid = nn.functional.affine_grid(scale.expand(len(maps), 2, 3), (*maps.shape[:2], SIZE, SIZE), align_corners=False)
    return nn.functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def plain_vgg(model: nn.Module) -> nn.Sequential:
    """Return a copy of a VGG as plain layers, normalised images in: no ReLU in place, batch norm in the convolution."""
    layers = []
    for layer in copy.deepcopy(model.backbone.features).eval():
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(nn.ReLU() if isinstance(layer, nn.ReLU) else layer)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.deepcopy(model.head))


def lrp(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the relevance of each px of `images`, uint8 (n, s, s, c), for each label's logit: (n, 6, s, s).

    It adds up to the logit without the bias of its last layer. Its rules: epsilon in the last layer, alpha 1 beta 0
    in the convolutions (no relevance is lost to biases), and the first convolution, of 3 px, is not passed: what its
    channels have is the pixel's.
    """
    from captum.attr import LRP

    network = plain_vgg(model)
    with torch.no_grad():
        first = network[:2](model.normalised(images))
    rest, first = network[2:], first.requires_grad_()
    found = []
    for k in range(len(LABELS)):
        _set_rules(rest)  # captum takes them off again
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
    """Return where in `images` (n, s, s, c) `model` sees each label: (n, 6, SIZE, SIZE), higher is more."""
    if method == "lrp":
        return nn.functional.adaptive_avg_pool2d(lrp(model, images), SIZE)
    maps = gradcam(model, images)
    return over_image(maps, model.config.image_size / model.backbone.feature_info[-1]["reduction"])


def to_gray(maps: np.ndarray) -> np.ndarray:
    """Return the maps of one image, (6, h, w), below each other, each from 0 to its own maximum: uint8 (6 h, w)."""
    positive = np.maximum(maps, 0)
    highest = positive.max(axis=(1, 2), keepdims=True)
    gray = np.rint(255 * np.divide(positive, highest, out=np.zeros_like(positive), where=highest > 0))
    return gray.astype(np.uint8).reshape(-1, maps.shape[2])


def choose(study_id: np.ndarray, target: np.ndarray, probability: np.ndarray, n: int) -> list[str]:
    """Return the `n` studies of highest mean log loss, and for each label the study of the surest slice that has it.

    `study_id` (n_slices,), `target` and `probability` (n_slices, 6).
    """
    loss = pd.Series(metric.losses(target, probability) @ SHARE).groupby(study_id).mean()
    surest = np.where(target > 0, probability, -1).argmax(axis=0)
    return list(dict.fromkeys([*loss.nlargest(n).index, *study_id[surest[target.any(axis=0)]]]))


def begin(folder: Path, settings: dict) -> None:
    """Make ready to write maps with `settings` into `folder`. Raises ValueError naming both if it holds other ones."""
    for path in (folder / DONE, folder / BEGUN):
        if path.exists():
            storage.same_settings(path, storage.read_json(path), settings, "give --overwrite")
    if not (folder / DONE).exists():
        storage.write_json(folder / BEGUN, settings)


def held(folder: Path, table: pd.DataFrame) -> np.ndarray:
    """Return which slices of `table` are of studies whose every slice has its maps in `folder`: bool (n,)."""
    is_there = table.slice_id.isin({path.stem for path in folder.glob("*.png")})
    return is_there.groupby(table.study_id).transform("all").to_numpy(bool)


def _each(method: str, model: nn.Module, batches: Iterable) -> Iterator[np.ndarray]:
    device = next(model.parameters()).device
    for images, *_ in batches:
        for part in images.split(AT_ONCE):
            yield from maps_of(method, model, part.to(device)).cpu().numpy()


def write(folder: Path, method: str, model: nn.Module, batches: Iterable, slice_ids: list[str]) -> None:
    """Write the maps of the `slice_ids`, whose images the `batches` give in that order, into `folder`."""
    bar = cli.progress(slice_ids, len(slice_ids), f"explain {method}")
    for slice_id, maps in zip(bar, _each(method, model, batches), strict=True):
        with storage.writing(folder / f"{slice_id}.png") as temporary:
            png.write(temporary, to_gray(maps))


def finish(folder: Path, settings: dict, table: pd.DataFrame) -> None:
    """Write what `folder` holds, maps of whole studies of `table`, into its explain.json."""
    whole = table[held(folder, table)]
    content = {"labels": LABELS, "shape": [SIZE, SIZE], "studies": whole.study_id.unique().tolist()}
    storage.write_json(folder / DONE, settings | content | {"n_slices": len(whole)})
    (folder / BEGUN).unlink(missing_ok=True)
