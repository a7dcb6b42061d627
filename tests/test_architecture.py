"""The rooms of the package: imports go down only, commands stand alone, and torch stays in its rooms."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ich_kaggle

PACKAGE = Path(ich_kaggle.__file__).parent
# A room imports rooms of lower layers only; rooms of one layer do not know each other.
LAYERS = (
    {"common"},
    {"dicom", "kaggle_api", "synthetic"},
    {"learning", "scoring"},
    {"second_level", "html"},
    {"scans"},
)
LAYER = {room: k for k, rooms in enumerate(LAYERS) for room in rooms}
TORCH, TORCH_ROOMS = {"torch", "timm", "torchvision"}, {"learning", "second_level", "scans"}
COMMANDS = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))
MODULES = sorted(str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.glob("*/*.py"))


def imports(module: str) -> set[str]:
    """Return what `module` imports, in its functions too, as dotted names: `ich_kaggle.common.cli` for our own."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(module: str) -> set[str]:
    """Return the rooms and the commands that `module` imports."""
    return {name.split(".")[1] for name in imports(module) if name.startswith("ich_kaggle.")} - {"__version__"}


def test_every_folder_has_its_layer():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(LAYER)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_itself_and_lower_layers_only(module):
    room = module.split("/")[0]
    assert {name for name in own(module) - {room} if LAYER.get(name, 99) >= LAYER[room]} == set()


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_imports_no_other_command(module):
    assert own(module) - set(LAYER) == set()


@pytest.mark.parametrize("module", [*MODULES, *COMMANDS])
def test_torch_is_imported_in_its_rooms_only(module):
    if module.split("/")[0] not in TORCH_ROOMS:
        assert {name.split(".")[0] for name in imports(module)} & TORCH == set()


def test_the_commands_without_learning_start_without_torch_or_the_client_of_kaggle():
    code = "import sys\n" + "\n".join(
        f"import ich_kaggle.{m}" for m in ("folds", "cache", "ensemble", "evaluate", "submit", "report", "demo")
    )
    subprocess.run(
        [sys.executable, "-c", code + "\nassert not {'torch', 'kaggle', 'kagglesdk'} & set(sys.modules)"], check=True
    )


@pytest.mark.parametrize("module", COMMANDS)
def test_help_is_the_docstring_and_prints_every_default(module, capsys):
    command = importlib.import_module(f"ich_kaggle.{module}")
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    found = capsys.readouterr().out
    assert stop.value.code == 0 and found.startswith(f"usage: python -m ich_kaggle.{module} [-h]")
    assert command.__doc__.splitlines()[0] in found
    assert all(word in found for word in ("Reads:", "Writes:", "Example:", "(default:"))
    assert "(default: None)" not in found


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_ends_in_its_main(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert source.endswith('\n\nif __name__ == "__main__":\n    main()\n')
