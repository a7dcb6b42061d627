"""Build and run kernels at Kaggle, and ship models to them. ACTION is one of:

build NAME    kernels/NAME -> build/kernels/NAME: a single file with the package in it, and its metadata
check NAME    build it, and hold it against every rule of Kaggle's
push NAME     check it, and send it: Kaggle runs it at once
wait NAME     until it has run
fetch NAME    bring its output and its log to build/kernels/NAME/output
weights       pack the models of an ensemble into build/kernels/DATASET, and upload them as a dataset

Reads:   kernels/NAME/, kernels/unpack.py, work/ensemble/, work/runs/, Kaggle's credentials
Writes:  build/kernels/
Example: python -m ich_kaggle.kernel weights --user NAME --ensemble b0+b4
         python -m ich_kaggle.kernel push ich-infer --user NAME
         python -m ich_kaggle.kernel wait ich-infer --user NAME
         python -m ich_kaggle.kernel fetch ich-infer --user NAME
         python -m ich_kaggle.submit --file build/kernels/ich-infer/output/submission.csv
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ich_kaggle.common import cli, storage
from ich_kaggle.kaggle_api import client, kernel_rules, kernels, wheel
from ich_kaggle.scans import model_bundle

ACTIONS = ("build", "check", "push", "wait", "fetch", "weights")
NOTHING = 1e-4  # a run that weighs less, in every label, is not worth its time


def build(source: Path, out: Path, *, user: str, attached: bool) -> Path:
    """Return `out` with the kernel of the folder `source` in it, as one file, and its metadata.

    The package is in that file, or if `attached` it is left to a dataset.
    """
    metadata = kernel_rules.read(source)
    filled = json.loads(json.dumps(metadata).replace(kernel_rules.PLACEHOLDER, user or kernel_rules.PLACEHOLDER))
    template = (source.parent / "unpack.py").read_text(encoding="utf-8")
    unpack = wheel.unpacking(template, None if attached else wheel.wheel())
    code = read_code(source / "main.py")
    make = wheel.notebook if metadata.get("kernel_type") == "notebook" else wheel.script
    name = Path(str(metadata.get("code_file", "main.py"))).name
    with storage.writing(out / name) as temporary:
        temporary.write_text(make(code, unpack), encoding="utf-8", newline="\n")
    storage.write_json(out / kernel_rules.METADATA, filled)
    return out


def read_code(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def check(folder: Path) -> None:
    """Raise ValueError with all that Kaggle would refuse, or ignore, in the kernel in `folder`."""
    if found := kernel_rules.faults(folder):
        raise ValueError(f"{folder}: {'; '.join(found)}")
    metadata = kernel_rules.read(folder)
    size = (folder / metadata["code_file"]).stat().st_size
    cli.say(f"{folder}: {metadata['code_file']}, {size} bytes, keeps to Kaggle's rules")


def choose_ensemble(work_dir: Path, name: str | None) -> Path:
    return model_bundle.choose_ensemble(work_dir, name, "--ensemble")


def pack(work_dir: Path, ensemble: Path, out: Path, extra: list[Path]) -> Path:
    """Return `out` with the models of `ensemble`, how to blend them, the package and the `extra` files.

    What was there before is replaced once all of it is packed. Raises ValueError and FileNotFoundError as
    model_bundle.gather does, and ValueError for an extra file that is called like another one.
    """
    packed, files = model_bundle.gather(work_dir, ensemble, model_bundle.kept(ensemble, NOTHING))
    for path in extra:
        if path.name in (*files, model_bundle.MANIFEST, wheel.WHEEL_NAME):
            raise ValueError(f"--extra {path}: another file of the dataset is called so: rename it")
        files[path.name] = path
    with storage.replacing(out) as draft:
        for name, path in files.items():
            shutil.copyfile(path, draft / name)
        (draft / wheel.WHEEL_NAME).write_bytes(wheel.wheel())
        storage.write_json(draft / model_bundle.MANIFEST, packed)
    return out


def check_dataset(name: str, kernels_dir: Path) -> None:
    """Raise ValueError unless `name` can be that of a dataset, and of its folder beside those of the kernels."""
    if not re.fullmatch("[a-z0-9][a-z0-9-]{4,48}[a-z0-9]", name):
        raise ValueError(f"--dataset {name}: a dataset is called by 6 to 50 of a-z, 0-9 and -, without its owner")
    if name in known_kernels(kernels_dir):
        raise ValueError(f"--dataset {name}: a kernel is called so: give another")


def known_kernels(kernels_dir: Path) -> list[str]:
    return sorted(path.parent.name for path in kernels_dir.glob(f"*/{kernel_rules.METADATA}"))


def upload(kaggle: client.Connection, user: str, dataset: str, folder: Path) -> None:
    name = f"{user}/{dataset}"
    kernels.publish(kaggle, name, dataset.replace("-", " "), folder)
    cli.say(f"{name}: {len(list(folder.iterdir()))} files are ready at https://www.kaggle.com/datasets/{name}")


def run_kernel(action: str, source: Path, out: Path, *, user: str, attached: bool, connect: Callable) -> None:
    """Do `action` with the kernel of the folder `source`, built in `out`, and what comes before it."""
    if action in ("build", "check", "push"):
        cli.say(f"{build(source, out, user=user, attached=attached)}: built")
    if action in ("check", "push"):
        check(out)
    name = f"{user}/{source.name}"
    if action == "push":
        url, version = kernels.push(connect(), out)
        cli.say(f"version {version} runs at {url}")
    if action == "wait":
        kernels.wait(connect(), name)
        cli.say(f"{name}: complete")
    if action == "fetch":
        for path in kernels.fetch(connect(), name, out / "output"):
            cli.say(f"{path}: {path.stat().st_size} bytes")


def kernel(
    *,
    action: str,
    name: str | None,
    user: str,
    kernels_dir: Path,
    out_dir: Path,
    attached: bool,
    work_dir: Path,
    ensemble: str | None,
    dataset: str,
    extra: list[Path],
    dry_run: bool,
    connect: Callable = client.connect,
) -> None:
    if not user and action not in ("build", "check") and not dry_run:
        raise ValueError(f"{action}: whose? give --user, your name at Kaggle")
    if action == "weights":
        check_dataset(dataset, kernels_dir)
        folder = pack(work_dir, choose_ensemble(work_dir, ensemble), out_dir / dataset, extra)
        cli.say(f"{folder}: {len(list(folder.iterdir()))} files")
        if not dry_run:
            upload(connect(), user, dataset, folder)
        return
    if name is None or Path(name).name != name:
        known = ", ".join(known_kernels(kernels_dir)) or "none"
        raise ValueError(f"{action}: which kernel? {kernels_dir} has {known}")
    action = "check" if dry_run else action
    run_kernel(action, kernels_dir / name, out_dir / name, user=user, attached=attached, connect=connect)


def build_parser():
    parser = cli.command(__doc__, "--work-dir", "--dry-run")
    add = parser.add_argument
    add("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    add("name", nargs="?", metavar="NAME", help="a folder in kernels/")
    add("--user", default=os.environ.get("KAGGLE_USERNAME", ""), help="your name at Kaggle (from KAGGLE_USERNAME)")
    add("--kernels-dir", type=Path, default=Path("kernels"), help="the sources")
    add("--out-dir", type=Path, default=Path("build") / "kernels", help="what is built, packed and fetched")
    add("--attached", action="store_true", help="leave the package to a dataset of the kernel that `weights` made")
    add("--ensemble", help="folder in work/ensemble whose models are packed (default: the only one)")
    add("--dataset", default="ich-models", help="its name at Kaggle")
    add("--extra", type=Path, nargs="+", default=[], help="more files for it: wheels (*.whl), pretrained weights")
    return parser


def main(argv=None):
    cli.run(kernel, build_parser(), argv)


if __name__ == "__main__":
    main()
