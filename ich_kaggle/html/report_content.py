"""The data of the report: log losses with intervals, ensembles, submissions, and the studies with their pictures."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle import __version__
from ich_kaggle.common import cli, metric, parallel, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import cache_index, head_crop, picture_cache, pixels, png, slice_image, slice_table
from ich_kaggle.html import app, report_scores, report_studies
from ich_kaggle.kaggle_api import submission_log
from ich_kaggle.scoring import ensembling, evaluation, patient_bootstrap

SHOWN = ("time", "name", "runs", "oof", "public", "private", "status", "note")  # of a submission


def score(source: report_scores.Entry, target: np.ndarray, patient: np.ndarray, fold: np.ndarray, seed: int) -> dict:
    """Return the log losses of `source` with intervals, and per label the areas, the calibration and the counts at
    THRESHOLDS, all on the slices that it predicts."""
    there = ~np.isnan(source.probability[:, 0])
    target, probability, fold = target[there], source.probability[there], fold[there]
    patient = np.unique(patient[there], return_inverse=True)[1]
    found = evaluation.log_losses(target, probability, patient, fold, n_draws=patient_bootstrap.N_DRAWS, seed=seed)
    by_fold = found.pop("folds")
    return {
        "name": source.name,
        "kind": source.kind,
        "on": source.on,
        "leak": source.leak,
        "n_slices": len(target),
        "n_patients": int(patient.max()) + 1,
        "loss": found.pop("total"),
        "labels": list(found.values()),
        "folds": by_fold,
        "curves": [report_scores.curve(t, p.astype(float)) for t, p in zip(target.T, probability.T, strict=True)],
    }


def describe_ensemble(work_dir: Path, name: str) -> dict:
    """Return the scores of weights.json, and whether the predictions of its runs have changed since."""
    found = storage.read_json(storage.require(paths.ensemble(work_dir, name) / "weights.json", f"--name {name}"))
    files = {paths.run(work_dir, "any").parent / file: digest for file, digest in found.get("made_from", {}).items()}
    is_stale = any(not path.exists() or storage.file_hash(path) != digest for path, digest in files.items())
    kept = ("runs", "single", "left_out", "oof_log_loss", "nested_log_loss", "n_patients")
    return {
        "name": name,
        "is_stale": is_stale,
        "pipeline": found["pipeline"]["method"],
        "by_label": found["pipeline"]["weights"],
        **{key: found[key] for key in kept},
    }


def find_cache(project: Project, name: str | None) -> tuple[Path | None, dict]:
    """Return the folder of the cache `name`, or of the one with the most px, uncropped first, and its settings.

    Only complete caches of the slices count; without one, the folder is None. Raises ValueError if `name` is none.
    """
    folder, whole = paths.cache(project.work_dir, "any").parent, picture_cache.whole(project)
    if name is not None and folder / name not in whole:
        raise ValueError(f"{folder / name}: no complete cache of the slices: run python -m ich_kaggle.cache")
    best = max(whole, key=lambda one: (whole[one]["image_size"], whole[one]["crop"] == "none"), default=None)
    chosen = best if name is None else folder / name
    return chosen, whole.get(chosen, {})


def render_bone(data: paths.Data, number: int, batch: list, boxes: np.ndarray, size: int) -> tuple:
    """Return `number` and the slices of `batch`, cut to `boxes` (n, 4), as PNGs of `size` px in the bone window."""
    images = []
    for (_, member, plain), box in zip(batch, boxes, strict=True):
        words, code = pixels.read_words(data.read(member), member.path, plain)
        images.append(png.encode(slice_image.bone(head_crop.Box(*box).cut(words), code, size)))
    return (number, images), len(batch), sum(member.size for _, member, _ in batch)


def render_studies(
    data: paths.Data, parts: dict[int, pd.DataFrame], cache_dir: Path, size: int, workers: int
) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of each study of `parts` and its slices in the bone window, as they are ready."""
    held = cache_index.read(cache_dir)[list(head_crop.Box._fields)]
    if lost := [one for part in parts.values() for one in part.slice_id[~part.slice_id.isin(held.index)]]:
        again = "run python -m ich_kaggle.cache --verify, then again without --verify"
        raise ValueError(
            f"{cache_index.path_of(cache_dir)}: it lacks slice {lost[0]} ({len(lost)} slices are missing): {again}"
        )
    tasks = (
        (data, number, slice_table.places(part), held.loc[part.slice_id].to_numpy(), size)
        for number, part in parts.items()
    )
    return parallel.work(render_bone, tasks, sum(map(len, parts.values())), "bone window", workers)


def find_pixels(project: Project) -> paths.Data | None:
    """Return the competition's data, None if the DICOM files of the slice table do not exist."""
    try:
        data = slice_table.data_of(project)
        data.read(slice_table.places(project.slices.iloc[:1])[0][1], 1)
    except FileNotFoundError:
        return None
    return data


def overview(project: Project, submissions_dir: Path) -> dict:
    """Return the parts of the page on the data, on training and on submissions."""
    history = submission_log.read(submissions_dir / "history.csv")
    data = report_scores.describe_data(project.slices, project.fold)
    return {
        "labels": LABELS,
        "made": {"time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "version": __version__},
        "data": data | {"defects": len(slice_table.read_defects(project.work_dir))},
        "logs": report_scores.learning_curves(project),
        "submissions": [{column: row[column] for column in SHOWN} for row in history],
    }


def ranked(sources: list[report_scores.Entry], train: pd.DataFrame, fold: np.ndarray, seed: int) -> list[tuple]:
    """Return `sources` with their scores in the order of the page: by most slices, ensembles first, by least loss."""
    target, patient = tables.targets(train), np.unique(train.patient_id, return_inverse=True)[1]
    bar = cli.progress(sources, len(sources), "score", "")
    scored = [(source, score(source, target, patient, fold, seed)) for source in bar]
    return sorted(scored, key=lambda one: (-one[1]["n_slices"], one[1]["kind"] != "ensemble", one[1]["loss"][0]))


def compared(project: Project, sources: list[report_scores.Entry], target: np.ndarray) -> dict:
    """Return the parts of the page that compare `sources`."""
    names = [source.name for source in sources if source.kind == "ensemble"]
    return {
        "constant": metric.log_loss(target, ensembling.constant(target, project.fold[project.is_train])),
        "correlation": report_scores.correlation(sources, target),
        "ensembles": [describe_ensemble(project.work_dir, name) for name in names],
        "thresholds": report_scores.THRESHOLDS.tolist(),
    }


def pages_of(
    project: Project,
    studies: report_studies.Studies,
    chosen: np.ndarray,
    cache_dir: Path | None,
    state: dict,
    bone: bool,
) -> tuple[dict, Iterator[app.Study]]:
    """Return the parts of the page on the `chosen` studies, and an iterator over their data.

    `state` holds the settings of the cache. The page has a `bone` window if the DICOM files exist.
    """
    data = find_pixels(project) if bone and state else None
    content = {
        "studies": report_studies.summaries(studies, chosen),
        "n_studies": len(studies.bounds[0]),
        "worst": report_studies.gallery(studies, chosen, cache_dir),
        "maps": [f"{one.run}, {one.method}" for one in studies.maps],
        "cache": {"name": cache_dir.name, "size": state["image_size"]} if state else None,
        "bone": data is not None,
    }
    parts = {i: studies.train.iloc[studies.rows(i)] for i in chosen.tolist()}
    rendered = ((i, None) for i in parts)
    if data is not None:
        rendered = render_studies(data, parts, cache_dir, state["image_size"], project.workers)

    def images(i: int, bones: list[bytes] | None) -> dict:
        cached = {"cached": [paths.cached(cache_dir, one) for one in parts[i].slice_id]} if state else {}
        return cached | ({} if bones is None else {"bone": bones})

    return content, (report_studies.describe(studies, i, images(i, bones)) for i, bones in rendered)
