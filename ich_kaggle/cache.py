"""Cache every slice as a PNG whose three channels are three CT windows.

Reads:   work/slices.parquet, the DICOM pixels
Writes:  work/cache/<name>/ab/ID_ab....png, work/cache/<name>/cache.json  (settings first, number of slices last)
Example: python -m ich_kaggle.cache --image-size 512
"""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from ich_kaggle import cli, dicom, paths, png, slices, tables, windows

BATCH = 32  # slices in a task of one worker


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Return `image` (h, w, c; uint8) at `size` px square; a shorter side is padded with black first, centred."""
    height, width = image.shape[:2]
    if height != width:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        image = cv2.copyMakeBorder(
            image, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT, value=(0, 0, 0)
        )
    if len(image) == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if len(image) > size else cv2.INTER_LINEAR)


def image_of(content: bytes, name: str, size: int) -> np.ndarray:
    """Return the DICOM slice in `content` as it is cached: uint8 (size, size, 3), a channel a window.

    Windows come before the resize, so that bone, clipped, does not shine into the blood beside it.
    """
    dataset = dicom.parse(content, name)
    gray = windows.apply(dicom.hu_table(dicom.encoding(dataset, name)), windows.CACHED)
    return resize(gray.take(dicom.stored_words(dataset, name), axis=0), size)


def _cache_batch(root: Path, batch: pd.DataFrame, folder: Path, size: int) -> int:
    cv2.setNumThreads(1)
    for row in batch.itertuples():
        path = paths.cached(folder, row.slice_id)
        if not path.exists():
            image = image_of(dicom.read_bytes(root, row.path, row.offset, row.packed), row.path, size)
            with paths.writing(path) as temporary:
                png.write(temporary, image)
    return len(batch)


def fill(data: paths.Data, table: pd.DataFrame, folder: Path, *, size: int, workers: int) -> None:
    """Write the PNG of every slice in `table` that `folder` has not."""
    batches = [table.iloc[i : i + BATCH] for i in range(0, len(table), BATCH)]
    tasks = (delayed(_cache_batch)(data.root, batch, folder, size) for batch in batches)
    with cli.progress(None, len(table), f"cache {folder.name}") as bar:
        for n_done in Parallel(workers, return_as="generator_unordered")(tasks):
            bar.update(n_done)


def settings_of(table: pd.DataFrame, size: int) -> dict:
    return {"image_size": size, "windows": windows.CACHED, "slices": tables.slices_hash(table)}


def ensure(data_dir: Path | None, work_dir: Path, image_size: int, workers: int) -> Path:
    """Return the folder of the cache of `image_size` px, completing it where it is not whole.

    Raises ValueError naming both settings if it was made from another slice table or with other windows.
    """
    table = slices.ensure(data_dir, work_dir, workers)
    folder = paths.cache(work_dir, str(image_size))
    state, wanted = folder / "cache.json", settings_of(table, image_size)
    found = paths.read_json(state) if state.exists() else wanted
    paths.same_settings(state, found, wanted, "give another --work-dir, or run python -m ich_kaggle.cache --overwrite")
    if found.get("n_slices") == len(table):
        return folder
    paths.write_json(state, wanted)
    fill(slices.data_of(data_dir, work_dir), table, folder, size=image_size, workers=workers)
    paths.write_json(state, wanted | {"n_slices": len(table)})
    cli.say(f"{folder}: {len(table)} slices of {image_size} px")
    return folder


def sheet(table: pd.DataFrame, folder: Path, *, columns: int = 6, size: int = 160) -> np.ndarray:
    """Return the cached slices of `table` in its order, left to right, as uint8 RGB: a row of each window in turn."""
    images = [resize(png.read(paths.cached(folder, slice_id)), size) for slice_id in table.slice_id]
    images += [np.zeros_like(images[0])] * (-len(images) % columns)
    strips = [np.hstack(images[i : i + columns]) for i in range(0, len(images), columns)]
    gray = np.vstack([strip[..., channel] for strip in strips for channel in range(strip.shape[2])])
    return np.repeat(gray[..., None], 3, axis=2)


def show(work_dir: Path, folder: Path, study_id: str) -> Path:
    """Write a contact sheet of a study's slices in z order. Raises ValueError if there is no such study."""
    table = tables.read_slices(work_dir)
    study = table[table.study_id == study_id]
    if not len(study):
        raise ValueError(f"no study {study_id} in {paths.slices(work_dir)}; the first is {table.study_id.iloc[0]}")
    path = paths.sheet(work_dir, study_id)
    with paths.writing(path) as temporary:
        png.write(temporary, sheet(study, folder))
    return path


def cache(*, data_dir: Path | None, work_dir: Path, image_size: int, study: str | None, workers: int, overwrite=False):
    folder = paths.cache(work_dir, str(image_size))
    if overwrite and (folder / "cache.json").exists():
        shutil.rmtree(folder)
    is_there = (folder / "cache.json").exists() and "n_slices" in paths.read_json(folder / "cache.json")
    ensure(data_dir, work_dir, image_size, workers)
    if is_there:
        cli.say(f"{folder}{cli.THERE}")
    if study is not None:
        cli.say(f"{show(work_dir, folder, study)}")


def build_parser():
    flags = ("--data-dir", "--work-dir", "--image-size", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags)
    parser.add_argument("--show", dest="study", help="write a contact sheet of this study to work/sheets")
    return parser


def main(argv=None):
    cli.run(cache, build_parser(), argv)


if __name__ == "__main__":
    main()
