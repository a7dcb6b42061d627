"""Blend the runs, write the submission, verify it, submit it to Kaggle, wait for its scores and record them.

Reads:   work/slices.parquet, work/ensemble/NAME/, stage_2_sample_submission.csv, Kaggle's credentials
Writes:  submissions/<UTC time>-NAME.csv, submissions/history.csv
Example: python -m ich_kaggle.submit -m "five folds, two backbones"
         python -m ich_kaggle.submit --dry-run
         python -m ich_kaggle.submit --history
"""

import logging
from collections.abc import Callable
from pathlib import Path

from ich_kaggle.common import cli, paths, tables
from ich_kaggle.common.project import Project, opening
from ich_kaggle.dicom import slice_table
from ich_kaggle.kaggle_api import client, submission_log, submissions
from ich_kaggle.scans import on_demand
from ich_kaggle.scoring import ensembling, patient_folds

log = logging.getLogger(__name__)


def blend(project: Project, name: str | None, run: str | None, fold: list[int] | None) -> Path:
    """Return the folder of the ensemble `name`, or of a blend of `run` alone or of all runs, made where needed.

    The ensemble `name` is blended anew, with its own settings, if the predictions of its runs have changed.
    """
    if name is None:
        project.need_runs()
        patient_folds.ensure(project)
        return ensembling.blend_runs(project, None if run is None else [run], fold=fold, predict=on_demand.predict)
    if fold is not None:
        raise ValueError("--fold applies to runs, not to --ensemble: it has the folds that it was blended from")
    return ensembling.refresh(project, name, on_demand.predict)


def check_subset(project: Project) -> None:
    """Raise ValueError if the slices are a subset without all test slices, which a submission needs."""
    table = paths.slices(project.work_dir)
    if not (table.exists() and (part := tables.settings_of(table).get("subset"))):
        return
    listed = tables.read_long(slice_table.data_of(project), paths.SAMPLE_CSV)[0]
    if (project.slices.split == "test").sum() < len(listed):
        again = "get the others, then run python -m ich_kaggle.slices --subset again (evaluate works without them)"
        raise ValueError(f"the slices are a subset, {part}, and Kaggle wants all test slices: {again}")


def prepare(
    project: Project,
    submissions_dir: Path,
    *,
    name: str | None,
    run: str | None,
    fold: list[int] | None,
    file: Path | None,
) -> tuple[Path, submissions.Source, paths.Data]:
    """Return the CSV of the ensemble `name`, of a `run`, or of all runs, or the `file`; its source; the data."""
    if file is None:
        check_subset(project)
        folder = blend(project, name, run, fold)
        data = slice_table.data_of(project)
        return *submissions.make(folder, project, data, submissions_dir), data
    has_table = paths.slices(project.work_dir).exists()
    data = slice_table.data_of(project) if has_table else paths.find_data(project.data_dir)
    return submissions.taken(file, data, submissions_dir), submissions.Source(file.name.partition(".")[0]), data


def submit(
    project: Project, submissions_dir: Path, *, message: str | None, dry_run: bool, delivery: dict, **which
) -> None:
    """Make, verify and deliver a submission: `which` one, see `prepare`; `delivery`, see `submissions.deliver`."""
    path, source, data = prepare(project, submissions_dir, **which)
    digest = submissions.verify(path, data, source.mean)
    if not dry_run:
        facts = dict(name=source.name, file=path.name, sha256=digest, runs=source.runs, oof=source.oof)
        row = submission_log.new_row(message or f"{source.name}, out of fold {source.oof or 'unknown'}", **facts)
        submissions.deliver(path, row, submissions_dir / "history.csv", **delivery)


def command(
    project: Project,
    *,
    status: bool,
    history: bool,
    submissions_dir: Path,
    connect: Callable = client.connect,
    **options,
) -> None:
    history_csv = submissions_dir / "history.csv"
    if history:
        submissions.show_history(history_csv)
    elif status:
        submissions.show_status(connect(), history_csv)
    else:
        delivery = {key: options.pop(key) for key in ("again", "no_wait")} | {"connect": connect}
        submit(project, submissions_dir, delivery=delivery, **options)


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--fold", "--workers")
    add = parser.add_argument
    add("--submissions-dir", type=Path, default=Path("submissions"), help="folder of the CSVs and of the history")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ensemble", dest="name", help="folder in work/ensemble (default: a blend of all runs)")
    what.add_argument("--run", help="submit one run alone")
    what.add_argument("--file", type=Path, help="submit this CSV, also one in .gz or .zip, or in another order")
    add("-m", "--message", help="description of the submission (default: its name and out-of-fold loss)")
    add("--no-wait", action="store_true", help="do not wait for the scores: --status asks for them later")
    add("--again", action="store_true", help="submit even if Kaggle already has this file")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="write and verify the CSV, and stop before the network")
    instead.add_argument("--status", action="store_true", help="print the latest submissions at Kaggle, and exit")
    instead.add_argument("--history", action="store_true", help="print history.csv, and exit")
    return parser


def main(argv=None):
    cli.run(opening(command), build_parser(), argv)


if __name__ == "__main__":
    main()
