"""A working folder with runs that no model made: predictions are the labels, blurred."""

from pathlib import Path

import numpy as np
from scipy.special import expit

from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import slice_table
from ich_kaggle.scoring import blending, patient_folds


def make(competition: Path, work_dir: Path, noise: dict[str, float], n_folds: int = 3) -> None:
    """Scan `competition` and write predictions of runs, by name with how noisy they are, into `work_dir`."""
    slice_table.make(data_dir=competition, work_dir=work_dir, workers=1)
    patient_folds.make(Project(None, work_dir), n_folds=n_folds, seed=0)
    project = Project(None, work_dir)
    table, fold = project.slices, project.fold
    is_test = fold < 0
    for i, (run, spread) in enumerate(noise.items()):
        rng = np.random.default_rng(i)
        shift = 4 * np.nan_to_num(tables.targets(table)) - 2
        probability = expit(shift + spread * rng.normal(size=shift.shape)).astype(np.float32)
        storage.write_json(paths.run(work_dir, run) / "run.json", {"settings": {"arch": "made", **project.same}})
        for k in range(n_folds):
            folder = paths.fold(work_dir, run, k)
            tables.write_predictions(folder / "oof.parquet", table.slice_id[fold == k], probability[fold == k])
            test = expit(rng.normal(size=(is_test.sum(), 6)) - 1)
            tables.write_predictions(folder / "test.parquet", table.slice_id[is_test], test)
            storage.write_json(folder / "predict.json", {})
            (folder / "model.pt").touch()


def synthetic(n_patients: int = 60, per_patient: int = 30, noise=(0.6, 0.9, 1.4), seed: int = 0) -> tuple:
    """Return target (n, 6), the probabilities of runs, list of (n, 6), patient (n,) and fold (n,) of five."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), per_patient)
    offset = np.array([-3.5, -2.0, -2.5, -2.0, -1.8, -1.0])
    truth = (1.5 * rng.normal(size=(n_patients, 6))[patient] + rng.normal(size=(len(patient), 6))) + offset
    target = (rng.random(truth.shape) < expit(truth)).astype(np.float32)
    runs = [expit(truth + spread * rng.normal(size=truth.shape)).astype(np.float32) for spread in noise]
    return target, [blending.raise_any(run) for run in runs], patient, patient % 5
