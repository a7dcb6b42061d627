"""Blend runs by the competition's log loss over their out-of-fold predictions.

--method auto tries every way to blend and takes the one with the least nested loss, or equal weights where that gains
no more than one standard error over patients; a calibration for each label, and a clip, are kept by the same rule.
`plain` scores are of the slices that the blend was fitted on; `nested` ones are of folds that no part of it, the choice
included, has seen. In every run `any` is first raised to its largest subtype, so are the scores of single runs.

Reads:   work/runs/<run>/fold<k>/  oof.parquet, test.parquet  (predicted first where they are missing)
Writes:  work/ensemble/<name>/  weights.json, oof.parquet, nested.parquet, test.parquet
         with --export only one file: the models of every run that weighs in it and of those these read, how to blend
         them, thresholds; read by python -m ich_kaggle.predict --dicom
Example: python -m ich_kaggle.ensemble --runs cpu resnet50
         python -m ich_kaggle.ensemble --name cpu+resnet50 --export model.zip
"""

from pathlib import Path

from ich_kaggle.common import cli
from ich_kaggle.common.project import Project
from ich_kaggle.scans import model_bundle, on_demand
from ich_kaggle.scoring import ensembling, patient_folds


def ensemble(
    *,
    data_dir: Path | None,
    work_dir: Path,
    workers: int,
    export: Path | None,
    runs: list[str] | None,
    overwrite: bool,
    **options,
) -> None:
    project = Project(data_dir, work_dir, workers)
    if export is None:
        patient_folds.ensure(project)
        ensembling.blend_runs(project, runs, overwrite=overwrite, predict=on_demand.predict, **options)
        return
    if runs:
        raise ValueError("--export packs an ensemble that exists: give its --name, and no --runs")
    folder = model_bundle.choose_ensemble(work_dir, options["name"])
    if export.exists() and not (export.is_file() and overwrite):
        raise ValueError(f"{export} exists: give another file to --export, or --overwrite")
    model_bundle.export(project, folder, export)
    cli.say(f"{export}: {export.stat().st_size / 1e6:.1f} MB, the models of {folder}")


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--fold", "--seed", "--workers", "--overwrite")
    parser.add_argument("--runs", nargs="+", help="names of folders in work/runs (default: all)")
    parser.add_argument("--name", help="name of the ensemble (default: its runs' names)")
    parser.add_argument("--method", choices=ensembling.METHODS, default="auto", help="how to blend")
    parser.add_argument("--export", type=Path, metavar="FILE", help="pack the models of an ensemble that is there")
    parser.add_argument("--no-calibrate", dest="calibrate", action="store_false", help="blend, and no more")
    return parser


def main(argv=None):
    cli.run(ensemble, build_parser(), argv)


if __name__ == "__main__":
    main()
