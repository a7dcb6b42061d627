"""Passes over slices with the models of an ensemble, as many as the time allows, each kept in a file.

A pass is a slice model on one view of all slices, or a second level on the results of the passes that it reads. A pass
that was cut short is resumed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle.common import run_predictions, series_rows, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.learning import augment, predictions, tasks
from ich_kaggle.scans import engine, model_bundle

AGAIN = "pack it again with python -m ich_kaggle.kernel weights"
CHUNK = 2048  # slices, and the rest of their series: a pass is saved after each chunk


class Pass(NamedTuple):
    run: str
    fold: int
    view: str  # of a second level: the number of views that it reads
    path: Path | None  # of the model; a smoothing has none
    digest: str  # of the model, its settings, and the passes that it reads
    reads: tuple["Pass", ...] = ()

    def __str__(self) -> str:
        return f"{self.run} fold {self.fold}, {self.view}"


@dataclass
class Budget:
    """The time until `end` by the clock `now`, and the time per slice of each run, in seconds."""

    end: float
    now: Callable[[], float]
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.end - self.now()

    def allows(self, run: str, n_slices: int) -> bool:
        return n_slices * self.rates.get(run, 0) < self.left


def plan(packed: dict, folder: str | Path) -> list[Pass]:
    """Return all passes of the runs `packed` in `folder`, in the order of execution."""
    folder = Path(folder)
    passes = []
    for turn in range(max(map(len, packed["views"].values()))):
        for run in by_weight(packed):
            if turn < n_turns(packed, run):
                passes += [new_pass(packed, folder, run, entry, turn, passes) for entry in packed["models"][run]]
    return passes


def by_weight(packed: dict) -> list[str]:
    """Return all runs by descending weight. The weight of a second level is added to that of the runs that it reads."""
    weight = dict.fromkeys(packed["models"], 0.0) | {run: abs(part) for run, part in packed["runs"].items()}
    for run in reversed(packed["models"]):  # each is listed after those that it reads
        for read in packed["options"][run].get("on", []):
            weight[read] += weight[run]
    return sorted(weight, key=lambda run: -weight[run])


def n_turns(packed: dict, run: str) -> int:
    reads = packed["options"][run].get("on", [])
    return max(n_turns(packed, read) for read in reads) if reads else len(packed["views"][run])


def new_pass(packed: dict, folder: Path, run: str, entry: dict, turn: int, before: list[Pass]) -> Pass:
    on, path = packed["options"][run].get("on"), folder / entry["file"] if "file" in entry else None
    if not on:
        if (view := packed["views"][run][turn]) not in augment.VIEWS:
            raise ValueError(
                f"{folder / model_bundle.MANIFEST}: {run} was predicted with the unknown view {view}: {AGAIN}"
            )
        return Pass(run, entry["fold"], view, path, entry["hash"])
    reads = tuple(one for one in before if one.run in on and one.fold == entry["fold"])
    made_by = json.dumps([packed["options"][run], entry, sorted((str(one), one.digest) for one in reads)])
    digest = hashlib.sha256(made_by.encode()).hexdigest()[:12]
    return Pass(run, entry["fold"], f"{turn + 1}-view" + "s" * (turn > 0), path, digest, reads)


def chunks(series_id: np.ndarray, size: int) -> list[slice]:
    """Return the rows in ranges of whole series, each but the last of `size` rows or slightly more."""
    series_id = np.asarray(series_id)
    stops = [0]
    for stop in np.flatnonzero(np.append(series_id[1:] != series_id[:-1], True)) + 1:
        if stop - stops[-1] >= size or stop == len(series_id):
            stops.append(int(stop))
    return [slice(start, stop) for start, stop in zip(stops, stops[1:], strict=False)]


def mean_of_known(parts: list[np.ndarray]) -> np.ndarray:
    """Return the mean of arrays (n, m), each where it is not NaN; NaN where all are."""
    stack = np.stack(parts)
    n_known = (~np.isnan(stack)).sum(axis=0)
    return np.nansum(stack, axis=0, dtype=np.float32) / np.where(n_known, n_known, np.nan).astype(np.float32)


def said(values: dict[Pass, np.ndarray], run: str, k: int) -> np.ndarray:
    """Return the probabilities of the model of fold `k` of `run`, (n, 6), NaN where no pass has seen a slice.

    `values` holds the logits of slice models, of which the mean over the views is taken, and the probabilities of
    second levels, of which the last is taken.
    """
    of_run = {one: part for one, part in values.items() if (one.run, one.fold) == (run, k)}
    parts = list(of_run.values())
    if not any(one.reads for one in of_run):
        return expit(mean_of_known(parts))
    last = parts[0].copy()
    for part in parts[1:]:
        np.copyto(last, part, where=~np.isnan(part))
    return last


class Work:
    """The results of passes over the slices of `table`, in files named after the models and the slices.

    `values` are logits, or probabilities of second levels, float32 (n_slices, 6) in `folder`, NaN where a pass has not
    seen a slice. The embeddings that some network has yet to read, float16 (n_slices, d), are in `scratch`.
    """

    def __init__(self, packed: dict, passes: list[Pass], table: pd.DataFrame, folder: Path, scratch: Path):
        self.packed, self.table = packed, table
        same = tables.slices_hash(table)
        names = {one: f"{one.run}-fold{one.fold}-{one.view}-{one.digest}-{same}.npy" for one in passes}
        self.values = {one: self.opened(folder / name, len(LABELS), np.float32) for one, name in names.items()}
        self.readers = {}  # the networks that read the embeddings of a pass
        for one in passes:
            for read in one.reads if self.reads_embeddings(one) else ():
                self.readers.setdefault(read, []).append(one)
        self.kept = {one: scratch / "embeddings" / names[one] for one in self.readers}
        self.is_lost = {one: self.still_to_be_read(one) & ~self.has_embeddings(one) for one in self.readers}

    def options(self, one: Pass) -> dict:
        return self.packed["options"][one.run]

    def reads_embeddings(self, one: Pass) -> bool:
        return one.path is not None and self.options(one).get("features") == "fold"

    def opened(self, path: Path, width: int | None, dtype: type) -> np.ndarray:
        """Return the array (n_slices, width) in the file `path`, which is created if it is missing.

        Raises ValueError naming a file that is damaged or of another shape or type.
        """
        if not path.exists():
            with storage.writing(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.full((len(self.table), width), np.nan, dtype))
        with storage.reading(path, "remove it and run the same command again"):
            found = np.lib.format.open_memmap(path, "r")  # to write to, it would fill a file cut short with zeros
        wanted = len(self.table), width or found.shape[-1]
        if found.shape != wanted or found.dtype != dtype:
            what = f"{found.dtype} {found.shape}, not {np.dtype(dtype)} {wanted}"
            raise ValueError(f"{path}: {what}: remove it and run the same command again")
        return np.lib.format.open_memmap(path, "r+")

    def embeddings(self, one: Pass, width: int | None = None) -> np.ndarray:
        return self.opened(self.kept[one], width, np.float16)

    def has_embeddings(self, one: Pass) -> np.ndarray:
        if not self.kept[one].exists():
            return np.zeros(len(self.table), bool)
        return ~np.isnan(self.embeddings(one)[:, 0])

    def still_to_be_read(self, one: Pass) -> np.ndarray:
        """Return for each slice whether some network has yet to read its embedding: bool (n_slices,)."""
        return ~np.all([self.is_done(reader) for reader in self.readers[one]], axis=0)

    def is_done(self, one: Pass, rows: slice = slice(None)) -> np.ndarray:
        return ~np.isnan(self.values[one][rows, 0])

    def n_done(self, one: Pass) -> int:
        return int(self.is_done(one).sum())

    def is_whole(self, one: Pass, rows: slice) -> bool:
        is_lost = one in self.is_lost and self.is_lost[one][rows].any()
        return bool(self.is_done(one, rows).all()) and not is_lost

    def make(self, one: Pass, budget: Budget, *, again: bool = False, **how) -> bool:
        """Make the missing chunks of a pass while there is time, and tell whether any was made.

        A second level runs on chunks whose inputs are complete. Chunks that lack nothing but their embeddings are made
        only with `again`. `how` are further arguments of `by_slices`.
        """
        parts = chunks(self.table.series_id, CHUNK)
        todo = [rows for rows in parts if not (self.is_whole(one, rows) if again else self.is_done(one, rows).all())]
        todo = [rows for rows in todo if all(self.is_whole(read, rows) for read in one.reads)]
        n_rows = [rows.stop - rows.start for rows in todo]
        if not todo or not budget.allows(one.run, n_rows[0]):
            return False  # before anything is loaded for it
        made = self.by_level(one, todo, how["device"]) if one.reads else self.by_slices(one, todo, budget, **how)
        n_made = 0
        with closing(made):
            for rows, n in zip(todo, n_rows, strict=True):
                if not budget.allows(one.run, n):
                    break
                began = budget.now()
                if (found := next(made, None)) is None:
                    break
                self.values[one][rows] = found
                budget.rates[one.run] = (budget.now() - began) / n
                n_made += 1
        for read in one.reads:
            self.tidy(read)
        return n_made > 0

    def tidy(self, one: Pass) -> None:
        """Remove the embeddings of a pass, by far the largest file, once every network has read them."""
        if one in self.kept and not self.still_to_be_read(one).any():
            self.kept[one].unlink(missing_ok=True)

    def load(self, one: Pass, device) -> engine.Model:
        return engine.load(self.packed, lambda _: one.path, device, AGAIN, one.run, one.fold)

    def by_slices(
        self, one: Pass, todo: list[slice], budget: Budget, *, cached: Callable, batch_size: int, workers: int, device
    ) -> Iterator[np.ndarray]:
        """Return an iterator over the logits of each of `todo` by a slice model, which ends when the time is up.

        `cached(config)` returns the folder of the pictures that the model sees.
        """
        model = self.load(one, device)  # now, so that the first of `todo` is not timed with it
        kept = self.embeddings(one, model.embedding_size) if one in self.kept else None
        table, sizes = pd.concat([self.table.iloc[rows] for rows in todo]), [rows.stop - rows.start for rows in todo]
        how = dict(batch_size=batch_size, workers=workers, sizes=sizes)
        loader = tasks.slice_loader(table, cached(model.config), model.config, **how)
        parts = dict(sizes=sizes, what=str(one), is_late=lambda: budget.left < 0)
        found = predictions.run_model(model, loader, [one.view], device, **parts)
        return self.keep(one, kept, todo, found)

    def keep(self, one: Pass, kept: np.ndarray | None, todo: list[slice], found: Iterator) -> Iterator[np.ndarray]:
        """Yield the logits in `found` of each of `todo`, and write its embeddings into `kept`, unless that is None."""
        with closing(found):
            for rows, (logits, embeddings) in zip(todo, found, strict=False):
                if kept is not None:
                    kept[rows], self.is_lost[one][rows] = embeddings, False
                yield logits

    def by_level(self, one: Pass, todo: list[slice], device) -> Iterator[np.ndarray]:
        """Return an iterator over the probabilities of each of `todo` by a second level."""
        fitted, on = self.load(one, device), self.options(one)["on"]
        kept = {read: self.embeddings(read) for read in one.reads} if self.reads_embeddings(one) else {}

        def ask(rows: slice) -> np.ndarray:
            table = self.table.iloc[rows]
            return fitted.ask(
                [self.mean_embeddings(kept, run, rows) for run in on] if kept else [],
                np.stack([self.read_logits(one, run, rows) for run in on], axis=1),
                table.position.to_numpy(float),
                series_rows.number(table.series_id),
            )

        return (ask(rows) for rows in todo)

    def read_logits(self, one: Pass, run: str, rows: slice) -> np.ndarray:
        """Return the logits of `run` that the second level `one` reads: float32 (n, 6)."""
        known = {read: self.values[read][rows] for read in one.reads if read.run == run}
        if self.options(one)["features"] == "fold":  # those of the mean embedding: the head of a network is linear
            return mean_of_known(list(known.values()))
        return run_predictions.logits(said(known, run, one.fold))

    @staticmethod
    def mean_embeddings(kept: dict[Pass, np.ndarray], run: str, rows: slice) -> np.ndarray:
        return mean_of_known([part[rows] for read, part in kept.items() if read.run == run]).astype(np.float16)
