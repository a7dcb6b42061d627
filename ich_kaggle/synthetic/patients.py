"""Synthetic patients: which bleed, how each is scanned, and the DICOM files and labels of their slices."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ich_kaggle.common import storage
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.synthetic import dicom_writer, scanner, studies
from ich_kaggle.synthetic.variety import VARIETIES

HARMLESS = ("repeated", "resized", "restudied")  # z positions; another matrix; two studies of a patient
DEFECTS = (*HARMLESS, "duplicated", "truncated", "intercept")  # label rows; PixelData; RescaleIntercept
SHAPES = ((408, 374), (464, 464), (638, 490), (768, 768))  # rows, columns where the others have 512


@dataclass(frozen=True)
class Settings:
    """The settings of a synthetic competition, which decide every byte of it."""

    patients: int = 120
    test_fraction: float = 0.2
    slices: int = 32  # per study, about
    size: int = 256  # px
    seed: int = 0
    prevalence: float | str = 0.5  # share of patients with blood, or "real"
    variety: str = "plain"  # a key of VARIETIES: scanners, anatomy and blood
    label_noise: float = 0.15  # chance of an error at each end of a lesion
    defects: float = 0.01  # share of patients with each defect
    masks: bool = False
    zip: bool = False


@dataclass(frozen=True)
class Patient:
    """A patient as planned, before anything is drawn or written."""

    number: int
    split: str
    kind: str | None  # of the first hemorrhage
    form: dicom_writer.Format
    defects: frozenset[str]


def plan(settings: Settings) -> list[Patient]:
    """Return every patient of the competition: train first, then test."""
    rng = np.random.default_rng([settings.seed, 2**32 - 1])
    n_test = min(settings.patients - 1, max(1, round(settings.patients * settings.test_fraction)))
    patients = []
    for split, n in (("train", settings.patients - n_test), ("test", n_test)):
        kinds = _kinds(rng, settings.prevalence, n)
        forms = _quota(rng, dicom_writer.FORMATS, [form.share for form in dicom_writer.FORMATS], n)
        defects = _defects(rng, settings.defects, n, DEFECTS if split == "train" else HARMLESS)
        for kind, form, carried in zip(kinds, forms, defects, strict=True):
            form = dicom_writer.WRONG_INTERCEPT if "intercept" in carried else form
            patients.append(Patient(len(patients), split, kind, form, carried))
    return patients


def _quota(rng: np.random.Generator, items: tuple, shares: tuple, n: int) -> list:
    """Return `n` of `items` in random order, each in proportion to its share."""
    edges = np.cumsum(shares) / np.sum(shares)
    chosen = [items[i] for i in np.searchsorted(edges, (np.arange(n) + 0.5) / max(n, 1))]
    return [chosen[i] for i in rng.permutation(n)]


def _kinds(rng: np.random.Generator, prevalence: float | str, n: int) -> list[str | None]:
    real = prevalence == "real"
    n_blood = round((studies.REAL_PREVALENCE if real else prevalence) * n)
    kinds = _quota(rng, LABELS[:ANY], studies.REAL_FIRST if real else studies.ENRICHED_FIRST, n_blood) + [None] * (
        n - n_blood
    )
    return [kinds[i] for i in rng.permutation(n)]


def _defects(rng: np.random.Generator, rate: float, n: int, names: tuple[str, ...]) -> list[frozenset[str]]:
    """Return the defects of `n` patients: each in a share `rate` of them, in at least one unless `rate` is 0."""
    count = max(1, round(rate * n)) if rate else 0
    order = rng.permutation(n)
    carriers = {name: {order[(k * count + i) % n] for i in range(count)} for k, name in enumerate(names)}
    return [frozenset(name for name in names if patient in carriers[name]) for patient in range(n)]


def hashed(number: int, digits: int, seed: int) -> str:
    """Return `ID_` and `digits` hex digits, unique for every `number` below 16**digits, in no order."""
    mask = 16**digits - 1
    number = (number + (seed + 1) * 0x9E3779B97F4A7C15) & mask
    for odd in (0xD1B54A32D192ED03, 0x9FB21C651E98DF25):  # odd factors and shifts are invertible, so no two collide
        number = (number * odd) & mask
        number ^= number >> 2 * digits
    return f"ID_{number:0{digits}x}"


def write(patient: Patient, settings: Settings, out: Path) -> pd.DataFrame:
    """Write the DICOM files and masks of a patient below `out`, and return a row per slice for the tables."""
    dicom_writer.allow_short_ids()
    rng = np.random.default_rng([settings.seed, patient.number])
    head = studies.draw_head(rng, patient.kind, VARIETIES[settings.variety])
    n_studies = 2 if "restudied" in patient.defects else 1
    return pd.concat([_write_study(patient, head, k, rng, settings, out) for k in range(n_studies)], ignore_index=True)


def _write_study(patient: Patient, head, study: int, rng, settings: Settings, out: Path) -> pd.DataFrame:
    shape = (settings.size, settings.size)
    if "resized" in patient.defects:
        shape = tuple(n * settings.size // 512 for n in SHAPES[rng.integers(len(SHAPES))])
    gantry, positions = studies.prescribe(rng, head, shape, settings.slices, VARIETIES[settings.variety])
    if "repeated" in patient.defects:
        middle = len(positions) // 2
        positions = np.sort(np.concatenate([positions, positions[middle : middle + 4]]))
    ids = [hashed(patient.number * 1024 + study * 512 + i, 9, settings.seed) for i in range(len(positions))]
    uids = (hashed(4 * patient.number + 2 * study + i, 10, settings.seed) for i in range(2))
    dicom = dicom_writer.header(patient.form, hashed(patient.number, 8, settings.seed), *uids)
    dicom_writer.geometry(dicom, gantry.shape, gantry.pixel, gantry.tilt)
    x, y, z = gantry.corner(rng.uniform(-60, 120))
    cut = len(ids) // 2 if "truncated" in patient.defects and study == 0 else -1
    pixels = np.zeros((len(ids), ANY), int)
    for i, (slice_id, position) in enumerate(zip(ids, positions, strict=True)):
        hu, blood = scanner.scan(head, gantry, position, rng)
        pixels[i] = studies.pixels_of(blood)
        data = dicom_writer.store(hu, patient.form).tobytes()
        data = data[: len(data) // 6 * 2] if i == cut else data
        with storage.writing(out / f"stage_2_{patient.split}" / f"{slice_id}.dcm", sweep=False) as temporary:
            dicom_writer.write(temporary, dicom, slice_id, (x, y, z + position), data)
        if settings.masks and blood.any():
            with storage.writing(out / "masks" / f"{slice_id}.png", sweep=False) as temporary:
                temporary.write_bytes(cv2.imencode(".png", blood)[1])
    labels = studies.labels_of(pixels, gantry)
    read = read_errors(rng, labels, settings.label_noise)
    return _rows(patient, ids, dicom.PatientID, pixels, labels, read)


def read_errors(rng: np.random.Generator, labels: np.ndarray, rate: float) -> np.ndarray:
    """Return `labels` (n_slices, 5) as a reader gives them: each end of a lesion off by one with chance `rate`."""
    read = labels.copy()
    for kind in range(labels.shape[1]):
        edges = np.flatnonzero(np.diff(labels[:, kind], prepend=0, append=0))
        for first, after in zip(edges[::2], edges[1::2], strict=True):
            for inner, outer in ((first, first - 1), (after - 1, after)):
                error, wider = rng.random() < rate, rng.random() < 0.5
                if error and wider and 0 <= outer < len(labels):
                    read[outer, kind] = 1
                elif error and not wider and after - first > 2:
                    read[inner, kind] = 0
    return read


def _rows(patient: Patient, ids: list[str], patient_id: str, pixels, labels, read) -> pd.DataFrame:
    """Return a row per slice: the truth, and `read_<label>` and `listed_twice` for the label table."""
    table = pd.DataFrame({"slice_id": ids, "split": patient.split, "patient_id": patient_id})
    table[[f"{label}_px" for label in LABELS[:ANY]]] = pixels
    table[list(LABELS)] = np.c_[labels, labels.max(1)]
    table[[f"read_{label}" for label in LABELS]] = np.c_[read, read.max(1)]
    table["listed_twice"] = ("duplicated" in patient.defects) & (np.arange(len(ids)) < 4)
    return table
