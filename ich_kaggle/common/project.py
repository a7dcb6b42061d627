"""The data and the work folder that a command works on, opened once: each table is read once."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.runs import Run

log = logging.getLogger(__name__)


@cache
def _tell(text: str) -> None:
    log.warning(text)


def opening(function: Callable) -> Callable:
    """Return `function`, whose first argument is a project, as one that takes its three flags instead."""

    def opened(*, data_dir: Path | None = None, work_dir: Path = Path("work"), workers: int = 1, **options):
        return function(Project(data_dir, work_dir, workers), **options)

    return opened


@dataclass
class Project:
    """The competition's data, everything made from it, and how many processes make more."""

    data_dir: str | Path | None = None  # None: the first default place that has data
    work_dir: str | Path = Path("work")
    workers: int = 1
    is_checked: bool = False  # whether the slice table was found to be of the data as it is now

    def __post_init__(self):
        self.data_dir, self.work_dir = self.data_dir and Path(self.data_dir), Path(self.work_dir)

    @cached_property
    def slices(self) -> pd.DataFrame:
        """The slice table; a subset is told. Raises FileNotFoundError with the command that makes it."""
        table = tables.read_slices(self.work_dir)
        if part := tables.slices_settings(self.work_dir).get("subset"):
            _tell(f"{paths.slices(self.work_dir)}: a subset, {part}")
        return table

    @cached_property
    def fold(self) -> np.ndarray:
        """The fold of every slice: int (n,), -1 for test slices."""
        return tables.read_folds(self.work_dir, self.slices)

    @cached_property
    def same(self) -> dict[str, str]:
        """The hashes by which the slices and the folds of a run are compared with today's."""
        return {"slices": tables.slices_hash(self.slices), "folds": tables.folds_hash(self.fold)}

    @property
    def is_train(self) -> np.ndarray:
        return self.fold >= 0

    @property
    def folds(self) -> list[int]:
        """The numbers of all folds."""
        return np.unique(self.fold[self.is_train]).tolist()

    def chosen(self, wanted: list[int] | None) -> list[int]:
        """Return the `wanted` folds, None for all. Raises ValueError for one that does not exist."""
        for k in wanted or []:
            if k not in self.folds:
                known = ", ".join(map(str, self.folds))
                raise ValueError(f"--fold {k}: {paths.folds(self.work_dir)} has the folds {known}")
        return self.folds if wanted is None else sorted(set(wanted))

    def run(self, name: str) -> Run:
        return Run(self.work_dir, name)

    def runs(self) -> list[Run]:
        """Return the runs that exist, by name, those without a finished fold as well."""
        return [self.run(name) for name in paths.run_names(self.work_dir)]

    def need_runs(self) -> None:
        """Raise FileNotFoundError if there is no run: before slice table and folds are made for it."""
        if not self.runs():
            raise FileNotFoundError(
                f"{self.work_dir}: no run to read: run python -m ich_kaggle.train --fold 0, or give another --work-dir"
            )

    def only_run(self) -> str:
        """Return the name of the one slice model that exists. Raises ValueError naming several, or the lack of one."""
        names = [run.name for run in self.runs() if run.finished and not run.is_second_level]
        if len(names) != 1:
            there = f"has the runs {', '.join(names)}" if names else "has no run with a finished fold"
            raise ValueError(f"{self.work_dir / 'runs'} {there}: name one with --run")
        return names[0]

    def finished(self, run: Run, wanted: list[int] | None = None) -> list[int]:
        """Return the `wanted` folds of `run`, None for all that are finished.

        Raises FileNotFoundError with the command that trains a wanted one that is not finished, or any if none is.
        """
        chosen = self.chosen(wanted)
        found = [k for k in chosen if k in run.finished]
        if not found or (wanted is not None and found != chosen):
            if not run.begun and (names := [one.name for one in self.runs() if one.begun]):
                raise FileNotFoundError(f"{run.folder}: no such run: there are {', '.join(names)}")
            lacking = next(k for k in chosen if k not in found)
            what = "no finished fold" if wanted is None else f"fold {lacking} is not finished"
            raise FileNotFoundError(f"{run.folder}: {what}: run {run.resume(lacking)}")
        return found

    def check_same(self, run: Run) -> None:
        """Raise ValueError naming both if `run` was fitted on other slices or folds than today's."""
        others = "".join(f" {k}" for k in run.begun[1:])
        remedy = f"{run.resume(run.begun[0])}{others} --overwrite fits it anew"
        storage.same_settings(run.path, run.settings, self.same, remedy)

    def describe(self, run: Run, folds: list[int]) -> str:
        """Return how much of `run` is read, as `run b0: 1 of 5 folds, scored on 3788 patients`."""
        n_patients = self.slices.patient_id[np.isin(self.fold, folds)].nunique()
        which = "" if len(folds) == len(self.folds) else f" ({', '.join(map(str, folds))})"
        leak = f"; possibly leaked: {run.possible_leak}" if run.possible_leak else ""
        return f"run {run.name}: {len(folds)} of {len(self.folds)} folds{which}, scored on {n_patients} patients{leak}"
