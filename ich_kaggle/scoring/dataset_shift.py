"""Differences between test and training scans: headers, gray values, predictions.

A classifier learns to tell test from train on one half of the patients and is judged on the other half (classifier
two-sample test: Lopez-Paz, Oquab, ICLR 2017, arXiv 1610.06545). If the splits do not differ, p is uniform.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import paths
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache, png

HEADER = ("tilt", "rows", "columns", "row_spacing", "column_spacing")
FEWEST = 10  # patients of each split needed in each half
LEVEL = 0.05
PREDICTED = "predicted "  # before a label: the name of a feature


def smallest_cache(project: Project) -> Path | None:
    """Return the folder of the complete cache with the fewest px, uncropped first, or None."""
    whole = picture_cache.whole(project)
    return min(whole, key=lambda one: (whole[one]["image_size"], whole[one]["crop"] != "none"), default=None)


def features(table: pd.DataFrame, probability: np.ndarray, cache_dir: Path | None) -> pd.DataFrame:
    """Return a row per study, by split, patient and study: features of the headers, the middle slice, the predictions.

    `probability` (n, 6) belongs to the rows of `table`. Gray values are left out without a cache.
    """
    keys = ["split", "patient_id", "study_id"]
    known = table[[*keys, "position", *(column for column in HEADER if column in table)]].copy()
    known[[f"{PREDICTED}{label}" for label in LABELS]] = probability
    grouped = known.groupby(keys)
    out = grouped.mean().drop(columns="position")
    out.insert(0, "slices", grouped.size())
    out.insert(1, "height", grouped.position.max() - grouped.position.min())
    out.insert(2, "spacing", out.height / np.maximum(out.slices - 1, 1))
    if cache_dir is not None:
        middle = table.groupby(keys).slice_id.apply(lambda ids: ids.iloc[len(ids) // 2])
        gray = np.array([_gray(paths.cached(cache_dir, slice_id)) for slice_id in middle])
        names = [f"{what} of window {i}" for what in ("mean", "spread") for i in range(gray.shape[1] // 2)]
        out = out.join(pd.DataFrame(gray, index=middle.index, columns=names))
    return out


def _gray(path: Path) -> np.ndarray:
    pixels = png.read(path).reshape(-1, 3).astype(float)
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)])


def two_sample(table: pd.DataFrame, seed: int) -> dict:
    """Return the AUC, and its p, of a classifier that tells test from training studies of unseen patients.

    `table` comes from `features`. With too few patients both are None.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    units = table.groupby(level=["split", "patient_id"]).mean()
    is_test = (units.index.get_level_values("split") == "test").astype(int)
    patients, code = np.unique(units.index.get_level_values("patient_id"), return_inverse=True)
    second = np.random.default_rng(seed).permutation(len(patients))[code] % 2 == 1
    smallest = min(np.bincount(is_test[half], minlength=2).min() for half in (second, ~second))
    facts = {"n_train": int((is_test == 0).sum()), "n_test": int(is_test.sum())}
    if smallest < FEWEST:
        return {**facts, "auc": None, "p": None}
    model = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=seed)
    model.fit(units[~second], is_test[~second])
    scores = model.predict_proba(units[second])[:, 1]
    area, p = _area(scores[is_test[second] == 1], scores[is_test[second] == 0], "greater")
    return {**facts, "auc": area, "p": p}


def _area(test: np.ndarray, train: np.ndarray, alternative: str = "two-sided") -> tuple[float, float]:
    from scipy.stats import mannwhitneyu  # takes a second

    found = mannwhitneyu(test, train, alternative=alternative)
    return float(found.statistic / (len(test) * len(train))), float(found.pvalue)


def differences(table: pd.DataFrame) -> list[dict]:
    """Return per feature the means over patients, the AUC of telling test from train by it, and p after Holm."""
    units = table.groupby(level=["split", "patient_id"]).mean()
    train, test = units.loc["train"], units.loc["test"]
    rows = []
    for name in units:
        area, p = _area(test[name].to_numpy(), train[name].to_numpy()) if units[name].nunique() > 1 else (0.5, 1.0)
        rows.append({"feature": name, "train": train[name].mean(), "test": test[name].mean(), "auc": area, "p": p})
    rows.sort(key=lambda row: row["p"])
    least = 0.0
    for i, row in enumerate(rows):
        least = max(least, min(1.0, row["p"] * (len(rows) - i)))  # Holm, Scand. J. Stat. 1979
        row["p"] = least
    return rows


def describe(test: dict, rows: list[dict]) -> str:
    head = "{n_train} train and {n_test} test patients: ".format(**test)
    if test["p"] is None:
        head += "too few for a two-sample test"
    else:
        verdict = "differ" if test["p"] < LEVEL else "cannot be told apart"
        head += f"they {verdict}, AUC {test['auc']:.3f} on unseen patients, p {test['p']:.2g}"
    found = [row for row in rows if row["p"] < LEVEL]
    lines = [
        f"  {row['feature']:28} train {row['train']:10.4g}  test {row['test']:10.4g}  AUC {row['auc']:.3f}  "
        f"p {row['p']:.2g}"
        for row in found
    ]
    return "\n".join([head, *(lines or [f"  none of {len(rows)} features differs (p < {LEVEL}, Holm)"])])
