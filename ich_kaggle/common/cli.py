"""What every command shares: flags, recipes, one-line errors, progress bars."""

import argparse
import logging
import math
import os
import re
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Self

log = logging.getLogger(__name__)

RECIPES = Path(__file__).parents[1] / "recipes"

IS_FIRST = os.environ.get("RANK", "0") == "0"  # torchrun numbers its processes

THERE = " exists: nothing to do"  # said of a file that a command would have made
INTERRUPTED = "interrupted: run the same command to resume\n"
OVERWRITING = (
    "interrupted: files that --overwrite replaces may be gone already: run the command without --overwrite to resume, "
    "or with it to start over\n"
)


class _Folds(argparse.Action):
    """Turn the words of --fold into numbers, None for all."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            folds = None if values == ["all"] else [int(value) for value in values]
        except ValueError:
            parser.error(f"argument --fold: {' '.join(values)} is not all, or numbers of folds")
        setattr(namespace, self.dest, folds)


def within(low: float, high: float = math.inf, kind: type = float) -> Callable[[str], float]:
    """Return the `type` of a flag that takes a finite number from `low` to `high`, both included."""

    def read(text: str) -> float:
        if not low <= (value := kind(text)) <= high or value == math.inf:
            raise argparse.ArgumentTypeError(
                f"{text} is not {low} " + ("or more" if high == math.inf else f"to {high}")
            )
        return value

    read.__name__ = kind.__name__  # of which argparse says that it is invalid
    return read


POSITIVE = within(1, kind=int)


FLAGS = {
    "--data-dir": dict(
        type=Path,
        help="Kaggle's folder or zip (default: the first found of $ICH_DATA_DIR, Kaggle's mount points, "
        "input/rsna-intracranial-hemorrhage-detection, and that name with .zip)",
    ),
    "--work-dir": dict(type=Path, default=Path("work"), help="everything made from the data"),
    "--run": dict(help="name of a folder in work/runs (default: the recipe's or the architecture's name)"),
    "--recipe": dict(help="name of a recipe, or a TOML file: sets defaults, a flag wins over it"),
    "--arch": dict(help="a timm architecture that ends in one linear layer (default: that of a recipe for the device)"),
    "--fold": dict(action=_Folds, nargs="+", metavar="K", help="one or several folds (default: all)"),
    "--folds": dict(dest="n_folds", type=within(2, kind=int), default=5, help="number of folds"),
    "--image-size": dict(type=within(8, 4096, int), default=384, help="px of the square image that the network sees"),
    "--cache-size": dict(type=within(8, 4096, int), default=512, help="px of the square cached slices"),
    "--crop": dict(choices=("none", "study"), default="none", help="study: one square box round the head per study"),
    "--epochs": dict(type=POSITIVE, default=4, help="passes over the training slices"),
    "--batch-size": dict(type=POSITIVE, default=32, help="slices in a step"),
    "--lr": dict(type=within(0), default=2e-4, help="highest learning rate"),
    "--weights": dict(default="imagenet", help="imagenet, none, or a file to start from"),
    "--seed": dict(type=within(0, 2**63 - 1, int), default=0, help="every random draw comes from it"),
    "--device": dict(default="auto", help="auto, cpu, cuda, cuda:1"),
    "--workers": dict(type=within(0, kind=int), default=os.cpu_count(), help="processes"),
    "--backend": dict(choices=("loky", "dask"), default="loky", help="this machine's cores, or a Dask cluster"),
    "--scheduler": dict(help="address of the Dask cluster, as tcp://host:8786 (default: one of this machine)"),
    "--overwrite": dict(action="store_true", help="make again what is there"),
    "--dry-run": dict(action="store_true", help="stop before anything that cannot be undone"),
}


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def command(doc: str, *flags: str, **defaults) -> argparse.ArgumentParser:
    """Return a parser whose description is `doc`, with the shared `flags`, some with a command's own default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=_Help, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag, **FLAGS[flag])
    # Suppressed: only `run` knows of it, no command has to take it.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser.set_defaults(**defaults)
    return parser


def parse(
    parser: argparse.ArgumentParser,
    argv: list[str] | None = None,
    recorded: Callable[[argparse.Namespace], dict] = lambda options: {},
    default_recipe: Callable[[argparse.Namespace], str | None] = lambda options: None,
) -> argparse.Namespace:
    """Return the flags of `argv`; what it leaves out comes from its --recipe, then from the defaults.

    The defaults are the settings that `recorded` gives of the run that the flags name, if it has begun, or else those
    of the recipe that `default_recipe` names.
    """
    options = parser.parse_args(argv)
    named = getattr(options, "recipe", None)
    if recipe := named or default_recipe(options):
        path = recipe_path(recipe)
        parser.set_defaults(run=path.stem)
        _apply(parser, read_recipe(path), path)
    parser.set_defaults(**recorded(parser.parse_args(argv)))
    if named:
        _apply(parser, read_recipe(path), path)
    return parser.parse_args(argv)


def recipe_path(name: str) -> Path:
    """Return the file of a recipe. Raises FileNotFoundError naming those that there are."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise FileNotFoundError(f"no recipe {name}: give a TOML file or one of {known}")
    return path


def read_recipe(path: Path) -> dict:
    """Return the flags that a recipe sets, by name. Raises ValueError naming the file if it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML recipe: {error}") from error


def describe_recipes() -> str:
    """Return a line a recipe: its name, its architecture and where it comes from."""
    rows = []
    for path in sorted(RECIPES.glob("*.toml")):
        source = re.search(r"^# Source: *(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        rows.append((path.stem, str(read_recipe(path)["arch"]), source[1] if source else ""))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {arch:{widths[1]}}  {source}" for name, arch, source in rows)


def _apply(parser: argparse.ArgumentParser, recipe: dict, path: Path) -> None:
    actions = {action.option_strings[-1][2:]: action for action in parser._actions if action.option_strings}
    known = sorted(set(actions) - {"help", "recipe", "recipes", "debug"})
    for key, value in recipe.items():
        if key not in known:
            raise ValueError(f"{path}: unknown key {key}: the flags of this command are {', '.join(known)}")
        action = actions[key]
        is_switch, is_list = action.nargs == 0, action.nargs == "+"
        try:
            if is_switch != isinstance(value, bool) or is_list != isinstance(value, list):
                raise ValueError("of another kind")
            values = [value] if is_switch else [_meaning(action, one) for one in (value if is_list else [value])]
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{path}: {key} = {value!r} is not what --{key} takes") from error
        if action.choices is not None and not set(values) <= set(action.choices):
            raise ValueError(f"{path}: {key} = {value!r}: choose from {', '.join(map(str, action.choices))}")
        parser.set_defaults(**{action.dest: values if is_list else values[0]})


def _meaning(action: argparse.Action, value):
    """Return what a recipe's `value` is for a flag. Raises ValueError for one of another kind."""
    is_text = isinstance(value, str)
    if not (is_text or (action.type is not None and isinstance(value, int | float) and math.isfinite(value))):
        raise ValueError("of another kind")
    return value if action.type is None else action.type(str(value))


def run(function: Callable, parser: argparse.ArgumentParser, argv: list[str] | None = None, *defaults) -> None:
    """Call `function` with the parsed flags; what a user can mend ends in one line on stderr and exit code 1.

    With --debug, or ICH_DEBUG=1 in the environment, the traceback stands before that line. `defaults` are those of
    `parse`.
    """
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s", level=logging.INFO if IS_FIRST else logging.WARNING, stream=sys.stderr)
    logging.captureWarnings(True)
    if "--debug" in argv:
        os.environ["ICH_DEBUG"] = "1"  # for the commands that this one starts, too
    options = {}
    try:
        options = vars(parse(parser, argv, *defaults))
        for name in ("recipe", "debug"):
            options.pop(name, None)
        function(**options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if is_debug():
            traceback.print_exception(error)
        sys.exit(one_line(error))
    except KeyboardInterrupt as stop:
        if is_debug():
            traceback.print_exception(stop)
        sys.stderr.write(OVERWRITING if options.get("overwrite") else INTERRUPTED)
        sys.exit(130)


def is_debug() -> bool:
    return os.environ.get("ICH_DEBUG", "0") not in ("", "0")


def one_line(error: Exception) -> str:
    """Return what to tell the user of `error`, in one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return "error: " + printable(text)


def printable(text: str, longest: int = 2000) -> str:
    """Return `text` in one line of at most `longest` characters, without those that steer a terminal."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 2 * longest].split()))
    return text if len(text) <= longest else text[: longest - 3] + "..."


def say(text: str) -> None:
    """Print a command's result to stdout; of the processes that torchrun starts, the first speaks."""
    if IS_FIRST:
        print(text, flush=True)


def progress(items: Iterable | None, total: int, what: str, unit: str = " slices", initial: int = 0) -> Iterable:
    """Return `items` behind a bar with rate and time left, or off a terminal behind lines of a log.

    `initial` of the `total` were done before. The unit B counts bytes.
    """
    if IS_FIRST and not sys.stderr.isatty():
        return ProgressLog(items, total, what, unit, initial)
    from tqdm import tqdm

    options = dict(desc=what, unit=unit, unit_scale=unit == "B", initial=initial, smoothing=0.05)
    return tqdm(items, total=total, disable=not IS_FIRST, **options)


FIRST_LINE, NEXT_LINE = 10, 60  # s


class ProgressLog:
    """Progress as lines of a log: after 10 s, then every minute, and at the end; short work has none.

    Used like tqdm: iterated over, or updated inside a `with`.
    """

    def __init__(self, items: Iterable | None, total: int, what: str, unit: str, initial: int):
        self.items, self.total, self.what, self.initial = items, total, what, initial
        self.scale, self.unit = (1e6, " MB") if unit == "B" else (1, unit)
        self.n, self.n_told, self.postfix = initial, None, ""
        self.start = monotonic()
        self.due = self.start + FIRST_LINE

    def __iter__(self) -> Iterator:
        with self:
            for item in self.items:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if self.n_told not in (None, self.n):
            self.tell()

    def update(self, n: int = 1) -> None:
        self.n += n
        if (now := monotonic()) >= self.due:
            self.tell()
            self.due = now + NEXT_LINE

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        self.postfix = f", {text}"

    def tell(self) -> None:
        self.n_told = self.n
        seconds = monotonic() - self.start
        rate = (self.n - self.initial) / seconds
        left = f"{_clock((self.total - self.n) / rate)} left" if rate > 0 else "time left unknown"
        n, total, speed = f"{self.n / self.scale:,.0f}", f"{self.total / self.scale:,.0f}", f"{rate / self.scale:,.1f}"
        log.info(
            f"{self.what}: {n} of {total}{self.unit} ({100 * self.n // max(self.total, 1)}%), {speed}{self.unit}/s, "
            f"{left if self.n < self.total else f'in {_clock(seconds)}'}{self.postfix}"
        )


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
