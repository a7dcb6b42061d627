"""The rules of a kernel, checked before a push: what Kaggle would reject, ignore or silently change.

The rules are those of kaggle 2.2.4 and of Kaggle's documentation,
https://github.com/Kaggle/kaggle-api/blob/main/docs/kernels_metadata.md
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ich_kaggle.common import paths

METADATA = "kernel-metadata.json"
PLACEHOLDER = "YOUR_USERNAME"
LIMIT = 900_000  # bytes of code: Kaggle's own limit is about 1 MB
GPU = "NvidiaTeslaT4"
OLDEST = (3, 11)  # Python of Kaggle's images

TEXTS = ("id", "title", "code_file", "language", "kernel_type", "machine_shape")
SWITCHES = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
LISTS = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources", "keywords")
OPTIONAL = ("docker_image", "docker_image_pinning_type")
CHOICES = {
    "language": ("python",),
    "kernel_type": ("script", "notebook"),
    "docker_image_pinning_type": ("original", "latest"),
}
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
SOURCES = {
    "dataset_sources": (rf"{NAME}/{NAME}(/\d+)?", "owner/name"),
    "competition_sources": (NAME, "a competition's name alone"),
    "kernel_sources": (rf"{NAME}/{NAME}", "owner/name"),
    "model_sources": (rf"{NAME}/{NAME}/{NAME}/{NAME}/\d+", "owner/model/framework/variation/version"),
}
KINDS = ("datasets/", "competitions/", "code/", "c/")  # beginnings of addresses at kaggle.com


def names(kernels_dir: Path) -> list[str]:
    """Return the names of the kernels in the folder `kernels_dir`."""
    return sorted(path.parent.name for path in kernels_dir.glob(f"*/{METADATA}"))


def check_dataset(name: str, kernels: list[str]) -> None:
    """Raise ValueError unless `name` can be that of a dataset whose folder lies beside those of `kernels`."""
    if not re.fullmatch("[a-z0-9][a-z0-9-]{4,48}[a-z0-9]", name):
        raise ValueError(f"--dataset {name}: a dataset's name is 6 to 50 of a-z, 0-9 and -, without its owner")
    if name in kernels:
        raise ValueError(f"--dataset {name}: a kernel has this name: give another")


def slugify(title: str) -> str:
    """Return the last part of the address that Kaggle gives to a kernel with this title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def read(folder: Path) -> dict:
    """Return the metadata of the kernel in `folder`. Raises FileNotFoundError, or ValueError naming the fault."""
    path = folder / METADATA
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the name of a folder in kernels/")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON in UTF-8 without a byte order mark ({error})") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: holds a {type(metadata).__name__}, not an object")
    return metadata


def check(folder: Path) -> str:
    """Return a line about the kernel in `folder`. Raises ValueError listing all that Kaggle would refuse or ignore."""
    if found := faults(folder):
        raise ValueError(f"{folder}: {'; '.join(found)}")
    code = folder / read(folder)["code_file"]
    return f"{folder}: {code.name}, {code.stat().st_size} bytes, keeps to Kaggle's rules"


def faults(folder: Path) -> list[str]:
    """Return the faults of the kernel in `folder`, a line each."""
    metadata = read(folder)
    shape = list(_shape(metadata))
    return shape or [*_name(metadata), *_machine(metadata), *_sources(metadata), *_code(folder, metadata)]


def _shape(metadata: dict) -> Iterator[str]:
    known = {*TEXTS, *SWITCHES, *LISTS, *OPTIONAL}
    for key in sorted(metadata.keys() - known):
        yield f"unknown key {key}, which Kaggle ignores: the keys are {', '.join(sorted(known))}"
    for keys, kind, what in ((TEXTS, str, "a string"), (SWITCHES, bool, "true or false"), (LISTS, list, "a list")):
        for key in keys:
            if key not in metadata:
                yield f"{key} is missing: set it, Kaggle's default may change"
            elif not isinstance(metadata[key], kind):
                yield f"{key} is {json.dumps(metadata[key])}, not {what}"
    for key in OPTIONAL:
        if not isinstance(metadata.get(key, ""), str):
            yield f"{key} is {json.dumps(metadata[key])}, not a string"
    for key in LISTS:
        if isinstance(metadata.get(key), list) and not all(isinstance(item, str) for item in metadata[key]):
            yield f"{key} has an item that is not a string"
    for key, allowed in CHOICES.items():
        if key in metadata and metadata[key] not in allowed:
            yield f"{key} is {metadata[key]}, not {' or '.join(allowed)}"


def _name(metadata: dict) -> Iterator[str]:
    kernel_id, title = metadata["id"], metadata["title"]
    if PLACEHOLDER in json.dumps(metadata):
        yield f"it still contains {PLACEHOLDER}: build it with --user"
    if not re.fullmatch(rf"{NAME}/[a-z0-9][a-z0-9-]*", kernel_id):
        yield f"id is {kernel_id}, not owner/name with a name of a-z, 0-9 and -, and no version"
    slug = kernel_id.split("/")[-1]
    if len(slug) < 5:
        yield f"id has the name {slug}, shorter than 5 characters"
    if not 5 <= len(title) <= 50:
        yield f"title has {len(title)} characters, not 5 to 50"
    if slugify(title) != slug:
        yield f"title {title!r} gives the address {slugify(title)}, id has {slug}: Kaggle would use the title's"


def _machine(metadata: dict) -> Iterator[str]:
    if metadata["enable_internet"]:
        yield "enable_internet is true: set it to false"
    if metadata["enable_tpu"]:
        yield "enable_tpu is true: the package runs on a GPU or a CPU"
    if metadata["enable_gpu"] and metadata["machine_shape"] != GPU:
        yield f"machine_shape is {metadata['machine_shape']!r}, not {GPU}: Kaggle's torch may not run on another GPU"
    if not metadata["enable_gpu"] and metadata["machine_shape"]:
        yield f"machine_shape is {metadata['machine_shape']}, but enable_gpu is false: set it to an empty string"


def _sources(metadata: dict) -> Iterator[str]:
    for key, (pattern, form) in SOURCES.items():
        for source in metadata[key]:
            if source.startswith(KINDS) or not re.fullmatch(pattern, source):
                yield f"{key} holds {source}, not {form}"
    if paths.SLUG not in metadata["competition_sources"]:
        yield f"competition_sources lacks {paths.SLUG}"


def _code(folder: Path, metadata: dict) -> Iterator[str]:
    name, is_notebook = metadata["code_file"], metadata["kernel_type"] == "notebook"
    if Path(name).name != name or not (folder / name).is_file():
        yield f"code_file is {name}, but {METADATA} has no such file beside it"
        return
    if (wanted := ".ipynb" if is_notebook else ".py") != Path(name).suffix:
        yield f"code_file is {name}, but the name of a {metadata['kernel_type']} ends in {wanted}"
        return
    content = (folder / name).read_bytes()
    if len(content) > LIMIT:
        yield f"{name} has {len(content)} bytes, more than {LIMIT}: build it with --attached"
    try:
        text = content.decode("utf-8")
        if text.startswith("\ufeff"):
            yield f"{name} begins with a byte order mark"
        yield from _notebook(name, json.loads(text)) if is_notebook else _python(name, text)
    except ValueError as error:
        yield f"{name} cannot be read: {error}"


def _notebook(name: str, content: dict) -> Iterator[str]:
    spec = content.get("metadata", {}).get("kernelspec", {})
    if not spec.get("name"):
        yield f"{name} has no metadata.kernelspec: Kaggle cannot run it"
    if content.get("nbformat") != 4:
        yield f"{name} has nbformat {content.get('nbformat')}, not 4"
    code = [cell["source"] for cell in content.get("cells", []) if cell["cell_type"] == "code"]
    if not code:
        yield f"{name} has no code"
    for source in code:
        yield from _python(name, "".join(source))


def _python(name: str, text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text.removeprefix("\ufeff"), feature_version=OLDEST)
    except SyntaxError as error:
        yield f"{name} is not Python {'.'.join(map(str, OLDEST))}: line {error.lineno}: {error.msg}"
        return
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    if any(module.split(".")[0] == "kaggle" for module in imported):
        yield f"{name} imports kaggle, which exits without credentials: leave that import out"
