"""The check that the slice table still matches the competition's files it was made from; the commit of the code."""

import os
import subprocess
from pathlib import Path

import pandas as pd

from ich_kaggle.common import paths, storage

NAMES = (paths.TRAIN_CSV, paths.SAMPLE_CSV)
CHECKOUT = Path(__file__).resolve().parents[2]  # of this project, if the package is not installed elsewhere
REMEDY = f"give another --work-dir, or {storage.SCAN_AGAIN}"


def settings(data: paths.Data) -> dict[str, str]:
    """Return the settings of a slice table made from `data`: its folder, and the checksums of its tables."""
    return {"data_dir": str(data.root.absolute()), **{name: data.checksum(name) for name in NAMES}}


def find(found: dict, data_dir: str | Path | None, *, zips: bool = True) -> paths.Data | None:
    """Return the data in `data_dir`, or those that a slice table with the settings `found` was made from; None if gone.

    Data that have moved are found in the default places. Without `zips`, data in a zip count as gone: its directory
    takes seconds to read. Raises FileNotFoundError if `data_dir` has no data.
    """
    place = Path(found.get("data_dir", "/nowhere"))
    if data_dir is not None:
        return paths.find_data(data_dir)
    if place.is_file() and not zips:
        return None
    try:
        if place.exists():
            return paths.find_data(place)
        moved = paths.find_data()
        is_same = (zips or not moved.is_zip) and all(found.get(name) == moved.checksum(name) for name in NAMES)
        return moved if is_same else None
    except FileNotFoundError:
        return None


def is_there(found: dict, data: paths.Data) -> bool:
    """Tell whether `data` are where those of a slice table with the settings `found` were, by whatever path."""
    return data.root.resolve() == Path(found.get("data_dir", "/nowhere")).resolve()


def same_tables(path: Path, found: dict, data: paths.Data | None) -> None:
    """Raise ValueError naming both checksums if a table of `data` has changed since the slice table `path` was made."""
    if data is not None:
        wanted = {name: data.checksum(name) for name in NAMES if name in found}
        storage.same_settings(path, found, wanted, REMEDY)


def same_files(data: paths.Data | None, table: pd.DataFrame) -> None:
    """Raise ValueError naming a DICOM file of the slice table that is gone, or has changed since it was scanned."""
    if data is None:
        return
    now = {member.path: member for split in paths.SPLITS for member in data.members(split)}
    for path, size, stamp in zip(table.path, table["size"], table.stamp, strict=True):
        if (member := now.get(path)) is None:
            raise ValueError(f"{data.root}: {path} was scanned and is gone: get it again, or {storage.SCAN_AGAIN}")
        if (member.size, member.stamp) != (size, stamp):
            was, is_now = f"{size} bytes, stamp {stamp}", f"{member.size} bytes, stamp {member.stamp}"
            raise ValueError(
                f"{data.root}: {path} has changed since it was scanned ({was}; now {is_now}): {storage.SCAN_AGAIN}"
            )


def git_commit() -> str | None:
    """Return the commit of the project's checkout, followed by + if files were changed; None outside a checkout.

    Neither a repository around an installed package is asked, nor anything run that a repository's settings name.
    """
    if not (CHECKOUT / ".git").exists() or not (CHECKOUT / "setup.cfg").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
    command += ["--no-optional-locks", "describe", "--always", "--abbrev=12", "--dirty=+", "--match="]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(CHECKOUT.parent)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
