"""A kernel as it is sent to Kaggle: its metadata, and one file of code that carries the package."""

import ast
import base64
import json
import re
import textwrap
from pathlib import Path

from ich_kaggle.common import storage
from ich_kaggle.kaggle_api import kernel_rules, wheel

PLACE = 'WHEEL = ""'  # the line of kernels/unpack.py that the wheel replaces
SETTINGS = re.compile(r"^SETTINGS = (.*)$", re.MULTILINE)  # of a kernel, in JSON
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


def build(source: Path, out: Path, user: str, settings: dict | None = None, **changes) -> Path:
    """Return the folder `out`, with the kernel of the folder `source` built in it: its metadata, and one file of code
    that carries the package.

    `settings` replace those in the code, and `changes` keys of the metadata. Raises ValueError naming a file that
    cannot be read.
    """
    metadata = kernel_rules.read(source) | changes
    filled = json.loads(json.dumps(metadata).replace(kernel_rules.PLACEHOLDER, user or kernel_rules.PLACEHOLDER))
    # Not base 85: IPython strips `>>>` at the start of a line, inside a string too.
    packed = "\n".join(textwrap.wrap(base64.b64encode(wheel.wheel()).decode(), 116, break_on_hyphens=False))
    unpack = (source.parent / "unpack.py").read_text(encoding="utf-8").replace(PLACE, f'WHEEL = """\n{packed}\n"""')
    with storage.reading(source / "main.py", "save it as UTF-8"):
        code = (source / "main.py").read_text(encoding="utf-8")
    if settings is not None:
        line = f"SETTINGS = {json.dumps(settings)!r}"
        code = SETTINGS.sub(lambda _: line, code)
    text = notebook(code, unpack) if metadata.get("kernel_type") == "notebook" else f"{unpack}\n\n{code}"
    with storage.writing(out / Path(str(metadata.get("code_file", "main.py"))).name) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    storage.write_json(out / kernel_rules.METADATA, filled)
    return out


def settings_in(code: str) -> dict:
    """Return the settings that `build` wrote into the `code` of a kernel; {} without any."""
    found = SETTINGS.search(code)
    return dict(json.loads(ast.literal_eval(found[1]))) if found else {}


def notebook(source: str, unpack: str) -> str:
    """Return `source`, cells in the percent format, as a notebook whose first cell is `unpack`, folded."""
    import jupytext
    import nbformat
    from nbformat import v4

    book = jupytext.reads(source, "py:percent")
    book.cells.insert(0, v4.new_code_cell(unpack, metadata={"jupyter": {"source_hidden": True}}))
    for i, cell in enumerate(book.cells):
        cell.id = f"cell{i}"  # not at random: the same sources give the same bytes
    book.metadata = {"kernelspec": KERNELSPEC}
    return nbformat.writes(book) + "\n"
