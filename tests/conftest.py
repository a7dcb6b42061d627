import itertools
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ich_kaggle import cache, ensemble, folds, kernel, phantom, submit, train
from ich_kaggle.common import paths

REAL = os.environ.get("ICH_REAL_DATA")


def pytest_configure(config):
    if config.getoption("numprocesses", None):  # threads of OpenMP spin when processes share the cores
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_terminal_summary(terminalreporter):
    """Say how many faults were tried, and how many of them lost something."""
    tried, lost = Counter(), Counter()
    for report in itertools.chain(*terminalreporter.stats.values()):
        for name, value in getattr(report, "user_properties", ()):
            if name == "fault" and report.when == "call":
                part, what, n, n_lost = value
                tried[part, what] += n
                lost[part] += n_lost
    for part, found in itertools.groupby(sorted(tried), key=lambda key: key[0]):
        counts = {what: tried[part, what] for _, what in found}
        listed = ", ".join(f"{what} {n}" for what, n in counts.items())
        terminalreporter.write_line(f"faults: {part}: {sum(counts.values())} tried, {lost[part]} lost ({listed})")


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
def n_test(competition) -> int:
    """The number of test slices."""
    return len(list((competition / "stage_2_test").iterdir()))


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


@pytest.fixture(scope="session")
def home(competition, tmp_path_factory) -> Path:
    """A work folder with two runs of two folds, their ensemble `both`, and the submission made of it."""
    work = tmp_path_factory.mktemp("home") / "work"
    folds.main(["--data-dir", str(competition), "--work-dir", str(work), "--folds", "2", "--workers", "1"])
    for arch in ("test_efficientnet", "test_resnet"):
        small = ["--arch", arch, "--image-size", "64", "--cache-size", "64", "--batch-size", "16", "--epochs", "1"]
        train.main([*small, "--weights", "none", "--work-dir", str(work), "--workers", "1"])
    ensemble.main(["--name", "both", "--work-dir", str(work), "--workers", "1", "--method", "equal"])
    submit.main(["--ensemble", "both", "--dry-run", "--work-dir", str(work), "--submissions-dir", str(work / "csv")])
    return work


@pytest.fixture(scope="session")
def packed(home, tmp_path_factory) -> Path:
    """The folder that `kernel weights` packs."""
    out = tmp_path_factory.mktemp("packed") / "ich-models"
    return kernel.pack(out, *kernel.gather(home, "both"))
