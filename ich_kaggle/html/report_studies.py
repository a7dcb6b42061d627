"""The studies of a report: their choice, their worst slices, and the truth, predictions and maps of each."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich_kaggle.common import metric, paths, series_rows, storage, tables
from ich_kaggle.common.labels import ANY, LABELS, SHARE
from ich_kaggle.common.project import Project
from ich_kaggle.html.app import Study, numbers

N_WORST = 12  # misses shown per label, and as many false alarms


class Maps(NamedTuple):
    """The explanations of one run by one method: a PNG per slice, six gray maps stacked vertically."""

    run: str
    method: str
    folders: dict[int, Path]  # by fold
    studies: set[str]


def losses(target: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the log loss of each slice and label, (n, 6), NaN where `probability` (n, 6) is."""
    out = np.full(target.shape, np.nan)
    there = ~np.isnan(probability[:, ANY])
    out[there] = metric.losses(target[there], probability[there])
    return out


def ranks(values: np.ndarray) -> np.ndarray:
    """Return 0 for the largest of `values` (n,), 1 for the next, and so on; infinity for NaN."""
    return pd.Series(values).rank(method="first", ascending=False).sub(1).fillna(np.inf).to_numpy()


def choose(
    target: np.ndarray, loss: np.ndarray, study: np.ndarray, *, n_studies: int, seed: int, explained: np.ndarray = ()
) -> np.ndarray:
    """Return the numbers of the studies to show, sorted: all if there are no more than `n_studies`.

    Three quarters are the `explained` studies, then those with the worst slices: in turn the worst miss and the worst
    false alarm of each label, and the study of highest mean loss. The others are drawn at random.
    `loss` is (n, 6), NaN where nothing is predicted; `study` (n,) is sorted and counts from 0.
    """
    n = int(study[-1]) + 1 if len(study) else 0
    best = ranks(study_losses(loss, study)[:, 0])
    for label in range(len(LABELS)):
        for kind in (0, 1):
            np.minimum.at(best, study, ranks(np.where(target[:, label] == kind, loss[:, label], np.nan)))
    greatest = pd.Series(np.nan_to_num(loss).max(axis=1)).groupby(study).max()
    worst = np.lexsort((-greatest, best))
    worst = pd.unique(np.concatenate([np.asarray(explained, int), worst[np.isfinite(best[worst])]]))
    worst = worst[: n_studies * 3 // 4]
    rest = np.setdiff1d(np.arange(n), worst)
    drawn = np.random.default_rng(seed).permutation(rest)[: n_studies - len(worst)]
    return np.sort(np.concatenate([worst, drawn]))


def study_losses(loss: np.ndarray, study: np.ndarray) -> np.ndarray:
    """Return the competition's loss of each study and that of each label, (n_studies, 7), from `loss` (n, 6)."""
    values = np.column_stack([loss @ SHARE, loss])
    return pd.DataFrame(values).groupby(study).mean().to_numpy().reshape(-1, 1 + len(LABELS))


def worst(target: np.ndarray, loss: np.ndarray, shown: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Return per label the rows of highest loss among `shown`, bool (n,): `missed` positives, `called` negatives."""

    def greatest(i: int, kind: int) -> np.ndarray:
        rows = np.flatnonzero(shown & (target[:, i] == kind) & ~np.isnan(loss[:, i]))
        return rows[np.argsort(-loss[rows, i], kind="stable")][:N_WORST]

    return {label: {"missed": greatest(i, 1), "called": greatest(i, 0)} for i, label in enumerate(LABELS)}


@dataclass(frozen=True)
class Studies:
    """The training slices as studies, numbered from 0, with their predictions and explanations."""

    train: pd.DataFrame  # rows of the slice table
    fold: np.ndarray  # (n,)
    probabilities: list[np.ndarray]  # float32 (n, 6), NaN where nothing is predicted; the first ranks the slices
    maps: list[Maps]

    @cached_property
    def number(self) -> np.ndarray:
        return series_rows.number(self.train.study_id)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return series_rows.bounds(self.number)

    @property
    def ids(self) -> pd.Series:
        return self.train.study_id.iloc[self.bounds[0]]

    @cached_property
    def target(self) -> np.ndarray:
        return tables.targets(self.train)

    @cached_property
    def losses(self) -> list[np.ndarray]:
        return [losses(self.target, probability) for probability in self.probabilities]

    @property
    def loss(self) -> np.ndarray:
        return self.losses[0] if self.losses else np.full(self.target.shape, np.nan)

    def rows(self, i: int) -> slice:
        return slice(self.bounds[0][i], self.bounds[1][i])

    def fold_of(self, i: int) -> int:
        return int(self.fold[self.bounds[0][i]])

    @property
    def explained(self) -> np.ndarray:
        """The numbers of the studies that have maps."""
        return np.flatnonzero(self.ids.isin(set().union(*(one.studies for one in self.maps))))


def summaries(studies: Studies, chosen: np.ndarray) -> list[dict]:
    """Return the entries of the list of studies, those of the `chosen`."""
    means = [numbers(study_losses(loss, studies.number)) for loss in studies.losses]

    def summary(i: int) -> dict:
        rows = studies.train.iloc[studies.rows(i)]
        return {
            "id": str(rows.study_id.iloc[0]),
            "patient": str(rows.patient_id.iloc[0]),
            "fold": studies.fold_of(i),
            "n": len(rows),
            "counts": studies.target[studies.rows(i)].sum(axis=0).astype(int).tolist(),
            "losses": [of_source[i] for of_source in means],
        }

    return [summary(i) for i in chosen.tolist()]


def gallery(studies: Studies, chosen: np.ndarray, cache_dir: Path | None) -> dict:
    """Return the misses and false alarms of each label in the `chosen` studies, by the first predictions."""
    if not studies.probabilities:
        return {}
    found = worst(studies.target, studies.loss, np.isin(studies.number, chosen))

    def card(row: int, label: int) -> dict:
        one, study = studies.train.iloc[row], studies.number[row]
        return {
            "study": str(one.study_id),
            "slice": int(row - studies.bounds[0][study]),
            "p": numbers(studies.probabilities[0][row, label]),
            "loss": numbers(studies.loss[row, label]),
            "truth": [name for name in LABELS if one[name] == 1],
            "image": None if cache_dir is None else paths.cached(cache_dir, one.slice_id),
        }

    return {
        label: {kind: [card(row, i) for row in rows] for kind, rows in found[label].items()}
        for i, label in enumerate(LABELS)
    }


def find_maps(project: Project, crop: str) -> list[Maps]:
    """Return the explanations of the runs whose models were trained with this `crop`.

    Raises ValueError naming a file with other labels.
    """
    found: dict[tuple[str, str], Maps] = {}
    for run in project.runs():
        for path in sorted(run.folder.glob("fold*/explain/*/explain.json")):
            content, method = storage.read_json(path), path.parent.name
            if content["labels"] != list(LABELS):
                raise ValueError(f"{path}: the labels are not {', '.join(LABELS)}: explain again")
            if run.settings.get("crop", "none") == crop:
                one = found.setdefault((run.name, method), Maps(run.name, method, {}, set()))
                one.folders[int(path.parents[2].name[4:])] = path.parent
                one.studies.update(content.get("studies", []))
    return list(found.values())


def describe(studies: Studies, i: int, images: dict[str, list]) -> Study:
    """Return study `i` for the page. `images` are lists of pictures, one per slice, by window."""
    rows = studies.train.iloc[studies.rows(i)]
    data = {
        "slices": rows.slice_id.tolist(),
        "series": series_rows.number(rows.series_id).tolist(),
        "position": rows.position.round(2).tolist(),
        "target": studies.target[studies.rows(i)].astype(int).tolist(),
        "probability": [numbers(probability[studies.rows(i)]) for probability in studies.probabilities],
        "images": images,
        "maps": [_maps_of(one, studies.fold_of(i), rows.slice_id) for one in studies.maps],
    }
    return Study(str(rows.study_id.iloc[0]), data)


def _maps_of(one: Maps, fold: int, slice_ids: pd.Series) -> list[Path | None] | None:
    if fold not in one.folders:
        return None
    files = [one.folders[fold] / f"{slice_id}.png" for slice_id in slice_ids]
    found = [path if path.is_file() else None for path in files]
    return found if any(found) else None
