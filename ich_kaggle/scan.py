"""Predict head CT from any DICOM source with an exported ensemble: probabilities per slice and per study.

One series is read per study: the axial series that is most like the training data, without contrast medium if there is
one. --series reads another, and --dry-run shows the choice. What leaves doubt about a series is noted. Slices that
cannot be decoded keep their row, without probabilities. predictions.json records the series that were refused, the
files that were skipped and the reason for each. All files can be read by their owner only.

Links to folders are followed, each folder once, also where they lead out of the folder of --dicom. If files under one
StudyInstanceUID name several patients, each patient's are a study of their own: `UID, patient 1`, numbered in the order
of the PatientIDs. These are not written themselves, but the names of files are.

Reads:   the folder, zip or file of --dicom, and a bundle: of `ensemble --export`, or work/pretrained/<name>.zip
Writes:  predictions/  slices.csv, studies.csv (per study the maximum and the aggregate of its slices),
         predictions.json (everything, with its intended use; written last); with --report also report/index.html,
         which shows the slices with their predictions in any browser, offline
Example: python -m ich_kaggle.scan --dicom scans.zip --models model.zip
         python -m ich_kaggle.scan --dicom scans.zip --models model.zip --threshold-rule recall_0.95 --report
"""

from pathlib import Path

from ich_kaggle.common import cli
from ich_kaggle.scans import reader, slices


def build_parser():
    parser = cli.command(__doc__, "--device", "--workers", "--overwrite")
    add = parser.add_argument
    add("--dicom", dest="path", type=Path, metavar="PATH", required=True, help="folder, zip or file of DICOM")
    add(
        "--models", dest="bundle", type=Path, metavar="FILE", required=True, help="bundle of an ensemble or of pretrain"
    )
    add("--out", type=Path, default=Path("predictions"), help="folder of the predictions")
    add("--threshold-rule", dest="rule", default="f1", help="rule of the thresholds, one of those in the bundle")
    add("--series", nargs="+", default=[], metavar="UID", help="series to read in their studies, whatever their part")
    add("--any-body-part", action="store_true", help="also read series that are not of a head")
    add("--dry-run", action="store_true", help="print the choice of series, and stop")
    add("--report", action="store_true", help="also write a page that shows the slices with their predictions")
    add("--batch-size", type=cli.POSITIVE, help="slices per step (default: 64, fewer on a CPU)")
    return parser


def scan(*, series: list[str], any_body_part: bool, **options) -> None:
    reader.predict(wanted=slices.Wanted(tuple(series), any_body_part), **options)


def main(argv=None):
    cli.run(scan, build_parser(), argv)


if __name__ == "__main__":
    main()
