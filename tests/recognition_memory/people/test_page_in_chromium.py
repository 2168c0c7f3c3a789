"""The page in a real browser, from the form to the file: headless Chromium, driven over its DevTools pipe.

A simulated participant looks at the pictures on the screen and at nothing else, and answers with real key presses; what
it does wrong is planned. Skipped where no Chromium is installed.
"""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headcam.errors import InputError
from headcam.recognition_memory.people.data import read_people
from headcam.recognition_memory.people.page import write_page
from headcam.recognition_memory.scoring.scores import score
from headcam.recognition_memory.scoring.table import write_losses
from headcam.recognition_memory.stimuli.prepare import prepare

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking "
    "--disable-extensions --disable-component-update --disable-sync --no-first-run --hide-scrollbars"
).split()
PATIENCE = 60  # seconds that anything may take on a machine that is busy
CONDITIONS = ("novel", "exemplar")

pytestmark = pytest.mark.skipif(
    BROWSER is None or os.name != "posix", reason="no Chromium on the PATH: the experiment is not gone through"
)

# Presses "Seen before" at a picture that it has seen, but for the second such; and once at a new one, the third. In the
# test it takes the picture that it has seen, but for every fourth pair. Where there is no hurry its keys are pressed by
# the browser (binding `press`); in the study the page would have gone on before, on a machine that is busy.
PARTICIPANT = """
(() => {
  const seen = new Set(); let last = null, pictures = 0, repeats = 0, pairs = 0;
  setInterval(() => {
    const choices = [...document.querySelectorAll("#experiment button.choice")];
    const picture = document.querySelector("#jspsych-html-button-response-stimulus img");
    const button = document.activeElement;
    if (choices.length && choices[0] !== last) {
      last = choices[0];
      const studied = choices.findIndex((c) => seen.has(c.querySelector("img").src));
      press("FJ"[pairs++ % 4 === 3 ? 1 - studied : studied].toLowerCase());
    } else if (picture && picture !== last) {
      last = picture;
      pictures += 1;
      if (seen.has(picture.src) ? ++repeats !== 2 : pictures === 3) {
        dispatchEvent(new KeyboardEvent("keydown", { key: " " }));
      }
      seen.add(picture.src);
    } else if (button && button.matches("#experiment button.main") && button !== last) {
      last = button;
      press("Enter");
    }
  }, 5);
})()
"""


class Chromium:
    """One page of a headless browser; calling it calls a method of the DevTools protocol."""

    def __init__(self, folder: Path):
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()

        def place():  # the browser reads from 3 and writes to 4; by way of 103 and 104, should they be taken
            os.dup2(commands, 103), os.dup2(answers, 104)
            os.dup2(103, 3), os.dup2(104, 4)

        self.downloads = folder / "downloads"
        self._process = subprocess.Popen(
            [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands), os.close(answers)
        self._session, self._number, self._rest = None, 0, b""
        self.events: list[dict] = []
        deadline = time.monotonic() + PATIENCE
        while not (pages := [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]):
            assert time.monotonic() < deadline
        self._session = self("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")
        self("Runtime.addBinding", name="press")
        self("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def __call__(self, method: str, **parameters) -> dict:
        number = self._send(method, parameters)
        while (answer := self._next()).get("id") != number:
            if answer.get("method") == "Page.javascriptDialogOpening":  # until it is answered, nothing else is
                self._send("Page.handleJavaScriptDialog", {"accept": True})
            if "method" in answer:
                self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _send(self, method: str, parameters: dict) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        return self._number

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser is gone"
            self._rest += part
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def value(self, expression: str):
        result = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str):
        """Evaluate until true; meanwhile press the keys that the participant wants pressed."""
        deadline = time.monotonic() + PATIENCE
        while not self.value(f"!!({expression})"):
            events, self.events = self.events, []
            for event in events:
                if event["method"] == "Runtime.bindingCalled":
                    self.press(event["params"]["payload"])
                else:
                    self.events.append(event)
            assert time.monotonic() < deadline, f"{expression} did not come true"
            time.sleep(0.005)

    def press(self, key: str):
        text = {"Enter": "\r"}.get(key, key)
        self("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, windowsVirtualKeyCode=ord(text.upper()))
        self("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=ord(text.upper()))

    def open(self, page: Path, query: str = ""):
        self("Page.navigate", url=page.as_uri() + query)
        self.wait(f"document.readyState === 'complete' && location.search === {query!r}")

    def begin(self, participant: int):
        """Fill in the form as a person does, with the mouse and the keyboard."""
        for place in ("participant", "consent"):
            self.click(f"document.getElementById('{place}')")
            if place == "participant":
                for digit in str(participant):
                    self.press(digit)
        self.click("document.querySelector('form button')")

    def click(self, element: str):
        x, y = self.value(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def file(self) -> Path:
        """The file that the page saved."""
        self.wait("!document.getElementById('end').hidden")
        path = self.downloads / self.value("document.getElementById('file').textContent")
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < deadline, "nothing was saved"
            time.sleep(0.02)
        return path

    def close(self):
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._in), os.close(self._out)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Two role-swapped sets of 2 x 3 pairs and 12 fillers, each picture a pattern of its own."""
    root = tmp_path_factory.mktemp("stimuli")
    rng = np.random.default_rng(0)

    def picture(*places: str):
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        for place in places:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / place)

    for k in range(12):
        picture(f"set_1/study/filler_{k:02}.png", f"set_2/study/filler_{k:02}.png")
    for condition in CONDITIONS:
        for k in range(3):
            name = f"{condition}_{k}"
            for a, b in ((1, 2), (2, 1)):
                picture(
                    f"set_{a}/study/{name}_{a}.png",
                    f"set_{a}/test/{condition}_seen/{name}.png",
                    f"set_{b}/test/{condition}_unseen/{name}.png",
                )
    return prepare(root, quiet=True).manifest


@pytest.fixture(scope="module")
def page(manifest, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "memory.html"
    return write_page(manifest, out, repeats=0.2, break_every=10, quiet=True).path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Chromium(tmp_path_factory.mktemp("browser"))
    yield chromium
    chromium.close()


def test_two_participants_go_through_and_their_files_are_scored(browser, page, tmp_path):
    files = []
    for participant in (1, 2):
        browser.open(page, "?speed=20")
        browser.begin(participant)
        browser.value(PARTICIPANT)
        files.append(browser.file())
    requested = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in requested), requested
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]

    with pytest.raises(InputError, match="20 times the speed"):
        read_people(files)
    losses, summary = read_people(files, allow_fast=True)
    assert losses.shape == (12, 9) and set(losses.loss_seen + losses.loss_unseen) == {1.0}
    assert dict(losses.groupby("study_set").seed.first()) == {"1": 1, "2": 2}
    assert list(summary.study_set) == ["1", "2"] and summary.included.all()
    # Of six pairs the fourth was answered wrongly; of four repeats one was missed; one new picture was taken for old.
    assert list(summary.accuracy) == [5 / 6] * 2
    assert (losses.loss_seen == 0).groupby(losses.seed).mean().tolist() == [5 / 6] * 2
    assert summary[["repeats", "hits", "new", "false_alarms"]].values.tolist() == [[4, 3, 18, 1]] * 2

    write_losses(tmp_path / "losses.csv", losses)
    scored = score(tmp_path / "losses.csv", tmp_path / "scores", n_resamples=200, quiet=True)
    pooled = scored.accuracy[(scored.accuracy.rule == "raw") & (scored.accuracy.condition == "pooled")]
    assert pooled.accuracy.tolist() == [5 / 6] and pooled.n_runs.tolist() == [2]

    for file in files:
        record = json.loads(file.read_text())
        wrong = [row for row in record["test"] if not row["correct"]]
        assert [row["position"] for row in wrong] == [3]
        assert all((row["rt_ms"] is not None) == row["pressed"] for row in record["study"])
        assert all(row["rt_ms"] > 0 for row in record["test"])
        assert record["complete"] and record["interruptions"] == 0
    assert files[-1].read_text() == browser.value("document.getElementById('data').value")


def test_stopping_at_a_break_saves_what_there_is(browser, page):
    browser.open(page, "?speed=20")
    browser.begin(3)
    browser.wait("document.querySelectorAll('#experiment button:enabled').length === 2")
    browser.click("document.querySelector('#experiment button.quiet')")
    file = browser.file()
    asked = [e["params"]["message"] for e in browser.events if e["method"] == "Page.javascriptDialogOpening"]
    assert asked == ["Stop here? You cannot go on later."]
    assert browser.value("document.getElementById('stopped').checkVisibility()")
    record = json.loads(file.read_text())
    assert len(record["study"]) == 10 and not record["test"] and not record["complete"]
    with pytest.raises(InputError, match="none of 1 participants came to the end"):
        read_people([file], allow_fast=True)


def test_the_order_follows_from_the_number_and_is_a_fair_design(browser, page):
    browser.open(page)
    plan = "JSON.stringify(plan({}, initJsPsych().randomization))"
    plans = [json.loads(browser.value(plan.format(n))) for n in (1, 1, 2, 3)]
    assert plans[0] == plans[1]
    assert plans[0]["study"] != plans[3]["study"] and plans[0]["test"] != plans[3]["test"]
    assert [p["study_set"] for p in plans] == ["1", "1", "2", "1"]
    design = json.loads(browser.value("document.getElementById('page').textContent"))
    for number in range(1, 21):
        one = json.loads(browser.value(plan.format(number)))
        members = design["sets"][(number - 1) % 2]
        study, test = one["study"], one["test"]
        tested = {pair["seen"] for pair in members["pairs"]}
        once = [row["picture"] for row in study if row["kind"] != "repeat"]
        assert sorted(once) == sorted([*members["fillers"], *tested])
        assert {row["picture"] for row in study if row["kind"] == "tested"} == tested
        repeats = [(k, row) for k, row in enumerate(study) if row["kind"] == "repeat"]
        assert len(repeats) == 4
        for k, row in repeats:
            first = next(j for j, other in enumerate(study) if other["picture"] == row["picture"])
            assert study[first]["kind"] == "filler" and row["lag"] == k - first - 1 >= 1
        assert sorted((p["condition"], p["number"]) for p in test) == [
            (c, k) for c in sorted(CONDITIONS) for k in range(3)
        ]
        assert sum(pair["side"] == "left" for pair in test) == 3
    lags = [
        row["lag"]
        for number in range(1, 201)
        for row in json.loads(browser.value(plan.format(number)))["study"]
        if row["kind"] == "repeat"
    ]
    assert {1, 2, 4, 8} <= set(lags) and max(lags) < 20


def test_nothing_is_wider_than_a_phone_and_the_dark_theme_is_dark(browser, page):
    browser("Emulation.setDeviceMetricsOverride", width=390, height=780, deviceScaleFactor=1, mobile=True)
    fits = "document.documentElement.scrollWidth <= 390 && document.documentElement.scrollHeight <= innerHeight"
    try:
        browser.open(page, "?speed=20")
        assert browser.value("document.documentElement.scrollWidth") <= 390
        ground = "getComputedStyle(document.body).backgroundColor"
        grounds = []
        for theme in ("light", "dark"):
            browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
            grounds.append(browser.value(ground))
        assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
        browser.begin(1)
        browser.wait("document.querySelector('#experiment img')?.naturalWidth === 32")
        assert browser.value(fits)
        browser.value(
            PARTICIPANT.replace("const choices =", "if (document.querySelector('.choice')) return; const choices =")
        )
        browser.wait("document.querySelectorAll('#experiment button.choice').length === 2")
        assert browser.value(fits)
        assert browser.value("[...document.querySelectorAll('.choice img')].every(i => i.clientWidth > 120)")
    finally:
        browser("Emulation.clearDeviceMetricsOverride")
        browser("Emulation.setEmulatedMedia", features=[])


def test_a_press_is_answered_at_once_and_counts_once(browser, page):
    browser.open(page)
    browser.begin(1)
    browser.wait("document.querySelector('#experiment img')")
    browser.press(" ")
    assert browser.value("document.querySelector('#experiment .feedback').textContent") == "✗ No, this one is new"
    assert browser.value("document.querySelector('#experiment button').disabled")
    assert browser.value("document.querySelector('#experiment img').checkVisibility({visibilityProperty: true})")
    browser.wait("!document.querySelector('#experiment img')?.checkVisibility({visibilityProperty: true})")  # 3 s
    browser.wait("document.querySelector('#experiment button:enabled')")  # the next picture
    browser.events.clear()
    browser.open(page, "?again")
    assert [e["params"]["type"] for e in browser.events if e["method"] == "Page.javascriptDialogOpening"] == [
        "beforeunload"
    ]


def test_the_page_can_send_nothing(browser, page):
    browser.open(page)
    browser.value(
        "blocked = []; addEventListener('securitypolicyviolation', (e) => blocked.push(e.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => 0); new Image().src = 'http://127.0.0.1:9/'; 0"
    )
    browser.wait("blocked.length === 2")
    assert sorted(browser.value("blocked")) == ["connect-src", "img-src"]
