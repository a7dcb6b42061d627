"""The log of submissions, submissions/history.csv: a line per submission, failed ones included."""

import csv
import math
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ich_kaggle.common import cli, locks, paths, storage

COLUMNS = [
    *("time", "name", "file", "sha256", "commit", "runs", "oof"),
    *("tag", "ref", "status", "public", "private", "note"),
]
SHOWN = ["time", "name", "oof", "public", "private", "status", "ref", "note"]
WIDEST = 120  # characters of a cell


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows, oldest first; none if `path` does not exist. Raises ValueError if it is damaged."""
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames, list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: damaged ({error}): mend or move it") from error
    if columns != COLUMNS or any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{path}: damaged, each row has {len(COLUMNS)} columns, {','.join(COLUMNS)}: mend or move it")
    for line, row in enumerate(rows, 2):
        if wrong := [key for key in ("oof", "public", "private") if not _is_number(row[key])]:
            raise ValueError(f"{path}: damaged, {wrong[0]} in row {line} is {row[wrong[0]]!r}: mend or move it")
    return rows


def record(path: Path, row: dict[str, str]) -> None:
    """Replace the row that has the tag of `row`, or append `row`."""
    with locks.locked(path):
        rows = {old["tag"]: old for old in read(path)} | {row["tag"]: row}
        with storage.writing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())


def new_row(message: str, **facts: str) -> dict[str, str]:
    """Return the row of a submission to be sent: `facts` (name, file, sha256, runs, oof), and a new tag."""
    row = dict.fromkeys(COLUMNS, "") | facts | {"time": now(), "commit": paths.git_commit() or ""}
    return row | {"tag": f"ich-{uuid.uuid4().hex[:12]}", "status": "SENDING", "note": message}


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def age(row: dict[str, str]) -> float:
    """Return the seconds since `row` was sent; negative if its machine's clock is ahead, or its time is unreadable."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(row["time"])).total_seconds()
    except (ValueError, TypeError):
        return -1


def scored(row: dict[str, str], submission: Any) -> dict[str, str]:
    """Return `row` with the status and the scores of `submission`, a kagglesdk.ApiSubmission."""
    reason = f": {submission.error_description}" if submission.error_description else ""
    return row | {
        "ref": str(submission.ref),
        "status": submission.status.name,
        "public": _number(submission.public_score),
        "private": _number(submission.private_score),
        "note": row["note"] + reason,
    }


def cut_short(rows: list[dict[str, str]], file: str, digest: str) -> dict[str, str] | None:
    """Return the last row of a file whose command was interrupted while sending; None without one."""
    wanted = dict(file=file, sha256=digest, status="SENDING")
    return next((row for row in reversed(rows) if wanted.items() <= row.items()), None)


def already_sent(rows: list[dict[str, str]], file: str, digest: str) -> dict[str, str] | None:
    """Return the row of the same file that may have arrived or waits for its scores; None without one.

    Raises FileExistsError if Kaggle has finished with it, and ValueError if the file or its row has changed since.
    """
    is_ours = re.match(r"\d{8}T\d{6}Z-", file)  # with the time in its name: no two are called so
    for row in rows if is_ours else ():
        if row["file"] == file and row["sha256"] != digest and row["status"] != "REFUSED":
            raise ValueError(
                f"{file} was sent with other numbers (sha256 {row['sha256'][:12]}, now {digest[:12]}): "
                "mend the history, or send it once more with --again"
            )
    same = [row for row in rows if row["sha256"] == digest and row["status"] != "REFUSED"]
    for row in same:
        if row["ref"] and row["status"] != "PENDING":
            raise FileExistsError(
                f"{row['file']}: Kaggle has these numbers as submission {row['ref']} ({row['status']}): see --history, "
                "or send them once more with --again"
            )
    return same[-1] if same else None


def table(rows: list[dict[str, str]], columns: list[str]) -> str:
    """Return `rows` as text in aligned columns."""
    lines = [columns, *([cli.printable(row[column], WIDEST) or "-" for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def points(rows: list[dict[str, str]]) -> list[tuple[float, float]]:
    """Return (out-of-fold, private) log loss of the rows that have both."""
    return [(float(row["oof"]), float(row["private"])) for row in rows if row["oof"] and row["private"]]


def _number(text: str | None) -> str:
    return text if text and _is_number(text) else ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text or 0))
    except ValueError:
        return False


def plot(path: Path, points: list[tuple[float, float]]) -> None:
    """Draw (out-of-fold, private) `points`, the latest one filled, over the line on which both are equal."""
    from matplotlib.figure import Figure

    axes = Figure((4.8, 4.8), layout="constrained").add_subplot(
        xlabel="out-of-fold log loss", ylabel="private log loss"
    )
    axes.axline((points[0][0],) * 2, slope=1, color="lightgray")
    fill = ["none"] * (len(points) - 1) + ["navy"]
    axes.scatter(*zip(*points, strict=True), facecolors=fill, edgecolors="navy", linewidths=1.5)
    axes.axis("square")
    with storage.writing(path) as temporary:
        axes.figure.savefig(temporary, format="png")
