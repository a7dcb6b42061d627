"""Read mutated DICOM files in a process that may die of it: `python dicom_reader.py SEEDS FOLDER FIRST NUMBER`.

Prints a JSON line before each file and after it.
"""

import io
import json
import resource
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
from dicom_mutations import mutated

from ich_kaggle.common import paths
from ich_kaggle.dicom import geometry, slice_image, slice_table
from ich_kaggle.dicom import pixels as pixels_module

MOST_BYTES = 500 << 20  # beyond what the process has before a file
SPARE_BYTES = 1 << 30  # more, and it is not given at all
LONGEST = 600  # characters of a reason
NAME = "stage_2_train/ID_0123456ab.dcm"
SIZE = 64  # px of the picture


def refusal(error: Exception, name: str) -> str:
    """Return "refused" for one line that names the file, raised by design; else what is wrong with it."""
    text = str(error)
    if type(error) not in (ValueError, RuntimeError):
        return f"{type(error).__name__}: {text}"
    if name not in text or not text.isprintable() or len(text) > LONGEST:
        return f"not one line of what is wrong where: {text!r}"
    return "refused"


def read(content: bytes) -> str:
    """Return what becomes of a file that is handed over as it is."""
    try:
        words, code = pixels_module.read_words(content, NAME)
        hu = pixels_module.hu_table(code)[words]
        image = slice_image.picture(content, NAME, SIZE).image
    except Exception as error:
        return refusal(error, NAME)
    if not np.isfinite(hu).all() or image.shape != (SIZE, SIZE, 3):
        return f"HU from {hu.min()} to {hu.max()}, picture {image.shape}"
    return "read"


def scan(data: paths.Data, pixels: bool) -> str:
    """Return what becomes of the one file of `data`, by its header, then as the cache reads it."""
    member = data.members("train")[0]
    try:
        row = slice_table.scan_slice(data, member, pixels)
    except Exception as error:
        return refusal(error, member.path)
    if row.get("action") == "left out":
        return refusal(ValueError(f"{member.path}: {row['defect']}"), member.path)
    facts = [row[key] for key in ("position", "tilt", "row_spacing", "column_spacing")]
    ids = [row[key] for key in ("patient_id", "study_id", "series_id")]
    longest = geometry.LONGEST_ID
    if not np.isfinite(facts).all() or not all(text and text.isprintable() and len(text) <= longest for text in ids):
        return f"a row of {facts} and {ids}"
    code = pixels_module.Encoding(*(row[key] for key in pixels_module.Encoding._fields))
    plain = pixels_module.Plain(row["start"], row["rows"], row["columns"], code)
    box = slice_image.study_box(data, [(member, plain)], row["row_spacing"])
    content = data.read(member)
    slice_image.picture(content, member.path, SIZE, box, plain)
    words, found = pixels_module.read_words(content, member.path)
    same = np.array_equal(words, pixels_module.read_words(content, member.path, plain)[0]) and found == code
    return "read" if same else "the scan tells other pixels than the file holds"


def scanned(data: paths.Data, pixels: bool) -> str:
    try:
        return scan(data, pixels)
    except Exception as error:  # of what the scan let through
        return f"after the scan, {type(error).__name__}: {error}"


def place(content: bytes, folder: Path) -> tuple[paths.Data, paths.Data]:
    """Return the data of a folder and of a zip that hold the file."""
    path = folder / NAME
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr(NAME, content)
    (folder / "all.zip").write_bytes(stream.getvalue())
    return paths.Data(folder), paths.Data(folder / "all.zip")


class Cost:
    """The seconds of a processor and the bytes of memory that are taken inside, at most at a time."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak: proc_pid_clear_refs(5)
        self.before, self.began = memory("VmRSS"), time.process_time()
        return self

    def __exit__(self, *_):
        self.seconds, self.memory = time.process_time() - self.began, memory("VmHWM") - self.before


def memory(what: str) -> int:
    """Return what this process has, VmRSS, had at most, VmHWM, or could touch, VmSize: bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


def outcomes(content: bytes, folder: Path, pixels: bool) -> dict:
    unpacked, packed = place(content, folder)
    with Cost() as cost:
        found = {"direct": read(content), "folder": scanned(unpacked, pixels), "zip": scanned(packed, pixels)}
    return found | {"seconds": cost.seconds, "memory": cost.memory}


def limit_memory() -> None:
    """Let this process take little more than it has."""
    most = memory("VmSize") + MOST_BYTES + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(seed_folder: str, folder: str, first: str, number: str) -> None:
    seeds = [path.read_bytes() for path in sorted(Path(seed_folder).iterdir())]
    warnings.simplefilter("ignore")
    for content in seeds:
        outcomes(content, Path(folder), True)  # what is loaded when first needed
    limit_memory()
    for n in range(int(first), int(first) + int(number)):
        print(json.dumps({"file": n}), flush=True)
        content = mutated(seeds, n)
        print(json.dumps({"file": n, **outcomes(content, Path(folder), bool(n % 2))}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
