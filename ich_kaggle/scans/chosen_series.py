"""The series that is read of each study, with the pictures of its slices that the models see.

Up to a share UNREAD of the slices of a series may be unreadable: they are listed without probabilities, and the models
do not see them. Otherwise the series is refused, and the next best of its study is read.
"""

from dataclasses import dataclass

import numpy as np

from ich_kaggle.dicom import head_crop, png, slice_image
from ich_kaggle.scans import head_picture, series_choice, slices

UNREAD = 0.1  # of the slices of a series

Kind = tuple[int, str]  # size of a picture in px, and its crop


@dataclass
class Scan:
    """The chosen series of a study."""

    series: series_choice.Series
    notes: list[str]  # of each of its slices
    is_read: np.ndarray  # bool (n_slices,)
    pictures: dict[Kind, list[bytes]]  # PNG files of the slices that could be read

    @property
    def position(self) -> np.ndarray:
        return self.series.position[self.is_read]

    def draw(self, row: int, words: tuple, kinds: list[Kind], box: head_crop.Box | None = None) -> None:
        """Add the pictures of the slice `row` with the `words` and their encoding, cut to `box`."""
        for kind in kinds:
            made = slice_image.drawn(*words, kind[0], box)
            self.pictures[kind].append(png.encode(made.image))
            self.notes[row] = self.notes[row] or made.defect


def boxes_of(found: list[slices.Slice]) -> dict[tuple[int, int], object]:
    """Return the box of the head for each slice shape, as in the cache."""
    boxes = {}
    for shape in sorted({one.shape for one in found}):
        alike = [one for one in found if one.shape == shape]
        boxes[shape] = slice_image.box_of((slices.read_again(one) for one in alike), alike[0].spacing)
    return boxes


def read_series(found: series_choice.Series, kinds: list[Kind]) -> Scan:
    """Return a series with the pictures, of each of the `kinds`, of its readable slices.

    Raises OSError or ValueError if one of them cannot be read a second time.
    """
    scan = Scan(found, [], np.zeros(len(found.slices), bool), {kind: [] for kind in kinds})
    cropped = [kind for kind in kinds if kind[1] == "study"]
    for row, one in enumerate(found.slices):
        note, words = slices.look_at(one)
        scan.notes.append(note)
        if words:
            scan.is_read[row] = True
            scan.draw(row, words, [kind for kind in kinds if kind not in cropped])
    readable = [one for one, is_read in zip(found.slices, scan.is_read, strict=True) if is_read]
    boxes = boxes_of(readable) if cropped else {}
    for row, one in zip(np.flatnonzero(scan.is_read), readable if cropped else (), strict=bool(cropped)):
        scan.draw(row, slices.read_again(one), cropped, boxes[one.shape])
    return scan


def choose(of_study: list[series_choice.Series], kinds: list[Kind], step: float, wanted: slices.Wanted) -> Scan | None:
    """Return the scan of the best readable series of a study, None if there is none; the others get a reason."""
    ranked = series_choice.rank(of_study, step, wanted)
    for i, one in enumerate(ranked):
        one.reason = head_picture.refusal(one)
        scan = None if one.reason else read_series(one, kinds)
        if scan is None:
            continue
        unread = np.flatnonzero(~scan.is_read)
        if len(unread) > UNREAD * len(scan.is_read):
            first = f"{one.slices[unread[0]].file}: {scan.notes[unread[0]]}"
            one.reason = f"{len(unread)} of {len(scan.is_read)} slices cannot be read, the first {first}"
            continue
        counts = [(len(unread), "cannot be read")]
        counts += [(scan.notes.count(note), what) for note, what in slices.DOUBTS.items()]
        one.notes += [f"{n} of {len(scan.is_read)} slices {what}" for n, what in counts if n]
        for other in ranked[i + 1 :]:
            other.reason = series_choice.compare(one, other, step)
        return scan
    return None
