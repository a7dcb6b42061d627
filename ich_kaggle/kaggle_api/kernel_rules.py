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
TRAINERS = ("ich-train", "ich-start")  # kernels that may use the internet: timm's hub has the ImageNet weights
OLDEST = (3, 11)  # Python of Kaggle's images

TEXTS = ("id", "title", "code_file", "language", "kernel_type", "machine_shape")
SWITCHES = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
SOURCES = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")
KEYS = {**dict.fromkeys(TEXTS, str), **dict.fromkeys(SWITCHES, bool), **dict.fromkeys((*SOURCES, "keywords"), list)}
KINDS = {str: "a string", bool: "true or false", list: "a list"}
OPTIONAL = ("docker_image", "docker_image_pinning_type")


def names(kernels_dir: Path) -> list[str]:
    """Return the names of the kernels in the folder `kernels_dir`."""
    return sorted(path.parent.name for path in kernels_dir.glob(f"*/{METADATA}"))


def check_dataset(name: str, kernels: list[str]) -> None:
    """Raise ValueError unless `name` can be that of a dataset whose folder lies beside those of `kernels`."""
    if not re.fullmatch("[a-z0-9][a-z0-9-]{4,48}[a-z0-9]", name):
        raise ValueError(f"weights: NAME is {name}: a dataset's name is 6 to 50 of a-z, 0-9 and -, without its owner")
    if name in kernels:
        raise ValueError(f"weights: NAME is {name}: a kernel has this name: give another")


def read(folder: Path) -> dict:
    """Return the metadata of the kernel in `folder`. Raises ValueError naming the fault of a damaged file."""
    path = folder / METADATA
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a JSON object in UTF-8 ({error}): correct it") from error


def check(folder: Path) -> str:
    """Return a line about the kernel in `folder`. Raises ValueError listing all that Kaggle would refuse or ignore."""
    if found := faults(folder):
        raise ValueError(f"{folder}: {'; '.join(found)}")
    metadata = read(folder)
    code, sources = folder / metadata["code_file"], ", ".join(metadata["dataset_sources"]) or "no dataset"
    needs = "internet (an account with a verified phone)" if metadata["enable_internet"] else "no internet"
    return (
        f"{folder}: {code.name}, {code.stat().st_size} bytes, keeps to Kaggle's rules; it needs {needs} and {sources}"
    )


def faults(folder: Path) -> list[str]:
    """Return the faults of the kernel in `folder`, a line each."""
    metadata = read(folder)
    return list(_shape(metadata)) or [*_values(metadata), *_code(folder, metadata)]


def _shape(metadata: dict) -> Iterator[str]:
    for key in sorted(metadata.keys() - {*KEYS, *OPTIONAL}):
        yield f"unknown key {key}, which Kaggle ignores: the keys are {', '.join((*KEYS, *OPTIONAL))}"
    for key, kind in KEYS.items():
        if not isinstance(metadata.get(key), kind):
            found = json.dumps(metadata[key]) if key in metadata else "missing"
            yield f"{key} is {found}: set it to {KINDS[kind]}, Kaggle's default may change"


def _values(metadata: dict) -> Iterator[str]:
    title, slug = metadata["title"], metadata["id"].split("/")[-1]
    address = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    gpu = GPU if metadata["enable_gpu"] else ""
    rules = {
        f"it still contains {PLACEHOLDER}: build it with --user": PLACEHOLDER not in json.dumps(metadata),
        f"id is {metadata['id']}, not owner/name with a name of 5 or more of a-z, 0-9 and -": re.fullmatch(
            r"[A-Za-z0-9][\w-]*/[a-z0-9][a-z0-9-]{4,}", metadata["id"], re.ASCII
        ),
        f"title has {len(title)} characters, not 5 to 50": 5 <= len(title) <= 50,
        f"title {title!r} gives the address {address}, id has {slug}: Kaggle would use the title's": address == slug,
        "enable_internet is true: set it to false, only training needs it": (
            not metadata["enable_internet"] or slug.startswith(TRAINERS)
        ),
        "enable_tpu is true: the package runs on a GPU or a CPU": not metadata["enable_tpu"],
        f"machine_shape is {metadata['machine_shape']!r}, with this enable_gpu it must be {gpu!r}": (
            metadata["machine_shape"] == gpu
        ),
        f"competition_sources lacks {paths.SLUG}": paths.SLUG in metadata["competition_sources"],
    }
    return (rule for rule, is_kept in rules.items() if not is_kept)


def _code(folder: Path, metadata: dict) -> Iterator[str]:
    path = folder / metadata["code_file"]
    wanted = {"script": ".py", "notebook": ".ipynb"}.get(metadata["kernel_type"])
    if path.suffix != wanted or not path.is_file():
        yield f"code_file is {metadata['code_file']}, not a {wanted or 'script or notebook'} file beside {METADATA}"
        return
    if (size := path.stat().st_size) > LIMIT:
        yield f"{path.name} has {size} bytes, more than {LIMIT}: shorten it"
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"] if wanted == ".ipynb" else [{"cell_type": "code", "source": text}]
    for cell in cells:
        try:
            ast.parse("".join(cell["source"]) if cell["cell_type"] == "code" else "", feature_version=OLDEST)
        except SyntaxError as error:
            version = ".".join(map(str, OLDEST))
            yield f"{path.name} is not Python {version}: line {error.lineno}: {error.msg}"
