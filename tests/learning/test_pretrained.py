import http.server
import io
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from ich_kaggle.learning import pretrained, slice_model
from ich_kaggle.learning.slice_model import SliceConfig, SliceModel


def backbone_of(arch: str = "test_resnet", **options):
    return SliceModel(SliceConfig(arch, 64, 64, **options)).backbone


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    return timm.create_model("test_resnet").state_dict()


def same(backbone, source) -> bool:
    own = backbone.state_dict()
    return all(torch.equal(own[key], source[key]) for key in own if not key.startswith("fc."))


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_a_pth_file_fills_the_backbone_and_the_head_is_named_as_left_out(tmp_path, source, wrap):
    torch.save(wrap(source), tmp_path / "w.pth")
    backbone = backbone_of()
    told = pretrained.load(backbone, "test_resnet", str(tmp_path / "w.pth"), tmp_path)
    assert same(backbone, source)
    assert "left out: fc.weight, fc.bias" in told


def test_a_safetensors_file_fills_the_backbone(tmp_path, source):
    save_file(source, tmp_path / "w.safetensors")
    backbone = backbone_of()
    pretrained.load(backbone, "test_resnet", str(tmp_path / "w.safetensors"), tmp_path)
    assert same(backbone, source)


def test_weights_of_several_processes_lose_their_prefix(tmp_path, source):
    torch.save({f"module.{key}": value for key, value in source.items()}, tmp_path / "w.pth")
    assert pretrained.read(tmp_path / "w.pth").keys() == source.keys()


def test_a_model_that_train_wrote_gives_its_backbone(tmp_path):
    model = SliceModel(SliceConfig("test_resnet", 64, 64))
    slice_model.save(tmp_path / "model.pt", model)
    backbone = backbone_of()
    pretrained.load(backbone, "test_resnet", str(tmp_path / "model.pt"), tmp_path)
    assert same(backbone, model.backbone.state_dict())


def test_a_file_in_the_weights_folder_goes_before_a_download(tmp_path, source):
    save_file(source, tmp_path / "test_resnet.safetensors")
    backbone = backbone_of()
    assert str(tmp_path) in pretrained.load(backbone, "test_resnet", "imagenet", tmp_path)
    assert same(backbone, source)


def test_the_offline_package_fills_every_layer_of_lite0(tmp_path):
    pytest.importorskip(pretrained.LITE0_PACKAGE)
    backbone = backbone_of(pretrained.LITE0)
    untouched = backbone_of(pretrained.LITE0)
    untouched.load_state_dict(backbone.state_dict())
    assert "weights: all" in pretrained.load(backbone, pretrained.LITE0, "imagenet", tmp_path)
    convolutions = [name for name, p in backbone.named_parameters() if p.ndim == 4]
    changed = dict(backbone.named_parameters()), dict(untouched.named_parameters())
    assert convolutions and not any(torch.equal(changed[0][name], changed[1][name]) for name in convolutions)


def test_nine_channels_keep_the_weights_of_the_first_convolution(source):
    backbone = backbone_of(offsets=(-1, 0, 1))
    pretrained.fill(backbone, source, "w")
    first = f"{backbone.pretrained_cfg['first_conv']}.weight"
    own, image = backbone.state_dict()[first], torch.randn(1, 3, 8, 8)
    assert own.shape[1] == 9
    answer = torch.nn.functional.conv2d(image.repeat(1, 3, 1, 1), own)
    torch.testing.assert_close(answer, torch.nn.functional.conv2d(image, source[first]))


def test_weights_that_do_not_fit_are_all_listed_and_none_is_loaded(source):
    backbone = backbone_of()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    wrong = {key: value for key, value in source.items() if key != "layer1.0.conv2.weight"}
    wrong["layer2.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"2 of \d+ weights do not fit") as error:
        pretrained.fill(backbone, wrong, "w.pth")
    assert "layer1.0.conv2.weight is missing" in str(error.value)
    assert "layer2.0.conv1.weight is (1, 2, 3, 3), not" in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_weights_of_another_architecture_are_refused(source):
    with pytest.raises(
        ValueError, match=r"w.pth: \d+ of \d+ weights do not fit: .* more: of another architecture, or size"
    ):
        pretrained.fill(backbone_of("test_convnext"), source, "w.pth")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Answers for the hub: a list of what it was asked, and what it says, the names of the files it has or an error."""
    hub = SimpleNamespace(asked=[], has=[])

    def answer(url: str, timeout: float):
        hub.asked.append(url)
        if isinstance(hub.has, Exception):
            raise hub.has
        if url.rpartition("/")[2] not in hub.has:
            raise EntryNotFoundError("404")

    monkeypatch.setattr(pretrained.huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(pretrained.huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    return hub


@pytest.mark.parametrize("ask", [pretrained.check, pretrained.load])
def test_without_a_hub_one_line_says_which_file_to_put_where(tmp_path, hub, ask):
    hub.has = ConnectionError("Name or service not known")
    with pytest.raises(RuntimeError) as error:
        ask(backbone_of("resnet18"), "resnet18.a1_in1k", "imagenet", tmp_path)
    url = "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    assert f"put {url} at {tmp_path / 'resnet18.a1_in1k.safetensors'}" in str(error.value)
    assert "huggingface.co did not give them (Name or service not known)" in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_that_has_the_weights_is_asked_and_nothing_is_downloaded(tmp_path, hub, monkeypatch, name):
    backbone, hub.has = backbone_of(), [name]
    monkeypatch.setattr(pretrained.timm, "create_model", None)
    pretrained.check(backbone, "resnet18.a1_in1k", "imagenet", tmp_path)
    assert hub.asked[-1].endswith(name)


def test_a_hub_without_the_weights_is_refused(tmp_path, hub):
    with pytest.raises(RuntimeError, match="for resnet18.a1_in1k: huggingface.co did not give them"):
        pretrained.check(backbone_of(), "resnet18.a1_in1k", "imagenet", tmp_path)


def fetch(code: str, **environment) -> str:
    """Return the output of a process with this environment that checks and loads the weights of VIT, 9 channels."""
    program = f"""
import sys
from pathlib import Path
from ich_kaggle.learning import pretrained
from ich_kaggle.learning.slice_model import SliceConfig, SliceModel
{code}
pretrained.check(backbone, "{VIT}", "imagenet", Path("none"))
print(pretrained.load(backbone, "{VIT}", "imagenet", Path("none")))
"""
    process = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True
    )
    return process.stdout + process.stderr


VIT = "test_vit.r160_in1k"
BACKBONE = f'backbone = SliceModel(SliceConfig("{VIT}", 96, 64, offsets=(-1, 0, 1))).backbone'


@pytest.fixture
def mirror(tmp_path):
    """The address of a hub with the weights of VIT, of 160 px and 3 channels, in the file that older timms wrote."""
    torch.manual_seed(1)
    weights = io.BytesIO()
    torch.save(timm.create_model(VIT).state_dict(), weights)

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            has = self.path == f"/timm/{VIT}/resolve/main/pytorch_model.bin"
            self.send_response(200 if has else 404)
            about = {"ETag": '"1"', "X-Repo-Commit": "a" * 40} if has else {"X-Error-Code": "EntryNotFound"}
            for key, value in (about | {"Content-Length": len(weights.getvalue()) * has}).items():
                self.send_header(key, str(value))
            self.end_headers()
            return has

        def do_GET(self):
            if self.do_HEAD():
                self.wfile.write(weights.getvalue())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_come_from_a_mirror_and_later_from_its_cache_for_images_of_another_size(tmp_path, mirror):
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    assert "weights: all 78 of the backbone" in fetch(BACKBONE, HF_ENDPOINT=mirror, **home)
    assert "weights: all 78 of the backbone" in fetch(BACKBONE, HF_HUB_OFFLINE="1", **home)
    lost = fetch(BACKBONE, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://mirror.invalid", HF_HOME=str(tmp_path / "none"))
    assert "mirror.invalid did not give them" in lost and f"put http://mirror.invalid/timm/{VIT}" in lost


def test_weights_of_a_transformer_are_resampled_to_another_size_as_timm_does_it():
    source = timm.create_model(VIT).state_dict()
    backbone = SliceModel(SliceConfig(VIT, 96, 64)).backbone
    assert "all 78" in pretrained.fill(backbone, source, "w", VIT)
    timms = timm.create_model(VIT, img_size=96, pretrained=True, pretrained_cfg_overlay=dict(state_dict=source))
    own = backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in timms.state_dict().items() if "head" not in key)


def test_every_first_convolution_of_a_network_is_adapted():
    source = timm.create_model("crossvit_tiny_240").state_dict()
    backbone = timm.create_model("crossvit_tiny_240", in_chans=9, num_classes=6)
    pretrained.fill(backbone, source, "w", "crossvit_tiny_240")
    for i in (0, 1):
        own = backbone.state_dict()[f"patch_embed.{i}.proj.weight"]
        torch.testing.assert_close(own[:, :3] * 3, source[f"patch_embed.{i}.proj.weight"])


def test_a_file_is_checked_by_reading_it(tmp_path, source):
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="weights do not fit"):
        pretrained.check(backbone_of(), "test_resnet", str(tmp_path / "w.pth"), tmp_path)
    torch.save(source, tmp_path / "w.pth")
    pretrained.check(backbone_of(), "test_resnet", str(tmp_path / "w.pth"), tmp_path)


def test_an_architecture_without_pretrained_weights_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="timm has no pretrained weights for resnet10t_x: give --weights none"):
        pretrained.load(backbone_of(), "resnet10t_x", "imagenet", tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.pth: no such weights"):
        pretrained.load(backbone_of(), "test_resnet", str(tmp_path / "nothing.pth"), tmp_path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_of_something_else_is_named(tmp_path, name):
    (tmp_path / name).write_text("not weights at all")
    with pytest.raises(ValueError, match=rf"{name}: not a file of weights alone"):
        pretrained.read(tmp_path / name)


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"w": Trap()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not a file of weights alone"):
        pretrained.read(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_an_empty_file_is_refused_with_its_name(tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty.pth: not a file of weights alone \(\w"):
        pretrained.read(tmp_path / "empty.pth")
