import ast
import base64
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kaggle_image as image
import kaggle_server as fake
import numpy as np
import pandas as pd
import pytest
import torch

from ich_kaggle import bundle, cli, ensemble, folds, infer, kaggle_client, kaggle_kernels, kernel, kernel_check, labels
from ich_kaggle import models, paths, png, render, submit, tables, tasks, train, training

no_network, kaggle_server, proxied_server = fake.no_network, fake.kaggle_server, fake.proxied_server

KERNELS = Path(__file__).parent.parent / "kernels"
PACKAGE = Path(paths.__file__).parent
NAMES = ("ich-infer", "ich-train", "ich-explore")
RUNS = ("test_efficientnet", "test_resnet")
USER = fake.USER
STATUS, SAVE = "GetKernelSessionStatus", "SaveKernel"


@pytest.fixture(scope="module")
def home(competition, tmp_path_factory) -> Path:
    """A work folder with two runs of two folds, their ensemble `both`, and the submission made of it."""
    work = tmp_path_factory.mktemp("home") / "work"
    folds.main(["--data-dir", str(competition), "--work-dir", str(work), "--folds", "2", "--workers", "1"])
    for arch in RUNS:
        small = ["--arch", arch, "--image-size", "64", "--cache-size", "64", "--batch-size", "16", "--epochs", "1"]
        train.main([*small, "--weights", "none", "--work-dir", str(work), "--workers", "1"])
    ensemble.main(["--name", "both", "--work-dir", str(work), "--workers", "1", "--method", "simplex-logit"])
    submit.main(["--ensemble", "both", "--dry-run", "--work-dir", str(work), "--submissions-dir", str(work / "csv")])
    return work


@pytest.fixture(scope="module")
def packed(home, tmp_path_factory) -> Path:
    """The folder that `kernel weights` packs."""
    out = tmp_path_factory.mktemp("packed") / "ich-models"
    return kernel.pack(home, home / "ensemble" / "both", out, [])


def local_submission(home: Path) -> bytes:
    (path,) = (home / "csv").glob("*-both.csv")
    return path.read_bytes()


def built(name: str, out: Path, *, attached: bool = False) -> Path:
    return kernel.build(KERNELS / name, out / name, user=USER, attached=attached)


@pytest.fixture
def run(tmp_path, capfd, monkeypatch):
    """Run the command in this process, its pauses recorded and not waited for; return its output."""
    monkeypatch.chdir(tmp_path)
    run_pauses = []

    def run(*argv: str) -> str:
        connect = functools.partial(kaggle_client.connect, sleep=run_pauses.append, timeout=5)
        options = vars(kernel.build_parser().parse_args([*argv, "--kernels-dir", str(KERNELS)]))
        options.pop("recipe", None)
        kernel.kernel(**options, connect=connect)
        return capfd.readouterr().out

    run.pauses = run_pauses
    return run


# What is built.


@pytest.mark.parametrize("name", NAMES)
def test_a_built_kernel_keeps_to_every_rule_and_is_small(tmp_path, name):
    folder = built(name, tmp_path)
    assert kernel_check.faults(folder) == []
    file = folder / kernel_check.read(folder)["code_file"]
    assert file.stat().st_size < 900_000


@pytest.mark.parametrize("name", NAMES)
def test_building_twice_gives_the_same_bytes(tmp_path, name):
    first, second = image.files_in(built(name, tmp_path / "a")), image.files_in(built(name, tmp_path / "b"))
    assert first == second
    assert len(first) == 2


def test_another_process_builds_the_same_wheel_from_a_copy_with_other_times(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "ich_kaggle", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (tmp_path / "ich_kaggle").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    code = "import sys; from ich_kaggle import bundle; sys.stdout.buffer.write(bundle.wheel())"
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env, cwd=tmp_path)
    assert done.stdout == bundle.wheel()


def test_the_wheel_is_one_that_pip_installs(tmp_path):
    wheel = tmp_path / bundle.WHEEL_NAME
    wheel.write_bytes(bundle.wheel())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, tmp_path / "site", wheel], check=True)
    ours = {p.relative_to(PACKAGE): p.read_bytes() for p in PACKAGE.rglob("*") if p.suffix in (".py", ".toml")}
    site = tmp_path / "site" / "ich_kaggle"
    assert {path.relative_to(site): path.read_bytes() for path in site.rglob("*.[pt]*[yl]")} == ours


def test_a_kernel_holds_the_package_or_leaves_it_to_a_dataset(tmp_path):
    inside, attached = (
        (built("ich-infer", tmp_path / str(flag), attached=flag) / "main.py").read_text() for flag in (False, True)
    )
    (text,) = re.findall(r'WHEEL = """\n(.*?)"""', inside, re.DOTALL)
    assert base64.b85decode(text.replace("\n", "")) == bundle.wheel()
    assert bundle.PLACE in attached
    assert len(attached) < 5_000


def test_the_notebook_has_a_kernelspec_and_no_output(tmp_path):
    notebook = json.loads((built("ich-explore", tmp_path) / "ich-explore.ipynb").read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    assert notebook["cells"][1]["source"].startswith("# Hemorrhage in head CT")


# What is refused.


def edit(folder: Path, **changes) -> None:
    path = folder / kernel_check.METADATA
    metadata = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


RULES = {
    "an unknown key": ({"enable_gpus": True}, "unknown key enable_gpus, which Kaggle ignores"),
    "an id without owner": ({"id": "ich-infer"}, "id is ich-infer, not owner/name"),
    "an id with a version": ({"id": "tester/ich-infer/2"}, "id is tester/ich-infer/2, not owner/name"),
    "an id_no": ({"id_no": 7}, "unknown key id_no"),
    "a short name": ({"id": "tester/ich", "title": "ICH"}, "the name ich in id is shorter than 5 letters"),
    "a placeholder": ({"id": "YOUR_USERNAME/ich-infer"}, "YOUR_USERNAME stands in it: build it with --user"),
    "a short title": ({"title": "ICH"}, "title has 3 letters, not 5 to 50"),
    "a long title": ({"title": "ICH infer " * 6}, "title has 60 letters, not 5 to 50"),
    "another title": ({"title": "ICH inference"}, "title 'ICH inference' makes the address ich-inference, but id says"),
    "no title": ({"title": None}, "title is missing"),
    "no code": ({"code_file": "other.py"}, "code_file is other.py, which is no file beside kernel-metadata.json"),
    "code elsewhere": ({"code_file": "../x/main.py"}, "code_file is ../x/main.py, which is no file beside"),
    "another language": ({"language": "r"}, "language is r, not python"),
    "another kind": ({"kernel_type": "app"}, "kernel_type is app, not script or notebook"),
    "a script as a notebook": ({"kernel_type": "notebook"}, "code_file is main.py, but a notebook ends in .ipynb"),
    "yes": ({"is_private": "yes"}, 'is_private is "yes", not true or false'),
    "a number": ({"enable_gpu": 1}, "enable_gpu is 1, not true or false"),
    "internet by default": ({"enable_internet": None}, "enable_internet is missing"),
    "internet": ({"enable_internet": True}, "enable_internet is true: set it to false"),
    "a TPU": ({"enable_tpu": True}, "enable_tpu is true"),
    "no machine": ({"machine_shape": None}, "machine_shape is missing"),
    "a P100": ({"machine_shape": "NvidiaTeslaP100"}, "machine_shape is 'NvidiaTeslaP100', not NvidiaTeslaT4"),
    "a GPU unasked": ({"enable_gpu": False}, "machine_shape is NvidiaTeslaT4, and enable_gpu false"),
    "a bare dataset": ({"dataset_sources": ["ich-models"]}, "dataset_sources holds ich-models, not owner/name"),
    "a dataset's address": ({"dataset_sources": ["datasets/a/b"]}, "dataset_sources holds datasets/a/b, not owner/name"),
    "a competition's address": (
        {"competition_sources": [f"c/{paths.SLUG}"]},
        f"competition_sources holds c/{paths.SLUG}, not a competition's name alone",
    ),
    "no competition": ({"competition_sources": []}, f"competition_sources lacks {paths.SLUG}"),
    "a kernel's address": ({"kernel_sources": ["code/a/b"]}, "kernel_sources holds code/a/b, not owner/name"),
    "a model without version": (
        {"model_sources": ["a/b/pyTorch/c"]},
        "model_sources holds a/b/pyTorch/c, not owner/model/framework/variation/version",
    ),
    "one source": ({"dataset_sources": "a/b"}, 'dataset_sources is "a/b", not a list'),
    "a number as source": ({"dataset_sources": [3]}, "dataset_sources holds something else than texts"),
    "another pinning": ({"docker_image_pinning_type": "newest"}, "docker_image_pinning_type is newest, not original"),
}


@pytest.mark.parametrize("rule", RULES)
def test_metadata_that_kaggle_would_refuse_or_ignore_is_named(tmp_path, rule):
    changes, message = RULES[rule]
    folder = built("ich-infer", tmp_path)
    edit(folder, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel.check(folder)


CODE = {
    "too long": (b"x = '" + b"." * 1_000_000 + b"'\n", "main.py has 1000007 bytes, more than 900000: build it with --attached"),
    "a byte order mark": (b"\xef\xbb\xbfx = 1\n", "main.py begins with a byte order mark"),
    "not UTF-8": (b"# caf\xe9\n", "main.py can't be read"),
    "no Python": (b"x = = 1\n", "main.py is not Python 3.11: line 1"),
    "Python 3.12": (b"type X = int\n", "main.py is not Python 3.11: line 1"),
    "the client": (b"import kaggle.api\n", "main.py imports kaggle"),
    "the client, from": (b"def f():\n    from kaggle import api\n", "main.py imports kaggle"),
}


@pytest.mark.parametrize("fault", CODE)
def test_code_that_kaggle_can_not_run_is_named(tmp_path, fault):
    content, message = CODE[fault]
    folder = built("ich-infer", tmp_path)
    (folder / "main.py").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel.check(folder)


NOTEBOOKS = {
    "no kernelspec": (lambda book: book["metadata"].pop("kernelspec"), "has no metadata.kernelspec: Kaggle can't run"),
    "old": (lambda book: book.update(nbformat=3), "has nbformat 3, not 4"),
    "empty": (lambda book: book.update(cells=[]), "has no code"),
    "broken": (lambda book: book["cells"][2].update(source="x = = 1"), "is not Python 3.11: line 1"),
}


@pytest.mark.parametrize("fault", NOTEBOOKS)
def test_a_notebook_that_kaggle_can_not_run_is_named(tmp_path, fault):
    change, message = NOTEBOOKS[fault]
    folder = built("ich-explore", tmp_path)
    path = folder / "ich-explore.ipynb"
    book = json.loads(path.read_text())
    change(book)
    path.write_text(json.dumps(book))
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel.check(folder)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xef\xbb\xbf{}", "not JSON in UTF-8 without"), (b"{", "not JSON"), (b"[]", "a list")]
)
def test_metadata_that_is_no_object_is_named(tmp_path, content, message):
    folder = built("ich-infer", tmp_path)
    (folder / kernel_check.METADATA).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        kernel.check(folder)


def test_without_a_user_the_placeholder_is_named(run, monkeypatch):
    with pytest.raises(ValueError, match="YOUR_USERNAME stands in it: build it with --user"):
        run("check", "ich-infer", "--user", "")
    with pytest.raises(ValueError, match="push: whose. give --user"):
        run("push", "ich-infer", "--user", "")


def test_a_kernel_that_is_not_there_is_answered_with_those_that_are(run):
    with pytest.raises(ValueError, match="which kernel. .*kernels has ich-explore, ich-infer, ich-train"):
        run("build", "../ich-infer", "--user", USER)


# Python and the image.


def test_no_module_uses_syntax_newer_than_python_3_11():
    sources = [*PACKAGE.glob("*.py"), *KERNELS.rglob("*.py")]
    assert [path for path in sources if not ast.parse(path.read_text(), feature_version=(3, 11))] == []


def interpreter(version: str) -> str:
    """Return a Python of this version: of those that ICH_PYTHONS names (paths, with : between), else of the machine."""
    named = os.environ.get("ICH_PYTHONS", "").split(":")
    for path in [*filter(None, named), shutil.which(f"python{version}") or ""]:
        ask = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if path and subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() == version:
            return path
    return pytest.skip(f"no Python {version} on this machine")


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_module_compiles_without_a_warning(version, tmp_path):
    code = (
        "import pathlib, sys\n"
        "for path in sys.argv[1:]: compile(pathlib.Path(path).read_text(encoding='utf-8'), path, 'exec')"
    )
    sources = [*PACKAGE.glob("*.py"), *KERNELS.rglob("*.py")]
    done = subprocess.run(
        [interpreter(version), "-W", "error", "-c", code, *map(str, sources)], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_the_kernel_predicts_the_same_on_other_pythons(version, home, packed, competition, tmp_path):
    python, needed = interpreter(version), "import torch, timm, cv2, pydicom, pyarrow, joblib, scipy, sklearn"
    tried = subprocess.run([python, "-c", needed], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"Python {version} here: {tried.stderr.strip().splitlines()[-1]}")
    inputs = image.lay_out(tmp_path, competition, {f"{USER}/ich-models": image.files_in(packed)}, "new")
    text = (built("ich-infer", tmp_path / "built") / "main.py").read_text()
    code, log, working = image.run(tmp_path, text, inputs, python=python)
    assert code == 0, log
    (working / "home.csv").write_bytes(local_submission(home))
    ours, theirs = (pd.read_csv(working / name).Label for name in ("home.csv", "submission.csv"))
    np.testing.assert_allclose(theirs, ours, atol=1e-5)  # other versions of torch add up in another order


def test_without_isal_the_pixels_are_the_same(competition, tmp_path):
    path = sorted((competition / "stage_2_test").glob("*.dcm"))[0]
    code = (
        "import hashlib, pathlib, sys; from ich_kaggle import png, render\n"
        "picture = render.picture(pathlib.Path(sys.argv[1]).read_bytes(), 'x', 64).image\n"
        "content = png.encode(picture); sys.stdout.buffer.write(content)\n"
        "print(png.zlib.__name__, hashlib.sha256(png.decode(content)).hexdigest(), file=sys.stderr)"
    )
    env = image.environment(image.hide(tmp_path))
    env["PYTHONPATH"] += f":{PACKAGE.parent}"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False, env=env)
    assert done.returncode == 0, done.stderr.decode()
    picture = render.picture(path.read_bytes(), "x", 64).image
    assert done.stderr.decode().split() == ["zlib", hashlib.sha256(picture).hexdigest()]
    np.testing.assert_array_equal(png.decode(done.stdout), picture)
    assert png.zlib.__name__ == "isal.isal_zlib"


def test_a_gpu_that_can_not_run_this_torch_gives_way_to_the_cpu_in_one_line(monkeypatch, caplog):
    def fail(*args, **options):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(training.torch, "zeros", fail)
    caplog.set_level("INFO")
    assert training.pick_device("auto").type == "cpu"
    (record,) = caplog.records
    assert "no kernel image is available" in record.getMessage()
    assert "\n" not in record.getMessage()
