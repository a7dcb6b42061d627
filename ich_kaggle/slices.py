"""Scan every DICOM header and the label table into one sorted table of slices.

Order: patient, study, series, position along the slice normal; slices at one position go by their slice id.
Train slices that can't be read are left out; a test slice that can't be read stops the run with its name.

Reads:   stage_2_train.csv, stage_2_sample_submission.csv, the headers in stage_2_train/ and stage_2_test/
         (with --pixels every pixel: blank slices are found now, and not when the cache is made)
Writes:  work/slices.parquet  (a row a slice: ids, position, split, path, six labels, header facts)
         work/defects.csv     (slice_id, path, defect, action)
         work/report/data.html (with --report: counts, labels, headers, gray values, defects, sample studies)
Example: python -m ich_kaggle.slices --data-dir rsna-intracranial-hemorrhage-detection.zip
"""

from pathlib import Path

from ich_kaggle.common import cli, storage, tables
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import slice_table
from ich_kaggle.html import data_report


def report(data_dir: Path | None, work_dir: Path, seed: int) -> None:
    """Write the page on the slice table, its defects and some pixels, drawn by `seed`."""
    path = work_dir / "report" / "data.html"
    defects = slice_table.kinds_of(slice_table.read_defects(work_dir))
    text = data_report.make(
        slice_table.data_of(Project(data_dir, work_dir)), tables.read_slices(work_dir), defects, seed=seed
    )
    with storage.writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    cli.say(f"{path}: open it in a browser")


def command(*, is_report: bool, seed: int, **options) -> None:
    slice_table.make(**options)
    if is_report:
        report(options["data_dir"], options["work_dir"], seed)


def build_parser():
    flags = ("--data-dir", "--work-dir", "--seed", "--workers", "--backend", "--scheduler", "--overwrite")
    parser = cli.command(__doc__, *flags)
    parser.add_argument("--report", dest="is_report", action="store_true", help="write a page on the data as well")
    parser.add_argument("--pixels", action="store_true", help="read every pixel too, to find blank slices now")
    return parser


def main(argv=None):
    cli.run(command, build_parser(), argv)


if __name__ == "__main__":
    main()
