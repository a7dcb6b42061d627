"""Run the whole pipeline on a synthetic competition, from nothing, on any machine.

The steps: two networks, a second level on each, the ensemble of the two second levels, a verified submission scored
against the truth, and the report page. Then a hospital with few patients and another scanner, where a network starts
from ImageNet, or from the first network of the competition, each with a second level. Each step is printed as the
command that does it.

Reads:   nothing
Writes:  <demo-dir>/input/ (the competition), <demo-dir>/work/ (folds, cache, runs, ensemble, report),
         <demo-dir>/submissions/, <demo-dir>/hospital/ (input and work of the hospital)
Example: python -m ich_kaggle.demo
"""

import importlib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from ich_kaggle.common import cli, metric, paths, run_predictions, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.html import app
from ich_kaggle.scoring import blending, comparison, ensembling, patient_bootstrap

NETWORKS = {"cpu": 4, "cpu_both": 3}  # recipes and their epochs
SECOND_LEVELS = tuple(f"smooth-{network}" for network in NETWORKS)
NAME = "demo"  # of the ensemble
SIZE = 80  # px: fewer than the recipes have, for a demo of minutes
STARTS = ("from-imagenet", "from-phantoms")  # runs of the hospital
HOSPITAL = 24  # patients that the hospital has labelled


def steps(demo_dir: Path, *, patients: int, n_folds: int, epochs: int | None, seed: int, workers: int) -> list[str]:
    """Return the command lines of the pipeline, in order, without `python -m ich_kaggle.`."""
    data, work, out = (shlex.quote(str(demo_dir / part)) for part in (f"input/{paths.SLUG}", "work", "submissions"))
    shared = f"--work-dir {work} --workers {workers}"
    train = f"--image-size {SIZE} --freeze 0 --fold all{device()} --seed {seed} {shared}"
    members = " ".join(SECOND_LEVELS)
    return [
        f"phantom --out {data} --patients {patients} --slices 16 --seed {seed} --workers {workers}",
        f"slices --data-dir {data} {shared}",
        f"folds --folds {n_folds} --seed {seed} {shared}",
        *(f"train --recipe {network} --epochs {epochs or usual} {train}" for network, usual in NETWORKS.items()),
        *(f"predict --run {network} --views identity {shared}" for network in NETWORKS),
        *(f"sequence --model smooth --on {network} {shared}" for network in NETWORKS),
        f"ensemble --name {NAME} --runs {members} {shared}",
        f"submit --dry-run --ensemble {NAME} --work-dir {work} --submissions-dir {out}",
        f"report --studies 40 --submissions-dir {out} {shared}",
    ]


def hospital_steps(demo_dir: Path, *, epochs: int | None, seed: int, workers: int) -> list[str]:
    """Return the command lines of the hospital, which fine-tunes from ImageNet and from fold 0 of the first network."""
    work, data = (shlex.quote(str(hospital(demo_dir) / part)) for part in ("work", f"input/{paths.SLUG}"))
    shared = f"--work-dir {work} --workers {workers}"
    model = shlex.quote(str(demo_dir / "work" / "runs" / "cpu" / "fold0" / "model.pt"))
    train = f"train --recipe cpu --image-size {SIZE} --epochs {epochs or 2} --fold all{device()} --seed {seed} {shared}"
    return [
        f"phantom --out {data} --variety shifted --patients {HOSPITAL + 1} --test-fraction 0 --slices 16 "
        f"--seed {seed + 1} --workers {workers}",
        f"folds --folds 2 --seed {seed} --data-dir {data} {shared}",
        f"{train} --run {STARTS[0]} --freeze {int(epochs != 1)}",
        f"{train} --run {STARTS[1]} --init {model} --lr 1e-4 --freeze 0",
        *(f"predict --run {run} --views identity {shared}" for run in STARTS),
        *(f"sequence --model smooth --on {run} {shared}" for run in STARTS),
    ]


def device() -> str:
    """Return the flag that trains two folds side by side on a CPU: faster than one fold on both cores."""
    devices = importlib.import_module("ich_kaggle.learning.devices")  # imports torch
    is_cpu = devices.pick_device("auto").type == "cpu"
    return " --device cpu,cpu" if is_cpu and joblib.cpu_count() > 1 else ""


def hospital(demo_dir: Path) -> Path:
    return demo_dir / "hospital"


def run_step(line: str) -> None:
    """Run one command in this process, as its line would in a shell."""
    cli.say(f"\n$ python -m ich_kaggle.{line}")
    started = time.monotonic()
    name, *argv = shlex.split(line)
    importlib.import_module(f"ich_kaggle.{name}").main(argv)
    cli.say(f"({time.monotonic() - started:.0f} s)")


def test_scores(demo_dir: Path, submission: Path) -> tuple[float, float, int]:
    """Return the test log loss of `submission` and of the training prevalence, and the number of test patients."""
    truth = pd.read_parquet(demo_dir / "input" / paths.SLUG / "truth.parquet").set_index("slice_id")
    slice_ids, slice_index, label_index, values = tables.read_long(paths.Data(submission.parent), submission.name)
    probability = np.empty((len(slice_ids), len(LABELS)))
    probability[slice_index, label_index] = values
    target = truth.loc[slice_ids, list(LABELS)].to_numpy(float)
    train = tables.read_slices(demo_dir / "work").query("split == 'train'")
    constant = np.broadcast_to(tables.targets(train).mean(axis=0), target.shape)
    n_patients = truth.loc[slice_ids, "patient_id"].nunique()
    return metric.log_loss(target, probability), metric.log_loss(target, constant), n_patients


def patient_losses(work_dir: Path, runs: Sequence[str], *others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed log loss per patient of each run and of `others`, out-of-fold probabilities (n_train, 6):
    (n_patients, n_runs + n_others); and the number of slices per patient, (n_patients,)."""
    project = Project(None, work_dir)
    train, folds = project.slices[project.is_train], project.folds
    found = [run_predictions.read_oof(project.run(name), folds, project.slices, project.fold) for name in runs]
    patient, size = np.unique(train.patient_id, return_inverse=True, return_counts=True)[1:]
    raised = [blending.raise_any(probability.copy()) for probability in (*found, *others)]
    return comparison.patient_losses(tables.targets(train), raised, patient), size


def better(total: np.ndarray, size: np.ndarray, one: int, other: int) -> str:
    """Return by how much column `one` of `total` (n_patients, n) is better than `other`, with the standard error."""
    gain = total[:, other] - total[:, one]
    error = patient_bootstrap.standard_error(gain, size)
    return f"better by {gain.sum() / size.sum():.4f} +- {error:.4f} (standard error over {len(size)} patients)"


def hospital_summary(work_dir: Path) -> str:
    """Return the scores of the hospital: of the prevalence of its slices, and of the two starts, alone and smoothed."""
    train = tables.read_slices(work_dir).query("split == 'train'")
    target = tables.targets(train)
    constant = metric.log_loss(target, np.broadcast_to(target.mean(axis=0), target.shape))
    total, size = patient_losses(work_dir, [*STARTS, *(f"smooth-{run}" for run in STARTS)])
    loss = total.sum(axis=0) / size.sum()
    starts = zip(("ImageNet", "the phantoms of the competition"), loss[:2], loss[2:], strict=True)
    found = ", ".join(f"from {start} {alone:.4f}, smoothed {smoothed:.4f}" for start, alone, smoothed in starts)
    return (
        f"log loss at a hospital with another scanner: constant prevalence {constant:.4f}, network {found}; "
        f"smoothed, that from phantoms is {better(total, size, 3, 2)}"
    )


def summary(demo_dir: Path, submission: Path) -> str:
    """Return the scores of second levels, ensemble, submission and hospital, and the places of the files."""
    work, names = demo_dir / "work", [*NETWORKS, *SECOND_LEVELS]
    folder = paths.ensemble(work, NAME)
    slice_ids = tables.read_slices(work).query("split == 'train'").slice_id.to_numpy()
    total, size = patient_losses(work, names, tables.read_predictions(folder / "nested.parquet", slice_ids))
    loss = dict(zip([*names, NAME], total.sum(axis=0) / size.sum(), strict=True))
    best = min(names, key=loss.get)
    ours, constant, n_patients = test_scores(demo_dir, submission)
    second = ", ".join(f"{run} {loss[run]:.4f} to {loss[f'smooth-{run}']:.4f}" for run in NETWORKS)
    lines = [
        ensembling.describe("ensemble", storage.read_json(folder / "weights.json")),
        "",
        f"log loss by the second level: {second}",
        f"ensemble {loss[NAME]:.4f}, best member {best} {loss[best]:.4f}: "
        f"{better(total, size, len(names), names.index(best))}",
        f"test log loss: submission {ours:.4f}, training prevalence {constant:.4f} ({n_patients} patients)",
        hospital_summary(hospital(demo_dir) / "work"),
        f"submission   {submission}",
        f"predictions  {folder}",
        f"models       {work / 'runs'}",
        f"cached CT    {work / 'cache'}",
        f"report       {work / 'report' / 'index.html'}",
    ]
    return "\n".join(lines)


def demo(*, demo_dir: Path, n_folds: int, patients: int, epochs: int | None, seed: int, workers: int) -> None:
    started = time.monotonic()
    app.plotly_script()  # the last step needs it: refuse before the first
    options = dict(epochs=epochs, seed=seed, workers=workers)
    competition = steps(demo_dir, n_folds=n_folds, patients=patients, **options)
    for line in [*competition, *hospital_steps(demo_dir, **options)]:
        run_step(line)
    submission = max((demo_dir / "submissions").glob("*.csv"), key=lambda path: path.stat().st_mtime)
    cli.say(f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes\n\n{summary(demo_dir, submission)}")


def build_parser():
    parser = cli.command(__doc__, "--folds", "--epochs", "--seed", "--workers", n_folds=2, epochs=None)
    parser.add_argument("--demo-dir", type=Path, default=Path("demo"), help="folder for all files of the demo")
    parser.add_argument("--patients", type=int, default=128, help="number of patients, train and test")
    return parser


def main(argv=None):
    cli.run(demo, build_parser(), argv)


if __name__ == "__main__":
    main()
