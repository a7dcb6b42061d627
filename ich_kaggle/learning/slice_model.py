"""The slice model: a timm backbone, pooled to an embedding, and a linear layer to six logits; saved with its config.

A network that ends in anything but one linear layer gets one, `own_head`, on all that its own classifiers read.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import timm
import torch
from torch import nn

from ich_kaggle.common import cli, storage, windows, zip_reader
from ich_kaggle.common.labels import LABELS

CHUNK = 65536  # slices whose embeddings are in memory at a time
RARE = 1e-3  # prevalence taken for a label that the slices do not have
STRIDE = 32  # px of the image per pixel of the last feature map, without dilation


@dataclass(frozen=True)
class SliceConfig:
    """The hyperparameters of a slice model and of its input."""

    arch: str  # timm's name
    image_size: int  # px, input of the network
    cache_size: int  # px, images in the cache
    windows: tuple[tuple[float, float], ...] = windows.CACHED  # center and width in HU, one per channel
    drop_path: float = 0.0
    offsets: tuple[int, ...] = (
        0,
    )  # relative positions of the input slices; the channels are all windows of each in turn
    n_targets: int = 1  # slices whose labels are predicted: 1, the middle one, or all offsets
    output_stride: int = STRIDE  # below 32 by dilation
    crop: str = "none"  # of the cache

    @property
    def own(self) -> slice:
        """The place of the logits of the slice itself among all logits."""
        middle = self.n_targets // 2 * len(LABELS)
        return slice(middle, middle + len(LABELS))

    @property
    def channels(self) -> list[int]:
        """The channels of a cached slice that are input."""
        return [windows.CACHED.index(tuple(window)) for window in self.windows]


class SliceModel(nn.Module):
    """uint8 images (n, h, w, c) -> logits (n, 6), or (n, n_targets, 6) with n_targets > 1.

    `embed` returns the pooled features (n, d), the input of the head.
    """

    def __init__(self, config: SliceConfig):
        super().__init__()
        self.config = config
        check_arch(config.arch)
        extra = {"drop_path_rate": config.drop_path} if config.drop_path else {}
        if config.output_stride != STRIDE:
            extra["output_stride"] = config.output_stride
        n_channels, n_logits = len(config.windows) * len(config.offsets), len(LABELS) * config.n_targets
        self.backbone = _backbone(config, num_classes=n_logits, in_chans=n_channels, global_pool="avg", **extra)
        if config.arch.startswith("vgg"):
            _drop_hidden_layers(self.backbone, n_logits)
        if not isinstance(self.head, nn.Linear):  # a convolution, a norm before it, or several
            self.backbone.reset_classifier(0)
            self.backbone.own_head = nn.Linear(self.backbone.head_hidden_size, n_logits)
        _drop_strides(self.backbone)
        self.embedding_size = self.head.in_features
        for name in ("mean", "std"):
            # One value for all channels, because they are windows and not colours.
            self.register_buffer(name, 255 * torch.tensor(self.backbone.pretrained_cfg[name]).mean(), persistent=False)
        self.to(memory_format=torch.channels_last)

    @property
    def head(self) -> nn.Linear:
        return getattr(self.backbone, "own_head", None) or self.backbone.get_classifier()

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        features = self.backbone.forward_features(self.normalised(images))
        return self.backbone.forward_head(features, pre_logits=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.embed(images))
        return logits if self.config.n_targets == 1 else logits.unflatten(1, (self.config.n_targets, len(LABELS)))

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (n, 6) of the slice itself and the embeddings (n, d), from pooling on in float32."""
        features = self.backbone.forward_features(self.normalised(images))
        with torch.autocast(images.device.type, enabled=False):
            features = [part.float() for part in features] if isinstance(features, list) else features.float()
            embedding = self.backbone.forward_head(features, pre_logits=True)
            return self.head(embedding)[:, self.config.own], embedding


def _backbone(config: SliceConfig, **options) -> nn.Module:
    """Return timm's network. Raises ValueError if timm cannot make it with these options."""
    if has_fixed_size(config.arch):
        options["img_size"] = config.image_size
        del options["global_pool"]  # transformers keep the pooling of their pretrained weights
    try:
        return timm.create_model(config.arch, **options)
    except Exception as error:  # each architecture raises its own types
        special = ("drop_path_rate", "output_stride", "img_size")
        given = ", ".join(f"{key} {options[key]}" for key in special if key in options) or "these options"
        raise ValueError(
            f"timm has no {config.arch} with {given} ({cli.printable(str(error) or type(error).__name__, 200)})"
        ) from error


def has_fixed_size(arch: str) -> bool:
    """Return whether a model of `arch` takes images of one size only."""
    return bool(getattr(timm.get_pretrained_cfg(arch), "fixed_input_size", False))


def blank(config: SliceConfig, n: int, size: int) -> torch.Tensor:
    """Return `n` black images of `size` px: uint8 (n, size, size, c)."""
    return torch.zeros(n, size, size, len(config.windows) * len(config.offsets), dtype=torch.uint8)


def head_logits(model: SliceModel, embeddings: np.ndarray) -> np.ndarray:
    """Return the logits of the slices themselves, float32 (n, 6), from their `embeddings` (n, d)."""
    weight, bias = (part[model.config.own].detach().cpu().numpy() for part in (model.head.weight, model.head.bias))
    parts = np.array_split(embeddings, -(-len(embeddings) // CHUNK))
    return np.concatenate([part.astype(np.float32) @ weight.T + bias for part in parts])


def _drop_hidden_layers(vgg: nn.Module, n_logits: int) -> None:
    # The two layers of 4096 between features and classifier fix VGG to 224 px and hold most of its weights.
    vgg.pre_logits = nn.Identity()
    vgg.head.fc = nn.Linear(vgg.num_features, n_logits)


def _drop_strides(network: nn.Module) -> None:
    # A convolution of 1 px with a stride is one without it on every second pixel. With a stride and less than 8
    # channels, oneDNN writes beyond its memory in the backward pass (torch 2.14.1, channels_last).
    for part in network.modules():
        if (
            isinstance(part, nn.Conv2d)
            and part.kernel_size == (1, 1)
            and part.stride == (2, 2)
            and part.in_channels < 8
        ):
            part.stride = (1, 1)
            part.register_forward_pre_hook(_every_second)


def _every_second(_: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (given[0][:, :, ::2, ::2],)


def check_arch(arch: str) -> None:
    """Raise ValueError with similar names if timm has no `arch`."""
    if not timm.is_model(arch.split(".")[0]):
        near = difflib.get_close_matches(arch, timm.list_models(), 3, 0.4)
        raise ValueError(
            f"timm has no architecture {arch}: did you mean {', '.join(near) or 'one of timm.list_models()'}?"
        )


def start_at_prevalence(model: SliceModel, prevalence: np.ndarray) -> None:
    """Initialise the head of `model` to predict about `prevalence` (6,), which saves the steps of learning it."""
    with torch.no_grad():
        model.head.weight.mul_(0.1)
        model.head.bias.copy_(torch.from_numpy(np.tile(logit(prevalence), model.config.n_targets)))


def logit(probability: np.ndarray) -> np.ndarray:
    """Return the logit of `probability`, which is kept RARE away from 0 and 1."""
    probability = np.clip(probability, RARE, 1 - RARE)
    return np.log(probability / (1 - probability))


def for_prediction(model: SliceModel) -> SliceModel:
    """Return `model` without the logits of the neighbouring slices, which only training uses."""
    if model.config.n_targets == 1:
        return model
    plain = SliceModel(replace(model.config, n_targets=1))
    weights = model.state_dict()
    for name, module in model.named_modules():
        if module is model.head:
            weights |= {f"{name}.{part}": weights[f"{name}.{part}"][model.config.own] for part in ("weight", "bias")}
    plain.load_state_dict(weights)
    return plain


def patient_hashes(patient_ids: Iterable[str]) -> np.ndarray:
    """Return the first 8 bytes of the SHA-256 of each id as an integer: int64, sorted, each once."""
    digests = (hashlib.sha256(str(one).encode()).digest()[:8] for one in patient_ids)
    return np.unique(np.frombuffer(b"".join(digests), "<i8"))


def save(path: Path, model: SliceModel, patients: np.ndarray | None = None) -> None:
    """Write the weights of `model`, its config, and the hashes of the `patients` that it was fitted on, if known.

    `patients` (n,) are int64, with those of its initial weights.
    """
    content = {"config": json.dumps(asdict(model.config)), "weights": model.state_dict()}
    if patients is not None:
        content["patients"] = torch.from_numpy(patients)
    with storage.writing(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def patients(path: Path | BinaryIO) -> np.ndarray | None:
    """Return the hashes of the patients that the model in `path` was fitted on, None if it does not say.

    Raises ValueError if the file is damaged.
    """
    if not isinstance(path, Path):
        path.seek(0)
    with storage.reading(path, "make it again"):
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content["patients"].numpy() if "patients" in content else None


def load(path: Path | BinaryIO, device: torch.device | str = "cpu") -> SliceModel:
    """Return the model in `path`, on `device`. Raises ValueError naming the file if it is damaged."""
    try:
        zip_reader.check(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        config = json.loads(content["config"])
        config["windows"] = tuple(windows.Window(*window) for window in config["windows"])
        config["offsets"] = tuple(config.get("offsets", (0,)))
        model = SliceModel(SliceConfig(**config))
        model.load_state_dict(content["weights"])
    except Exception as error:  # damaged bytes raise errors of every type
        raise ValueError(storage.not_whole(path, "model", error)) from error
    return model.to(device).eval()
