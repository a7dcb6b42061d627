"""Predict the test slices with models that were packed elsewhere, in the time there is, and write the submission.

A pass is one model on one view of all test slices. The passes are made in this order, as many as there is time for:
the first view of every model before the second view of any; the run of the greatest ensemble weight first, a second
level behind those that it reads, which weigh what it weighs; the folds of a run from the first to the last. So what is
left out is views first, then runs. What a pass had done when the time was up counts, and is gone on from by the same
command. A slice that no pass has seen gets the mean of each label.

Reads:   the folder that `python -m ich_kaggle.kernel weights` packs, stage_2_sample_submission.csv, stage_2_test/
Writes:  submission.csv, verified (at once, with the means alone; then anew after each pass), partial/ beside it
         (logits, a file a pass), the work folder (slice table and cache of the test slices alone, embeddings that a
         second level reads)
Example: python -m ich_kaggle.infer --models /kaggle/input/datasets/NAME/ich-models --hours 8
"""

import itertools
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle import cache, ensemble, slices, submit
from ich_kaggle.common import cli, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.learning import devices, profiling, slice_model
from ich_kaggle.scans import model_bundle, passes
from ich_kaggle.scans.passes import Pass
from ich_kaggle.scoring import blending, nested_choice

log = logging.getLogger(__name__)

MODELS = model_bundle.MANIFEST
LEAST = 1e-6  # weight of a run that stands alone
TEST_ONLY = Path("work") / "infer"


def read_models(folder: Path) -> dict:
    """Return what is packed in `folder`. Raises FileNotFoundError, or ValueError naming what has changed."""
    path = folder / MODELS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: make the folder with python -m ich_kaggle.kernel weights")
    packed = storage.read_json(path)
    model_bundle.check(packed, path, passes.AGAIN)
    for run in packed["models"].values():
        for model in (model for model in run if "file" in model):
            file = folder / model["file"]
            if Path(model["file"]).name != model["file"] or not file.is_file():
                raise FileNotFoundError(f"{path} lists {model['file']}, which is not beside it: pack it again")
            if storage.file_hash(file) != model["hash"]:
                raise ValueError(f"{file} is not the file that was packed: upload the folder again")
    return packed


def test_table(data: paths.Data, work_dir: Path, workers: int) -> pd.DataFrame:
    """Return the slice table of the test slices alone, which makes `cache.ensure` cache no others.

    Raises ValueError if a slice is missing, or if that of `work_dir` is damaged, holds training slices, or is of other
    data.
    """
    path, wanted = paths.slices(work_dir), tables.read_long(data, paths.SAMPLE_CSV)[0]
    if not path.exists():
        table = slices.scan(data, "test", max(1, workers)).sort_values(slices.ORDER, ignore_index=True)
        if len(gone := np.setdiff1d(wanted, table.slice_id.to_numpy(str))):
            raise ValueError(f"{data.root}: {paths.SAMPLE_CSV} has {gone[0]}, stage_2_test has not: get it again")
        slices.write_defects(work_dir, table.loc[table.defect.notna(), slices.DEFECT_COLUMNS])
        table = table.drop(columns=["defect", "action"]).assign(**dict.fromkeys(LABELS, np.float32(np.nan)))
        tables.write_slices(work_dir, table, {"data_dir": str(data.root.absolute())})
    try:
        table = tables.read_slices(work_dir)
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}): remove it and run the same command again") from error
    if (table.split != "test").any():
        raise ValueError(f"{path} holds training slices: give another --work-dir")
    if len(gone := np.setdiff1d(wanted, table.slice_id.to_numpy(str))):
        raise ValueError(f"{path} lacks {gone[0]} of {data.root}: it is of other data: give another --work-dir")
    return table


def blend(packed: dict, values: dict[Pass, np.ndarray], n_slices: int) -> np.ndarray:
    """Return the ensemble's probabilities, (n_slices, 6): of each slice the mean over the folds that have seen it."""
    of_fold, folds = [], {run: [entry["fold"] for entry in entries] for run, entries in packed["models"].items()}
    for k in sorted({one.fold for one in values}):
        # A run without this fold stands in with the mean of those that it has.
        of_runs = {run: [k] if k in own else own for run, own in folds.items()}
        said = {run: passes.mean_of_known([passes.said(values, run, j) for j in own]) for run, own in of_runs.items()}
        of_fold.append(blend_fold(packed, said))
    out = passes.mean_of_known(of_fold)
    return blending.raise_any(np.where(np.isnan(out), np.tile(packed["mean"], (n_slices, 1)), out))


def blend_fold(packed: dict, probabilities: dict[str, np.ndarray]) -> np.ndarray:
    """Return the blend of the `probabilities` of each run, (n, 6), NaN where it has not seen a slice: (n, 6).

    As the ensemble was fitted, where all of its runs have seen the slice, else the mean by weight of those that have; a
    run that is only read by another one stands in where no other has.
    """
    stack = np.stack(list(probabilities.values()))
    weight = np.array([packed["runs"].get(run, 0.0) for run in probabilities])
    blended = [list(probabilities).index(run) for run in packed["runs"]]
    pipeline = nested_choice.from_json(packed["pipeline"], list(packed["runs"]))
    out = np.full(stack.shape[1:], np.nan, np.float32)
    known = ~np.isnan(stack[..., 0])
    for pattern in np.unique(known, axis=1).T:
        rows = (known == pattern[:, None]).all(axis=0)
        if pattern[blended].all():
            out[rows] = nested_choice.predict(pipeline, [blending.raise_any(stack[run][rows]) for run in blended])
        elif pattern.any():
            share = np.clip(weight[pattern], LEAST, None)
            out[rows] = ensemble.blend(
                share / share.sum(), [blending.raise_any(part) for part in stack[pattern][:, rows]]
            )
    return out


def write(out: Path, work_dir: Path, data: paths.Data, slice_ids: np.ndarray, probability: np.ndarray) -> None:
    """Write the submission `out`, which is replaced once the new one is verified."""
    draft = work_dir / out.name
    tables.write_submission(draft, data, slice_ids, probability)
    submit.verify(draft, data, quiet=True)
    with storage.writing(out) as temporary:
        shutil.copyfile(draft, temporary)


def report(planned: list[Pass], n_done: dict[Pass, int], n_slices: int) -> str:
    """Return a line on the passes that were made, and one on what was left out."""
    whole = [one for one in planned if n_done[one] == n_slices]
    left_out = [f"{one} ({n_done[one] / n_slices:.0%} done)" for one in planned if n_done[one] < n_slices]
    made = f"{len(whole)} of {len(planned)} passes over {n_slices} slices"
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
    budget = passes.Budget(now() + 3600 * hours, now)
    packed, data = read_models(models_dir), paths.find_data(data_dir)
    if not out.exists():
        sample_ids = tables.read_long(data, paths.SAMPLE_CSV)[0]
        write(out, work_dir, data, sample_ids, np.tile(packed["mean"], (len(sample_ids), 1)))
    table, on = test_table(data, work_dir, workers), devices.pick_device(device)
    project = Project(None, work_dir, workers)
    planned = passes.plan(packed, models_dir)
    work = passes.Work(packed, planned, table, out.parent / "partial", work_dir)

    def cached(config: slice_model.SliceConfig) -> Path:
        return cache.ensure(project, config.cache_size, config.crop)

    began = now()
    write(out, work_dir, data, table.slice_id, blend(packed, work.values, len(table)))
    budget.end -= 2 * (now() - began)  # for the last time it is written
    how = dict(cached=cached, batch_size=batch_size, workers=workers, device=on)
    for again, one in itertools.product((False, True), planned):  # what was lost once nothing else is left to make
        if work.make(one, budget, again=again, **how):
            write(out, work_dir, data, table.slice_id, blend(packed, work.values, len(table)))
            n, ms, left = work.n_done(one), 1000 * budget.rates[one.run], profiling.duration(budget.left)
            log.info("%s: %d of %d slices, %.1f ms each; %s left", one, n, len(table), ms, left)
    cli.say(f"{out}: {report(planned, {one: work.n_done(one) for one in planned}, len(table))}")


def build_parser():
    flags = ("--data-dir", "--work-dir", "--batch-size", "--device", "--workers")
    parser = cli.command(__doc__, *flags, work_dir=TEST_ONLY, batch_size=64)
    parser.add_argument("--models", dest="models_dir", type=Path, required=True, help="the folder of the models")
    parser.add_argument("--hours", type=cli.within(0), default=8.0, help="time for all of it")
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), help="the submission")
    return parser


def main(argv=None):
    cli.run(infer, build_parser(), argv)


if __name__ == "__main__":
    main()
