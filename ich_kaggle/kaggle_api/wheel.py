"""The package as one wheel, and the single file of a kernel that carries it. The same sources give the same bytes."""

import base64
import hashlib
import io
import json
import textwrap
import zipfile
from pathlib import Path

from ich_kaggle import __version__

WHEEL_NAME = f"ich_kaggle-{__version__}-py3-none-any.whl"
PLACE = 'WHEEL = ""'  # what kernels/unpack.py holds where the wheel goes
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold
SUFFIXES = {".py", ".toml", ".html", ".css", ".js"}  # of the files of the package: code, recipes, html/web
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


def wheel() -> bytes:
    """Return the package as a wheel that pip installs."""
    root, info = Path(__file__).parents[1], f"ich_kaggle-{__version__}.dist-info"
    sources = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)
    files = {f"ich_kaggle/{path.relative_to(root).as_posix()}": path.read_bytes() for path in sources}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: ich_kaggle\nVersion: {__version__}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: ich_kaggle\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = f"{info}/RECORD"
    files[record] = "".join([*(_record(*file) for file in files.items()), f"{record},,\n"]).encode()
    return _zip(files)


def _record(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"{name},sha256={digest},{len(content)}\n"


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name, EPOCH)
            member.compress_type, member.create_system, member.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(member, content, compresslevel=9)
    return buffer.getvalue()


def unpacking(template: str, content: bytes | None) -> str:
    """Return the code of kernels/unpack.py, `template`, with the wheel `content` in it, or without one.

    Raises ValueError if the template has no place for it.
    """
    if template.count(PLACE) != 1:
        raise ValueError(f"kernels/unpack.py holds {PLACE} {template.count(PLACE)} times, not once")
    if content is None:
        return template
    text = "\n".join(textwrap.wrap(base64.b85encode(content).decode(), 116, break_on_hyphens=False))
    return template.replace(PLACE, f'WHEEL = """\n{text}\n"""')


def script(source: str, unpack: str) -> str:
    """Return the script `source` behind the code that makes the package importable."""
    return f"{unpack}\n\n{source}"


def notebook(source: str, unpack: str) -> str:
    """Return `source`, cells in the percent format, as a notebook whose first cell is `unpack`, folded away."""
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
