import os
import shutil
from pathlib import Path

import pytest

from ich_kaggle import cache, folds, phantom
from ich_kaggle.common import paths

REAL = os.environ.get("ICH_REAL_DATA")


@pytest.fixture(scope="session")
def competition(tmp_path_factory) -> Path:
    """A tiny competition: 12 patients, about 6 slices of 64 px a study, no defects."""
    out = tmp_path_factory.mktemp("competition") / paths.SLUG
    phantom.main(
        ["--out", str(out), "--patients", "12", "--slices", "6", "--size", "64", "--test-fraction", "0.25"]
        + ["--defects", "0", "--workers", "1"]
    )
    return out


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real slices of the competition, in Kaggle's layout: a folder or a zip that ICH_REAL_DATA names."""
    if not REAL:
        pytest.skip("ICH_REAL_DATA names no folder or zip of real slices")
    return Path(REAL)


@pytest.fixture(scope="session")
def prepared(competition, tmp_path_factory) -> Path:
    """A work folder of the tiny competition: slice table, three folds, cache of 64 px. To be copied, not written to."""
    work = tmp_path_factory.mktemp("prepared") / "work"
    folds.main(["--data-dir", str(competition), "--work-dir", str(work), "--folds", "3", "--workers", "1"])
    cache.main(["--work-dir", str(work), "--cache-size", "64", "--workers", "1"])
    return work


@pytest.fixture
def work(prepared, tmp_path) -> Path:
    """A copy of the prepared work folder, to be written to."""
    return Path(shutil.copytree(prepared, tmp_path / "work"))
