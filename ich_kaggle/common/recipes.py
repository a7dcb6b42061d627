"""Recipes: TOML files that set flags of `train`, with a header that says where each comes from and what it costs.

A header holds the lines Source, Memory, Time and Score, and Changed where a recipe departs from its source.
"""

import argparse
import re
from pathlib import Path

from ich_kaggle.common import cli
from ich_kaggle.common.cli import RECIPES, read_recipe

DEFAULT_PX = cli.FLAGS["--image-size"]["default"]
COLUMNS = ("recipe", "network", "px", "GPU memory", "training time", "expected log loss")


def files() -> list[Path]:
    """Return the files of the recipes that the package ships, by name."""
    return sorted(RECIPES.glob("*.toml"))


def header(path: Path) -> dict[str, str]:
    """Return the lines of a recipe's header by their first word, as `Source` or `Score`."""
    return dict(re.findall(r"^# (\w+): *(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))


def listing() -> str:
    """Return one line per recipe: name, network and source, in columns."""
    rows = [(path.stem, read_recipe(path)["arch"], header(path).get("Source", "")) for path in files()]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {arch:{widths[1]}}  {source}" for name, arch, source in rows)


def markdown() -> str:
    """Return the recipes as a Markdown table, which is that of the README."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_row, files())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(path: Path) -> tuple[str, ...]:
    flags, about = read_recipe(path), header(path)
    cells = (about.get(word, "") for word in ("Memory", "Time", "Score"))
    return f"`{path.stem}`", f"`{flags['arch']}`", str(flags.get("image-size", DEFAULT_PX)), *cells


class Listing(argparse.Action):
    """The flag --recipes: print the recipes as a list, or followed by --markdown as a table, and exit."""

    def __init__(self, option_strings, dest, **options):
        options |= dict(nargs=argparse.REMAINDER, metavar="--markdown")
        super().__init__(option_strings, argparse.SUPPRESS, **options)

    def __call__(self, parser, namespace, values, option_string=None):
        if values not in ([], ["--markdown"]):
            parser.error(f"{option_string} takes nothing after it but --markdown: {' '.join(values)}")
        cli.say(markdown() if values else listing())
        parser.exit()
