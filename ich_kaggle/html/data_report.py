"""The page of `report --data`: counts, labels, headers, HU and defects, in one file without scripts.

Every text is escaped, and a Content-Security-Policy allows only the page's own style and embedded pictures.
"""

import base64
import html
import io
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, paths, tables, windows
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import pixels, slice_table
from ich_kaggle.html import app

N_SAMPLED = 200  # slices per split whose pixels are read
LEVELS = 8  # a property with at most this many values is drawn value by value
COLORS = {"train": "#0a84c6", "test": "#e0761f"}
HU = np.arange(windows.LOWEST, windows.HIGHEST + 1)

Values = dict[str, pd.Series]  # of one property, by split


def drawn(title: str, caption: str, draw: Callable) -> str:
    """Return a figure with the drawing of `draw(axes)`, as SVG: the same bytes each time."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "ich_kaggle", "font.size": 9}):
        axes = Figure((4.6, 2.8), layout="constrained").subplots()
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
        axes.figure.savefig(out := io.BytesIO(), format="svg", metadata={"Date": None, "Creator": None})
    title, caption = html.escape(title), html.escape(caption)
    source = f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}"
    image = f'<img src="{source}" alt="{title}: {caption}">'
    return f"<figure><h3>{title}</h3>{image}<figcaption>{caption}</figcaption></figure>"


def section(title: str, note: str, frames: Iterable[pd.DataFrame] = (), figures: Iterable[str] = ()) -> str:
    """Return a section with tables and figures; every cell is escaped."""
    found = (frame.to_html(index=False, border=0).replace(' style="text-align: right;"', "") for frame in frames)
    shown = "".join(f'<div class="scroll" tabindex="0">{table}</div>' for table in found)
    note = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f'<section class="card"><h2>{title}</h2>{note}{shown}<div class="figures">{"".join(figures)}</div></section>'


def counts(slices: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of slices, series, studies and patients, by split."""
    grouped = slices.groupby("split", sort=False)
    unique = grouped[["series_id", "study_id", "patient_id"]].nunique()
    unique.insert(0, "slices", grouped.size())
    return unique.set_axis(["slices", "series", "studies", "patients"], axis=1)


def prevalence(train: pd.DataFrame) -> pd.DataFrame:
    """Return the number of slices, studies and patients with each label, and their share of all."""
    target, found = train[list(LABELS)] > 0, {}
    for name, has in (
        ("slices", target),
        ("studies", target.groupby(train.study_id).any()),
        ("patients", target.groupby(train.patient_id).any()),
    ):
        found[name], found[f"share of {name}"] = has.sum(), has.mean()
    return pd.DataFrame(found)


def label_section(train: pd.DataFrame) -> str:
    found, target = prevalence(train), (tables.targets(train) > 0).astype(int)
    both = target.T @ target
    share = 100 * both / np.maximum(np.diag(both), 1)[:, None]

    def draw_shares(axes) -> None:
        part = 100 * found.filter(like="share")
        part.plot.barh(ax=axes, xlabel="with the label, %", color=("#0a84c6", "#63b3e0", "#b5d9ef")).invert_yaxis()

    def draw_together(axes) -> None:
        axes.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for (i, j), value in np.ndenumerate(share):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color="white" if value > 55 else "black")
        axes.set_xticks(range(len(LABELS)), LABELS, rotation=30, ha="right")
        axes.set_yticks(range(len(LABELS)), LABELS)

    numbers = found.apply(lambda column: column.map(("{:.2%}" if "share" in column.name else "{:,}").format))
    together = pd.DataFrame(both, LABELS, LABELS).map("{:,}".format).reset_index(names="slices with both")
    figures = (
        drawn("Prevalence", "share of the slices, studies and patients with each label", draw_shares),
        drawn("Labels together", "percentage of the slices of the row that also have the column", draw_together),
    )
    note = "Training slices. A study or a patient has a label if one of its slices has it."
    return section("Labels", note, (numbers.reset_index(names="label"), together), figures)


def facts(slices: pd.DataFrame) -> dict[str, Values]:
    """Return the properties of the headers of `slices`, a slice table, by name and split."""
    gap = slices.position.diff().where(slices.series_id == slices.series_id.shift())
    by_series = slices.assign(gap=gap).groupby(["split", "series_id"], sort=False).gap
    of_slices = {
        "rows, px": slices.rows,
        "columns, px": slices["columns"],
        "pixel spacing, mm": slices.row_spacing.round(4),
        "rescale intercept, HU": slices.intercept,
        "bits stored": slices.bits.astype(str) + slices.signed.map({True: " signed", False: " unsigned"}),
        "gantry tilt, degrees": slices.tilt,
    }
    of_series = {
        "slice spacing, mm (median of a series)": by_series.median().round(3).dropna(),
        "slices in a series": by_series.size(),
    }
    return {
        **{name: dict(tuple(values.groupby(slices.split, sort=False))) for name, values in of_slices.items()},
        **{name: dict(tuple(values.groupby(level="split", sort=False))) for name, values in of_series.items()},
    }


def shares(values: Values) -> pd.DataFrame | None:
    """Return the percentage of each value in each split; None if there are more than LEVELS values."""
    found = pd.DataFrame({split: 100 * part.value_counts(normalize=True) for split, part in values.items()})
    return found.fillna(0) if len(found) <= LEVELS else None


def fact_figure(name: str, values: Values) -> str:
    found = shares(values)

    def draw(axes) -> None:
        if found is not None:
            found.plot.bar(ax=axes, rot=0, xlabel="", color=COLORS)
        else:
            weights = [np.full(len(part), 100 / len(part)) for part in values.values()]
            colors = [COLORS[split] for split in values]
            edges = np.histogram_bin_edges(pd.concat(values.values()), "sturges")
            axes.hist(list(values.values()), edges, weights=weights, label=list(values), color=colors)
        axes.set_ylabel("%")

    def describe(part: pd.Series) -> str:
        if found is None:
            return f"{part.min():.4g} to {part.max():.4g}, median {part.median():.4g}"
        return ", ".join(f"{value} in {n:,}" for value, n in part.value_counts().items())

    return drawn(name, "; ".join(f"{split}: {describe(part)}" for split, part in values.items()), draw)


def read_hu(data: paths.Data, slices: pd.DataFrame, what: str) -> Iterable[np.ndarray]:
    """Yield the slices of a slice table in HU: int16 (rows, columns)."""
    for _, member, plain in cli.progress(slice_table.places(slices), len(slices), what):
        words, code = pixels.read_words(data.read(member), member.path, plain)
        yield np.clip(np.rint(pixels.hu_table(code)[words]), windows.LOWEST, windows.HIGHEST).astype(np.int16)


def sample_pixels(data: paths.Data, slices: pd.DataFrame, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return, by split, the number of pixels with each value of HU in up to N_SAMPLED slices, drawn by `rng`."""
    found = {}
    for split, part in slices.groupby("split", sort=False):
        rows = np.sort(rng.permutation(len(part))[:N_SAMPLED])
        found[split] = np.zeros(len(HU), int)
        for hu in read_hu(data, part.iloc[rows], f"pixels of {split}"):
            found[split] += np.bincount(hu.ravel() - windows.LOWEST, minlength=len(HU))
    return found


def hu_figure(pixels: dict[str, np.ndarray], title: str, low: float, high: float, scale: str = "linear") -> str:
    """Return the histogram of the HU from `low` to `high`; its caption tells how many pixels lie beyond."""

    def draw(axes) -> None:
        edges = np.arange(low, high + 1, max(1, (high - low) // 80))
        for split, n in pixels.items():
            axes.hist(HU, edges, weights=100 * n / n.sum(), histtype="step", color=COLORS[split], label=split)
        axes.set(xlabel="HU", ylabel="pixels, %", yscale=scale)

    def beyond(n: np.ndarray) -> str:
        return f"{n[low > HU].sum() / n.sum():.1%} below, {n[high < HU].sum() / n.sum():.1%} above"

    caption = "; ".join(f"{split}: {beyond(n)}" for split, n in pixels.items())
    return drawn(f"{title}, {low:g} to {high:g} HU", caption, draw)


def window_section(pixels: dict[str, np.ndarray], seed: int) -> str:
    figures = [hu_figure(pixels, "All HU", -1100, 2000, "log")]
    for window in windows.CACHED:
        name, half = f"{windows.NAMES[window].capitalize()} window", window.width / 2
        figures.append(hu_figure(pixels, name, window.center - half, window.center + half))
    note = f"Pixels of at most {N_SAMPLED} slices per split, drawn with --seed {seed}."
    return section("Windows", note, figures=figures)


def make(data: paths.Data, slices: pd.DataFrame, defects: pd.DataFrame, *, seed: int) -> str:
    """Return the page on a slice table and the pixels of a sample of its slices, drawn by `seed`.

    `defects` has a row per kind: defect, action, slices, first.
    """
    found = "Found in the headers; blank slices are found with slices --pixels, or when the cache is made."
    headers = (fact_figure(name, values) for name, values in facts(slices).items())
    sections = (
        section("Size", "", [counts(slices).map("{:,}".format).reset_index()]),
        label_section(slices[slices.split == "train"]),
        section("Headers", "Shares within each split.", figures=headers),
        window_section(sample_pixels(data, slices, np.random.default_rng(seed)), seed),
        section("Defects", found if len(defects) else "None.", [defects] if len(defects) else ()),
    )
    about = html.escape(f"{data.root}, {len(slices):,} slices, table {tables.slices_hash(slices)}")
    style = (app.WEB / "style.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; img-src data:; style-src {app.digest(style)}; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The data</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f'<body><header class="bar"><h1>ich_kaggle <span>data</span></h1></header>'
        f'<main id="data"><p>{about}</p>{"".join(sections)}</main></body></html>\n'
    )
