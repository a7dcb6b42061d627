import html
import re
import shutil
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from ich_kaggle import report as command
from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.html import app, data_report

HOSTILE = """"><script>alert('x')</script>&amp;"""


class Page(HTMLParser):
    """The tables of a page, as lists of rows of text, its pictures' alternatives, and all its tags with attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.alts, self.tags, self.is_cell = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.is_cell = True
        if tag == "img":
            self.alts.append(dict(attributes)["alt"])

    def handle_endtag(self, tag):
        self.is_cell = self.is_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.is_cell:
            self.tables[-1][-1][-1] += data


def report(work: Path, *flags: str) -> str:
    command.main(["--work-dir", str(work), "--data", "--workers", "1", *flags])
    return (work / "report" / "data.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(prepared, tmp_path_factory) -> str:
    return report(Path(shutil.copytree(prepared, tmp_path_factory.mktemp("report") / "work")))


def test_the_tables_hold_what_pandas_counts(text, prepared):
    table, (size, labels, both, *_) = tables.read_slices(prepared), Page(text).tables
    for row, split in zip(size[1:], ("train", "test"), strict=True):
        part = table[table.split == split]
        ids = (part.series_id, part.study_id, part.patient_id)
        assert row == [split, str(len(part)), *(str(len(set(column))) for column in ids)]
    train = table[table.split == "train"]
    for row, label in zip(labels[1:], LABELS, strict=True):
        with_label = train[train[label] == 1]
        wanted = [label, str(len(with_label)), f"{len(with_label) / len(train):.2%}"]
        for ids in ("study_id", "patient_id"):
            n = with_label[ids].nunique()
            wanted += [str(n), f"{n / train[ids].nunique():.2%}"]
        assert row == wanted
    for row, first in zip(both[1:], LABELS, strict=True):
        assert row[1:] == [str(int(((train[first] == 1) & (train[second] == 1)).sum())) for second in LABELS]


def table_of(positions: dict[str, list[float]]) -> pd.DataFrame:
    """Return a slice table with a series for each split and name, `train a`, at these positions (mm)."""
    rows = [(*name.split(), position) for name, at in positions.items() for position in at]
    table = pd.DataFrame(rows, columns=["split", "series_id", "position"])
    same = dict(rows=512, columns=512, row_spacing=0.5, intercept=-1024.0, bits=16, signed=True, tilt=0.0)
    return table.assign(**same)


def test_facts_of_series_are_the_median_gap_and_the_number_of_slices():
    table = table_of({"train a": [0, 5, 10, 12], "train b": [7, 8], "test c": [3], "test d": [0, 2.5]})
    facts = data_report.facts(table)
    spacing = facts["slice spacing, mm (median of a series)"]
    assert sorted(spacing["train"]) == [1, 5] and spacing["test"].tolist() == [2.5]
    assert {split: sorted(n) for split, n in facts["slices in a series"].items()} == {
        "train": [2, 4],
        "test": [1, 2],
    }
    assert facts["bits stored"]["train"].unique().tolist() == ["16 signed"]
    few = data_report.shares(facts["slices in a series"])
    assert few.train.to_dict() == {1: 0, 2: 50, 4: 50} and few.test.to_dict() == {1: 50, 2: 50, 4: 0}
    assert data_report.shares({"train": pd.Series(range(9))}) is None


def test_the_pixels_of_all_slices_have_the_hu_that_pydicom_says(competition, prepared):
    data, table = paths.find_data(competition), tables.read_slices(prepared).head(9)
    found = data_report.sample_pixels(data, table, np.random.default_rng(0))
    counted = np.zeros(8192, int)
    for path in table.path:
        dataset = pydicom.dcmread(competition / path)
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        hu[hu <= -2000] = -1024  # padding
        np.add.at(counted, hu.astype(int) + 4096, 1)
    assert (found["train"] == counted).all()


def test_the_sample_is_as_large_as_said_and_comes_from_the_seed(competition, prepared, monkeypatch):
    monkeypatch.setattr(data_report, "N_SAMPLED", 5)
    data, table = paths.find_data(competition), tables.read_slices(prepared)

    def counts(seed):
        found = data_report.sample_pixels(data, table, np.random.default_rng(seed))
        assert [n.sum() for n in found.values()] == [5 * 64 * 64] * 2
        return found["train"]

    assert (counts(0) == counts(0)).all() and (counts(0) != counts(1)).any()


def test_the_page_loads_nothing_and_runs_nothing(text):
    page = Page(text)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert len(page.alts) >= 14 and all(page.alts)


def test_the_same_seed_gives_the_same_page(text, work):
    def without_folder(page: str) -> str:
        return re.sub(r"<p>[^<]*</p>", "", page)

    assert without_folder(report(work)) == without_folder(text) and "drawn with --seed 0." in text


def test_strings_of_headers_are_shown_as_text_and_the_seed_is_told(data_dir_of_strangers, tmp_path):
    data_dir, name = data_dir_of_strangers
    page = report(tmp_path / "work", "--data-dir", str(data_dir), "--seed", "1")
    assert "drawn with --seed 1." in page
    assert HOSTILE not in page and "<script" not in page
    assert html.escape(name) in page
    assert {tag for tag, _ in Page(page).tags} & {"script", "iframe", "object"} == set()


@pytest.fixture
def data_dir_of_strangers(competition, tmp_path) -> tuple[Path, str]:
    """A competition in a folder with a strange name, whose ids are markup, with a slice that can't be read."""
    root = Path(shutil.copytree(competition, tmp_path / "<b>in&put"))
    for path in sorted(root.glob("stage_2_t*/*.dcm")):
        dataset = pydicom.dcmread(path)
        for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
            dataset[keyword]._value = f"{HOSTILE}{dataset[keyword].value}"
        dataset.save_as(path)
    return root, "<b>in&put"


def test_report_on_real_slices(real_data, tmp_path):
    page = report(tmp_path / "work", "--data-dir", str(real_data))
    table = tables.read_slices(tmp_path / "work")
    assert Page(page).tables[0][1][1] == f"{(table.split == 'train').sum():,}"


@pytest.mark.skipif(
    find_spec("playwright") is None or shutil.which("chromium") is None, reason="needs playwright and chromium"
)
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_every_picture_without_a_complaint(text, tmp_path, scheme):
    from playwright.sync_api import sync_playwright

    path, told = tmp_path / "data.html", []
    path.write_text(text, encoding="utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (390, 1280):
            tab = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            tab.on("console", lambda message: told.append(message.text))
            tab.on("pageerror", lambda error: told.append(str(error)))
            tab.on("request", lambda request: request.url.startswith(("data:", "file:")) or told.append(request.url))
            tab.goto(path.as_uri())
            tab.wait_for_function("[...document.images].every(image => image.complete)")
            assert tab.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert told == []


def test_the_report_on_runs_leaves_the_report_on_data_where_it_is(tmp_path):
    pytest.importorskip("plotly")
    storage.claim(tmp_path / "report", "report")
    (tmp_path / "report" / "data.html").write_text("the data")
    app.write(tmp_path / "report", {}, [])
    assert (tmp_path / "report" / "index.html").exists()
    assert (tmp_path / "report" / "data.html").read_text() == "the data"
