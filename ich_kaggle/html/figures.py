"""Figures of predictions, as PNG. Matplotlib is imported only when one is drawn."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ich_kaggle.common import storage
from ich_kaggle.common.labels import LABELS

COLORS = dict(zip(LABELS, ("#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#222222"), strict=True))


@contextlib.contextmanager
def drawing(path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 5.6)) -> Iterator:
    """Yield the axes of a new figure, (rows, columns), and save it to `path` if no error occurs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    yield axes
    with storage.writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def roc(path: Path, target: np.ndarray, probability: np.ndarray, areas: dict[str, float]) -> None:
    """Draw the ROC curve of each label that has both classes, named with its area."""
    from sklearn.metrics import roc_curve

    with drawing(path) as axes:
        ax = axes[0, 0]
        ax.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for t, p, style in _both(target, probability, areas):
            false, true, _ = roc_curve(t, p)
            ax.plot(false, true, **style)
        ax.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC", aspect="equal")
        ax.legend(title="area", loc="lower right", frameon=False)


def precision_recall(path: Path, target: np.ndarray, probability: np.ndarray, areas: dict[str, float]) -> None:
    """Draw precision against recall of each label, named with its average precision."""
    from sklearn.metrics import precision_recall_curve

    with drawing(path) as axes:
        ax = axes[0, 0]
        for t, p, style in _both(target, probability, areas):
            precision, recall, _ = precision_recall_curve(t, p)
            ax.step(recall, precision, where="post", **style)
        ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="Precision and recall")
        ax.legend(title="average precision", loc="lower left", framealpha=0.85, edgecolor="none")


def reliability(path: Path, target: np.ndarray, probability: np.ndarray) -> None:
    """Draw, per label, the observed rate against the predicted probability, over a histogram of the latter."""
    from sklearn.calibration import calibration_curve

    with drawing(path, 2, 3, (10, 7)) as axes:
        for ax, label, t, p in zip(axes.flat, LABELS, target.T, probability.T, strict=True):
            found, meant = calibration_curve(t, p, n_bins=10, strategy="uniform")
            ax.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
            ax.plot(meant, found, "o-", color=COLORS[label], linewidth=1.4, markersize=4)
            ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted", ylabel="observed", title=label)
            counts = ax.twinx()
            counts.hist(p, bins=10, range=(0, 1), color=COLORS[label], alpha=0.15, log=True)
            counts.set_ylabel("slices", color="#888888")
            counts.minorticks_off()
            counts.tick_params(colors="#888888", labelsize=7)


def threshold_curves(path: Path, target: np.ndarray, probability: np.ndarray, chosen: dict[str, dict]) -> None:
    """Draw sensitivity, specificity, precision and F1 of each label against the threshold; `chosen` ones are marked."""
    with drawing(path, 2, 3, (11, 7)) as axes:
        for ax, label, t, p in zip(axes.flat, LABELS, target.T, probability.T, strict=True):
            order = np.argsort(-p)
            hits, called = np.cumsum(t[order]), np.arange(1, len(t) + 1)
            n_positive = max(hits[-1], 1)
            lines = {
                "sensitivity": hits / n_positive,
                "specificity": 1 - (called - hits) / max(len(t) - hits[-1], 1),
                "precision": hits / called,
                "F1": 2 * hits / (called + n_positive),
            }
            for (name, values), color in zip(lines.items(), ("#d55e00", "#0072b2", "#009e73", "#222222"), strict=True):
                ax.plot(np.clip(p[order], 1e-4, 1), values, color=color, linewidth=1.3, label=name)
            for name, threshold in chosen[label].items():
                ax.axvline(max(threshold, 1e-4), color="#888888", linewidth=0.7, linestyle=":")
                ax.annotate(
                    name.replace("_", " "), (max(threshold, 1e-4), 0.02), rotation=90, fontsize=6, color="#666666"
                )
            ax.set(xscale="log", xlim=(1e-4, 1), ylim=(0, 1.02), xlabel="threshold", title=label)
        axes[0, 0].legend(frameon=False, fontsize=8, loc="center left")


def _both(target: np.ndarray, probability: np.ndarray, areas: dict[str, float]) -> Iterator[tuple]:
    """Yield target, probability and style of the curve of each label that has both classes."""
    for label, t, p in zip(LABELS, target.T, probability.T, strict=True):
        if 0 < t.sum() < len(t):
            yield t, p, dict(color=COLORS[label], linewidth=1.6, label=f"{label}  {areas[label]:.3f}")
