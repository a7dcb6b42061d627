"""Write the report: a page with the scores of all runs and the studies behind them, in any browser, offline.

It shows scores, curves and thresholds, and studies to leaf through, as many as --studies. Three quarters of these are
the explained studies, then those with the worst slices: in turn the worst miss and the worst false alarm of each label,
and the study of highest mean loss. The others are drawn at random. Scores are out of fold, those of ensembles nested.
The previous report stays in place until the new one is complete.

With --data it is a page on the data alone, before any training: counts, labels, headers, gray values, defects and
sample studies. Of the other flags, this page uses --data-dir, --work-dir, --seed and --workers.

Reads:   work/slices.parquet, work/folds.csv, work/cache/<name>/, submissions/history.csv,
         work/runs/<run>/fold<k>/ oof.parquet, log.csv, explain/, work/ensemble/<name>/ weights.json, nested.parquet,
         and the DICOM pixels, for the bone window, which the cache lacks; with --data only the slice table, the defects
         and a sample of the pixels
Writes:  work/report/index.html and the files that it loads. Pictures stay in work/cache and are linked; with --copy
         they are in work/report too, for a web server; with --embed everything is in index.html
         work/report/data.html  (with --data)
Example: python -m ich_kaggle.report
         python -m ich_kaggle.report --embed --studies 10
         python -m ich_kaggle.report --data
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, paths, storage
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import slice_table
from ich_kaggle.html import app, data_report, report_content, report_scores, report_studies
from ich_kaggle.scoring import evaluation


def data_page(project: Project, seed: int) -> Path:
    """Return data.html, the page on the slice table, its defects and a sample of the pixels, drawn by `seed`."""
    path, table = project.work_dir / "report" / "data.html", slice_table.ensure(project)
    defects = slice_table.kinds_of(slice_table.read_defects(project.work_dir))
    text = data_report.make(slice_table.data_of(project), table, defects, seed=seed)
    storage.claim(path.parent, "report")
    with storage.writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    cli.say(f"{path}: open it in a browser")
    return path


def find_maps(work_dir: Path, cache_dir: Path | None) -> list[report_studies.Maps]:
    """Return the explanations that can be laid over the pictures of `cache_dir`."""
    if cache_dir is None:
        return []
    return report_studies.find_maps(work_dir, report_content.cache_state(cache_dir)["crop"])


def studies_of(
    sources: list[report_scores.Entry], train: pd.DataFrame, fold: np.ndarray | None
) -> report_studies.Studies:
    """Return the training slices `train` as studies with the predictions of `sources`; `fold` is None without folds."""
    probabilities = [source.probability for source in sources]
    return report_studies.Studies(train, fold, probabilities, [source.kind == "run" for source in sources])


def sources_of(
    project: Project,
    of_slice: np.ndarray,
    *,
    runs: list[str] | None = None,
    name: str | None = None,
    fold: list[int] | None = None,
) -> list[report_scores.Entry]:
    """Return the OOF predictions of `runs` and the nested ones of the ensemble `name`, None for all that exist."""
    fold = fold and project.chosen(fold)
    return report_scores.read_sources(project.work_dir, runs, name, project.slices, of_slice, fold)


def report(
    *,
    data_dir: Path | None = None,
    work_dir: Path = Path("work"),
    submissions_dir: Path = Path("submissions"),
    data: bool = False,
    seed: int = 0,
    workers: int = 1,
    **options,
) -> Path:
    """Return the report's index.html, made anew, or with `data` the page on the data; `options` are those of `page`."""
    project = Project(data_dir, work_dir, workers)
    if data:
        return data_page(project, seed)
    return page(project, submissions_dir, seed=seed, **options)


def page(
    project: Project,
    submissions_dir: Path,
    *,
    seed: int = 0,
    cache_name: str | None = None,
    n_studies: int = 200,
    bone: bool = True,
    images: str = "link",
    **which,
) -> Path:
    """Return index.html, the page on the runs, ensembles and folds that `which` names, see `sources_of`."""
    table, work_dir = slice_table.ensure(project), project.work_dir
    is_train, has_folds = (table.split == "train").to_numpy(), paths.folds(work_dir).exists()
    of_slice = project.fold if has_folds else np.where(is_train, 0, -1)
    train, of_train = table[is_train].reset_index(drop=True), of_slice[is_train]
    sources = sources_of(project, of_slice, **which)
    sources, scores = report_content.scores_of(sources, train, of_train, seed)
    studies = studies_of(sources, train, of_train if has_folds else None)
    cache_dir = report_content.find_cache(work_dir, cache_name, table)
    maps = find_maps(work_dir, cache_dir)
    explained = np.flatnonzero(studies.ids.isin(set().union(*(one.studies for one in maps))))
    chosen = report_studies.choose(
        studies.target, studies.loss, studies.number, n_studies=n_studies, seed=seed, explained=explained
    )
    data = report_content.find_pixels(project) if bone and cache_dir is not None else None
    content, pages = report_content.pages_of(studies, chosen, maps, cache_dir, data, project.workers)
    content |= report_content.overview(work_dir, submissions_dir, table, of_slice) | {"sources": scores}
    content |= report_content.compared(work_dir, sources, studies.target, of_train)
    folder = work_dir / "report"
    app.write(folder, evaluation.plain(content), pages, images=images)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    cli.say(f"{folder / 'index.html'}: {len(sources)} runs and ensembles, {len(chosen)} studies, {size / 1e6:.0f} MB")
    return folder / "index.html"


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--fold", "--seed", "--workers")
    add = parser.add_argument
    add("--submissions-dir", type=Path, default=Path("submissions"), help="folder of history.csv")
    add("--runs", nargs="+", help="names of folders in work/runs (default: all with predictions)")
    add("--ensemble", dest="name", help="name of one folder in work/ensemble (default: all)")
    add("--cache", dest="cache_name", help="name of a folder in work/cache (default: the one with most px)")
    add("--studies", dest="n_studies", type=cli.within(0, kind=int), default=200, help="number of studies to show")
    add("--no-bone", dest="bone", action="store_false", help="leave out the bone window")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--copy", dest="images", action="store_const", const="copy", help="copy the slices' pictures")
    kind.add_argument("--embed", dest="images", action="store_const", const="embed", help="put all into index.html")
    kind.add_argument("--data", action="store_true", help="write the page on the data instead, data.html")
    parser.set_defaults(images="link")
    return parser


def main(argv=None):
    cli.run(report, build_parser(), argv)


if __name__ == "__main__":
    main()
