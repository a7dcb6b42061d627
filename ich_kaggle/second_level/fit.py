"""The second level: fitted on the slices of some folds, asked of the others.

Every way starts from the predictions smoothed along z.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import expit

from ich_kaggle.common import metric, runs, storage
from ich_kaggle.common.labels import LABELS
from ich_kaggle.learning import datasets, devices, fit
from ich_kaggle.second_level import boosting, sequence_models, series_dataset, smoothing

AUXILIARY = 0.5  # weight of the auxiliary loss


def sequence_loss(model, batch: tuple):
    inputs, target, _ = batch
    logits, auxiliary = model(inputs)
    return fit.bce(logits, target) + AUXILIARY * fit.bce(auxiliary, target)


def series_loader(
    inputs: series_dataset.Inputs, rows: np.ndarray, batch_size: int, augment=series_dataset.NONE, seed=None
):
    """Return a loader of the series of `rows`, bool (n_slices,), in order, or shuffled and moved where `seed` is given.

    A series is wholly among the rows or not at all.
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
    """Return networks fitted on the slices `fitted`, bool (n_slices,), one of each seed.

    The other slices with labels are only scored for the log, whose rows `tell` is given after each epoch. What was
    fitted before an interruption is gone on from.
    """
    held_out = ~fitted & ~np.isnan(inputs.target).any(axis=1)
    valid_loader = series_loader(inputs, held_out, options["batch_size"])

    def validate(averaged) -> dict:
        logits = fit.predict(averaged, valid_loader, device, what="validate")
        return metric.validation(inputs.target[held_out], logits)

    sizes = tuple(part.shape[1] for part in inputs.embeddings)
    n_runs = inputs.logits.shape[1]
    config = sequence_models.SequenceConfig(options["model"], sizes, n_runs, options["hidden"], options["dropout"])
    networks, log_rows = [], []
    for seed in _seeds(options):
        fit.set_seed(seed)
        networks.append(sequence_models.SequenceModel(config))
        loader = series_loader(
            inputs, fitted, options["batch_size"], series_dataset.Augment(**options["augment"]), seed
        )
        steps = fit.fit(
            networks[-1],
            loader,
            sequence_loss,
            recipe=fit.Recipe(options["epochs"], options["lr"], ema=options["ema"], seed=seed),
            validate=validate,
            device=device,
            checkpoint=folder / f"state{seed}.pt",
        )
        for rows in steps:
            of_seed = [{"seed": seed} | row for row in rows]
            tell(log_rows + of_seed)
        log_rows += of_seed
    return networks


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
    """Return the probabilities of the slices that aren't `fitted`, (n, 6), by networks that are: the mean of seeds.

    Raises ValueError if the networks in `folder` read other files than `reads`.
    """
    path, device = folder / "model.pt", devices.pick_device(device)
    if not path.exists():
        sequence_models.save(path, fit_networks(inputs, fitted, folder, options, device, tell), reads)
    for state in folder.glob("state*.pt"):
        state.unlink()
    networks = sequence_models.load(path, reads, device)
    return ask_networks(networks, series_loader(inputs, ~fitted, options["batch_size"]), device)


def ask_networks(networks: list, loader, device) -> np.ndarray:
    """Return the mean of the probabilities, (n, 6), that `networks` give the slices of `loader`."""
    return np.mean([expit(fit.predict(one, loader, device).astype(float)) for one in networks], axis=0)


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
        inputs = series_dataset.Inputs(embeddings, logits, runs.logits(probability), unknown, position, number, number)
        loader = series_loader(inputs, np.ones(len(number), bool), self.batch_size)
        return ask_networks(self.networks, loader, self.device)


def by_stack(inputs: series_dataset.Inputs, fitted: np.ndarray, options: dict) -> np.ndarray:
    """Return the probabilities of the slices that aren't `fitted`, (n, 6), by boosters that are."""
    seen = boosting.features(expit(inputs.logits), expit(inputs.smoothed), inputs.position, inputs.series, inputs.study)
    target, seeds = inputs.target[fitted], list(_seeds(options))
    return boosting.fit_predict(seen[fitted], target, seen[~fitted], rounds=options["rounds"], seeds=seeds)


def smoothed(inputs: series_dataset.Inputs, fitted: np.ndarray, folder: Path) -> np.ndarray:
    """Return the probabilities of all slices, (n_slices, 6), smoothed by the widths best for those `fitted`."""
    values = expit(inputs.logits).mean(axis=1)
    place = inputs.position, inputs.series
    widths = smoothing.fit_widths(inputs.target[fitted], values[fitted], *(part[fitted] for part in place))
    storage.write_json(folder / "widths.json", dict(zip(LABELS, widths.tolist(), strict=True)))
    return smoothing.smooth_labels(values, *place, widths)


def second_level(
    inputs: series_dataset.Inputs, fitted: np.ndarray, folder: Path, *, options: dict, **how
) -> np.ndarray:
    """Return the probabilities of the slices that aren't `fitted`, (n, 6), fitted on those that are.

    `folder` keeps what is fitted; `how` holds the reads, device and tell of by_network.
    """
    probability = smoothed(inputs, fitted, folder)
    if options["model"] == "smooth":
        return probability[~fitted]
    inputs = replace(inputs, smoothed=runs.logits(probability))
    if options["model"] == "stack":
        return by_stack(inputs, fitted, options)
    return by_network(inputs, fitted, folder, options, **how)
