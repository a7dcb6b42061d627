"""Pretraining on phantoms: seeded, resumable, scored on other phantoms; a start for folds, and a bundle for scans."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from ich_kaggle import pretrain, scan, train
from ich_kaggle.common import paths
from ich_kaggle.learning import augment, endless_phantoms, fit, slice_model
from ich_kaggle.scans import model_bundle

TINY = ["--arch", "test_resnet", "--weights", "none", "--image-size", "32", "--cache-size", "32", "--batch-size", "16"]
TINY += ["--workers", "0", "--device", "cpu"]
CONFIG = slice_model.SliceConfig("test_resnet", image_size=32, cache_size=32)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(pretrain, "N_VALID", 6)
    monkeypatch.setattr(pretrain, "EPOCH", 64)


def run(work, *flags) -> dict[str, torch.Tensor]:
    pretrain.main([*TINY, "--work-dir", str(work), "--slices", "128", "--name", "p", *flags])
    return slice_model.load(work / "pretrained" / "p" / "model.pt").state_dict()


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_an_interrupted_run_ends_in_the_model_of_an_undisturbed_one(tmp_path, monkeypatch, capsys):
    undisturbed, steps, step = run(tmp_path / "a"), [], fit.Fit.train_step

    def stopped(self, *args):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(step(self, *args))

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(fit.Fit, "train_step", stopped)
        run(tmp_path / "b", "--checkpoint-every", "0")
    assert not (tmp_path / "b" / "pretrained" / "p.zip").exists()
    assert equal(run(tmp_path / "b", "--checkpoint-every", "0"), undisturbed)
    files = [(tmp_path / work / "pretrained" / "p" / "log.csv").read_text() for work in "ab"]
    assert files[0] == files[1] and files[0].count("\n") == 3
    assert not equal(run(tmp_path / "c", "--seed", "1"), undisturbed)
    capsys.readouterr()
    run(tmp_path / "a")
    assert "p.zip exists: nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"settings\.json was made with lr 0\.0002, not 0\.1: give another --name"):
        run(tmp_path / "a", "--lr", "0.1")


def test_every_fold_starts_from_it_as_it_has_seen_no_patient_and_scan_reads_it(competition, prepared, tmp_path):
    work = shutil.copytree(prepared, tmp_path / "work")
    weights = run(work)
    bundle = work / "pretrained" / "p.zip"
    train.main([*TINY, "--work-dir", str(work), "--run", "r", "--fold", "0", "1", "--init", str(bundle), "--lr", "0",
                "--epochs", "1", "--cache-size", "64"])  # fmt: skip
    for k in (0, 1):
        model = slice_model.load(paths.fold(work, "r", k) / "model.pt")
        assert torch.equal(model.head.weight, weights["backbone.fc.weight"])
    packed = model_bundle.read(bundle).packed
    assert list(packed["models"]) == ["p", "smooth-p"] and packed["thresholds"].keys() == {"slices", "studies_max"}
    assert packed["runs"] == {"smooth-p": 1.0}
    pile, out = competition / "stage_2_test", tmp_path / "out"
    scan.main(["--dicom", str(pile), "--models", str(bundle), "--out", str(out), "--device", "cpu", "--workers", "0"])
    assert len(pd.read_csv(out / "slices.csv")) == len(list(pile.iterdir()))


def test_no_head_is_drawn_twice_and_none_of_training_scores_it():
    def first(part: int, item: tuple[int, int], seed: int = 0) -> np.ndarray:
        return endless_phantoms.PhantomStudies(CONFIG, augment.NONE, seed, part)[item][0].numpy()

    train_part, valid = endless_phantoms.TRAIN, endless_phantoms.VALID
    items = [(train_part, (0, 0)), (train_part, (0, 1)), (train_part, (1, 0)), (valid, (0, 0)), (train_part, (0, 0), 1)]
    drawn = [first(*item) for item in items]
    assert all(not np.array_equal(drawn[i], drawn[j]) for i in range(5) for j in range(i))
    assert np.array_equal(drawn[0], first(train_part, (0, 0)))


def test_neighbours_are_the_slices_beside_in_the_same_window():
    config = slice_model.SliceConfig("test_resnet", 32, 32, windows=CONFIG.windows[1:2], offsets=(-1, 0, 1))
    images, target, place = endless_phantoms.PhantomStudies(config, augment.NONE, 0)[0, 7]
    assert images.shape == (8, 32, 32, 3) and target.shape == (8, 6) and set(place[:, 0].tolist()) == {7}
    assert (place[:, 1].diff() > 0).all()  # mm, from the base of the skull up
    alone = slice_model.SliceConfig("test_resnet", 32, 32, windows=CONFIG.windows[1:2], offsets=(0, 0, 0))
    middle = endless_phantoms.PhantomStudies(alone, augment.NONE, 0)[0, 7][0]
    assert torch.equal(images[..., 1], middle[..., 0]) and not torch.equal(images[..., 0], middle[..., 0])
    with pytest.raises(SystemExit, match="no architecture: give --arch or --recipe"):
        pretrain.main([])
