"""Cache every slice as a PNG whose three channels are three CT windows.

An interrupted run is resumed, and slices that are new in the slice table are added. Blank and constant slices are
cached too, and listed in work/defects.csv.

Reads:   work/slices.parquet, the pixels of every DICOM file, in a folder or in Kaggle's zip
Writes:  work/cache/<name>/ab/ID_ab....png   (<name> is the size, with -study for --crop study)
         work/cache/<name>/ledger.csv        (checksums and crop box per slice)
         work/cache/<name>/cache.json        (settings; the number of slices once the cache is complete)
Example: python -m ich_kaggle.cache --cache-size 512 --crop study
"""

import shutil

from ich_kaggle.common import cli, locks, parallel, provenance, tables
from ich_kaggle.common.project import Project, opening
from ich_kaggle.dicom import picture_cache, slice_table


def command(project: Project, *, backend: str, scheduler: str | None, **options) -> None:
    with parallel.using(backend, scheduler):
        cache(project, **options)


def cache(project: Project, *, cache_size: int, crop: str, study: str | None, verify: bool, overwrite: bool) -> None:
    """Complete a cache, or `verify` the checksums of one; `study` is drawn on a contact sheet."""
    folder = picture_cache.folder_of(project.work_dir, cache_size, crop)
    if overwrite and verify:
        raise ValueError("--overwrite removes the cache, --verify reads it: give one of them")
    if overwrite and folder.exists():
        with locks.locked(folder):
            shutil.rmtree(folder)
    if verify:
        picture_cache.check(folder, project.workers)
        return
    _, is_new = picture_cache.make(project, cache_size, crop)
    if not is_new:
        data = provenance.find(tables.slices_settings(project.work_dir), project.data_dir)
        provenance.same_files(data, project.slices)
        picture_cache.note_defects(project.work_dir, project.slices, folder)
        cli.say(f"{folder}{cli.THERE}")
    if study is not None:
        cli.say(f"{picture_cache.show(slice_table.data_of(project), project.work_dir, folder, study)}")


def build_parser():
    sizes, machine = ("--cache-size", "--crop"), ("--workers", "--backend", "--scheduler")
    parser = cli.command(__doc__, "--data-dir", "--work-dir", *sizes, *machine, "--overwrite")
    parser.add_argument("--verify", action="store_true", help="compare every PNG with its checksum, and stop")
    parser.add_argument("--show", dest="study", help="id of a study to draw as a contact sheet in work/sheets")
    return parser


def main(argv=None):
    cli.run(opening(command), build_parser(), argv)


if __name__ == "__main__":
    main()
