"""Make a synthetic competition: head-CT phantoms with hemorrhages, as DICOM, in Kaggle's layout.

Every patient has an anatomy of their own; lesions come in the five kinds of the labels, and single slices of them are
as ambiguous as real ones. The same seed gives the same bytes, whatever the number of workers.

Reads:   nothing
Writes:  <out>/stage_2_train/*.dcm, stage_2_test/*.dcm, stage_2_train.csv, stage_2_sample_submission.csv
         <out>/truth.parquet: pixels of blood and labels without reading errors, of all slices, test too
         <out>/masks/*.png with --masks (bit i = label i); <out>.zip with --zip, the first four as Kaggle's download
Example: python -m ich_kaggle.phantom --patients 120 --size 256
         python -m ich_kaggle.train --fold 0
"""

import argparse
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from ich_kaggle.common import cli, locks, paths, storage
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.synthetic import anatomy, dicom_writer, hemorrhages, scanner

SETTINGS, TRUTH = "phantom.json", "truth.parquet"
SMALLEST = 12.0  # mm2: a slice with less blood of a kind does not have its label

# How often a patient with blood has each kind first, and which others come along.
REAL_PREVALENCE = 0.42  # of the patients
REAL_FIRST = (0.015, 0.335, 0.04, 0.26, 0.35)
ENRICHED_FIRST = (0.13, 0.29, 0.05, 0.24, 0.29)
ALONG = {
    "epidural": {"subarachnoid": 0.25, "subdural": 0.3},
    "intraparenchymal": {"intraventricular": 0.42, "subarachnoid": 0.25, "subdural": 0.12},
    "intraventricular": {"subarachnoid": 0.2},
    "subarachnoid": {"intraventricular": 0.25, "intraparenchymal": 0.15, "subdural": 0.2},
    "subdural": {"subarachnoid": 0.3, "intraparenchymal": 0.12},
}

HARMLESS = ("repeated", "resized", "restudied")  # z positions; another matrix; two studies of a patient
DEFECTS = (*HARMLESS, "duplicated", "truncated", "intercept")  # label rows; PixelData; RescaleIntercept
SHAPES = ((408, 374), (464, 464), (638, 490), (768, 768))  # rows, columns where the others have 512


@dataclass(frozen=True)
class Settings:
    """What decides every byte; build_parser has the limits."""

    patients: int = 120
    test_fraction: float = 0.2
    slices: int = 32  # of a study, about
    size: int = 256  # px
    seed: int = 0
    prevalence: float | str = 0.5  # of patients with blood, or "real"
    label_noise: float = 0.15  # at each end of a lesion
    defects: float = 0.01  # of the patients, each defect
    masks: bool = False
    zip: bool = False


@dataclass(frozen=True)
class Patient:
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
    """Return `n` of `items`, shuffled, every one as often as its share says."""
    edges = np.cumsum(shares) / np.sum(shares)
    chosen = [items[i] for i in np.searchsorted(edges, (np.arange(n) + 0.5) / max(n, 1))]
    return [chosen[i] for i in rng.permutation(n)]


def _kinds(rng: np.random.Generator, prevalence: float | str, n: int) -> list[str | None]:
    real = prevalence == "real"
    n_blood = round((REAL_PREVALENCE if real else prevalence) * n)
    kinds = _quota(rng, LABELS[:ANY], REAL_FIRST if real else ENRICHED_FIRST, n_blood) + [None] * (n - n_blood)
    return [kinds[i] for i in rng.permutation(n)]


def _defects(rng: np.random.Generator, rate: float, n: int, names: tuple[str, ...]) -> list[frozenset[str]]:
    """Return the defects of `n` patients: each in `rate` of them, but in one at least unless `rate` is 0."""
    count = max(1, round(rate * n)) if rate else 0
    order = rng.permutation(n)
    carriers = {name: {order[(k * count + i) % n] for i in range(count)} for k, name in enumerate(names)}
    return [frozenset(name for name in names if patient in carriers[name]) for patient in range(n)]


def hashed(number: int, digits: int, seed: int) -> str:
    """Return `ID_` and `digits` hex digits: another for every `number` below 16**digits, in no order."""
    mask = 16**digits - 1
    number = (number + (seed + 1) * 0x9E3779B97F4A7C15) & mask
    for odd in (0xD1B54A32D192ED03, 0x9FB21C651E98DF25):  # odd factors and shifts can be undone: no two meet
        number = (number * odd) & mask
        number ^= number >> 2 * digits
    return f"ID_{number:0{digits}x}"


def write_patient(patient: Patient, settings: Settings, out: Path) -> pd.DataFrame:
    """Write every DICOM and mask of a patient; return the rows of their slices for the tables."""
    dicom_writer.allow_short_ids()
    rng = np.random.default_rng([settings.seed, patient.number])
    head = anatomy.Head(rng)
    hemorrhages.bleed(rng, head, _all_kinds(rng, patient.kind))
    studies = 2 if "restudied" in patient.defects else 1
    return pd.concat([_write_study(patient, head, k, rng, settings, out) for k in range(studies)], ignore_index=True)


def _all_kinds(rng: np.random.Generator, first: str | None) -> list[str]:
    return [first] + [kind for kind, share in ALONG[first].items() if rng.random() < share] if first else []


def _write_study(patient: Patient, head, study: int, rng, settings: Settings, out: Path) -> pd.DataFrame:
    gantry, positions = _prescribe(patient, head, rng, settings)
    ids = [hashed(patient.number * 1024 + study * 512 + i, 9, settings.seed) for i in range(len(positions))]
    uids = (hashed(4 * patient.number + 2 * study + i, 10, settings.seed) for i in range(2))
    dicom = dicom_writer.header(patient.form, hashed(patient.number, 8, settings.seed), *uids)
    dicom_writer.geometry(dicom, gantry.shape, gantry.pixel, gantry.tilt)
    x, y, z = gantry.corner(rng.uniform(-60, 120))
    cut = len(ids) // 2 if "truncated" in patient.defects and study == 0 else -1
    pixels = np.zeros((len(ids), ANY), int)
    for i, (slice_id, position) in enumerate(zip(ids, positions, strict=True)):
        hu, blood = scanner.scan(head, gantry, position, rng)
        pixels[i] = pixels_of(blood)
        data = dicom_writer.store(hu, patient.form).tobytes()
        data = data[: len(data) // 6 * 2] if i == cut else data
        with storage.writing(out / f"stage_2_{patient.split}" / f"{slice_id}.dcm", sweep=False) as temporary:
            dicom_writer.write(temporary, dicom, slice_id, (x, y, z + position), data)
        if settings.masks and blood.any():
            with storage.writing(out / "masks" / f"{slice_id}.png", sweep=False) as temporary:
                temporary.write_bytes(cv2.imencode(".png", blood)[1])
    labels = (pixels * gantry.pixel**2 >= SMALLEST).astype(np.int8)
    read = read_errors(rng, labels, settings.label_noise)
    return _rows(patient, ids, dicom.PatientID, pixels, labels, read)


def pixels_of(blood: np.ndarray) -> np.ndarray:
    return np.array([np.count_nonzero(blood & (1 << k)) for k in range(ANY)])


def _prescribe(patient: Patient, head: anatomy.Head, rng, settings: Settings) -> tuple[anatomy.Gantry, np.ndarray]:
    """Return how a study is scanned: the gantry, and table positions (mm) from the skull's base to over its top."""
    shape = (settings.size, settings.size)
    if "resized" in patient.defects:
        shape = tuple(n * settings.size // 512 for n in SHAPES[rng.integers(len(SHAPES))])
    low, high = rng.uniform(-70, -52), head.half[2] + head.scalp + rng.uniform(0, 12)
    n = (high - low) / 2.5 if rng.random() < 0.08 else settings.slices * rng.uniform(0.8, 1.15)
    depths = np.linspace(low, high, int(np.clip(round(n), 3, 2 * settings.slices)))
    gantry = draw_gantry(rng, shape, min(depths[1] - depths[0], 6.0), depths.mean())
    if "repeated" in patient.defects:
        middle = len(depths) // 2
        depths = np.sort(np.concatenate([depths, depths[middle : middle + 4]]))
    return gantry, np.round(depths / np.cos(gantry.tilt), 3)


def draw_gantry(rng: np.random.Generator, shape: tuple[int, int], thickness: float, middle: float) -> anatomy.Gantry:
    """Return a random way to scan a study of slices `thickness` mm thick, centered at depth `middle` (mm)."""
    tilt = np.deg2rad(rng.uniform(-20, 20)) if rng.random() < 0.53 else 0.0
    return anatomy.Gantry(
        shape=shape,
        pixel=round(rng.uniform(225, 258) / min(shape), 6),
        thickness=thickness,
        tilt=tilt,
        pose=anatomy.turn(*np.deg2rad(rng.normal(0, (6, 3, 6)))),
        center=(rng.normal(0, 4), rng.normal(0, 5) - middle * np.tan(tilt)),
        noise=float(np.clip(rng.lognormal(0.85, 0.3), 1.3, 5)),
        kernel=rng.uniform(0.35, 0.6),
        holder=rng.uniform(98, 112) if rng.random() < 0.7 else 0,
    )


def read_errors(rng: np.random.Generator, labels: np.ndarray, rate: float) -> np.ndarray:
    """Return `labels` (n_slices, 5) as a reader gives them: by `rate`, either end of a lesion is a slice off."""
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
    """Return a study's rows of the truth, and for the label table `read_<label>` and `listed_twice`."""
    table = pd.DataFrame({"slice_id": ids, "split": patient.split, "patient_id": patient_id})
    table[[f"{label}_px" for label in LABELS[:ANY]]] = pixels
    table[list(LABELS)] = np.c_[labels, labels.max(1)]
    table[[f"read_{label}" for label in LABELS]] = np.c_[read, read.max(1)]
    table["listed_twice"] = ("duplicated" in patient.defects) & (np.arange(len(ids)) < 4)
    return table


def _write_tables(table: pd.DataFrame, out: Path) -> None:
    table = table.sort_values("slice_id", ignore_index=True)
    train, test = (table[table.split == split] for split in paths.SPLITS)
    train = pd.concat([train, train[train["listed_twice"]]])
    with storage.writing(out / TRUTH) as temporary:
        table.loc[:, : LABELS[ANY]].to_parquet(temporary, index=False)
    _write_long(out / paths.SAMPLE_CSV, test.slice_id, np.full((len(test), len(LABELS)), 0.5))
    _write_long(out / paths.TRAIN_CSV, train.slice_id, train[[f"read_{label}" for label in LABELS]].to_numpy())


def _write_long(path: Path, slice_ids: pd.Series, values: np.ndarray) -> None:
    names = np.char.add(np.array(slice_ids, str)[:, None] + "_", LABELS)
    with storage.writing(path) as temporary:
        pd.DataFrame({"ID": names.ravel(), "Label": values.ravel()}).to_csv(temporary, index=False)


def zip_of(out: Path) -> Path:
    return out.with_name(out.name + ".zip")


def _write_zip(out: Path) -> None:
    """Write `out` as Kaggle's download: the same bytes for the same files."""
    folders = [out / f"stage_2_{split}" for split in paths.SPLITS]
    files = [
        out / paths.SAMPLE_CSV,
        out / paths.TRAIN_CSV,
        *(f for folder in folders for f in sorted(folder.iterdir())),
    ]
    with storage.writing(zip_of(out)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in cli.progress(files, len(files), "zip", " files"):
            info = zipfile.ZipInfo(f"{paths.SLUG}/{file.relative_to(out).as_posix()}", (2019, 11, 4, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, file.read_bytes())


def _is_there(out: Path, wanted: dict, overwrite: bool) -> bool:
    """Tell whether `out` holds what is wanted; else clear the way."""
    mark = out / SETTINGS
    if not mark.is_file():
        # One killed at its very beginning leaves its mark half written.
        if out.exists() and not (out.is_dir() and all(f.name.startswith(f".{SETTINGS}.") for f in out.iterdir())):
            raise FileExistsError(f"{out} is there and is no phantom: give another --out")
        return False
    found = {"zip": True} if overwrite else storage.read_json(mark)  # a damaged mark is overwritten too
    if "n_slices" in found:
        storage.same_settings(mark, found, wanted, "give another --out, or --overwrite")
        return True
    if found.get("zip"):
        zip_of(out).unlink(missing_ok=True)
    shutil.rmtree(out)
    return False


def phantom(*, out: Path, workers: int = 1, overwrite: bool = False, **settings) -> None:
    """Write a synthetic competition to the folder `out`, unless it is there; `settings` are those of `Settings`.

    Raises FileExistsError if `out` is something else, ValueError if it is a phantom with other settings.
    """
    settings = Settings(**settings)
    wanted = asdict(settings)
    with locks.locked(out):
        if _is_there(out, wanted, overwrite):
            cli.say(f"{out} is there already, with these settings")
            return
        if settings.zip and zip_of(out).exists():
            raise FileExistsError(f"{zip_of(out)} is there: give another --out")
        storage.write_json(out / SETTINGS, wanted)  # without n_slices: begun, not finished
        patients = plan(settings)
        made = Parallel(workers, return_as="generator")(delayed(write_patient)(p, settings, out) for p in patients)
        table = pd.concat(list(cli.progress(made, len(patients), "phantoms", " patients")), ignore_index=True)
        _write_tables(table, out)
        if settings.zip:
            _write_zip(out)
        storage.write_json(out / SETTINGS, {**wanted, "n_slices": len(table)})
        cli.say(_describe(table, out))


def _describe(table: pd.DataFrame, out: Path) -> str:
    n_train = (table.split == "train").sum()
    share = ", ".join(f"{label} {100 * table[label].mean():.1f} %" for label in LABELS)
    return f"{out}: {n_train} train, {len(table) - n_train} test slices, {table.patient_id.nunique()} patients; {share}"


def share_or_real(text: str) -> float | str:
    return text if text == "real" else cli.within(0, 1)(text)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command(__doc__, "--seed", "--workers", "--overwrite")
    add = parser.add_argument
    add("--out", type=Path, default=Path("input") / paths.SLUG, help="folder to make")
    add("--patients", type=cli.within(2, kind=int), help="in train and test together")
    add("--test-fraction", type=cli.within(0, 1), help="share of the patients in test")
    add("--slices", type=cli.within(3, 200, int), help="of a study, about; their spacing covers the head")
    add("--size", type=cli.within(32, kind=int), help="px, square (the real ones have 512)")
    prevalence = (
        "share of patients with blood, all kinds common enough to be learnt from few; real: as in the competition"
    )
    add("--prevalence", type=share_or_real, help=prevalence)
    add("--label-noise", type=cli.within(0, 1), help="chance that a label is a slice off, at each end of a lesion")
    add(
        "--defects",
        type=cli.within(0, 1),
        help="share of patients with each of the real data's defects, one at least; 0: none",
    )
    add("--masks", action="store_true", help="also write where the blood is")
    add("--zip", action="store_true", help="also write <out>.zip, as Kaggle's download")
    parser.set_defaults(**asdict(Settings()))
    return parser


def main(argv: list[str] | None = None) -> None:
    cli.run(phantom, build_parser(), argv)


if __name__ == "__main__":
    main()
