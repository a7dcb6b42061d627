"""Damaged and hostile DICOM: read to pixels, or refused in one line, within 2 s and 500 MB, whatever stands in it.

ICH_FUZZ is how many files are made (2,000), ICH_FUZZ_FIRST the number of the first (0): a failure tells the number
that makes its file again.
"""

import collections
import json
import os
import select
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import dicom_reader
import pytest
from dicom_files import NOISE, compressed, content, ct, head, lossless_jpeg
from dicom_mutations import SYNTAXES
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from ich_kaggle.common import paths
from ich_kaggle.dicom import pixels

N_FILES = int(os.environ.get("ICH_FUZZ", "2000"))
FIRST = int(os.environ.get("ICH_FUZZ_FIRST", "0"))
SLOW = 2.0  # s of a processor for a file, each way
HUNG = 60.0  # s: it is not waited for any longer
WAYS = ("direct", "folder", "zip")
WORDS = (head((32, 40), 12, (16, 20)) + 1024).astype("u2")


def made_seeds() -> dict[str, bytes]:
    """Return a small slice in each transfer syntax."""
    seeds = {f"{i}-{syntax.name}": content(ct(WORDS, syntax)) for i, syntax in enumerate(SYNTAXES[:4])}
    for syntax in (RLELossless, JPEG2000Lossless):
        dataset = ct(WORDS)
        dataset.compress(syntax)
        seeds[syntax.name] = content(dataset)
    seeds[JPEGLosslessSV1.name] = content(compressed(NOISE, JPEGLosslessSV1, lossless_jpeg(NOISE)))
    return seeds


def before_pixels(inserted: bytes, **tags) -> bytes:
    """Return a slice in whose header, before its pixels, other bytes stand."""
    whole = content(ct(WORDS, **tags))
    at = whole.index(b"\xe0\x7f\x10\0")
    return whole[:at] + inserted + whole[at:]


def deflated(header: bytes) -> bytes:
    """Return a slice, deflated, with other bytes before its pixels."""
    whole = content(ct(WORDS, DeflatedExplicitVRLittleEndian))
    start = 144 + int.from_bytes(whole[140:144], "little")
    body = zlib.decompress(whole[start:], -15)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    at = body.index(b"\xe0\x7f\x10\0")
    return whole[:start] + packer.compress(body[:at] + header + body[at:]) + packer.flush()


def sized(frame: bytes, at: int, *sizes: int) -> bytes:
    return frame[:at] + b"".join(size.to_bytes(4, "big") for size in sizes) + frame[at + 4 * len(sizes) :]


def jpeg_2000(rows: int, columns: int, tile: int) -> bytes:
    """Return a slice of 32 x 40 px in a JPEG 2000 stream that says another size."""
    dataset = ct(WORDS)
    dataset.compress(JPEG2000Lossless)
    frame = sized(sized(get_frame(dataset.PixelData, 0), 8, columns, rows), 24, tile, tile)
    return content(compressed(WORDS, JPEG2000Lossless, frame))


def jpeg(rows: int, columns: int) -> bytes:
    frame = lossless_jpeg(WORDS)
    at = frame.index(b"\xff\xc3") + 5
    frame = frame[:at] + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + frame[at + 4 :]
    return content(compressed(WORDS, JPEGLosslessSV1, frame))


def rle(n_bytes: int, side: int) -> bytes:
    """Return a slice whose RLE unfolds to 64 times its bytes."""
    segment = b"\x81\0" * (n_bytes // 2 - 32)
    frame = struct.pack("<16I", 2, 64, 64 + len(segment) // 2, *[0] * 13) + segment
    return content(compressed(WORDS, RLELossless, frame, Rows=side, Columns=side))


ITEM, ELEMENT = struct.pack("<HHI", 0xFFFE, 0xE000, 0), struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 0)
OPEN = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
SETS = b"A\\" * 10_000

# What would take seconds or gigabytes, and what is said of it.
BOMBS = {
    "pixels that are not there": (lambda: content(ct(WORDS, Rows=2048, Columns=2048)), "truncated"),
    "rows and columns": (lambda: content(ct(WORDS, Rows=65535, Columns=65535)), "not 1 to 2048"),
    "one endless row": (lambda: content(ct(WORDS, Rows=1, Columns=65535)), "not 1 to 2048"),
    "30,000 x 30,000 px of JPEG 2000": (lambda: jpeg_2000(30_000, 30_000, 30_000), "compressed pixels are"),
    "a tile a pixel of JPEG 2000": (lambda: jpeg_2000(32, 40, 1), "tiles of 1 x 1 px"),
    "65,535 x 65,535 px of JPEG": (lambda: jpeg(65_535, 65_535), "compressed pixels are"),
    "RLE unfolded": (lambda: rle(8_000_000, 2048), "bytes of compressed pixels"),
    "RLE for a small slice": (lambda: rle(1_000_000, 32), "bytes of compressed pixels"),
    "a million elements": (lambda: before_pixels(ELEMENT * 1_000_000), "its header has no end"),
    "a million elements, deflated": (lambda: deflated(ELEMENT * 1_000_000), "its header has no end"),
    "a million items": (lambda: before_pixels(OPEN + ITEM * 1_000_000 + END), "its header has no end"),
    "a million items, deflated": (lambda: deflated(OPEN + ITEM * 1_000_000 + END), "its header has no end"),
    "200 MB of zeros, deflated": (lambda: deflated(bytes(200 << 20)), "when inflated"),
    "character sets without end": (
        lambda: before_pixels(b"".join([struct.pack("<HH2sH", 8, 5, b"CS", len(SETS)), SETS] * 100)),
        "its header has no end",
    ),
    "a sequence for a number": (
        lambda: before_pixels(struct.pack("<HH2sHI", 0x28, 0x10, b"SQ", 0, 8_000_000) + ITEM * 1_000_000),
        "a sequence, or too long",
    ),
    "a million numbers for one": (
        lambda: before_pixels(struct.pack("<HH2sHI", 0x28, 0x1053, b"UC", 0, 2_000_000) + b"1\\" * 1_000_000),
        "a sequence, or too long",
    ),
    "sequences 100,000 deep": (lambda: before_pixels((OPEN + ITEM[:4] + b"\xff" * 4) * 100_000), "readable DICOM file"),
    "40 MB behind the pixels": (lambda: content(ct(WORDS)) + bytes(40_000_000), "bytes: not a CT slice"),
    "a padding beyond 16 bits": (lambda: content(padded("1e300")), "which 16 bits can't hold"),
    "HU beyond any": (lambda: content(ct(WORDS, RescaleSlope="1e30")), "do not give HU"),
}


def padded(value: str) -> Dataset:
    dataset = ct(WORDS)
    dataset.add_new("PixelPaddingValue", "DS", value)
    return dataset


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_cannot_ask_for_much(kind, tmp_path):
    """Refused with the reason, by whichever way it is read, within 2 s of a processor and 500 MB."""
    make, message = BOMBS[kind]
    (tmp_path / "data").mkdir()
    stored = make()
    with dicom_reader.Cost() as cost, pytest.raises(ValueError, match=message) as error:
        pixels.read_words(stored, "one.dcm")
    assert cost.seconds < SLOW and cost.memory < dicom_reader.MOST_BYTES
    assert dicom_reader.refusal(error.value, "one.dcm") == "refused"
    assert {dicom_reader.scanned(data, True) for data in dicom_reader.place(stored, tmp_path / "data")} == {"refused"}


@pytest.fixture(scope="session")
def seed_folder(competition, tmp_path_factory) -> Path:
    """Slices of the phantom, one in each transfer syntax, and real ones where ICH_REAL_DATA names some."""
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg, from the extra codecs, is missing")
    folder = tmp_path_factory.mktemp("seeds")
    seeds = {path.stem: path.read_bytes() for path in sorted((competition / "stage_2_train").iterdir())[:4]}
    seeds |= made_seeds()
    if real := os.environ.get("ICH_REAL_DATA"):
        data = paths.find_data(Path(real))
        seeds |= {Path(member.path).stem: data.read(member) for member in data.members("train")[:3]}
        odd = sorted(Path(real).with_name("odd_dicom").glob("*.dcm"))
        seeds |= {path.stem: path.read_bytes() for path in odd}
    for name, seed in seeds.items():
        (folder / name).write_bytes(seed)
    return folder


class Reader:
    """A process that reads mutated files; another one where it has died, or had to be ended."""

    def __init__(self, seed_folder: Path, folder: Path):
        self.seed_folder, self.folder = seed_folder, folder
        self.cwd = folder / "cwd"
        for part in (self.cwd, folder / "data"):
            part.mkdir()

    def start(self, first: int, number: int) -> subprocess.Popen:
        script = Path(__file__).with_name("dicom_reader.py")
        command = [sys.executable, str(script), *map(str, (self.seed_folder, self.folder / "data", first, number))]
        env = os.environ | {"TMPDIR": str(self.cwd), "HOME": str(self.cwd), "OMP_NUM_THREADS": "1"}
        with (self.folder / "stderr").open("wb") as errors:
            # Unbuffered: `select` sees no line that is already in a buffer.
            return subprocess.Popen(command, 0, cwd=self.cwd, env=env, stdout=subprocess.PIPE, stderr=errors)

    def outcomes(self, first: int, number: int):
        """Yield, of each file, what became of it: its number, and a text for each way it was read."""
        end = first + number
        while first < end:
            process = self.start(first, end - first)
            while line := self.line(process):
                found = json.loads(line)
                if len(found) > 1:
                    yield found
                    first = found["file"] + 1
            process.wait()
            reason = (self.folder / "stderr").read_text(errors="replace")[-300:]
            if first < end and process.returncode:
                yield {"file": first, "crashed": f"code {process.returncode}: {reason}"}
                first += 1

    def line(self, process: subprocess.Popen) -> bytes:
        """Return the next line of the process, which is ended where there is none for too long; b"" at its end."""
        if not select.select([process.stdout], [], [], HUNG)[0]:
            process.kill()
        return process.stdout.readline()


def kinds(found: dict) -> list[str]:
    """Return what a file counts as, one way at a time."""
    if "crashed" in found:
        return ["crashed"]
    kinds = [found[way] if found[way] in ("read", "refused") else "lost" for way in WAYS]
    return kinds + ["slow"] * (found["seconds"] > SLOW) + ["too big"] * (found["memory"] > dicom_reader.MOST_BYTES)


@pytest.mark.slow
def test_every_damaged_file_is_read_or_refused_in_one_line(seed_folder, tmp_path):
    reader = Reader(seed_folder, tmp_path)
    counts, lost, most = collections.Counter(), [], {"seconds": 0, "memory": 0}
    for found in reader.outcomes(FIRST, N_FILES):
        counts.update(kinds(found))
        most = {what: max(n, found.get(what, 0)) for what, n in most.items()}
        if set(kinds(found)) - {"read", "refused"}:
            lost.append(f"ICH_FUZZ=1 ICH_FUZZ_FIRST={found['file']}: {found}")
    print(f"{N_FILES} files, {len(WAYS)} ways each: {dict(counts)}; at most {most}")
    assert not lost, f"{len(lost)} of {N_FILES} files are lost:\n" + "\n".join(lost[:20])
    assert N_FILES < 100 or min(counts["read"], counts["refused"]) > N_FILES / 10
    assert not list((tmp_path / "cwd").iterdir())
