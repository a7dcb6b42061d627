# The code that `python -m ich_kaggle.kernel build` puts before a kernel's own: it makes the package, and every wheel in
# the attached datasets, importable in this process and in its children, without internet.
import base64
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = ""


def unpack(root: Path) -> str:
    """Return a folder that contains the package: from this file, else from a wheel in the input folder `root`."""
    folder = tempfile.mkdtemp(prefix="ich_kaggle-")
    wheels = sorted([*root.glob("*/*.whl"), *root.glob("datasets/*/*/*.whl")])
    if WHEEL:
        zipfile.ZipFile(io.BytesIO(base64.b85decode("".join(WHEEL.split())))).extractall(folder)
        wheels = [wheel for wheel in wheels if not wheel.name.startswith("ich_kaggle-")]
    if wheels:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder]
        subprocess.run([*pip, *map(str, wheels)], check=True)
    return folder


if __name__ == "__main__":
    INPUT = Path(os.environ.get("KAGGLE_INPUT_DIR", "/kaggle/input"))
    print("Python", sys.version.split()[0], "with", *sorted(map(str, INPUT.glob("*/*"))), flush=True)
    sys.path.insert(0, unpack(INPUT))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
