"""The commands that run models, on the GPU against the CPU, on a phantom."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ich_kaggle import ensemble, evaluate, explain, infer, kernel, predict, scan, sequence, train
from ich_kaggle.common import tables
from ich_kaggle.common.labels import LABELS

pytestmark = pytest.mark.gpu
TINY = ["--arch", "test_resnet", "--weights", "none", "--image-size", "64", "--cache-size", "64", "--batch-size", "8"]
TINY += ["--epochs", "2", "--workers", "0", "--run", "a"]
BOUND = 0.02  # largest difference of a probability in bfloat16


@pytest.fixture(scope="module")
def made(prepared, device, tmp_path_factory) -> Path:
    """A work folder with two folds of a run, trained and predicted on the device, a second level, and their bundle."""
    work = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("gpu") / "work"))
    common = ["--work-dir", str(work)]
    train.main([*common, *TINY, "--fold", "0", "1", "--device", str(device)])
    predict.main([*common, "--run", "a", "--device", str(device), "--workers", "0"])
    small = ["--model", "gru", "--hidden", "8", "--epochs", "2", "--batch-size", "4"]
    sequence.main([*common, "--on", "a", *small, "--run", "g", "--device", str(device)])
    ensemble.main([*common, "--name", "e", "--runs", "a", "g", "--method", "equal", "--workers", "1"])
    evaluate.main([*common, "--ensemble", "e", "--draws", "20", "--workers", "1"])
    ensemble.main([*common, "--name", "e", "--export", str(work.parent / "e.zip")])
    return work


def test_training_learned_and_left_its_log(made):
    log = pd.read_csv(made / "runs" / "a" / "fold0" / "log.csv")
    assert np.isfinite(log.valid_loss).all() and (log.skipped == 0).all()


def test_predictions_are_those_of_the_cpu(made, device):
    folder = made / "runs" / "a" / "fold0"
    found = pd.read_parquet(folder / "oof.parquet")
    embeddings = np.load(folder / "embeddings.npy")
    there = shutil.copytree(made, made.parent / "cpu")
    predict.main(["--work-dir", str(there), "--run", "a", "--device", "cpu", "--workers", "0", "--overwrite"])
    expected = pd.read_parquet(there / "runs" / "a" / "fold0" / "oof.parquet")
    np.testing.assert_allclose(found[list(LABELS)], expected[list(LABELS)], atol=BOUND)
    expected = np.load(there / "runs" / "a" / "fold0" / "embeddings.npy").astype(np.float32)
    assert np.nanmax(np.abs(embeddings - expected)) < 0.05 * np.nanmax(np.abs(expected))


def test_maps_are_drawn(made, device):
    pytest.importorskip("captum", reason="captum, from the extra explain, is missing")
    flags = ["--run", "a", "--fold", "0", "--n-studies", "1", "--device", str(device), "--workers", "0"]
    explain.main(["--work-dir", str(made), *flags])
    assert len(list((made / "runs" / "a" / "fold0" / "explain" / "gradcam").glob("*.png"))) > 2


def test_a_scan_has_the_predictions_of_the_ensemble(made, device, competition, tmp_path):
    flags = ["--dicom", str(competition / "stage_2_test"), "--models", str(made.parent / "e.zip"), "--workers", "0"]
    scan.main([*flags, "--out", str(tmp_path / "out"), "--device", str(device)])
    found = pd.read_csv(tmp_path / "out" / "slices.csv")
    expected = tables.read_predictions(made / "ensemble" / "e" / "test.parquet", found.slice.to_numpy())
    np.testing.assert_allclose(found[list(LABELS)], expected, atol=BOUND)


def test_infer_writes_the_submission_of_the_ensemble(made, device, competition, tmp_path):
    models = kernel.pack(tmp_path / "ich-models", *kernel.gather(made, "e"))
    for name in (str(device), "cpu"):
        where = ["--out", str(tmp_path / name / "submission.csv"), "--work-dir", str(tmp_path / name / "work")]
        flags = ["--data-dir", str(competition), "--models", str(models), "--workers", "0", "--device", name]
        infer.main([*where, *flags])
    found, expected = (pd.read_csv(tmp_path / name / "submission.csv").Label for name in (str(device), "cpu"))
    np.testing.assert_allclose(found, expected, atol=BOUND)


def test_two_folds_train_side_by_side_on_one_gpu(made, cuda):
    flags = [*TINY[:-1], "side", "--work-dir", str(made), "--fold", "0", "1"]
    train.main([*flags, "--device", "cuda:0,cuda:0"])
    assert all((made / "runs" / "side" / f"fold{k}" / "model.pt").exists() for k in (0, 1))


def test_all_gpus_predict_as_one_does(made, cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("for two GPUs")
    there = made / "runs" / "a" / "fold0"
    before = pd.read_parquet(there / "oof.parquet")
    assert json.loads((there / "predict.json").read_text(encoding="utf-8"))["views"] == ["identity", "hflip"]
    predict.main(["--work-dir", str(made), "--run", "a", "--device", "cuda:0", "--workers", "0", "--overwrite"])
    after = pd.read_parquet(there / "oof.parquet")
    np.testing.assert_allclose(before[list(LABELS)], after[list(LABELS)], atol=1e-3)
