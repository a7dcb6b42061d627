"""The four second levels, fitted on the slices of some folds and applied to the others.

Each starts from predictions that are smoothed along z.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import expit

from ich_kaggle.common import metric, run_predictions, storage
from ich_kaggle.common.labels import LABELS
from ich_kaggle.learning import datasets, devices, fit, inference
from ich_kaggle.second_level import boosting, sequence_models, series_dataset, smoothing

AUXILIARY = 0.5  # weight of the auxiliary loss


def sequence_loss(model, batch: tuple):
    inputs, target, _ = batch
    logits, auxiliary = model(inputs)
    return fit.bce(logits, target) + AUXILIARY * fit.bce(auxiliary, target)


def series_loader(
    inputs: series_dataset.Inputs, rows: np.ndarray, batch_size: int, augment=series_dataset.NONE, seed=None
):
    """Return a loader of the series of `rows`, bool (n_slices,): in order, or shuffled and augmented by `seed`.

    The rows must hold every series completely or not at all.
    """
    dataset = series_dataset.SeriesDataset(inputs, np.unique(inputs.series[rows]), augment, seed or 0)
    return series_dataset.loader(dataset, datasets.Batches(len(dataset), batch_size, seed))


def fit_networks(
    inputs: series_dataset.Inputs,
    fitted: np.ndarray,
    folder: Path,
    options: dict,
    device,
    tell: Callable[[list[dict]], None],
) -> list:
    """Return networks fitted on the slices `fitted`, bool (n_slices,), one per seed.

    The other slices with labels are only scored for the log: `tell` is called with its rows after each epoch. The fit
    resumes from the checkpoints in `folder`.
    """
    held_out = ~fitted & ~np.isnan(inputs.target).any(axis=1)
    valid_loader = series_loader(inputs, held_out, options["batch_size"])

    def validate(averaged) -> dict:
        logits = inference.predict(averaged, valid_loader, device, what="validate")
        return metric.validation(inputs.target[held_out], logits)

    augment, networks, log_rows = series_dataset.SeriesAugment(**options["augment"]), [], []
    for seed in _seeds(options):
        fit.set_seed(seed)
        networks.append(sequence_models.SequenceModel(_config(inputs, options)))
        loader = series_loader(inputs, fitted, options["batch_size"], augment, seed)
        settings = fit.FitSettings(options["epochs"], options["lr"], ema=options["ema"], seed=seed)
        checkpoint = fit.Checkpoint(folder / f"state{seed}.pt")
        how = dict(settings=settings, validate=validate, device=device, checkpoint=checkpoint)
        for rows in fit.fit(networks[-1], loader, sequence_loss, **how):
            of_seed = [{"seed": seed} | row for row in rows]
            tell(log_rows + of_seed)
        log_rows += of_seed
    return networks


def _config(inputs: series_dataset.Inputs, options: dict) -> sequence_models.SequenceConfig:
    sizes, n_runs = tuple(part.shape[1] for part in inputs.embeddings), inputs.logits.shape[1]
    return sequence_models.SequenceConfig(options["model"], sizes, n_runs, options["hidden"], options["dropout"])


def _seeds(options: dict) -> range:
    return range(options["seed"], options["seed"] + options["seeds"])


def by_network(
    inputs: series_dataset.Inputs,
    fitted: np.ndarray,
    folder: Path,
    options: dict,
    reads: dict[str, str],
    device: str,
    tell: Callable[[list[dict]], None],
) -> np.ndarray:
    """Return the probabilities of the slices outside `fitted`, (n, 6): the mean of networks of several seeds.

    Raises ValueError if the networks in `folder` were fitted on other files than `reads`.
    """
    path, device = folder / "model.pt", devices.pick_device(device)
    if not path.exists():
        sequence_models.save(path, fit_networks(inputs, fitted, folder, options, device, tell), reads)
    for seed in _seeds(options):
        storage.remove(folder / f"state{seed}.pt")
    networks = sequence_models.load(path, reads, device)
    return ask_networks(networks, series_loader(inputs, ~fitted, options["batch_size"]), device)


def ask_networks(networks: list, loader, device) -> np.ndarray:
    """Return the mean of the probabilities, (n, 6), that `networks` give the slices of `loader`."""
    return np.mean([expit(inference.predict(one, loader, device).astype(float)) for one in networks], axis=0)


@dataclass(frozen=True)
class Fitted:
    """A fold of a second level that was fitted elsewhere."""

    widths: np.ndarray  # (6,), mm, of the smoothing
    networks: list  # none: the smoothing is the whole second level
    batch_size: int  # series
    device: object  # a torch.device

    def ask(
        self, embeddings: list[np.ndarray], logits: np.ndarray, position: np.ndarray, number: np.ndarray
    ) -> np.ndarray:
        """Return the probabilities of all slices, (n, 6); the arguments are as in series_dataset.Inputs."""
        probability = smoothing.smooth_labels(expit(logits).mean(axis=1), position, number, self.widths)
        if not self.networks:
            return probability
        unknown = np.full(probability.shape, np.nan, np.float32)
        inputs = series_dataset.Inputs(
            embeddings, logits, run_predictions.logits(probability), unknown, position, number, number
        )
        loader = series_loader(inputs, np.ones(len(number), bool), self.batch_size)
        return ask_networks(self.networks, loader, self.device)


def by_stack(inputs: series_dataset.Inputs, fitted: np.ndarray, options: dict) -> np.ndarray:
    """Return the probabilities of the slices outside `fitted`, (n, 6), from boosters."""
    read = boosting.features(expit(inputs.logits), expit(inputs.smoothed), inputs.position, inputs.series, inputs.study)
    target, seeds = inputs.target[fitted], list(_seeds(options))
    return boosting.fit_predict(read[fitted], target, read[~fitted], rounds=options["rounds"], seeds=seeds)


def smoothed(inputs: series_dataset.Inputs, fitted: np.ndarray, folder: Path) -> np.ndarray:
    """Return the probabilities of all slices, (n_slices, 6), smoothed by the best widths for those `fitted`."""
    values = expit(inputs.logits).mean(axis=1)
    place = inputs.position, inputs.series
    widths = smoothing.fit_widths(inputs.target[fitted], values[fitted], *(part[fitted] for part in place))
    storage.write_json(folder / "widths.json", dict(zip(LABELS, widths.tolist(), strict=True)))
    return smoothing.smooth_labels(values, *place, widths)


def second_level(
    inputs: series_dataset.Inputs, fitted: np.ndarray, folder: Path, *, options: dict, **how
) -> np.ndarray:
    """Return the probabilities of the slices outside `fitted`, (n, 6), from a second level fitted on those inside.

    Networks and widths are written to `folder`. `how` holds the arguments reads, device and tell of by_network.
    """
    probability = smoothed(inputs, fitted, folder)
    if options["model"] == "smooth":
        return probability[~fitted]
    inputs = replace(inputs, smoothed=run_predictions.logits(probability))
    if options["model"] == "stack":
        return by_stack(inputs, fitted, options)
    return by_network(inputs, fitted, folder, options, **how)
