"""A self-contained HTML document: one file without scripts, light or dark like the reader's system.

Every text is escaped, and a Content-Security-Policy allows only the document's own style and embedded images.
"""

import base64
import hashlib
import html
import io
from collections.abc import Callable, Iterable

import pandas as pd

INK, INK_IN_THE_DARK = "#24292f", "#d5dbe1"  # of the text and the axes of pictures
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #24292f; --faint: #5b6470; --line: #d5dbe1; --wash: #f3f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #d5dbe1; --faint: #98a2ae; --line: #343c46; --wash: #1c2229 }
}
body { margin: 0 auto; max-width: 1200px; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem } h3 { font-size: 1rem; margin: 0 }
p, figcaption { color: var(--faint); margin: .2rem 0 .8rem; overflow-wrap: anywhere }
figcaption { font-size: .85rem; margin: .4rem 0 0 }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: 8px; background: var(--wash) }
img { display: block; width: 100%; height: auto }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)) }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)) }
.scroll { overflow-x: auto; margin-bottom: 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child, .text td, .text th { text-align: left }
"""


def svg(draw: Callable, size: tuple[float, float]) -> str:
    """Return the drawing of `draw(ax)`, of `size` inches, as SVG: the same bytes each time."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
    with matplotlib.rc_context(dict.fromkeys(ink, INK) | {"svg.hashsalt": "ich_kaggle", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        ax = figure.subplots()
        ax.spines[["top", "right"]].set_visible(False)
        draw(ax)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def drawn(draw: Callable, title: str, caption: str, size: tuple[float, float] = (4.4, 2.5)) -> str:
    """Return a figure with the drawing of `draw(ax)`, of `size` inches, in a light and a dark version."""
    day = svg(draw, size)
    light, dark = (_uri("svg+xml", text.encode()) for text in (day, day.replace(INK, INK_IN_THE_DARK)))
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return _figure(title, f"<picture>{source}{_image(light, f'{title}: {caption}')}</picture>", caption)


def shown(png: bytes, title: str, caption: str, alt: str) -> str:
    """Return a figure with a PNG; `alt` describes it to readers who cannot see it."""
    return _figure(title, _image(_uri("png", png), alt), caption)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _image(uri: str, alt: str) -> str:
    return f'<img src="{uri}" alt="{escaped(alt)}">'


def _figure(title: str, image: str, caption: str) -> str:
    return f"<figure><h3>{escaped(title)}</h3>{image}<figcaption>{escaped(caption)}</figcaption></figure>"


def escaped(text) -> str:
    return html.escape(str(text), quote=True)


def table_of(frame: pd.DataFrame, name: str = "", *, is_text: bool = False) -> str:
    """Return `frame` as an HTML table, its index first, under `name`; every cell escaped."""
    head = "".join(f'<th scope="col">{escaped(text)}</th>' for text in (name, *frame.columns))
    rows = "".join(
        f'<tr><th scope="row">{escaped(index)}</th>{"".join(f"<td>{escaped(cell)}</td>" for cell in cells)}</tr>'
        for index, *cells in frame.itertuples(name=None)
    )
    table = f"<table{' class=text' * is_text}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def section(title: str, note: str, *parts: str) -> str:
    """Return a section of `parts`, HTML, under a title and a note."""
    said = f"<p>{escaped(note)}</p>" if note else ""
    return f"<section><h2>{escaped(title)}</h2>{said}{''.join(parts)}</section>"


def grid(figures: Iterable[str], *, is_wide: bool = False) -> str:
    """Return `figures` side by side, as many per row as fit."""
    return f'<div class="grid{" wide" * is_wide}">{"".join(figures)}</div>'


def page(title: str, note: str, sections: Iterable[str]) -> str:
    """Return the whole document."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{escaped(title)}</h1><p>{escaped(note)}</p><main>{''.join(sections)}</main></body></html>\n"
    )
