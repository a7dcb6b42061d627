"""Scanning headers, and a zip of 50,000 members: files a second, seconds and peak memory.

The many members are small phantom slices, each its own process, so that its peak memory is its own.
Example: ICH_REAL_DATA=rsna_sample.zip python tests/benchmarks/bench_scan.py
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import pydicom

from ich_kaggle import phantom
from ich_kaggle.common import paths, zip_reader
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import picture_cache, slice_table


def scan_rate(place: Path, rounds: int) -> None:
    data = paths.find_data(place)
    members = [member for split in paths.SPLITS for member in data.members(split)]
    ways = {"ours": lambda member: slice_table.scan_slice(data, member, False)}
    if not data.is_zip:
        ways["pydicom"] = lambda member: pydicom.dcmread(data.root / member.path, stop_before_pixels=True)
    took = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            start = time.process_time()
            for member in members:
                way(member)
            took[name] += [time.process_time() - start] if turn else []
    for name, seconds in took.items():
        rate = len(members) / statistics.median(seconds)
        print(f"  {name:8} {rate:6.0f} headers/s of CPU, {'zip' if data.is_zip else 'folder'}")


def many(path: Path, n: int) -> Path:
    """Write a zip of `n` train slices and 10 test slices: a few phantoms, again and again under new names."""
    small = path.with_name("small")
    with contextlib.redirect_stdout(io.StringIO()):
        phantom.main(["--out", str(small), "--patients", "6", "--slices", "8", "--size", "32", "--defects", "0"])
    contents = [file.read_bytes() for file in sorted(small.glob("stage_2_*/*.dcm"))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for table, split, first, last in (("train.csv", "train", 0, n), ("sample_submission.csv", "test", n, n + 10)):
            ids = [f"ID_{k:09x}" for k in range(first, last)]
            rows = "".join(f"{slice_id}_{label},0\n" for slice_id in ids for label in LABELS)
            packed.writestr(f"{paths.SLUG}/stage_2_{table}", "ID,Label\n" + rows)
            for k, slice_id in enumerate(ids):
                packed.writestr(f"{paths.SLUG}/stage_2_{split}/{slice_id}.dcm", contents[k % len(contents)])
    return path


def _measured(function, *arguments) -> tuple[float, float, float]:
    """Return wall and CPU seconds, and the peak memory, MB, of a call in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        function(*arguments)
    used = resource.getrusage(resource.RUSAGE_SELF)
    of_workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime + of_workers.ru_utime + of_workers.ru_stime
    return time.perf_counter() - start, cpu, used.ru_maxrss / 1024, before / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(os.environ["ICH_REAL_DATA"])
        with zipfile.ZipFile(packed) as real:
            real.extractall(Path(scratch) / "real")
        scan_rate(Path(scratch) / "real", options.rounds)
        scan_rate(packed, options.rounds)
        path, work = many(Path(scratch) / "many.zip", options.members), Path(scratch) / "work"
        print(f"\na zip of {options.members} members, {path.stat().st_size / 1e6:.0f} MB, one worker")
        steps = {
            "directory": (zip_reader.directory, path),
            "scan": (slice_table.ensure, path, work, 1),
            "cache": (picture_cache.ensure, path, work, 32, 1),
            "nothing left to do": (picture_cache.ensure, path, work, 32, 1),
        }
        for name, step in steps.items():
            with spawn.Pool(1) as pool:
                wall, cpu, peak, before = pool.apply(_measured, step)
            print(f"  {name:20} {wall:6.1f} s wall, {cpu:6.1f} s CPU, peak {peak:5.0f} MB, {before:.0f} before")


if __name__ == "__main__":
    main()
