"""Cache every slice as a PNG whose three channels are three CT windows.

It goes on where it was interrupted, adds slices that are new in the slice table, and leaves the rest alone. Blank and
constant slices are cached like any other and listed in work/defects.csv.

Reads:   work/slices.parquet, the DICOM pixels, out of Kaggle's zip too
Writes:  work/cache/<name>/ab/ID_ab....png   (<name>: the size, and -study for --crop study)
         work/cache/<name>/ledger.csv        (checksums and crop box of every slice)
         work/cache/<name>/cache.json        (settings first, number of slices last: then it is whole)
Example: python -m ich_kaggle.cache --cache-size 512 --crop study
"""

import shutil
from pathlib import Path

from ich_kaggle.common import cli, locks, parallel, provenance, tables
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache, slice_table

# KB per slice, by px, measured on real slices. At 512 px, which is what scanners give, nothing is resampled.


def cache(
    *,
    data_dir: Path | None,
    work_dir: Path,
    cache_size: int,
    crop: str,
    study: str | None,
    verify: bool,
    workers: int,
    backend: str,
    scheduler: str | None,
    overwrite: bool,
) -> None:
    folder, project = picture_cache.folder_of(work_dir, cache_size, crop), Project(data_dir, work_dir, workers)
    if overwrite and folder.exists():
        with locks.locked(folder):
            shutil.rmtree(folder)
    with parallel.using(backend, scheduler):
        if verify:
            picture_cache.check(folder, workers)
            return
        _, is_new = picture_cache.make(project, cache_size, crop)
    if not is_new:
        table = project.slices
        provenance.same_files(provenance.find(tables.slices_settings(work_dir), data_dir), table)
        picture_cache.note_defects(work_dir, table, folder)
        cli.say(f"{folder}{cli.THERE}")
    if study is not None:
        cli.say(f"{picture_cache.show(slice_table.data_of(project), work_dir, folder, study)}")


def build_parser():
    flags = (
        "--data-dir",
        "--work-dir",
        "--cache-size",
        "--crop",
        "--workers",
        "--backend",
        "--scheduler",
        "--overwrite",
    )
    parser = cli.command(__doc__, *flags)
    parser.add_argument("--verify", action="store_true", help="only read every PNG again and check its checksum")
    parser.add_argument("--show", dest="study", help="write a contact sheet of this study to work/sheets")
    return parser


def main(argv=None):
    cli.run(cache, build_parser(), argv)


if __name__ == "__main__":
    main()
