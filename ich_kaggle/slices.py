"""Scan every DICOM header and the label table into the slice table, one sorted row per slice.

Training slices come before test slices, each in the order patient, study, series, position along the slice normal,
slice id. A training slice that cannot be read is left out; a test slice that cannot be read is an error.

Reads:   stage_2_train.csv, stage_2_sample_submission.csv, the headers in stage_2_train/ and stage_2_test/
Writes:  work/slices.parquet  (one row per slice: ids, position, split, path, six labels, header facts)
         work/defects.csv     (slice_id, path, defect, action)
Example: python -m ich_kaggle.slices --data-dir rsna-intracranial-hemorrhage-detection.zip
"""

from ich_kaggle.common import cli
from ich_kaggle.dicom import slice_table


def build_parser():
    flags = ("--data-dir", "--work-dir", "--workers", "--backend", "--scheduler", "--overwrite")
    parser = cli.command(__doc__, *flags)
    parser.add_argument("--pixels", action="store_true", help="also decode every pixel, to find blank slices now")
    parser.add_argument("--subset", action="store_true", help="use the slices that exist, of an incomplete download")
    return parser


def main(argv=None):
    cli.run(slice_table.make, build_parser(), argv)


if __name__ == "__main__":
    main()
