"""An offline HTML app: index.html, the scripts of `web/`, and the data and pictures of its studies.

No data can run as code: data are JSON with `<` escaped, the scripts write text only, and a Content-Security-Policy
allows only the scripts of the page.
"""

import base64
import hashlib
import html
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from ich_kaggle.common import locks, storage, windows

WEB = Path(__file__).parent / "web"
DIGITS = 5
LARGEST = 400 << 20  # bytes of embedded pictures: browsers hold no string of 512 MB
POLICY = "script-src 'self' file:"  # in web/index.html: --embed replaces it by the hashes of its scripts


class Study(NamedTuple):
    """One study of the page. A Path or bytes anywhere in `data` is an 8-bit PNG."""

    study_id: str
    data: dict


def numbers(values):
    """Return `values` as nested lists of rounded numbers for JSON, None in place of NaN and infinity."""
    values = np.asarray(values, float).round(DIGITS)
    return np.where(np.isfinite(values), values.astype(object), None).tolist()


def to_json(content, place: Callable = repr) -> str:
    """Return `content` as JSON that is safe in a script: ASCII without `<`; `place` converts other objects.

    Raises ValueError for NaN and infinity, which JSON lacks.
    """
    text = json.dumps(content, default=place, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def shown_windows() -> dict[str, dict]:
    """Return the CT windows of the page by name: those of the channels of a cached picture, then bone."""
    return {
        windows.NAMES[one].split()[0]: {
            "title": windows.NAMES[one].capitalize(),
            "key": str(i),
            "level": f"W {one.width} L {one.center}",
        }
        for i, one in enumerate((*windows.CACHED, windows.BONE), 1)
    }


def file_name(study_id: str) -> str:
    """Return the name of a study's file: its id, or a hash of an id that is not a safe file name."""
    if re.fullmatch(r"\w[\w.-]{0,99}", study_id, re.ASCII):
        return study_id
    return "x-" + hashlib.sha256(study_id.encode()).hexdigest()[:16]


def plotly_script() -> str:
    """Return Plotly's script. Raises ImportError naming the extra that installs it."""
    if find_spec("plotly") is None:
        raise ImportError("the plots of the report need Plotly: pip install 'ich_kaggle[report]'")
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def write(folder: Path, content: dict, studies: Iterable[Study], *, embed: bool = False, plots: bool = True) -> None:
    """Write the page of `content` and `studies` into `folder`; the previous page stays until the new one is complete.

    `content` and the data of each study are plain data for the scripts in `web/`. Pictures that are files are linked by
    relative path, or with `embed` put into one index.html with everything else. Raises ValueError if that file would
    be too large for browsers. Plotly is needed for `plots`.
    """
    plotly, content = plotly_script() if plots else "", content | {"windows": shown_windows()}
    with locks.locked(folder), storage.replacing(folder, "report") as new:
        (_embed if embed else _unfold)(new, content, studies, plotly)
        for other in folder.glob("*.html"):  # of other commands, as the page on the data
            if other.name != "index.html":
                shutil.copyfile(other, new / other.name)


def _unfold(new: Path, content: dict, studies: Iterable[Study], plotly: str) -> None:
    (new / "data").mkdir()
    (new / "images").mkdir()

    def place(picture: Path | bytes) -> str:
        if isinstance(picture, Path):
            return quote(Path(os.path.relpath(picture, new)).as_posix())
        name = f"images/{hashlib.sha256(picture).hexdigest()[:16]}.png"
        (new / name).write_bytes(picture)
        return name

    def write_script(name: str, call: str, *arguments) -> None:
        text = ",".join(to_json(argument, place) for argument in arguments)
        (new / name).write_text(f"report.{call}({text});\n", encoding="ascii")

    files = {}
    for study_id, data in studies:
        files[study_id] = f"data/{file_name(study_id)}.js"
        write_script(files[study_id], "keep", study_id, data)
    write_script("data.js", "begin", content, files)
    for source in sorted(WEB.iterdir()):
        if source.suffix in (".html", ".css", ".js"):
            shutil.copyfile(source, new / source.name)
    if plotly:
        (new / "plotly.min.js").write_text(plotly, encoding="utf-8")


def _embed(new: Path, content: dict, studies: Iterable[Study], plotly: str) -> None:
    inert = {"plotly": plotly}  # by id: texts that the page reads on demand
    size = 0

    def place(picture: Path | bytes) -> str:
        nonlocal size
        png = picture if isinstance(picture, bytes) else picture.read_bytes()
        key = hashlib.sha256(png).hexdigest()[:16]
        if key not in inert:
            inert[key] = base64.b64encode(png).decode()
            size += len(inert[key])
        if size > LARGEST:
            raise ValueError(f"--embed: the pictures take more than {LARGEST >> 20} MB: give fewer --studies")
        return f"#{key}"

    for study_id, data in studies:
        inert[f"study-{study_id}"] = to_json(data, place)
    scripts = {path.name: path.read_text(encoding="utf-8") for path in sorted(WEB.glob("*.js"))}
    scripts["data.js"] = f"report.begin({to_json(content, place)}, {{}});"
    (new / "index.html").write_text(_one_file(scripts, inert), encoding="utf-8")


def digest(text: str) -> str:
    """Return how a Content-Security-Policy names an embedded script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _one_file(scripts: dict[str, str], inert: dict[str, str]) -> str:
    """Return index.html with its style, its `scripts` by name and its `inert` texts by id embedded."""
    texts = [*scripts.values(), inert["plotly"]]
    parts = {
        POLICY: "script-src " + " ".join(map(digest, texts)),
        '<link rel="stylesheet" href="style.css">': f"<style>{(WEB / 'style.css').read_text(encoding='utf-8')}</style>",
        "<!-- inert -->": "\n".join(
            f'<script type="text/plain" id="{html.escape(key)}">{text}</script>' for key, text in inert.items()
        ),
        **{f'<script defer src="{name}"></script>': f"<script>{text}</script>" for name, text in scripts.items()},
    }
    page = (WEB / "index.html").read_text(encoding="utf-8")
    # In one pass, so that nothing is replaced inside embedded texts.
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], page)
