"""Write the report: a page with the scores of all runs and the studies behind them, in any browser, offline.

It shows scores, curves and thresholds, and studies to leaf through, as many as --studies. Three quarters of these are
the explained studies, then those with the worst slices: in turn the worst miss and the worst false alarm of each label,
and the study of highest mean loss. The others are drawn at random. Scores are out of fold, those of ensembles nested.
The previous report stays in place until the new one is complete.

With --data it is a page on the data alone, before any training: counts, labels, headers, gray values and defects. Of
the other flags, this page uses --data-dir, --work-dir, --seed and --workers.

Reads:   work/slices.parquet, work/folds.csv, work/cache/<name>/, submissions/history.csv,
         work/runs/<run>/fold<k>/ oof.parquet, log.csv, explain/, work/ensemble/<name>/ weights.json, nested.parquet,
         and the DICOM pixels, for the bone window, which the cache lacks; with --data only the slice table, the defects
         and a sample of the pixels
Writes:  work/report/index.html and the files that it loads. Pictures stay in work/cache and are linked; with --embed
         everything is in index.html
         work/report/data.html  (with --data)
Example: python -m ich_kaggle.report
         python -m ich_kaggle.report --embed --studies 10
         python -m ich_kaggle.report --data
"""

from pathlib import Path

from ich_kaggle.common import cli, storage
from ich_kaggle.common.project import Project, opening
from ich_kaggle.dicom import slice_table
from ich_kaggle.html import app, data_report, report_content, report_scores, report_studies
from ich_kaggle.scoring import evaluation, patient_folds


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


def page(
    project: Project,
    submissions_dir: Path,
    *,
    seed: int,
    cache_name: str | None,
    n_studies: int,
    bone: bool,
    embed: bool,
    **which,
) -> Path:
    """Return index.html, the page on the runs, ensembles and folds that `which` names, see `read_sources`."""
    storage.check_made_by(project.work_dir / "report", "report")
    slice_table.ensure(project)
    fold = patient_folds.ensure(project)
    train, of_train = project.slices[fold >= 0].reset_index(drop=True), fold[fold >= 0]
    ranked = report_content.ranked(report_scores.read_sources(project, **which), train, of_train, seed)
    sources, scores = [source for source, _ in ranked], [found for _, found in ranked]
    cache_dir, state = report_content.find_cache(project, cache_name)
    maps = report_studies.find_maps(project, state["crop"]) if state else []
    studies = report_studies.Studies(train, of_train, [source.probability for source in sources], maps)
    seen = dict(n_studies=n_studies, seed=seed, explained=studies.explained)
    chosen = report_studies.choose(studies.target, studies.loss, studies.number, **seen)
    content, pages = report_content.pages_of(project, studies, chosen, cache_dir, state, bone)
    content |= report_content.overview(project, submissions_dir) | {"sources": scores}
    content |= report_content.compared(project, sources, studies.target)
    folder = project.work_dir / "report"
    app.write(folder, evaluation.plain(content), pages, embed=embed)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    cli.say(f"{folder / 'index.html'}: {len(sources)} runs and ensembles, {len(chosen)} studies, {size / 1e6:.0f} MB")
    return folder / "index.html"


def report(project: Project, *, data: bool, seed: int, **options) -> Path:
    """Return the report's index.html, made anew, or with `data` the page on the data; `options` are those of `page`."""
    return data_page(project, seed) if data else page(project, seed=seed, **options)


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--fold", "--seed", "--workers")
    add = parser.add_argument
    add("--submissions-dir", type=Path, default=Path("submissions"), help="folder of history.csv")
    add("--runs", nargs="+", help="names of folders in work/runs (default: all with predictions)")
    add("--ensemble", dest="name", help="name of one folder in work/ensemble (default: all)")
    add("--cache", dest="cache_name", help="name of a folder in work/cache (default: that of the largest pictures)")
    add("--studies", dest="n_studies", type=cli.within(0, kind=int), default=200, help="number of studies to show")
    add("--no-bone", dest="bone", action="store_false", help="leave out the bone window")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--embed", action="store_true", help="put everything into index.html, to send it or to serve it")
    kind.add_argument("--data", action="store_true", help="write the page on the data instead, data.html")
    return parser


def main(argv=None):
    cli.run(opening(report), build_parser(), argv)


if __name__ == "__main__":
    main()
