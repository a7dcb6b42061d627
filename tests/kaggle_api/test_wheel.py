"""The wheel that kernels carry: the whole package, the same bytes from the same sources, and enough for a report."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import made_report
import pytest

from ich_kaggle.common import paths
from ich_kaggle.html import app
from ich_kaggle.kaggle_api import wheel

PACKAGE = Path(paths.__file__).parents[1]


def contents(package: Path) -> dict[str, bytes]:
    """Return the files of a package by path, but for what Python compiled and the pictures of the README."""
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".png")]
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in files}


def test_another_process_builds_the_same_wheel_from_a_copy_with_other_times(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "ich_kaggle", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (tmp_path / "ich_kaggle").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    code = "import sys; from ich_kaggle.kaggle_api import wheel; sys.stdout.buffer.write(wheel.wheel())"
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env, cwd=tmp_path)
    assert done.stdout == wheel.wheel()


def test_the_wheel_is_one_that_pip_installs_with_every_room_recipe_and_page(tmp_path):
    file = tmp_path / wheel.WHEEL_NAME
    file.write_bytes(wheel.wheel())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target"]
    subprocess.run([*pip, tmp_path / "site", file], check=True)
    installed = contents(tmp_path / "site" / "ich_kaggle")
    assert installed == contents(PACKAGE)
    assert {"html/web/index.html", "recipes/cpu.toml", "scans/__init__.py"} <= installed.keys()


@pytest.mark.skipif(find_spec("plotly") is None, reason="the plots of the report take plotly")
def test_a_report_is_made_with_nothing_but_the_wheel(prepared, competition, tmp_path):
    work = made_report.work_folder(prepared, competition, tmp_path)
    (tmp_path / wheel.WHEEL_NAME).write_bytes(wheel.wheel())
    with zipfile.ZipFile(tmp_path / wheel.WHEEL_NAME) as archive:
        archive.extractall(tmp_path / "site")
    command = [sys.executable, "-m", "ich_kaggle.report", "--work-dir", str(work), "--studies", "2", "--no-bone"]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (work / "report").iterdir()}
    assert {path.name for path in app.WEB.iterdir()} <= made
