"""The page of `report --data`: counts, labels, headers, HU, defects and sample studies."""

from collections.abc import Iterable
from functools import partial

import cv2
import numpy as np
import pandas as pd

from ich_kaggle.common import cli, paths, tables, windows
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.dicom import pixels, png, slice_table
from ich_kaggle.html import data_figures, static

N_SAMPLED = 200  # slices per split whose pixels are read
TILE, COLUMNS = 96, 8  # px of a slice on a contact sheet, slices per row


def counts(slices: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of slices, series, studies and patients, by split."""
    grouped = slices.groupby("split", sort=False)
    unique = grouped[["series_id", "study_id", "patient_id"]].nunique()
    unique.insert(0, "slices", grouped.size())
    return unique.set_axis(["slices", "series", "studies", "patients"], axis=1)


def prevalence(train: pd.DataFrame) -> pd.DataFrame:
    """Return the number of slices, studies and patients with each label, and their share of all."""
    target = train[list(LABELS)] > 0
    found = {}
    for name, has in (
        ("slices", target),
        ("studies", target.groupby(train.study_id).any()),
        ("patients", target.groupby(train.patient_id).any()),
    ):
        found[name], found[f"share of {name}"] = has.sum(), has.mean()
    return pd.DataFrame(found)


def together(target: np.ndarray) -> np.ndarray:
    """Return the number of slices with both label i and label j: int (6, 6)."""
    target = np.asarray(target, float)
    return (target.T @ target).astype(int)


def facts(slices: pd.DataFrame) -> list[data_figures.Fact]:
    """Return the properties of the headers of `slices`, a slice table."""
    gap = slices.position.diff().where(slices.series_id == slices.series_id.shift())
    by_series = slices.assign(gap=gap).groupby(["split", "series_id"], sort=False).gap
    stored = slices.bits.astype(str) + slices.signed.map({True: " signed", False: " unsigned"})

    def of_slices(name: str, values: pd.Series) -> data_figures.Fact:
        return data_figures.Fact(name, "slices", dict(tuple(values.groupby(slices.split, sort=False))))

    def of_series(name: str, values: pd.Series) -> data_figures.Fact:
        return data_figures.Fact(name, "series", dict(tuple(values.dropna().groupby(level="split", sort=False))))

    return [
        of_slices("rows, px", slices.rows),
        of_slices("columns, px", slices["columns"]),
        of_slices("pixel spacing, mm", slices.row_spacing.round(4)),
        of_series("slice spacing, mm (median of a series)", by_series.median().round(3)),
        of_series("slices in a series", by_series.size()),
        of_slices("rescale intercept, HU", slices.intercept),
        of_slices("bits stored", stored),
        of_slices("gantry tilt, degrees", slices.tilt),
    ]


def read_hu(data: paths.Data, slices: pd.DataFrame, what: str) -> Iterable[np.ndarray]:
    """Yield the slices of a slice table in HU: int16 (rows, columns)."""
    for _, member, plain in cli.progress(slice_table.places(slices), len(slices), what):
        words, code = pixels.read_words(data.read(member), member.path, plain)
        yield np.clip(np.rint(pixels.hu_table(code)[words]), windows.LOWEST, windows.HIGHEST).astype(np.int16)


def sample_pixels(data: paths.Data, slices: pd.DataFrame, rng: np.random.Generator) -> data_figures.Pixels:
    """Return histograms of the HU of up to N_SAMPLED slices per split, drawn by `rng`."""
    found = data_figures.Pixels({}, {})
    for split, part in slices.groupby("split", sort=False):
        rows = np.sort(rng.permutation(len(part))[:N_SAMPLED])
        found.n_slices[split], found.counts[split] = len(rows), np.zeros(windows.HIGHEST - windows.LOWEST + 1, int)
        for hu in read_hu(data, part.iloc[rows], f"pixels of {split}"):
            found.counts[split] += np.bincount(hu.ravel() - windows.LOWEST, minlength=len(found.counts[split]))
    return found


def sample_studies(slices: pd.DataFrame, rng: np.random.Generator) -> list[str]:
    """Return a study with each label, one without any, and a test study, as far as they exist, drawn by `rng`."""
    train = slices.split == "train"
    has_any = (slices["any"] > 0).groupby(slices.study_id).transform("any")
    groups = [train & (slices[label] > 0) for label in LABELS[:ANY]] + [train & ~has_any, ~train]
    studies = (np.sort(slices.study_id[group].unique()) for group in groups)
    return list(dict.fromkeys(ids[rng.integers(len(ids))] for ids in studies if len(ids)))


def tile(hu: np.ndarray, is_positive: bool) -> np.ndarray:
    """Return a slice in the brain window, padded to a square and framed if positive: uint8 (TILE, TILE, 3)."""
    gray, side = windows.apply(hu, (windows.BRAIN,))[..., 0], max(hu.shape)
    square = np.zeros((side, side), np.uint8)
    top, left = ((side - n) // 2 for n in hu.shape)
    square[top : top + hu.shape[0], left : left + hu.shape[1]] = gray
    image = np.repeat(cv2.resize(square, (TILE, TILE), interpolation=cv2.INTER_AREA)[..., None], 3, axis=2)
    return cv2.rectangle(image, (0, 0), (TILE - 1, TILE - 1), (224, 118, 31), 2) if is_positive else image


def contact_sheet(data: paths.Data, study: pd.DataFrame) -> bytes:
    """Return the slices of a study, in order from left to right, as a PNG."""
    images = [tile(hu, any_ > 0) for hu, any_ in zip(read_hu(data, study, "sample study"), study["any"], strict=True)]
    images += [np.zeros_like(images[0])] * (-len(images) % COLUMNS)
    return png.encode(np.vstack([np.hstack(images[i : i + COLUMNS]) for i in range(0, len(images), COLUMNS)]))


def runs_of(target: np.ndarray) -> str:
    """Return the ranges of slices with each label, counted from 1, as `subdural 3 to 7, 9`; `target` is (n, 6)."""
    found = []
    for label, has in zip(LABELS[:ANY], (target > 0).T, strict=False):
        edges = np.flatnonzero(np.diff(has.astype(int), prepend=0, append=0))
        spans = [f"{a + 1}" if b == a + 1 else f"{a + 1} to {b}" for a, b in zip(edges[::2], edges[1::2], strict=True)]
        found += [f"{label} {', '.join(spans)}"] if spans else []
    return "; ".join(found) or "none"


def label_section(train: pd.DataFrame) -> str:
    found, both = prevalence(train), together(tables.targets(train))
    share = data_figures.share_of_row(both)
    numbers = found.apply(lambda column: column.map(("{:.2%}" if "share" in column.name else "{:,}").format))
    rates = ", ".join(f"{label} {found['share of slices'][label]:.2%} of the slices" for label in LABELS)
    pairs = [(share[i, j], i, j) for i in range(ANY) for j in range(ANY) if i != j and share[i, j] > 0]
    most = [f"{value:.0%} of {LABELS[i]} slices have {LABELS[j]}" for value, i, j in sorted(pairs, reverse=True)[:4]]
    meaning = "percentage of the slices with the label of the row that also have that of the column. Highest: "
    figures = (
        static.drawn(partial(data_figures.draw_prevalence, found=found), "Prevalence", rates, (5, 3.2)),
        static.drawn(
            partial(data_figures.draw_together, share=share),
            "Labels together",
            meaning + ("; ".join(most) or "none"),
            (5, 3.2),
        ),
    )
    counted = (
        static.table_of(numbers, "label"),
        static.table_of(pd.DataFrame(both, LABELS, LABELS).map("{:,}".format), "slices with both"),
    )
    note = "Training slices. A study or a patient has a label if one of its slices has it."
    return static.section("Labels", note, *counted, static.grid(figures, is_wide=True))


def header_section(slices: pd.DataFrame) -> str:
    figures = (
        static.drawn(
            partial(data_figures.draw_fact, fact=f), f.name[0].upper() + f.name[1:], data_figures.describe_fact(f)
        )
        for f in facts(slices)
    )
    return static.section("Headers", "Shares within each split: train filled, test as a line.", static.grid(figures))


def window_section(pixels: data_figures.Pixels, seed: int) -> str:
    whole = partial(data_figures.draw_hu, pixels=pixels, low=-1100, high=2000, width=20, scale="log")
    figures = [static.drawn(whole, "All HU", "air at -1000, fat at -100, water at 0, blood at 60, bone above 300")]
    for window in windows.CACHED:
        low, high = window.center - window.width / 2, window.center + window.width / 2
        black_and_white = {split: data_figures.shares(counts, low, high) for split, counts in pixels.counts.items()}
        caption = "; ".join(f"{s}: {b:.1%} of the pixels black, {w:.1%} white" for s, (b, w) in black_and_white.items())
        name = f"{windows.NAMES[window].capitalize()} window, {low:g} to {high:g} HU"
        width = max(1, round(window.width / 80))
        draw = partial(data_figures.draw_hu, pixels=pixels, low=low, high=high, width=width)
        figures.append(static.drawn(draw, name, caption))
    sampled = " and ".join(f"{n} {split} slices" for split, n in pixels.n_slices.items())
    return static.section("Windows", f"Pixels of {sampled}, drawn with --seed {seed}.", static.grid(figures))


def defect_section(defects: pd.DataFrame) -> str:
    shown = static.table_of(defects.set_index("defect"), "defect", is_text=True) if len(defects) else "<p>None.</p>"
    note = "Found in the headers; blank slices are found with --pixels, or when the cache is made."
    return static.section("Defects", note, shown)


def study_section(data: paths.Data, slices: pd.DataFrame, rng: np.random.Generator, seed: int) -> str:
    figures = []
    for study_id in sample_studies(slices, rng):
        study = slices[slices.study_id == study_id]
        patient, split = study.patient_id.iloc[0], study.split.iloc[0]
        labels = runs_of(tables.targets(study)) if split == "train" else "not known"
        caption = f"patient {patient}, {split}, {len(study)} slices; labels on slices: {labels}"
        alt = f"The slices of study {study_id} in the brain window, {COLUMNS} in a row; {caption}"
        figures.append(static.shown(contact_sheet(data, study), study_id, caption, alt))
    note = (
        f"One with each label, one without, one of test, drawn with --seed {seed}. Slices are ordered from the lowest, "
    )
    note += "at the top left; those with a label are framed."
    return static.section("Sample studies", note, static.grid(figures, is_wide=True))


def make(data: paths.Data, slices: pd.DataFrame, defects: pd.DataFrame, *, seed: int) -> str:
    """Return the page on a slice table and the pixels of a sample of its slices and studies, drawn by `seed`.

    `defects` has a row per kind: defect, action, slices, first.
    """
    rng = np.random.default_rng(seed)
    sections = [
        static.section("Size", "", static.table_of(counts(slices).map("{:,}".format), "split")),
        label_section(slices[slices.split == "train"]),
        header_section(slices),
        window_section(sample_pixels(data, slices, rng), seed),
        defect_section(defects),
        study_section(data, slices, rng, seed),
    ]
    note = f"{data.root}, {len(slices):,} slices, table {tables.slices_hash(slices)}"
    return static.page("The data", note, sections)
