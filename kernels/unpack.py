# The code that `python -m ich_kaggle.kernel build` puts before a kernel's own: it makes the package, and the wheels of
# the datasets that `kernel weights` made, importable in this process and in its children, without internet.
import base64
import hashlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = ""
REPLACE = False  # True: wheels also replace packages that the image has


def listed(root: Path) -> list[Path]:
    """Return the wheels that `kernel weights` listed in the input folder `root`. Raises ValueError for another file."""
    found = []
    for listing in sorted([*root.glob("*/wheels.json"), *root.glob("datasets/*/*/wheels.json")]):
        for name, digest in json.loads(listing.read_text(encoding="utf-8")).items():
            wheel = listing.parent / Path(name).name
            if hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
                raise ValueError(f"{wheel} is not the file that was packed: upload the dataset again")
            found.append(wheel)
    return found


def is_new(wheel: Path) -> bool:
    """Return whether the image lacks the package of `wheel`, and say so if not."""
    try:
        version = importlib.metadata.version(wheel.name.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        return True
    print(f"{wheel}: not installed: the image has version {version}", flush=True)
    return False


def unpack(root: Path) -> str:
    """Return a folder that contains the package: from this file, else from a wheel in the input folder `root`."""
    folder = tempfile.mkdtemp(prefix="ich_kaggle-")
    wheels = listed(root)
    if WHEEL:
        zipfile.ZipFile(io.BytesIO(base64.b64decode("".join(WHEEL.split())))).extractall(folder)
        wheels = [wheel for wheel in wheels if not wheel.name.startswith("ich_kaggle-")]
    wheels = [wheel for wheel in wheels if REPLACE or is_new(wheel)]
    if wheels:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder]
        subprocess.run([*pip, *map(str, wheels)], check=True)
    return folder


if __name__ == "__main__":
    INPUT = Path(os.environ.get("KAGGLE_INPUT_DIR", "/kaggle/input"))
    print("Python", sys.version.split()[0], "with", *sorted(map(str, INPUT.glob("*/*"))), flush=True)
    sys.path.insert(0, unpack(INPUT))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
