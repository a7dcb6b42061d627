"""Caching real slices beside the usual ways: CPU time a slice on one core, growth, workers, memory, size of the PNGs.

Every way reads the same DICOM files and writes the same three windows at 512 px. A round goes through all ways in
turn, so that all see the same machine; medians over rounds. CPU time, not wall time: others may be at work here. The
PNGs go to memory, for what a file system adds to a new file varies more than all ways differ in it.
Example: ICH_REAL_DATA=rsna_sample.zip python tests/benchmarks/bench_cache.py --rounds 5
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import shutil
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import pydicom

from ich_kaggle.common import paths, windows
from ich_kaggle.common.project import Project
from ich_kaggle.common.zip_reader import Member
from ich_kaggle.dicom import picture_cache, pixels, png, slice_image, slice_table

SIZE = 512
Way = Callable[[Path, Path], None]


def winners(source: Path, target: Path) -> None:
    """Write one slice as the winners' script does: pydicom, float windows, OpenCV."""
    dataset = pydicom.dcmread(source)
    hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    channels = []
    for window in windows.CACHED:
        low, high = window.center - window.width // 2, window.center + window.width // 2
        image = hu.copy()
        image[image < low], image[image > high] = low, high
        channels.append((image - low) / (high - low) * 255)
    image = cv2.resize(np.stack(channels[::-1], axis=-1).astype(np.uint8), (SIZE, SIZE))
    cv2.imwrite(str(target), image)


def floor(source: Path, target: Path) -> None:
    """Do what no way can leave out: read the bytes, one look-up, compress; nothing is parsed, checked or written."""
    content = source.read_bytes()
    words = np.frombuffer(content, "<u2", SIZE * SIZE, len(content) - 2 * SIZE * SIZE).reshape(SIZE, SIZE)
    png.encode(slice_image.windowed(words, FLOOR_CODE))


FLOOR_CODE = pixels.Encoding(16, True, 1.0, -1024.0)


def fastai_way() -> Way:
    import torch
    from fastai.medical.imaging import Path as _  # noqa: F401, it patches Path
    from PIL import Image

    torch.set_num_threads(1)
    pairs = [(window.width, window.center) for window in windows.CACHED]

    def write(source: Path, target: Path) -> None:  # save_jpg of fastai.medical, but to PNG
        channels = (source.dcmread().to_nchan(pairs, bins=0) * 255).byte()
        Image.fromarray(channels.permute(1, 2, 0).numpy()).save(target)

    return write


def monai_way() -> Way:
    import torch
    from monai.data import PILWriter
    from monai.transforms import LoadImage, SaveImage, ScaleIntensityRange

    torch.set_num_threads(1)
    load = LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True)
    edges = [(w.center - w.width / 2, w.center + w.width / 2) for w in windows.CACHED]
    scale = [ScaleIntensityRange(low, high, 0, 255, clip=True) for low, high in edges]
    save = SaveImage(output_ext=".png", writer=PILWriter, output_dtype=np.uint8, resample=False, print_log=False)

    def write(source: Path, target: Path) -> None:
        image = load(source)
        save(torch.cat([one(image) for one in scale]), filename=str(target.with_suffix("")))

    return write


def ours(data: paths.Data, members: list[Member], *, parse: bool = False) -> Callable[[Path], None]:
    """Return our way: with the header facts of the slice table, or with every header parsed again."""
    rows = [slice_table.scan_slice(data, member, False) for member in members]
    batch = slice_table.places(pd.DataFrame(rows))
    if parse:
        batch = [(slice_id, member, None) for slice_id, member, _ in batch]
    return lambda folder: picture_cache._cache_batch(data, batch, folder, SIZE, None)


def one_by_one(way: Way, data: paths.Data, members: list[Member]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        for member in members:
            way(data.root / member.path, folder / f"{Path(member.path).stem}.png")

    return run


def per_core(folder: Path, packed: Path, out: Path, n: int, rounds: int) -> None:
    data, zipped = paths.find_data(folder), paths.find_data(packed)
    chosen = slice(None, None, max(1, len(data.members("train")) // n))
    members, in_zip = data.members("train")[chosen], zipped.members("train")[chosen]
    usual = {"winners": winners, "fastai": fastai_way(), "MONAI": monai_way(), "floor": floor}
    ways = {name: one_by_one(way, data, members) for name, way in usual.items()}
    ways |= {"ours": ours(data, members), "ours, parsing": ours(data, members, parse=True)}
    ways["ours, zip"] = ours(zipped, in_zip)
    took = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up, and makes the folders
        for name, way in ways.items():
            (target := out / name).mkdir(parents=True, exist_ok=True)
            start = time.process_time()
            way(target)
            took[name] += [time.process_time() - start] if turn else []
            for file in target.rglob("*.png"):  # to write over a file costs more than to write a new one
                file.unlink()
    median = {name: 1e3 * statistics.median(times) / len(members) for name, times in took.items()}
    print(f"\nCPU ms a slice, {len(members)} slices, median of {rounds} rounds")
    for name, ms in sorted(median.items(), key=lambda item: item[1]):
        print(f"  {name:14} {ms:7.2f}   {ms / median['ours']:6.2f} times ours")


def sizes(folder: Path, n: int) -> None:
    data = paths.find_data(folder)
    members = data.members("train")
    images = [
        slice_image.picture(data.read(member), member.path, SIZE).image
        for member in members[:: max(1, len(members) // n)]
    ]
    strategies = {"default": 0, "filtered": 1, "huffman": 2, "rle": 3, "fixed": 4}
    rows = [
        ("ours", *_weigh(images, png.encode, png.decode)),
        ("ours by OpenCV", *_weigh(images, png.encode, _imdecode)),
    ]
    for filters in (None, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_ALL_FILTERS):
        for name, strategy in strategies.items():
            for level in (1, 3, 6, 9):
                flags = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
                flags += [] if filters is None else [cv2.IMWRITE_PNG_FILTER, filters]

                def encode(image: np.ndarray, flags: list[int] = flags) -> bytes:
                    return cv2.imencode(".png", image, flags)[1].tobytes()

                label = {None: "", 8: ", no filter"}.get(filters, ", all filters")
                rows.append((f"{name} {level}{label}", *_weigh(images, encode, _imdecode)))
    table = pd.DataFrame(rows, columns=["setting", "KB", "write ms", "read ms"])
    table["size"] = table.KB / table.KB[0]
    table["read"] = table["read ms"] / table["read ms"][0]
    print(f"\nPNG size and CPU time, {len(images)} slices; size and read: times ours")
    print(pd.concat([table[:2], table[2:].sort_values("KB")[:12]]).round(3).to_string(index=False))


def _imdecode(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def _weigh(images: list[np.ndarray], encode: Callable, decode: Callable) -> tuple[float, float, float]:
    start = time.process_time()
    files = [encode(image) for image in images]
    written = time.process_time()
    reads = []
    for _ in range(3):
        begun = time.process_time()
        for file in files:
            decode(file)
        reads.append(time.process_time() - begun)
    kilobytes = sum(map(len, files)) / 1e3 / len(files)
    return kilobytes, 1e3 * (written - start) / len(files), 1e3 * min(reads) / len(files)


def replicate(folder: Path, out: Path, times: int) -> Path:
    """Make `out` the data of `folder` with every slice `times` times, as links under other ids."""
    for split, table in (("train", paths.TRAIN_CSV), ("test", paths.SAMPLE_CSV)):
        labels = pd.read_csv(folder / table)
        (out / f"stage_2_{split}").mkdir(parents=True)
        parts = []
        for k in range(times):
            names = {old: f"ID_{(int(old[3:], 16) + k * 7919) % 16**9:09x}" for old in labels.ID.str[:12].unique()}
            parts.append(labels.assign(ID=labels.ID.str[:12].map(names) + labels.ID.str[12:]))
            for old, new in names.items():
                (out / f"stage_2_{split}" / f"{new}.dcm").symlink_to(folder / f"stage_2_{split}" / f"{old}.dcm")
        pd.concat(parts).to_csv(out / table, index=False)
    return out


def _filled(data_dir: Path, out: Path, workers: int) -> tuple[float, float]:
    """Return wall and CPU seconds of caching, in all its processes; the slice table is made before."""
    with contextlib.redirect_stdout(io.StringIO()):
        slice_table.ensure(Project(data_dir, out, 1))
        start, begun = time.perf_counter(), time.process_time() + _of_workers()["cpu"]
        picture_cache.ensure(Project(data_dir, out, workers), SIZE)
    wall, cpu = time.perf_counter() - start, time.process_time() + _of_workers()["cpu"] - begun
    shutil.rmtree(out)
    return wall, cpu


def growth(folder: Path, scratch: Path, rounds: int) -> None:
    grown = {times: replicate(folder, scratch / f"x{times}" / "data", times) for times in (3, 6, 12)}
    took = {times: [] for times in grown}
    for _ in range(rounds):
        for times, data_dir in grown.items():
            took[times].append(_filled(data_dir, scratch / "work", 1)[1])
    median = {times: statistics.median(seconds) for times, seconds in took.items()}
    print("\ngrowth, one worker, CPU time: ", end="")
    print(", ".join(f"{times}x {seconds:.2f} s = {seconds / median[3]:.2f}" for times, seconds in median.items()))


def scaling(folder: Path, scratch: Path, times: int, rounds: int) -> None:
    data_dir = replicate(folder, scratch / "many", times)
    _filled(folder, scratch / "work", 2)  # starts the workers, which stay
    took = {1: [], 2: []}
    for _ in range(rounds):
        for workers in took:
            took[workers].append(_filled(data_dir, scratch / "work", workers))
    (wall, cpu), (wall_2, cpu_2) = (np.array(seconds).min(axis=0) for seconds in took.values())
    print(f"\n1 and 2 workers, the data {times} times, best of {rounds}; load average {os.getloadavg()[0]:.1f}")
    print(f"  wall {wall:.2f} s and {wall_2:.2f} s: {wall / wall_2:.2f} times as fast")
    print(f"  CPU {cpu:.2f} s and {cpu_2:.2f} s: {2 * cpu / cpu_2:.2f} times as fast on two free cores")
    print(
        f"  two processes with nothing in common, at the same time: {_ceiling(folder, rounds):.2f} times as fast as one"
    )
    print(f"  peak memory of a worker: {_of_workers()['peak']:.0f} MB")


def _ceiling(folder: Path, rounds: int) -> float:
    """Return how much faster than one process two are here that share no work, no queue and no file: the machine's."""
    files = sorted(folder.glob("stage_2_train/*.dcm")) * 4
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        walls = {1: [], 2: []}
        for _ in range(rounds + 1):  # the first warms up
            for n in walls:
                start = time.perf_counter()
                pool.map(_floors, [files] * n, chunksize=1)
                walls[n].append(time.perf_counter() - start)
    return 2 * min(walls[1]) / min(walls[2])


def _floors(files: list[Path]) -> None:
    for file in files:
        floor(file, file)


def _of_workers() -> dict[str, float]:
    """Return the CPU seconds of the processes that this one started, and the largest peak of their memory, MB."""
    found = {"cpu": 0.0, "peak": 0.0}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found["cpu"] += sum(child.cpu_times()[:2])
            status = Path(f"/proc/{child.pid}/status").read_text()
            found["peak"] = max(found["peak"], int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60, help="slices of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=6, help="how often the data are repeated to measure two workers")
    memory = Path("/dev/shm")
    parser.add_argument("--scratch", type=Path, default=memory if memory.is_dir() else None, help="where files go")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        scratch = Path(scratch)
        packed = Path(os.environ["ICH_REAL_DATA"])
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(scratch / "real")
        folder = paths.find_data(scratch / "real").root
        per_core(folder, packed, scratch / "pngs", options.n, options.rounds)
        sizes(folder, options.n // 2)
        growth(folder, scratch, options.rounds)
        scaling(folder, scratch, options.times, options.rounds)


if __name__ == "__main__":
    main()
