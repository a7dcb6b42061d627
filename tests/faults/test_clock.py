"""A clock that was set back, and files from the future: no command goes by which file is older."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import stages

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
ALL = """
import importlib, json, sys
for name, argv in json.loads(sys.argv[1]):
    importlib.import_module(f"ich_kaggle.{name}").main(argv)
"""


def set_times(project: stages.Project, seed: int) -> None:
    """Give each file but the data a time of its own, decades to either side of now."""
    draw = random.Random(seed)
    for path in sorted(project.folder.rglob("*")):
        if "input" not in path.parts:
            time = draw.randrange(0, 4_000_000_000)
            os.utime(path, (time, time))


@pytest.mark.slow
@pytest.mark.parametrize("name", stages.NAMES)
def test_times_of_files_in_any_order_change_nothing(project, name):
    with stages.trial("clock, times of files", name):
        project.reset(name)
        set_times(project, seed=len(name))
        project.make(name)
        assert project.differences(name) == []
        set_times(project, seed=len(name) + 1)
        done = project.run(name)
        assert "exists: nothing to do" in done.out or "Kaggle has these numbers" in done.line
        assert project.differences(name) == []


@pytest.mark.slow
@pytest.mark.skipif(LIBRARY is None, reason="Debian's faketime is not installed")
def test_a_clock_set_back_between_stages_changes_nothing(project, server):
    """A process runs some stages, a year before the process that ran those before them."""
    project.reset("slices")
    env = os.environ | project.env | {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    for years, names in enumerate((["slices", "folds", "cache"], ["train", "predict"], stages.NAMES[6:]), 1):
        commands = [(name, [*stages.STAGE[name].flags.split(), "--workers", "1"]) for name in names]
        argv = [sys.executable, "-c", ALL, json.dumps(commands)]
        done = subprocess.run(
            argv, cwd=project.folder, env=env | {"FAKETIME": f"-{years}y"}, capture_output=True, text=True, check=False
        )
        for name in names:
            with stages.trial("clock, set back", name):
                assert done.returncode == 0, done.stderr
                assert project.differences(names[-1]) == []
    assert len(server.submissions) == 1
