"""Slices of phantoms per second and core: whole studies, and as `pretrain` learns from them, windowed and augmented.

Checkouts are measured in turn, study by study, so that other load on the machine meets all of them; a study's time is
the least CPU time of all rounds.
Example: python tests/benchmarks/bench_phantoms.py . ../older-checkout
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

STUDIES = 12
KINDS = {"plain, drawn": "plain", "wide, drawn": "wide", "wide, as pretrain learns": ""}
DRAW = """
import sys, time
import cv2
from ich_kaggle.learning import augment, endless_phantoms, slice_model
from ich_kaggle.synthetic import studies, variety
cv2.setNumThreads(1)
size = int(sys.argv[1])
config = slice_model.SliceConfig(arch="", image_size=size, cache_size=size)
endless = endless_phantoms.PhantomStudies(config, augment.Augment(), 0)
for line in sys.stdin:
    kind, number = line.split(",")
    started = time.process_time()
    if kind:
        drawn = list(studies.draw([int(number)], size=size, variety=variety.VARIETIES[kind]))
    else:
        drawn = endless[0, int(number)][0]
    print(len(drawn), time.process_time() - started, flush=True)
"""


def measure(checkouts: list[str], size: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the slices per second of CPU time of each checkout, (n,), for each of KINDS."""
    command = [sys.executable, "-c", DRAW, str(size)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    drawers = [subprocess.Popen(command, cwd=one, env=environment | {"PYTHONPATH": "."}, **pipes) for one in checkouts]
    found = {}
    for name, kind in KINDS.items():
        seconds = np.full((len(drawers), STUDIES), np.inf)
        slices = np.zeros_like(seconds)
        for _ in range(rounds):
            for number in range(STUDIES):
                for i, drawer in enumerate(drawers):
                    drawer.stdin.write(f"{kind},{number}\n")
                    slices[i, number], took = map(float, drawer.stdout.readline().split())
                    seconds[i, number] = min(seconds[i, number], took)
        found[name] = slices.sum(axis=1) / seconds.sum(axis=1)
    for drawer in drawers:
        drawer.communicate()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="+", help="folders that hold ich_kaggle")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 112], help="px")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    if lacking := [one for one in options.checkouts if not (Path(one) / "ich_kaggle" / "__init__.py").is_file()]:
        parser.error(f"no ich_kaggle in {', '.join(lacking)}")
    for size in options.sizes:
        for name, rates in measure(options.checkouts, size, options.rounds).items():
            print(f"{size} px, {name}: " + " ".join(f"{rate:.0f}" for rate in rates) + " slices per second and core")
