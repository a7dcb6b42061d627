"""The package on systems that lack modules of POSIX, as Windows does."""

import subprocess
import sys

HIDDEN = ("fcntl", "resource", "pwd", "grp", "termios")
CODE = f"""
import pkgutil, sys, warnings
from pathlib import Path
import torch, timm, joblib, pandas, sklearn  # what others import is theirs
sys.modules |= dict.fromkeys({HIDDEN})
sys.modules.pop("filelock", None), sys.modules.pop("filelock._unix", None)
import ich_kaggle
for module in pkgutil.walk_packages(ich_kaggle.__path__, "ich_kaggle."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
from ich_kaggle.common import locks
with locks.locked(Path(sys.argv[1])):
    print("held")
"""


def test_every_module_is_imported_and_a_lock_held_without_the_modules_of_posix(tmp_path):
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "512")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr[-2000:]
