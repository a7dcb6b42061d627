"""Split the patients into folds that look alike.

--check fails on patients, studies and identical pixels that two folds, or train and test, share, and lists slices that
look the same. --from takes the folds of a CSV with a column `fold` and one of patient or slice ids.

Reads:   work/slices.parquet, with --check every DICOM once
Writes:  work/folds.csv  (patient_id, fold), work/folds.json; with --repeats also folds1.csv, ... for --from
         work/fingerprints.parquet with --check
Example: python -m ich_kaggle.folds --folds 5 --seed 0
         python -m ich_kaggle.folds --check
"""

from pathlib import Path

from ich_kaggle.common import cli, tables
from ich_kaggle.common.project import Project
from ich_kaggle.html import figures
from ich_kaggle.scoring import patient_folds


def folds(
    *, data_dir: Path | None, work_dir: Path, workers: int, check: bool = False, picture: Path | None = None, **options
) -> None:
    project = Project(data_dir, work_dir, workers)
    if check:
        patient_folds.run_check(project)
        return
    patient_folds.make(project, **options)
    if picture is not None:
        train = project.is_train
        figures.folds(picture, tables.targets(project.slices[train]), project.fold[train])


def build_parser():
    flags = ("--data-dir", "--work-dir", "--folds", "--seed", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags)
    parser.add_argument("--repeats", type=int, default=1, help="as many splits, each of another draw")
    parser.add_argument("--from", dest="source", type=Path, help="CSV of folds to take instead")
    parser.add_argument("--check", action="store_true", help="look for leaks in the folds that are there, and stop")
    parser.add_argument("--picture", type=Path, help="also draw the label rates per fold as this PNG")
    return parser


def main(argv=None):
    cli.run(folds, build_parser(), argv)


if __name__ == "__main__":
    main()
