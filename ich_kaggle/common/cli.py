"""The command line that all commands share: flags, one-line errors and progress."""

import argparse
import logging
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from ich_kaggle.common import recipes

log = logging.getLogger(__name__)

IS_FIRST = "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"  # torchrun numbers its processes
SCRIPT = "ich-kaggle"  # the console script

# All commands but those without --work-dir, kernel, which has parts, and infer, whose work folder is its own.
TAKES_WORK_DIR = re.compile(
    r"python -m ich_kaggle\.(?!(?:download|phantom|demo|kernel|scan|infer)\b)\w+(?! --work-dir)\b"
)
HIDDEN = ("recipe", "debug")  # flags that are not handed to the function of a command
THERE = " exists: nothing to do"  # follows the path of a result
INTERRUPTED = "interrupted: run the same command to resume\n"
OVERWRITING = (
    "interrupted: files that --overwrite replaces may be gone already: run the command without --overwrite to resume, "
    "or with it to start over\n"
)


class _Folds(argparse.Action):
    """Store the values of --fold as a list of int, or as None for `all`."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            folds = None if values == ["all"] else sorted({int(value) for value in values})
        except ValueError:
            parser.error(f"argument --fold: expected `all` or numbers of folds, not {' '.join(values)}")
        setattr(namespace, self.dest, folds)


def within(low: float, high: float = math.inf, kind: type = float) -> Callable[[str], float]:
    """Return the `type` of a flag whose value is a finite number from `low` to `high`, inclusive."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'' if kind is float else 'whole '}number") from None
        if not low <= value <= high or value == math.inf:
            raise argparse.ArgumentTypeError(
                f"{text} is not {low} " + ("or more" if high == math.inf else f"to {high}")
            )
        return value

    return read


POSITIVE = within(1, kind=int)
AUTO = "auto"


def n_workers(text: str) -> int:
    """Return the number `text`; auto: the cores of this process, shared with others of torchrun, at most 16."""
    if text != AUTO:
        return int(text)
    import joblib  # counts affinity and control group

    return max(1, min(16, joblib.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


FLAGS = {
    "--data-dir": dict(
        type=Path,
        help="folder or zip of the competition's data (default: $ICH_DATA_DIR, else the first found of Kaggle's mount "
        "points, input/rsna-intracranial-hemorrhage-detection and the zip of that name)",
    ),
    "--work-dir": dict(type=Path, default=Path("work"), help="folder of everything made from the data"),
    "--run": dict(help="name of the run, a folder in work/runs (default: the name of its recipe or architecture)"),
    "--recipe": dict(help="name of a recipe, or a TOML file: it sets the defaults of the other flags"),
    "--arch": dict(help="timm architecture (default: that of a recipe for the device)"),
    "--fold": dict(action=_Folds, nargs="+", metavar="K", help="one or several folds, or `all` (default: all)"),
    "--folds": dict(dest="n_folds", type=within(2, kind=int), default=5, help="number of folds"),
    "--image-size": dict(type=within(8, 4096, int), default=384, help="px per side of the network's square input"),
    "--cache-size": dict(type=within(8, 4096, int), default=512, help="px per side of the square cached slices"),
    "--crop": dict(
        choices=("none", "study"), default="none", help="none: cache whole slices; study: crop each study to its head"
    ),
    "--epochs": dict(type=POSITIVE, default=4, help="passes over the training data"),
    "--batch-size": dict(type=POSITIVE, default=32, help="slices per step"),
    "--lr": dict(type=within(0), default=2e-4, help="maximum learning rate"),
    "--weights": dict(default="imagenet", help="initial weights: imagenet, none, or a file"),
    "--seed": dict(type=within(0, 2**63 - 1, int), default=0, help="seed of all random numbers"),
    "--device": dict(
        default=AUTO,
        help="auto (all GPUs, else the CPU), cpu, cuda:1; train: also several, a fold each, as cpu,cpu",
    ),
    "--workers": dict(
        type=within(0, kind=n_workers), default=AUTO, help="number of worker processes; auto: one per core, at most 16"
    ),
    "--backend": dict(
        choices=("loky", "dask"), default="loky", help="loky: worker processes on this machine; dask: a Dask cluster"
    ),
    "--scheduler": dict(help="address of the Dask scheduler, as tcp://host:8786 (default: a cluster on this machine)"),
    "--overwrite": dict(action="store_true", help="remove earlier results and make them again"),
}


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        is_switch = action.nargs == 0
        return action.help if is_switch or action.default in (None, "", []) else super()._get_help_string(action)


def _prog(module: str) -> str:
    """Return the command line that starts a module of the package, as the user typed it."""
    name = module.removesuffix(".__main__")
    is_script = Path(sys.argv[0]).stem == SCRIPT
    return name.replace("ich_kaggle", SCRIPT).replace(".", " ") if is_script else f"python -m {name}"


def command(doc: str, *flags: str, **defaults) -> argparse.ArgumentParser:
    """Return the parser of the calling module: its docstring `doc`, the shared `flags`, its own `defaults`."""
    spec = sys._getframe(1).f_globals["__spec__"]  # None for a script; `__name__` is `__main__` behind python -m
    prog = None if spec is None else _prog(spec.name)
    parser = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=_Help, allow_abbrev=False)
    for flag in flags:
        of_folds = ", of the chosen folds" if flag == "--overwrite" and "--fold" in flags else ""
        parser.add_argument(flag, **{**FLAGS[flag], "help": FLAGS[flag]["help"] + of_folds})
    debug = "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=debug)  # `run` reads it
    parser.set_defaults(**defaults)
    return parser


def parse(
    parser: argparse.ArgumentParser,
    argv: list[str] | None = None,
    recorded: Callable[[argparse.Namespace], dict] = lambda options: {},
    default_recipe: Callable[[argparse.Namespace], str | None] = lambda options: None,
) -> argparse.Namespace:
    """Return the flags of `argv`, with its --recipe as the defaults of the others.

    Flags that neither sets are those that `recorded` returns for a run that has begun, else those of the recipe that
    `default_recipe` names, else the defaults of the command.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(argv)
    flags, named = [], getattr(options, "recipe", None)
    if recipe := named or default_recipe(options):
        path = recipes.path_of(recipe)
        parser.set_defaults(run=path.stem)
        flags, read = recipes.flags(parser, path)
        parser.set_defaults(**vars(read))
    parser.set_defaults(**recorded(parser.parse_args(argv)))
    return parser.parse_args([*flags, *argv] if named else argv)


def run(function: Callable, parser: argparse.ArgumentParser, argv: list[str] | None = None, *defaults) -> None:
    """Call `function` with the parsed flags; errors that a user can mend become one line on stderr and exit code 1.

    --debug, or ICH_DEBUG=1 in the environment, prints the traceback first. `defaults` are passed to `parse`.
    """
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s", level=logging.INFO if IS_FIRST else logging.WARNING, stream=sys.stderr)
    logging.captureWarnings(True)
    if "--debug" in argv:
        os.environ["ICH_DEBUG"] = "1"  # for the commands that this one starts as well
    options = {}
    try:
        options = {key: value for key, value in vars(parse(parser, argv, *defaults)).items() if key not in HIDDEN}
        function(**options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if is_debug():
            traceback.print_exception(error)
        default = parser.get_default("work_dir")
        sys.exit(for_work_dir(one_line(error), getattr(parser.parse_args(argv), "work_dir", default), default))
    except KeyboardInterrupt as stop:
        if is_debug():
            traceback.print_exception(stop)
        sys.stderr.write(OVERWRITING if options.get("overwrite") else INTERRUPTED)
        sys.exit(130)


def is_debug() -> bool:
    return os.environ.get("ICH_DEBUG", "0") not in ("", "0")


def one_line(error: Exception) -> str:
    """Return `error` as one line for the user."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return "error: " + printable(text)


def for_work_dir(text: str, work_dir: Path, default: Path = FLAGS["--work-dir"]["default"]) -> str:
    """Return `text` with --work-dir in the commands that it names, unless `work_dir` is the default."""
    if work_dir == default:
        return text
    return TAKES_WORK_DIR.sub(lambda found: f"{found[0]} --work-dir {shlex.quote(str(work_dir))}", text)


def printable(text: str, longest: int = 2000) -> str:
    """Return `text` as one line of at most `longest` characters, without control characters."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 2 * longest].split()))
    return text if len(text) <= longest else text[: longest - 3] + "..."


def say(text: str) -> None:
    """Print a result of the command to stdout; under torchrun, only the first process prints."""
    if not IS_FIRST:
        return
    try:
        print(text, flush=True)
    except UnicodeEncodeError:  # a console of another language
        print(text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding), flush=True)
    except BrokenPipeError:  # behind `| head`: the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Log:
    """The file of a progress bar off a terminal: each state of the bar is a line of the log."""

    def write(self, text: str) -> None:
        if line := text.strip():
            log.info(line)


LINE = "{desc}: {n_fmt} of {total_fmt}{unit} ({percentage:.0f}%), {rate_fmt}, {remaining} left{postfix}"
FIRST_LINE, NEXT_LINE = 10, 30  # s


def progress(items: Iterable | None, total: int, what: str, unit: str = " slices", initial: int = 0) -> Iterable:
    """Return `items` with a progress bar, or with lines in the log if stderr is not a terminal.

    `initial` of the `total` were done before. The unit B counts bytes.
    """
    from tqdm import tqdm

    options = dict(total=total, desc=what, unit=unit, unit_scale=unit == "B", initial=initial, disable=not IS_FIRST)
    if not sys.stderr.isatty():
        options |= dict(file=_Log(), bar_format=LINE, delay=FIRST_LINE, mininterval=NEXT_LINE, maxinterval=NEXT_LINE)
    return tqdm(items, smoothing=0.05, **options)
