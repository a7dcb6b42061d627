"""Ablations of the flags of `train` and of the kinds of `sequence` on phantoms: which of them lower the loss?

Each row trains a network with one flag changed, over all folds and seeds, and is compared with the first row: the
difference of the out-of-fold log loss, mean over the seeds, with the 95 % interval of a bootstrap over patients.
Finished folds are kept, so that rows and seeds may be added later. The slices, folds and cache are those of a demo.
Example: python tests/benchmarks/bench_toolbox.py train demo/work --rows "--freeze 3" "--cutout 0.5"
         python tests/benchmarks/bench_toolbox.py sequence demo/work --on cpu
"""

import argparse
import shlex
from functools import partial
from pathlib import Path

import numpy as np

from ich_kaggle import predict, sequence, train
from ich_kaggle.common import cli, metric, run_predictions, tables
from ich_kaggle.common.project import Project
from ich_kaggle.scoring import comparison, ensembling

NETWORK = "--arch tf_efficientnet_lite0 --image-size 64 --cache-size 256 --epochs 4 --lr 1e-3 --ema 0.99"
SERIES = "--hidden 32 --batch-size 16 --epochs 12 --lr 1e-3"  # the defaults are meant for 20,000 studies
KINDS = ("smooth", "gru", "conv", "transformer")


def train_row(row: str, seed: int, place: list[str]) -> str:
    """Train and predict a run with the flags `row`, and return its name."""
    run = f"{'_'.join(shlex.split(row)).replace('--', '') or 'base'}-{seed}"
    train.main(["--run", run, *shlex.split(NETWORK), "--seed", str(seed), *shlex.split(row), *place])
    predict.main(["--run", run, "--views", "identity", *place])
    return run


def sequence_row(row: str, seed: int, place: list[str], on: list[str]) -> str:
    """Fit a second level with the flags `row` on the runs `on`, and return its name."""
    run = f"{'-'.join(on)}_{'_'.join(shlex.split(row)).replace('--', '')}-{seed}"
    sequence.main(["--on", *on, "--run", run, "--seed", str(seed), *shlex.split(row), *place])
    return run


def report(project: Project, runs: dict[str, list[str]], folds: list[int]) -> str:
    """Return a Markdown table of the rows of `runs`, each compared with the first on the slices of `folds`."""
    rows = np.isin(project.fold[project.is_train], folds)
    table = project.slices[project.is_train][rows]
    target, (patient, size) = (
        tables.targets(table),
        np.unique(table.patient_id, return_inverse=True, return_counts=True)[1:],
    )

    def losses(run: str) -> np.ndarray:
        found = run_predictions.read_oof(project.run(run), folds, project.slices, project.fold)[rows]
        return comparison.patient_losses(target, [found.astype(float)], patient)[:, 0]

    total = np.stack([np.mean([losses(run) for run in of_row], axis=0) for of_row in runs.values()], axis=1)
    found = comparison.compare(list(runs), total, size, n_draws=5000, seed=0)
    every = ensembling.constant(tables.targets(project.slices[project.is_train]), project.fold[project.is_train])
    constant = metric.log_loss(target, every[rows])
    first, *rest = runs
    mean = dict(zip(runs, total.sum(axis=0) / size.sum(), strict=True))
    lines = ["| row | OOF | difference |", "|---|---|---|", f"| constant prevalence | {constant:.4f} | |"]
    lines.append(f"| {first} | {mean[first]:.4f} | |")
    for row in rest:
        gain, low, high = found["differences"][f"{first} - {row}"]
        lines.append(f"| `{row}` | {mean[row]:.4f} | {-gain:+.4f} ({-high:+.4f} to {-low:+.4f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "sequence"])
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--data-dir", help="where it is not the default")
    parser.add_argument("--rows", nargs="*", default=[], help="flags of each row, quoted")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--fold", type=int, nargs="+", help="only these")
    parser.add_argument("--on", nargs="+", help="finished runs in the work folder, for sequence")
    options = parser.parse_args()
    place = ["--work-dir", str(options.work_dir), "--workers", "0"]
    place += ["--data-dir", options.data_dir] if options.data_dir else []
    place += ["--fold", *map(str, options.fold)] if options.fold else []
    project = Project(options.data_dir, options.work_dir)
    if options.what == "train":
        rows, make = {"as it is": "", **{row: row for row in options.rows}}, train_row
    else:
        fits = options.rows or [f"--model {kind}" + (f" {SERIES}" if kind != "smooth" else "") for kind in KINDS]
        rows, make = {row: row for row in fits}, partial(sequence_row, on=options.on)
    runs = {title: [make(row, seed, place) for seed in options.seeds] for title, row in rows.items()}
    if options.what == "sequence":
        runs = {"slice model": options.on[:1], **runs}
    cli.say(report(project, runs, options.fold or project.folds))


if __name__ == "__main__":
    main()
