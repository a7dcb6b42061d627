"""Runs what a kernel was pushed as, on inputs laid out as Kaggle mounts them, without Kaggle and without its client.

`layout` is "new" (/kaggle/input/competitions, /kaggle/input/datasets/<owner>) or "old" (both right in /kaggle/input).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ich_kaggle.common import paths

TIMEOUT = 300  # s
# What Kaggle's image lacks, or must not be imported in it.
ABSENT = ("isal", "kaggle", "kagglesdk")
ROOT = """set -e
mount -t tmpfs none {root}
for entry in /*; do
    name=$(basename "$entry")
    case "$name" in kaggle) continue;; esac
    if [ -L "$entry" ]; then cp -P "$entry" {root}/; continue; fi
    [ -d "$entry" ] || continue
    mkdir {root}/"$name" && mount --rbind "$entry" {root}/"$name"
done
mkdir -p {root}/kaggle/input {root}/kaggle/working {root}/absent {root}/scratch
mount -t tmpfs none {root}{package}
mount --bind {inputs} {root}/kaggle/input
mount -o remount,bind,ro {root}/kaggle/input
mount --bind {working} {root}/kaggle/working
mount --bind {absent} {root}/absent
exec chroot {root} sh -c 'cd /kaggle/working && exec "$@"' sh "$@"
"""
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--net")


def why_no_namespaces() -> str:
    """Return why a sandbox can't be made here; empty if it can."""
    if shutil.which("unshare") is None:
        return "no unshare on this machine"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no user namespaces: {tried.stderr.strip()}"


def lay_out(folder: Path, competition: Path, datasets: dict[str, dict[str, bytes]], layout: str) -> Path:
    """Return the input folder made in `folder`: the competition in its inner folder, and the files of `datasets`."""
    inputs = folder / "input"
    place = inputs / "competitions" if layout == "new" else inputs
    shutil.copytree(competition, place / paths.SLUG / paths.SLUG)
    for name, files in datasets.items():
        owner, slug = name.split("/")
        target = inputs / "datasets" / owner / slug if layout == "new" else inputs / slug
        target.mkdir(parents=True)
        for file, content in files.items():
            (target / file).write_bytes(content)
    return inputs


def hide(folder: Path) -> Path:
    """Return a folder that makes the packages `ABSENT` unimportable."""
    absent = folder / "absent"
    absent.mkdir()
    for name in ABSENT:
        (absent / f"{name}.py").write_text(f"raise ImportError('{name} is not in the image')\n")
    return absent


def environment(absent: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"HOME": "/nowhere", "PYTHONPATH": str(absent), "OMP_NUM_THREADS": "1"} | more


def run(
    folder: Path, text: str, inputs: Path, *, sandboxed: bool = False, python: str = sys.executable
) -> tuple[int, str, Path]:
    """Run the script `text` in `folder`; return its exit code, its log, and the working folder it leaves.

    Sandboxed: /kaggle/input is read-only, there is no network, and of the package only what the script brings.
    """
    working, absent = folder / "working", hide(folder)
    working.mkdir()
    (folder / "script.py").write_text(text, encoding="utf-8")
    shutil.copyfile(folder / "script.py", absent / "script.py")
    if sandboxed:
        root = folder / "root"
        root.mkdir()
        places = dict(root=root, package=Path(paths.__file__).parents[1], inputs=inputs, working=working, absent=absent)
        command = [*UNSHARE, "sh", "-c", ROOT.format(**places), "sh", python, "/absent/script.py"]
        env = environment(Path("/absent"), TMPDIR="/scratch")
    else:
        scratch = folder / "tmp"
        scratch.mkdir()
        command = [python, str(folder / "script.py")]
        env = environment(absent, KAGGLE_INPUT_DIR=str(inputs), TMPDIR=str(scratch))
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=working, check=False, timeout=TIMEOUT)
    return done.returncode, done.stdout + done.stderr, working


def files_in(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".made_by")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
