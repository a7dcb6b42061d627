"""Train the folds of a run until the session's hours are over, predict with them, and keep all of it in the output.

`python -m ich_kaggle.kernel train` writes the line SETTINGS and attaches the output of the sessions before this one.
Output: runs/RUN/ with checkpoints, tables/ of the work folder, and session.json, which says how the session went.
Internet, or a dataset with ARCH.safetensors (`kernel weights --file`), gives the ImageNet weights.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from ich_kaggle import folds, predict, train
from ich_kaggle.common import paths, storage
from ich_kaggle.common.runs import Run
from ich_kaggle.learning import fit, handover

SETTINGS = '{"session": 1, "run": "resnet50", "toml": "", "fold": [0], "folds": 5, "seed": 0, "hours": 10.0}'

OUTPUT = Path.cwd()
KEPT = 16e9  # bytes for the embeddings of all folds: Kaggle keeps 20 GB of output
TABLES = ("defects.csv", "folds.json", "folds.csv", "slices.parquet")  # the last marks them as complete


class Session:
    def __init__(self, settings: dict):
        self.settings, self.end = settings, time.monotonic() + 3600 * settings["hours"]
        self.work = Path(tempfile.gettempdir()) / "work"  # on a larger disk than the output, and not kept
        self.run = Run(self.work, settings["run"])
        self.shared = ["--work-dir", str(self.work)]

    def note(self, **facts) -> None:
        storage.write_json(OUTPUT / "session.json", {"session": self.settings["session"], **facts})

    def begin(self) -> None:
        """Link the work folder to the output and to the weights, and take over the folds of the sessions before."""
        for folder in (self.work / "weights", OUTPUT / "runs"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.work / "runs").symlink_to(OUTPUT / "runs")
        for path in sorted([*paths.INPUT.glob("datasets/*/*/*.safetensors"), *paths.INPUT.glob("*/*.safetensors")]):
            (self.work / "weights" / path.name).symlink_to(path)
        self.note(ready=False)
        for path in sorted([*paths.INPUT.glob("notebooks/*/*/session.json"), *paths.INPUT.glob("*/session.json")]):
            taken = handover.take(path.parent / "runs" / self.run.name, self.run)
            print(f"{path.parent}: session {storage.read_json(path)['session']}, folds taken over: {taken}", flush=True)
        self.note(ready=True)

    def recipe(self) -> str:
        """Return the recipe: a name, or the file that the settings hold."""
        if not self.settings["toml"]:
            return self.run.name
        path = self.work / f"{self.run.name}.toml"
        path.write_text(self.settings["toml"], encoding="utf-8")
        return str(path)

    def train(self) -> None:
        split = ["--folds", str(self.settings["folds"]), "--seed", str(self.settings["seed"])]
        folds.main([*self.shared, *split])
        for name in TABLES:
            if (self.work / name).exists():
                with storage.writing(OUTPUT / "tables" / name) as temporary:
                    shutil.copyfile(self.work / name, temporary)
        self.predict()  # with the folds that a session before finished
        hours = max(0, self.end - time.monotonic()) / 3600
        chosen = ["--fold", *map(str, self.settings["fold"]), "--run", self.run.name, "--hours", str(hours)]
        try:
            train.main([*self.shared, "--recipe", self.recipe(), *chosen])
        except SystemExit as stop:
            if stop.code != fit.TO_BE_RESUMED:
                raise
        self.predict()

    def predict(self) -> None:
        """Predict with each finished fold while there is time."""
        for k in self.settings["fold"]:
            if k in self.run.finished and k not in self.run.predicted and time.monotonic() < self.end:
                predict.main([*self.shared, "--run", self.run.name, "--fold", str(k)])
                path = self.run.fold(k) / "embeddings.npy"
                if path.stat().st_size * self.settings["folds"] > KEPT:
                    print(f"{path}: removed, those of all folds exceed {KEPT / 1e9:.0f} GB of output", flush=True)
                    path.unlink()


if __name__ == "__main__":
    session = Session(json.loads(SETTINGS))
    session.begin()
    try:
        session.train()
    except SystemExit as stop:
        session.note(ready=True, error=str(stop.code).replace(f" --work-dir {session.work}", ""))  # read elsewhere
        sys.exit(stop.code)
    print(f"session {session.settings['session']} is over; folds complete: {session.run.predicted}", flush=True)
