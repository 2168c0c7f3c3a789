"""The page of all reports: escaping, alignment of numbers, charts that follow the theme, nothing from outside."""

import base64
import re

import cv2
import numpy as np
import pytest

from headcam.pages import BLUE, ORANGE, Estimate, Page, chart

NASTY = '<script>alert("x")</script> & <b>.mp4'


def small_page(frames: bool = True) -> Page:
    page = Page(f"A page {NASTY}", f"Lead {NASTY}", frames=frames)
    page.facts([(NASTY, NASTY)])
    page.section(NASTY, NASTY)
    page.bullets([NASTY])
    page.table(["name", "number"], [[NASTY, Estimate(1.0, 0.5, 1.5)], ["other", 3]], NASTY, highlight=0)
    for colour in (BLUE, ORANGE):
        with chart() as figure:
            axes = figure.subplots()
            axes.plot([0, 1, 2], [1, 3, 2], color=colour, marker="o")
            axes.set(xlabel="x", ylabel="y", title="$a$ <b>")
            page.figure(figure, NASTY, NASTY)
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (16, 20, 3), dtype=np.uint8) for _ in range(2)]
    page.tiles([(NASTY, small), ("below", small)], NASTY)
    page.tiles([("", [np.zeros((200, 200, 3), np.uint8)])], NASTY)
    page.provenance({NASTY: NASTY})
    return page


def test_everything_is_escaped_and_nothing_comes_from_outside():
    html = small_page().html()
    assert "<script" not in html and "alert(&#34;x&#34;)" in html
    # title twice, lead, facts twice, section twice, bullet, cell, captions, labels, alt texts, provenance twice
    assert html.count("&lt;script&gt;") >= 15 and "<b>.mp4" not in html
    for address in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert address.startswith(("data:image/", "#"))
    assert "@import" not in html and "http" not in html


def test_numbers_are_flush_right_with_their_intervals_and_text_is_not():
    page = Page("t", "l")
    page.table(
        ["name", "gain", "mixed"],
        [["a", Estimate(-1.25, -3.04, 0.5, signed=True), 1], ["b", Estimate(2.0, signed=True), "none"]],
        "caption",
        highlight=1,
    )
    html = page.html()
    assert re.findall(r'<th scope="col"( class="number")?>', html) == ["", ' class="number"', ""]
    text = re.sub(r"<[^>]+>", "", html)
    assert "\N{MINUS SIGN}1.2 [\N{MINUS SIGN}3.0, +0.5]" in text
    assert '<span class="value">+2.0</span></td>' in html, "an exact number stands alone"
    assert html.index('class="marked"') > html.index("3.0, +0.5]"), "the second row is the marked one"
    with pytest.raises(ValueError, match="2 cells, the table has 3 columns"):
        page.table(["a", "b", "c"], [["x", 1]], "caption")


def test_pictures_are_embedded_pixel_by_pixel_where_small():
    picture = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    page = Page("t", "l")
    page.tiles([("", [picture])], "caption")
    kind, data = re.search(r'src="data:image/(\w+);base64,([^"]+)"', page.html()).groups()
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert kind == "png" and np.array_equal(decoded[..., ::-1], picture)
    assert "aspect-ratio: 12 / 8" in page.html()


def test_a_page_without_frames_takes_no_picture_and_says_so():
    html = small_page(frames=False).html()
    assert "<img" not in html and "data:image" not in html
    assert html.count("Pictures are left out") == 2
    assert html.count("<svg") == 2, "charts stay"


def test_charts_follow_the_theme_and_share_no_ids():
    html = small_page().html()
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert "var(--blue)" in charts[0] and "var(--orange)" in charts[1] and "var(--ink)" in charts[0]
    for svg in charts:
        assert not re.search(r"(fill|stroke): #(?!fff)", svg), "a colour that no theme can change"
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 10
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    assert used and set(used) <= set(ids)
    assert "prefers-color-scheme: dark" in html


def test_the_same_page_gives_the_same_bytes_and_is_written_whole(tmp_path):
    small_page().write(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text("utf-8") == small_page().html()
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]
