"""The log of submissions, submissions/history.csv: a line per submission, failed ones included."""

import csv
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ich_kaggle.common import cli, locks, provenance, storage

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
    with storage.reading(path, "mend or move it"), path.open(encoding="utf-8", newline="") as file:
        rows = list(reader := csv.DictReader(file))
        if reader.fieldnames != COLUMNS or any(None in row or None in row.values() for row in rows):
            raise ValueError(f"each row has {len(COLUMNS)} columns, {','.join(COLUMNS)}")
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
    row = dict.fromkeys(COLUMNS, "") | facts | {"time": now(), "commit": provenance.git_commit() or ""}
    return row | {"tag": f"ich-{uuid.uuid4().hex[:12]}", "status": "SENDING", "note": message}


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def age(row: dict[str, str]) -> float:
    """Return the seconds since `row` was sent; negative if its machine's clock is ahead."""
    return (datetime.now(UTC) - datetime.fromisoformat(row["time"])).total_seconds()


def scored(row: dict[str, str], submission: Any) -> dict[str, str]:
    """Return `row` with the status and the scores of `submission`, a kagglesdk.ApiSubmission."""
    reason = f": {submission.error_description}" if submission.error_description else ""
    return row | {
        "ref": str(submission.ref),
        "status": submission.status.name,
        "public": submission.public_score or "",
        "private": submission.private_score or "",
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
