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
from pathlib import Path

import numpy as np

from ich_kaggle.common import cli, paths
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import slice_table
from ich_kaggle.html import app, report_content, report_scores, report_studies
from ich_kaggle.scoring import evaluation


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
    table = slice_table.ensure(project)
    is_train, has_folds = (table.split == "train").to_numpy(), paths.folds(work_dir).exists()
    of_slice = project.fold if has_folds else np.where(is_train, 0, -1)
    train, of_train = table[is_train].reset_index(drop=True), of_slice[is_train]
    sources = report_scores.read_sources(work_dir, runs, name, table, of_slice, fold)
    sources, scores = report_content.scores_of(sources, train, of_train, seed)
    studies = report_studies.Studies(
        train,
        of_train if has_folds else None,
        [source.probability for source in sources],
        [source.kind == "run" for source in sources],
    )
    cache_dir = report_content.find_cache(work_dir, cache_name, table)
    maps = (
        [] if cache_dir is None else report_studies.find_maps(work_dir, report_content.cache_state(cache_dir)["crop"])
    )
    explained = np.flatnonzero(studies.ids.isin(set().union(*(one.studies for one in maps))))
    chosen = report_studies.choose(
        studies.target, studies.loss, studies.number, n_studies=n_studies, seed=seed, explained=explained
    )
    data = report_content.find_pixels(project) if bone and cache_dir is not None else None
    content, pages = report_content.pages_of(studies, chosen, maps, cache_dir, data, workers)
    content |= report_content.overview(work_dir, submissions_dir, table, of_slice) | {"sources": scores}
    content |= report_content.compared(work_dir, sources, studies.target, of_train)
    folder = work_dir / "report"
    app.write(folder, evaluation.plain(content), pages, images=images)
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
