"""Predict the test slices with packed models within a time limit, and write the submission.

A pass is one model on one view of all test slices. As many passes are made as the time allows, in this order: the first
view of every model before the second view of any; the run with the greatest ensemble weight first; a second level after
the runs that it reads, to which its weight is added; the folds of a run in ascending order. If time is short, views are
left out first, then runs. The finished part of an interrupted pass counts, and the same command resumes it. A slice
that no pass has seen gets the mean of each label.

Reads:   the folder that `python -m ich_kaggle.kernel weights` packs, stage_2_sample_submission.csv, stage_2_test/
Writes:  submission.csv, verified (first with the means alone, then after each pass), partial/ beside it
         (logits, one file per pass), the work folder (slice table and cache of the test slices only, embeddings that a
         second level reads)
Example: python -m ich_kaggle.infer --models /kaggle/input/datasets/NAME/ich-models --hours 8
"""

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ich_kaggle.common import cli, paths, tables
from ich_kaggle.common.project import Project, opening
from ich_kaggle.dicom import picture_cache
from ich_kaggle.learning import devices, profiling, slice_model
from ich_kaggle.scans import passes, test_set

log = logging.getLogger(__name__)

TEST_ONLY = Path("work") / "infer"


def infer(
    project: Project,
    *,
    models_dir: Path,
    out: Path,
    hours: float,
    batch_size: int,
    device: str,
    now: Callable[[], float] = time.monotonic,
) -> None:
    budget, work_dir, workers = passes.Budget(now() + 3600 * hours, now), project.work_dir, project.workers
    packed, data = test_set.read_models(models_dir), paths.find_data(project.data_dir)
    if not out.exists():
        sample_ids = tables.read_long(data, paths.SAMPLE_CSV)[0]
        test_set.write(out, work_dir, data, sample_ids, np.tile(packed["mean"], (len(sample_ids), 1)))
    table, on = test_set.test_table(data, work_dir, workers), devices.pick_device(device)
    planned = passes.plan(packed, models_dir)
    work = passes.Work(packed, planned, table, out.parent / "partial", work_dir)

    def cached(config: slice_model.SliceConfig) -> Path:
        return picture_cache.ensure(project, config.cache_size, config.crop)

    began = now()
    test_set.write(out, work_dir, data, table.slice_id, test_set.blend(packed, work.values, len(table)))
    budget.end -= 2 * (now() - began)  # reserved for writing the submission once more
    how = dict(cached=cached, batch_size=batch_size, workers=workers, device=on)
    for again, one in itertools.product((False, True), planned):  # lost embeddings are made again last
        if work.make(one, budget, again=again, **how):
            test_set.write(out, work_dir, data, table.slice_id, test_set.blend(packed, work.values, len(table)))
            n, ms, left = work.n_done(one), 1000 * budget.rates[one.run], profiling.duration(budget.left)
            log.info("%s: %d of %d slices, %.1f ms each; %s left", one, n, len(table), ms, left)
    cli.say(f"{out}: {test_set.report(planned, {one: work.n_done(one) for one in planned}, len(table))}")


def build_parser():
    flags = ("--data-dir", "--work-dir", "--batch-size", "--device", "--workers")
    parser = cli.command(__doc__, *flags, work_dir=TEST_ONLY, batch_size=64)
    parser.add_argument("--models", dest="models_dir", type=Path, required=True, help="folder of the packed models")
    parser.add_argument("--hours", type=cli.within(0), default=8.0, help="time limit of the command")
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), help="submission to write")
    return parser


def main(argv=None):
    cli.run(opening(infer), build_parser(), argv)


if __name__ == "__main__":
    main()
