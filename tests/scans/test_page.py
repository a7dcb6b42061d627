import json
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import packed
import pydicom
import pytest
from made_report import given
from pydicom.config import disable_value_validation
from pydicom.pixels import apply_modality_lut

from ich_kaggle import scan
from ich_kaggle.common import windows
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import png, slice_image
from ich_kaggle.html import app
from ich_kaggle.scans import chosen_series, model_bundle, output, page, results

HOSTILE = "</script><img src=x onerror='window.ran=1'>"
KERNEL = "<IMG SRC=X>"  # a kernel is told in capitals
CSVS = ("slices.csv", "studies.csv")
NONE = "9.9"  # a study that is not read


@pytest.fixture(scope="module", autouse=True)
def share_unread():
    """Let one of the seven slices of a study be unreadable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chosen_series, "UNREAD", 0.2)
        yield


@pytest.fixture(scope="module")
def model(prepared) -> Path:
    return packed.work_of(prepared).parent / "levels.zip"


def change(path: Path, copy: Path, **values) -> None:
    with disable_value_validation():
        dataset = pydicom.dcmread(path)
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.save_as(copy)


@pytest.fixture(scope="module")
def pile(competition, tmp_path_factory) -> Path:
    """The test patients, that of most slices with a hostile id, a slice cut off and a second series; one is refused."""
    folder, by_study = tmp_path_factory.mktemp("reading") / "pile", {}
    shutil.copytree(competition / "stage_2_test", folder)
    for path in sorted(folder.iterdir()):
        by_study.setdefault(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID, []).append(path)
    longest = max(by_study.values(), key=len)
    other = next(paths for paths in by_study.values() if paths is not longest)
    change(other[0], folder / "none", StudyInstanceUID=NONE, SOPInstanceUID="9.9.1", BodyPartExamined="KNEE")
    for i, path in enumerate(longest):
        change(path, path, StudyInstanceUID=HOSTILE)
        twin = dict(SeriesInstanceUID="zz", SOPInstanceUID=f"zz{i}", ConvolutionKernel=KERNEL)
        change(path, folder / f"twin{i}", **twin, ImageType=["DERIVED", "PRIMARY", "AXIAL"])
    longest[1].write_bytes(longest[1].read_bytes()[:-100])
    return folder


def run(pile: Path, model: Path, out: Path, *flags: str) -> Path:
    scan.main(["--dicom", str(pile), "--models", str(model), "--out", str(out), "--workers", "0", *flags])
    return out


@pytest.fixture(scope="module")
def out(pile, model) -> Path:
    return run(pile, model, pile.parent / "out", "--report")


@pytest.fixture
def told(out) -> dict:
    return json.loads((out / results.DONE).read_text(encoding="utf-8"))


def of_page(out: Path, study: str) -> dict:
    _, files = given(out / "report" / "data.js")
    return given(out / "report" / files[study])[1]


def test_the_page_says_what_the_json_says(out, told):
    content, files = given(out / "report" / "data.js")
    assert content["reading"]["intended_use"] == told["intended_use"] and content["labels"] == list(LABELS)
    assert content["reading"]["slices"] == list(told["thresholds"]["slices"].values())
    assert content["reading"]["studies"] == list(told["thresholds"]["studies_max"].values())
    assert list(files) == [one["study"] for one in told["studies"]] and {HOSTILE, NONE} < set(files)
    for one, row in zip(told["studies"], content["studies"], strict=True):
        data = of_page(out, one["study"])
        assert data["slices"] == [part["slice"] for part in one["slices"]]
        assert data["series"] == one["series"]
        for part, probability, flags in zip(one["slices"], data["probability"][0], data["flags"], strict=True):
            assert probability == list(part.get("probability", dict.fromkeys(LABELS)).values())
            assert flags == list(part.get("flags", dict.fromkeys(LABELS)).values())
        assert row["max"] == list(one.get("max", dict.fromkeys(LABELS)).values())
    assert not {"target", "losses", "worst"} & set(content) and "target" not in of_page(out, HOSTILE)


def test_the_pictures_are_the_slices_and_an_unread_one_has_none(out, told, pile, model):
    data = of_page(out, HOSTILE)
    (one,) = (one for one in told["studies"] if one["study"] == HOSTILE)
    size = max(kind["size"] for kind in model_bundle.read(model).packed["pictures"].values())
    is_read = ["probability" in part for part in one["slices"]]
    assert is_read.count(False) == 1
    for i, part in enumerate(one["slices"]):
        if not is_read[i]:
            assert data["images"]["cached"][i] is data["images"]["bone"][i] is None
            continue
        cached, bone = (png.read(out / "report" / data["images"][kind][i]) for kind in ("cached", "bone"))
        content = (pile / part["file"]).read_bytes()
        assert np.array_equal(cached, slice_image.picture(content, part["file"], size).image)
        dataset = pydicom.dcmread(pile / part["file"])
        hu = apply_modality_lut(dataset.pixel_array, dataset)
        assert hu.shape == (size, size)
        assert np.array_equal(bone, windows.apply(hu, (windows.BONE,))[..., 0])


def test_tables_and_json_are_the_same_with_the_page_and_without(out, pile, model, tmp_path):
    plain = run(pile, model, tmp_path / "plain")
    assert sorted(path.name for path in plain.iterdir()) == sorted([*CSVS, results.DONE])
    for name in (*CSVS, results.DONE):
        assert (plain / name).read_bytes() == (out / name).read_bytes()


def refusal(*flags) -> str:
    with pytest.raises(SystemExit) as stop:
        scan.main([*map(str, flags), "--workers", "0"])
    return str(stop.value)


def test_a_page_is_not_overwritten_unasked_nor_left_with_other_predictions(out, pile, model, tmp_path):
    flags = ("--dicom", pile, "--models", model, "--out", tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("mine")
    assert f"{tmp_path / 'report' / 'index.html'} exists: give another --out" in refusal(*flags, "--report")
    assert f"{tmp_path / 'report'} exists, made by something else, not by report" in refusal(
        *flags, "--report", "--overwrite"
    )
    (tmp_path / results.DONE).write_bytes(output.MADE[results.DONE])
    assert "shows the predictions to be overwritten: give --report as well" in refusal(*flags, "--overwrite")
    assert (tmp_path / "report" / "index.html").read_text() == "mine"


def test_pictures_of_one_study_are_in_memory_at_once(monkeypatch, tmp_path):
    """Twelve studies take about twice the memory of one: that being made, and the one before it."""
    label = dict.fromkeys(LABELS, 0.5)
    part = {"slice": "1", "file": "1", "position_mm": 0.0, "note": "", "probability": label, "flags": label}
    noise = np.random.default_rng(0)

    class Source:
        def words(self):
            return ()

    class Row:
        source = Source()

    monkeypatch.setattr(page, "pictures", lambda *_: (noise.bytes(1 << 20), noise.bytes(1 << 18)))
    content = {"labels": LABELS}

    def peak(n: int) -> int:
        found = [{"study": f"{i}", "read": "s", "series": [{}], "slices": [part] * 8} for i in range(n)]
        studies = (page.study(one, [Row()] * 8, 64) for one in found)
        tracemalloc.start()
        app.write(tmp_path / f"{n}", content, studies, plots=False)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    assert peak(12) < 2.4 * peak(1)


@pytest.fixture(scope="module")
def browsing():
    import test_report_page

    if test_report_page.CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with test_report_page.playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=test_report_page.CHROMIUM, args=["--no-sandbox"])
        yield browser, test_report_page
        browser.close()


def test_the_page_shows_in_a_browser_what_was_read(browsing, out, told):
    browser, helpers = browsing
    expect = helpers.expect
    with helpers.opened(browser, out / "report" / "index.html") as shown:
        shown.wait_for_selector("#stage img.on")
        assert shown.locator("#intended").inner_text() == told["intended_use"]
        assert not shown.locator("nav").is_visible() and shown.locator("#overview > *, #worst > *").count() == 0
        ids = "[...document.querySelectorAll('#list a')].map((one) => one.dataset.id)"
        for label in ("any", "subdural"):
            shown.locator("#sort").select_option(label)
            wanted = sorted(told["studies"], key=lambda one: (-one.get("max", {}).get(label, -1), one["study"]))
            assert shown.evaluate(ids) == [one["study"] for one in wanted]
        shown.locator("#sort").select_option("id")
        assert shown.evaluate(ids) == sorted(one["study"] for one in told["studies"])
        shown.locator("#search").fill(HOSTILE)
        shown.locator("#list a").click()
        expect(shown.locator(".where")).to_contain_text(HOSTILE)
        (one,) = (one for one in told["studies"] if one["study"] == HOSTILE)
        facts = shown.locator(".study-facts").inner_text()
        for refused in (part for part in one["series"] if part["reason"]):
            assert refused["reason"] in facts and f"kernel {KERNEL}" in facts
        leaf_through(shown, helpers, one, told["thresholds"]["slices"])
        assert shown.evaluate("window.ran") is None and shown.locator("img[src=x i]").count() == 0
        shown.locator("#search").fill(NONE)
        shown.locator("#list a").click()
        expect(shown.locator(".message")).to_contain_text("No series of this study could be read")
        assert "KNEE" in shown.locator(".study-facts").inner_text()
        shown.keyboard.press("ArrowDown")


def leaf_through(shown, helpers, one: dict, thresholds: dict) -> None:
    """See that slices, windows, numbers, thresholds, flags and the slice that could not be read are shown."""
    shown.locator("#stage").focus()
    shown.keyboard.press("Home")
    for i, part in enumerate(one["slices"]):
        assert helpers.place(shown) == (i + 1, len(one["slices"]))
        if "probability" in part:
            p = part["probability"]["any"]
            found = shown.locator("[data-strip=any] output").inner_text()
            assert found == (f"{p:.3f}" if p >= 0.001 else "<0.001")
            assert (shown.locator("[data-strip=any] .is-true").inner_text() == "flagged") is bool(part["flags"]["any"])
        else:
            helpers.expect(shown.locator(".message")).to_contain_text(f"could not be read: {part['note']}")
        shown.keyboard.press("ArrowDown")
    for label in LABELS:
        strip = shown.locator(f"[data-strip={label}]")
        assert strip.locator(".band").count() == 0
        height = float(strip.locator(".threshold").get_attribute("y1"))
        assert height == pytest.approx(44 * (1 - thresholds[label]), abs=1e-3)
        flags = np.array([part.get("flags", {}).get(label, 0) for part in one["slices"]])
        assert strip.locator("rect.truth").count() == (np.diff(flags, prepend=0) == 1).sum()
    shown.keyboard.press("4")
    assert re.search("window=bone", shown.evaluate("location.hash"))
    assert shown.evaluate("document.querySelector('#stage img.on').decode().then(() => true)")


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_it_fits_the_screen_and_axe_finds_nothing_serious(browsing, out, theme, size):
    browser, helpers = browsing
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python judges the page").Axe()
    with helpers.opened(browser, out / "report" / "index.html", size=size, theme=theme) as shown:
        shown.wait_for_selector("#stage img.on")
        assert shown.evaluate("document.documentElement.scrollWidth") <= size[0]
        found = axe.run(shown)["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in helpers.SERIOUS]
        assert serious == []
        shown.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert shown.locator("#intended").bounding_box()["y"] >= 0
