"""What the README tells people to type can be typed."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from ich_kaggle.common import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = sorted(set(re.findall(r"python -m ich_kaggle\.[^`\n&|#]*", README)))


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_of_the_readme_parses(line):
    module, *argv = shlex.split(line.removeprefix("python -m "))
    try:
        cli.parse(importlib.import_module(module).build_parser(), argv)
    except SystemExit as stop:  # a flag that prints and stops
        assert not stop.code


def test_the_readme_names_commands_and_files_that_exist():
    assert len(LINES) >= 8
    for name in re.findall(r"^    (\w+\.py) ", README, re.MULTILINE):
        assert (ROOT / "ich_kaggle" / name).is_file()
    for picture in re.findall(r"\]\(([^)]+\.png)\)", README):
        assert (ROOT / picture).is_file()


def test_the_file_tree_of_the_readme_is_whole():
    named = set(re.findall(r"^ +(\w+\.py)", README, re.MULTILINE))
    assert {path.name for path in (ROOT / "ich_kaggle").glob("*.py")} - {"__init__.py"} == named
