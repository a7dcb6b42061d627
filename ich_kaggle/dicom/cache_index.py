"""The index of a cache, ledger.csv: a line per slice, with the checksums of its PNG and of its DICOM file.

A slice is cached when its line is in the index: the line is appended after the PNG is in place. A last line without
its end, which a killed process may leave, does not count. A complete index is sorted like the slice table.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich_kaggle.common import storage


class Line(NamedTuple):
    slice_id: str
    stamp: int  # of the DICOM file when it was scanned, see zip_reader.Member
    source: int  # CRC-32 of the DICOM file
    checksum: int  # CRC-32 of the PNG
    top: int  # px: the part of the slice that is cached
    left: int
    height: int
    width: int
    defect: str = ""


HEAD = ",".join(Line._fields) + "\n"


def path_of(folder: str | Path) -> Path:
    return Path(folder) / "ledger.csv"


def read(folder: str | Path) -> pd.DataFrame:
    """Return the index of the cache in `folder`, by slice_id, empty if there is none. Raises ValueError if damaged."""
    path = path_of(folder)
    if not path.exists():
        return pd.DataFrame(columns=Line._fields[1:], index=pd.Index([], name="slice_id"))
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1] or HEAD.encode()
    types = {"slice_id": str, "defect": str, **dict.fromkeys(Line._fields[1:-1], np.int64)}
    with storage.reading(path, "run python -m ich_kaggle.cache --overwrite"):
        table = pd.read_csv(io.BytesIO(whole), dtype=types, keep_default_na=False)[list(Line._fields)]
    return table.drop_duplicates("slice_id", keep="last").set_index("slice_id")


def write(folder: str | Path, table: pd.DataFrame) -> None:
    with storage.writing(path_of(folder)) as temporary:
        table.to_csv(temporary, lineterminator="\n")


@contextlib.contextmanager
def appending(folder: str | Path) -> Iterator:
    """Yield a function that appends lines to the index; other processes see them at once."""
    write(folder, read(folder))  # whole lines only
    with storage.naming(path_of(folder)), path_of(folder).open("a", encoding="utf-8", newline="") as file:

        def append(lines: Iterable[Line]) -> None:
            file.write("".join(",".join(map(str, line)) + "\n" for line in lines))
            file.flush()

        yield append


def sources_hash(slices: pd.DataFrame) -> str:
    """Return 12 hex digits that identify the slices and their DICOM files, whatever the labels."""
    digest = hashlib.sha256("\n".join(slices.slice_id).encode())
    digest.update(slices.stamp.to_numpy("<i8").tobytes())
    return digest.hexdigest()[:12]
