"""Predictions for head CT in DICOM: choose series, make pictures, run the models of a bundle, write the results.

A slice model that sees neighbours gets those at the distances of its training. A second level gets logits and
embeddings interpolated to the slice spacing of its training, and its output is interpolated back (linearly, in logits).
A series spaced as in training, to resampling.NEAR, is not resampled.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from scipy.special import expit

from ich_kaggle.common import cli, run_predictions
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import png
from ich_kaggle.learning import augment, datasets, devices, predictions, slice_model
from ich_kaggle.scans import (
    engine,
    model_bundle,
    output,
    resampling,
    results,
    series_choice,
    slices,
)
from ich_kaggle.scans import page as page_module
from ich_kaggle.scans.chosen_series import Kind, Scan, choose
from ich_kaggle.scoring import nested_choice

CHUNK = 2048  # slices, and the rest of their study, whose pictures are in memory at once: 0.2 GB
PIXELS = 16 * 224**2  # per batch on a CPU: more take more memory and no less time

Load = Callable[[str, int], engine.Model]  # gives a model by its run and fold


class Pictures(datasets.SliceDataset):
    """Slices whose PNG files are in memory."""

    def __init__(self, pictures: list[bytes], config: slice_model.SliceConfig, beside: np.ndarray):
        show = partial(augment.apply, augment=augment.NONE, size=config.image_size, n_windows=len(config.windows))
        target = np.full((len(pictures), len(LABELS)), np.nan, np.float32)
        super().__init__(Path(), [""] * len(pictures), target, show, beside=beside, channels=config.channels)
        self.pictures = pictures

    def read(self, row: int) -> np.ndarray:
        return png.decode(self.pictures[row])


@dataclass
class Reader:
    """The models of a bundle over the pictures of some scans."""

    packed: dict  # of the bundle
    load: Load
    frame: resampling.Frame
    pictures: dict[Kind, list[bytes]]
    batch_size: int | None  # None: 64, on a CPU as many as have PIXELS
    workers: int
    device: object  # a torch.device

    def by_slices(self, run: str, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the probabilities (n, 6) of a slice model, its embeddings (n, d), and their logits (n, 6)."""
        model, kind = self.load(run, k), self.packed["pictures"][run]
        beside = self.frame.neighbours(model.config.offsets)
        dataset = Pictures(self.pictures[kind["size"], kind["crop"]], model.config, beside)
        fitting = 64 if self.device.type == "cuda" else max(1, PIXELS // model.config.image_size**2)
        loader = datasets.loader(dataset, self.batch_size or fitting, self.workers)
        views, what = self.packed["views"][run], f"{run}, fold {k}"
        parts = predictions.run_model(model, loader, views, self.device, what=what)
        logits, embeddings = map(np.concatenate, zip(*parts, strict=True))
        return expit(logits), embeddings, slice_model.head_logits(model, embeddings)

    def by_level(self, run: str, k: int, known: dict[str, np.ndarray], seen: dict[str, tuple]) -> np.ndarray:
        """Return the probabilities (n, 6) of a second level.

        It reads the probabilities `known` of other runs, or the embeddings and logits `seen` in their slice models.
        """
        options = self.packed["options"][run]
        if options["features"] == "fold":
            embeddings, logits = zip(*(seen[name] for name in options["on"]), strict=True)
        else:
            embeddings, logits = (), [run_predictions.logits(known[name]) for name in options["on"]]
        embeddings = [self.frame.resample(part) for part in embeddings]
        values = np.stack([self.frame.resample(part) for part in logits], axis=1)
        probability = self.load(run, k).ask(embeddings, values, *self.frame.place())
        return self.frame.back(probability).astype(np.float32)

    def by_fold(self, k: int) -> dict[str, np.ndarray]:
        """Return the probabilities, float32 (n, 6), of every run that has a model of fold `k`."""
        known, seen = {}, {}
        for run, options in self.packed["options"].items():
            if k not in [entry["fold"] for entry in self.packed["models"][run]]:
                continue
            if "on" in options:
                known[run] = self.by_level(run, k, known, seen)
            else:
                known[run], *seen[run] = self.by_slices(run, k)
        return known

    def blend(self) -> np.ndarray:
        """Return the ensemble's probabilities, float32 (n, 6), blended as its test predictions are."""
        names = list(self.packed["runs"])
        folds = {entry["fold"] for run in names for entry in self.packed["models"][run]}
        by_fold = {k: self.by_fold(k) for k in sorted(folds)}
        of_runs = [{k: known[name] for k, known in by_fold.items() if name in known} for name in names]
        return nested_choice.of_folds(nested_choice.from_json(self.packed["pipeline"], names), of_runs)


def models_of(bundle: model_bundle.Bundle, device) -> Load:
    """Return a function from run and fold to the model of `bundle`. Each model is loaded once and stays in memory."""
    return cache(partial(engine.load, bundle.packed, bundle.open, device, model_bundle.AGAIN))


def probabilities(packed: dict, load: Load, scans: list[Scan], **how) -> list[np.ndarray]:
    """Return the ensemble's probabilities of the slices of each scan, float32 (n, 6), NaN for unreadable ones.

    `packed` and `load` are of one bundle; `how` holds the batch_size, the workers and the device of Reader.
    """
    frame = resampling.Frame([scan.position for scan in scans], packed["spacing"])
    pictures = {kind: [png for scan in scans for png in scan.pictures[kind]] for kind in scans[0].pictures}
    found = Reader(packed, load, frame, pictures, **how).blend()
    out = []
    for part, scan in zip(np.split(found, np.cumsum([len(p) for p in frame.positions])[:-1]), scans, strict=True):
        out.append(np.full((len(scan.is_read), len(LABELS)), np.nan, np.float32))
        out[-1][scan.is_read] = part
    return out


def chunks(scans: Iterator[tuple]) -> Iterator[list[tuple]]:
    """Yield `scans`, each with its study, in lists of CHUNK slices or slightly more."""
    part, n = [], 0
    for one in scans:
        part.append(one)
        n += len(one[1].is_read) if one[1] else 0
        if n >= CHUNK:
            yield part
            part, n = [], 0
    if part:
        yield part


def reading(of_study: list[series_choice.Series], scan: Scan | None, probability: np.ndarray | None) -> results.Reading:
    about = [one.describe() for one in of_study]
    if scan is None:
        return results.Reading(of_study[0].study, "", about, [], np.empty((0, len(LABELS)), np.float32))
    found = zip(scan.series.slices, scan.notes, strict=True)
    rows = [results.Row(one.slice_id, one.file, one.position, note, one) for one, note in found]
    return results.Reading(of_study[0].study, scan.series.series, about, rows, probability)


def read_studies(bundle: model_bundle.Bundle, found: slices.Found, *, device, **how) -> list[results.Reading]:
    """Return the predictions of each study of a pile."""
    load = models_of(bundle, device)
    kinds = sorted({(kind["size"], kind["crop"]) for kind in bundle.packed["pictures"].values()})
    studies, step = list(series_choice.studies(found).values()), bundle.packed["spacing"]
    bar = cli.progress(studies, len(studies), "read studies", " studies")
    readings = []
    for part in chunks((of_study, choose(of_study, kinds, step, found.wanted)) for of_study in bar):
        scans = [scan for _, scan in part if scan]
        made = iter(probabilities(bundle.packed, load, scans, device=device, **how) if scans else [])
        readings += [reading(of_study, scan, next(made) if scan else None) for of_study, scan in part]
    return readings


def plan(found: slices.Found, step: float) -> str:
    """Return a line for each series of each study: read or not, and why."""
    lines = []
    for study, of_study in series_choice.studies(found).items():
        choose(of_study, [], step, found.wanted)
        for one in sorted(of_study, key=lambda one: bool(one.reason)):
            what = f"not read: {one.reason}" if one.reason else "; ".join(["read", *one.notes])
            lines.append(f"{study}: {one.series} ({len(one.slices)} slices): {what}")
    return "\n".join([*lines, results.skipped(found)])


def summary(readings: list[results.Reading]) -> str:
    n_read = sum(bool(part.chosen) for part in readings)
    n_slices = sum(int(part.is_read.sum()) for part in readings)
    return f"{n_slices} slices of {n_read} of {len(readings)} studies"


def predict(
    path: str | Path,
    bundle: str | Path,
    out: str | Path,
    *,
    rule: str,
    wanted: slices.Wanted,
    overwrite: bool = False,
    report: bool = False,
    dry_run: bool = False,
    **how,
) -> None:
    """Write the predictions of the models in `bundle` for the DICOM files in `path` into the folder `out`.

    With `report`, a page that shows them is written as well; with `dry_run`, the choice of series is printed, and
    nothing is written. `how` holds the name of the device, and the batch_size and the workers of Reader. Raises
    ValueError if no series can be read, and as `output.check` does.
    """
    path, out = Path(path), Path(out)
    output.check(out, overwrite, report)
    if not dry_run:
        output.check_writable(out)
    opened = model_bundle.read(bundle)
    results.chosen_thresholds(opened.packed, "slices", rule)
    found = slices.read(path, out, wanted)
    if dry_run:
        cli.say(plan(found, opened.packed["spacing"]))
        return
    how["device"] = devices.pick_device(how.get("device", "auto"))
    readings = read_studies(opened, found, **how)
    if not any(part.chosen for part in readings):
        raise ValueError(f"{path}: no axial head CT series: {results.refusals(readings, found.passed_over)}")
    against = [text for text, _ in series_choice.PREFERENCES]
    with output.private():
        if report:
            page_module.write(out, readings, opened.packed, rule)
        results.write(out, readings, results.about(opened, against, found), opened.packed, rule)
    cli.say(f"{out}: {summary(readings)}; {results.skipped(found)}")
    for part in (part for part in readings if part.notes):
        cli.say(f"{part.study}: {'; '.join(part.notes)}")
    cli.say(opened.packed["intended_use"])
