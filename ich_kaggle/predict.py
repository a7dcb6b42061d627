"""Predict with the model of each fold: its held-out slices, the test slices, and the embeddings of both.

Folds that are predicted already are left as they are.

Reads:   work/runs/<run>/fold<k>/model.pt, work/cache/
Writes:  work/runs/<run>/fold<k>/  oof.parquet, test.parquet, embeddings.npy
         (embeddings: float16, one row per row of the slice table, NaN for the slices of the other folds)
Example: python -m ich_kaggle.predict --run cpu
         python -m ich_kaggle.predict --run cpu --fold 0 --views identity hflip zoom
"""

from ich_kaggle.common import cli
from ich_kaggle.common.project import Project, opening
from ich_kaggle.learning import augment, predictions
from ich_kaggle.scoring import patient_folds


def predict(project: Project, *, run: str | None, fold: list[int] | None, **how) -> None:
    project.need_runs()
    patient_folds.ensure(project)
    this = project.run(run or project.only_run())
    cli.say(project.describe(this, project.finished(this, fold)))
    predictions.predict_run(project, this.name, fold, **how)


def build_parser():
    flags = ("--data-dir", "--work-dir", "--fold", "--batch-size", "--device", "--workers", "--overwrite")
    parser = cli.command(__doc__, *flags, batch_size=64)
    add = parser.add_argument
    add("--run", help="name of a folder in work/runs (default: the slice model, if there is only one)")
    averaged = f"views to average (TTA; default: those of the run's predictions, else {' '.join(predictions.VIEWS)})"
    add("--views", nargs="+", choices=list(augment.VIEWS), help=averaged)
    add("--all-slices", action="store_true", help="also embed the slices of the other folds")
    return parser


def main(argv=None):
    cli.run(opening(predict), build_parser(), argv)


if __name__ == "__main__":
    main()
