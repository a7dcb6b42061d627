"""Slices of phantoms that are drawn as they are needed: no file in between, and no patient twice."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ich_kaggle.common import cli, windows
from ich_kaggle.learning import augment, datasets, neighbours
from ich_kaggle.learning.slice_model import SliceConfig
from ich_kaggle.synthetic import studies
from ich_kaggle.synthetic.variety import VARIETIES, Variety

PER_STUDY = 8  # slices of a batch that share a head: drawing a head takes as long as drawing several slices
LONG = 32  # slices per study where slices have neighbours
TRAIN, VALID = 0, 1  # first number of a seed: no head is in both


@dataclass
class PhantomStudies(Dataset):
    """Slices of a study drawn from `seed`: uint8 (n, size, size, c), their targets, float32 (n, 6), and their places.

    A study of TRAIN has 8 slices, one of VALID is whole. A place is the study's number and the position in mm, float32
    (n, 2). An item is indexed by (epoch, number), and depends on these and the seed only.
    """

    config: SliceConfig
    move: augment.Augment
    seed: int
    part: int = TRAIN
    variety: Variety = VARIETIES["wide"]

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seed = [self.seed, self.part, *item]
        is_whole = self.part == VALID
        n_slices = PER_STUDY if self.config.offsets == (0,) and not is_whole else LONG
        drawn = list(studies.draw(seed, size=self.config.cache_size, slices=n_slices, variety=self.variety))
        rng = np.random.default_rng([*seed, 1])  # not the numbers of the head
        chosen = np.arange(len(drawn))
        if not is_whole:
            chosen = np.sort(rng.choice(len(drawn), PER_STUDY, replace=len(drawn) < PER_STUDY))
        seen = [windows.apply(one.hu, self.config.windows) for one in drawn]
        beside = neighbours.neighbours([0] * len(drawn), np.arange(len(drawn)), self.config.offsets)[chosen]
        images = [self._moved(np.concatenate([seen[row] for row in rows], axis=2), rng) for rows in beside]
        target = np.array([drawn[row].labels for row in chosen], np.float32)
        place = np.array([(item[1], drawn[row].position) for row in chosen], np.float32)
        return torch.from_numpy(np.stack(images)), torch.from_numpy(target), torch.from_numpy(place)

    def _moved(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size, n_windows = self.config.image_size, len(self.config.windows)
        return augment.apply(np.ascontiguousarray(image), rng, augment=self.move, size=size, n_windows=n_windows)


def joined(items: list[tuple]) -> tuple[torch.Tensor, ...]:
    """Return the studies of a batch as one batch of slices."""
    return tuple(torch.cat(parts) for parts in zip(*items, strict=True))


def loader(dataset: PhantomStudies, n_slices: int, batch_size: int, workers: int) -> DataLoader:
    """Return a loader of about `n_slices` slices per epoch; those of an epoch are drawn for it alone.

    Batches hold whole studies of 8 slices each: as many as fit into `batch_size` slices, at least one.
    """
    per_batch = max(1, batch_size // PER_STUDY)
    n_studies = max(1, round(n_slices / PER_STUDY / per_batch)) * per_batch
    return datasets.in_processes(dataset, datasets.Batches(n_studies, per_batch, dataset.seed), workers, joined)


def validation(
    config: SliceConfig, seed: int, n_studies: int, workers: int, variety: Variety = VARIETIES["wide"]
) -> DataLoader:
    """Return a loader of `n_studies` studies that no training draws, held in memory, the tensors of its dataset."""
    dataset = PhantomStudies(config, augment.NONE, seed, VALID, variety)
    drawn = datasets.in_processes(dataset, datasets.Batches(n_studies, 1), workers, joined)
    whole = joined(list(cli.progress(drawn, n_studies, "draw phantoms to score", " studies")))
    return DataLoader(TensorDataset(*whole), batch_size=8 * PER_STUDY)
