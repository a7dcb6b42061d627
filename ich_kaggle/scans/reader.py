"""Predictions for head CT in DICOM: choose series, make pictures, run the models of a bundle, write the results.

Up to a share UNREAD of the slices of a series may be unreadable: they are listed without probabilities, and the models
do not see them. Otherwise the series is refused, and the next best of its study is read.
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

from ich_kaggle.common import cli, paths, run_predictions, storage
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import pixels, png, slice_image
from ich_kaggle.learning import augment, datasets, devices, predictions, slice_model
from ich_kaggle.scans import engine, model_bundle, resampling, results, series_choice
from ich_kaggle.scans import page as page_module
from ich_kaggle.scoring import nested_choice

UNREAD = 0.1  # of the slices of a series
CHUNK = 2048  # slices, and the rest of their study, whose pictures are in memory at once: 0.2 GB
PIXELS = 16 * 224**2  # per batch on a CPU: more take more memory and no less time

Kind = tuple[int, str]  # size of a picture in px, and its crop
Load = Callable[[str, int], engine.Model]  # gives a model by its run and fold


@dataclass
class Scan:
    """The chosen series of a study."""

    series: series_choice.Series
    notes: list[str]  # of each of its slices
    is_read: np.ndarray  # bool (n_slices,)
    pictures: dict[Kind, list[bytes]]  # PNG files of the slices that could be read

    @property
    def position(self) -> np.ndarray:
        return self.series.position[self.is_read]


def why_unread(data: paths.Data, one: series_choice.Slice) -> str:
    """Return the reason why the pixels of a slice cannot be read, or an empty string."""
    try:
        pixels.read_words(data.read(one.member), one.member.path)
    except ValueError as error:
        return cli.printable(str(error).removeprefix(f"{one.member.path}: "), 300)
    return ""


def boxes_of(data: paths.Data, slices: list[series_choice.Slice]) -> dict[tuple[int, int], object]:
    """Return the box of the head for each slice shape, as in the cache."""
    boxes = {}
    for shape in sorted({one.shape for one in slices}):
        alike = [one for one in slices if one.shape == shape]
        boxes[shape] = slice_image.study_box(data, [(one.member, None) for one in alike], alike[0].row_spacing)
    return boxes


def read_series(data: paths.Data, found: series_choice.Series, kinds: list[Kind]) -> Scan:
    """Return a series with the pictures, of each of the `kinds`, of its readable slices."""
    notes = [why_unread(data, one) for one in found.slices]
    scan = Scan(found, notes, np.array([not note for note in notes]), {kind: [] for kind in kinds})
    slices = [one for one, note in zip(found.slices, notes, strict=True) if not note]
    boxes = boxes_of(data, slices) if any(crop == "study" for _, crop in kinds) else {}
    for row, one in zip(np.flatnonzero(scan.is_read), slices, strict=True):
        content = data.read(one.member)
        for size, crop in kinds:
            box = boxes[one.shape] if crop == "study" else None
            made = slice_image.picture(content, one.member.path, size, box)
            scan.pictures[size, crop].append(png.encode(made.image))
            notes[row] = made.defect
    return scan


def choose(data: paths.Data, of_study: list[series_choice.Series], kinds: list[Kind], step: float) -> Scan | None:
    """Return the scan of the best readable series of a study, None if there is none; the others get a reason."""
    ranked = series_choice.rank(of_study, step)
    for i, one in enumerate(ranked):
        scan = read_series(data, one, kinds)
        unread = np.flatnonzero(~scan.is_read)
        if len(unread) > UNREAD * len(scan.is_read):
            first = f"{one.slices[unread[0]].file}: {scan.notes[unread[0]]}"
            one.reason = f"{len(unread)} of {len(scan.is_read)} slices cannot be read, the first {first}"
            continue
        for other in ranked[i + 1 :]:
            other.reason = series_choice.compare(one, other, step)
        return scan
    return None


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
    slices = zip(scan.series.slices, scan.notes, strict=True)
    rows = [results.Row(one.slice_id, one.file, one.position, note) for one, note in slices]
    return results.Reading(of_study[0].study, scan.series.series, about, rows, probability)


def read_studies(bundle: model_bundle.Bundle, pile: series_choice.Pile, *, device, **how) -> list[results.Reading]:
    """Return the predictions of each study of `pile`."""
    load = models_of(bundle, device)
    kinds = sorted({(kind["size"], kind["crop"]) for kind in bundle.packed["pictures"].values()})
    found, step = list(series_choice.studies(pile).values()), bundle.packed["spacing"]
    bar = cli.progress(found, len(found), "read studies", " studies")
    readings = []
    for part in chunks((of_study, choose(pile.data, of_study, kinds, step)) for of_study in bar):
        scans = [scan for _, scan in part if scan]
        found = iter(probabilities(bundle.packed, load, scans, device=device, **how) if scans else [])
        readings += [reading(of_study, scan, next(found) if scan else None) for of_study, scan in part]
    return readings


def check_output(out: Path, overwrite: bool, report: bool) -> None:
    """Raise ValueError if predictions or a page in `out` would be overwritten, or a page would become outdated."""
    done, page = out / results.DONE, page_module.index(out)
    for there in (done, page) if report else (done,):
        if there.exists() and not overwrite:
            raise ValueError(f"{there} exists: give another --out, or --overwrite")
    if report:
        storage.check_made_by(page.parent, "report")
    if done.exists() and page.exists() and not report:
        raise ValueError(f"{page} shows the predictions to be overwritten: give --report as well, or remove it")


def predict(
    path: Path,
    bundle: Path,
    out: Path,
    *,
    rule: str,
    overwrite: bool = False,
    report: bool = False,
    device: str = "auto",
    **how,
) -> None:
    """Write the predictions of the models in `bundle` for the DICOM files in `path` into the folder `out`.

    With `report`, a page that shows them is written as well. `how` holds the batch_size and the workers of Reader.
    Raises ValueError if no series can be read, and as `check_output` does.
    """
    check_output(out, overwrite, report)
    opened = model_bundle.read(bundle)
    results.chosen_thresholds(opened.packed, "slices", rule)
    pile = series_choice.read(path, skip=out)
    readings = read_studies(opened, pile, device=devices.pick_device(device), **how)
    if not any(part.chosen for part in readings):
        raise ValueError(f"{path}: no axial head CT series: {results.refusals(readings, pile.passed_over)}")
    about = results.about(
        opened.packed, opened.digest, [text for text, _ in series_choice.PREFERENCES], pile.passed_over
    )
    if report:
        members = {(one.study, one.series, one.slice_id): one.member for one in pile.slices}
        page_module.write(out, readings, pile.data, members, opened.packed, rule)
    results.write(out, readings, about, opened.packed, rule)
    n_read = sum(bool(part.chosen) for part in readings)
    n_slices = sum(int(part.is_read.sum()) for part in readings)
    cli.say(
        f"{out}: {n_slices} slices of {n_read} of {len(readings)} studies; {len(pile.passed_over)} files passed over\n"
        f"{opened.packed['intended_use']}"
    )
