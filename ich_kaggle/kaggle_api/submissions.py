"""Submissions: written, verified against the sample, sent once, scored and recorded."""

import filecmp
import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, labels, locks, paths, runs, storage, tables
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.kaggle_api import client, submission_log, submission_requests

log = logging.getLogger(__name__)

LONGEST = 300  # characters of a message
LONG_AGO = 3600  # s after which a submission that was being sent cannot arrive any more, whatever the clocks
MEAN_FACTOR = 2  # a label's mean that differs from the out-of-fold mean by this factor is worth a warning


class Source(NamedTuple):
    """The origin of a submission's predictions."""

    name: str
    runs: str = ""  # "run:weight run:weight"
    oof: str = ""  # nested out-of-fold log loss
    mean: np.ndarray | None = None  # (6,), of the out-of-fold predictions


def make(folder: Path, project: Project, data: paths.Data, submissions_dir: Path) -> tuple[Path, Source]:
    """Return the CSV of the ensemble in `folder`, written unless one with the same bytes exists, and its source."""
    test_ids = project.slices.slice_id[~project.is_train]
    weights = storage.read_json(folder / "weights.json")
    for name in ("oof.parquet", "test.parquet"):
        runs.hash_of(storage.require(folder / name))
    source = Source(
        name=folder.name,
        runs=" ".join(f"{run}:{weight:.3g}" for run, weight in weights["runs"].items()),
        oof=f"{weights['nested_log_loss']:.5f}",
        mean=tables.mean_prediction(folder / "oof.parquet"),
    )
    probability = tables.read_predictions(folder / "test.parquet", test_ids)
    return write(submissions_dir, source.name, data, test_ids, probability), source


def write(submissions_dir: Path, name: str, data: paths.Data, slice_ids: pd.Series, probability: np.ndarray) -> Path:
    """Return the CSV of `probability` (n, 6) in the order of the sample submission, written unless it exists."""
    submissions_dir.mkdir(parents=True, exist_ok=True)
    path = submissions_dir / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}.csv"
    draft = submissions_dir / f".{name}.draft"
    with locks.locked(sending(submissions_dir)):
        tables.write_submission(draft, data, slice_ids, probability)
        for old in sorted(submissions_dir.glob("*.csv")):
            if filecmp.cmp(old, draft, shallow=False):
                cli.say(f"{old} has the same numbers: not written again")
                draft.unlink()
                return old
        draft.replace(path)
    return path


def taken(path: Path, data: paths.Data, submissions_dir: Path) -> Path:
    """Return `path`, a CSV, or one with its numbers if it is packed (.gz, .zip) or has its rows in another order."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give --file a CSV, or leave it out")
    slice_ids, *places, values = tables.read_long(paths.Data(path.parent), path.name)
    in_order = check_rows(path, (slice_ids, *places), tables.read_long(data, paths.SAMPLE_CSV)[:3])
    if in_order and path.suffix not in paths.PACKED:
        return path
    probability = labels.to_wide(*places, values, slice_ids)
    made = write(submissions_dir, path.name.partition(".")[0], data, pd.Series(slice_ids), probability)
    cli.say(f"{made}: {path}, unpacked, in the order of the sample submission")
    return made


def sending(submissions_dir: Path) -> Path:
    """Return the path of the lock under which a process writes and sends, so that no two send the same numbers."""
    return submissions_dir / "sending"


def verify(path: Path, data: paths.Data, mean: np.ndarray | None = None, *, quiet: bool = False) -> str:
    """Return the SHA-256 of the submission `path`, after comparing it with the sample submission.

    Warns if a label's mean is far from `mean` (6,). Raises ValueError naming the row or the id of the first fault.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    slice_ids, slice_index, label_index, values = tables.read_long(paths.Data(path.parent), path.name)
    if not check_rows(path, (slice_ids, slice_index, label_index), tables.read_long(data, paths.SAMPLE_CSV)[:3]):
        raise ValueError(f"{path}: its rows have another order than the sample submission: give it to --file")
    probability = labels.to_wide(slice_index, label_index, values, slice_ids)
    check_values(path, slice_ids, probability)
    if mean is not None:
        warn_of_means(path, probability.mean(axis=0), mean)
    if not quiet:
        cli.say(f"{path}: verified, {len(values)} rows")
    return digest


def check_rows(path: Path, ours: tuple, sample: tuple) -> bool:
    """Tell whether two tables (slice ids, slice index, label index) have the same order.

    Raises ValueError naming a row that only one of them has, or that one has twice.
    """
    known = pd.Index(sample[0])
    row = known.get_indexer(ours[0])
    if (row < 0).any():
        raise ValueError(f"{path}: {ours[0][(row < 0).argmax()]} is not in the sample submission")
    cell = row[ours[1]] * len(LABELS) + ours[2]
    wanted = sample[1].astype(np.int64) * len(LABELS) + sample[2]
    if np.array_equal(cell, wanted):
        return True
    count = np.bincount(cell, minlength=len(known) * len(LABELS))
    if count.max() > 1:
        raise ValueError(f"{path}: {_row_id(known, count.argmax())} appears {count.max()} times")
    if len(missing := np.setdiff1d(wanted, cell)):
        raise ValueError(f"{path}: {_row_id(known, missing[0])} is missing (missing rows: {len(missing)})")
    return False


def _row_id(slice_ids: pd.Index, cell: int) -> str:
    return f"{slice_ids[cell // len(LABELS)]}_{LABELS[cell % len(LABELS)]}"


def check_values(path: Path, slice_ids: np.ndarray, probability: np.ndarray) -> None:
    """Raise ValueError unless `probability` (n, 6) is in [0, 1] and not constant; warn if `any` is not the largest."""
    if not (valid := (probability >= 0) & (probability <= 1)).all():
        row, label = np.argwhere(~valid)[0]
        raise ValueError(f"{path}: {slice_ids[row]}_{LABELS[label]} is {probability[row, label]:.6g}, not in [0, 1]")
    if probability.min() == probability.max():
        raise ValueError(f"{path}: every value is {probability[0, 0]:.6g}: these are not predictions")
    if (low := probability[:, ANY] < probability.max(axis=1)).any():
        row = int(low.argmax())
        most = int(probability[row].argmax())
        any_value, value = probability[row, [ANY, most]]
        first = f"{slice_ids[row]}_any is {any_value:.6g}, below {LABELS[most]}, {value:.6g}"
        log.warning("WARNING %s: %s (%d such slices)", path, first, low.sum())


def warn_of_means(path: Path, found: np.ndarray, expected: np.ndarray) -> None:
    for label, ours, theirs in zip(LABELS, found, expected, strict=True):
        if not theirs / MEAN_FACTOR <= ours <= theirs * MEAN_FACTOR:
            log.warning("WARNING %s: the mean of %s is %.4f, out of fold it is %.4f", path, label, ours, theirs)


def send(kaggle: client.Connection, path: Path, row: dict[str, str], history_csv: Path) -> dict[str, str]:
    """Return `row` with the ref of `path` at Kaggle. The history has the row before Kaggle is asked to submit."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        raise ValueError(f"{path} has changed since it was verified: run the command again")
    try:
        token = submission_requests.upload(kaggle, path.name, content, path.stat().st_mtime)
        row = row | {"time": submission_log.now(), "status": "SENDING"}  # not before: an upload alone is no submission
        submission_log.record(history_csv, row)
        message = f"{cli.printable(row['note'], LONGEST)} [{row['tag']}]"  # short, so that the tag is not cut off
        return row | {"ref": str(submission_requests.create(kaggle, token, message, row["tag"]))}
    except TimeoutError:
        raise  # Kaggle may have it: the row stays SENDING
    except (OSError, RuntimeError) as error:
        submission_log.record(history_csv, row | {"status": "REFUSED", "note": f"{row['note']}: {error}"})
        raise


def deliver(
    path: Path, row: dict[str, str], history_csv: Path, *, again: bool, no_wait: bool, connect: Callable
) -> None:
    """Send `path` unless Kaggle has it, wait for its scores, and keep its `row` in the history up to date.

    Raises FileExistsError if Kaggle has scored it, unless `again`, and RuntimeError or OSError with Kaggle's reason.
    """
    with locks.locked(sending(history_csv.parent)):
        rows = submission_log.read(history_csv)
        # An interrupted command is resumed even with `again`: it may have been the same command.
        find_begun = submission_log.cut_short if again else submission_log.already_sent
        begun = find_begun(rows, row["file"], row["sha256"])
        try:
            kaggle = connect()
        except (ImportError, OSError) as error:
            raise RuntimeError(f"{error}; or upload {path} in the browser at {client.SITE}/submit") from error
        if begun and (ref := find(kaggle, begun)):
            cli.say(f"{path}: already sent, not sent again")
            row = begun | {"ref": str(ref)}
        else:
            log.info("%s", submission_requests.preflight(kaggle))
            row = send(kaggle, path, begun or row, history_csv)
        row = row | {"status": "PENDING"}
        submission_log.record(history_csv, row)
    cli.say(f"{path}: submission {row['ref']}")
    if not no_wait:
        score(kaggle, row, history_csv)


def find(kaggle: client.Connection, row: dict[str, str]) -> int:
    """Return the ref of the submission in `row`, of an interrupted command; 0 if Kaggle does not have it."""
    if row["ref"]:
        return int(row["ref"])
    if submission_log.age(row) > LONG_AGO:
        return submission_requests.find(kaggle, row["tag"])
    what = f"submission [{row['tag']}]"
    limit = submission_requests.LONGEST_LOOK
    log.info("%s was being sent at %s: looking for it at Kaggle, for up to %d s", what, row["time"], limit)
    if not (ref := submission_requests.look(kaggle, row["tag"])):
        log.info("%s is not at Kaggle: sending it again", what)
    return ref


def score(kaggle: client.Connection, row: dict[str, str], history_csv: Path) -> None:
    """Wait for the scores of the submission in `row`, print and record them. Raises RuntimeError without scores."""
    ref = row["ref"]
    try:
        submission = submission_requests.wait(kaggle, int(ref))
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"submission {ref} is at Kaggle, but its scores are unknown ({error}): ask for them with --status"
        ) from error
    submission_log.record(history_csv, submission_log.scored(row, submission))
    if submission.status.name == "ERROR":
        raise RuntimeError(f"submission {ref}: Kaggle cannot score it: {submission.error_description}")
    cli.say(f"public {submission.public_score}  private {submission.private_score}")


def show_status(kaggle: client.Connection, history_csv: Path) -> None:
    """Print the team's latest submissions, and record the scores of those that the history still lacks."""
    found = submission_requests.submissions(kaggle)
    for row in submission_log.read(history_csv):
        for submission in found:
            is_same = row["ref"] == str(submission.ref) or row["tag"] in (submission.description or "")
            if is_same and row["status"] in ("SENDING", "PENDING"):
                submission_log.record(history_csv, submission_log.scored(row, submission))
    fields = ["ref", "date", "public_score", "private_score", "description"]
    rows = [
        {field: str(getattr(submission, field) or "") for field in fields} | {"status": submission.status.name}
        for submission in found
    ]
    cli.say(submission_log.table(rows, ["status", *fields]) if rows else "no submission yet")


def show_history(history_csv: Path) -> None:
    """Print the history."""
    rows = submission_log.read(history_csv)
    cli.say(submission_log.table(rows, submission_log.SHOWN) if rows else f"{history_csv}: no submission yet")
