"""A network pretrained on phantoms against one of ImageNet, on few patients: from another scanner, or real ones.

Each start is trained with the recipe `cpu` on four folds, ImageNet also without its frozen epochs; alone and with a
second level (smooth) it is then an ensemble of one, whose calibration is fitted and scored nested. The constant is the
prevalence of the other folds. Intervals are 95 % over patients; the last column is the gain over ImageNet on the same
patients. Each command is printed.
With `pretrain --image-size`, give the same size here: ImageNet's networks are trained at it too.
Example: python -m ich_kaggle.pretrain --recipe cpu --image-size 160 --slices 120000
         python tests/benchmarks/bench_pretraining.py work/pretrained/cpu.zip /tmp/b --image-size 160 --sizes 16 32 64
         python tests/benchmarks/bench_pretraining.py work/pretrained/cpu.zip /tmp/b --image-size 160 --data sample.zip
"""

import argparse
import shlex
from pathlib import Path

import numpy as np

from ich_kaggle import demo
from ich_kaggle.common import metric, paths, tables
from ich_kaggle.common.project import Project
from ich_kaggle.scoring import comparison, patient_bootstrap

STARTS = {
    "imagenet": "",
    "unfrozen": "--freeze 0",
    "phantoms": "--init {init} --lr 0 --epochs 1 --freeze 1",
    "tuned": "--init {init} --lr 1e-4 --epochs 2 --freeze 0",
}
SHOWN = {
    "imagenet": "ImageNet, then these",
    "unfrozen": "ImageNet, then these, no epoch frozen",
    "phantoms": "phantoms, biases from these",
    "tuned": "phantoms, then these",
}


def run(work: Path, data: Path, starts: dict[str, str], n_folds: int) -> list[str]:
    """Train, smooth and blend each of `starts`; return the names of the ensembles."""
    shared = f"--work-dir {shlex.quote(str(work))} --workers 1"
    demo.run_step(f"folds --folds {n_folds} --data-dir {shlex.quote(str(data))} {shared}")
    for name, flags in starts.items():
        demo.run_step(f"train --recipe cpu --run {name} {flags}{demo.device()} {shared}")
        demo.run_step(f"predict --run {name} {shared}")
        demo.run_step(f"sequence --model smooth --on {name} {shared}")
        for one in (name, f"smooth-{name}"):
            demo.run_step(f"ensemble --name {one} --runs {one} {shared}")
    return [one for name in starts for one in (name, f"smooth-{name}")]


def constant(target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the prevalence of the slices of the other folds, (n, 6)."""
    found = np.empty_like(target, dtype=float)
    for k in np.unique(fold):
        found[fold == k] = target[fold != k].mean(axis=0)
    return np.clip(found, 1e-3, 1 - 1e-3)


def table(work: Path, names: list[str]) -> str:
    """Return the losses of the constant and of the ensembles `names` as a table."""
    project = Project(None, work)
    train, fold = project.slices[project.is_train], project.fold[project.is_train]
    target, ids = tables.targets(train), train.slice_id.to_numpy()
    found = [tables.read_predictions(paths.ensemble(work, name) / "nested.parquet", ids) for name in names]
    patient, size = np.unique(train.patient_id, return_inverse=True, return_counts=True)[1:]
    total = comparison.patient_losses(target, [constant(target, fold), *found], patient)
    told = comparison.compare(["constant", *names], total, size, n_draws=10_000, seed=0)
    mean, rows = total.sum(axis=0) / size.sum(), []
    for k, name in enumerate(["constant", *names]):
        low, high = told["intervals"][name]
        cells = [f"{mean[k]:.4f} ({low:.3f} to {high:.3f})", "-"]
        base = "smooth-imagenet" if name.startswith("smooth-") else "imagenet"
        if base in names and name not in ("constant", base):
            gain = total[:, 1 + names.index(base)] - total[:, k]
            low, high = patient_bootstrap.interval(
                patient_bootstrap.bootstrap(gain[:, None], size, n_draws=10_000)[:, 0]
            )
            cells[1] = f"{gain.sum() / size.sum():.4f} ({low:.4f} to {high:.4f})"
        shown = SHOWN.get(name.removeprefix("smooth-"), name) + ", smoothed" * name.startswith("smooth-")
        rows.append(f"| {shown} | {' | '.join(cells)} |")
    raw = metric.log_loss(target, np.broadcast_to(target.mean(axis=0), target.shape))
    head = f"{len(size)} patients, {len(target)} slices; prevalence of all {raw:.4f}"
    return "\n".join([head, "", "| trained on | nested log loss | gain over ImageNet |", "|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("init", type=Path, help="bundle of pretrain")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="folder or zip of labelled slices, in Kaggle's layout")
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="numbers of patients of shifted phantoms")
    parser.add_argument("--image-size", type=int, help="px; default: that of the recipe")
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    options = parser.parse_args()
    if not (options.data or options.sizes):
        parser.error("give --data or --sizes")
    init = shlex.quote(str(options.init.resolve()))
    size = f" --image-size {options.image_size}" if options.image_size else ""
    starts = {name: STARTS[name].format(init=init) + size for name in options.starts}
    data = {"real": options.data} if options.data else {}
    for n in options.sizes:
        data[str(n)] = options.folder / str(n) / "input" / paths.SLUG
        few = f"--patients {n + 1} --test-fraction 0 --slices 16 --seed {100 + n}"
        demo.run_step(f"phantom --variety shifted {few} --out {shlex.quote(str(data[str(n)]))} --workers 2")
    for name, place in data.items():
        work = options.folder / name / "work"
        print(f"\n{table(work, run(work, place, starts, n_folds=4))}\n", flush=True)


if __name__ == "__main__":
    main()
