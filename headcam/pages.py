"""The page that every report of headcam is: one self-contained HTML file, made from text, numbers, charts and pictures.

A `Page` is filled from top to bottom and written once. The file needs no network and no script; it follows the
reader's light or dark theme, prints, and fits a phone. All text is escaped, so a file name or a label can hold
anything. Charts are matplotlib figures, embedded as SVG: what is drawn in one of the colours below changes with the
theme. Pictures are embedded as PNG or JPEG; a page made with `frames=False` takes none, so that a report can be shown
to others without showing anyone's home.

The layout is `report.html` beside this file (Jinja2).
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from typing import TYPE_CHECKING

import cv2
import jinja2
import numpy as np
import simplejpeg
from markupsafe import Markup

from headcam.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours for charts, as they are on a light ground. In a page each becomes a CSS variable of `report.html`, which has
# a second value for a dark ground. The hues are those of Okabe and Ito (2008), which colour-blind readers tell apart.
INK, MUTED, GRID = "#1b1f24", "#5f6872", "#d8dce1"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#c65102", "#00795a", "#a8487e"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
}
_STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same lines break nowhere else
    "svg.fonttype": "path",  # text as outlines: no reader's font can clip it
    "svg.hashsalt": "headcam",  # the same figure gives the same bytes
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}
_CHART_WIDTH = 5.2  # inches at 10 points: as wide as the text on a desktop, and still readable at a phone's width
_LOSSLESS_BYTES = 1 << 15  # of raw pixels: pictures above are embedded as JPEG


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval (none where it is exact), as a table's cell; `signed` shows a plus."""

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 1
    signed: bool = False

    def parts(self) -> tuple[str, str]:
        """Number and interval as text; the interval is empty where the number is exact."""
        value, low, high = (
            "" if x is None else f"{x:{'+' if self.signed else ''}.{self.digits}f}".replace("-", "\N{MINUS SIGN}")
            for x in (self.value, self.low, self.high)
        )
        return value, f"[{low}, {high}]" if low else ""


Cell = str | int | Estimate


class Page:
    """A report in the making.

    Args:
        title: headline of the page.
        lead: the result in plain words, one paragraph below the headline.
        frames: whether pictures may be embedded; where not, `tiles` says that they were left out.

    >>> page = Page("Two boxes", "The second box is larger.")
    >>> page.section("Sizes", "Measured with a ruler.")
    >>> page.table(["box", "side in cm"], [["first", 3], ["second", Estimate(4.0, 3.9, 4.1)]], "Sides of both boxes.")
    >>> page.write("boxes.html")
    """

    def __init__(self, title: str, lead: str, frames: bool = True):
        self.title, self.lead, self.frames = title, lead, frames
        self._blocks: list[dict] = []
        self._provenance: list[tuple[str, str]] = []

    def section(self, title: str, *paragraphs: str) -> None:
        """Begin a section; what follows belongs to it."""
        self._blocks.append({"kind": "section", "title": title, "paragraphs": paragraphs})

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """A row of key figures: (value with its unit, what it is)."""
        self._blocks.append({"kind": "facts", "facts": list(facts)})

    def bullets(self, items: Sequence[str]) -> None:
        """A list of sentences."""
        self._blocks.append({"kind": "bullets", "items": list(items)})

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str, highlight: int | None = None
    ) -> None:
        """A table. Columns that hold numbers only are set flush right; row `highlight` is the one the page is about.

        Raises:
            ValueError: a row that is not as long as `columns`.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row has {len(row)} cells, the table has {len(columns)} columns: {row}")
        numeric = [all(not isinstance(row[k], str) for row in rows) for k in range(len(columns))]
        self._blocks.append(
            {
                "kind": "table",
                "columns": list(zip(columns, numeric)),
                "rows": [
                    [(c.parts() if isinstance(c, Estimate) else (str(c), ""), n) for c, n in zip(row, numeric)]
                    for row in rows
                ],
                "caption": caption,
                "highlight": highlight,
            }
        )

    def figure(self, figure: "Figure", caption: str, alt: str) -> None:
        """A matplotlib figure (see `chart`), as SVG; `alt` says in words what it shows. Closes the figure."""
        number = sum(block["kind"] == "figure" for block in self._blocks)
        svg = Markup(_themed_svg(figure, prefix=f"chart{number}-"))
        self._blocks.append({"kind": "figure", "svg": svg, "caption": caption, "alt": alt})

    def tiles(self, rows: Sequence[tuple[str, Sequence[np.ndarray]]], caption: str) -> None:
        """Rows of pictures, one below the other: (label, uint8 (H, W, 3) RGB arrays); all rows equally long.

        Columns belong together: picture k of every row is about the same sample.
        """
        block = {"kind": "tiles", "caption": caption, "rows": [], "columns": max(len(row) for _, row in rows)}
        if self.frames:
            height, width = rows[0][1][0].shape[:2]
            block["aspect"] = f"{width} / {height}"
            block["rows"] = [(label, [_data_uri(picture) for picture in row]) for label, row in rows]
        self._blocks.append(block)

    def provenance(self, facts: Mapping[str, str]) -> None:
        """Where the numbers come from, for the foot of the page: command, commit, versions, machine, hashes."""
        self._provenance += facts.items()

    def html(self) -> str:
        """The whole page."""
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        template = environment.from_string(files("headcam").joinpath("report.html").read_text("utf-8"))
        return template.render(
            title=self.title, lead=self.lead, blocks=self._blocks, provenance=self._provenance, palette=_VARIABLES
        )

    def write(self, path: str | PathLike) -> None:
        """Write the page to `path`, whole or not at all."""
        write_text(path, self.html())


@contextmanager
def chart(height: float = 2.9) -> Iterator["Figure"]:
    """A figure in the style of the pages, `height` inches high, to draw on and hand to `Page.figure`.

    >>> with chart() as figure:
    ...     axes = figure.subplots()
    ...     axes.plot([0, 1], [1, 0], color=BLUE)
    ...     page.figure(figure, "Loss.", alt="a falling line")
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(_CHART_WIDTH, height), layout="constrained")


def _themed_svg(figure: "Figure", prefix: str) -> str:
    """The figure as an `<svg>` element whose colours are the page's and whose ids start with `prefix`."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # an HTML parser knows both
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # Two charts on one page must not share ids: clip paths and markers are found by them.
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    for colour, name in _VARIABLES.items():
        svg = re.sub(rf"\b(fill|stroke): {colour}", rf"\1: var(--{name})", svg)
    # Outlined letters that are black by default (no colour in their style) follow the text.
    return svg.replace("<svg", '<svg role="img" fill="currentColor"', 1)


def _data_uri(picture: np.ndarray) -> str:
    """A uint8 (H, W, 3) RGB picture as a data URI."""
    picture = np.ascontiguousarray(picture, dtype=np.uint8)
    if picture.nbytes <= _LOSSLESS_BYTES:
        kind, data = "png", cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    else:
        kind, data = "jpeg", simplejpeg.encode_jpeg(picture, quality=88, colorspace="RGB")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
