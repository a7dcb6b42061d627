import numpy as np
import pytest
import timm
import torch

from ich_kaggle.common import windows
from ich_kaggle.learning import slice_model
from ich_kaggle.learning.slice_model import SliceConfig, SliceModel

ARCHS = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"]


def model_of(arch: str = "test_resnet", image_size: int = 64, **options) -> SliceModel:
    torch.manual_seed(0)
    return SliceModel(SliceConfig(arch, image_size, 64, **options)).eval()


def images(n: int = 2, channels: int = 3, size: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, size, size, channels), np.uint8))


@pytest.mark.parametrize("arch", ARCHS)
def test_logits_are_the_head_of_the_embeddings(arch):
    model = model_of(arch, 160 if arch == "test_vit" else 64)
    pictures = images(size=model.config.image_size)
    with torch.inference_mode():
        logits, embedding = model.outputs(pictures)
        assert logits.shape == (2, 6) and embedding.shape == (2, model.embedding_size)
        torch.testing.assert_close(model.head(embedding), logits)
        torch.testing.assert_close(model(pictures), logits)


@pytest.mark.parametrize("arch", ["test_resnet", "test_convnext"])
def test_pooling_and_head_compute_in_float32_under_mixed_precision(arch):
    model = model_of(arch)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits, embedding = model.outputs(images())
        features = model.backbone.forward_features(model.normalised(images())).float()
    assert (logits.dtype, embedding.dtype) == (torch.float32, torch.float32)
    with torch.inference_mode():
        assert torch.equal(embedding, model.backbone.forward_head(features, pre_logits=True))
        assert torch.equal(logits, model.head(embedding))


def test_pixels_are_normalised_on_the_device_by_one_value_for_all_channels():
    model = model_of()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.backbone.forward_features = lambda x: seen.append(x) or torch.zeros(len(x), 384, 2, 2)
    model.backbone.forward_head = lambda x, pre_logits: x.mean((2, 3))
    pictures = images()
    model.embed(pictures)
    mean, std = (255 * np.mean(model.backbone.pretrained_cfg[name]) for name in ("mean", "std"))
    torch.testing.assert_close(seen[0], ((pictures.float() - mean) / std).permute(0, 3, 1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_slices, shown", [(1, windows.CACHED), (3, windows.CACHED[1:2]), (3, windows.CACHED)])
def test_a_model_takes_as_many_channels_as_its_context_has(n_slices, shown):
    model = model_of(windows=shown, offsets=tuple(range(n_slices)))
    assert model(images(channels=n_slices * len(shown))).shape == (2, 6)


def test_the_channels_of_a_window_are_where_the_cache_holds_it():
    assert SliceConfig("test_resnet", 64, 64).channels == [0, 1, 2]
    assert SliceConfig("test_resnet", 64, 64, windows=(windows.SUBDURAL,)).channels == [1]
    assert SliceConfig("test_resnet", 64, 64, windows=((40, 380),)).channels == [2]


def test_a_model_of_three_targets_gives_the_middle_one_as_the_slices_own():
    model = model_of(windows=windows.CACHED[1:2], offsets=(-1, 0, 1), n_targets=3)
    pictures = images()
    assert model(pictures).shape == (2, 3, 6)
    torch.testing.assert_close(model.outputs(pictures)[0], model(pictures)[:, 1])
    plain = slice_model.for_prediction(model).eval()
    assert plain.config.n_targets == 1
    torch.testing.assert_close(plain(pictures), model(pictures)[:, 1])


def test_vgg16_pools_its_512_features_and_is_tied_to_no_size():
    model = SliceModel(SliceConfig("vgg16", 256, 256))
    assert model.embedding_size == 512
    assert sum(p.numel() for p in model.parameters()) == 14_714_688 + 6 * 513  # features and head, no hidden layers
    assert model(images(1, size=64)).shape == (1, 6)


def test_the_dilated_resnet50_has_the_seeds_pattern():
    backbone = model_of("resnet50", output_stride=8).backbone
    pattern = [[block.conv2.dilation[0] for block in getattr(backbone, f"layer{k}")] for k in (2, 3, 4)]
    assert pattern == [[1] * 4, [1, 2, 2, 2, 2, 2], [2, 4, 4]]
    assert backbone.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 2048, 28, 28)


def test_inception_v3_has_no_auxiliary_head():
    assert not any("Aux" in name for name in timm.create_model("inception_v3").state_dict())


def test_an_unknown_architecture_is_answered_with_the_nearest_names():
    with pytest.raises(ValueError, match="no architecture resnet51: did you mean .*resnet50"):
        slice_model.check_arch("resnet51")


@pytest.mark.parametrize("n_targets", [1, 3])
def test_a_new_head_predicts_the_prevalence(n_targets):
    model = model_of(offsets=(0,) * n_targets, n_targets=n_targets)
    prevalence = np.array([0.004, 0.05, 0.03, 0.05, 0.06, 0.14])
    slice_model.start_at_prevalence(model, prevalence)
    predicted = torch.sigmoid(model.head.bias).detach().numpy().reshape(n_targets, 6)
    np.testing.assert_allclose(predicted, np.tile(prevalence, (n_targets, 1)), rtol=1e-4)


def test_a_label_that_never_occurs_starts_at_a_finite_logit():
    model = model_of()
    slice_model.start_at_prevalence(model, np.zeros(6))
    assert torch.isfinite(model.head.bias).all()


def test_a_saved_model_comes_back_with_its_config_and_its_predictions(tmp_path):
    model = model_of(windows=windows.CACHED[1:2], offsets=(-2, 0, 2), drop_path=0.1)
    slice_model.save(tmp_path / "model.pt", model)
    again = slice_model.load(tmp_path / "model.pt")
    assert again.config == model.config
    assert torch.equal(again(images()), model(images()))


def test_a_model_written_before_contexts_existed_still_loads(tmp_path):
    model = model_of()
    config = '{"arch": "test_resnet", "image_size": 64, "cache_size": 64, "windows": [[40, 80], [80, 200], [40, 380]]}'
    torch.save({"config": config, "weights": model.state_dict()}, tmp_path / "model.pt")
    assert torch.equal(slice_model.load(tmp_path / "model.pt")(images()), model(images()))


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04"])
def test_a_damaged_model_is_named_with_the_command_that_makes_it(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.pt: not a whole model .*python -m ich_kaggle.train"):
        slice_model.load(tmp_path / "model.pt")
