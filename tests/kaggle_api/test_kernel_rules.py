"""Kaggle's rules for kernels: every fault that it would refuse or ignore is named before a push."""

import json
import re
from pathlib import Path

import pytest

from ich_kaggle.common import paths
from ich_kaggle.kaggle_api import kernel_build, kernel_rules

KERNELS = Path(__file__).parents[2] / "kernels"


def built(name: str, out: Path) -> Path:
    return kernel_build.build(KERNELS / name, out / name, user="tester", attached=False)


def edit(folder: Path, **changes) -> None:
    path = folder / kernel_rules.METADATA
    metadata = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


RULES = {
    "an unknown key": ({"enable_gpus": True}, "unknown key enable_gpus, which Kaggle ignores"),
    "an id without owner": ({"id": "ich-infer"}, "id is ich-infer, not owner/name"),
    "an id with a version": ({"id": "tester/ich-infer/2"}, "id is tester/ich-infer/2, not owner/name"),
    "an id_no": ({"id_no": 7}, "unknown key id_no"),
    "a short name": ({"id": "tester/ich", "title": "ICH"}, "id has the name ich, shorter than 5 characters"),
    "a placeholder": ({"id": "YOUR_USERNAME/ich-infer"}, "it still contains YOUR_USERNAME: build it with --user"),
    "a short title": ({"title": "ICH"}, "title has 3 characters, not 5 to 50"),
    "a long title": ({"title": "ICH infer " * 6}, "title has 60 characters, not 5 to 50"),
    "another title": ({"title": "ICH inference"}, "title 'ICH inference' gives the address ich-inference, id has"),
    "no title": ({"title": None}, "title is missing"),
    "no code": (
        {"code_file": "other.py"},
        "code_file is other.py, but kernel-metadata.json has no such file beside it",
    ),
    "code elsewhere": (
        {"code_file": "../x/main.py"},
        "code_file is ../x/main.py, but kernel-metadata.json has no such file",
    ),
    "another language": ({"language": "r"}, "language is r, not python"),
    "another kind": ({"kernel_type": "app"}, "kernel_type is app, not script or notebook"),
    "a script as a notebook": (
        {"kernel_type": "notebook"},
        "code_file is main.py, but the name of a notebook ends in .ipynb",
    ),
    "yes": ({"is_private": "yes"}, 'is_private is "yes", not true or false'),
    "a number": ({"enable_gpu": 1}, "enable_gpu is 1, not true or false"),
    "internet by default": ({"enable_internet": None}, "enable_internet is missing"),
    "internet": ({"enable_internet": True}, "enable_internet is true: set it to false"),
    "a TPU": ({"enable_tpu": True}, "enable_tpu is true"),
    "no machine": ({"machine_shape": None}, "machine_shape is missing"),
    "a P100": ({"machine_shape": "NvidiaTeslaP100"}, "machine_shape is 'NvidiaTeslaP100', not NvidiaTeslaT4"),
    "a GPU unasked": ({"enable_gpu": False}, "machine_shape is NvidiaTeslaT4, but enable_gpu is false"),
    "a bare dataset": ({"dataset_sources": ["ich-models"]}, "dataset_sources holds ich-models, not owner/name"),
    "a dataset's address": (
        {"dataset_sources": ["datasets/a/b"]},
        "dataset_sources holds datasets/a/b, not owner/name",
    ),
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
    "a number as source": ({"dataset_sources": [3]}, "dataset_sources has an item that is not a string"),
    "another pinning": ({"docker_image_pinning_type": "newest"}, "docker_image_pinning_type is newest, not original"),
}


@pytest.mark.parametrize("rule", RULES)
def test_metadata_that_kaggle_would_refuse_or_ignore_is_named(tmp_path, rule):
    changes, message = RULES[rule]
    folder = built("ich-infer", tmp_path)
    edit(folder, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel_rules.check(folder)


CODE = {
    "too long": (
        b"x = '" + b"." * 1_000_000 + b"'\n",
        "main.py has 1000007 bytes, more than 900000: build it with --attached",
    ),
    "a byte order mark": (b"\xef\xbb\xbfx = 1\n", "main.py begins with a byte order mark"),
    "not UTF-8": (b"# caf\xe9\n", "main.py cannot be read"),
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
        kernel_rules.check(folder)


NOTEBOOKS = {
    "no kernelspec": (lambda book: book["metadata"].pop("kernelspec"), "has no metadata.kernelspec: Kaggle cannot run"),
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
        kernel_rules.check(folder)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xef\xbb\xbf{}", "not JSON in UTF-8 without"), (b"{", "not JSON"), (b"[]", "a list")]
)
def test_metadata_that_is_no_object_is_named(tmp_path, content, message):
    folder = built("ich-infer", tmp_path)
    (folder / kernel_rules.METADATA).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        kernel_rules.check(folder)
