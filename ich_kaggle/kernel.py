"""Train and predict in kernels at Kaggle: build, check, push and fetch them. ACTION is one of:

train           train folds, in one session after another until they are complete, and fetch them to work/runs/
predict         upload the models of an ensemble, predict with them in ich-infer, and fetch the submission
weights [NAME]  upload the models of an ensemble as a dataset (ich-models), or --file alone (ich-weights)
build NAME      kernels/NAME -> build/kernels/NAME: a single file that carries the package, and its metadata
check NAME      build it, and check it against Kaggle's rules
push NAME       check it, and push it: Kaggle runs it at once
wait NAME       wait until it has run
fetch NAME      download its output and its log to build/kernels/NAME/output

train and predict can be stopped at any moment: the same command goes on, here or on another machine.

Reads:   kernels/NAME/, kernels/unpack.py, work/ensemble/, work/runs/, Kaggle's credentials
Writes:  build/kernels/; with train work/runs/, and work/slices.parquet and work/folds.csv if they do not exist
Example: python -m ich_kaggle.kernel train --user NAME --recipe resnet50 --fold all
         python -m ich_kaggle.kernel predict --user NAME --ensemble b0+b4
         python -m ich_kaggle.kernel weights --user NAME --file resnet50.a1_in1k.safetensors
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ich_kaggle.common import cli, locks, recipes, storage
from ich_kaggle.common.runs import Run
from ich_kaggle.kaggle_api import client, kernel_build, kernel_rules, kernel_sessions, kernels, wheel
from ich_kaggle.scans import model_bundle, packing

ACTIONS = ("train", "predict", "weights", "build", "check", "push", "wait", "fetch")
DATASET = "ich-models"  # that the kernels in kernels/ read
WEIGHTS = "ich-weights"  # that training without internet reads
OUT = Path("build") / "kernels"  # of what is built, packed and fetched
MAKER = "kernel weights"  # in the marker of a packed folder
NEGLIGIBLE = 1e-4  # a run with a smaller weight in every label is not worth its time
TRAIN, INFER = "ich-train", "ich-infer"


def gather(
    work_dir: Path, ensemble: str | None = None, extra: Iterable[Path] = (), file: Iterable[Path] = ()
) -> tuple[dict, dict[str, Path]]:
    """Return a manifest and the files to pack by name: the models of `ensemble` and the `extra` files.

    The manifest is empty for `file`, packed instead. Raises ValueError and FileNotFoundError like packing.gather, and
    for a file that is missing or has the name of another.
    """
    for flag, path in (*(("--extra", path) for path in extra), *(("--file", path) for path in file)):
        if not path.is_file():
            raise FileNotFoundError(f"{flag} {path}: no such file")
    if file:
        files = {path.name: path for path in file}
        if len(files) < len(set(file)):
            raise ValueError(f"--file {' '.join(map(str, file))}: two have the same name: rename one")
        return {}, files
    chosen = packing.choose_ensemble(work_dir, ensemble, "--ensemble")
    manifest, files = packing.gather(work_dir, chosen, packing.kept(chosen, NEGLIGIBLE))
    for path in extra:
        if path.name in (*files, model_bundle.MANIFEST, wheel.LISTING, wheel.WHEEL_NAME):
            raise ValueError(f"--extra {path}: the dataset has another file of this name: rename it")
        files[path.name] = path
    return manifest, files


def pack(out: Path, manifest: dict, files: dict[str, Path]) -> Path:
    """Return `out` with `files`, and beside a `manifest` the package; an `out` of this command is replaced."""
    with storage.replacing(out, MAKER) as draft:
        for name, path in files.items():
            shutil.copyfile(path, draft / name)
        if manifest:
            (draft / wheel.WHEEL_NAME).write_bytes(wheel.wheel())
            storage.write_json(draft / wheel.LISTING, wheel.hashes(draft))
            storage.write_json(draft / model_bundle.MANIFEST, manifest)
    return out


def upload(kaggle: client.Connection, user: str, folder: Path) -> None:
    n_files = len(kernels.files_of(folder))
    cli.say(f"{folder}: {n_files} files")
    kernels.publish(kaggle, f"{user}/{folder.name}", folder.name.replace("-", " "), folder)
    cli.say(f"{n_files} files are ready at https://www.kaggle.com/datasets/{user}/{folder.name}")


def weights(name: str, user: str, dry_run: bool, connect: Callable, **models) -> None:
    """Pack `models`, see `gather`, and upload them as the dataset `name`; `dry_run` only checks them."""
    storage.check_made_by(OUT / name, MAKER)
    manifest, files = gather(**models)
    if dry_run:
        cli.say(f"{OUT / name}: {len(files)} files can be packed")
    else:
        upload(connect(), user, pack(OUT / name, manifest, files))


def dry_build(source: Path, user: str) -> None:
    """Build the kernel of the folder `source` and check it; keep nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        cli.say(kernel_rules.check(kernel_build.build(source, Path(scratch), user)))


def build(action: str, source: Path, user: str, connect: Callable) -> None:
    """Build the kernel of the folder `source`; unless `action` is build, check it; if it is push, push it."""
    storage.claim(OUT / source.name, "kernel")
    out = kernel_build.build(source, OUT / source.name, user)
    cli.say(f"{out}: built")
    if action != "build":
        cli.say(kernel_rules.check(out))
    if action == "push":
        url, version = kernels.push(connect(), out)
        cli.say(f"version {version} runs at {url}")


def fetch(kaggle: client.Connection, user: str, name: str) -> None:
    storage.claim(OUT / name, "kernel")
    for path in kernels.fetch(kaggle, f"{user}/{name}", OUT / name / "output"):
        cli.say(f"{path}: {path.stat().st_size} bytes")


@dataclass(frozen=True)
class Wish:
    """The flags of `train`."""

    train_recipe: str
    run: str | None
    fold: list[int] | None
    n_folds: int | None
    hours: float  # of a session
    n_sessions: int
    is_agreed: bool
    is_offline: bool

    @property
    def cost(self) -> str:
        time = recipes.header(recipes.path_of(self.train_recipe)).get("Time", "time not known")
        most = f"up to {self.n_sessions} sessions of {self.hours:g} h"
        return f"{most} on Kaggle's GPUs (about 30 h a week are free); recipe: {time}"

    def agree(self) -> None:
        """Say what the sessions may cost, and ask. Raises ValueError without an answer."""
        cli.say(self.cost)
        if not self.is_agreed and not sys.stdin.isatty():
            raise ValueError("there is no terminal to ask on: give --yes to push")
        if not self.is_agreed and input("Push? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ValueError("nothing was pushed")


def train(wish: Wish, kernels_dir: Path, user: str, dry_run: bool, connect: Callable, work_dir: Path) -> None:
    """Train folds at Kaggle until they are complete, see kaggle_training; with `dry_run` build the first session."""
    from ich_kaggle.scans import kaggle_training  # torch takes seconds

    path = recipes.path_of(wish.train_recipe)
    this = Run(work_dir, wish.run or path.stem)
    settings = kaggle_training.wanted(path, this, wish.fold, wish.n_folds, wish.hours)
    offline = dict(enable_internet=False, dataset_sources=[f"{kernel_rules.PLACEHOLDER}/{WEIGHTS}"])
    kaggle = None if dry_run else connect()
    sessions = kernel_sessions.Sessions(kaggle, user, this.name, kernels_dir / TRAIN, OUT)
    training = kaggle_training.Training(sessions, this, settings, offline if wish.is_offline else {})
    if dry_run:
        first = sessions.next({}, kernel_sessions.End(), settings)
        cli.say(f"{sessions.build(first, **training.changes)}: built, not pushed; {wish.cost}")
        return
    with locks.locked(OUT / this.name):
        if wish.is_offline:
            kaggle_training.check_weights(sessions, f"{user}/{WEIGHTS}", path)
        training.complete(wish.n_sessions, wish.agree)
    if left := ", ".join(map(str, training.open)):
        over = f"{wish.n_sessions} sessions are over, fold {left} is not complete"
        raise RuntimeError(f"{over}: run the same command to go on")
    command = cli.for_work_dir(f"python -m ich_kaggle.submit --run {this.name}", work_dir)
    cli.say(f"{this.folder}: folds complete: next, {command}")


def predict(kernels_dir: Path, user: str, dry_run: bool, connect: Callable, **models) -> None:
    """Upload the models of an ensemble, run ich-infer on them unless it has run, and fetch what it leaves."""
    if dry_run:
        weights(DATASET, user, True, connect, **models)
        dry_build(kernels_dir / INFER, user)
        return
    storage.claim(OUT / INFER, "kernel")
    folder = pack(OUT / DATASET, *gather(**models))
    digests = {path.name: storage.file_hash(path) for path in sorted(kernels.files_of(folder))}
    settings = {"hours": 8.0, "models": digests}
    out = kernel_build.build(kernels_dir / INFER, OUT / INFER, user, settings)
    cli.say(kernel_rules.check(out))
    kaggle, name = connect(), f"{user}/{INFER}"
    is_same = kernel_build.settings_in(kernels.source(kaggle, name)) == settings
    if not is_same or kernels.ended(kaggle, name) != "COMPLETE":  # what runs is waited for, what failed is repeated
        upload(kaggle, user, folder)
        url, version = kernels.push(kaggle, out)
        cli.say(f"version {version} runs at {url}")
    kernels.wait(kaggle, name)
    fetch(kaggle, user, INFER)
    cli.say(f"next: python -m ich_kaggle.submit --file {OUT / INFER / 'output' / 'submission.csv'}")


def kernel(
    *,
    action: str,
    name: str | None,
    user: str,
    kernels_dir: Path,
    dry_run: bool,
    connect: Callable = client.connect,
    **rest,
) -> None:
    if not user and action not in ("build", "check") and not dry_run:
        raise ValueError(f"{action}: no user name: give --user, your name at Kaggle")
    known = kernel_rules.names(kernels_dir)
    if not known and action != "weights":
        raise FileNotFoundError(
            f"{kernels_dir}: no kernels: run this in the repository's folder, or give --kernels-dir"
        )
    models = {key: rest.pop(key) for key in ("work_dir", "ensemble", "extra", "file")}
    if action == "train":
        train(Wish(**rest), kernels_dir, user or kernel_rules.PLACEHOLDER, dry_run, connect, models["work_dir"])
    elif action == "predict":
        predict(kernels_dir, user, dry_run, connect, **models)
    elif action == "weights":
        name = (WEIGHTS if models["file"] else DATASET) if name is None else name
        kernel_rules.check_dataset(name, known)
        weights(name, user, dry_run, connect, **models)
    elif name not in known:
        raise ValueError(f"{action}: NAME is {name}: {kernels_dir} has the kernels {', '.join(known)}")
    elif dry_run:
        dry_build(kernels_dir / name, user)
    elif action in ("build", "check", "push"):
        build(action, kernels_dir / name, user, connect)
    elif action == "wait":
        kernels.wait(connect(), f"{user}/{name}")
        cli.say(f"{user}/{name}: complete")
    else:
        fetch(connect(), user, name)


def build_parser():
    parser = cli.command(__doc__, "--work-dir")
    add = parser.add_argument
    add("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    add("name", nargs="?", metavar="NAME", help="a folder in kernels/; with weights a dataset")
    add("--user", default=os.environ.get("KAGGLE_USERNAME", ""), help="your name at Kaggle (default: $KAGGLE_USERNAME)")
    add("--kernels-dir", type=Path, default=Path("kernels"), help="folder of the sources")
    add("--dry-run", action="store_true", help="build and check, and push nothing")
    add = parser.add_argument_group("weights, predict").add_argument
    add("--ensemble", help="folder in work/ensemble whose models are packed (default: the only one)")
    add("--extra", type=Path, nargs="+", default=[], help="more files for the dataset, such as wheels")
    add("--file", type=Path, nargs="+", default=[], help="files that the dataset holds instead of models")
    add = parser.add_argument_group("train").add_argument
    add("--recipe", dest="train_recipe", default="resnet50", help="name of a recipe, or a TOML file of flags of train")
    for flag in ("--run", "--fold"):
        add(flag, **cli.FLAGS[flag])
    add(
        "--folds", **cli.FLAGS["--folds"] | dict(default=None, help="number of folds (default: those of work/, else 5)")
    )
    add("--hours", type=cli.within(0, 11.5), default=10.0, help="training time of a session; Kaggle ends it after 12")
    add("--sessions", dest="n_sessions", type=cli.POSITIVE, default=5, help="most sessions that this command pushes")
    add("--yes", dest="is_agreed", action="store_true", help="push without asking")
    add("--offline", dest="is_offline", action="store_true", help=f"no internet: weights from the dataset {WEIGHTS}")
    return parser


def main(argv=None):
    cli.run(kernel, build_parser(), argv)


if __name__ == "__main__":
    main()
