"""The start of a fold from another model: its weights and head, and no patient that it will be scored on."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from ich_kaggle import predict, train
from ich_kaggle.common import paths, storage, tables, windows
from ich_kaggle.common.project import Project
from ich_kaggle.learning import fold_training, inference, initial_model, slice_model, tasks

TINY = ["--arch", "test_resnet", "--weights", "none", "--image-size", "32", "--cache-size", "64", "--batch-size", "8"]
TINY += ["--epochs", "1", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def first(prepared, tmp_path_factory):
    """A work folder in which all folds of the run `a` are trained."""
    torch.set_num_threads(1)
    work = tmp_path_factory.mktemp("init") / "work"
    shutil.copytree(prepared, work)
    train.main([*TINY, "--work-dir", str(work), "--run", "a", "--fold", "all"])
    return work


@pytest.fixture
def work(first, tmp_path):
    return shutil.copytree(first, tmp_path / "work")


def run(work, *flags) -> None:
    train.main([*TINY, "--work-dir", str(work), "--run", "b", *map(str, flags)])


def refused(work, *flags) -> str:
    with pytest.raises(SystemExit) as stop:
        run(work, *flags)
    assert not (work / "runs" / "b").exists()
    return stop.value.code


def model(work, name: str, k: int = 0) -> slice_model.SliceModel:
    return slice_model.load(paths.fold(work, name, k) / "model.pt")


@pytest.mark.parametrize("n_targets", [1, 3])
def test_the_mean_predictions_of_a_moved_head_are_the_prevalence(n_targets):
    config = slice_model.SliceConfig("test_resnet", 32, 64, offsets=tuple(range(n_targets)), n_targets=n_targets)
    rng, network = np.random.default_rng(0), slice_model.SliceModel(config)
    logits, before = rng.normal(4, 3, (500, 6)).astype(np.float32), network.head.bias.detach().clone()
    target = (rng.random((500, 6)) < (0, 0.01, 0.1, 0.3, 0.5, 1)).astype(np.float32)
    initial_model.move_bias(network, logits, target)
    moved = (network.head.bias - before).detach().numpy().reshape(n_targets, 6)
    assert np.allclose(moved, moved[0], atol=1e-5)
    moved = moved[0]
    wanted = np.clip(target.mean(axis=0), 1e-3, 1 - 1e-3)
    assert expit(logits + moved).mean(axis=0) == pytest.approx(wanted, abs=1e-5)


def test_predictions_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="the predictions of --init are not finite"):
        initial_model.move_bias(None, np.full((4, 6), np.nan), np.zeros((4, 6)))


def shift_bias(path, by: float) -> None:
    content = torch.load(path, weights_only=True)
    content["weights"]["backbone.fc.bias"] += by
    torch.save(content | {"prevalence": torch.zeros(6)}, path)  # as older models have it


def test_a_bias_is_moved_by_whole_patients_of_the_training(work, monkeypatch):
    loaded, load = [], tasks.slice_loader
    monkeypatch.setattr(fold_training, "SOME", 10)
    monkeypatch.setattr(tasks, "slice_loader", lambda table, *a, **k: loaded.append(table) or load(table, *a, **k))
    run(work, "--init", "a", "--fold", "0")
    (_, _, some), project = loaded, Project(None, work)  # after those of training and validation
    every = project.slices[project.is_train & project.slices.patient_id.isin(some.patient_id)]
    assert 10 <= len(some) < 30 and sorted(some.slice_id) == sorted(every.slice_id)
    assert not set(some.patient_id) & set(project.slices.patient_id[project.fold == 0])


def test_a_kept_head_starts_at_the_prevalence_of_the_training_slices_of_its_fold(work, caplog):
    caplog.set_level("INFO")
    shift_bias(paths.fold(work, "a", 0) / "model.pt", 3.0)
    run(work, "--init", "a", "--fold", "0", "--lr", "0", "--freeze", "1")
    project, started = Project(None, work), model(work, "b")
    assert torch.equal(started.head.weight, model(work, "a").head.weight)
    assert "the head is kept" in caplog.text and "it was trained with" not in caplog.text
    seen = project.slices[project.is_train & (project.fold != 0)]
    loader = tasks.slice_loader(seen, paths.cache(work, "64"), started.config, batch_size=64, workers=0)
    mean = expit(inference.predict(started, loader, torch.device("cpu"))).mean(axis=0)
    assert mean == pytest.approx(np.clip(tables.targets(seen).mean(axis=0), 1e-3, 1), abs=1e-3)


def test_fold_k_starts_from_fold_k_of_a_run_with_more_channels_at_another_size(work, caplog):
    caplog.set_level("INFO")
    run(work, "--init", "a", "--fold", "1", "--context", "both", "--image-size", "48", "--lr", "0")
    own, other = model(work, "b", 1), model(work, "a", 1)
    assert torch.equal(own.head.weight, other.head.weight)
    said = "; it was trained with image size 32, here 48; slices 0, here -1, 0, 1; the head is kept"
    assert said in caplog.text
    first, first_of_a = (next(one.backbone.parameters()) for one in (own, other))
    assert first.shape[1] == 9 and torch.allclose(first[:, :3] * 3, first_of_a, atol=1e-5)
    assert storage.read_json(work / "runs" / "b" / "run.json")["settings"]["init"] == "a"


def test_the_start_tells_what_differs_between_its_images_and_these(work):
    config = model(work, "a").config
    assert initial_model._other_input(config, replace(config)) == ""
    other = replace(config, windows=(windows.BONE,), crop="study", cache_size=512)
    told = "cache size 64, here 512; crop none, here study; windows brain, subdural, soft tissue, here bone"
    assert initial_model._other_input(config, other) == f"; it was trained with {told}"


def test_a_new_head_says_the_prevalence(work):
    run(work, "--init", "a", "--init-head", "new", "--lr", "0", "--fold", "0")
    assert not torch.equal(model(work, "b").head.weight, model(work, "a").head.weight)
    seen = Project(None, work).slices[lambda t: t.split == "train"]
    fold = Project(None, work).fold[: len(seen)]
    prevalence = tables.targets(seen)[fold != 0].mean(axis=0)
    assert model(work, "b").head.bias.detach().numpy() == pytest.approx(slice_model.logit(prevalence), abs=1e-5)


def test_a_start_that_has_seen_the_held_out_patients_is_refused_before_anything_is_made(work):
    path = paths.fold(work, "a", 0) / "model.pt"
    for flag in ("--init", "--weights"):
        line = refused(work, flag, path, "--fold", "0", "1")
        assert f"{flag} {path} was fitted on " in line and " patients that fold 1 is scored on" in line
    run(work, "--init", path, "--fold", "0")
    line = f"--init {paths.fold(work, 'b', 0) / 'model.pt'} was fitted on"  # what its own start had seen counts too
    with pytest.raises(SystemExit, match=line):
        train.main([*TINY, "--work-dir", str(work), "--run", "c", "--fold", "2", "--init", line.split()[1]])


def test_scores_after_a_start_of_unknown_origin_are_marked_wherever_they_are_shown(work, tmp_path, capsys):
    file = tmp_path / "found.pth"
    torch.save(model(work, "a").backbone.state_dict(), file)
    run(work, "--weights", file, "--fold", "0")
    predict.main(["--work-dir", str(work), "--run", "b", "--workers", "0", "--device", "cpu"])
    project = Project(None, work)
    mark = f"possibly leaked: {file} does not say on which patients it was fitted"
    assert project.describe(project.run("b"), [0]).endswith(mark)
    assert slice_model.patients(paths.fold(work, "b", 0) / "model.pt") is None


def test_weights_with_a_classifier_of_imagenet_have_seen_no_patient(work, tmp_path):
    torch.save({**model(work, "a").backbone.state_dict(), "fc.weight": torch.zeros(1000, 4)}, tmp_path / "x.pth")
    assert len(initial_model.seen_by(work, "test_resnet", str(tmp_path / "x.pth"), None, 0)) == 0


def test_weights_in_the_place_of_imagenets_are_looked_at_too(work):
    assert len(initial_model.seen_by(work, "test_resnet", "imagenet", None, 0)) == 0  # of the hub
    path = work / "weights" / "test_resnet.pth"
    path.parent.mkdir()
    torch.save({**model(work, "a").backbone.state_dict(), "fc.weight": torch.zeros(6, 4)}, path)
    assert initial_model.seen_by(work, "test_resnet", "imagenet", None, 0) is None


def test_a_run_goes_before_a_file_of_the_same_name(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(b"of another project")
    assert initial_model.find(work, "a", 0) == paths.fold(work, "a", 0) / "model.pt"
    assert initial_model.identity(work, "a") == "a"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--init", "nowhere"], "--init nowhere: neither a run in"),
        (["--init", "b"], "--init b is the run itself: give another --run"),
        (["--init", "a", "--arch", "test_efficientnet"], "holds test_resnet, not test_efficientnet: give --arch"),
        (["--init", "a", "--weights", "x.pth"], "--init and a file of --weights are two starts"),
    ],
)
def test_a_start_that_does_not_exist_or_fit_is_refused(work, flags, message):
    assert message in refused(work, "--fold", "0", *flags)


def test_a_file_of_the_same_content_at_another_path_resumes_the_run(work, tmp_path):
    file = paths.fold(work, "a", 0) / "model.pt"
    run(work, "--init", file, "--fold", "0")
    copy = shutil.copy(file, tmp_path / "copy.pt")
    shutil.rmtree(paths.fold(work, "b", 0))
    run(work, "--init", copy, "--fold", "0")
    assert storage.read_json(work / "runs" / "b" / "run.json")["init_from"] == str(copy)


def test_a_start_of_another_architecture_names_both(work):
    other = slice_model.SliceModel(tasks.slice_config("test_efficientnet", image_size=64, cache_size=64))
    slice_model.save(work / "other.pt", other, None)
    with pytest.raises(
        ValueError, match=r"other.pt holds test_efficientnet, not test_resnet: give --arch test_efficie"
    ):
        initial_model.start(model(work, "a"), work / "other.pt", "keep", np.full(6, 0.5))
