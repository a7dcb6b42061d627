"""Recipes: TOML files that set flags of `train`, with a header that says where each comes from and what it costs.

A header holds the lines Source, Memory, Time and Score, and Changed where a recipe departs from its source.
"""

import argparse
import re
import tomllib
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
UNSET = ("help", "recipe", "recipes", "debug")  # flags that no recipe sets
COLUMNS = ("recipe", "network", "px", "GPU memory", "training time", "expected log loss")


def files() -> list[Path]:
    """Return the files of the recipes that the package ships, by name."""
    return sorted(RECIPES.glob("*.toml"))


def path_of(name: str) -> Path:
    """Return the file of a recipe, which may be `name` itself. Raises FileNotFoundError listing the recipes."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(path.stem for path in files())
        raise FileNotFoundError(f"no recipe {name}: give a TOML file or one of {known}")
    return path


def read(path: Path) -> dict:
    """Return the flags that a recipe sets, by name. Raises ValueError if the file is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML recipe: {error}") from error


def flags(parser: argparse.ArgumentParser, path: Path) -> tuple[list[str], argparse.Namespace]:
    """Return the flags that a recipe sets, as on a command line, and as `parser` reads them.

    Raises ValueError naming the file for a flag or a value that the command does not have.
    """
    found = []
    for key, value in read(path).items():
        if key in UNSET or isinstance(value, dict):
            raise ValueError(f"{path}: a recipe cannot set {key} = {value}: remove this line")
        if isinstance(value, list):
            found += [f"--{key}", *map(str, value)]
        elif value is not False:
            found.append(f"--{key}" if value is True else f"--{key}={value}")
    try:
        parser.error = lambda message: _refuse(path, message)
        return found, parser.parse_args(found)
    finally:
        del parser.error  # that of the class


def _refuse(path: Path, message: str) -> None:
    raise ValueError(f"{path}: {message}")


def header(path: Path) -> dict[str, str]:
    """Return the lines of a recipe's header by their first word, as `Source` or `Score`."""
    return dict(re.findall(r"^# (\w+): *(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))


def listing() -> str:
    """Return one line per recipe: name, network and source, in columns."""
    rows = [(path.stem, read(path)["arch"], header(path).get("Source", "")) for path in files()]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {arch:{widths[1]}}  {source}" for name, arch, source in rows)


def markdown() -> str:
    """Return the recipes as a Markdown table, which is that of the README."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_row, files())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(path: Path) -> tuple[str, ...]:
    found, about = read(path), header(path)
    cells = (about.get(word, "") for word in ("Memory", "Time", "Score"))
    return f"`{path.stem}`", f"`{found['arch']}`", str(found["image-size"]), *cells


class Listing(argparse.Action):
    """The flag --recipes: print the recipes as a list, or followed by --markdown as a table, and exit."""

    def __init__(self, option_strings, dest, **options):
        options |= dict(nargs=argparse.REMAINDER, metavar="--markdown")
        super().__init__(option_strings, argparse.SUPPRESS, **options)

    def __call__(self, parser, namespace, values, option_string=None):
        if values not in ([], ["--markdown"]):
            parser.error(f"{option_string} takes nothing after it but --markdown: {' '.join(values)}")
        print(markdown() if values else listing())
        parser.exit()
