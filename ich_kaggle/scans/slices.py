"""The slices of a pile by their headers, each with its pixels as the networks were trained on them.

Files that are no plain axial CT slice of a head have a fault: another modality, a localizer, a secondary capture, a
projection or map (by ImageType), another part of the body, a slice normal more than TILTED from the patient's axis.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import disable_value_validation

from ich_kaggle.dicom import frames, geometry, orientation, pixels, tags
from ich_kaggle.scans import pile as pile_module
from ich_kaggle.scans import series_rules, slice_tags

TILTED = 35.0  # degrees; a gantry tilts by 30
HEAD_BYTES = 1 << 10  # that hold the SOP class
DICOMDIR = "1.2.840.10008.1.3.10"
# Warnings of files whose pixels are read nevertheless, and what is said of their number.
DOUBTS = {
    tags.UNENDED: "are of files cut short at their end",
    pixels.LONGER: "are of files with more pixels than Rows and Columns say",
}
IDS = ("StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class Slice:
    """A DICOM file of a pile, or a frame of one. With a `fault`, the reason why it is no axial CT slice of a head,
    the fields below it are unset."""

    source: pile_module.File
    study: str
    series: str
    slice_id: str  # SOP Instance UID, or the file without one; of a frame with its number
    patient: str = ""  # PatientID as stored, which is not written
    frame: int | None = None  # of an Enhanced CT file
    fault: str = ""
    position: float = 0.0  # mm along the slice normal, ascending to the head
    normal: tuple[float, float, float] = (0.0, 0.0, 1.0)  # of the slice, to the head
    height: float = 0.0  # mm: z of its middle
    location: float | None = None  # SliceLocation, mm
    number: int = 0  # InstanceNumber
    acquisition: str = ""  # AcquisitionNumber
    shape: tuple[int, int] = (0, 0)  # px, turned and made square
    spacing: float = 0.0  # mm between its pixels
    turn: orientation.Turn = orientation.Turn(False, False, False, True)
    kernel: str = ""  # ConvolutionKernel
    sharpness: int = series_rules.UNKNOWN  # of the kernel
    contrast: str = ""  # the reason why it may show contrast medium
    is_lossy: bool = False  # LossyImageCompression
    is_original: bool = True  # or derived from other images
    is_head: bool = False  # by its header, or for the user; otherwise its picture must tell

    @property
    def file(self) -> str:
        return self.source.name + ("" if self.frame is None else f" frame {self.frame + 1}")

    def words(self) -> tuple[np.ndarray, pixels.Encoding]:
        """Return the pixels, turned and made square, as words of their encoding. Raises OSError or ValueError."""
        dataset, words = _stored(self.source, self.frame)
        code = pixels.encoding(dataset, self.source.name)
        return orientation.resampled(orientation.turned(words, self.turn), code, self.shape)


def look_at(one: Slice) -> tuple[str, tuple | None]:
    """Return a note on a slice, and its words and encoding; None, and the reason, where they cannot be read."""
    kinds = []
    try:
        with tags.warned(kinds):
            words = one.words()
    except (OSError, ValueError, RuntimeError) as error:
        return pile_module.why(error, str(one.source.data.root), one.source.name), None
    return next((kind for kind in kinds if kind in DOUBTS), ""), words


def read_again(one: Slice) -> tuple[np.ndarray, pixels.Encoding]:
    """Return the words and encoding of a slice that could be read before, without its warnings.

    Raises OSError or ValueError if it cannot be read any more.
    """
    with tags.warned([]):
        return one.words()


def _stored(source: pile_module.File, frame: int | None) -> tuple[pydicom.Dataset, np.ndarray]:
    if frame is None:
        return pixels.read_slice(source.read(), source.name)
    dataset, headers = _enhanced(source)
    return headers[frame], pixels.stored_words(headers[frame], dataset, source.name, frame)


@lru_cache(maxsize=1)
def _enhanced(source: pile_module.File) -> tuple[pydicom.Dataset, list[pydicom.Dataset]]:
    dataset = tags.parse(source.read(), source.name, most_reads=frames.MOST_READS)
    return dataset, frames.headers(dataset, source.name)


@dataclass
class Wanted:
    """What the user overrules: series that are to be read, whatever the part of the body."""

    series: tuple[str, ...] = ()
    any_body_part: bool = False

    def overrules(self, series: str) -> bool:
        return self.any_body_part or series in self.series


@dataclass
class Found:
    """The slices of a pile."""

    pile: pile_module.Pile
    wanted: Wanted
    slices: list[Slice] = field(default_factory=list)

    @property
    def passed_over(self) -> dict[str, str]:
        return self.pile.passed_over


def read(path: str | Path, skip: Path | None = None, wanted: Wanted | None = None) -> Found:
    """Return the headers of the pile in `path`, files below the folder `skip` left out.

    Raises FileNotFoundError if there is nothing, ValueError for a damaged zip or if it has no series that is wanted.
    """
    found = Found(pile_module.Pile(Path(path), skip), wanted or Wanted())
    seen: dict[tuple, list[Slice]] = {}
    for one in _by_patient(list(_headers(found))):
        _keep(seen.setdefault((one.study, one.series, one.slice_id, one.position), []), one, found.pile)
    found.slices = [one for copies in seen.values() for one in copies]
    if missing := set(found.wanted.series) - {one.series for one in found.slices}:
        known = ", ".join(sorted({one.series for one in found.slices})) or "none"
        raise ValueError(f"{path}: no series {sorted(missing)[0]}, which --series names: it has {known}")
    return found


def _headers(found: Found) -> Iterator[Slice]:
    """Yield the slices of every file of the pile, copies too; what cannot be read is passed over."""
    for file in found.pile.files():
        kinds = []
        try:
            with tags.warned(kinds), disable_value_validation():
                slices = list(look(file, found.wanted))
        except (OSError, ValueError) as error:
            found.pile.pass_over(file, error)
            continue
        for kind in kinds:
            found.pile.warned.setdefault(kind, []).append(file.name)
        yield from slices


def _by_patient(slices: list[Slice]) -> list[Slice]:
    """Return `slices`, a study that names several patients as one study for each: `UID, patient 1`.

    The numbers are in the order of the PatientIDs. Slices of such a study without a PatientID keep its name.
    """
    named: dict[str, set[str]] = {}
    for one in slices:
        if one.patient:
            named.setdefault(one.study, set()).add(one.patient)
    names = {
        (study, patient): f"{study}, patient {number}"
        for study, patients in named.items()
        if len(patients) > 1
        for number, patient in enumerate(sorted(patients), 1)
    }
    return [replace(one, study=names.get((one.study, one.patient), one.study)) for one in slices]


def _keep(copies: list[Slice], one: Slice, pile: pile_module.Pile) -> None:
    """Add a slice to those of its id and position, unless it is a copy of one: the whole one of two copies is kept."""
    for i, first in enumerate(copies):
        if not is_copy(first, one):
            continue
        if (not one.fault, one.source.member.size) > (not first.fault, first.source.member.size):
            copies[i], one, first = one, first, one
        pile.passed_over[one.file] = f"a copy of {first.file}: {first.slice_id}"
        return
    copies.append(one)


def is_copy(first: Slice, second: Slice) -> bool:
    """Return whether two slices of one id and position have the same HU, or one of them cannot be read."""
    if first.fault or second.fault:
        return True
    both = [words for _, words in (look_at(first), look_at(second)) if words]
    return len(both) < 2 or np.array_equal(*(pixels.hu_table(code)[words] for words, code in both))


def look(file: pile_module.File, wanted: Wanted) -> Iterator[Slice]:
    """Yield the slices that a file's header describes. Raises OSError or ValueError if it is not DICOM."""
    name, may_be_enhanced = file.name, frames.is_enhanced(file.read(HEAD_BYTES))
    if file.member.size > (frames.MOST_BYTES if may_be_enhanced else tags.MOST_BYTES):
        raise ValueError(f"{file.member.size} bytes: more than a CT slice has")
    most_reads = frames.MOST_READS if may_be_enhanced else tags.MOST_READS
    dataset = tags.parse(file.read(), name, stop_before_pixels=True, most_reads=most_reads)
    if tags.optional(dataset.file_meta, "MediaStorageSOPClassUID", name) == DICOMDIR:
        raise ValueError("a DICOMDIR: the files are found without it")
    ids = [tags.tag(dataset, keyword, name) for keyword in IDS]
    ids.append(tags.optional(dataset, "SOPInstanceUID", name) or name)
    ids = [tags.shown(one, geometry.LONGEST_ID + 1) for one in ids]
    found = Slice(file, *ids, slice_tags.patient(dataset))
    is_enhanced = frames.is_enhanced(str(tags.optional(dataset, "SOPClassUID", name)).encode())
    try:
        headers = frames.headers(dataset, name) if is_enhanced else [dataset]
    except ValueError as error:
        yield replace(found, fault=pile_module.why(error, name))
        return
    for number, header in enumerate(headers):
        one = replace(found, frame=number, slice_id=f"{ids[2]} frame {number + 1}") if is_enhanced else found
        try:
            yield axial_slice(one, header, wanted.overrules(one.series))
        except ValueError as error:
            yield replace(one, fault=pile_module.why(error, name))


def axial_slice(found: Slice, dataset: pydicom.Dataset, any_body_part: bool) -> Slice:
    """Return `found` with the fields of its header. Raises ValueError if it is not an axial CT slice of a head."""
    name, image_type = found.source.name, " ".join(slice_tags.words(dataset, "ImageType"))
    slice_tags.check_slice(dataset, image_type, name)
    texts = {keyword: " ".join(slice_tags.words(dataset, keyword)) for keyword in series_rules.DESCRIPTIONS}
    part = " ".join(slice_tags.words(dataset, "BodyPartExamined"))
    is_head, not_head = (True, "") if any_body_part else series_rules.body_part(part, texts)
    if not_head:
        raise ValueError(not_head)
    dataset.add_new("PatientID", "LO", "-")  # may be empty
    where, turn = geometry.read_header(dataset, name), orientation.turn_of(dataset, name)
    if where.tilt > TILTED:
        raise ValueError(f"not axial: {where.tilt:.0f} degrees from the patient's axis")
    kernel = " ".join(slice_tags.words(dataset, "ConvolutionKernel"))
    sides = ((where.rows, where.columns), (where.row_spacing, where.column_spacing))
    shape, spacing = ((side[::-1] if turn.swap else side) for side in sides)
    normal, height = slice_tags.plane(dataset, where, name)
    return replace(
        found,
        position=where.position if turn.upwards else 0.0 - where.position,
        normal=normal,
        height=height,
        location=slice_tags.number(dataset, "SliceLocation"),
        number=int(slice_tags.number(dataset, "InstanceNumber") or 0),
        acquisition=" ".join(slice_tags.words(dataset, "AcquisitionNumber")),
        shape=orientation.square(shape, spacing),
        spacing=min(spacing),
        turn=turn,
        kernel=kernel,
        sharpness=series_rules.sharpness(kernel, texts["SeriesDescription"]),
        contrast=series_rules.contrast(slice_tags.agent(dataset), {**texts, "ImageType": image_type}),
        is_lossy=slice_tags.words(dataset, "LossyImageCompression") == ["01"],
        is_original=image_type.partition(" ")[0] != "DERIVED",
        is_head=is_head,
    )
