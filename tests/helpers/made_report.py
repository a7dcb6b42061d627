"""A work folder that a report is made of, and what its page was given."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from made_runs import make

from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import png
from ich_kaggle.kaggle_api import submission_log
from ich_kaggle.scans import on_demand
from ich_kaggle.scoring import ensembling

MAP = (8, 6)  # px of an explanation: rows, columns


def work_folder(prepared: Path, competition: Path, root: Path) -> Path:
    """Return a copy of `prepared` with two runs, their ensemble, logs, explanations and submissions, in `root`."""
    work_dir = Path(shutil.copytree(prepared, root / "work"))
    make(competition, work_dir, {"fine": 0.8, "noisy": 2.0})
    ensembling.blend_runs(Project(None, work_dir), name="both", predict=on_demand.predict)
    for k in range(3):
        log = pd.DataFrame({"epoch": [0, 1], "lr": 1e-3, "train_loss": [0.6, 0.3], "valid_loss": [0.5, 0.4 - k / 100]})
        log.to_csv(paths.fold(work_dir, "fine", k) / "log.csv", index=False)
    explain(work_dir, "fine")
    for i in range(2):
        row = dict.fromkeys(submission_log.COLUMNS, "") | {
            "tag": f"ich-{i}",
            "name": f"blend-{i}",
            "oof": "0.1",
            "private": "0.2",
        }
        submission_log.record(root / "submissions" / "history.csv", row)
    return work_dir


def explain(work_dir: Path, run: str, crop: str = "none") -> None:
    """Write maps of `run` in which the map of label i is 40 * i all over."""
    table = tables.read_slices(work_dir)
    fold = tables.read_folds(work_dir, table)
    about = storage.read_json(paths.run(work_dir, run) / "run.json")
    storage.write_json(paths.run(work_dir, run) / "run.json", {"settings": about["settings"] | {"crop": crop}})
    maps = np.concatenate([np.full(MAP, 40 * i, np.uint8) for i in range(len(LABELS))])
    for k in range(3):
        folder = paths.fold(work_dir, run, k) / "explain" / "gradcam"
        storage.write_json(folder / "explain.json", {"method": "gradcam", "labels": LABELS, "shape": MAP})
        for slice_id in table.slice_id[fold == k]:
            png.write(folder / f"{slice_id}.png", maps)


def hostile(work_dir: Path, patient: str, study: str) -> str:
    """Give the first training patient and his first study other ids, in all tables; return the study's old id."""
    table, settings = tables.read_slices(work_dir), tables.slices_settings(work_dir)
    old_patient, old_study = table.patient_id[0], table.study_id[0]
    table = table.replace({"patient_id": {old_patient: patient}, "study_id": {old_study: study}})
    tables.write_slices(work_dir, table, settings)
    folds = pd.read_csv(paths.folds(work_dir)).replace({"patient_id": {old_patient: patient}})
    tables.write_folds(work_dir, folds, tables.folds_settings(work_dir))
    return old_study


def given(script: Path) -> list:
    """Return the arguments of the one call that a data script makes."""
    text = script.read_text(encoding="ascii")
    return json.loads("[" + text[text.index("(") + 1 : text.rindex(")")] + "]")
