"""The stages that faults are done to: their command lines, what they write, and how one is run in a process of its own.

A stage runs in a project, a folder with `input/`, `work/` and `submissions/`, that is put back into the state from
before that stage. Processes are forked from a server that has imported the package, so that a start costs nothing.
"""

import contextlib
import csv
import filecmp
import importlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ich_kaggle.common import paths


class Stage(NamedTuple):
    name: str  # of the command
    flags: str
    writes: str  # a pattern that matches the path of each file


TINY = "--arch test_resnet --weights none --image-size 32 --cache-size 64 --batch-size 8 --epochs 2 --device cpu"
STAGES = [
    Stage("phantom", "--out made --patients 3 --slices 3 --size 32 --defects 0 --zip", r"made(\.zip|/.+)"),
    Stage("slices", "", r"work/(slices\.parquet|defects\.csv)"),
    Stage("folds", "--folds 2", r"work/folds\.(csv|json)"),
    Stage("cache", "--cache-size 64", r"work/cache/64/.+"),
    Stage("train", f"{TINY} --run a --checkpoint-every 0", r"work/runs/a/(run\.json|fold\d/(log\.csv|\w+\.pt))"),
    Stage(
        "predict",
        "--run a --all-slices --device cpu",
        r"work/runs/a/(run\.json|fold\d/((oof|test)\.parquet|embeddings\.npy|predict\.json))",
    ),
    Stage(
        "sequence",
        "--on a --model gru --features fold --run b --epochs 2 --batch-size 4 --hidden 8 --device cpu",
        r"work/runs/b/(run\.json|fold\d/.+)",
    ),
    Stage("ensemble", "--runs a b --name c", r"work/ensemble/c/[^/]+"),
    Stage("evaluate", "--ensemble c --draws 50", r"work/ensemble/c/evaluation/[^/]+"),
    Stage("submit", "--ensemble c -m tried", r"submissions/(.+\.csv|\.c\.draft)"),
]
NAMES = [stage.name for stage in STAGES]
STAGE = dict(zip(NAMES, STAGES, strict=True))
HALF_WRITTEN = re.compile(r"(^|/)\.[^/]+\.\d+$")  # the names that storage.writing gives

tried, lost = Counter(), Counter()  # by part and stage


@contextlib.contextmanager
def trial(part: str, what: str) -> Iterator[None]:
    """Count what is tried inside, and as lost what fails there."""
    tried[part, what] += 1
    try:
        yield
    except BaseException:
        lost[part, what] += 1
        raise


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a refusal."""
        told = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == 1, (self.code, self.err[-3000:])
        assert len(told) == 1 and self.err.endswith(f"{told[0]}\n") and "Traceback" not in self.err, self.err[-3000:]
        return told[0]


class Project:
    """A folder in which stages run, its states before them, and its files after them."""

    def __init__(self, root: Path):
        self.root, self.folder = root, root / "project"
        for name in ("states", "logs", "tmp", "home", "project"):
            (root / name).mkdir()
        self.env = {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "GIT_DIR": "/nowhere"}
        self.env["JOBLIB_TEMP_FOLDER"] = str(root / "tmp")  # a group killed whole leaves it behind
        self.after: dict[str, dict[str, bytes]] = {}

    def before(self, name: str) -> Path:
        return self.root / "states" / name

    def keep(self, name: str) -> None:
        """Keep the state that the project is in as the one before stage `name`."""
        shutil.copytree(self.folder, self.before(name))

    def reset(self, name: str) -> None:
        """Put the project into the state before stage `name`, touching what differs only."""
        state = self.before(name)
        wanted = {path.relative_to(state): path for path in sorted(state.rglob("*"))}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            kept = wanted.get(path.relative_to(self.folder))
            if path.is_dir() and kept is None:
                path.rmdir()
            elif path.is_file() and (kept is None or not _is_same(path, kept)):
                path.unlink()
        for inner, path in wanted.items():
            if path.is_dir():
                (self.folder / inner).mkdir(exist_ok=True)
            elif not (self.folder / inner).exists():
                shutil.copy2(path, self.folder / inner)

    def start(self, name: str, flags: str = "", workers: int = 1, first: Callable[[], None] | None = None):
        """Start a stage, in a process group of its own, that begins with `first()`; return its process."""
        argv = [*STAGE[name].flags.split(), "--workers", str(workers), *flags.split()]
        log = self.root / "logs" / f"{time.monotonic_ns()}"
        process = CONTEXT.Process(target=_enter, args=(name, argv, str(self.folder), self.env, str(log), first))
        process.log = log
        process.start()
        return process

    def end(self, process) -> Outcome:
        process.join()
        wait_for_group(process.pid)
        out, err = (process.log.with_suffix(end).read_text() for end in (".out", ".err"))
        return Outcome(process.exitcode, out, err)

    def run(self, name: str, *args, **options) -> Outcome:
        return self.end(self.start(name, *args, **options))

    def make(self, name: str, *args, **options) -> Outcome:
        """Run a stage that has to end well."""
        done = self.run(name, *args, **options)
        assert done.code == 0, done.err[-3000:]
        return done

    def files(self) -> dict[str, bytes]:
        """Return every file but the data, by path; of a submission without what depends on its time or is drawn."""
        files = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not name.startswith("input/"):
                name = re.sub(r"^submissions/\d{8}T\d{6}Z-", "submissions/TIME-", name)
                content = path.read_bytes()
                files[name] = _timeless(content) if name == "submissions/history.csv" else content
        return files

    def differences(self, name: str) -> list[str]:
        """Return the files that aren't as an undisturbed stage `name` leaves them, missing and surplus ones too."""
        ours, theirs = self.files(), self.after[name]
        return sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))

    def half_written(self) -> list[str]:
        return [name for name in self.files() if HALF_WRITTEN.search(name)]

    def is_written_by(self, name: str, path: str) -> bool:
        """Return whether a stage writes `path`, or in a folder of it."""
        pattern = re.compile(STAGE[name].writes)
        held = [other for other in self.after[name] if other.startswith(f"{path}/")]
        return any(map(pattern.fullmatch, [path, *held]))


def _is_same(one: Path, other: Path) -> bool:
    return one.stat().st_mtime_ns == other.stat().st_mtime_ns and filecmp.cmp(one, other, shallow=False)


def _timeless(history: bytes) -> bytes:
    rows = list(csv.DictReader(io.StringIO(history.decode())))
    return repr([{key: row[key] for key in row if key not in ("time", "file", "tag")} for row in rows]).encode()


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"ich_kaggle.{name}" for name in NAMES])


def _enter(name: str, argv: list[str], folder: str, env: dict[str, str], log: str, first) -> None:
    os.setsid()
    for number, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log + end, os.O_CREAT | os.O_WRONLY, 0o644), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    for variable in ("ICH_DATA_DIR", "KAGGLE_INPUT_DIR"):
        os.environ.pop(variable, None)
    os.environ.update(env)
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # not the one that started this process
    if first is not None:
        first()
    try:
        importlib.import_module(f"ich_kaggle.{name}").main(argv)
    finally:
        threading._shutdown()  # as at any end of Python: joblib's workers are let go here


def kill(process) -> None:
    """Kill a process and all that it started, and wait until they are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may have no group of its own yet
    process.join()
    wait_for_group(process.pid)
    for left in Path("/dev/shm").glob(f"sem.loky-{process.pid}-*"):
        left.unlink()  # joblib's tracker, which does so after any other end, was killed too


def wait_for_group(group: int) -> None:
    while _is_alive(group):
        os.sched_yield()


def _is_alive(group: int) -> bool:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = status.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def build(project: Project, competition: Path) -> None:
    """Run every stage once, undisturbed, and keep the state before and the files after each."""
    shutil.copytree(competition, project.folder / "input" / paths.SLUG)
    for name in NAMES:
        project.keep(name)
        project.make(name)
        project.after[name] = project.files()
    project.keep("end")
    project.after["end"] = project.files()
