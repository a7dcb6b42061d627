"""How soon the report of 200 studies can be used, beside the same page with Plotly read first, and how leafing runs.

The numbers of a study are those of 60 slices of 512 px; frames are those of the browser while slices turn, one a frame.
Example: python tests/benchmarks/bench_report.py
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from ich_kaggle import cache, phantom, report
from ich_kaggle.common import paths

sys.path.append(str(Path(__file__).parents[1] / "helpers"))
import made_runs  # noqa: E402

LEAF = """async (n) => {
  const frame = () => new Promise(requestAnimationFrame), times = [], stage = document.getElementById("stage");
  let last = await frame();
  for (let i = 0; i < n; i++) {
    stage.dispatchEvent(new WheelEvent("wheel", { deltaY: i < n / 2 ? 100 : -100, cancelable: true }));
    const now = await frame();
    times.push(now - last);
    last = now;
  }
  return times.sort((a, b) => a - b);
}"""


def make(root: Path, *flags: str, size: int) -> Path:
    """Return the index.html of a report on a phantom competition made with `flags`."""
    data, work = root / paths.SLUG, root / "work"
    phantom.main(["--out", str(data), "--size", str(size), "--defects", "0", "--test-fraction", "0.02", *flags])
    made_runs.make(data, work, {"fine": 0.8, "middle": 1.2, "noisy": 2.0})
    cache.main(["--work-dir", str(work), "--cache-size", str(size)])
    report.main(["--work-dir", str(work), "--submissions-dir", str(root)])
    return work / "report" / "index.html"


def plotly_first(index: Path) -> Path:
    """Return a copy of the page that reads Plotly before all else, as pages that Plotly writes do."""
    page = index.read_text()
    other = index.with_name("plotly_first.html")
    other.write_text(page.replace("<title>", '<script src="plotly.min.js"></script><title>'))
    return other


def load(browser, index: Path) -> tuple[float, float]:
    """Return after how many ms the page could be used, and after how many its first plots were drawn."""
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.goto(index.as_uri())
    page.wait_for_selector(".js-plotly-plot .nsewdrag", state="attached")
    usable, drawn = page.evaluate("[performance.getEntriesByName('usable')[0].startTime, performance.now()]")
    page.close()
    return usable, drawn


def leaf(browser, index: Path) -> tuple[float, list[float]]:
    """Return after how many ms all slices of the first study were there, and the frames of 120 turns, sorted."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(index.as_uri() + "#view=studies")
    page.wait_for_selector("#stage img.on")
    page.evaluate("Promise.all([...document.querySelectorAll('#stage img')].map((image) => image.decode()))")
    ready = page.evaluate("performance.now()")
    frames = page.evaluate(LEAF, 120)
    page.close()
    return ready, frames


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=205, help="about as many studies")
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        many = make(Path(folder) / "many", "--patients", str(options.patients), "--slices", "35", size=64)
        pages = {"ours": many, "Plotly first": plotly_first(many)}
        found = {name: [load(browser, index) for _ in range(options.repeat)] for name, index in pages.items()}
        for name, times in found.items():
            usable, drawn = (middle(list(column)) for column in zip(*times, strict=True))
            print(f"{name:13} can be used after {usable:5.0f} ms, first plots after {drawn:5.0f} ms")
        ours, theirs = (middle([usable for usable, _ in times]) for times in found.values())
        print(f"with Plotly first it takes {theirs / ours:.1f} x as long until the page can be used")
        large = make(Path(folder) / "large", "--patients", "4", "--slices", "60", size=512)
        ready, frames = leaf(browser, large)
        print(f"60 slices of 512 px: read and decoded {ready:.0f} ms after the page was asked for")
        print(f"a slice a frame: median {middle(frames):.1f} ms, 95 % below {frames[int(0.95 * len(frames))]:.1f} ms")
        browser.close()


if __name__ == "__main__":
    main()
