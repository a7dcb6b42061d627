"""Run the whole pipeline on a synthetic competition, from nothing, on any machine.

Two networks, a second level on each, the ensemble of all four, a verified submission scored against the truth, and the
report page: each step is printed as the command that does it.

Reads:   nothing
Writes:  <demo-dir>/input/ (the competition), <demo-dir>/work/ (folds, cache, runs, ensemble, report),
         <demo-dir>/submissions/
Example: python -m ich_kaggle.demo
"""

import importlib
import shlex
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, metric, paths, runs, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.html import app
from ich_kaggle.scoring import blending, comparison, ensembling, patient_bootstrap

NETWORKS = ("cpu", "cpu_both")  # recipes
NAME = "demo"  # of the ensemble


def steps(demo_dir: Path, *, patients: int, n_folds: int, epochs: int | None, seed: int, workers: int) -> list[str]:
    """Return the command lines of the pipeline, in order, without `python -m ich_kaggle.`."""
    data, work, out = (shlex.quote(str(demo_dir / part)) for part in (f"input/{paths.SLUG}", "work", "submissions"))
    shared = f"--work-dir {work} --workers {workers}"
    extra = "" if epochs is None else f" --epochs {epochs}"
    members = " ".join([*NETWORKS, *(f"smooth-{network}" for network in NETWORKS)])
    return [
        f"phantom --out {data} --patients {patients} --slices 16 --seed {seed} --workers {workers}",
        f"slices --data-dir {data} {shared}",
        f"folds --folds {n_folds} --seed {seed} {shared}",
        *(f"train --recipe {network} --fold all --seed {seed} {shared}{extra}" for network in NETWORKS),
        *(f"predict --run {network} {shared}" for network in NETWORKS),
        *(f"sequence --model smooth --on {network} {shared}" for network in NETWORKS),
        f"ensemble --name {NAME} --runs {members} {shared}",
        f"submit --dry-run --ensemble {NAME} --work-dir {work} --submissions-dir {out}",
        f"report --studies 40 --submissions-dir {out} {shared}",
    ]


def run_step(line: str) -> None:
    """Run one command in this process, as its line would in a shell."""
    cli.say(f"\n$ python -m ich_kaggle.{line}")
    started = time.monotonic()
    name, *argv = shlex.split(line)
    importlib.import_module(f"ich_kaggle.{name}").main(argv)
    cli.say(f"({time.monotonic() - started:.0f} s)")


def test_scores(demo_dir: Path, submission: Path) -> tuple[float, float, int]:
    """Return the log loss of `submission` and of the training prevalence against the test truth, and the patients."""
    truth = pd.read_parquet(demo_dir / "input" / paths.SLUG / "truth.parquet").set_index("slice_id")
    slice_ids, slice_index, label_index, values = tables.read_long(paths.Data(submission.parent), submission.name)
    probability = np.empty((len(slice_ids), len(LABELS)))
    probability[slice_index, label_index] = values
    target = truth.loc[slice_ids, list(LABELS)].to_numpy(float)
    train = tables.read_slices(demo_dir / "work").query("split == 'train'")
    constant = np.broadcast_to(tables.targets(train).mean(axis=0), target.shape)
    n_patients = truth.loc[slice_ids, "patient_id"].nunique()
    return metric.log_loss(target, probability), metric.log_loss(target, constant), n_patients


def gain(work_dir: Path, folder: Path) -> tuple[str, float, float]:
    """Return the best member of the ensemble in `folder`, by how much the nested loss is below that member's, and the
    standard error of this difference over patients."""
    single = storage.read_json(folder / "weights.json")["single"]
    best, project = min(single, key=single.get), Project(None, work_dir)
    train = project.slices[project.is_train]
    alone = blending.raise_any(runs.read_oof(project.run(best), project.folds, project.slices, project.fold))
    nested = tables.read_predictions(folder / "nested.parquet", train.slice_id.to_numpy())
    patient, size = np.unique(train.patient_id, return_inverse=True, return_counts=True)[1:]
    total = comparison.patient_losses(tables.targets(train), [alone, nested], patient) @ [1, -1]
    return best, total.sum() / size.sum(), patient_bootstrap.standard_error(total, size)


def summary(demo_dir: Path, submission: Path) -> str:
    work = demo_dir / "work"
    folder = paths.ensemble(work, NAME)
    scores = storage.read_json(folder / "weights.json")
    best, better, error = gain(work, folder)
    ours, constant, n_patients = test_scores(demo_dir, submission)
    lines = [
        ensembling.describe("ensemble", scores),
        "",
        f"ensemble {scores['nested_log_loss']:.4f}, best member {best} {scores['single'][best]:.4f}: better by "
        f"{better:.4f} +- {error:.4f} (standard error over {scores['n_patients']} patients)",
        f"test log loss of the submission {ours:.4f}, of the training prevalence {constant:.4f}: "
        f"{ours / constant:.2f} of it, on {n_patients} patients",
        f"submission   {submission}",
        f"predictions  {folder}",
        f"models       {work / 'runs'}",
        f"cached CT    {work / 'cache'}",
        f"report       {work / 'report' / 'index.html'}",
    ]
    return "\n".join(lines)


def demo(*, demo_dir: Path, n_folds: int, patients: int, epochs: int | None, seed: int, workers: int) -> None:
    started = time.monotonic()
    app.plotly_script()  # what the last step needs is asked for before the first
    options = dict(n_folds=n_folds, patients=patients, epochs=epochs, seed=seed, workers=workers)
    for line in steps(demo_dir, **options):
        run_step(line)
    submission = max((demo_dir / "submissions").glob("*.csv"), key=lambda path: path.stat().st_mtime)
    cli.say(f"\n{summary(demo_dir, submission)}\n{(time.monotonic() - started) / 60:.1f} minutes")


def build_parser():
    parser = cli.command(__doc__, "--folds", "--epochs", "--seed", "--workers", n_folds=3, epochs=None)
    parser.add_argument("--demo-dir", type=Path, default=Path("demo"), help="everything the demo makes")
    parser.add_argument("--patients", type=int, default=160, help="in train and test")
    return parser


def main(argv=None):
    cli.run(demo, build_parser(), argv)


if __name__ == "__main__":
    main()
