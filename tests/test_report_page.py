"""The report in a real browser: Debian's chromium, from the disk, without a network."""

import contextlib
import json
import re
import shutil
from urllib.parse import unquote

import cv2
import made_report
import numpy as np
import pytest
from made_report import given
from sklearn.metrics import confusion_matrix

from ich_kaggle import report
from ich_kaggle.common import run_predictions, runs, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import png

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
expect = playwright.expect
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")

PATIENT = "</script><script>window.ran = 1</script>"
STUDY = '"><img src=x onerror="window.ran = 2">'
SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def made(prepared, competition, tmp_path_factory):
    work_dir = made_report.work_folder(prepared, competition, tmp_path_factory.mktemp("page"))
    make_report(work_dir)
    return work_dir


def make_report(work_dir, *flags) -> None:
    submissions = work_dir.parent / "submissions"
    report.main(["--work-dir", str(work_dir), "--submissions-dir", str(submissions), "--workers", "1", *flags])


@contextlib.contextmanager
def opened(browser, index, address="", *, size=(1280, 900), theme="light"):
    """Give a page of `index`; afterwards, see that it asked the disk alone and that nothing went wrong in it."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.goto(f"{index.as_uri()}{address}")
    page.wait_for_selector("main > section:not([hidden]) > *")
    yield page
    page.close()
    assert wrong == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}


@pytest.fixture
def index(made):
    return made / "report" / "index.html"


@pytest.fixture
def overview(browser, index):
    with opened(browser, index) as page:
        yield page


@pytest.fixture
def viewer(browser, index):
    with opened(browser, index, "#view=studies") as page:
        page.wait_for_selector("#stage img.on")
        yield page


def content_of(work_dir) -> dict:
    return given(work_dir / "report" / "data.js")[0]


def study_data(work_dir, study_id: str) -> dict:
    return given(work_dir / "report" / given(work_dir / "report" / "data.js")[1][study_id])[1]


def place(page) -> tuple[int, int]:
    """Return which slice is shown, counted from 1, and of how many."""
    found = re.match(r"(\d+) / (\d+)", page.locator(".place").inner_text())
    return int(found[1]), int(found[2])


def shown_study(page) -> str:
    return page.locator(".where").inner_text().splitlines()[0]


def gray(page, size: int) -> np.ndarray:
    """Return the middle of the picture that is shown, as (size / 2, size / 2) gray levels."""
    page.evaluate("Promise.all([...document.querySelectorAll('#stage img.on')].map((image) => image.decode()))")
    shot = cv2.imdecode(np.frombuffer(page.locator("#stage").screenshot(), np.uint8), cv2.IMREAD_COLOR)
    small = cv2.resize(shot, (size, size), interpolation=cv2.INTER_AREA)[size // 4 : -size // 4, size // 4 : -size // 4]
    assert np.ptp(small, axis=2).max() == 0  # one channel is shown, in gray
    return small[..., 0].astype(float)


# --- the viewer ---


def test_wheel_keys_and_slider_leaf_through_the_slices(viewer):
    first, n = place(viewer)
    stage = viewer.locator("#stage").bounding_box()
    viewer.mouse.move(stage["x"] + 50, stage["y"] + 50)
    viewer.mouse.wheel(0, 100)
    expect(viewer.locator(".place")).to_contain_text(f"{first + 1} / ")
    for key, wanted in (
        ("ArrowUp", first),
        ("ArrowRight", first + 1),
        ("Home", 1),
        ("PageDown", min(6, n)),
        ("End", n),
    ):
        viewer.keyboard.press(key)
        assert place(viewer)[0] == wanted
    viewer.locator("#slice").fill("2")
    assert place(viewer)[0] == 2
    viewer.locator("#slice").press("ArrowRight")
    assert place(viewer)[0] == 3
    assert viewer.evaluate("scrollY") == 0


def test_every_window_shows_its_own_channel(viewer, made):
    data = study_data(made, shown_study(viewer))
    i = place(viewer)[0] - 1
    cached, bone = (png.read(made / "report" / unquote(data["images"][kind][i])) for kind in ("cached", "bone"))
    wanted = [*np.moveaxis(cached, 2, 0), bone]
    middle = [one[16:-16, 16:-16].astype(float) for one in wanted]
    for key in range(4):
        viewer.keyboard.press(str(key + 1))
        viewer.wait_for_selector("#stage img.on")
        found = gray(viewer, len(cached))
        distance = [np.abs(found - one).mean() for one in middle]
        assert np.argmin(distance) == key and distance[key] < 12
    assert viewer.evaluate("location.hash").endswith("window=bone")


def test_the_list_is_searched_and_sorted(viewer, made):
    content = content_of(made)
    ids = "[...document.querySelectorAll('#list a')].map((one) => one.dataset.id)"
    by_loss = sorted(content["studies"], key=lambda s: (-s["losses"][0][0], s["id"]))
    assert viewer.evaluate(ids) == [one["id"] for one in by_loss]
    viewer.locator("#sort").select_option("subdural")
    column = 1 + LABELS.index("subdural")
    by_loss_of_label = sorted(content["studies"], key=lambda s: (-s["losses"][0][column], s["id"]))
    assert viewer.evaluate(ids) == [one["id"] for one in by_loss_of_label]
    viewer.locator("#filter").select_option("any")
    assert set(viewer.evaluate(ids)) == {s["id"] for s in content["studies"] if s["counts"][-1]}
    viewer.locator("#filter").select_option("")
    viewer.locator("#search").fill(by_loss[3]["patient"][3:].upper())
    assert viewer.evaluate(ids) == [by_loss[3]["id"]]
    assert viewer.locator("#count").inner_text() == "1 of 9 studies"
    viewer.locator("#search").fill("nothing like it")
    assert viewer.evaluate(ids) == []


def test_an_address_leads_to_its_slice_and_back_to_where_one_was(browser, index, made):
    studies = [one["id"] for one in content_of(made)["studies"]]
    with opened(browser, index, f"#study={studies[2]}&slice=3&window=subdural&label=epidural") as page:
        page.wait_for_selector("#stage img.on")
        assert shown_study(page) == studies[2] and place(page)[0] == 3
        assert page.locator("[data-window=subdural]").get_attribute("aria-pressed") == "true"
        page.locator(f"#list a[data-id={studies[4]}]").click()
        expect(page.locator(".where")).to_contain_text(studies[4])
        page.go_back()
        expect(page.locator(".where")).to_contain_text(studies[2])
        assert place(page)[0] == 3
        page.locator("nav >> text=Overview").click()
        page.wait_for_selector("#overview:not([hidden]) .tiles")
        page.go_back()
        page.wait_for_selector("#studies:not([hidden])")
        assert shown_study(page) == studies[2]


@pytest.mark.parametrize(
    "address", ["#study=ID_none", "#study=&slice=x", "#view=none&label=none&window=none", "#%%%&=&"]
)
def test_an_address_that_leads_nowhere_breaks_nothing(browser, index, address):
    with opened(browser, index, address) as page:
        if "ID_none" in address:
            expect(page.locator(".message")).to_contain_text("is not in this report")


def test_curves_have_the_truth_as_bands_and_the_numbers_of_the_slice(viewer, made):
    data = study_data(made, shown_study(viewer))
    for i, label in enumerate(LABELS):
        truth = np.array(data["target"])[:, i]
        strip = viewer.locator(f"[data-strip={label}]")
        starts = np.flatnonzero(np.diff(truth, prepend=0) == 1)
        assert strip.locator(".band").count() == len(starts)
        assert strip.locator("path.curve").count() == 3
        numbers = strip.locator("output").inner_text().split()
        p = data["probability"][0][place(viewer)[0] - 1][i]
        assert numbers[0] == (f"{p:.3f}" if p >= 0.001 else "<0.001")
    viewer.locator(".legend input").first.uncheck()
    assert viewer.locator("[data-strip=any] path.curve").count() == 2
    box = viewer.locator("[data-strip=any] > svg").bounding_box()
    viewer.mouse.click(box["x"] + 2, box["y"] + 20)
    assert place(viewer)[0] == 1


def test_an_explanation_shows_the_map_of_its_label(viewer):
    assert not viewer.locator(".heatmap").is_visible()
    viewer.locator("#map").select_option("fine, gradcam")
    viewer.locator("#opacity").fill("100")
    reds = {}
    for label in ("epidural", "intraventricular", "any"):  # the maps hold 40 times the label's number
        viewer.locator("#map-label").select_option(label)
        viewer.evaluate("document.querySelector('.heatmap img').decode()")
        shot = cv2.imdecode(np.frombuffer(viewer.locator("#stage").screenshot(), np.uint8), cv2.IMREAD_COLOR)
        side = len(shot)
        reds[label] = shot[side // 2 - 5 : side // 2 + 5, 5:15, 2].mean()  # where the slice is black
    assert reds["epidural"] == 0 and 40 < reds["intraventricular"] < reds["any"] - 40
    viewer.keyboard.press("e")
    assert not viewer.locator(".heatmap").is_visible()


def test_keys_of_the_search_field_are_its_own(viewer):
    viewer.keyboard.press("/")
    assert viewer.evaluate("document.activeElement.id") == "search"
    viewer.keyboard.type("n3?")
    assert viewer.locator("#search").input_value() == "n3?"
    assert not viewer.locator("#help").is_visible()


def test_the_keys_are_told_and_all_is_reached_by_keyboard(viewer):
    viewer.keyboard.press("?")
    assert "previous or next slice" in viewer.locator("#help").inner_text()
    viewer.keyboard.press("Escape")
    assert not viewer.locator("#help").is_visible()
    first = shown_study(viewer)
    viewer.keyboard.press("n")
    expect(viewer.locator(".where")).not_to_contain_text(first)
    seen = set()
    for _ in range(40):
        viewer.keyboard.press("Tab")
        seen.add(viewer.evaluate("document.activeElement.id || document.activeElement.tagName"))
        style = viewer.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid" or viewer.evaluate("document.activeElement === document.body")
    assert {"search", "sort", "filter", "slice", "stage", "map", "opacity", "theme"} <= seen


# --- the overview and the worst slices ---


def test_the_threshold_moves_the_counts_to_those_of_a_confusion_matrix(overview, made):
    table = tables.read_slices(made)
    fold = tables.read_folds(made, table)
    target = tables.targets(table[fold >= 0])
    overview.locator("#source").select_option("noisy")
    overview.locator("input[name=label][value=subdural]").check()
    probability = run_predictions.read_oof(runs.Run(made, "noisy"), [0, 1, 2], table, fold)[
        :, LABELS.index("subdural")
    ].astype(float)
    for step in (20, 150, 250):
        overview.locator("#threshold").fill(str(step))
        threshold = float(overview.locator("#threshold-value").inner_text())
        assert threshold == content_of(made)["thresholds"][step]
        found = [
            [int(overview.locator(f"#{name}").inner_text()) for name in pair] for pair in (("tn", "fp"), ("fn", "tp"))
        ]
        wanted = confusion_matrix(target[:, LABELS.index("subdural")], probability >= threshold)
        assert found == wanted.tolist()


def test_the_mark_is_dragged_on_the_curve(overview):
    plot = overview.locator(".grab").first
    plot.scroll_into_view_if_needed()
    overview.wait_for_selector(".grab .nsewdrag")
    box = overview.locator(".grab .nsewdrag").first.bounding_box()
    overview.mouse.move(box["x"] + 2, box["y"] + box["height"] - 2)
    overview.mouse.down()
    low = int(overview.locator("#tp").inner_text())
    overview.mouse.move(box["x"] + box["width"] - 2, box["y"] + 2, steps=4)
    overview.mouse.up()
    high = int(overview.locator("#tp").inner_text())
    assert low < high and overview.locator("#fn").inner_text() == "0"


def test_charts_are_drawn_when_they_come_into_view(overview):
    assert overview.locator(".chart").count() == 7
    below = overview.locator(".chart").last
    assert "js-plotly-plot" not in below.get_attribute("class")
    below.scroll_into_view_if_needed()
    expect(below).to_have_class(re.compile("js-plotly-plot"))


def test_a_worst_slice_leads_to_the_viewer(browser, index, made):
    with opened(browser, index, "#view=worst") as page:
        page.locator("input[name=worst-label][value=subdural]").check()
        cards = content_of(made)["worst"]["subdural"]
        assert page.locator(".card-link").count() == len(cards["missed"]) + len(cards["called"])
        page.locator(".card-link").first.click()
        page.wait_for_selector("#stage img.on")
        assert shown_study(page) == cards["missed"][0]["study"]
        assert place(page)[0] == cards["missed"][0]["slice"] + 1
        page.go_back()
        page.wait_for_selector("#worst:not([hidden]) .card-link")
        assert page.locator("input[name=worst-label][value=subdural]").is_checked()


# --- safety, other forms, other screens ---


def test_hostile_ids_are_text(browser, made, tmp_path):
    work_dir = tmp_path / "work"
    shutil.copytree(made, work_dir, ignore=shutil.ignore_patterns("report", "ensemble"))
    old = made_report.hostile(work_dir, PATIENT, STUDY)
    make_report(work_dir)
    written = [path.name for path in (work_dir / "report" / "data").iterdir()]
    assert f"{old}.js" not in written and all(re.fullmatch(r"[\w-]+\.js", name) for name in written)
    with opened(browser, work_dir / "report" / "index.html", "#view=studies") as page:
        page.wait_for_selector("#stage img.on")
        page.locator("#search").fill(PATIENT)
        page.locator("#list a").click()
        expect(page.locator(".where")).to_contain_text("onerror")
        assert page.locator(".where").inner_text() == f"{STUDY}\n{PATIENT}"
        page.locator("nav >> text=Worst slices").click()
        page.locator("nav >> text=Overview").click()
        assert page.evaluate("window.ran") is None and page.locator("img[onerror]").count() == 0
    make_report(work_dir, "--embed")
    with opened(browser, work_dir / "report" / "index.html", "#view=studies") as page:
        page.wait_for_selector("#stage img.on")
        page.locator("#search").fill(PATIENT)
        page.locator("#list a").click()
        expect(page.locator(".where")).to_contain_text("onerror")
        assert page.evaluate("window.ran") is None


def test_the_policy_lets_no_other_script_run(browser, index):
    page = browser.new_page()
    page.goto(index.as_uri())
    page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "document.body.append(script); const div = document.createElement('div');"
        "div.innerHTML = '<img src=x onerror=\"window.ran = 2\">'; document.body.append(div); }"
    )
    page.evaluate("Promise.allSettled([...document.images].map((image) => image.decode()))")
    assert page.evaluate("window.ran") is None
    page.close()


def test_the_one_file_of_embed_works_alone(browser, made, tmp_path):
    work_dir = tmp_path / "work"
    shutil.copytree(made, work_dir, ignore=shutil.ignore_patterns("report"))
    make_report(work_dir, "--embed")
    assert sorted(path.name for path in (work_dir / "report").iterdir()) == [".made_by", "index.html"]
    shutil.move(work_dir / "report" / "index.html", tmp_path / "alone.html")
    shutil.rmtree(work_dir)
    with opened(browser, tmp_path / "alone.html", "#view=studies&window=bone") as page:
        page.wait_for_selector("#stage img.on")
        assert page.evaluate("document.querySelector('#stage img.on').decode().then(() => true)")
        page.locator("#map").select_option("fine, gradcam")
        assert page.evaluate("document.querySelector('.heatmap img').decode().then(() => true)")
        page.locator("nav >> text=Overview").click()
        page.wait_for_selector(".grab .nsewdrag")


def test_without_predictions_the_page_says_what_makes_them(browser, prepared, tmp_path):
    work_dir = tmp_path / "work"
    shutil.copytree(prepared, work_dir)
    make_report(work_dir)
    with opened(browser, work_dir / "report" / "index.html") as page:
        text = page.locator("#overview").inner_text()
        assert "No predictions yet" in text and "python -m ich_kaggle.predict" in text and "fold 2" in text
        assert not page.locator("nav >> text=Worst slices").is_visible()
        page.locator("nav >> text=Studies").click()
        page.wait_for_selector("#stage img.on")
        assert "python -m ich_kaggle.explain" in page.locator("#no-maps").inner_text()


def test_without_the_dicom_files_the_bone_window_says_why_not(browser, made, tmp_path):
    work_dir = tmp_path / "work"
    shutil.copytree(made, work_dir)
    make_report(work_dir, "--no-bone")
    with opened(browser, work_dir / "report" / "index.html", "#view=studies&window=bone") as page:
        page.wait_for_selector("#stage img.on")
        assert page.locator("[data-window=bone]").is_disabled()
        assert "rendered from the DICOM files" in page.locator("#no-bone").inner_text()
        page.keyboard.press("4")
        assert page.locator("[data-window=brain]").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("view", ["overview", "studies", "worst"])
def test_nothing_is_wider_than_a_telephone(browser, index, view):
    with opened(browser, index, f"#view={view}", size=(390, 844)) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_theme_is_the_systems_until_it_is_chosen(browser, index):
    light = "rgb(243, 245, 248)"
    for theme in ("light", "dark"):
        with opened(browser, index, theme=theme) as page:
            background = "getComputedStyle(document.body).backgroundColor"
            assert (page.evaluate(background) == light) is (theme == "light")
            page.locator("#theme").click()
            assert (page.evaluate(background) == light) is (theme == "dark")


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "size"), [("light", (1280, 900)), ("dark", (390, 844))])
def test_axe_finds_nothing_serious(browser, index, theme, size):
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python judges the page").Axe()
    for address in ("#view=overview", "#view=studies", "#view=worst"):
        with opened(browser, index, address, size=size, theme=theme) as page:
            if address == "#view=studies":
                page.wait_for_selector("#stage img.on")
            found = axe.run(page)["violations"]
            serious = [
                (one["id"], [node["html"] for node in one["nodes"][:3]]) for one in found if one["impact"] in SERIOUS
            ]
            assert serious == [], json.dumps(serious, indent=1)


def test_files_of_the_page_name_no_other_host(index):
    for path in index.parent.iterdir():
        if path.suffix in (".html", ".css", ".js") and path.name != "plotly.min.js":
            assert set(re.findall(r"https?://[^\"' )]+", path.read_text())) <= {"http://www.w3.org/2000/svg"}
