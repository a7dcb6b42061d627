"""The choice of one axial head series per study.

A series without any axial slice left, or longer than a head, is refused. Among the others, PREFERENCES decide, first to
last. What leaves doubt about a series is said in its notes.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from ich_kaggle.scans import resampling
from ich_kaggle.scans.slices import Found, Slice, Wanted

LONGEST = 500.0  # mm: no head and neck is longer
ENOUGH = 10  # positions of a head scan
SEVERAL = 1.5  # images per position: more are phases, as of perfusion
PARALLEL = 0.9998  # the cosine of 1 degree
WIDE, FEW = 1.5, 0.2  # a gap of WIDE medians lacks a position, unless a share of more than FEW is that wide


@dataclass
class Series:
    study: str
    series: str
    slices: list[Slice]  # those that are axial CT, by position and id
    aside: list[Slice]  # the others
    reason: str = ""  # for not choosing it; empty for the chosen one
    notes: list[str] = field(default_factory=list)  # what leaves doubt

    @property
    def position(self) -> np.ndarray:
        return np.array([one.position for one in self.slices])

    @property
    def n_positions(self) -> int:
        return len(resampling.firsts(self.position))

    @property
    def has_phases(self) -> bool:
        return len(self.slices) >= SEVERAL * self.n_positions

    @property
    def kernel(self) -> str:
        return _most_common(one.kernel for one in self.slices)

    @property
    def sharpness(self) -> int:
        return _most_common(one.sharpness for one in self.slices)

    @property
    def contrast(self) -> str:
        return _most_common(one.contrast for one in self.slices)

    @property
    def gap(self) -> float:
        return resampling.gap(self.position)

    def describe(self) -> dict:
        """Return the properties that are reported; of the chosen series also the files left aside."""
        gap = self.gap if self.slices else float("nan")
        about = {"series": self.series, "reason": self.reason, "notes": self.notes, "kernel": self.kernel}
        about |= {"spacing_mm": None if np.isnan(gap) else round(gap, 3)}
        about |= {"n_slices": len(self.slices), "n_left_aside": len(self.aside)}
        if not self.reason:
            about["left_aside"] = [{"file": one.file, "reason": one.fault} for one in self.aside]
        return about


def _most_common(values: Iterable):
    return next((value for value, _ in Counter(values).most_common(1)), "")


def group(slices: Iterable[Slice]) -> list[Series]:
    """Return the series of `slices`, sorted by study and series."""
    found = {}
    for one in slices:
        found.setdefault((one.study, one.series), []).append(one)
    return [_series(*key, found[key]) for key in sorted(found)]


def _series(study: str, series: str, slices: list[Slice]) -> Series:
    axial, notes = _placed([one for one in slices if not one.fault])
    axial, sharper = _plainest(axial)
    axial.sort(key=lambda one: (one.position, one.number, one.slice_id, one.file))
    aside = sorted((one for one in [*slices, *sharper] if one.fault), key=lambda one: (one.slice_id, one.file))
    found = Series(study, series, axial, aside, notes=notes)
    found.notes += doubts(found) if axial else []
    return found


def _placed(slices: list[Slice]) -> tuple[list[Slice], list[str]]:
    """Return `slices` at positions that can be compared, and a note where these are not those along the normal.

    They are z of the middle where slices are not parallel, SliceLocation where ImagePositionPatient is one for all.
    """
    normals = np.array([one.normal for one in slices])
    if len(slices) and (normals @ normals[0]).min() < PARALLEL:
        return [replace(one, position=one.height) for one in slices], ["slices of several tilts in one series"]
    locations = {one.location for one in slices}
    if len({one.position for one in slices}) != 1 or None in locations or len(locations) < 2:
        return slices, []
    note = f"ImagePositionPatient is one for all {len(slices)} slices: ordered by SliceLocation, perhaps upside down"
    return [replace(one, position=one.location) for one in slices], [note]


def _plainest(slices: list[Slice]) -> tuple[list[Slice], list[Slice]]:
    """Return the slices that are the plainest at their position, and the others with a fault.

    Those without contrast medium come first, then those with the softest kernel: a series may hold both.
    """
    best: dict[float, tuple] = {}
    rated = [(one, (bool(one.contrast), one.sharpness)) for one in slices]
    for one, rating in rated:
        best[one.position] = min(rating, best.get(one.position, rating))
    why = "another image at its position has no contrast medium, or a kernel more fit for the brain"
    plainest = [one for one, rating in rated if rating == best[one.position]]
    return plainest, [replace(one, fault=why) for one, rating in rated if rating != best[one.position]]


def doubts(series: Series) -> list[str]:
    """Return what a reader must know of a series whose headers leave doubt."""
    slices, n, found = series.slices, len(series.slices), []
    if series.contrast:
        found.append(f"may show contrast medium: {series.contrast}")
    if n > series.n_positions:
        found.append(f"{n} images at {series.n_positions} position{'s' * (series.n_positions > 1)}")
    if n > (n_ids := len({one.slice_id for one in slices})):
        found.append(f"{n} images share {n_ids} SOPInstanceUID{'s' * (n_ids > 1)}")
    if n_lossy := sum(one.is_lossy for one in slices):
        found.append(f"{n_lossy} images are compressed with loss")
    if 1 < (n_acquisitions := len({one.acquisition for one in slices})) <= series.n_positions / 2:
        found.append(f"{n_acquisitions} acquisitions (AcquisitionNumber) in one series")
    if len(kernels := sorted({one.kernel for one in [*slices, *series.aside] if one.kernel})) > 1:
        found.append(f"several kernels in one series: {', '.join(kernels)}")
    return found + _missing(series)


def _missing(series: Series) -> list[str]:
    at = series.position[resampling.firsts(series.position)]
    gaps = np.diff(at)
    wide = np.flatnonzero(gaps > WIDE * np.median(gaps)) if len(gaps) > 1 else []
    if not 0 < len(wide) <= max(1, FEW * len(gaps)):
        return []
    n = int(np.rint(gaps[wide] / np.median(gaps) - 1).sum())
    first = f"{at[wide[0]]:.1f} and {at[wide[0] + 1]:.1f} mm"
    return [f"about {n} positions are missing, the first between {first}"]


def fault(series: Series, any_length: bool = False) -> str:
    """Return the reason why a series is refused, or an empty string."""
    if not series.slices:
        (why, n), *_ = sorted(Counter(one.fault for one in series.aside).items(), key=lambda item: (-item[1], item[0]))
        return f"{why} ({n} of {len(series.aside)} files)"
    if (length := np.ptp(series.position)) > LONGEST and not any_length:
        return f"{length:.0f} mm long: not a head"
    return ""


def _off(series: Series, step: float) -> float:
    """Return how far the spacing of a series is from `step`: 0 within resampling.NEAR, else in half octaves."""
    return 0.0 if resampling.is_near(series.gap, step) else round(2 * abs(np.log2(series.gap / step))) / 2


# Faults of a series, the gravest first, and a measure of each: the series with the least is chosen.
PREFERENCES: tuple[tuple[str, Callable[[Series, float], object]], ...] = (
    (f"has fewer than {ENOUGH} positions", lambda series, _: series.n_positions < ENOUGH),
    ("may show contrast medium", lambda series, _: bool(series.contrast)),
    ("has several images at a position", lambda series, _: series.has_phases),
    ("is derived from other images", lambda series, _: not series.slices[0].is_original),
    ("has a kernel less fit for the brain", lambda series, _: series.sharpness),
    ("has slices less like the training's in distance", _off),
    ("has fewer positions", lambda series, _: -series.n_positions),
    ("comes later by its id", lambda series, _: series.series),
)


def rank(series: list[Series], step: float, wanted: Wanted | None = None) -> list[Series]:
    """Return the readable ones of a study's `series` by descending preference; the others get a reason.

    `step` is the slice spacing of the training, mm. If some series of the study are `wanted`, no other is read.
    """
    wanted = wanted or Wanted()
    named = [one.series for one in series if one.series in wanted.series]
    for one in series:
        one.reason = fault(one, wanted.overrules(one.series))
        if named and one.series not in named:
            one.reason = f"--series names {named[0]}"

    def key(one: Series) -> tuple:
        return tuple(how_much(one, step) for _, how_much in PREFERENCES)

    return sorted((one for one in series if not one.reason), key=key)


def compare(chosen: Series, other: Series, step: float) -> str:
    """Return the reason why `chosen` is preferred to `other`."""
    what = next(text for text, how_much in PREFERENCES if how_much(chosen, step) != how_much(other, step))
    return f"{chosen.series} is preferred: this one {what}"


def studies(found: Found) -> dict[str, list[Series]]:
    """Return the series of each study of a pile, by study."""
    of_study = {}
    for one in group(found.slices):
        of_study.setdefault(one.study, []).append(one)
    return of_study
