"""Blend runs by the competition's log loss over their out-of-fold predictions.

--method equal is the mean of the runs; shrunk is that mean drawn to the prevalence; stack is a logistic regression on
the runs, drawn to equal weights. auto is stack if it surely gains over shrunk on patients that it was not fitted to,
by more than one standard error and by more than few patients can feign, else shrunk. `plain` scores are on the slices
that the blend was fitted to; `nested` scores are on folds that neither the fit nor the choice has seen. In every run,
`any` is raised to the largest subtype first, for the scores of single runs as well.

Reads:   work/runs/<run>/fold<k>/ oof.parquet, test.parquet (predicted first if they are missing)
Writes:  work/ensemble/<name>/ weights.json, oof.parquet, nested.parquet, test.parquet
         with --export only FILE, a bundle for python -m ich_kaggle.scan: the models of every run with a
         weight and of the runs that these read, the blend, the thresholds, and hashes of the ids of the
         patients that they were fitted on, from which short ids can be guessed
Example: python -m ich_kaggle.ensemble --runs cpu resnet50
         python -m ich_kaggle.ensemble --name cpu+resnet50 --export model.zip
"""

import argparse
from pathlib import Path

from ich_kaggle.common import cli, paths, storage
from ich_kaggle.common.project import Project, opening
from ich_kaggle.scans import on_demand, packing
from ich_kaggle.scoring import ensembling, patient_folds


def ensemble(project: Project, *, export: Path | None, runs: list[str] | None, overwrite: bool, **options) -> None:
    if export is None:
        project.need_runs()
        patient_folds.ensure(project)
        ensembling.blend_runs(project, runs, overwrite=overwrite, predict=on_demand.predict, **options)
        if runs and (others := [run.name for run in project.runs() if run.finished and run.name not in runs]):
            cli.say(f"not blended: {', '.join(others)}")
        return
    if runs:
        raise ValueError("--export packs an existing ensemble: give --name instead of --runs")
    folder = packing.choose_ensemble(project.work_dir, options["name"])
    if export.exists() and not (export.is_file() and overwrite):
        raise ValueError(f"{export} exists: give another file to --export, or --overwrite")
    packing.export(project, folder, export)
    cli.say(f"{export}: {export.stat().st_size / 1e6:.1f} MB, the models of {folder}")


def recorded(options: argparse.Namespace) -> dict:
    """Return the options of the existing ensemble to be blended that is named, as flags; {} without one."""
    done = paths.ensemble(options.work_dir, options.name) / "weights.json" if options.name else None
    if done is None or options.export or not done.exists():
        return {}
    try:
        found = storage.read_json(done)
        return {**found["blended"], **ensembling.asked_of(done, found)}
    except ValueError:
        if options.overwrite:  # damaged, or of an older version: to be made anew with the flags that are given
            return {}
        raise


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--fold", "--seed", "--workers", "--overwrite")
    parser.add_argument("--runs", nargs="+", help="names of folders in work/runs (default: those of --name, or all)")
    parser.add_argument("--name", help="name of the ensemble (default: the names of its runs)")
    parser.add_argument("--method", choices=ensembling.METHODS, default="auto", help="method of the blend")
    parser.add_argument("--export", type=Path, metavar="FILE", help="pack the models of an existing ensemble")
    return parser


def main(argv=None):
    cli.run(opening(ensemble), build_parser(), argv, recorded)


if __name__ == "__main__":
    main()
