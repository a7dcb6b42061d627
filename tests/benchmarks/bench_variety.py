"""Ablations of the variety of phantoms: which of its switches lower the loss on patients, and on another scanner?

Networks of the recipe `cpu`, but at 80 px and with one epoch of `--slices` phantoms, see phantoms alone; in each row
one group of switches is as narrow as in PLAIN, or at 0. They are scored on the labelled slices of the work folder
`--real`, and on 40 phantoms of SHIFTED, which has no necks, fillings, bruises or dense calcifications. The biases of
the head are moved by the labels of all other patients. Losses are means over the seeds; the intervals of the
differences to the first row are 95 % over patients. Networks are kept in the folder, so that rows and seeds may be
added, also by several commands side by side.
Example: python -m ich_kaggle.cache --cache-size 256 --data-dir rsna_sample.zip --work-dir /tmp/real
         python tests/benchmarks/bench_variety.py /tmp/variety --real /tmp/real --seeds 0 1
"""

import argparse
from dataclasses import replace
from pathlib import Path

import bench_few_patients
import numpy as np
import torch
from scipy.special import expit

from ich_kaggle.common import storage, tables
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache
from ich_kaggle.learning import endless_phantoms, inference, initial_model, tasks
from ich_kaggle.scoring import comparison
from ich_kaggle.synthetic.variety import PLAIN, SHIFTED, Variety

SWITCHES = {  # fields that are narrowed together
    "nothing": "",
    "jaw and neck": "neck fillings",
    "streaks of the base": "streaks",
    "age, calcifications": "age calcified dense",
    "bruises": "bruised",
    "beam hardening": "hardening reach",
    "kernels": "kernel sharpness",
    "noise": "noise",
    "calibration": "offset",
    "tilt, field, place": "tilt field position turn",
    "thickness": "thickness",
    "old and dense blood, levels": "density old levels",
    "thin and trace blood": "thin trace",
    "mixes": "mixes",
    "infarcts, edema, hydrocephalus": "infarcts edema hydrocephalus",
    "operations": "operated",
    "contrast": "contrast",
    "motion, metal": "motion metal",
    "everything": "",
}
OFF = {"motion": 0.0, "infarcts": 0.0, "old": 0.0, "calcified": 0.0}  # PLAIN, the row "everything", has some of these
N_SHIFTED, OTHER_SEED = 40, 1_000_003


def narrowed(row: str) -> Variety:
    """Return the variety of a row."""
    if row == "everything":
        return PLAIN
    return replace(Variety(), **{name: OFF.get(name, getattr(PLAIN, name)) for name in SWITCHES[row].split()})


def plan_of(seed: int) -> tasks.Plan:
    """Return the plan of one epoch of the recipe at 80 px."""
    plan = bench_few_patients.plan_of("--image-size 80", seed, 256)
    return replace(plan, settings=replace(plan.settings, epochs=1, freeze=0))


def learned(row: str, seed: int, n_slices: int, work_dir: Path):
    """Return a network that has seen `n_slices` phantoms of a row."""
    plan = plan_of(seed)
    studies = endless_phantoms.PhantomStudies(plan.config, plan.move, seed, variety=narrowed(row))
    loader = endless_phantoms.loader(studies, n_slices, plan.task.batch_size, 0)
    model = tasks.new_model(plan, work_dir, np.full(6, 0.2), 0)
    bench_few_patients.train_in_memory(model, loader, plan)
    return model


def shifted(config) -> tuple:
    """Return the loader, targets and patients of phantoms of a shifted scanner."""
    loader = endless_phantoms.validation(config, OTHER_SEED, N_SHIFTED, 0, SHIFTED)
    _, target, place = (part.numpy() for part in loader.dataset.tensors)
    return loader, target, place[:, 0].astype(int)


def real(config, project: Project) -> tuple:
    """Return the loader, targets and patients of the labelled slices of a work folder."""
    table = project.slices[project.slices.split == "train"].reset_index(drop=True)
    cache = picture_cache.ensure(project, config.cache_size)
    loader = tasks.slice_loader(table, cache, config, batch_size=64, workers=0)
    return loader, tables.targets(table), np.unique(table.patient_id, return_inverse=True)[1]


def matched(logits: np.ndarray, target: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Return probabilities (n, 6) whose biases are moved by the labels of all other patients."""
    found = np.empty(logits.shape)
    for one in np.unique(patient):
        own = patient == one
        found[own] = expit(logits[own] + initial_model.moves(logits[~own], target[~own]))
    return found


def table(found: dict[str, list[np.ndarray]], target: np.ndarray, patient: np.ndarray) -> dict[str, str]:
    """Return the cell of each row: the loss, the difference to the first row, and its interval."""
    size = np.bincount(patient)
    losses = {row: comparison.patient_losses(target, probabilities, patient) for row, probabilities in found.items()}
    total = np.stack([one.mean(axis=1) for one in losses.values()], axis=1)
    compared = comparison.compare(list(found), total, size, n_draws=10_000, seed=0)
    first, cells = next(iter(found)), {}
    for row, one in losses.items():
        seeds = one.sum(axis=0) / size.sum()
        cells[row] = f"{seeds.mean():.4f} ({', '.join(f'{seed:.3f}' for seed in seeds)})"
        if row != first:
            gain, low, high = compared["differences"][f"{first} - {row}"]
            cells[row] += f" | {-gain:+.4f} ({-high:+.4f} to {-low:+.4f})"
        else:
            cells[row] += " | "
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--real", type=Path, required=True, help="work folder")
    parser.add_argument("--rows", nargs="+", default=list(SWITCHES), choices=SWITCHES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--slices", type=int, default=6_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    config = plan_of(0).config
    sets = [real(config, Project(None, options.real, 1)), shifted(config)]
    logits = {}
    for seed in options.seeds:
        for row in options.rows:
            path = options.folder / f"{row.replace(', ', '-').replace(' ', '_')}-{options.slices}-{seed}.npz"
            if not path.exists():
                model = learned(row, seed, options.slices, options.real)
                made = [inference.predict(model, loader, torch.device("cpu"), what=row) for loader, *_ in sets]
                with storage.writing(path) as temporary, temporary.open("wb") as file:
                    np.savez(file, *made)
            logits.setdefault(row, []).append(list(np.load(path).values()))
    for k, name in enumerate(("real", "shifted")):
        _, target, patient = sets[k]
        found = {row: [matched(one[k], target, patient) for one in of_row] for row, of_row in logits.items()}
        print(
            f"\n{name}: {patient.max() + 1} patients, {len(target)} slices\n\n| row | log loss (seeds) | difference |"
        )
        print(
            "|---|---|---|", *(f"| {row} | {cell} |" for row, cell in table(found, target, patient).items()), sep="\n"
        )


if __name__ == "__main__":
    main()
