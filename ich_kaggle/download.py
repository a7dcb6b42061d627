"""Download the competition's tables, or all of its files, from Kaggle; an interrupted download is resumed.

The account must have accepted the competition's rules. The zip need not be unpacked: every command reads it in place.

Reads:   Kaggle's credentials (KAGGLE_API_TOKEN, ~/.kaggle/access_token or ~/.kaggle/kaggle.json)
Writes:  stage_2_train.csv and stage_2_sample_submission.csv in --data-dir, or with --all the zip beside that folder
Example: python -m ich_kaggle.download --all
         python -m ich_kaggle.download --data-dir /data/rsna
"""

import os
from collections.abc import Callable
from pathlib import Path

from ich_kaggle.common import cli, paths
from ich_kaggle.kaggle_api import client, competition_files


def download(*, data_dir: Path | None, whole: bool, connect: Callable = client.connect) -> None:
    """Download the tables into `data_dir`, or if `whole` the zip of all files, beside it or of that name."""
    place = data_dir or Path(os.environ.get("ICH_DATA_DIR") or paths.DEFAULT)
    if not whole:
        kaggle = connect()
        for name in (paths.SAMPLE_CSV, paths.TRAIN_CSV):
            competition_files.table(kaggle, place / name)
        return
    path = place if place.suffix == ".zip" else place.with_name(f"{place.name}.zip")
    competition_files.everything(connect(), path)
    cli.say(f"now run python -m ich_kaggle.slices --data-dir {path}")


def build_parser():
    parser = cli.command(__doc__)
    help_text = f"folder of the tables; --all writes this name with .zip (default: $ICH_DATA_DIR, or {paths.DEFAULT})"
    parser.add_argument("--data-dir", type=Path, help=help_text)
    parser.add_argument("--all", dest="whole", action="store_true", help="all files, as one zip of 180 GB")
    return parser


def main(argv=None):
    cli.run(download, build_parser(), argv)


if __name__ == "__main__":
    main()
