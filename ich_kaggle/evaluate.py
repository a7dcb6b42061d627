"""Score a run or an ensemble on out-of-fold predictions, draw its curves, choose its thresholds.

All scores come with the 95 % interval of a bootstrap over patients. Those of an ensemble are of its nested
predictions. Rates are of thresholds that were chosen on the other folds; the thresholds written are chosen on all.
recall_R is the highest threshold that misses, with --confidence, at most 1 - R of a patient's positive slices in the
mean over patients; recall_R_expected the one that does so in expectation (conformal risk control).

Reads:   work/runs/<run>/fold<k>/oof.parquet, or work/ensemble/<name>/nested.parquet
Writes:  evaluation/ in the folder of the run or the ensemble:
         metrics.json, thresholds.json, roc.png, precision_recall.png, reliability.png, thresholds.png
         with --shift only shift.json: how the test scans differ from the training scans
Example: python -m ich_kaggle.evaluate --run cpu --recall 0.95
"""

from pathlib import Path

import numpy as np

from ich_kaggle.common import cli, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.html import figures
from ich_kaggle.scoring import (
    ensembling,
    evaluation,
    patient_bootstrap,
    patient_folds,
)


def draw(folder: Path, target: np.ndarray, probability: np.ndarray, metrics: dict, chosen: dict) -> None:
    areas = {
        name: {label: metrics["slices"][label][name][0] for label in LABELS} for name in ("auc", "average_precision")
    }
    figures.roc(folder / "roc.png", target, probability, areas["auc"])
    figures.precision_recall(folder / "precision_recall.png", target, probability, areas["average_precision"])
    figures.reliability(folder / "reliability.png", target, probability)
    figures.threshold_curves(folder / "thresholds.png", target, probability, chosen["slices"])


def evaluate(
    *,
    data_dir: Path | None = None,
    work_dir: Path = Path("work"),
    run: str | None = None,
    name: str | None = None,
    fold: list[int] | None = None,
    beta: float = 2.0,
    recall: float = 0.95,
    confidence: float = 0.95,
    n_draws: int = patient_bootstrap.N_DRAWS,
    compare_splits: bool = False,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
) -> Path:
    """Return the folder with the evaluation of a `run` or of the ensemble `name`, made where it does not exist.

    Raises ValueError naming both settings if it was made with other wishes.
    """
    for flag, value in (("--recall", recall), ("--confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{flag} {value}: give a number between 0 and 1")
    project = Project(data_dir, work_dir, workers)
    patient_folds.ensure(project)
    source = evaluation.read(project, run, name, fold)
    folder = source.folder / "evaluation"
    if compare_splits:
        evaluation.show_shift(project, source, seed)
        return folder
    wanted = {"beta": beta, "recall": recall, "confidence": confidence}
    settings = {"wanted": wanted, "n_draws": n_draws, "seed": seed}
    done = folder / "metrics.json"
    if done.exists() and not overwrite:
        found = storage.read_json(done)
        storage.same_settings(done, found, settings, "give --overwrite")
        if found["made_from"] == source.made_from:
            cli.say(f"{done}{cli.THERE}\n{evaluation.describe(source.name, found)}")
            return folder
        cli.say(f"{folder}: scored anew ({ensembling.what_changed(found['made_from'], source.made_from)})")
    train, of_train = project.slices[project.is_train], project.fold[project.is_train]
    known = ~np.isnan(source.probability[:, 0])
    train, probability = train[known].reset_index(drop=True), source.probability[known]
    metrics, chosen = evaluation.score(train, probability, of_train[known], wanted=wanted, n_draws=n_draws, seed=seed)
    settings["made_from"] = source.made_from
    draw(folder, tables.targets(train), probability, metrics, chosen)
    storage.write_json(folder / "thresholds.json", settings | {"n_patients": metrics["n_patients"], **chosen})
    metrics = evaluation.plain(metrics)
    storage.write_json(done, metrics | settings)
    cli.say(f"{folder}\n{evaluation.describe(source.name, metrics)}")
    return folder


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--fold", "--seed", "--workers", "--overwrite")
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--run", help="a run, as it was predicted, `any` raised to the largest subtype")
    of.add_argument("--ensemble", dest="name", help="a folder in work/ensemble")
    parser.add_argument("--beta", type=float, default=2.0, help="of F-beta: how many times recall counts precision")
    parser.add_argument("--recall", type=float, default=0.95, help="to be promised")
    parser.add_argument("--confidence", type=float, default=0.95, help="of that promise")
    parser.add_argument(
        "--draws", dest="n_draws", type=cli.POSITIVE, default=patient_bootstrap.N_DRAWS, help="of the bootstrap"
    )
    parser.add_argument("--shift", dest="compare_splits", action="store_true", help="compare train and test instead")
    return parser


def main(argv=None):
    cli.run(evaluate, build_parser(), argv)


if __name__ == "__main__":
    main()
