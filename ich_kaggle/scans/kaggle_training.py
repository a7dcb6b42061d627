"""Folds trained at Kaggle: sessions are pushed until the folds are complete, and what they leave is fetched."""

import argparse
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ich_kaggle.common import cli, paths, recipes, storage, tables
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.kaggle_api import kernel_sessions, kernels
from ich_kaggle.kaggle_api.kernel_sessions import Sessions
from ich_kaggle.learning import handover, training_options

log = logging.getLogger(__name__)

TABLES = ("defects.csv", "folds.json", "folds.csv")  # beside slices.parquet, which is written last
IDLE = 3  # sessions in a row that bring no fold further, before the training is given up


def wanted(path: Path, run: Run, fold: list[int] | None, n_folds: int | None, hours: float) -> dict:
    """Return the settings of the next session: the recipe of the file `path` itself, the run, its folds and the hours.

    Raises ValueError for a recipe that `train` would refuse, or a fold that will not exist.
    """
    known = tables.folds_settings(run.work_dir)
    if "from" in known or (not known and paths.folds(run.work_dir).exists()):
        raise ValueError(f"{paths.folds(run.work_dir)}: folds from elsewhere cannot be sent: give another --work-dir")
    made = {"folds": n_folds or known.get("folds", 5), "seed": known.get("seed", 0)}
    if known:
        storage.same_settings(paths.folds(run.work_dir), known, made, "give another --work-dir, or no --folds")
    chosen = list(range(made["folds"])) if fold is None else fold
    if max(chosen) >= made["folds"]:
        raise ValueError(f"--fold {max(chosen)}: the folds are 0 to {made['folds'] - 1}: give --folds for more")
    flags_of(path)
    return {"run": run.name, "toml": path.read_text(encoding="utf-8"), "fold": chosen, **made, "hours": hours}


def flags_of(recipe: Path) -> argparse.Namespace:
    """Return the flags of `train` with those of the file `recipe`. Raises ValueError for one that does not exist."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    training_options.add(parser)
    training_options.add_run(parser)
    found = recipes.flags(parser, recipe)[1]
    training_options.check(vars(found))
    if found.init is not None or found.weights not in ("none", "imagenet"):
        raise ValueError(
            f"{recipe}: a file of --init or --weights does not travel to Kaggle: start from imagenet or none"
        )
    return found


@dataclass(frozen=True)
class Training:
    """A run that is trained at Kaggle."""

    sessions: Sessions
    run: Run
    settings: dict  # as `wanted` returns them
    changes: dict  # of the kernel's metadata

    @property
    def open(self) -> list[int]:
        return [k for k in self.settings["fold"] if k not in self.run.predicted]

    def complete(self, n_sessions: int, agree: Callable[[], None]) -> None:
        """Fetch the last session, and push others until all folds are complete, `n_sessions` at most.

        `agree` is called before the first push. Raises RuntimeError naming a session that failed by itself.
        """
        last, end, n_pushed, idle = self.sessions.last(self.settings), kernel_sessions.End(), 0, 0
        if last:
            end, _ = self.receive(last, may_fail=True)
        while self.open and n_pushed < n_sessions:
            last = self.sessions.next(last, end, self.settings | {"fold": self.open})
            folder = self.sessions.build(last, **self.changes)
            if not n_pushed:
                agree()
            self.sessions.push(last, folder)
            n_pushed += 1
            cli.say(f"session {last['session']} runs at {self.sessions.page(last)}")
            end, is_further = self.receive(last)
            idle = 0 if is_further else idle + 1
            if idle == IDLE:
                log_path = self.sessions.log_path(last)
                raise RuntimeError(f"{IDLE} sessions in a row brought no fold further: see {log_path}")

    def receive(self, session: dict, *, may_fail: bool = False) -> tuple[kernel_sessions.End, bool]:
        """Wait for a session and take over what it left; return its end, and whether a fold is further.

        Raises RuntimeError with its error if it failed by itself, unless it `may_fail`.
        """
        folder, end = self.sessions.output(session, self._is_needed)
        taken = handover.take(folder / "runs" / self.run.name, self.run)
        install_tables(folder / "tables", self.run)
        name = f"session {session['session']}"
        cli.say(
            f"{name}: {end.state}; brought further: fold {', '.join(map(str, taken)) or '(none)'}; open: {self.open}"
        )
        if end.error:
            told = f"{name} at {self.sessions.page(session)} failed: {end.error.removeprefix('error: ')}"
            if not may_fail:
                raise RuntimeError(f"{told} (log: {self.sessions.log_path(session)})")
            log.warning("%s", told)
        return end, bool(taken)

    def _is_needed(self, name: str) -> bool:
        """Return whether an output file is fetched: no hidden one, none of a fold that is complete here."""
        parts = Path(name).parts
        done = {("runs", self.run.name, f"fold{k}") for k in self.run.predicted}
        return not any(part.startswith(".") and part != ".." for part in parts) and parts[:3] not in done


def install_tables(source: Path, run: Run) -> None:
    """Copy to the work folder those of slice table and folds that it lacks, as if made from the data on this machine.

    Raises ValueError naming both hashes if it has others than `run` was trained on.
    """
    if paths.slices(source).exists():
        for name in TABLES:
            if (source / name).exists() and not (run.work_dir / name).exists():
                with storage.writing(run.work_dir / name) as temporary:
                    shutil.copyfile(source / name, temporary)
        if not paths.slices(run.work_dir).exists():
            settings = tables.slices_settings(source) | {"data_dir": str(data_here())}
            tables.write_slices(run.work_dir, tables.read_slices(source), settings)
    if run.begun and paths.slices(run.work_dir).exists() and paths.folds(run.work_dir).exists():
        Project(None, run.work_dir).check_same(run)


def data_here() -> Path:
    """Return the folder of the competition's data on this machine, or that to which `download` will write them."""
    try:
        return paths.find_data().root.absolute()
    except FileNotFoundError:
        return paths.DEFAULT.absolute()


def check_weights(sessions: Sessions, dataset: str, recipe: Path) -> None:
    """Raise RuntimeError naming the file that a session without internet needs, if the `dataset` lacks it."""
    flags = flags_of(recipe)
    needed = f"{flags.arch}.safetensors"
    if flags.weights == "imagenet" and needed not in kernels.listing(sessions.kaggle, dataset):
        raise RuntimeError(f"dataset {dataset} lacks {needed}: python -m ich_kaggle.kernel weights --file {needed}")
