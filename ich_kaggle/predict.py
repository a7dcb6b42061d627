"""Predict with each fold's model: the slices it never saw, the test slices, and the embeddings of both.

Reads:   work/runs/<run>/fold<k>/model.pt, work/cache/
Writes:  work/runs/<run>/fold<k>/  oof.parquet, test.parquet, embeddings.npy
         (embeddings: float16, row for row the slice table; NaN where a slice was not asked for)
         work/runs/<run>/fold<k>/explain/<method>/  with --explain: <slice_id>.png (the maps of the six labels below
         each other, each over the whole cached image and as bright as its own maximum), explain.json (written last)

With --dicom: the slices of DICOM files from anywhere, by an ensemble that was packed, as `scans` and `piles` say:
which series of a study is read, at which spacing, and what becomes of a slice that can't be read.
Reads:   the folder, zip or file of --dicom, and the file that python -m ich_kaggle.ensemble --export made
Writes:  predictions/  slices.csv, studies.csv (a study: largest and aggregate of its slices), predictions.json (all of
         it, what was not read and why, what it is for; written last); with --report also report/index.html, which
         shows the slices and what was found in them in any browser, offline
Example: python -m ich_kaggle.predict --run cpu --fold all
         python -m ich_kaggle.predict --run cpu --fold 0 --explain gradcam
         python -m ich_kaggle.predict --dicom scans.zip --models model.zip --threshold-rule recall_0.95
         python -m ich_kaggle.predict --dicom scans.zip --models model.zip --report
"""

import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, paths, storage, tables
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache
from ich_kaggle.learning import augment, devices, fit, predictions, saliency, slice_model, tasks
from ich_kaggle.scans import reader
from ich_kaggle.scoring import patient_folds

log = logging.getLogger(__name__)

OF_RUNS = {  # what says nothing to a pile of scans: each flag's name, and its default
    "--run": ("run", None),
    "--fold": ("fold", None),
    "--views": ("views", None),
    "--all-slices": ("all_slices", False),
    "--explain": ("method", None),
    "--studies": ("studies", None),
}


def chosen_studies(folder: Path, table: pd.DataFrame, n_studies: int) -> list[str]:
    """Return the studies of a fold, `table`, that are explained where none are named."""
    flags = f"--run {folder.parent.name} --fold {folder.name.removeprefix('fold')}"
    probability = tables.read_predictions(folder / "oof.parquet", table.slice_id.to_numpy(), flags)
    return saliency.choose(table.study_id.to_numpy(), tables.targets(table), probability, n_studies)


def explain_fold(
    project: Project, folder: Path, chosen: np.ndarray, *, method: str, batch_size: int, device, overwrite: bool
) -> None:
    """Write where the model in `folder` sees the labels in the `chosen` rows of the slice table, whole studies."""
    out, settings = folder / "explain" / method, {"method": method, "model": storage.file_hash(folder / "model.pt")}
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    saliency.begin(out, settings)
    part = project.slices[chosen]
    todo = part[~saliency.held(out, part)]
    if (out / saliency.DONE).exists() and not len(todo):
        cli.say(f"{out / saliency.DONE}{cli.THERE}")
        return
    model = slice_model.load(folder / "model.pt", device)
    config = model.config
    cache_dir = picture_cache.ensure(project, config.cache_size, config.crop)
    loader = tasks.slice_loader(todo, cache_dir, config, batch_size=batch_size, workers=project.workers)
    saliency.write(out, method, model, fit.batches(loader), todo.slice_id.tolist())
    saliency.finish(out, settings | {"cache": cache_dir.name}, project.slices)
    cli.say(f"{out}: maps of {len(todo)} slices of {todo.study_id.nunique()} studies")


def explain_run(
    project: Project,
    name: str,
    fold: list[int] | None,
    *,
    studies: list[str] | None,
    n_studies: int,
    device: str,
    **how,
) -> None:
    """Explain the models of a run on `studies` they never saw, or on those of each fold that `saliency.choose` names.

    Raises ValueError for a study that does not exist, or whose fold is not asked for.
    """
    run, table = project.run(name), project.slices
    wanted = project.finished(run, fold)
    of_study = dict(zip(table.study_id, project.fold.tolist(), strict=True))
    for study in studies or []:
        if study not in of_study:
            raise ValueError(f"no study {study} in {paths.slices(project.work_dir)}")
        if of_study[study] not in (-1, *wanted):
            raise ValueError(f"study {study} is in fold {of_study[study]}: only that fold's model never saw it")
    for k in wanted:
        named = studies or chosen_studies(run.fold(k), table[project.fold == k], n_studies)
        chosen = np.isin(project.fold, (-1, k)) & table.study_id.isin(named).to_numpy()
        if chosen.any():
            explain_fold(project, run.fold(k), chosen, device=devices.pick_device(device), **how)


def command(*, dicom: Path | None, bundle: Path | None, out: Path, rule: str, report: bool, **options) -> None:
    if (dicom is None) != (bundle is None):
        raise ValueError("--dicom and --models go together")
    if dicom is None:
        if report:
            raise ValueError("--report goes with --dicom; of runs it is python -m ich_kaggle.report")
        predict_run(
            **options
            | {
                "batch_size": options["batch_size"] or 64,
            }
        )
        return
    for flag, (name, default) in OF_RUNS.items():
        if options[name] != default:
            raise ValueError(f"{flag} is of runs, and says nothing to --dicom: leave one of them out")
    how = {key: options[key] for key in ("batch_size", "device", "workers", "overwrite")}
    reader.predict(dicom, bundle, out, rule=rule, report=report, **how)


def predict_run(
    *,
    data_dir: Path | None,
    work_dir: Path,
    workers: int,
    run: str | None,
    fold: list[int] | None,
    method: str | None,
    studies: list[str] | None,
    n_studies: int,
    **options,
) -> None:
    if method is None and studies:
        raise ValueError("--studies goes with --explain")
    project = Project(data_dir, work_dir, workers)
    patient_folds.ensure(project)
    run = run or project.only_run()
    if method is not None and project.run(run).begun:
        saliency.check(method, project.run(run).settings.get("arch", ""))
    predictions.predict_run(project, run, fold, **options)
    if method is not None:
        rest = {key: value for key, value in options.items() if key not in ("views", "all_slices")}
        explain_run(project, run, fold, method=method, studies=studies, n_studies=n_studies, **rest)


def build_parser():
    flags = ("--data-dir", "--work-dir", "--run", "--fold", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags, run=None)
    parser.add_argument(
        "--batch-size", type=cli.POSITIVE, help="slices in a step (default: 64, of --dicom on a CPU what fits)"
    )
    averaged = f"averaged (TTA; default: those of the run's predictions, else {' '.join(predictions.VIEWS)})"
    parser.add_argument("--views", nargs="+", choices=list(augment.VIEWS), help=averaged)
    parser.add_argument("--all-slices", action="store_true", help="embed the slices of the other folds as well")
    add = parser.add_argument
    add("--explain", dest="method", choices=saliency.METHODS, help="also write maps of where each label is seen")
    add("--studies", nargs="+", metavar="ID", help="explain these (default: each fold's --n-studies)")
    add(
        "--n-studies",
        type=cli.within(0, kind=int),
        default=10,
        help="studies of highest loss, and for each label one it is surest of",
    )
    add("--dicom", type=Path, metavar="PATH", help="predict this folder, zip or file of DICOM instead")
    add("--models", dest="bundle", type=Path, metavar="FILE", help="what predicts it, a packed ensemble")
    add("--out", type=Path, default=Path("predictions"), help="where that is written")
    add("--threshold-rule", dest="rule", default="f1", help="one of those that the models come with")
    add("--report", action="store_true", help="also write a page that shows the slices and what was found in them")
    return parser


def main(argv=None):
    cli.run(command, build_parser(), argv)


if __name__ == "__main__":
    main()
