"""Inference in a kernel within a time budget: the order of passes, resuming, refusals."""

import functools
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ich_kaggle import infer
from ich_kaggle.common import paths, storage
from ich_kaggle.common.project import Project
from ich_kaggle.kaggle_api import submissions
from ich_kaggle.learning import inference
from ich_kaggle.scans import passes, test_set

RUNS = ("test_efficientnet", "test_resnet")


class Clock:
    """Every look at it takes `step` s."""

    def __init__(self, step: float):
        self.step, self.time = step, 0.0

    def __call__(self) -> float:
        self.time += self.step
        return self.time


@pytest.fixture
def predict(packed, competition, tmp_path, capsys):
    """Predict with the packed models in a folder of the test's own; return the lines printed."""

    def predict(hours: float = 8, now=None, models_dir: Path = packed) -> list[str]:
        more = {"out": predict.out} | ({} if now is None else {"now": now})
        project = Project(competition, tmp_path / "work", 1)
        infer.infer(project, models_dir=models_dir, hours=hours, batch_size=8, device="cpu", **more)
        return capsys.readouterr().out.splitlines()

    predict.out = tmp_path / "out" / "submission.csv"
    return predict


PASSES = [f"{run} fold {k}, {view}" for view in ("identity", "hflip") for run in RUNS for k in (0, 1)]


def test_passes_go_first_views_first_then_by_weight_then_by_fold(packed):
    content = test_set.read_models(packed)
    content["runs"] = {"test_efficientnet": 0.6, "test_resnet": 0.4}
    assert [str(one) for one in passes.plan(content, packed)] == PASSES
    content["runs"] = {"test_efficientnet": 0.4, "test_resnet": 0.6}
    assert [str(one) for one in passes.plan(content, packed)][0] == "test_resnet fold 0, identity"


def test_with_time_enough_the_submission_is_that_of_home(predict, home, n_test):
    lines = predict()
    assert lines[-1] == f"{predict.out}: 8 of 8 passes over {n_test} slices"
    ours, theirs = (pd.read_csv(path) for path in (predict.out, next((home / "csv").glob("*-both.csv"))))
    assert ours.ID.tolist() == theirs.ID.tolist()
    np.testing.assert_allclose(ours.Label, theirs.Label, atol=1e-5)
    cached = list((predict.out.parent.parent / "work" / "cache").rglob("*.png"))
    assert len(cached) == n_test  # test slices alone
    assert sorted(path.name for path in predict.out.parent.iterdir()) == ["partial", "submission.csv"]


def test_without_time_the_submission_is_complete_and_holds_the_means(predict, packed, competition, n_test):
    lines = predict(hours=0)
    assert f"0 of 8 passes over {n_test} slices; left out for lack of time: " in lines[-1]
    submissions.verify(predict.out, paths.find_data(competition))
    found = pd.read_csv(predict.out).Label.to_numpy().reshape(-1, 6)
    np.testing.assert_allclose(found, np.tile(test_set.read_models(packed)["mean"], (n_test, 1)), atol=1e-6)


def test_what_there_is_no_time_for_is_left_out_in_the_stated_order_and_gone_on_from(
    predict, packed, competition, n_test, monkeypatch
):
    monkeypatch.setattr(passes, "CHUNK", 8)  # chunks of two series, and of one
    monkeypatch.setattr(infer.devices, "pick_device", lambda name: torch.device("cpu"))
    lines = predict(hours=0.5, now=Clock(60))
    (done,) = re.findall(r": (\d) of 8 passes", lines[-1])
    left_out = re.findall(r"(\w+ fold \d, \w+) \((\d+)% done\)", lines[-1])
    in_order = [str(one) for one in passes.plan(test_set.read_models(packed), packed)]
    assert 0 < int(done) < 8
    assert [name for name, _ in left_out] == in_order[int(done) :]
    assert all(share == "0" for _, share in left_out[1:])
    submissions.verify(predict.out, paths.find_data(competition))
    before = predict.out.read_bytes()
    n_files = {path: path.stat().st_mtime_ns for path in (predict.out.parent / "partial").iterdir()}
    whole = predict()
    assert whole[-1].endswith(f"8 of 8 passes over {n_test} slices")
    assert predict.out.read_bytes() != before
    kept = [path for path, changed in n_files.items() if path.stat().st_mtime_ns == changed]
    assert len(kept) == int(done)  # what was whole is not made again


def test_a_run_cut_short_and_gone_on_from_ends_in_the_same_bytes(predict, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "CHUNK", 1)
    small = tmp_path / "small"
    shutil.copytree(packed, small)
    content = test_set.read_models(packed)
    content["runs"] = {"test_resnet": 1.0}
    content["views"] = {"test_resnet": ["identity"]}
    del content["models"]["test_efficientnet"]
    storage.write_json(small / test_set.MODELS, content)
    predict = functools.partial(predict, models_dir=small)
    out = tmp_path / "out" / "submission.csv"
    predict()
    whole = out.read_bytes()
    shutil.rmtree(out.parent)
    make, made = inference.outputs, []

    def stop_in_the_third_chunk(*args, **options):
        for part in make(*args, **options):
            made.append(1)
            if len(made) == 3:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(inference, "outputs", stop_in_the_third_chunk)
    with pytest.raises(KeyboardInterrupt):
        predict()
    assert out.exists()
    predict()
    assert out.read_bytes() == whole
    assert len(made) == 2 * 3 + 1  # three series a pass; only the chunk that was cut is made twice


def test_a_slice_is_blended_of_the_runs_that_have_seen_it(packed):
    content = test_set.read_models(packed)
    content["runs"] = {"test_efficientnet": 0.75, "test_resnet": 0.25}
    content["pipeline"] |= {"space": "probability", "bias": [0] * 6}
    content["pipeline"]["weights"] = {run: [weight] * 6 for run, weight in content["runs"].items()}
    logits = {one: np.full((4, 6), np.nan, np.float32) for one in passes.plan(content, packed)}
    for one, values in logits.items():
        if one.view == "identity" and one.fold == 0:
            values[: 3 if one.run == "test_efficientnet" else 2] = 1.0 if one.run == "test_efficientnet" else -1.0
    logits[next(one for one in logits if str(one) == "test_efficientnet fold 0, hflip")][0] = 3.0
    found = test_set.blend(content, logits, 4)
    sure, unsure = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))
    both = 0.75 * sure + 0.25 * unsure
    first = 0.75 / (1 + np.exp(-2)) + 0.25 * unsure
    np.testing.assert_allclose(found[:, 0], [first, both, sure, content["mean"][0]], atol=1e-6)


def test_a_model_that_changed_on_the_way_is_named(packed, tmp_path, predict):
    changed = tmp_path / "changed"
    shutil.copytree(packed, changed)
    model = changed / "test_resnet.fold0.pt"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=r"test_resnet\.fold0\.pt is not the file that was packed"):
        predict(models_dir=changed)
    model.unlink()
    with pytest.raises(FileNotFoundError, match=r"lists test_resnet\.fold0\.pt, which is not beside it"):
        predict(models_dir=changed)
    with pytest.raises(
        FileNotFoundError, match="models.json is missing: make the folder with python -m ich_kaggle.ker"
    ):
        predict(models_dir=tmp_path)


def test_a_model_file_outside_the_folder_is_not_read(packed, tmp_path, predict):
    changed = tmp_path / "changed"
    shutil.copytree(packed, changed)
    content = storage.read_json(changed / test_set.MODELS)
    content["models"]["test_resnet"][0]["file"] = "../evil.pt"
    storage.write_json(changed / test_set.MODELS, content)
    (tmp_path / "evil.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"lists \.\./evil\.pt"):
        predict(models_dir=changed)


def test_a_work_folder_of_other_data_or_a_damaged_one_is_refused(predict, competition, tmp_path):
    predict(hours=0)
    other = tmp_path / paths.SLUG
    other.mkdir()
    gone = next(iter(sorted((competition / "stage_2_test").iterdir()))).stem
    for name in (paths.SAMPLE_CSV, paths.TRAIN_CSV):
        (other / name).write_text((competition / name).read_text().replace("ID_0", "ID_f"))
    for split in paths.SPLITS:
        (other / f"stage_2_{split}").mkdir()
    with pytest.raises(ValueError, match=r"slices.parquet lacks ID_f.*: it is of other data: give another --work-dir"):
        test_set.test_table(paths.find_data(other), tmp_path / "work", 1)
    less = shutil.copytree(competition, tmp_path / "less" / paths.SLUG)
    (less / "stage_2_test" / f"{gone}.dcm").unlink()
    with pytest.raises(ValueError, match=rf"{paths.SAMPLE_CSV} has {gone}, stage_2_test has not: get it again"):
        test_set.test_table(paths.find_data(less), tmp_path / "new", 0)
    assert not (tmp_path / "new" / "slices.parquet").exists()
    (tmp_path / "work" / "slices.parquet").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"slices.parquet: damaged \(.*: remove it and run the same command again"):
        test_set.test_table(paths.find_data(competition), tmp_path / "work", 1)


def test_a_work_folder_with_training_slices_is_refused(home, competition):
    with pytest.raises(ValueError, match="slices.parquet holds training slices: give another --work-dir"):
        test_set.test_table(paths.find_data(competition), home, 1)
