"""The figures of data.html, the page of `report --data`."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from ich_kaggle.common import windows
from ich_kaggle.common.labels import LABELS

LEVELS = 8  # a fact with at most this many values is drawn value by value
SPLIT_COLORS = {"train": "#0a84c6", "test": "#e0761f"}


class Fact(NamedTuple):
    """One property of the headers, by split, counted in slices or series."""

    name: str
    of: str  # slices or series
    values: dict[str, pd.Series]


class Pixels(NamedTuple):
    """Histograms of sampled slices, by split: pixels per HU from windows.LOWEST to windows.HIGHEST."""

    n_slices: dict[str, int]
    counts: dict[str, np.ndarray]  # (8192,)


def draw_prevalence(ax, found: pd.DataFrame) -> None:
    place = np.arange(len(LABELS))
    for k, unit in enumerate(("slices", "studies", "patients")):
        share = 100 * found[f"share of {unit}"]
        ax.barh(place + (k - 1) * 0.27, share, 0.25, color=("#0a84c6", "#63b3e0", "#b5d9ef")[k], label=unit)
    ax.set_yticks(place, LABELS)
    ax.invert_yaxis()
    ax.set_xlabel("with the label, %")
    _legend(ax)


def _legend(ax) -> None:
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 0.98))


def share_of_row(both: np.ndarray) -> np.ndarray:
    """Return the share of slices with label i that also have label j, (6, 6); NaN if no slice has i."""
    n = np.diag(both)[:, None]
    return np.divide(both, n, out=np.full(both.shape, np.nan), where=n > 0)


def draw_together(ax, share: np.ndarray) -> None:
    ax.pcolormesh(np.nan_to_num(share[::-1]), cmap="Blues", vmin=0, vmax=1, edgecolors="#8a949e", linewidth=0.4)
    for (i, j), value in np.ndenumerate(share):
        text, color = ("-" if np.isnan(value) else f"{100 * value:.0f}"), "#ffffff" if value > 0.55 else "#000000"
        ax.text(j + 0.5, len(LABELS) - i - 0.5, text, ha="center", va="center", color=color)
    ax.set_xticks(np.arange(len(LABELS)) + 0.5, LABELS, rotation=30, ha="right")
    ax.set_yticks(np.arange(len(LABELS)) + 0.5, LABELS[::-1])
    ax.tick_params(length=0)


def draw_fact(ax, fact: Fact) -> None:
    """Draw the values one by one if there are few, else their histogram, as shares of each split."""
    levels = levels_of(fact)
    edges = edges_of(fact) if levels is None else None
    for k, (split, values) in enumerate(fact.values.items()):
        n = len(values)
        if levels is None:
            share = 100 * np.histogram(values, edges)[0] / n
            _stairs(ax, share, edges, k, split)
        else:
            share = 100 * values.value_counts().reindex(levels, fill_value=0) / n
            ax.bar(np.arange(len(levels)) + 0.42 * k - 0.21, share, 0.4, color=SPLIT_COLORS[split], label=split)
    if levels is not None:
        ax.set_xticks(range(len(levels)), map(_short, levels))
    ax.set(xlabel=fact.name, ylabel=f"{fact.of}, %")
    _legend(ax)


def _stairs(ax, share: np.ndarray, edges: np.ndarray, k: int, split: str) -> None:
    ax.stairs(share, edges, color=SPLIT_COLORS[split], fill=k == 0, alpha=1 if k else 0.75, linewidth=1.4, label=split)


def levels_of(fact: Fact) -> list | None:
    """Return the distinct values of a fact, sorted; None if there are more than LEVELS."""
    levels = sorted(set().union(*(values.unique() for values in fact.values.values())))
    return levels if len(levels) <= LEVELS else None


def edges_of(fact: Fact) -> np.ndarray:
    """Return the edges of about 40 bins of a fact's values; for integers, edges lie between them."""
    values = pd.concat(fact.values.values())
    low, high = values.min(), values.max()
    if pd.api.types.is_integer_dtype(values):
        step = -(-int(high - low) // 40)
        return np.arange(low, high + step + 1, step) - 0.5
    return np.linspace(low, high, 41)


def _short(level) -> str:
    return f"{level:.4g}" if isinstance(level, float) else str(level)


def describe_fact(fact: Fact) -> str:
    """Return the numbers of a fact's figure, by split, in words."""
    parts = []
    for split, values in fact.values.items():
        if levels_of(fact) is None:
            text = f"{values.min():.4g} to {values.max():.4g}, median {values.median():.4g}"
        else:
            text = ", ".join(f"{_short(level)} in {n:,}" for level, n in values.value_counts().items()) + f" {fact.of}"
        parts.append(f"{split}: {text}")
    return "; ".join(parts)


def shares(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the shares of pixels below `low` and above `high` HU, which a window shows as black and white."""
    hu = np.arange(windows.LOWEST, windows.HIGHEST + 1)
    return float(counts[hu < low].sum() / counts.sum()), float(counts[hu > high].sum() / counts.sum())


def draw_hu(ax, pixels: Pixels, low: float, high: float, width: int, scale: str = "linear") -> None:
    edges = np.arange(np.floor(low), high + width, width)
    hu = np.arange(windows.LOWEST, windows.HIGHEST + 1)
    for k, (split, counts) in enumerate(pixels.counts.items()):
        share = 100 * np.histogram(hu, edges, weights=counts)[0] / counts.sum()
        _stairs(ax, share, edges, k, split)
    ax.set(xlabel="HU", yscale=scale, ylabel=f"pixels, % per {width} HU" if width > 1 else "pixels, % per HU")
    _legend(ax)
