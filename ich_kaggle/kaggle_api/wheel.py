"""The package as a wheel, built from its own files without build tools: the same sources give the same bytes."""

import base64
import hashlib
import io
import zipfile
from pathlib import Path

from ich_kaggle import __version__

WHEEL_NAME = f"ich_kaggle-{__version__}-py3-none-any.whl"
LISTING = "wheels.json"  # in a dataset: the hash of each wheel, which kernels/unpack.py compares
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
SUFFIXES = {".py", ".toml", ".html", ".css", ".js"}  # files of the package: code, recipes, html/web


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


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each wheel in `folder`, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.whl"))}


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
