"""Split the patients into folds, balanced by slices and labels.

--check fails if two folds, or train and test, share a patient, a study or identical pixels, and lists slices that look
alike. --from reads the folds from a CSV with a column `fold` and a column of patient or slice ids.

Reads:   work/slices.parquet; with --check the pixels of every DICOM file, once
Writes:  work/folds.csv  (patient_id, fold), work/folds.json
         work/folds1.csv, ... with --repeats; each can be given to --from
         work/fingerprints.parquet with --check
Example: python -m ich_kaggle.folds --folds 5 --seed 0
         python -m ich_kaggle.folds --check
"""

from pathlib import Path

from ich_kaggle.common import cli
from ich_kaggle.common.project import Project, opening
from ich_kaggle.scoring import patient_folds


def folds(project: Project, *, check: bool, **options) -> None:
    if check:
        patient_folds.run_check(project)
    else:
        patient_folds.make(project, **options)


def build_parser():
    flags = ("--data-dir", "--work-dir", "--folds", "--seed", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags)
    parser.add_argument("--repeats", type=cli.POSITIVE, default=1, help="number of splits, each of another draw")
    parser.add_argument("--from", dest="source", type=Path, help="CSV of folds to use instead of a new split")
    parser.add_argument("--check", action="store_true", help="look for leaks between the existing folds, and stop")
    return parser


def main(argv=None):
    cli.run(opening(folds), build_parser(), argv)


if __name__ == "__main__":
    main()
