"""Folds side by side, one per device: each is trained by a command of its own, whose lines are shown with its fold."""

import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import joblib
import torch

from ich_kaggle.common import cli
from ich_kaggle.learning import fit


def run(command: list[str], folds: list[int], devices: list[torch.device], until: float = math.inf) -> None:
    """Run `python -m` with `command`, `--fold` and `--device`, for each of the `folds` on the next free device.

    After `until`, of time.monotonic(), each stops to be resumed. A fold that fails does not stop the others. When all
    have ended, raises RuntimeError naming those that failed, or SystemExit if some are to be resumed.
    """
    free, started = SimpleQueue(), []
    for device in devices:
        free.put(device)
    env = _environment(max(1, min(len(devices), len(folds))))

    def one(k: int) -> int:
        device = free.get()
        try:
            return train(k, device)
        finally:
            free.put(device)

    def train(k: int, device) -> int:
        hours = max(0, until - time.monotonic()) / 3600
        if not hours and started:  # the time was over before the turn of this fold
            return fit.TO_BE_RESUMED
        argv = [sys.executable, "-m", *command, "--fold", str(k), "--device", str(device)]
        argv += ["--hours", str(hours)] * (hours < math.inf)
        both = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with subprocess.Popen(argv, env=env, text=True, errors="replace", **both) as process:
            started.append(process)
            for line in process.stdout:
                cli.say(f"fold {k}, {device}: {line.rstrip()}")
        return process.returncode

    with ThreadPoolExecutor(len(devices)) as pool:
        try:
            codes = dict(zip(folds, pool.map(one, folds), strict=True))
        except BaseException:  # Ctrl-C: a notebook sends it to this process alone
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.terminate()
            raise
    _raise(codes)


def _environment(n: int) -> dict[str, str]:
    """Return the environment of `n` commands, which share cores and memory of the machine as those of torchrun do."""
    share = max(1, joblib.cpu_count() // n)
    n_threads = min(int(os.environ.get("OMP_NUM_THREADS", share)), share)
    env = os.environ | {"LOCAL_WORLD_SIZE": str(n), "OMP_NUM_THREADS": str(n_threads)}
    here = Path(cli.__file__).parents[2]  # of this package, which a kernel may have unpacked anywhere
    env["PYTHONPATH"] = os.pathsep.join([str(here), *filter(None, [env.get("PYTHONPATH")])])
    return env


def _raise(codes: dict[int, int]) -> None:
    """Raise RuntimeError or SystemExit, unless the exit codes say that all folds are trained."""
    resumed = [k for k, code in codes.items() if code == fit.TO_BE_RESUMED]
    if failed := [str(k) for k, code in codes.items() if code and k not in resumed]:
        others = "finished or to be resumed" if resumed else "finished"
        raise RuntimeError(f"fold {', '.join(failed)} failed, see its lines above; the other folds are {others}")
    if resumed:
        cli.say(f"fold {', '.join(map(str, resumed))}: to be resumed by the same command")
        raise SystemExit(fit.TO_BE_RESUMED)
