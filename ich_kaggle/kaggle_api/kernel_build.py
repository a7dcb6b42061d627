"""A kernel as it is sent to Kaggle: its metadata, and one file of code that carries the package."""

import base64
import json
import textwrap
from pathlib import Path

from ich_kaggle.common import storage
from ich_kaggle.kaggle_api import kernel_rules, wheel

PLACE = 'WHEEL = ""'  # the line of kernels/unpack.py that the wheel replaces
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


def build(source: Path, out: Path, *, user: str, attached: bool) -> Path:
    """Return the folder `out`, with the kernel of the folder `source` built in it: one file of code, and its metadata.

    The code carries the package, unless it is `attached` as a dataset. Raises ValueError naming a file that cannot be
    read.
    """
    metadata = kernel_rules.read(source)
    filled = json.loads(json.dumps(metadata).replace(kernel_rules.PLACEHOLDER, user or kernel_rules.PLACEHOLDER))
    template = (source.parent / "unpack.py").read_text(encoding="utf-8")
    unpack = unpacking(template, None if attached else wheel.wheel())
    code = _read_code(source / "main.py")
    text = notebook(code, unpack) if metadata.get("kernel_type") == "notebook" else f"{unpack}\n\n{code}"
    with storage.writing(out / Path(str(metadata.get("code_file", "main.py"))).name) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    storage.write_json(out / kernel_rules.METADATA, filled)
    return out


def _read_code(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read ({error}): save it as UTF-8") from error


def unpacking(template: str, content: bytes | None) -> str:
    """Return the code of kernels/unpack.py, `template`, with the wheel `content` in it, or without one.

    Raises ValueError if the template has no place for it.
    """
    if template.count(PLACE) != 1:
        raise ValueError(f"kernels/unpack.py: {template.count(PLACE)} lines are {PLACE}, not one: restore the file")
    if content is None:
        return template
    text = "\n".join(textwrap.wrap(base64.b85encode(content).decode(), 116, break_on_hyphens=False))
    return template.replace(PLACE, f'WHEEL = """\n{text}\n"""')


def notebook(source: str, unpack: str) -> str:
    """Return `source`, cells in the percent format, as a notebook whose first cell is `unpack`, folded."""
    import jupytext

    cells = [{"cell_type": "code", "source": unpack, "metadata": {"jupyter": {"source_hidden": True}}}]
    for cell in jupytext.reads(source, "py:percent").cells:
        cells.append({"cell_type": cell.cell_type, "source": cell.source, "metadata": {}})
    for i, cell in enumerate(cells):
        cell["id"] = f"cell{i}"
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    metadata = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
