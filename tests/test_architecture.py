"""The house stands as drawn: imports go down only, and torch stays on its floor."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ich_kaggle

PACKAGE = Path(ich_kaggle.__file__).parent
GROUND = {"archive", "codestreams", "disk", "locks"}  # they import nothing of ours
WORDS = {"labels", "windows", "paths", "cli"}
FILES = {
    *("aggregates", "anatomy", "blending", "bundle", "calibration", "contexts", "convolution", "crop", "data_figures"),
    *("diary", "document", "elements", "figures", "formats", "intervals", "kaggle_client", "kernel_check", "leaks"),
    *("ledger", "metric", "parallel", "png", "sources", "spacing", "spans", "tables", "thresholds", "zips"),
}
PIXELS = {"dicom"}  # of one CT slice
# What is made of several files or scores, or fitted to them.
METHODS = {
    *("comparison", "data_report", "findings", "header", "hemorrhages", "kaggle_kernels", "packing"),
    *("page", "ranking", "render", "runs", "scanner", "selection", "shift", "smoothing", "stacking"),
}
STUDIES = {"frames", "piles", "reading_page"}  # what is found in files from anywhere
LEARNING = {
    *("augment", "datasets", "devices", "distributed", "explain", "gauges", "models", "sequence_models", "series"),
    *("training", "weights"),
}
TASKS = {"levels", "report_scores", "report_studies", "tasks"}  # what the commands are made of
JOBS = {"flags", "passes", "preflight", "scans"}  # what is made of tasks and levels, or asked for
PIPELINE = [
    *(
        "download",
        "phantom",
        "slices",
        "folds",
        "cache",
        "train",
        "predict",
        "sequence",
        "ensemble",
        "evaluate",
        "submit",
    ),
    *("report", "infer", "kernel", "demo"),
]
FLOORS = (GROUND, WORDS, FILES, PIXELS, METHODS, STUDIES, LEARNING, TASKS, JOBS, PIPELINE)
FLOOR = {name: k for k, names in enumerate(FLOORS) for name in names}
STANDARD = sys.stdlib_module_names | {"numpy", "ich_kaggle", "isal"}  # isal: zlib, faster, where it is installed


def imports(module: str, *, at_top: bool = False) -> set[str]:
    """Return what `module` imports: `ich_kaggle.x` for our own; only outside functions with `at_top`."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f) if n is not f}
    found = set()
    for node in ast.walk(tree):
        if at_top and node in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "ich_kaggle" else {node.module}
    return found


def own(module: str) -> set[str]:
    return {name.split(".")[1] for name in imports(module) if name.startswith("ich_kaggle.")} - {"__version__"}


def test_every_module_has_its_floor():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(set(FLOOR) - set(PIPELINE)))
def test_a_module_imports_lower_floors_only(module):
    assert {name for name in own(module) if FLOOR[name] >= FLOOR[module]} == set()


@pytest.mark.parametrize("module", PIPELINE)
def test_a_command_imports_only_commands_before_it(module):
    later = PIPELINE[PIPELINE.index(module) :]
    assert own(module) & set(later) == set()


@pytest.mark.parametrize("module", sorted(GROUND | WORDS))
def test_the_ground_floor_needs_small_packages_only(module):
    assert {name.split(".")[0] for name in imports(module, at_top=True)} - STANDARD <= {"filelock", "psutil"}


@pytest.mark.parametrize("module", sorted(set(FLOOR) - LEARNING))
def test_torch_is_imported_on_its_own_floor_only(module):
    assert {name.split(".")[0] for name in imports(module)} & {"torch", "timm", "torchvision"} == set()


def test_the_commands_without_learning_start_without_torch():
    code = "import sys\n" + "\n".join(
        f"import ich_kaggle.{m}" for m in ("folds", "cache", "ensemble", "evaluate", "submit", "report", "demo")
    )
    subprocess.run([sys.executable, "-c", code + "\nassert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("module", PIPELINE)
def test_help_is_the_docstring_and_prints_every_default(module):
    result = subprocess.run([sys.executable, "-m", f"ich_kaggle.{module}", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    first_line = ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))).splitlines()[0]
    assert first_line in result.stdout
    assert all(word in result.stdout for word in ("Reads:", "Writes:", "Example:", "(default:"))
    assert "(default: None)" not in result.stdout
