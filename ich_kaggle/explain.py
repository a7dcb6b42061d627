"""Write saliency maps: the parts of each slice that a slice model bases the probability of each label on.

Each fold explains studies that its model never saw: those of the fold itself and those of the test set.

Reads:   work/runs/<run>/fold<k>/ model.pt, oof.parquet (predicted first if missing), work/cache/
Writes:  work/runs/<run>/fold<k>/explain/<method>/  <slice_id>.png (one map per label, stacked vertically, each over
         the whole cached image and scaled by its own maximum), explain.json (written last)
Example: python -m ich_kaggle.explain --run cpu --fold 0
         python -m ich_kaggle.explain --run vgg16 --method lrp --n-studies 3
"""

from ich_kaggle.common import cli
from ich_kaggle.common.project import Project, opening
from ich_kaggle.learning import predictions, saliency
from ich_kaggle.scoring import patient_folds


def explain(project: Project, *, run: str | None, fold: list[int] | None, method: str, **how) -> None:
    project.need_runs()
    patient_folds.ensure(project)
    this = project.run(run or project.only_run())
    chosen = project.finished(this, fold)
    if this.is_second_level:
        raise ValueError(f"{this.folder} is a second level: give the --run of a slice model")
    saliency.check(method, this.settings["arch"])
    project.check_same(this)
    predictions.ensure(project, this, chosen)
    saliency.explain_run(project, this.name, chosen, method=method, **how)


def build_parser():
    flags = ("--data-dir", "--work-dir", "--fold", "--batch-size", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags, batch_size=64)
    add = parser.add_argument
    add("--run", help="name of a folder in work/runs (default: the slice model, if there is only one)")
    add("--method", choices=saliency.METHODS, default="gradcam", help="gradcam for any CNN, lrp for VGG")
    add("--studies", nargs="+", metavar="ID", help="explain these studies (default: --n-studies of each fold)")
    of_fold = "per fold, the number of studies of highest loss; for each label, the most certain hit is added"
    add("--n-studies", type=cli.within(0, kind=int), default=10, help=of_fold)
    return parser


def main(argv=None):
    cli.run(opening(explain), build_parser(), argv)


if __name__ == "__main__":
    main()
