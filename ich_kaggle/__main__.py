"""List the commands, show the state of the work folder, and name the next command to type.

A command runs as `python -m ich_kaggle.train --fold 0`, `python -m ich_kaggle train --fold 0` or, where the package is
installed, `ich-kaggle train --fold 0`.

Reads:   the work folder, submissions/history.csv
Writes:  nothing
Example: python -m ich_kaggle
         python -m ich_kaggle --work-dir demo/work --submissions-dir demo/submissions
"""

import ast
import csv
import difflib
import importlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ich_kaggle import __version__
from ich_kaggle.common import cli, paths, storage

PIPELINE = ("download", "slices", "folds", "cache", "train", "predict", "sequence", "ensemble", "evaluate", "report")
PIPELINE += ("submit",)
BESIDE = ("phantom", "demo", "pretrain", "explain", "scan", "infer", "kernel")


def summary(name: str) -> str:
    """Return the first sentence of the docstring of a command, which is not imported."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)).splitlines()[0].split(". ")[0].rstrip(".")


def commands() -> str:
    """Return the list of the commands, the pipeline in its order first, with a line each."""
    first, beside = ([_row(name, summary(name)) for name in names] for names in (PIPELINE, BESIDE))
    return "\n".join(
        [
            "The pipeline, in order (slices, cache and predict run by themselves):",
            *first,
            "",
            "Other commands:",
            *beside,
        ]
    )


def _row(name: str, text: str) -> str:
    return f"  {name:11} {text}"


def _numbers(folds: Iterable[int]) -> str:
    return ", ".join(map(str, folds)) or "none"


def slices(work_dir: Path) -> Iterator[str]:
    if (path := paths.slices(work_dir)).exists():
        import pyarrow.parquet

        yield f"{pyarrow.parquet.read_metadata(path).num_rows:,}"


def folds_of(work_dir: Path) -> list[int]:
    """Return the fold of each patient, in the order of folds.csv; empty without that file.

    Raises ValueError if the file is damaged.
    """
    if not (path := paths.folds(work_dir)).exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [int(row["fold"]) for row in csv.DictReader(file)]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise ValueError(f"{path}: damaged: {storage.remedy(path)}") from error


def folds(work_dir: Path) -> Iterator[str]:
    if found := folds_of(work_dir):
        yield f"{len(set(found))}, of {len(found):,} patients"


def caches(work_dir: Path) -> Iterator[str]:
    for path in sorted((work_dir / "cache").glob("*/cache.json")):
        n = storage.read_json(path).get("n_slices")  # written once the cache is complete
        yield f"{path.parent.name}: " + ("incomplete" if n is None else f"complete, {n:,} slices")


def runs(work_dir: Path) -> Iterator[str]:
    n_folds = len(set(folds_of(work_dir)))
    for run in runs_of(work_dir):
        if not run.path.exists():
            yield f"{run.name}: {run.path.name} is missing: {storage.remedy(run.path)}"
            continue
        begun = [k for k in run.begun if k not in run.finished]
        resumable = f", begun {_numbers(begun)}" if begun else ""
        of = f" of {n_folds}" if n_folds else ""
        yield f"{run.name}: finished folds {_numbers(run.finished)}{of}{resumable}; OOF of {_numbers(run.predicted)}"


def runs_of(work_dir: Path) -> list:
    """Return the runs that exist, slice models before second levels."""
    if not (names := paths.run_names(work_dir)):
        return []
    from ich_kaggle.common.runs import Run  # takes most of the time of this command

    found = [Run(work_dir, name) for name in names]
    known = (run for run in found if run.path.exists() or run.begun)
    return sorted(known, key=lambda run: run.path.exists() and run.is_second_level)


def ensembles(work_dir: Path) -> Iterator[str]:
    for name in paths.ensemble_names(work_dir):
        scores = storage.read_json(paths.ensemble(work_dir, name) / "weights.json")
        loss = scores["nested_log_loss"]
        yield f"{name}: {len(scores['single'])} runs" + ("" if loss is None else f", nested log loss {loss:.4f}")


def submissions(submissions_dir: Path) -> Iterator[str]:
    from ich_kaggle.kaggle_api import submission_log

    for row in submission_log.read(submissions_dir / "history.csv")[-1:]:
        scores = [f"{column} {row[column]}" for column in ("oof", "public", "private") if row[column]]
        yield ", ".join([f"{row['time']} {row['name']}", *scores, row["status"]])


def state(work_dir: Path, submissions_dir: Path) -> Iterator[str]:
    """Yield the lines on the work folder; a file that cannot be read is told in place of its content."""
    for part in (slices, folds, caches, runs, ensembles, submissions):
        try:
            lines = list(part(submissions_dir if part is submissions else work_dir)) or ["none"]
        except (OSError, ValueError) as error:
            lines = [cli.for_work_dir(cli.one_line(error), work_dir)]
        for name, line in zip([part.__name__, *[""] * len(lines)], lines, strict=False):
            yield _row(name, line)


def next_command(work_dir: Path, submissions_dir: Path) -> str:
    """Return the command to type next, without --work-dir."""
    if not (paths.slices(work_dir).exists() or any(place.exists() for place in paths.places())):
        return "python -m ich_kaggle.download --all"
    if not (all_folds := sorted(set(folds_of(work_dir)))):
        return "python -m ich_kaggle.folds"
    found = runs_of(work_dir)
    for run in found:
        for k in sorted(set(run.begun) - set(run.finished)):
            return run.resume(k)
    if not any(run.finished for run in found):
        return "python -m ich_kaggle.train --fold 0"
    if not (history := submissions_dir / "history.csv").exists():  # a dry run leaves none
        return "python -m ich_kaggle.submit"
    for run in found:
        for k in sorted(set(all_folds) - set(run.finished)):
            return run.resume(k)
    times = ((run.fold(k) / "predict.json").stat().st_mtime for run in found for k in run.predicted)
    predicted = max(times, default=0.0)
    return f"python -m ich_kaggle.{'submit' if predicted > history.stat().st_mtime else 'report'}"


def overview(*, work_dir: Path, submissions_dir: Path) -> None:
    cli.say(f"{commands()}\n\n{work_dir}:")
    for line in state(work_dir, submissions_dir):
        cli.say(line)
    cli.say(f"\nNext: {cli.for_work_dir(next_command(work_dir, submissions_dir), work_dir)}")


def build_parser():
    parser = cli.command(__doc__, "--work-dir")
    parser.add_argument("--submissions-dir", type=Path, default=Path("submissions"), help="folder of history.csv")
    parser.add_argument("--version", action="version", version=f"ich_kaggle {__version__}")
    return parser


def start(name: str, argv: list[str]) -> None:
    """Run the command `name`; if it does not exist, exit with the nearest names."""
    known = [*PIPELINE, *BESIDE]
    if name not in known:
        nearest = difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"the commands are {', '.join(known)}"
        sys.exit(f"error: no command {cli.printable(name, 60)!r}: {hint}")
    importlib.import_module(f"ich_kaggle.{name}").main(argv)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        start(argv[0], argv[1:])
    else:
        cli.run(overview, build_parser(), argv)


if __name__ == "__main__":
    main()
