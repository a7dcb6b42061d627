"""Kernels and datasets at Kaggle: push, wait, fetch and publish, each confirmed by Kaggle's own answer."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ich_kaggle.common import storage
from ich_kaggle.kaggle_api import client, kernel_rules
from ich_kaggle.kaggle_api.client import Connection

log = logging.getLogger(__name__)

POLLS, POLL_PAUSE = 800, 60  # times, s: a session ends after 12 hours
READY_POLLS, READY_PAUSE = 180, 10  # times, s
LISTINGS = 6  # attempts to list the files of a dataset that is READY
SOURCES = {name: name.replace("sources", "data_sources") for name in kernel_rules.SOURCES}  # ours: the client's
INVALID = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources", "tags")


def push(kaggle: Connection, folder: Path) -> tuple[str, int]:
    """Return the address and the version number of the kernel in `folder`, which Kaggle runs at once.

    Raises RuntimeError with Kaggle's reason if it refused the kernel or dropped one of its sources, and TimeoutError
    if it may have accepted it.
    """
    metadata = kernel_rules.read(folder)
    fields = {name: metadata[name] for name in ("language", "kernel_type", *kernel_rules.SWITCHES)}
    fields |= {theirs: metadata[ours] for ours, theirs in SOURCES.items()}
    fields |= {name: metadata[name] for name in kernel_rules.OPTIONAL if name in metadata}
    fields |= dict(slug=metadata["id"], new_title=metadata["title"], category_ids=metadata["keywords"])
    fields |= dict(text=(folder / metadata["code_file"]).read_text(encoding="utf-8"))
    if metadata["machine_shape"]:
        fields["machine_shape"] = metadata["machine_shape"]
    try:
        answer = kaggle.call(kaggle.client.kernels.kernels_api_client.save_kernel, safe=False, **fields)
    except ConnectionError as error:
        page = f"https://www.kaggle.com/code/{metadata['id']}"
        raise TimeoutError(f"{error}: Kaggle may run it nevertheless: look at {page} before you push again") from error
    _refuse(metadata["id"], answer)
    return answer.url, answer.version_number


def _refuse(name: str, answer: Any) -> None:
    if answer.error:
        raise RuntimeError(f"{name}: Kaggle refused it: {answer.error}")
    if dropped := [f"{what} {', '.join(found)}" for what in INVALID if (found := getattr(answer, f"invalid_{what}"))]:
        raise RuntimeError(
            f"{name}: Kaggle left out {'; '.join(dropped)}: cancel version {answer.version_number}, then create what "
            "is missing (models: python -m ich_kaggle.kernel weights) or correct the metadata"
        )
    if not answer.version_number:
        raise RuntimeError(f"{name}: Kaggle gave no version number: nothing was pushed")


def source(kaggle: Connection, name: str) -> str:
    """Return the code of the latest version of kernel `name`, owner/name; empty if there is no such kernel."""
    owner, slug = name.split("/")
    try:
        method = kaggle.client.kernels.kernels_api_client.get_kernel
        return kaggle.call(method, user_name=owner, kernel_slug=slug).blob.source
    except (RuntimeError, PermissionError) as error:
        if client.is_missing(error, (403, 404)):  # Kaggle does not tell a stranger's private kernel from none
            return ""
        raise


def wait(kaggle: Connection, name: str) -> None:
    """Return once the latest version of kernel `name`, owner/name, has run.

    Raises RuntimeError with Kaggle's reason if it failed or was cancelled, TimeoutError if it never ends.
    """
    state = ended(kaggle, name)
    if state != "COMPLETE":
        again = f"python -m ich_kaggle.kernel fetch {Path(name).name}"
        raise RuntimeError(f"{name}: {state}: see its log: {again}")


def ended(kaggle: Connection, name: str) -> str:
    """Return the state in which the latest version of kernel `name` ended, with Kaggle's reason for a failure.

    Its log is shown as it grows, if Kaggle gives it before the end. Raises TimeoutError if it never ends.
    """
    owner, slug = name.split("/")
    method, shown, n_shown = kaggle.client.kernels.kernels_api_client.get_kernel_session_status, "", 0
    for _ in range(POLLS):
        answer = kaggle.call(method, user_name=owner, kernel_slug=slug)
        state = answer.status.name
        if state not in ("QUEUED", "RUNNING", "NEW_SCRIPT"):
            return f"{state} ({answer.failure_message})" if answer.failure_message else state
        if state != shown:
            log.info("%s: %s", name, state)
        shown = state
        n_shown = _show_log(kaggle, name, n_shown) if state == "RUNNING" else 0
        kaggle.sleep(POLL_PAUSE)
    raise TimeoutError(f"{name}: still {shown} after {POLLS * POLL_PAUSE / 3600:.0f} h")


def _show_log(kaggle: Connection, name: str, n_shown: int) -> int:
    """Log the lines of a running kernel after the first `n_shown`, and return how many there are."""
    try:
        lines = _listing(kaggle, name)[1].splitlines()
    except (RuntimeError, OSError):  # no log before the end; the wait goes on
        return n_shown
    for line in lines[n_shown:]:
        log.info("    %s", line)
    return max(n_shown, len(lines))


def _listing(kaggle: Connection, name: str) -> tuple[list[Any], str]:
    """Return the output files that Kaggle lists of kernel `name`, and its log."""
    owner, slug = name.split("/")
    method, token, log_text, found = kaggle.client.kernels.kernels_api_client.list_kernel_session_output, "", "", []
    while True:
        fields = dict(user_name=owner, kernel_slug=slug, page_size=100, page_token=token)
        answer = kaggle.call(method, **fields)
        log_text, token = log_text or answer.log, answer.next_page_token
        found += answer.files
        if not token:
            return found, readable(log_text)


def fetch(
    kaggle: Connection, name: str, folder: Path, is_wanted: Callable[[str], bool] = lambda name: True
) -> list[Path]:
    """Return the output files of kernel `name` that are wanted, downloaded into `folder`, and its log, <name>.log.

    The output of an earlier version is replaced once all files have arrived, the log at once. Raises ValueError naming
    a file that would lie outside `folder`.
    """
    found, log_text = _listing(kaggle, name)
    found = [file for file in found if is_wanted(file.file_name)]
    log_path = folder / f"{Path(name).name}.log"
    storage.claim(folder, "kernel fetch")
    with storage.writing(log_path) as temporary:  # even if a file fails
        temporary.write_text(log_text, encoding="utf-8")
    files = [inside(folder, file.file_name) for file in found]
    with storage.replacing(folder, "kernel fetch") as draft:
        shutil.copyfile(log_path, draft / log_path.name)
        for path, file in zip(files, found, strict=True):
            target = draft / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            download(kaggle, file.url, file.file_name, target)
    return [*files, log_path]


def inside(folder: Path, name: str) -> Path:
    """Return the path of `name` below `folder`. Raises ValueError if it lies outside."""
    path = folder / name
    if not name or "\\" in name or not path.resolve().is_relative_to(folder.resolve()) or path == folder:
        raise ValueError(f"Kaggle lists an output file {name!r}, which would lie outside {folder}: download it by hand")
    return path


def download(kaggle: Connection, url: str, what: str, target: Path) -> None:
    """Write the bytes at `url` to `target`. Raises like `Connection.call`, naming `what` failed."""
    import requests

    def send() -> None:
        with requests.get(url, timeout=kaggle.timeout, stream=True) as answer, target.open("wb") as file:
            answer.raise_for_status()
            file.writelines(answer.iter_content(1 << 20))

    client.retry(send, what, client.AGAIN, kaggle.sleep)


def readable(log_text: str) -> str:
    """Return the text of a log, which Kaggle sends as a JSON list of pieces."""
    try:
        return "".join(piece["data"] for piece in json.loads(log_text))
    except (ValueError, TypeError, KeyError):
        return log_text


def status(kaggle: Connection, name: str) -> str:
    """Return the status of dataset `name`, owner/name: READY, FAILED or a step before; empty if it does not exist."""
    owner, slug = name.split("/")
    method = kaggle.client.datasets.dataset_api_client.get_dataset_status
    try:
        return kaggle.call(method, owner_slug=owner, dataset_slug=slug).status.name
    except RuntimeError as error:
        if client.is_missing(error):
            return ""
        raise


def files_of(folder: Path) -> list[Path]:
    """Return the files of a packed folder that are uploaded, sorted: all but its marker."""
    return sorted(path for path in folder.iterdir() if path.name != storage.MARKER)


def publish(kaggle: Connection, name: str, title: str, folder: Path) -> None:
    """Upload the files in `folder` as dataset `name`, or as its next version; return once Kaggle lists all of them.

    Raises RuntimeError with Kaggle's reason, or naming the file that did not arrive.
    """
    from kagglesdk.datasets.types.dataset_api_service import ApiCreateDatasetVersionRequestBody

    owner, slug = name.split("/")
    if exists := status(kaggle, name):
        _wait_ready(kaggle, name)  # Kaggle answers 403 while it still processes the version before
    files = [_upload(kaggle, path) for path in files_of(folder)]
    api = kaggle.client.datasets.dataset_api_client
    if exists:
        body = ApiCreateDatasetVersionRequestBody()
        body.version_notes, body.files = f"{len(files)} files", files
        answer = kaggle.call(api.create_dataset_version, safe=False, owner_slug=owner, dataset_slug=slug, body=body)
    else:
        fields = dict(owner_slug=owner, slug=slug, title=title, license_name="other", is_private=True, files=files)
        answer = kaggle.call(api.create_dataset, safe=False, **fields)
    if answer.error or (answer.status or "ok").lower() != "ok":
        raise RuntimeError(f"{name}: Kaggle refused it: {answer.error or answer.status}")
    compare(kaggle, name, folder)


def _upload(kaggle: Connection, path: Path) -> Any:
    from kagglesdk.blobs.types.blob_api_service import ApiBlobType
    from kagglesdk.datasets.types.dataset_api_service import ApiDatasetNewFile

    content, modified = path.read_bytes(), int(path.stat().st_mtime)
    fields = dict(name=path.name, content_length=len(content), last_modified_epoch_seconds=modified)
    answer = kaggle.call(kaggle.client.blobs.blob_api_client.start_blob_upload, type=ApiBlobType.DATASET, **fields)
    kaggle.put(answer.create_url, content)
    log.info("%s: %d bytes", path.name, len(content))
    file = ApiDatasetNewFile()
    file.token = answer.token
    return file


def _wait_ready(kaggle: Connection, name: str) -> None:
    for _ in range(READY_POLLS):
        state = status(kaggle, name)
        if state == "READY":
            return
        if state in ("FAILED", "DELETED"):
            raise RuntimeError(f"dataset {name}: {state}: see https://www.kaggle.com/datasets/{name}")
        kaggle.sleep(READY_PAUSE)
    raise TimeoutError(f"dataset {name}: still {state} after {READY_POLLS * READY_PAUSE // 60} min")


def compare(kaggle: Connection, name: str, folder: Path) -> None:
    """Return once dataset `name` is READY and lists exactly the files of `folder`, with their sizes.

    Raises RuntimeError naming a file that is missing, unexpected or of another size.
    """
    ours = {path.name: path.stat().st_size for path in files_of(folder)}
    for attempt in range(LISTINGS):
        _wait_ready(kaggle, name)
        theirs = listing(kaggle, name)
        wrong = sorted(file for file in ours.keys() | theirs.keys() if ours.get(file) != theirs.get(file))
        if not wrong:
            return
        if attempt < LISTINGS - 1:
            kaggle.sleep(READY_PAUSE)  # after an upload, the version before is listed for a while
    sizes = f"{ours.get(wrong[0], 'no')} bytes here, {theirs.get(wrong[0], 'none')} at Kaggle"
    raise RuntimeError(f"dataset {name}: {wrong[0]}: {sizes} ({len(wrong)} such files): upload it again")


def listing(kaggle: Connection, name: str) -> dict[str, int]:
    """Return the size in bytes of every file in dataset `name`."""
    owner, slug = name.split("/")
    found, token = {}, ""
    while True:
        fields = dict(owner_slug=owner, dataset_slug=slug, page_size=200, page_token=token)
        answer = kaggle.call(kaggle.client.datasets.dataset_api_client.list_dataset_files, **fields)
        found |= {file.name: file.total_bytes for file in answer.dataset_files}
        token = answer.next_page_token
        if not token:
            return found
