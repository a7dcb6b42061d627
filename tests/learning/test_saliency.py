import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from ich_kaggle import explain, predict, train
from ich_kaggle.common import recipes, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import png
from ich_kaggle.learning import saliency, slice_model, tasks
from ich_kaggle.scoring import patient_folds

pytest.importorskip("captum")

TINY = ["--weights", "none", "--image-size", "32", "--cache-size", "64", "--epochs", "1", "--workers", "0"]
RECIPES = [path.stem for path in recipes.files()]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def model_of(arch: str, image_size: int = 64, **options) -> slice_model.SliceModel:
    """Return a random network whose batch norms, too, are not the identity."""
    torch.manual_seed(0)
    model = slice_model.SliceModel(tasks.slice_config(arch, image_size=image_size, cache_size=64, **options)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and "test" not in arch:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def images(model: slice_model.SliceModel, n: int = 2) -> torch.Tensor:
    config = model.config
    shape = (n, config.image_size, config.image_size, len(config.windows) * len(config.offsets))
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet", "vgg11"])
def test_gradcam_is_the_features_weighted_by_their_mean_gradients(arch):
    model = model_of(arch)
    pictures = images(model)
    features = model.backbone.forward_features(model.normalised(pictures)).detach().requires_grad_()
    logits = model.head(model.backbone.forward_head(features, pre_logits=True))
    torch.testing.assert_close(logits, model(pictures))
    maps = saliency.gradcam(model, pictures)
    for k in range(len(LABELS)):
        gradient = torch.autograd.grad(logits[:, k].sum(), features, retain_graph=True)[0]
        by_hand = (gradient.mean((2, 3), keepdim=True) * features).sum(1).clamp(min=0)
        torch.testing.assert_close(maps[:, k], by_hand.detach())


def test_behind_mean_and_a_linear_layer_gradcam_is_the_class_activation_map():
    model = model_of("test_resnet")
    features = model.backbone.forward_features(model.normalised(images(model)))
    by_hand = torch.einsum("kc,nchw->nkhw", model.head.weight, features).clamp(min=0) / features[0, 0].numel()
    torch.testing.assert_close(saliency.gradcam(model, images(model)), by_hand.detach())


def size_for(arch: str) -> int:
    return 96 if arch.startswith("inception") else 64


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_maps_for_its_six_labels(recipe):
    options = recipes.read(recipes.path_of(recipe))
    extra = {
        "context": options.get("context", "windows"),
        "output_stride": options.get("output-stride", slice_model.STRIDE),
    }
    model = model_of(options["arch"], size_for(options["arch"]), **extra)
    maps = saliency.maps_of("gradcam", model, images(model))
    assert maps.shape == (2, 6, saliency.SIZE, saliency.SIZE)
    assert torch.isfinite(maps).all() and (maps >= 0).all() and maps.amax((0, 2, 3)).max() > 0


@pytest.mark.parametrize("context, n_channels", [("windows", 3), ("slices", 3), ("both", 9)])
def test_every_context_is_explained(context, n_channels):
    model = model_of("test_resnet", context=context)
    assert images(model).shape[-1] == n_channels
    assert saliency.maps_of("gradcam", model, images(model)).shape == (2, 6, saliency.SIZE, saliency.SIZE)


def test_a_network_without_a_feature_map_is_refused_by_name():
    with pytest.raises(ValueError, match="test_vit does not end in a feature map"):
        saliency.maps_of("gradcam", model_of("test_vit", 160), torch.zeros(1, 160, 160, 3, dtype=torch.uint8))


def test_explaining_leaves_the_model_as_it_was():
    model = model_of("vgg11_bn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(images(model))
    for method in saliency.METHODS:
        saliency.maps_of(method, model, images(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images(model)), expected)


@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_the_plain_layers_of_a_vgg_give_its_logits(arch):
    model = model_of(arch)
    torch.testing.assert_close(saliency.plain_vgg(model)(model.normalised(images(model))), model(images(model)))


@pytest.mark.parametrize("arch, context", [("vgg11", "windows"), ("vgg11_bn", "windows"), ("vgg11", "both")])
def test_relevance_adds_up_to_the_logit_but_for_the_bias_of_the_last_layer(arch, context):
    model = model_of(arch, context=context)
    with torch.no_grad():
        model.head.bias.copy_(torch.linspace(-4, 1, 6))
        model.head.weight.mul_(10)
    logits = model(images(model)).detach()
    relevance = saliency.lrp(model, images(model))
    assert relevance.shape == (2, 6, 64, 64)
    torch.testing.assert_close(relevance.sum((2, 3)), logits - model.head.bias, rtol=1e-4, atol=1e-5)


def test_relevance_of_one_convolution_is_that_of_alpha_1_beta_0_by_hand():
    """Behind the first layer: one convolution of a single pixel's channels, then the head."""
    torch.manual_seed(0)
    first, second, head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Linear(5, 6)
    model = nn.Module()
    model.normalised = lambda x: x.permute(0, 3, 1, 2).float()
    model.backbone, model.head = nn.Module(), head
    model.backbone.features = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
    pixels = torch.rand(1, 3, 3, 3)
    seen = torch.relu(first(model.normalised(pixels)))
    shown = torch.relu(second(seen))
    of_second = torch.einsum("kc,nchw->nkchw", head.weight, shown) / 9
    parts = second.weight[:, :, 0, 0].clamp(min=0)[None, :, :, None, None] * seen[:, None]  # (n, out, in, h, w)
    shares = parts / parts.sum(2, keepdim=True).clamp(min=1e-9)
    by_hand = torch.einsum("nkohw,noihw->nkhw", of_second, shares)
    torch.testing.assert_close(saliency.lrp(model, pixels), by_hand.detach(), rtol=1e-4, atol=1e-6)


def test_maps_lie_over_the_part_of_the_image_that_their_cells_see():
    maps = torch.zeros(1, 6, 4, 4)
    maps[..., 1] = 1
    even = saliency.over_image(maps, 4)[0, 0, 0].numpy()
    assert even.shape == (saliency.SIZE,)
    centre = (even * (np.arange(64) + 0.5)).sum() / even.sum()
    np.testing.assert_allclose(centre, 64 * 1.5 / 4, atol=0.1)
    wider = saliency.over_image(maps, 6)[0, 0, 0].numpy()  # an image of six cells, of which the map has the middle four
    centre = (wider * (np.arange(64) + 0.5)).sum() / wider.sum()
    np.testing.assert_allclose(centre, 64 * 2.5 / 6, atol=0.1)


def test_over_as_many_cells_as_the_map_has_it_is_the_bilinear_resize():
    maps = torch.rand(2, 6, 5, 5)
    wanted = nn.functional.interpolate(maps, (saliency.SIZE, saliency.SIZE), mode="bilinear", align_corners=False)
    torch.testing.assert_close(saliency.over_image(maps, 5), wanted, atol=1e-5, rtol=1e-5)


def test_each_map_is_scaled_by_its_own_maximum_and_without_anything_positive_it_is_black():
    maps = np.zeros((6, 2, 2), np.float32)
    maps[0], maps[1], maps[2] = [[1, 2], [0, -4]], -1, [[0.1, 0], [0, 0.05]]
    gray = saliency.to_gray(maps)
    assert gray.shape == (12, 2) and gray.dtype == np.uint8
    assert gray[:6].tolist() == [[128, 255], [0, 0], [0, 0], [0, 0], [255, 0], [0, 128]]
    assert not gray[6:].any()


def test_chosen_are_the_studies_of_highest_loss_and_those_of_the_surest_hits():
    study = np.repeat(list("abcd"), 2)
    target, probability = np.zeros((8, 6)), np.full((8, 6), 0.1)
    probability[2:4] = 0.9  # b: wrong in all
    target[4, 3], probability[4, 3] = 1, 0.6  # c
    target[6, 3], probability[6, 3] = 1, 0.8  # d: surest
    assert saliency.choose(study, target, probability, 1) == ["b", "d"]
    assert saliency.choose(study, target, probability, 0) == ["d"]
    assert set(saliency.choose(study, target, probability, 9)) == set("abcd")


@pytest.fixture(scope="module")
def trained_once(prepared, tmp_path_factory) -> Path:
    work = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("trained") / "work"))
    train.main([*TINY, "--arch", "vgg11", "--work-dir", str(work), "--fold", "0", "--run", "a"])
    predict.main(place(work))
    return work


@pytest.fixture
def trained(trained_once, tmp_path) -> Path:
    """A work folder with a predicted run of a VGG, to be written to."""
    return Path(shutil.copytree(trained_once, tmp_path / "trained"))


def place(work: Path) -> list[str]:
    return ["--work-dir", str(work), "--run", "a", "--fold", "0", "--workers", "0"]


def run(work: Path, *flags: str) -> None:
    explain.main([*place(work), *flags])


def refused(work: Path, *flags: str) -> str:
    with pytest.raises(SystemExit) as error:
        run(work, *flags)
    return error.value.code


def explained(work: Path, method: str = "gradcam") -> Path:
    return work / "runs" / "a" / "fold0" / "explain" / method


def one_study(work: Path, k: int = 0) -> str:
    table = tables.read_slices(work)
    return table.study_id[patient_folds.ensure(Project(None, work, 1)) == k].iloc[0]


@pytest.mark.parametrize("method", saliency.METHODS)
def test_maps_of_whole_out_of_fold_studies_are_written_and_described(trained, method):
    run(trained, "--method", method, "--n-studies", "1")
    found = json.loads((explained(trained, method) / "explain.json").read_text())
    assert found["method"] == method and found["labels"] == list(LABELS) and found["shape"] == [64, 64]
    assert found["model"] == storage.file_hash(trained / "runs/a/fold0/model.pt") and found["cache"] == "64"
    table = tables.read_slices(trained)
    of_slice = patient_folds.ensure(Project(None, trained, 1))
    assert set(table.study_id[of_slice == 0]) >= set(found["studies"])
    wanted = table.slice_id[table.study_id.isin(found["studies"])]
    assert {path.stem for path in explained(trained, method).glob("*.png")} == set(wanted)
    assert found["n_slices"] == len(wanted)


@pytest.mark.parametrize("method", saliency.METHODS)
def test_a_file_holds_the_maps_of_its_own_slice(trained, method):
    study = one_study(trained)
    run(trained, "--method", method, "--studies", study, "--batch-size", "3")
    table, model = tables.read_slices(trained), slice_model.load(trained / "runs/a/fold0/model.pt")
    rows = table[table.study_id == study]
    for batch in tasks.slice_loader(rows, trained / "cache" / "64", model.config, batch_size=1, workers=0):
        expected = saliency.to_gray(saliency.maps_of(method, model, batch[0])[0].numpy())
        path = explained(trained, method) / f"{rows.slice_id.iloc[batch[2].item()]}.png"
        found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert found.shape == (6 * 64, 64) and found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_explained_again_it_does_nothing_and_says_so(trained, capsys):
    run(trained, "--method", "gradcam", "--n-studies", "1")
    before = {path: path.stat().st_mtime_ns for path in explained(trained).iterdir()}
    capsys.readouterr()
    run(trained, "--method", "gradcam", "--n-studies", "1")
    assert "explain.json exists: nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in explained(trained).iterdir()} == before


def test_more_studies_are_added_to_those_that_are_there(trained):
    table = tables.read_slices(trained)
    first, second = table.study_id[patient_folds.ensure(Project(None, trained, 1)) == 0].unique()[:2]
    run(trained, "--method", "gradcam", "--studies", first)
    before = {path: path.stat().st_mtime_ns for path in explained(trained).glob("*.png")}
    run(trained, "--method", "gradcam", "--studies", first, second)
    assert json.loads((explained(trained) / "explain.json").read_text())["studies"] == [first, second]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_stopped_in_a_study_it_ends_with_the_same_maps(trained, monkeypatch):
    study = one_study(trained)
    run(trained, "--method", "gradcam", "--studies", study)
    whole = {path.name: path.read_bytes() for path in explained(trained).iterdir()}
    write, left = png.write, [2]

    def stop(path, image):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        write(path, image)

    monkeypatch.setattr(saliency.png, "write", stop)
    assert "No space left on device" in refused(trained, "--method", "gradcam", "--studies", study, "--overwrite")
    assert not (explained(trained) / "explain.json").exists() and len(list(explained(trained).glob("*.png"))) == 2
    monkeypatch.undo()
    run(trained, "--method", "gradcam", "--studies", study)
    assert {path.name: path.read_bytes() for path in explained(trained).iterdir()} == whole


def test_maps_of_another_model_are_refused_with_both_named(trained):
    run(trained, "--method", "gradcam", "--n-studies", "0")
    path = trained / "runs/a/fold0/model.pt"
    old, model = storage.file_hash(path), slice_model.load(path)
    with torch.no_grad():
        model.head.bias.add_(1)
    slice_model.save(path, model)
    (path.parent / "predict.json").unlink()
    message = refused(trained, "--method", "gradcam", "--n-studies", "0")
    assert f"made with model {old}, not {storage.file_hash(path)}" in message and "--overwrite" in message
    run(trained, "--method", "gradcam", "--n-studies", "0", "--overwrite")


def test_relevance_of_other_networks_is_refused_in_one_line_before_anything_is_predicted(work):
    train.main([*TINY, "--arch", "test_resnet", "--work-dir", str(work), "--fold", "0", "--run", "a"])
    message = refused(work, "--method", "lrp")
    assert "not on test_resnet: give --method gradcam" in message and "\n" not in message
    assert not (work / "runs/a/fold0/oof.parquet").exists()


def test_without_captum_its_extra_is_named(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert "pip install 'ich_kaggle[explain]'" in refused(trained, "--method", "gradcam")


def test_a_study_that_is_not_there_or_of_another_fold_is_named(trained):
    assert "--studies ID_nobody: " in refused(trained, "--method", "gradcam", "--studies", "ID_nobody")
    other = one_study(trained, 1)
    assert f"--studies {other}: it is in fold 1" in refused(trained, "--method", "gradcam", "--studies", other)


def test_a_test_study_is_explained_too(trained):
    table = tables.read_slices(trained)
    study = table.study_id[table.split == "test"].iloc[0]
    run(trained, "--method", "gradcam", "--studies", study)
    assert json.loads((explained(trained) / "explain.json").read_text())["studies"] == [study]


def test_a_fold_without_predictions_is_predicted_first(work):
    train.main([*TINY, "--arch", "test_resnet", "--work-dir", str(work), "--fold", "0", "--run", "a"])
    explain.main(["--work-dir", str(work), "--workers", "0", "--n-studies", "1"])  # of the one run, by Grad-CAM
    assert (work / "runs/a/fold0/predict.json").exists()
    assert len(json.loads((explained(work) / "explain.json").read_text())["studies"]) >= 1


def test_a_second_level_is_refused(trained):
    (trained / "runs/smooth-a/fold0").mkdir(parents=True)
    storage.write_json(trained / "runs/smooth-a/run.json", {"settings": {"on": ["a"]}})
    storage.write_json(trained / "runs/smooth-a/fold0/predict.json", {})
    assert "smooth-a is a second level: give the --run of a slice model" in refused(trained, "--run", "smooth-a")
