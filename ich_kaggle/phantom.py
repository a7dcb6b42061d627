"""Make a synthetic competition: head-CT phantoms with hemorrhages, as DICOM files in Kaggle's layout.

Every patient has an anatomy of their own. Lesions come in the five kinds of the labels, and single slices of them are
as ambiguous as real ones. The same seed gives the same bytes, whatever the number of workers.

Reads:   nothing
Writes:  <out>/stage_2_train/*.dcm, stage_2_test/*.dcm, stage_2_train.csv, stage_2_sample_submission.csv
         <out>/truth.parquet: pixels of blood and labels without reading errors, per slice, of test slices too
         <out>/masks/*.png with --masks (bit i = label i); <out>.zip with --zip, the first four as Kaggle's download
Example: python -m ich_kaggle.phantom --patients 120 --size 256
         python -m ich_kaggle.train --fold 0
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from ich_kaggle.common import cli, paths
from ich_kaggle.synthetic import competition, patients
from ich_kaggle.synthetic.variety import VARIETIES


def phantom(*, out: Path, workers: int = 1, overwrite: bool = False, **settings) -> None:
    competition.make(out, patients.Settings(**settings), workers=workers, overwrite=overwrite)


def share_or_real(text: str) -> float | str:
    return text if text == "real" else cli.within(0, 1)(text)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command(__doc__, "--seed", "--workers", "--overwrite")
    add = parser.add_argument
    add("--out", type=Path, default=Path("input") / paths.SLUG, help="folder to make")
    add("--patients", type=cli.within(2, kind=int), help="number of patients, train and test together")
    add("--test-fraction", type=cli.within(0, 1), help="share of the patients in test, at least one")
    add("--slices", type=cli.within(3, 200, int), help="mean number of slices per study; they always span the head")
    add("--size", type=cli.within(32, kind=int), help="px of the square slices (the real ones have 512)")
    prevalence = "share of patients with blood, rare kinds made common enough to learn; real: as in the competition"
    add("--prevalence", type=share_or_real, help=prevalence)
    variety = "scanners and blood: plain; wide, as for pretrain; shifted, of another hospital"
    add("--variety", choices=list(VARIETIES), help=variety)
    add("--label-noise", type=cli.within(0, 1), help="chance that an end of a lesion is labelled one slice off")
    defects = "share of patients with each defect of the real data, at least one patient; 0: no defects"
    add("--defects", type=cli.within(0, 1), help=defects)
    add("--masks", action="store_true", help="also write the pixels of blood, as PNG masks")
    add("--zip", action="store_true", help="also write <out>.zip, in the layout of Kaggle's download")
    parser.set_defaults(**asdict(patients.Settings()))
    return parser


def main(argv: list[str] | None = None) -> None:
    cli.run(phantom, build_parser(), argv)


if __name__ == "__main__":
    main()
