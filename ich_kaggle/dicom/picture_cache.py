"""The cache: every slice as a PNG whose three channels are three CT windows. An interrupted cache is resumed."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ich_kaggle.common import cli, locks, parallel, paths, storage, tables, windows, zip_reader
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import cache_index, head_crop, png, slice_image, slice_table
from ich_kaggle.dicom.slice_table import Place, places

BATCH = 32  # slices per task of a worker
AGAIN = "run python -m ich_kaggle.cache --overwrite"
REMEDY = f"give another --work-dir, or {AGAIN}"
TILE = 160  # px of a slice on a contact sheet
# KB per slice, by px, measured on real slices. At 512 px, the usual size of a scanner, nothing is resampled.
KB = {
    "none": {32: 1.4, 128: 12.4, 256: 40, 384: 85, 448: 113, 511: 144, 512: 99, 513: 145, 1024: 513},
    "study": {32: 1.6, 128: 15, 256: 50, 384: 102, 448: 135, 512: 173, 1024: 616},
}


def _cache_batch(
    data: paths.Data, batch: list[Place], folder: Path, size: int, spacing: float | None
) -> tuple[list[cache_index.Line], int, int]:
    """Cache the slices of `batch`, cropped to the head if a `spacing` (mm) is given; return their index lines."""
    cv2.setNumThreads(1)
    # Reading a study twice, from the page cache, costs less than holding a thousand slices.
    box = slice_image.study_box(data, [one[1:] for one in batch], spacing) if spacing else None
    lines = []
    for slice_id, member, plain in batch:
        content = data.read(member)
        made = slice_image.picture(content, member.path, size, box, plain)
        encoded = png.encode(made.image)
        with storage.writing(paths.cached(folder, slice_id), sweep=False) as temporary:
            temporary.write_bytes(encoded)
        sums = zip_reader.crc32(content), zip_reader.crc32(encoded)
        lines.append(cache_index.Line(slice_id, member.stamp, *sums, *made.box, made.defect))
    return lines, len(batch), sum(member.size for _, member, _ in batch)


def _to_cache(table: pd.DataFrame, crop_by: str, is_missing: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the slices of `table` to cache, and the number of the batch of each.

    A head is found in all slices of a series that have one shape: one that is missing makes all of them be cached.
    """
    if crop_by == "none":
        return table[is_missing], np.arange(is_missing.sum()) // BATCH
    groups = table.groupby(["series_id", "rows", "columns"], sort=False).ngroup().to_numpy()
    is_wanted = np.isin(groups, groups[is_missing])
    return table[is_wanted], groups[is_wanted]


def _sources(data: paths.Data, batch: list[Place]) -> tuple[list[tuple[str, int]], int, int]:
    """Return the CRC-32 of the DICOM file of each slice of `batch`, by its id."""
    sums = [(slice_id, zip_reader.crc32(data.read(member))) for slice_id, member, _ in batch]
    return sums, len(batch), sum(member.size for _, member, _ in batch)


def recheck(data: paths.Data, table: pd.DataFrame, held: pd.DataFrame, folder: Path, workers: int) -> pd.DataFrame:
    """Return the index `held` with the stamps of `table`; DICOM files whose stamp has changed are read again.

    Raises ValueError naming a slice whose file is not the one that was cached.
    """
    known = table[table.slice_id.isin(held.index)].set_index("slice_id", drop=False)
    known = known[known.stamp != held.stamp.reindex(known.index)]
    tasks = ((data, places(known.iloc[i : i + BATCH])) for i in range(0, len(known), BATCH))
    for sums in parallel.work(_sources, tasks, len(known), "check changed files", workers):
        for slice_id, source in sums:
            if source != held.source[slice_id]:
                raise ValueError(
                    f"{folder}: {slice_id} was cached from a file with checksum {held.source[slice_id]:08x}, but "
                    f"{data.root}: {known.path[slice_id]} has {source:08x}: {REMEDY}"
                )
    held.loc[known.index, "stamp"] = known.stamp
    return held


def _sweep(folder: Path) -> set[str]:
    """Remove the temporary files that killed processes left; return the slices that have a PNG."""
    # A worker that outlives its killed parent for a moment does no harm: it writes the same bytes as this run.
    found = set()
    for inner in (entry.path for entry in os.scandir(folder) if entry.is_dir()):
        for entry in os.scandir(inner):
            if entry.name.startswith("."):
                Path(entry.path).unlink()
            else:
                found.add(entry.name.removesuffix(".png"))
    return found


def complete(
    data: paths.Data, table: pd.DataFrame, folder: str | Path, *, size: int, crop_by: str, workers: int
) -> None:
    """Cache every slice of `table` that the folder lacks, and sort its index like the table."""
    folder = Path(folder)
    present = _sweep(folder)
    held = cache_index.read(folder)
    held = recheck(data, table, held[held.index.isin(present)], folder, workers)
    cache_index.write(folder, held)
    todo, groups = _to_cache(table, crop_by, ~table.slice_id.isin(held.index).to_numpy())
    tasks = (
        (data, places(part), folder, size, part.row_spacing.iloc[0] if crop_by == "study" else None)
        for _, part in todo.groupby(groups, sort=False)
    )
    with cache_index.appending(folder) as append:
        for lines in parallel.work(_cache_batch, tasks, len(todo), f"cache {folder.name}", workers):
            append(lines)
    held = cache_index.read(folder)
    others = held.index.difference(table.slice_id)  # cached slices that left the table are kept
    cache_index.write(folder, held.loc[[*table.slice_id, *others]])


def kb_per_slice(cache_size: int, crop_by: str) -> float:
    """Return the KB on disk of one cached slice, interpolated between, and extrapolated beyond, the measured sizes."""
    px, kb = (np.log(values) for values in zip(*KB[crop_by].items(), strict=True))
    wanted = np.log(cache_size)
    beyond = 2 * (wanted - np.clip(wanted, px[0], px[-1]))  # grows as the number of pixels
    return float(np.exp(np.interp(wanted, px, kb) + beyond))


def check_room(folder: str | Path, n_missing: int, cache_size: int, crop_by: str) -> None:
    """Raise OSError with both numbers if `n_missing` slices do not fit on the disk of `folder`."""
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    kb, free = kb_per_slice(cache_size, crop_by), shutil.disk_usage(existing).free
    if n_missing * kb * 1e3 > free:
        less = f", or a smaller --cache-size (256 px: {kb_per_slice(256, crop_by):.0f} KB)" if cache_size > 256 else ""
        raise OSError(
            f"{folder}: the disk has {free / 1e9:.1f} GB free, and the {n_missing:,} slices still to cache take about "
            f"{n_missing * kb / 1e6:.1f} GB ({kb:.0f} KB per slice at {cache_size} px): free some space, or give a "
            f"--work-dir on another disk{less}"
        )


def _is_complete(state: Path, settings: dict, contents: dict) -> bool:
    """Return whether the cache has `contents`. Raises ValueError naming both if it has other `settings`."""
    if not state.exists():
        return False
    found = storage.read_json(state)
    storage.same_settings(state, found, settings, REMEDY)
    return all(found.get(key) == value for key, value in contents.items())


def folder_of(work_dir: str | Path, cache_size: int, crop: str) -> Path:
    return paths.cache(Path(work_dir), f"{cache_size}" if crop == "none" else f"{cache_size}-{crop}")


def ensure(project: Project, cache_size: int, crop: str = "none") -> Path:
    """Return the folder of a complete cache, see `make`."""
    return make(project, cache_size, crop)[0]


def make(project: Project, cache_size: int, crop: str) -> tuple[Path, bool]:
    """Complete the cache of `cache_size` px with `crop`; return its folder, and whether anything was missing.

    A second process waits for the first. Raises ValueError naming both settings if the cache was made with other
    windows, or from other pixels.
    """
    table = slice_table.ensure(project)
    folder = folder_of(project.work_dir, cache_size, crop)
    settings = {"image_size": cache_size, "windows": windows.CACHED, "crop": crop}
    state, contents = folder / "cache.json", {"slices": cache_index.sources_hash(table), "n_slices": len(table)}
    if _is_complete(state, settings, contents):
        return folder, False
    with locks.locked(folder):
        if _is_complete(state, settings, contents):  # by the process that this one waited for
            return folder, False
        n_missing = int((~table.slice_id.isin(cache_index.read(folder).index)).sum())
        check_room(folder, n_missing, cache_size, crop)
        storage.write_json(state, settings)
        data = slice_table.data_of(project)
        complete(data, table, folder, size=cache_size, crop_by=crop, workers=project.workers)
        note_defects(project.work_dir, table, folder)
        storage.write_json(state, settings | contents | {"ledger": storage.file_hash(cache_index.path_of(folder))})
    cli.say(f"{folder}: {len(table)} slices of {cache_size} px")
    return folder, True


def whole(project: Project) -> dict[Path, dict]:
    """Return the folders of the complete caches of the slices, each with its settings."""
    wanted = {"slices": cache_index.sources_hash(project.slices), "n_slices": len(project.slices)}
    found = paths.cache(project.work_dir, "any").parent.glob("*/cache.json")
    states = {path.parent: storage.read_json(path) for path in sorted(found)}
    return {folder: state for folder, state in states.items() if wanted.items() <= state.items()}


def note_defects(work_dir: str | Path, table: pd.DataFrame, folder: str | Path) -> None:
    """Add the blank and constant slices of the cache to work/defects.csv."""
    work_dir, folder = Path(work_dir), Path(folder)
    held, known = cache_index.read(folder), slice_table.read_defects(work_dir)
    new = held.loc[(held.defect != "") & ~held.index.isin(known.slice_id[known.action == slice_table.KEPT]), ["defect"]]
    new = new.join(table.set_index("slice_id")[["path"]], how="inner").assign(action=slice_table.KEPT).reset_index()
    if len(new):
        slice_table.write_defects(work_dir, pd.concat([known, new]))


def _damaged(folder: Path, batch: list[tuple[str, int]]) -> tuple[list[str], int, int]:
    """Return the slices of `batch`, of (id, checksum of its PNG), whose PNG is missing or has changed."""
    damaged, n_bytes = [], 0
    for slice_id, checksum in batch:
        path = paths.cached(folder, slice_id)
        content = path.read_bytes() if path.exists() else b""
        n_bytes += len(content)
        if zip_reader.crc32(content) != checksum:
            damaged.append(slice_id)
    return damaged, len(batch), n_bytes


def check(folder: str | Path, workers: int) -> None:
    """Compare every PNG of a cache with its checksum. Raises ValueError naming the first that is missing or damaged.

    All of those leave the index, so that the next run caches them again.
    """
    folder = Path(folder)
    state = storage.require(folder / "cache.json")
    with locks.locked(folder):
        settings, path = storage.read_json(state), cache_index.path_of(folder)
        found = storage.file_hash(path) if path.exists() else "none"
        if found != settings.get("ledger", found):
            raise ValueError(f"{path}: damaged or changed, its hash is {found}, not {settings['ledger']}: {AGAIN}")
        held = cache_index.read(folder)
        sums = list(held.checksum.items())
        tasks = ((folder, sums[i : i + 8 * BATCH]) for i in range(0, len(sums), 8 * BATCH))
        damaged = sorted(sum(parallel.work(_damaged, tasks, len(sums), f"verify {folder.name}", workers), []))
        if damaged:
            unfinished = {key: value for key, value in settings.items() if key not in ("n_slices", "ledger")}
            storage.write_json(state, unfinished)
            cache_index.write(folder, held.drop(damaged))
            raise ValueError(
                f"{folder}: {len(damaged)} of {len(held)} slices are missing or damaged, the first {damaged[0]}: "
                "run the same command without --verify to cache them again"
            )
    cli.say(f"{folder}: {len(held)} slices match their checksums")


def show(data: paths.Data, work_dir: str | Path, folder: str | Path, study_id: str) -> Path:
    """Write a contact sheet of a study in z order, with a row per window, and return its path.

    A cropped cache gets another row, of whole slices with their box. Raises ValueError for an unknown study.
    """
    work_dir, folder = Path(work_dir), Path(folder)
    table = tables.read_slices(work_dir)
    study = table[table.study_id == study_id]
    if not len(study):
        raise ValueError(f"no study {study_id} in {paths.slices(work_dir)}; the first is {table.study_id.iloc[0]}")
    images = [slice_image.resize(png.read(paths.cached(folder, slice_id)), TILE) for slice_id in study.slice_id]
    rows = [slice_image.sheet(images)]
    if folder.name.endswith("-study"):
        boxes = cache_index.read(folder).loc[study.slice_id, list(head_crop.Box._fields)].to_numpy()
        whole = zip(places(study), map(head_crop.Box._make, boxes), strict=True)
        drawn = [slice_image.outlined(data.read(member), member.path, TILE, box) for (_, member, _), box in whole]
        rows.append(slice_image.sheet([image[..., 2:] for image in drawn]))
    path = paths.sheet(work_dir, study_id)
    with storage.writing(path) as temporary:
        png.write(temporary, np.vstack(rows))
    return path
