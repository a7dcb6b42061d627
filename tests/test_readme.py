"""The documents: each command line can be typed, each name exists, and the table of recipes is current."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from ich_kaggle.common import cli, recipes

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ich_kaggle"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "tests/benchmarks/RESULTS.md", "submissions/README.md")
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
README = TEXT["README.md"]
TYPED = r"-m (?:-- )?(ich_kaggle\.(?!NAME)[^`\n&|#]*)"
LINES = sorted({line.strip() for text in TEXT.values() for line in re.findall(TYPED, text)})
COMMANDS = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))
TREE = re.search(r"^ich_kaggle/\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_of_the_documents_parses(line):
    module, *argv = shlex.split(line)
    try:
        cli.parse(importlib.import_module(module).build_parser(), argv)
    except SystemExit as stop:  # a flag that prints and stops
        assert not stop.code


def test_the_readme_is_short_and_its_two_setup_lines_are_those_that_ci_runs():
    setup = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(README.splitlines()) < 150 and len(LINES) >= 20
    assert [line.split(" && ")[-1] for line in setup] == [
        ".venv/bin/python -m ich_kaggle.demo",
        ".venv/bin/python -m pytest -n logical --dist loadfile",
    ]


def test_the_table_of_commands_lists_each_command_once():
    rows = re.search(r"^## All commands\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)[1]
    assert sorted(re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)) == COMMANDS


def test_the_table_of_recipes_is_that_of_the_recipes():
    assert recipes.markdown() in README, "paste what python -m ich_kaggle.train --recipes --markdown prints"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_linked_file_exists(name):
    for target in re.findall(r"\]\(([^)#\s]+)\)", TEXT[name]):
        assert "://" in target or ((ROOT / name).parent / target).is_file(), target


def test_the_file_tree_has_every_room_and_names_modules_that_exist():
    rooms = dict(re.findall(r"^    (\w+)/ +(.*)$", TREE, re.MULTILINE))
    assert set(rooms) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"recipes"}
    for room, text in rooms.items():
        listed = re.sub(r" \([^)]*\)", "", text).rpartition(": ")[2].split(", ") if room != "recipes" else []
        files = [PACKAGE / room / (name if name.endswith("/") else f"{name}.py") for name in listed]
        assert [path for path in files if not path.exists()] == []


def test_paths_in_the_contributing_guide_exist():
    named = re.findall(r"`((?:ich_kaggle|tests|kernels|submissions|\.ci)/[\w./-]*)`", TEXT["CONTRIBUTING.md"])
    assert len(named) > 10 and [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []
