"""Kaggle's rules for kernels: every fault that it would refuse or ignore is named before a push."""

import json
import re
from pathlib import Path

import pytest

from ich_kaggle.common import paths
from ich_kaggle.kaggle_api import kernel_build, kernel_rules

KERNELS = Path(__file__).parents[2] / "kernels"


def built(name: str, out: Path) -> Path:
    return kernel_build.build(KERNELS / name, out / name, "tester")


def edit(folder: Path, **changes) -> None:
    path = folder / kernel_rules.METADATA
    metadata = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


RULES = {
    "an unknown key": ({"enable_gpus": True}, "unknown key enable_gpus, which Kaggle ignores"),
    "an id without owner": ({"id": "ich-infer"}, "id is ich-infer, not owner/name"),
    "an id with a version": ({"id": "tester/ich-infer/2"}, "id is tester/ich-infer/2, not owner/name"),
    "a short name": ({"id": "tester/ich", "title": "ICH"}, "id is tester/ich, not owner/name with a name of 5 or more"),
    "a placeholder": ({"id": "YOUR_USERNAME/ich-infer"}, "it still contains YOUR_USERNAME: build it with --user"),
    "a long title": ({"title": "ICH infer " * 6}, "title has 60 characters, not 5 to 50"),
    "another title": ({"title": "ICH inference"}, "title 'ICH inference' gives the address ich-inference, id has"),
    "no title": ({"title": None}, "title is missing: set it to a string"),
    "no code": ({"code_file": "other.py"}, "code_file is other.py, not a .py file beside kernel-metadata.json"),
    "another kind": ({"kernel_type": "app"}, "code_file is main.py, not a script or notebook file beside"),
    "a script as a notebook": ({"kernel_type": "notebook"}, "code_file is main.py, not a .ipynb file beside"),
    "yes": ({"is_private": "yes"}, 'is_private is "yes": set it to true or false'),
    "internet": ({"enable_internet": True}, "enable_internet is true: set it to false, only training needs it"),
    "a TPU": ({"enable_tpu": True}, "enable_tpu is true"),
    "a P100": ({"machine_shape": "NvidiaTeslaP100"}, "with this enable_gpu it must be 'NvidiaTeslaT4'"),
    "a GPU unasked": ({"enable_gpu": False}, "machine_shape is 'NvidiaTeslaT4', with this enable_gpu it must be ''"),
    "no competition": ({"competition_sources": []}, f"competition_sources lacks {paths.SLUG}"),
    "one source": ({"dataset_sources": "a/b"}, 'dataset_sources is "a/b": set it to a list'),
}


@pytest.mark.parametrize("rule", RULES)
def test_metadata_that_kaggle_would_refuse_or_ignore_is_named(tmp_path, rule):
    changes, message = RULES[rule]
    folder = built("ich-infer", tmp_path)
    edit(folder, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel_rules.check(folder)


CODE = {
    "too long": (b"x = '" + b"." * 1_000_000 + b"'\n", "main.py has 1000007 bytes, more than 900000"),
    "no Python": (b"x = = 1\n", "main.py is not Python 3.11: line 1"),
    "Python 3.12": (b"type X = int\n", "main.py is not Python 3.11: line 1"),
}


@pytest.mark.parametrize("fault", CODE)
def test_code_that_kaggle_can_not_run_is_named(tmp_path, fault):
    content, message = CODE[fault]
    folder = built("ich-infer", tmp_path)
    (folder / "main.py").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel_rules.check(folder)


def test_a_notebook_that_is_not_python_is_named(tmp_path):
    folder = built("ich-explore", tmp_path)
    path = folder / "ich-explore.ipynb"
    book = json.loads(path.read_text())
    book["cells"][2].update(source="x = = 1")
    path.write_text(json.dumps(book))
    with pytest.raises(ValueError, match="is not Python 3.11: line 1"):
        kernel_rules.check(folder)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf{}", b"{", b"[3]"])
def test_metadata_that_is_no_object_is_named(tmp_path, content):
    folder = built("ich-infer", tmp_path)
    (folder / kernel_rules.METADATA).write_bytes(content)
    with pytest.raises(ValueError, match="kernel-metadata.json: not a JSON object in UTF-8"):
        kernel_rules.check(folder)
