"""A recipe on few patients: its log loss on patients that it never saw, against the prevalence of those it was given.

Patients are drawn from a pool of phantoms, a network is trained on them with the recipe, and 40 others score it. The
last columns are the mean difference to the constant prevalence, its standard error over the draws, and the worst one.
Example: python tests/benchmarks/bench_few_patients.py /tmp/few --rows "" "--freeze 0" --sizes 16 24 --draws 5
         python tests/benchmarks/bench_few_patients.py /tmp/tuned --variety shifted --size 256 \\
         --rows "--init work/pretrained/cpu.zip --freeze 0 --lr 1e-4 --epochs 2"
"""

import argparse
import itertools
import shlex
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch.utils.data import DataLoader

from ich_kaggle import folds, phantom, train
from ich_kaggle.common import cli, metric, tables
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache
from ich_kaggle.learning import fit, inference, initial_model, slice_model, tasks, training_options
from ich_kaggle.synthetic.variety import VARIETIES

POOL, OTHERS = 168, 40  # patients to draw from, and of those, to score


def plan_of(flags: str, seed: int, cache_size: int) -> tasks.Plan:
    """Return the plan of `train` with the recipe and these flags, on the cache of the pool."""
    argv = ["--recipe", "cpu", "--cache-size", str(cache_size), "--seed", str(seed), *shlex.split(flags)]
    found, known = vars(cli.parse(train.build_parser(), argv)), argparse.ArgumentParser()
    training_options.add(known)
    settings = {key: found[key] for key in vars(known.parse_args([]))}
    return training_options.plan_of(settings.pop("arch"), settings)


def train_in_memory(model: slice_model.SliceModel, loader: DataLoader, plan: tasks.Plan) -> None:
    """Train `model` on the CPU, without validation, and keep no file."""
    with tempfile.TemporaryDirectory() as folder:
        how = dict(settings=plan.settings, validate=lambda model: {}, device=torch.device("cpu"))
        list(fit.fit(model, loader, plan.loss, **how, checkpoint=fit.Checkpoint(Path(folder) / "state.pt")))


def losses(flags: str, n_patients: int, seed: int, size: int, project: Project, cache: Path) -> dict:
    """Return the log losses of a network trained on `n_patients` drawn by `seed`, and of their prevalence."""
    table = project.slices[project.is_train].reset_index(drop=True)
    drawn = np.random.default_rng([seed, n_patients]).permutation(table.patient_id.unique())
    seen = table[table.patient_id.isin(drawn[:n_patients])].reset_index(drop=True)
    held_out = table[table.patient_id.isin(drawn[-OTHERS:])].reset_index(drop=True)
    plan, device = plan_of(flags, seed, size), torch.device("cpu")
    loader, valid = plan.loaders(seen, held_out, cache, 0)
    prevalence, target = tables.targets(seen).mean(axis=0), tables.targets(held_out)
    model = tasks.new_model(plan, project.work_dir, prevalence, 0)
    if plan.task.init is not None and plan.task.init_head == "keep":
        own = tasks.slice_loader(seen, cache, plan.config, batch_size=plan.task.batch_size, workers=0)
        initial_model.move_bias(model, inference.predict(model, own, device), tables.targets(seen))
    train_in_memory(model, loader, plan)
    found = metric.log_loss(target, expit(inference.predict(model, valid, device).astype(float)))
    constant = metric.log_loss(
        target, np.broadcast_to(np.clip(prevalence, slice_model.RARE, 1 - slice_model.RARE), target.shape)
    )
    return {"row": flags, "patients": n_patients, "seed": seed, "loss": found, "constant": constant}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="+", default=[""], help="flags of each row, quoted")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 24], help="numbers of patients")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    parser.add_argument("--variety", default="plain", choices=VARIETIES)
    parser.add_argument("--size", type=int, default=128, help="px of the phantoms and of the cache")
    options = parser.parse_args()
    folder = options.folder / f"{options.variety}-{options.size}"
    data, work = folder / "phantom", folder / "work"
    if not data.exists():
        few = ["--patients", str(POOL + 2), "--test-fraction", str(2 / (POOL + 2))]
        kind = ["--variety", options.variety, "--size", str(options.size), "--workers", "1"]
        phantom.main(["--out", str(data), "--slices", "20", "--seed", "11", *few, *kind])
    folds.main(["--data-dir", str(data), "--work-dir", str(work), "--workers", "1"])
    project = Project(data, work, 1)
    cache, found = picture_cache.ensure(project, options.size), []
    seeds = range(options.first, options.first + options.draws)
    for seed, n_patients, flags in itertools.product(seeds, options.sizes, options.rows):
        found.append(losses(flags, n_patients, seed, options.size, project, cache))
        print(found[-1], flush=True)
    table = pd.DataFrame(found)
    table["difference"] = table.loss - table.constant
    groups = table.drop(columns="seed").groupby(["row", "patients"], sort=False)
    mean, spread = groups.mean(), groups.difference
    mean["error"], mean["worst"] = spread.std() / np.sqrt(spread.size()), spread.max()
    print(mean.round(4).to_string())


if __name__ == "__main__":
    main()
