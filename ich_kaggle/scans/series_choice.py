"""The DICOM slices of a folder, zip or file, and the choice of one axial head series per study.

In a pile, files that are not DICOM and duplicate slices are passed over. In a series, files that are not plain axial CT
slices are left aside: another modality, a localizer, a secondary capture (by SOP class, or ImageType
DERIVED\\SECONDARY), BodyPartExamined other than the head, a slice normal more than TILTED from the patient's axis. A
series without any slice left, or longer than a head, is refused. Among the others, PREFERENCES decide, first to last.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import disable_value_validation

from ich_kaggle.common import cli, paths, zip_reader
from ich_kaggle.dicom import geometry, pixels, tags
from ich_kaggle.scans import resampling

TILTED = 35.0  # degrees; a gantry tilts by 30
LONGEST = 500.0  # mm: no head and neck is longer
ENOUGH = 10  # slices of a head scan
PREAMBLE = 132  # bytes before the header, the last four of them DICM, PS3.10 7.1
HEAD = re.compile("HEAD|BRAIN|SKULL|CRANI|CEREB|NEURO")  # in BodyPartExamined
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7."  # this SOP class and those below it, PS3.4 B.5
DICOMDIR = "1.2.840.10008.1.3.10"

# Reconstruction kernels by the names that vendors give them in ConvolutionKernel (0018,1210). Brain is read in smooth
# ones; those for bone and lung raise the noise that blood hides in. Siemens numbers its kernels by sharpness (H31s,
# Hr40, B70f; for higher sharpness B50s, B60s, B70s: SOMATOM Sensation, operating instructions); of Toshiba's and
# Canon's, FC30 to 39, 50 to 59 and 80 to 89 are for bone and lung; GE's and Philips' have names.
SOFT, UNKNOWN, SHARP = range(3)
WORDS = {
    SOFT: {"STANDARD", "STND", "STD", "SOFT", "BRAIN", "SMOOTH", "A", "B", "C", "UA", "UB", "UC"},
    SHARP: {"BONE", "BONEPLUS", "BONE+", "EDGE", "LUNG", "ULTRA", "SHARP", "D", "E", "L", "YD", "YE"},
}
SIEMENS = re.compile(r"[A-Z][A-Z]?(\d\d)[A-Z]?\b")  # H31s, Hr40d, Br59
SHARP_FROM = 50
CANON = re.compile(r"FC(\d)\d")
SHARP_TENS = "358"


@dataclass(frozen=True)
class Slice:
    """A DICOM file of a pile. With a `fault`, the reason why it is no axial CT slice, the other fields are unset."""

    member: zip_reader.Member
    study: str
    series: str
    slice_id: str  # SOP Instance UID
    fault: str = ""
    position: float = 0.0  # mm along the slice normal
    shape: tuple[int, int] = (0, 0)  # px
    row_spacing: float = 0.0  # mm
    kernel: str = ""  # ConvolutionKernel
    is_original: bool = True  # or derived from other images

    @property
    def file(self) -> str:
        return cli.printable(self.member.path, 1000)


@dataclass
class Series:
    study: str
    series: str
    slices: list[Slice]  # those that are axial CT, by position and id
    aside: list[Slice]  # the others
    reason: str = ""  # for not choosing it; empty for the chosen one

    @property
    def position(self) -> np.ndarray:
        return np.array([one.position for one in self.slices])

    @property
    def kernel(self) -> str:
        return self.slices[0].kernel if self.slices else ""

    @property
    def gap(self) -> float:
        return resampling.gap(self.position)

    def describe(self) -> dict:
        """Return the properties that are reported; of the chosen series also the files left aside."""
        gap = self.gap if self.slices else float("nan")
        about = {"series": self.series, "reason": self.reason, "kernel": self.kernel}
        about |= {"spacing_mm": None if np.isnan(gap) else round(gap, 3)}
        about |= {"n_slices": len(self.slices), "n_left_aside": len(self.aside)}
        if not self.reason:
            about["left_aside"] = [{"file": one.file, "reason": one.fault} for one in self.aside]
        return about


@dataclass
class Pile:
    data: paths.Data
    slices: list[Slice] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)  # file -> why


def _folder(root: Path, skip: Path | None) -> Iterator[zip_reader.Member]:
    """Yield the regular files below `root`, except those below `skip`. Links to folders are not followed."""
    for folder, folders, files in os.walk(root, onerror=_stop):
        folders[:] = sorted(name for name in folders if (Path(folder) / name).absolute() != skip)
        for name in sorted(files):
            path = Path(folder) / name
            status = path.stat() if path.exists() else path.lstat()
            if stat.S_ISREG(status.st_mode):
                yield zip_reader.Member(path.relative_to(root).as_posix(), status.st_size, stamp=status.st_mtime_ns)


def _stop(error: OSError) -> None:
    raise error


def find(path: Path, skip: Path | None = None) -> tuple[paths.Data, list[zip_reader.Member]]:
    """Return the source and the list of the files of the pile in `path`, without those in the folder `skip`.

    Raises FileNotFoundError if `path` does not exist, ValueError for a damaged or hostile zip.
    """
    if path.is_dir():
        return paths.Data(path), list(_folder(path, skip and skip.absolute()))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give a folder, a zip or a file")
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return paths.Data(path), zip_reader.untrusted(path)
    status = path.stat()
    return paths.Data(path.parent), [zip_reader.Member(path.name, status.st_size, stamp=status.st_mtime_ns)]


@disable_value_validation()
def look(data: paths.Data, member: zip_reader.Member) -> Slice:
    """Return the slice that a file's header describes. Raises ValueError, without its name, if it is not DICOM."""
    name = member.path
    if data.read(member, PREAMBLE)[-4:] != b"DICM":
        raise ValueError("not DICOM")
    if member.size > tags.MOST_BYTES:
        raise ValueError(f"{member.size} bytes: more than a CT slice has")
    dataset = tags.parse(data.read(member), name, stop_before_pixels=True)
    if tags.optional(dataset.file_meta, "MediaStorageSOPClassUID", name) == DICOMDIR:
        raise ValueError("a DICOMDIR: the files are found without it")
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    found = Slice(member, *(tags.shown(tags.tag(dataset, keyword, name)) for keyword in keywords))
    try:
        return axial_slice(found, dataset)
    except ValueError as error:
        return replace(found, fault=str(error).removeprefix(f"{name}: "))


def axial_slice(found: Slice, dataset: pydicom.Dataset) -> Slice:
    """Return `found` with the fields of its header. Raises ValueError if it is not an axial CT slice of a head."""
    name = found.member.path
    pixels.check_ct(dataset, name)
    image_type = _words(dataset, "ImageType", name)
    is_captured = f"{tags.optional(dataset, 'SOPClassUID', name)}.".startswith(SECONDARY_CAPTURE)
    if is_captured or image_type[:2] == ["DERIVED", "SECONDARY"]:
        raise ValueError("a derived secondary capture")
    if (part := " ".join(_words(dataset, "BodyPartExamined", name))) and not HEAD.search(part):
        raise ValueError(f"BodyPartExamined is {part}: not a head")
    dataset.add_new("PatientID", "LO", "-")  # may be empty, and is not used: studies stand for themselves
    where = geometry.read_header(dataset, name)
    if where.tilt > TILTED:
        raise ValueError(f"not axial: {where.tilt:.0f} degrees from the patient's axis")
    return replace(
        found,
        position=where.position,
        shape=(where.rows, where.columns),
        row_spacing=where.row_spacing,
        kernel=" ".join(_words(dataset, "ConvolutionKernel", name)),
        is_original=image_type[:1] != ["DERIVED"],
    )


def _words(dataset: pydicom.Dataset, keyword: str, name: str) -> list[str]:
    value = tags.optional(dataset, keyword, name)
    values = [] if value is None else [value] if isinstance(value, str) else list(value)
    return [tags.shown(part).strip().upper() for part in values]


def read(path: Path, skip: Path | None = None) -> Pile:
    """Return the headers of the pile in `path`, files below the folder `skip` left out."""
    data, members = find(path, skip)
    pile, seen = Pile(data), {}
    for member in cli.progress(members, len(members), "read headers", " files"):
        try:
            found = look(data, member)
        except ValueError as error:
            shown = cli.printable(str(error).removeprefix(f"{member.path}: "), 300)
            pile.passed_over[cli.printable(member.path, 1000)] = shown
            continue
        key = (found.study, found.series, found.slice_id)
        first = seen.setdefault(key, found)
        if first is found:
            continue
        if (not found.fault, found.member.size) > (not first.fault, first.member.size):  # no copy that is cut off
            seen[key], first, found = found, found, first
        pile.passed_over[found.file] = f"{found.slice_id} is there already: {first.file}"
    pile.slices.extend(seen.values())
    return pile


def group(slices: Iterable[Slice]) -> list[Series]:
    """Return the series of `slices`, sorted by study and series."""
    found = {}
    for one in slices:
        found.setdefault((one.study, one.series), []).append(one)
    return [_series(*key, found[key]) for key in sorted(found)]


def _series(study: str, series: str, slices: list[Slice]) -> Series:
    axial = sorted((one for one in slices if not one.fault), key=lambda one: (one.position, one.slice_id))
    return Series(study, series, axial, sorted((one for one in slices if one.fault), key=lambda one: one.slice_id))


def fault(series: Series) -> str:
    """Return the reason why a series is refused, or an empty string."""
    if not series.slices:
        (why, n), *_ = sorted(Counter(one.fault for one in series.aside).items(), key=lambda item: (-item[1], item[0]))
        return f"{why} ({n} of {len(series.aside)} files)"
    if (length := np.ptp(series.position)) > LONGEST:
        return f"{length:.0f} mm long: not a head"
    return ""


def sharpness(kernel: str) -> int:
    """Return SOFT, UNKNOWN or SHARP for the name of a kernel, which may have a second part: `Hr40 3`."""
    words = set(re.split(r"[\s\\_/-]+", kernel.upper()))
    if any(word.startswith("BONE") for word in words) or words & WORDS[SHARP]:
        return SHARP
    if found := CANON.search(kernel.upper()):
        return SHARP if found[1] in SHARP_TENS else SOFT
    if found := SIEMENS.match(kernel.upper()):
        return SHARP if int(found[1]) >= SHARP_FROM else SOFT
    return SOFT if words & WORDS[SOFT] else UNKNOWN


def _off(series: Series, step: float) -> float:
    """Return how far the spacing of a series is from `step`: 0 within resampling.NEAR, else in half octaves."""
    return 0.0 if resampling.is_near(series.gap, step) else round(2 * abs(np.log2(series.gap / step))) / 2


# Faults of a series, the gravest first, and a measure of each: the series with the least is chosen.
PREFERENCES: tuple[tuple[str, Callable[[Series, float], object]], ...] = (
    (f"has fewer than {ENOUGH} slices", lambda series, _: len(series.slices) < ENOUGH),
    ("is derived from other images", lambda series, _: not series.slices[0].is_original),
    ("has a kernel less fit for the brain", lambda series, _: sharpness(series.kernel)),
    ("has slices less like the training's in distance", _off),
    ("has fewer slices", lambda series, _: -len(series.slices)),
    ("comes later by its id", lambda series, _: series.series),
)


def rank(series: list[Series], step: float) -> list[Series]:
    """Return the readable ones of a study's `series` by descending preference; the others get a reason.

    `step` is the slice spacing of the training, mm.
    """
    for one in series:
        one.reason = fault(one)

    def key(one: Series) -> tuple:
        return tuple(how_much(one, step) for _, how_much in PREFERENCES)

    return sorted((one for one in series if not one.reason), key=key)


def compare(chosen: Series, other: Series, step: float) -> str:
    """Return the reason why `chosen` is preferred to `other`."""
    what = next(text for text, how_much in PREFERENCES if how_much(chosen, step) != how_much(other, step))
    return f"{chosen.series} is preferred: this one {what}"


def studies(pile: Pile) -> dict[str, list[Series]]:
    """Return the series of each study of a pile, by study."""
    found = {}
    for one in group(pile.slices):
        found.setdefault(one.study, []).append(one)
    return found
