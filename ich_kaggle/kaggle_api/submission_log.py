"""The diary of submissions, submissions/history.csv: one line a submission, failures too."""

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
WIDEST = 120  # letters of a cell
SIDE, MARGIN = 480, 70  # px of the plot


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows, the oldest first; none without the file. Raises ValueError if it is damaged."""
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
    """Put `row` in place of the one with its tag, or behind the last."""
    with locks.locked(path):
        rows = {old["tag"]: old for old in read(path)} | {row["tag"]: row}
        with storage.writing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())


def new_row(message: str, **facts: str) -> dict[str, str]:
    """Return the row of a submission to be sent: `facts` (name, file, sha256, runs, oof), and a tag of its own."""
    return (
        dict.fromkeys(COLUMNS, "")
        | facts
        | {
            "time": now(),
            "commit": paths.git_commit() or "",
            "tag": f"ich-{uuid.uuid4().hex[:12]}",
            "status": "SENDING",
            "note": message,
        }
    )


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def age(row: dict[str, str]) -> float:
    """Return the seconds since `row` was sent: below 0 if by the clock of a machine that is ahead, or not a time."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(row["time"])).total_seconds()
    except (ValueError, TypeError):
        return -1


def scored(row: dict[str, str], submission: Any) -> dict[str, str]:
    """Return `row` with what Kaggle says of it: `submission`, a kagglesdk.ApiSubmission."""
    reason = f": {submission.error_description}" if submission.error_description else ""
    return row | {
        "ref": str(submission.ref),
        "status": submission.status.name,
        "public": _number(submission.public_score),
        "private": _number(submission.private_score),
        "note": row["note"] + reason,
    }


def cut_short(rows: list[dict[str, str]], file: str, digest: str) -> dict[str, str] | None:
    """Return the last row of a file that was being sent when its command stopped; None if there is none."""
    wanted = dict(file=file, sha256=digest, status="SENDING")
    return next((row for row in reversed(rows) if wanted.items() <= row.items()), None)


def already_sent(rows: list[dict[str, str]], file: str, digest: str) -> dict[str, str] | None:
    """Return the row of the same file that may have arrived, or waits for its scores.

    Raises FileExistsError if Kaggle is done with it, and ValueError if it, or its row, is not what it was.
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
    """Draw (out-of-fold, private) `points`, the last one filled, over the line where both are equal."""
    from PIL import Image, ImageDraw

    values = [value for point in points for value in point]
    low, high = min(values), max(values)
    pad = (high - low or abs(high) or 1) / 10
    low, high = low - pad, high + pad
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        scale = (SIDE - 2 * MARGIN) / (high - low)
        return MARGIN + (x - low) * scale, SIDE - MARGIN - (y - low) * scale

    draw.rectangle((*at(low, high), *at(high, low)), outline="gray")
    draw.line((*at(low, low), *at(high, high)), fill="lightgray", width=2)
    for value in (low, (low + high) / 2, high):
        draw.text((at(value, low)[0], SIDE - MARGIN + 6), f"{value:.4f}", "black", anchor="ma", font_size=12)
        draw.text((MARGIN - 6, at(low, value)[1]), f"{value:.4f}", "black", anchor="rm", font_size=12)
    draw.text((SIDE / 2, SIDE - MARGIN / 2), "out-of-fold log loss", "black", anchor="ma", font_size=14)
    draw.text((SIDE / 2, MARGIN / 2), "private log loss", "black", anchor="mm", font_size=14)
    for point in points:
        x, y = at(*point)
        draw.ellipse(
            (x - 5, y - 5, x + 5, y + 5), outline="navy", width=2, fill="navy" if point == points[-1] else None
        )
    with storage.writing(path) as temporary:
        image.save(temporary, "png")
