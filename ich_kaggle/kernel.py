"""Build kernels, run them at Kaggle, and upload models as a dataset for them. ACTION is one of:

build NAME      kernels/NAME -> build/kernels/NAME: a single file that carries the package, and its metadata
check NAME      build it, and check it against Kaggle's rules
push NAME       check it, and push it: Kaggle runs it at once
wait NAME       wait until it has run
fetch NAME      download its output and its log to build/kernels/NAME/output
weights [NAME]  pack the models of an ensemble into build/kernels/NAME, and upload them as a dataset (ich-models)

Reads:   kernels/NAME/, kernels/unpack.py, work/ensemble/, work/runs/, Kaggle's credentials
Writes:  build/kernels/
Example: python -m ich_kaggle.kernel weights --user NAME --ensemble b0+b4
         python -m ich_kaggle.kernel push ich-infer --user NAME
         python -m ich_kaggle.kernel wait ich-infer --user NAME
         python -m ich_kaggle.kernel fetch ich-infer --user NAME
         python -m ich_kaggle.submit --file build/kernels/ich-infer/output/submission.csv
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ich_kaggle.common import cli, storage
from ich_kaggle.kaggle_api import client, kernel_build, kernel_rules, kernels, wheel
from ich_kaggle.scans import model_bundle

ACTIONS = ("build", "check", "push", "wait", "fetch", "weights")
DATASET = "ich-models"  # that the kernels in kernels/ read
OUT = Path("build") / "kernels"  # of what is built, packed and fetched
MAKER = "kernel weights"  # in the marker of a packed folder
NEGLIGIBLE = 1e-4  # a run with a smaller weight in every label is not worth its time


def gather(work_dir: Path, ensemble: Path, extra: list[Path]) -> tuple[dict, dict[str, Path]]:
    """Return the list of the models of `ensemble`, and the files to pack by name: these models and the `extra` files.

    Raises ValueError and FileNotFoundError like model_bundle.gather, and for an extra file with the name of another.
    """
    packed, files = model_bundle.gather(work_dir, ensemble, model_bundle.kept(ensemble, NEGLIGIBLE))
    for path in extra:
        if path.name in (*files, model_bundle.MANIFEST, wheel.LISTING, wheel.WHEEL_NAME):
            raise ValueError(f"--extra {path}: the dataset has another file of this name: rename it")
        if not path.is_file():
            raise FileNotFoundError(f"--extra {path}: no such file")
        files[path.name] = path
    return packed, files


def pack(work_dir: Path, ensemble: Path, out: Path, extra: list[Path]) -> Path:
    """Return `out` with the models of `ensemble`, the list of them, the package and the `extra` files.

    An `out` that this command made is replaced once the new one is complete. Raises like `gather`.
    """
    packed, files = gather(work_dir, ensemble, extra)
    with storage.replacing(out, MAKER) as draft:
        for name, path in files.items():
            shutil.copyfile(path, draft / name)
        (draft / wheel.WHEEL_NAME).write_bytes(wheel.wheel())
        storage.write_json(draft / wheel.LISTING, wheel.hashes(draft))
        storage.write_json(draft / model_bundle.MANIFEST, packed)
    return out


def weights(
    name: str, user: str, dry_run: bool, connect: Callable, *, work_dir: Path, ensemble: str | None, extra: list[Path]
) -> None:
    """Pack the models of an ensemble, see `pack`, and upload them as the dataset `name`; `dry_run` only checks them."""
    storage.check_made_by(OUT / name, MAKER)
    chosen = model_bundle.choose_ensemble(work_dir, ensemble, "--ensemble")
    if dry_run:
        cli.say(f"{OUT / name}: {len(gather(work_dir, chosen, extra)[1])} files of models can be packed")
        return
    folder = pack(work_dir, chosen, OUT / name, extra)
    n_files = len(kernels.files_of(folder))
    cli.say(f"{folder}: {n_files} files")
    kernels.publish(connect(), f"{user}/{name}", name.replace("-", " "), folder)
    cli.say(f"{n_files} files are ready at https://www.kaggle.com/datasets/{user}/{name}")


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


def kernel(
    *,
    action: str,
    name: str | None,
    user: str,
    kernels_dir: Path,
    dry_run: bool,
    connect: Callable = client.connect,
    **models,
) -> None:
    if not user and action not in ("build", "check") and not dry_run:
        raise ValueError(f"{action}: no user name: give --user, your name at Kaggle")
    known = kernel_rules.names(kernels_dir)
    if action == "weights":
        kernel_rules.check_dataset(name := DATASET if name is None else name, known)
        weights(name, user, dry_run, connect, **models)
    elif name not in known:
        raise ValueError(f"{action}: NAME is {name}: {kernels_dir} has the kernels {', '.join(known) or '(none)'}")
    elif dry_run:
        dry_build(kernels_dir / name, user)
    elif action in ("build", "check", "push"):
        build(action, kernels_dir / name, user, connect)
    elif action == "wait":
        kernels.wait(connect(), f"{user}/{name}")
        cli.say(f"{user}/{name}: complete")
    else:
        storage.claim(OUT / name, "kernel")
        for path in kernels.fetch(connect(), f"{user}/{name}", OUT / name / "output"):
            cli.say(f"{path}: {path.stat().st_size} bytes")


def build_parser():
    parser = cli.command(__doc__, "--work-dir", "--dry-run")
    add = parser.add_argument
    add("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    add("name", nargs="?", metavar="NAME", help=f"a folder in kernels/; with weights a dataset (default: {DATASET})")
    add("--user", default=os.environ.get("KAGGLE_USERNAME", ""), help="your name at Kaggle (default: $KAGGLE_USERNAME)")
    add("--kernels-dir", type=Path, default=Path("kernels"), help="folder of the sources")
    add("--ensemble", help="folder in work/ensemble whose models are packed (default: the only one)")
    add("--extra", type=Path, nargs="+", default=[], help="more files for the dataset: wheels, pretrained weights")
    return parser


def main(argv=None):
    cli.run(kernel, build_parser(), argv)


if __name__ == "__main__":
    main()
