"""Runs what a kernel was pushed as, on inputs laid out as Kaggle mounts them, without Kaggle and without its client.

`layout` is "new" (/kaggle/input/competitions, /kaggle/input/datasets/<owner>) or "old" (both right in /kaggle/input).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
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


def lay_out(
    folder: Path,
    competition: Path,
    datasets: dict[str, dict[str, bytes]],
    layout: str,
    kernels: dict[str, dict[str, bytes]] = {},  # noqa: B006
) -> Path:
    """Return the input folder made in `folder`: the competition in its inner folder, the files of `datasets` and the
    output of `kernels`, both by owner/name."""
    inputs = folder / "input"
    place = inputs / "competitions" if layout == "new" else inputs
    shutil.copytree(competition, place / paths.SLUG / paths.SLUG)
    for kind, sources in (("datasets", datasets), ("notebooks", kernels)):
        for name, files in sources.items():
            target = inputs / kind / name if layout == "new" else inputs / name.split("/")[1]
            target.mkdir(parents=True)
            for file, content in files.items():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                (target / file).write_bytes(content)
    return inputs


def hide(folder: Path) -> Path:
    """Return a folder that makes the packages `ABSENT` unimportable."""
    absent = folder / "absent"
    absent.mkdir()
    for name in ABSENT:
        (absent / f"{name}.py").write_text(f"raise ImportError('{name} is not in the image')\n")
    return absent


KILL = """
import os, signal, sys
left = int(os.environ.pop("ICH_KILL_AT", "0"))
def hook(event, args):
    global left
    if event in ("os.rename", "os.mkdir", "shutil.copyfile") and ("working" in str(args) or "runs" in str(args)):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
if left:
    sys.addaudithook(hook)
"""


def environment(absent: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"HOME": "/nowhere", "PYTHONPATH": str(absent), "OMP_NUM_THREADS": "1"} | more


def run(
    folder: Path, text: str, inputs: Path, *, sandboxed: bool = False, python: str = sys.executable, kill_at: int = 0
) -> tuple[int, str, Path]:
    """Run the script `text` in `folder`; return its exit code, its log, and the working folder it leaves.

    Sandboxed: /kaggle/input is read-only, there is no network, and of the package only what the script brings. It is
    killed before the file or folder number `kill_at` in the kept output is moved, copied or made.
    """
    working, absent = folder / "working", hide(folder)
    (absent / "sitecustomize.py").write_text(KILL)
    more = {"ICH_KILL_AT": str(kill_at)}
    working.mkdir()
    (folder / "script.py").write_text(text, encoding="utf-8")
    shutil.copyfile(folder / "script.py", absent / "script.py")
    if sandboxed:
        root = folder / "root"
        root.mkdir()
        places = dict(root=root, package=Path(paths.__file__).parents[1], inputs=inputs, working=working, absent=absent)
        command = [*UNSHARE, "sh", "-c", ROOT.format(**places), "sh", python, "/absent/script.py"]
        env = environment(Path("/absent"), TMPDIR="/scratch", **more)
    else:
        scratch = tempfile.mkdtemp(prefix="ich-")  # a short path, for the sockets of a loader's workers
        command = [python, str(folder / "script.py")]
        env = environment(absent, KAGGLE_INPUT_DIR=str(inputs), TMPDIR=scratch, **more)
    # A file, not a pipe, and a group: the workers of a script that is killed outlive it otherwise.
    with (folder / "log").open("w+b") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=working, start_new_session=True)
        try:
            code = process.wait(TIMEOUT)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not sandboxed:
                shutil.rmtree(scratch, ignore_errors=True)
        return code, (folder / "log").read_text(encoding="utf-8", errors="replace"), working


def files_in(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".made_by")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
