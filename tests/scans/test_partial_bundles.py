"""Bundles of runs that are not finished: of one fold, and of different folds."""

import shutil
from pathlib import Path

import numpy as np
import packed
import pytest
import torch

from ich_kaggle import ensemble, evaluate, infer, kernel
from ich_kaggle.common import paths, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.scans import model_bundle, passes, reader, slices, test_set

FOLDS = {"one fold": {"a": [2], "b": [2]}, "different folds": {"a": [0, 1], "b": [1, 2], "g": [1]}}


@pytest.fixture(scope="module", params=FOLDS)
def work(prepared, tmp_path_factory, request) -> Path:
    """A work folder whose runs have those folds alone, blended as `part` and packed for both commands."""
    work = tmp_path_factory.mktemp("partial") / "work"
    shutil.copytree(packed.work_of(prepared), work)
    kept = FOLDS[request.param]
    for run in paths.run_names(work):
        for k in set(range(3)) - set(kept.get(run, [])):
            shutil.rmtree(paths.fold(work, run, k))
    common = ["--work-dir", str(work)]
    ensemble.main([*common, "--name", "part", "--runs", *kept, "--method", "equal"])
    evaluate.main([*common, "--ensemble", "part", "--draws", "20", "--workers", "1"])
    ensemble.main([*common, "--name", "part", "--export", str(work.parent / "part.zip")])
    kernel.pack(work.parent / "models", *kernel.gather(work, "part"))
    return work


def of_ensemble(work: Path, slice_ids: np.ndarray) -> np.ndarray:
    found = tables.read_predictions(paths.ensemble(work, "part") / "test.parquet", slice_ids)
    assert found[:, :5].std(axis=0).min() > 0.01
    return found


def test_a_scan_gets_what_the_ensemble_has(work, competition):
    pile = slices.read(competition / "stage_2_test")
    bundle = model_bundle.read(work.parent / "part.zip")
    readings = reader.read_studies(bundle, pile, batch_size=16, workers=0, device=torch.device("cpu"))
    ids = np.array([row.slice_id for one in readings for row in one.rows])
    found = np.concatenate([one.probability for one in readings])
    np.testing.assert_allclose(found, of_ensemble(work, ids), atol=1e-4)


def test_infer_gets_what_the_ensemble_has(work, competition, tmp_path):
    out = tmp_path / "submission.csv"
    flags = ["--data-dir", competition, "--models", work.parent / "models", "--work-dir", tmp_path / "work"]
    infer.main([*map(str, flags), "--out", str(out), "--device", "cpu", "--workers", "0", "--batch-size", "8"])
    ids = tables.read_long(paths.find_data(competition), paths.SAMPLE_CSV)[0]
    values = np.loadtxt(out, delimiter=",", skiprows=1, usecols=1).reshape(-1, len(LABELS))
    np.testing.assert_allclose(values, of_ensemble(work, ids), atol=5e-4)


def test_passes_are_those_of_the_folds_that_exist(work):
    content = test_set.read_models(work.parent / "models")
    planned = {(one.run, one.fold) for one in passes.plan(content, work.parent / "models")}
    listed = {(run, entry["fold"]) for run, entries in content["models"].items() for entry in entries}
    assert planned == listed
