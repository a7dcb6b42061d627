"""Score a run or an ensemble on out-of-fold predictions, and choose its thresholds. The report draws its curves.

Scores come with 95 % intervals of a bootstrap over patients. An ensemble is scored on its nested predictions. Rates
are those at thresholds chosen on the other folds; the thresholds in thresholds.json are chosen on all folds.
Two thresholds keep the share of a patient's positive slices that is missed, averaged over patients, below 1 - R for the
models of the folds: recall_R with the --confidence given, recall_R_expected in expectation. A submission and a scan use
the mean of these models, for which neither is guaranteed.

Reads:   work/runs/<run>/fold<k>/oof.parquet, or work/ensemble/<name>/nested.parquet
Writes:  evaluation/ in the folder of the run or the ensemble: metrics.json, thresholds.json;
         with --shift only shift.json: the differences between the test scans and the training scans
Example: python -m ich_kaggle.evaluate --run cpu --recall 0.95
"""

from pathlib import Path

import numpy as np

from ich_kaggle.common import cli, storage
from ich_kaggle.common.project import Project, opening
from ich_kaggle.scans import on_demand
from ich_kaggle.scoring import ensembling, evaluation, patient_bootstrap, patient_folds


def write(folder: Path, project: Project, found: evaluation.Predictions, asked: evaluation.Asked) -> None:
    """Score the predictions that were `found`, write the evaluation into `folder`, and print it."""
    known = ~np.isnan(found.probability[:, 0])
    train = project.slices[project.is_train][known].reset_index(drop=True)
    probability, fold = found.probability[known], project.fold[project.is_train][known]
    metrics, chosen = evaluation.score(train, probability, fold, asked)
    settings, metrics = asked.settings | {"made_from": found.made_from}, evaluation.plain(metrics)
    storage.write_json(folder / "thresholds.json", settings | {"n_patients": metrics["n_patients"], **chosen})
    storage.write_json(folder / "metrics.json", metrics | settings)
    cli.say(f"{folder}\n{evaluation.describe(found.name, metrics)}")


def evaluate(
    project: Project,
    *,
    run: str | None,
    name: str | None,
    fold: list[int] | None,
    compare_splits: bool,
    overwrite: bool,
    **options,
) -> None:
    asked = evaluation.Asked(**options)
    asked.check()
    if name is None:
        project.need_runs()
    patient_folds.ensure(project)
    if name is not None:
        ensembling.refresh(project, name, on_demand.predict)
    found = evaluation.read(project, run, name, fold)
    folder = found.folder / "evaluation"
    if compare_splits:
        evaluation.show_shift(project, found, asked.seed)
    elif overwrite or not evaluation.is_current(folder / "metrics.json", found, asked):
        write(folder, project, found, asked)


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--fold", "--seed", "--workers", "--overwrite")
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--run", help="name of a folder in work/runs; `any` is raised to the largest subtype")
    of.add_argument("--ensemble", dest="name", help="name of a folder in work/ensemble")
    parser.add_argument("--beta", type=float, default=2.0, help="weight of recall against precision in F-beta")
    parser.add_argument("--recall", type=float, default=0.95, help="sensitivity that the thresholds recall_R aim at")
    parser.add_argument("--confidence", type=float, default=0.95, help="confidence of recall_R")
    draws = dict(type=cli.POSITIVE, default=patient_bootstrap.N_DRAWS, help="draws of patients in the bootstrap")
    parser.add_argument("--draws", dest="n_draws", **draws)
    parser.add_argument("--shift", dest="compare_splits", action="store_true", help="compare test and train instead")
    return parser


def main(argv=None):
    cli.run(opening(evaluate), build_parser(), argv)


if __name__ == "__main__":
    main()
