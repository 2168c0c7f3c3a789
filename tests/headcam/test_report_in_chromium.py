"""A report in a real browser, headless Chromium: pictures load, nothing overflows on a phone, nothing is fetched.

The page is put into an iframe of a phone's width that a measuring script may look into (`srcdoc`: same origin), and
the measurements are read from the dumped document. Skipped where no Chromium is installed.
"""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from headcam.pages import BLUE, Estimate, Page, chart

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking "
    "--disable-extensions --disable-component-update --disable-sync --no-first-run --hide-scrollbars"
).split()

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH: the report is not looked at")

MEASURE = """
<script>
onload = () => setTimeout(() => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, width = frame.clientWidth;
  const right = e => e.getBoundingClientRect().right;
  const found = {
    width, scroll: page.documentElement.scrollWidth,
    pictures: [...page.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.getBoundingClientRect().width]),
    over: [...page.querySelectorAll("body *")].filter(e => right(e) > width + 0.5).map(e => e.tagName),
    charts: [...page.querySelectorAll("svg")].map(e => e.getBoundingClientRect()).map(r => [r.width, r.height]),
    ink: getComputedStyle(page.body).color,
    curve: getComputedStyle([...page.querySelectorAll("svg path[clip-path]")].pop()).stroke,
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map(r => r.name.slice(0, 30)),
  };
  document.body.innerHTML = "<pre>" + JSON.stringify(found).replace(/</g, "") + "</pre>";
}, 200);
</script>
"""


def page() -> Page:
    report = Page("An encoder that grew up in a_folder_with_quite_a_long_name/" + 4 * "and_more_", "A lead.")
    report.facts([("12.3 minutes", "of video"), ("40,960", "images"), ("4.1 min", "of training"), ("6 %", "waiting")])
    report.section("Pictures", "Text with an_unbroken_" + 8 * "unbreakable_" + "word in it.")
    rng = np.random.default_rng(0)
    report.tiles([("row", [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(6)])] * 3, "Captions.")
    with chart() as figure:
        figure.subplots().plot([0, 1], [1, 0], color=BLUE)
        report.figure(figure, "A chart.", "a falling line")
    row = ["encoder, random weights", Estimate(23.8, 20.3, 27.2), Estimate(-11.2, -15.2, -7.2, signed=True)]
    report.table(["% of test pictures right", "linear probe", "nearest neighbours"], [row] * 3, "Caption.", highlight=0)
    report.provenance({"weights": 64 * "f", "command": "headcam demo --out=" + 12 * "/somewhere"})
    return report


def measure(tmp_path, text: str, width: int) -> dict:
    wrapper = tmp_path / "wrapper.html"
    frame = f'<iframe style="border:0;width:{width}px;height:2000px" srcdoc="{html.escape(text)}"></iframe>'
    wrapper.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{frame}{MEASURE}</body>', "utf-8")
    done = subprocess.run(
        [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=4000",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"<pre>(\{.*?\})</pre>", done.stdout, flags=re.DOTALL)
    assert found, f"the page was not measured: {done.stdout[-500:]} {done.stderr[-500:]}"
    return json.loads(html.unescape(found[1]))


def test_a_report_fits_a_phone_shows_its_pictures_and_fetches_nothing(tmp_path):
    text = page().html()
    found = measure(tmp_path, text, 390)
    assert found["width"] == 390
    assert found["scroll"] <= 390 and not found["over"], "something is wider than the screen"
    assert len(found["pictures"]) == 18
    for complete, width, height, shown in found["pictures"]:
        assert complete and (width, height) == (64, 64) and shown > 40
    assert all(width > 300 and height > 100 for width, height in found["charts"])
    assert all(name.startswith("data:") for name in found["fetched"])
    assert found["curve"] != found["ink"], "the curve has a colour of its own"


def test_the_dark_theme_changes_ground_ink_and_charts(tmp_path):
    text = page().html()
    light = measure(tmp_path, text, 800)
    # What a reader with a dark system gets, without depending on a flag of the browser.
    dark = measure(tmp_path, text.replace("@media screen and (prefers-color-scheme: dark)", "@media screen"), 800)
    assert light["ink"] == "rgb(27, 31, 36)" and dark["ink"] == "rgb(231, 234, 238)"
    assert light["curve"] == "rgb(0, 114, 178)" and dark["curve"] == "rgb(86, 180, 233)"
