"""What `train` refuses before it makes anything costly, and what it takes where no model is named."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

from ich_kaggle import cache, train
from ich_kaggle.common import cli
from ich_kaggle.common.runs import Run
from ich_kaggle.learning import devices, preflight, profiling, slice_model

TINY = ["--image-size", "32", "--cache-size", "64", "--batch-size", "8", "--epochs", "1", "--workers", "0"]
MODEL = ["--arch", "test_resnet", "--weights", "none"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def fresh(competition, tmp_path):
    """Flags for a work folder in which nothing is made yet."""
    return ["--data-dir", str(competition), "--work-dir", str(tmp_path / "fresh")]


def refused(*argv) -> str:
    with pytest.raises(SystemExit) as error:
        train.main([*argv])
    assert isinstance(error.value.code, str) and "\n" not in error.value.code
    return error.value.code


def without_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def without_hub(monkeypatch):
    def fail(url, timeout):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def without_memory(monkeypatch):
    monkeypatch.setattr(profiling, "free_memory", lambda: 1_000_000)


def as_it_is(monkeypatch):
    pass


@pytest.mark.parametrize(
    "lacking, flags, message",
    [
        (as_it_is, "--arch test_resnet --weights nope.pth", "nope.pth: no such weights"),
        (as_it_is, "--arch test_resnext", "timm has no architecture test_resnext: did you mean"),
        (
            without_hub,
            "--arch resnet18.a1_in1k --weights imagenet",
            "resnet18.a1_in1k: huggingface.co did not",
        ),
        (
            without_tensorboard,
            "--tensorboard",
            "--tensorboard needs its package: pip install 'ich_kaggle[tensorboard]'",
        ),
        (without_memory, "", "too much for the 0.0 GB that are free: give a smaller --image-size or --arch"),
    ],
)
def test_what_is_lacking_is_said_before_anything_is_cached(fresh, tmp_path, monkeypatch, lacking, flags, message):
    lacking(monkeypatch)
    assert message in refused(*fresh, *MODEL, *TINY, *flags.split())
    assert not (tmp_path / "fresh" / "cache").exists() and not (tmp_path / "fresh" / "runs").exists()


def test_a_disk_without_room_for_the_cache_ends_train_before_it_is_begun(fresh, tmp_path, monkeypatch):
    usage = cache.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    said = refused(*fresh, *MODEL, *TINY)
    assert "the disk has 0.0 GB free" in said and "KB per slice at 64 px" in said
    assert not (tmp_path / "fresh" / "cache" / "64").exists()


def test_weights_of_another_architecture_are_refused_before_anything_is_cached(fresh, tmp_path):
    other = slice_model.SliceModel(slice_model.SliceConfig("test_convnext", 32, 64))
    torch.save(other.backbone.state_dict(), tmp_path / "other.pth")
    assert "weights do not fit" in refused(*fresh, *MODEL, *TINY, "--weights", str(tmp_path / "other.pth"))
    assert not (tmp_path / "fresh").exists()


def test_a_step_that_memory_has_no_room_for_is_refused_with_the_batch_size_that_fits(work, monkeypatch):
    model = slice_model.SliceModel(slice_model.SliceConfig("test_resnet", 32, 64))
    held, per_slice = preflight.step_memory(model)
    monkeypatch.setattr(profiling, "free_memory", lambda: (held + 5 * per_slice) / preflight.SHARE)
    flags = ["--work-dir", str(work), *MODEL, *TINY, "--batch-size", "24", "--accumulate", "2", "--device", "cpu"]
    for dry in ([], ["--dry-run"]):
        said = refused(*flags, *dry)
        assert "not enough memory: a step of 24 slices at 32 px takes about 0.0 GB" in said
        assert said.endswith("that are free: give --batch-size 3 --accumulate 16")
    train.main([*flags, "--batch-size", "3", "--accumulate", "16", "--fold", "0"])


def test_a_finished_run_takes_no_weights_memory_or_package(work, monkeypatch, capsys):
    flags = ["--work-dir", str(work), *MODEL, *TINY, "--run", "a"]
    train.main(flags)
    without_memory(monkeypatch)
    capsys.readouterr()
    for fold in ("all", "1"):
        train.main([*flags, "--fold", fold])
    assert capsys.readouterr().out.count("nothing to do") == 4
    assert "not enough memory" in refused(*flags, "--overwrite")
    assert (work / "runs" / "a" / "fold0" / "model.pt").exists()


def test_a_small_dev_shm_is_refused_before_anything_is_made(fresh, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: argparse.Namespace(free=64_000_000))
    flags = ["--batch-size", "64", "--image-size", "512", "--workers", "4"]  # 4 workers x 2 x 64 x 3 x 512^2 bytes
    said = refused(*fresh, *MODEL, *TINY, "--device", "cpu", *flags)
    assert "it has 64 MB, and those of 4 workers take 403 MB: give the container --shm-size 8g" in said
    assert not Path(fresh[-1]).exists()


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_efficientnet"])
def test_the_memory_of_a_step_grows_with_the_pixels(arch):
    small, large = (
        preflight.step_memory(slice_model.SliceModel(slice_model.SliceConfig(arch, size, 512))) for size in (224, 448)
    )
    assert small[0] == pytest.approx(large[0], rel=0.15)  # a transformer has a weight for each place
    assert large[1] > 3.9 * small[1]


@pytest.mark.slow
def test_the_default_of_a_gpu_needs_more_memory_than_a_laptop_has_and_the_recipe_cpu_does_not():
    needed = {}
    for name in ("efficientnetv2_s_windows", "cpu"):
        options = cli.parse(train.build_parser(), ["--recipe", name])
        model = slice_model.SliceModel(slice_model.SliceConfig(options.arch, options.image_size, options.cache_size))
        held, per_slice = preflight.step_memory(model)
        needed[name] = held + options.batch_size * per_slice
    assert needed["efficientnetv2_s_windows"] > 24e9
    assert needed["cpu"] < 4e9


def options_of(argv: list[str]):
    return cli.parse(train.build_parser(), argv, default_recipe=preflight.recipe_for)


@pytest.mark.parametrize("device, recipe", [("cpu", "cpu"), ("cuda:1", "efficientnetv2_s_windows")])
def test_where_no_model_is_named_the_recipe_suits_the_device_and_is_said(device, recipe, capsys):
    found, named = (
        options_of(["--device", device, "--epochs", "9"]),
        options_of(["--device", device, "--recipe", recipe]),
    )
    assert vars(found) | {"epochs": None, "recipe": None} == vars(named) | {"epochs": None, "recipe": None}
    assert (found.run, found.epochs) == (recipe, 9)
    [said] = capsys.readouterr().out.splitlines()
    assert said.startswith(f"no --recipe or --arch given: using --recipe {recipe}, which suits a ")


@pytest.mark.parametrize("argv", [["--arch", "resnet18"], ["--recipe", "vgg16"]])
def test_where_a_model_is_named_nothing_else_is_taken_or_said(argv, capsys):
    assert options_of(argv).arch == cli.parse(train.build_parser(), argv).arch
    assert capsys.readouterr().out == ""


def test_the_three_words_of_a_first_evening_train_what_suits_this_machine(work, monkeypatch, capsys, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices._say_once.cache_clear()
    caplog.set_level("INFO")
    train.main(["--work-dir", str(work), "--fold", "0", "--weights", "none", *TINY])
    assert "using --recipe cpu, which suits a CPU" in capsys.readouterr().out
    assert [record.message for record in caplog.records].count("no GPU found: using the CPU") == 1
    settings = Run(work, "cpu").settings
    assert (settings["arch"], settings["ema"]) == ("tf_efficientnet_lite0", 0.99)


def test_a_recipe_without_an_architecture_says_what_is_missing(work, tmp_path):
    (tmp_path / "own.toml").write_text("epochs = 1\n")
    said = refused("--work-dir", str(work), "--recipe", str(tmp_path / "own.toml"))
    assert said == "error: no architecture: give --arch or --recipe"
