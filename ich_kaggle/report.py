"""Write the report: scores, curves and thresholds of all runs, and studies to leaf through, as a page on the disk.

It opens in any browser, offline. --studies says how many studies can be leafed through: three quarters are those that
were explained, then those with the worst slices (in turn the worst missed and the worst falsely called one of each
label, and the study of the greatest mean loss); the others are drawn at random. Scores are out of fold, those of an
ensemble nested. The report is made anew each time; the one that is there stays until the new one is whole.

Reads:   work/slices.parquet, work/folds.csv, work/cache/<name>/, submissions/history.csv,
         work/runs/<run>/fold<k>/ oof.parquet, log.csv, explain/, work/ensemble/<name>/ weights.json, nested.parquet,
         and, for the bone window, which is not in the cache, the DICOM pixels
Writes:  work/report/index.html and what it loads. The slices' pictures stay in work/cache and are linked; with --copy
         they are in work/report too, for a web server; with --embed all is in index.html
Example: python -m ich_kaggle.report
         python -m ich_kaggle.report --embed --studies 10
"""

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle import __version__, cache, ensemble, evaluate, slices
from ich_kaggle.common import cli, metric, parallel, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import cache_index, head_crop, pixels, png, slice_image
from ich_kaggle.html import app, report_scores, report_studies
from ich_kaggle.kaggle_api import submission_log
from ich_kaggle.scoring import patient_bootstrap

SHOWN = ("time", "name", "runs", "oof", "public", "private", "status", "note")  # of a submission


def score(source: report_scores.Source, target: np.ndarray, patient: np.ndarray, fold: np.ndarray, seed: int) -> dict:
    """Return the log losses of `source` with intervals, and of each label its areas, calibration, and counts at
    THRESHOLDS; on the slices that it predicts."""
    there = ~np.isnan(source.probability[:, 0])
    target, probability, fold = target[there], source.probability[there], fold[there]
    patient = np.unique(patient[there], return_inverse=True)[1]
    found = evaluate.log_losses(target, probability, patient, fold, n_draws=patient_bootstrap.N_DRAWS, seed=seed)
    by_fold = found.pop("folds")
    return {
        "name": source.name,
        "kind": source.kind,
        "n_slices": len(target),
        "n_patients": int(patient.max()) + 1,
        "loss": found.pop("total"),
        "labels": list(found.values()),
        "folds": by_fold,
        "curves": [report_scores.curve(t, p.astype(float)) for t, p in zip(target.T, probability.T, strict=True)],
    }


def describe_ensemble(work_dir: Path, name: str) -> dict:
    """Return what weights.json says, and whether the predictions it was made from are still those of its runs."""
    found = storage.read_json(storage.require(paths.ensemble(work_dir, name) / "weights.json", f"--name {name}"))
    files = {paths.run(work_dir, "any").parent / file: digest for file, digest in found.get("made_from", {}).items()}
    is_stale = any(not path.exists() or storage.file_hash(path) != digest for path, digest in files.items())
    kept = ("runs", "single", "intervals", "left_out", "oof_log_loss", "nested_log_loss", "n_patients", "n_slices")
    return {
        "name": name,
        "is_stale": is_stale,
        "recipe": ensemble.recipe_line(found["pipeline"]),
        "by_label": found["pipeline"]["weights"],
        "methods": found.get("methods", {}),
        **{key: found[key] for key in kept},
    }


def find_cache(work_dir: Path, name: str | None, table: pd.DataFrame) -> Path | None:
    """Return the folder of the cache `name`, or of the one with most px, uncropped before cropped; None without one.

    Only whole caches of the slices in `table` count. Raises ValueError if `name` is none of them.
    """
    states = {path.parent: storage.read_json(path) for path in paths.cache(work_dir, "any").parent.glob("*/cache.json")}
    wanted = {"slices": cache_index.sources_hash(table), "n_slices": len(table)}
    whole = {
        folder: (s["image_size"], s["crop"] == "none") for folder, s in states.items() if wanted.items() <= s.items()
    }
    if name is not None and paths.cache(work_dir, name) not in whole:
        raise ValueError(f"{paths.cache(work_dir, name)}: no whole cache of the slices: run python -m ich_kaggle.cache")
    return paths.cache(work_dir, name) if name is not None else max(whole, key=whole.get, default=None)


def cache_state(cache_dir: Path | None) -> dict:
    return {} if cache_dir is None else storage.read_json(cache_dir / "cache.json")


def render_bone(data: paths.Data, number: int, batch: list, boxes: np.ndarray, size: int) -> tuple:
    """Return `number` and the slices of `batch`, cut to `boxes` (n, 4), in the bone window: PNGs of `size` px."""
    images = []
    for (_, member, plain), box in zip(batch, boxes, strict=True):
        words, code = pixels.read_words(data.read(member), member.path, plain)
        images.append(png.encode(slice_image.bone(head_crop.Box(*box).cut(words), code, size)))
    return (number, images), len(batch), sum(member.size for _, member, _ in batch)


def render_studies(
    data: paths.Data, parts: dict[int, pd.DataFrame], cache_dir: Path, size: int, workers: int
) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of each of `parts`, the slices of a study, and its bone window, as they are ready."""
    held = cache_index.read(cache_dir)[list(head_crop.Box._fields)]
    if lost := [one for part in parts.values() for one in part.slice_id[~part.slice_id.isin(held.index)]]:
        again = "run python -m ich_kaggle.cache --verify, then without it"
        raise ValueError(f"{cache_index.path_of(cache_dir)}: {lost[0]} is not in it ({len(lost)} such slices): {again}")
    tasks = (
        (data, number, cache.batch_of(part), held.loc[part.slice_id].to_numpy(), size) for number, part in parts.items()
    )
    return parallel.work(render_bone, tasks, sum(map(len, parts.values())), "bone window", workers)


def find_pixels(project: Project) -> paths.Data | None:
    """Return the competition's data if the DICOM files that the slice table lists are there."""
    try:
        data = slices.data_of(project)
        data.read(cache.batch_of(project.slices.iloc[:1])[0][1], 1)
    except FileNotFoundError:
        return None
    return data


def overview(work_dir: Path, submissions_dir: Path, table: pd.DataFrame, fold: np.ndarray) -> dict:
    """Return what the page says of the data, of training and of submissions."""
    history = submission_log.read(submissions_dir / "history.csv")
    data = report_scores.describe_data(table, fold if paths.folds(work_dir).exists() else None)
    return {
        "labels": LABELS,
        "made": {"time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "version": __version__},
        "data": data | {"defects": len(slices.read_defects(work_dir))},
        "logs": report_scores.learning_curves(work_dir),
        "submissions": [{column: row[column] for column in SHOWN} for row in history],
    }


def scores_of(sources: list[report_scores.Source], train: pd.DataFrame, fold: np.ndarray, seed: int) -> tuple:
    """Return `sources` and their scores in the order of the page: those of most slices first, then ensembles, then
    the least loss."""
    target, patient = tables.targets(train), np.unique(train.patient_id, return_inverse=True)[1]
    scores = [score(source, target, patient, fold, seed) for source in cli.progress(sources, len(sources), "score", "")]
    order = sorted(
        range(len(sources)),
        key=lambda i: (-scores[i]["n_slices"], scores[i]["kind"] != "ensemble", scores[i]["loss"][0]),
    )
    return [sources[i] for i in order], [scores[i] for i in order]


def compared(work_dir: Path, sources: list[report_scores.Source], target: np.ndarray, fold: np.ndarray) -> dict:
    """Return what the page says of `sources` beside each other."""
    return {
        "constant": metric.log_loss(target, ensemble.constant(target, fold)) if len(np.unique(fold)) > 1 else None,
        "correlation": report_scores.correlation(sources, target),
        "ensembles": [describe_ensemble(work_dir, source.name) for source in sources if source.kind == "ensemble"],
        "thresholds": report_scores.THRESHOLDS.tolist(),
    }


def pages_of(
    studies: report_studies.Studies,
    chosen: np.ndarray,
    maps: list[report_studies.Maps],
    cache_dir: Path | None,
    data: paths.Data | None,
    workers: int,
) -> tuple[dict, Iterator[app.Study]]:
    """Return what the page says of the `chosen` studies, and each of them as it is ready.

    Without `data` there is no bone window.
    """
    state = cache_state(cache_dir)
    content = {
        "studies": report_studies.summaries(studies, chosen),
        "n_studies": len(studies.bounds[0]),
        "worst": report_studies.gallery(studies, chosen, cache_dir),
        "maps": [f"{one.run}, {one.method}" for one in maps],
        "cache": None if cache_dir is None else {"name": cache_dir.name, "size": state["image_size"]},
        "bone": data is not None,
    }
    parts = {i: studies.train.iloc[studies.rows(i)] for i in chosen.tolist()}

    def cached(i: int) -> dict:
        return {"cached": [paths.cached(cache_dir, slice_id) for slice_id in parts[i].slice_id]} if state else {}

    if data is None:
        return content, (report_studies.describe(studies, i, maps, cached(i)) for i in parts)
    bone = render_studies(data, parts, cache_dir, state["image_size"], workers)
    return content, (report_studies.describe(studies, i, maps, cached(i) | {"bone": pngs}) for i, pngs in bone)


def report(
    *,
    data_dir: Path | None = None,
    work_dir: Path = Path("work"),
    submissions_dir: Path = Path("submissions"),
    runs: list[str] | None = None,
    name: str | None = None,
    fold: list[int] | None = None,
    cache_name: str | None = None,
    n_studies: int = 200,
    bone: bool = True,
    images: str = "link",
    seed: int = 0,
    workers: int = 1,
) -> Path:
    """Return the report's index.html, made anew."""
    project = Project(data_dir, work_dir, workers)
    table = slices.ensure(project)
    is_train, has_folds = (table.split == "train").to_numpy(), paths.folds(work_dir).exists()
    of_slice = project.fold if has_folds else np.where(is_train, 0, -1)
    train, of_train = table[is_train].reset_index(drop=True), of_slice[is_train]
    sources = report_scores.read_sources(work_dir, runs, name, table, of_slice, fold)
    sources, scores = scores_of(sources, train, of_train, seed)
    studies = report_studies.Studies(
        train,
        of_train if has_folds else None,
        [source.probability for source in sources],
        [source.kind == "run" for source in sources],
    )
    cache_dir = find_cache(work_dir, cache_name, table)
    maps = [] if cache_dir is None else report_studies.find_maps(work_dir, cache_state(cache_dir)["crop"])
    explained = np.flatnonzero(studies.ids.isin(set().union(*(one.studies for one in maps))))
    chosen = report_studies.choose(
        studies.target, studies.loss, studies.number, n_studies=n_studies, seed=seed, explained=explained
    )
    data = find_pixels(project) if bone and cache_dir is not None else None
    content, pages = pages_of(studies, chosen, maps, cache_dir, data, workers)
    content |= overview(work_dir, submissions_dir, table, of_slice) | {"sources": scores}
    content |= compared(work_dir, sources, studies.target, of_train)
    folder = work_dir / "report"
    app.write(folder, evaluate.plain(content), pages, images=images)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    cli.say(f"{folder / 'index.html'}: {len(sources)} runs and ensembles, {len(chosen)} studies, {size / 1e6:.0f} MB")
    return folder / "index.html"


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--fold", "--seed", "--workers")
    parser.add_argument("--submissions-dir", type=Path, default=Path("submissions"), help="where history.csv is")
    parser.add_argument("--runs", nargs="+", help="names of folders in work/runs (default: all with predictions)")
    parser.add_argument("--ensemble", dest="name", help="one folder in work/ensemble (default: all)")
    parser.add_argument("--cache", dest="cache_name", help="a folder in work/cache (default: the one with most px)")
    parser.add_argument(
        "--studies", dest="n_studies", type=cli.within(0, kind=int), default=200, help="to leaf through"
    )
    no_bone = dict(action="store_false", default=argparse.SUPPRESS, help="do without the bone window")
    parser.add_argument("--no-bone", dest="bone", **no_bone)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--copy", dest="images", action="store_const", const="copy", help="copy the slices' pictures")
    where.add_argument("--embed", dest="images", action="store_const", const="embed", help="put all into index.html")
    parser.set_defaults(images="link")
    return parser


def main(argv=None):
    cli.run(report, build_parser(), argv)


if __name__ == "__main__":
    main()
