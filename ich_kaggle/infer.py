"""Predict the test slices with models that were packed elsewhere, in the time there is, and write the submission.

A pass is one model on one view of all test slices. The passes are made in this order, as many as there is time for:
the first view of every model before the second view of any; the run of the greatest ensemble weight first; the folds
of a run from the first to the last. So what is left out is views first, then runs. What a pass had done when the time
was up counts, and is gone on from by the same command. A slice that no pass has seen gets the mean of each label.

Reads:   the folder that `python -m ich_kaggle.kernel weights` packs, stage_2_sample_submission.csv, stage_2_test/
Writes:  submission.csv, verified (at once, with the means alone; then anew after each pass), partial/ beside it
         (logits, a file a pass), the work folder (slice table and cache of the test slices alone)
Example: python -m ich_kaggle.infer --models /kaggle/input/datasets/NAME/ich-models --hours 8
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from ich_kaggle import (
    augment,
    blending,
    cache,
    cli,
    devices,
    disk,
    ensemble,
    gauges,
    models,
    packing,
    paths,
    selection,
    slices,
    submit,
    tables,
    tasks,
    training,
)
from ich_kaggle.labels import LABELS

log = logging.getLogger(__name__)

MODELS = packing.MANIFEST
LEAST = 1e-6  # weight of a run that stands alone
CHUNK = 2048  # slices, and the rest of their series: what is done of a pass is kept in steps of it
TEST_ONLY = Path("work") / "infer"


class Pass(NamedTuple):
    run: str
    fold: int
    view: str
    path: Path  # of the model
    digest: str  # of that file

    def __str__(self) -> str:
        return f"{self.run} fold {self.fold}, {self.view}"


@dataclass
class Budget:
    """The time until `end`, and what a slice has taken each run: s, by the clock `now`."""

    end: float
    now: Callable[[], float]
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.end - self.now()

    def allows(self, run: str, n_slices: int) -> bool:
        return n_slices * self.rates.get(run, 0) < self.left


def read_models(folder: Path) -> dict:
    """Return what is packed in `folder`. Raises FileNotFoundError, or ValueError naming a file that has changed."""
    path = folder / MODELS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: make the folder with python -m ich_kaggle.kernel weights")
    packed = disk.read_json(path)
    for run in packed["models"].values():
        for model in run:
            file = folder / model["file"]
            if Path(model["file"]).name != model["file"] or not file.is_file():
                raise FileNotFoundError(f"{path} lists {model['file']}, which is not beside it: pack it again")
            if disk.file_hash(file) != model["hash"]:
                raise ValueError(f"{file} is not the file that was packed: upload the folder again")
    return packed


def plan(packed: dict, folder: Path) -> list[Pass]:
    """Return all passes in the order in which they are made."""
    weights, views = packed["runs"], packed["views"]
    runs = sorted(weights, key=lambda run: -weights[run])
    return [
        Pass(run, model["fold"], views[run][turn], folder / model["file"], model["hash"])
        for turn in range(max(map(len, views.values())))
        for run in runs
        for model in packed["models"][run]
        if turn < len(views[run])
    ]


def test_table(data: paths.Data, work_dir: Path, workers: int) -> pd.DataFrame:
    """Return the slice table of the test slices alone, which makes `cache.ensure` cache no others.

    Raises ValueError if that of `work_dir` holds training slices.
    """
    path = paths.slices(work_dir)
    if not path.exists():
        table = slices.scan(data, "test", workers).sort_values(slices.ORDER, ignore_index=True)
        slices.write_defects(work_dir, table.loc[table.defect.notna(), slices.DEFECT_COLUMNS])
        table = table.drop(columns=["defect", "action"]).assign(**dict.fromkeys(LABELS, np.float32(np.nan)))
        tables.write_slices(work_dir, table, {"data_dir": str(data.root.absolute())})
    table = tables.read_slices(work_dir)
    if (table.split != "test").any():
        raise ValueError(f"{path} holds training slices: give another --work-dir")
    return table


def chunks(series_id: np.ndarray, size: int) -> list[slice]:
    """Return the rows in ranges of whole series, `size` rows or a little more in each but the last."""
    series_id = np.asarray(series_id)
    stops = [0]
    for stop in np.flatnonzero(np.append(series_id[1:] != series_id[:-1], True)) + 1:
        if stop - stops[-1] >= size or stop == len(series_id):
            stops.append(int(stop))
    return [slice(start, stop) for start, stop in zip(stops, stops[1:], strict=False)]


def open_logits(one: Pass, folder: Path, table: pd.DataFrame) -> np.ndarray:
    """Return the logits of a pass in its file, float32 (n_slices, 6), NaN where it has not been; made if missing.

    The file is named after the model's bytes and the slices, so that no others are gone on from.
    """
    path = folder / f"{one.run}-fold{one.fold}-{one.view}-{one.digest}-{tables.slices_hash(table)}.npy"
    if not path.exists():
        with disk.writing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.full((len(table), len(LABELS)), np.nan, np.float32))
    return np.lib.format.open_memmap(path, "r+")


def make(one: Pass, logits: np.ndarray, table: pd.DataFrame, load: Callable, device, budget: Budget) -> Iterator[int]:
    """Fill in `logits` with what a pass lacks, while there is time; yield the slices done so far after each chunk.

    `load(rows, config)` returns a loader of rows of the table.
    """
    open_chunks = [rows for rows in chunks(table.series_id, CHUNK) if np.isnan(logits[rows]).any()]
    n_open = sum(rows.stop - rows.start for rows in open_chunks)
    model = models.load(one.path, device) if open_chunks else None
    for rows in open_chunks:
        n_rows = rows.stop - rows.start
        if not budget.allows(one.run, n_rows):
            return
        loader, found = load(rows, model.config), []  # caches, which is not to be timed, the first time
        began = budget.now()
        for part, _ in training.outputs(model, loader, device, [augment.VIEWS[one.view]], str(one)):
            found.append(part)
            if budget.left < 0:
                return
        logits[rows] = np.concatenate(found)
        budget.rates[one.run] = (budget.now() - began) / n_rows
        n_open -= n_rows
        yield len(logits) - n_open


def mean_of_known(parts: list[np.ndarray]) -> np.ndarray:
    """Return the mean of arrays (n, 6), each where it is not NaN; NaN where all are."""
    stack = np.stack(parts)
    n_known = (~np.isnan(stack)).sum(axis=0)
    return np.nansum(stack, axis=0) / np.where(n_known, n_known, np.nan).astype(np.float32)


def blend(packed: dict, logits: dict[Pass, np.ndarray], n_slices: int) -> np.ndarray:
    """Return the ensemble's probabilities, (n_slices, 6): of each slice the mean over the folds that have seen it."""
    runs = list(packed["runs"])
    of_fold = []
    for k in sorted({one.fold for one in logits}):
        of_run = [[part for one, part in logits.items() if (one.run, one.fold) == (run, k)] for run in runs]
        of_fold.append(blend_fold(packed, np.stack([expit(mean_of_known(parts)) for parts in of_run])))
    out = mean_of_known(of_fold)
    return blending.raise_any(np.where(np.isnan(out), np.tile(packed["mean"], (n_slices, 1)), out))


def blend_fold(packed: dict, probabilities: np.ndarray) -> np.ndarray:
    """Return the blend of `probabilities` (n_runs, n, 6), in which a run that has not seen a slice is NaN: (n, 6).

    As the ensemble was fitted, where all runs have seen the slice, else the mean by weight of those that have.
    """
    runs, weights = list(packed["runs"]), np.array(list(packed["runs"].values()))
    out = np.full(probabilities.shape[1:], np.nan, np.float32)
    known = ~np.isnan(probabilities[..., 0])
    for pattern in np.unique(known, axis=1).T:
        rows = (known == pattern[:, None]).all(axis=0)
        seen = [blending.raise_any(part) for part in probabilities[pattern][:, rows]]
        if pattern.all():
            out[rows] = selection.predict(selection.from_json(packed["pipeline"], runs), seen)
        elif pattern.any():
            share = np.clip(weights[pattern], LEAST, None)
            out[rows] = ensemble.blend(share / share.sum(), seen)
    return out


def write(out: Path, work_dir: Path, data: paths.Data, slice_ids: np.ndarray, probability: np.ndarray) -> None:
    """Write the submission `out`, which is replaced once the new one is verified."""
    draft = work_dir / out.name
    tables.write_submission(draft, data, slice_ids, probability)
    submit.verify(draft, data)
    with disk.writing(out) as temporary:
        shutil.copyfile(draft, temporary)


def report(passes: list[Pass], n_done: dict[Pass, int], n_slices: int) -> str:
    """Return a line on the passes that were made, and one on what was left out."""
    whole = [one for one in passes if n_done[one] == n_slices]
    left_out = [f"{one} ({n_done[one] / n_slices:.0%} done)" for one in passes if n_done[one] < n_slices]
    made = f"{len(whole)} of {len(passes)} passes over {n_slices} slices"
    return f"{made}; left out for lack of time: {'; '.join(left_out)}" if left_out else made


def infer(
    *,
    models_dir: Path,
    data_dir: Path | None,
    work_dir: Path,
    out: Path,
    hours: float,
    batch_size: int,
    device: str,
    workers: int,
    now: Callable[[], float] = time.monotonic,
) -> None:
    budget = Budget(now() + 3600 * hours, now)
    packed, data = read_models(models_dir), paths.find_data(data_dir)
    if not out.exists():
        sample_ids = tables.read_long(data, paths.SAMPLE_CSV)[0]
        write(out, work_dir, data, sample_ids, np.tile(packed["mean"], (len(sample_ids), 1)))
    table, on = test_table(data, work_dir, workers), devices.pick_device(device)
    passes = plan(packed, models_dir)
    logits = {one: open_logits(one, out.parent / "partial", table) for one in passes}
    n_done = {one: int((~np.isnan(values[:, 0])).sum()) for one, values in logits.items()}
    began = now()
    write(out, work_dir, data, table.slice_id, blend(packed, logits, len(table)))
    budget.end -= 2 * (now() - began)  # for the last time it is written

    def load(rows: slice, config: models.SliceConfig):
        folder = cache.ensure(None, work_dir, config.cache_size, workers, config.crop)
        return tasks.slice_loader(table.iloc[rows], folder, config, batch_size=batch_size, workers=workers)

    for one in passes:
        before = n_done[one]
        for n in make(one, logits[one], table, load, on, budget):
            n_done[one] = n
        if n_done[one] > before:
            write(out, work_dir, data, table.slice_id, blend(packed, logits, len(table)))
            n, ms, left = n_done[one], 1000 * budget.rates[one.run], gauges.duration(budget.left)
            log.info("%s: %d of %d slices, %.1f ms each; %s left", one, n, len(table), ms, left)
    cli.say(f"{out}: {report(passes, n_done, len(table))}")


def build_parser():
    flags = ("--data-dir", "--work-dir", "--batch-size", "--device", "--workers")
    parser = cli.command(__doc__, *flags, work_dir=TEST_ONLY, batch_size=64)
    parser.add_argument("--models", dest="models_dir", type=Path, required=True, help="the folder of the models")
    parser.add_argument("--hours", type=float, default=8.0, help="time for all of it")
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), help="the submission")
    return parser


def main(argv=None):
    cli.run(infer, build_parser(), argv)


if __name__ == "__main__":
    main()
