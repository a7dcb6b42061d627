"""The networks of the second level: from the embeddings and logits of a series to the logits of its slices.

A batch is the concatenation of several series (series_dataset.Batch). The output for a series does not depend on the
others: nothing is padded, or the padding is masked.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ich_kaggle.common import storage, zip_reader
from ich_kaggle.common.labels import LABELS
from ich_kaggle.second_level.series_dataset import Batch

LOGIT_SCALE = 4.0  # divides logits, to bring them to the scale of the other inputs
DILATIONS = (1, 2, 4)
OTHER = "give another --run, or --overwrite"


@dataclass(frozen=True)
class SequenceConfig:
    """The hyperparameters of a sequence model."""

    kind: str  # one of KINDS
    embedding_sizes: tuple[int, ...]  # per run; empty for out-of-fold features
    n_runs: int
    hidden: int = 96
    dropout: float = 0.5


def beside(series: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return per row the row `offset` further, (n,), or itself outside its series, and whether it is inside, (n, 1)."""
    own = torch.arange(len(series), device=series.device)
    other = (own + offset).clamp(0, len(series) - 1)
    is_there = (other == own + offset) & (series[other] == series)
    return torch.where(is_there, other, own), is_there[:, None]


class GRU(nn.Module):
    """Two bidirectional layers: (n, 2 hidden) -> the outputs of both, (n, 2 hidden) each."""

    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        self.first = nn.GRU(2 * hidden, hidden, bidirectional=True)
        self.second = nn.GRU(2 * hidden, hidden, bidirectional=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.first(PackedSequence(x[batch.packed], batch.sizes))[0]
        second = self.second(first._replace(data=self.dropout(first.data)))[0]
        back = batch.packed.argsort()
        return first.data[back], second.data[back]


class Dilated(nn.Module):
    """A residual convolution over a slice and the two `dilation` rows away: (n, d) -> (n, d)."""

    def __init__(self, size: int, dilation: int, dropout: float):
        super().__init__()
        self.dilation = dilation
        self.layers = nn.Sequential(
            nn.LayerNorm(3 * size), nn.Linear(3 * size, size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(size, size)
        )

    def forward(self, x: torch.Tensor, series: torch.Tensor) -> torch.Tensor:
        around = [
            x[row] * is_there for row, is_there in (beside(series, d) for d in (-self.dilation, 0, self.dilation))
        ]
        return x + self.layers(torch.cat(around, 1))


class Conv(nn.Module):
    """Residual dilated convolutions: (n, 2 hidden) -> the outputs of the first and the last, (n, 2 hidden) each."""

    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(Dilated(2 * hidden, dilation, dropout) for dilation in DILATIONS)

    def forward(self, x: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        first = x = self.blocks[0](x, batch.series)
        for block in self.blocks[1:]:
            x = block(x, batch.series)
        return first, x


class Transformer(nn.Module):
    """Two encoder layers over all slices of a series: (n, 2 hidden) -> the outputs of both, (n, 2 hidden) each.

    Series are padded to the longest, and the padding is masked. Sines and cosines of the distance from the first slice
    tell the place, at wavelengths of 10 to 1000 mm (https://arxiv.org/abs/1706.03762).
    """

    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        size = dict(d_model=2 * hidden, nhead=2, dim_feedforward=4 * hidden)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(**size, dropout=dropout, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.register_buffer("frequencies", 2 * math.pi / torch.logspace(0, 2, hidden), persistent=False)  # per cm

    def forward(self, x: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        start = batch.length.cumsum(0) - batch.length
        place = torch.arange(len(x), device=x.device) - start[batch.series]
        padded = x.new_zeros(len(batch), len(batch.sizes), x.shape[1] + 1)
        padded[batch.series, place] = torch.cat([x, batch.place[:, :1]], 1)
        angle = padded[:, :, -1:].cumsum(1) * self.frequencies  # of the gaps: cm from the first slice
        is_padding = torch.arange(len(batch.sizes), device=x.device) >= batch.length[:, None]
        first = padded[:, :, :-1] + torch.cat([angle.sin(), angle.cos()], 2)
        first = self.layers[0](first, src_key_padding_mask=is_padding)
        last = self.layers[1](first, src_key_padding_mask=is_padding)
        return first[batch.series, place], last[batch.series, place]


KINDS = {"gru": GRU, "conv": Conv, "transformer": Transformer}


class SequenceModel(nn.Module):
    """A series_dataset.Batch -> logits (n, 6), and logits for the auxiliary loss (n, 6), all in float32.

    The input per slice is a projection of each run's embedding, the logits of each run and the smoothed logits, their
    differences from the previous and the next slice, and the place. The output is added to the smoothed logits.
    """

    def __init__(self, config: SequenceConfig):
        super().__init__()
        self.config = config
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(size), nn.Linear(size, config.hidden), nn.ReLU(), nn.Dropout(config.dropout))
            for size in config.embedding_sizes
        )
        n_logits = len(LABELS) * (config.n_runs + 1)
        n_inputs = 3 * (config.hidden * len(config.embedding_sizes) + n_logits) + 3
        self.enter = nn.Sequential(nn.Linear(n_inputs, 2 * config.hidden), nn.ReLU())
        self.body = KINDS[config.kind](config.hidden, config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * config.hidden, len(LABELS))
        self.auxiliary = nn.Linear(2 * config.hidden, len(LABELS))
        self.scale = nn.Parameter(torch.ones(len(LABELS)))
        for head in (self.head, self.auxiliary):  # so that training starts from the smoothed logits
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def read(self, batch: Batch) -> torch.Tensor:
        """Return the input per slice: (n, n_inputs)."""
        projected = [layer(part.float()) for layer, part in zip(self.projections, batch.embeddings, strict=True)]
        logits = torch.cat([batch.logits.flatten(1), batch.smoothed], 1) / LOGIT_SCALE
        own = torch.cat([*projected, logits], 1)
        differences = [own - own[beside(batch.series, offset)[0]] for offset in (-1, 1)]
        return torch.cat([own, *differences, batch.place], 1)

    def features(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of the auxiliary and of the last head: (n, 2 hidden) each."""
        x = self.enter(self.read(batch))
        first, last = self.body(x, batch)
        return first, last + x

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with in_float32(batch):
            first, last = self.features(batch)
            start = batch.smoothed * self.scale
            return start + self.head(self.dropout(last)), start + self.auxiliary(self.dropout(first))

    def outputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (n, 6) and features (n, 2 hidden), means over both directions of the series."""
        with in_float32(batch):
            flipped, rows = batch.flip()
            features = (self.features(batch)[1] + self.features(flipped)[1][rows]) / 2
            return batch.smoothed * self.scale + self.head(features), features


def in_float32(batch: Batch) -> torch.autocast:
    """Return the context without mixed precision, in which cuDNN's recurrent layers would run in half precision."""
    return torch.autocast(batch.logits.device.type, enabled=False)


def save(path: Path, models: list[SequenceModel], reads: dict[str, str]) -> None:
    """Write the weights of `models`, one per seed, their config and the hashes of the files that they read."""
    config = json.dumps(asdict(models[0].config))
    content = {"sequence": config, "reads": json.dumps(reads), "weights": [model.state_dict() for model in models]}
    with storage.writing(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load(
    path: Path | BinaryIO, reads: dict[str, str], device: torch.device | str = "cpu", remedy: str = OTHER
) -> list[SequenceModel]:
    """Return the models in `path`, on `device`.

    Raises ValueError naming a damaged file, or a file of `reads` with another hash than when they were fitted.
    """
    try:
        zip_reader.check(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        config, found = json.loads(content["sequence"]), dict(json.loads(content["reads"]))
        config["embedding_sizes"] = tuple(config["embedding_sizes"])
        models = [SequenceModel(SequenceConfig(**config)) for _ in content["weights"]]
        for model, weights in zip(models, content["weights"], strict=True):
            model.load_state_dict(weights)
    except Exception as error:  # damaged bytes raise errors of every type
        raise ValueError(storage.not_whole(path, "sequence model", error)) from error
    storage.same_settings(path, found, reads, remedy)
    return [model.to(device).eval() for model in models]
