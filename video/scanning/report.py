"""The page of `headcam scan`: how many claimed hours were verified, what is wrong with the rest, what it looks like.

Everything but the thumbnails comes from the result in memory. Thumbnails are decoded in child processes with a
deadline like everything else that touches a doubtful file; nothing is shown of what cannot be decoded, of recordings
whose decoder got lost, and nothing at all on a page without frames.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from headcam import __version__
from headcam.errors import DecodeError
from headcam.pages import BLUE, ORANGE, Estimate, Page, chart
from headcam.video.metadata import is_picture
from headcam.video.quarantine import REASONS
from headcam.video.readers import open_reader
from headcam.video.workers import Lost, run_tasks

if TYPE_CHECKING:
    from headcam.video.scanning.scan import ScanResult

_SOURCES = 12  # bars of the chart
_WORST = 20  # rows of the table of recordings
_NOTES = 20
_SHOWN = 10  # stretches with thumbnails
_THUMBNAIL = (96, 160)  # height, width
_COLUMNS = 4
_NO_PICTURE = 128  # grey

_MEANING = {
    "undecodable": "the decoder refuses the data, marks the picture as corrupt, or needs a frame that is damaged",
    "timestamps": "no frame for a long while, or seconds that the file has twice",
    "black": "a covered lens, a camera in its bag",
    "frozen": "the same picture over and over",
    "duplicate": "the same footage as in another recording, which keeps it",
}


def write_report(
    path: str | os.PathLike,
    result: "ScanResult",
    recordings: pa.Table,
    files: Mapping[str, str | os.PathLike],
    frames: bool,
    timeout_s: float,
) -> None:
    """Write the page of a scan to `path`.

    Args:
        path: HTML file to write.
        result: what was found.
        recordings: the index that was scanned.
        files: what lies where, for the foot of the page.
        frames: whether pictures may be shown.
        timeout_s: seconds that a decoder may stay silent.
    """
    rows = {row["recording"]: row for row in recordings.select(_COLUMNS_USED).to_pylist() if row["status"] == "ok"}
    names = {recording: _short(Path(row["path"]).name) for recording, row in rows.items()}
    page = Page("headcam scan: what can be trained on", headline(result), frames=frames)
    bad_s, claimed_s = sum(result.seconds.values()), result.claimed_s
    page.facts(
        [
            (_long(result.verified_s), "verified"),
            (_long(bad_s), f"in quarantine, {100 * bad_s / claimed_s if claimed_s else 0:.2g} % of what is claimed"),
            (f"{result.quarantine.table.num_rows:,}", "stretches in quarantine"),
            (f"{len(rows):,}", "recordings looked at"),
        ]
    )
    _reasons(page, result)
    _sources(page, result, rows)
    _worst(page, result, names)
    _thumbnails(page, result, rows, names, timeout_s)
    _not_looked_at(page, result, recordings, names)
    _thresholds(page, result)
    page.provenance(
        {name: os.fspath(file) for name, file in files.items()}
        | {"recordings hash": result.quarantine.recordings_hash, "quarantine hash": result.quarantine.hash}
        | {"version": f"headcam {__version__}"}
    )
    page.write(path)


_COLUMNS_USED = ["recording", "path", "source", "duration_s", "keyframes", "status"]


def headline(result: "ScanResult") -> str:
    """The result in one sentence."""
    what = "key frames only were decoded" if result.quarantine.settings["decode"] == "keyframes" else "all decoded"
    claimed, verified = _long(result.claimed_s), _long(result.verified_s)
    if not result.quarantine.table.num_rows:
        return f"{verified} of {claimed} verified ({what}): nothing has to be left out."
    return f"{verified} of {claimed} verified ({what}). The rest is in quarantine and is not trained on."


def _long(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:,.2f} {name}"
    return f"{seconds:.1f} seconds"


def _short(name: str) -> str:
    """A file name that fits a narrow column; the middle goes first."""
    return name if len(name) <= 26 else f"{name[:12]}\N{HORIZONTAL ELLIPSIS}{name[-13:]}"


def _reasons(page: Page, result: "ScanResult") -> None:
    page.section("Why seconds are out", "A second that is bad twice counts for the reason that stands first.")
    seconds, by_reason = result.seconds, result.by_reason
    rows = []
    for reason in REASONS:
        found = by_reason.get(reason, [])
        recordings = len({row["recording"] for row in found})
        share = 100 * seconds.get(reason, 0.0) / result.claimed_s if result.claimed_s else 0.0
        rows.append(
            [f"{reason}: {_MEANING[reason]}", Estimate(seconds.get(reason, 0.0)), Estimate(share, digits=2)]
            + [len(found), recordings]
        )
    page.table(["reason", "seconds", "% of claimed", "stretches", "files"], rows, "What is in quarantine.")


def _sources(page: Page, result: "ScanResult", rows: Mapping[str, Mapping[str, Any]]) -> None:
    bad: dict[str, float] = defaultdict(float)
    for row in result.quarantine.table.to_pylist():
        bad[row["recording"]] += row["end_s"] - row["start_s"]
    claimed: dict[str, float] = defaultdict(float)
    verified: dict[str, float] = defaultdict(float)
    for recording, row in rows.items():
        source = row["source"] or Path(row["path"]).parent.name
        claimed[source] += result.findings[recording].claimed_s
        verified[source] += result.findings[recording].claimed_s - bad[recording]
    order = sorted(claimed, key=lambda source: (-claimed[source], source))
    if len(order) > _SOURCES:
        rest = f"{len(order) - _SOURCES + 1} others"
        for source in order[_SOURCES - 1 :]:
            claimed[rest] += claimed[source]
            verified[rest] += verified[source]
        order = [*order[: _SOURCES - 1], rest]
    unit, name = next((u for u in ((3600, "hours"), (60, "minutes")) if result.claimed_s >= u[0]), (1, "seconds"))
    page.section("Where the seconds come from")
    with chart(height=1.1 + 0.34 * len(order)) as figure:
        axes = figure.subplots()
        y = np.arange(len(order))
        good = np.array([verified[source] for source in order]) / unit
        out = np.array([claimed[source] - verified[source] for source in order]) / unit
        axes.barh(y, good, color=BLUE, height=0.66, label="verified")
        axes.barh(y, out, left=good, color=ORANGE, height=0.66, label="in quarantine")
        axes.set_yticks(y, [source if len(source) < 25 else f"{source[:22]}..." for source in order])
        axes.set(xlabel=f"{name} claimed", xlim=(0, None), ylim=(len(order) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=2)
        page.figure(
            figure,
            "What the files claim to hold, by source (where none is known: by folder).",
            alt="; ".join(f"{s}: {verified[s] / unit:.2f} of {claimed[s] / unit:.2f} {name}" for s in order),
        )


def _worst(page: Page, result: "ScanResult", names: Mapping[str, str]) -> None:
    bad: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    words: dict[tuple[str, str], str] = {}
    for row in result.quarantine.table.to_pylist():
        bad[row["recording"]][row["reason"]] += row["end_s"] - row["start_s"]
        words.setdefault((row["recording"], row["reason"]), _named(row["detail"], names))
    if not bad:
        return
    order = sorted(bad, key=lambda recording: (-sum(bad[recording].values()), recording))
    rows = []
    for recording in order[:_WORST]:
        claimed, out = result.findings[recording].claimed_s, sum(bad[recording].values())
        why = (f"{reason} {s:.1f} s ({words[recording, reason]})" for reason, s in sorted(bad[recording].items()))
        rows.append([names[recording], Estimate(claimed - out), Estimate(claimed), "; ".join(why)])
    more = len(order) - len(rows)
    page.section("The recordings that lose most")
    page.table(
        ["file", "verified s", "claimed s", "what is out (first finding)"],
        rows,
        "Every stretch is in the quarantine table." + (f" {more} more recordings have some." if more > 0 else ""),
    )


def _named(detail: str, names: Mapping[str, str]) -> str:
    """A detail in which another recording is called by its file, not by its id."""
    return " ".join(names.get(word, word) for word in detail.split(" "))


@dataclass(frozen=True)
class _Look:
    """Where to take the thumbnails of a stretch."""

    path: str
    keyframes: tuple[int, ...] | None
    times_s: tuple[float, ...]


def _thumbnails(
    page: Page,
    result: "ScanResult",
    rows: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, str],
    timeout_s: float,
) -> None:
    visible = [
        row
        for row in result.quarantine.table.to_pylist()
        if row["reason"] != "undecodable" and not result.findings[row["recording"]].lost
    ]
    if not visible:
        return
    page.section("What is out, seen")
    # The longest of each reason first, then the second longest of each ...
    visible.sort(key=lambda row: (row["start_s"] - row["end_s"], row["recording"], row["start_s"]))
    rank: dict[str, int] = defaultdict(int)
    chosen = []
    for row in visible:
        chosen.append((rank[row["reason"]], REASONS.index(row["reason"]), row))
        rank[row["reason"]] += 1
    chosen = [row for *_, row in sorted(chosen, key=lambda entry: entry[:2])][:_SHOWN]
    looks = {}
    for row in chosen:
        start, end = row["start_s"], row["end_s"]
        length = end - start
        times = (start - min(1.0, length), start + 0.2 * length, start + 0.8 * length, end + min(1.0, length))
        recording = rows[row["recording"]]
        last = max(recording["duration_s"] - 0.1, 0.0)
        times = tuple(min(max(time, 0.0), last) for time in times)
        keyframes = tuple(recording["keyframes"]) if recording["keyframes"] is not None else None
        looks[_Look(recording["path"], keyframes, times)] = row
    pictures = {}
    if page.frames:
        for look, answer in run_tasks(take_thumbnails, list(looks), min(4, len(looks)), lambda *_: timeout_s):
            pictures[look] = None if isinstance(answer, Lost) else answer
    tiles = []
    for look, row in looks.items():
        if page.frames and pictures[look] is None:
            continue
        label = (
            f"{row['reason']}: {names[row['recording']]}, {row['start_s']:.2f} to {row['end_s']:.2f} s "
            f"({_named(row['detail'], names)})"
        )
        tiles.append((label, pictures[look] if page.frames else [np.zeros((*_THUMBNAIL, 3), np.uint8)] * _COLUMNS))
    if tiles:
        page.tiles(
            tiles,
            "From left to right: before the stretch, at 20 % and 80 % of it, after it (the nearest there is; grey: "
            f"the reader found none). {len(tiles)} of {len(visible)} stretches that have pictures.",
        )


def take_thumbnails(look: _Look, beat: Callable[[Any], None]) -> list[np.ndarray]:
    """Pictures (96, 160, 3) at the times wanted, plain grey where there is none. Runs in a child process."""
    beat(0)
    order = sorted(range(len(look.times_s)), key=lambda k: look.times_s[k])
    keyframes: Sequence[int] | None = look.keyframes
    if is_picture(look.path):
        keyframes = None
    found: dict[int, np.ndarray] = {}
    for k in order:  # one reader each: a time in damaged surroundings must not cost the others
        try:
            with open_reader(look.path, short_side=_THUMBNAIL[0], keyframes=keyframes) as reader:
                found[k] = _fitted(reader.frames_at([look.times_s[k]])[0].image)
        except DecodeError:
            found[k] = np.full((*_THUMBNAIL, 3), _NO_PICTURE, np.uint8)
    return [found[k] for k in range(len(order))]


def _fitted(image: np.ndarray) -> np.ndarray:
    """`image` (H, W, 3) with borders or cut, so that it has the size of a thumbnail."""
    height, width = _THUMBNAIL
    out = np.zeros((height, width, 3), np.uint8)
    image = image[:: max(1, image.shape[0] // height)][:height, max(0, (image.shape[1] - width) // 2) :][:, :width]
    top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return out


def _not_looked_at(page: Page, result: "ScanResult", recordings: pa.Table, names: Mapping[str, str]) -> None:
    statuses: dict[str, int] = defaultdict(int)
    for status in recordings["status"].to_pylist():
        statuses[status] += status != "ok"
    points = [f"{n:,} rows of the index are {status}: not decoded." for status, n in sorted(statuses.items()) if n]
    if result.quarantine.settings["decode"] == "keyframes":
        points.append(
            "Only key frames were decoded: damage between them is not seen, stretches begin and end at key frames, and "
            "recordings were not compared with each other."
        )
    if result.lost:
        points.append(
            f"The decoder crashed, went silent or was killed in {result.lost} recordings; the rest was not seen."
        )
    points.append("Damage that leaves valid data behind (a decoder cannot know it) is not found; neither is sound.")
    notes = [(names[r], note) for r, finding in result.findings.items() for note in finding.notes]
    page.section("What was not looked at, and oddities")
    page.bullets(points)
    if notes:
        more = f" {len(notes) - _NOTES} more are not shown." if len(notes) > _NOTES else ""
        page.table(["file", "oddity"], notes[:_NOTES], f"Odd, but no second is out because of it.{more}")


def _thresholds(page: Page, result: "ScanResult") -> None:
    from headcam.video.scanning.frames import Settings

    defaults = asdict(Settings())
    rows = []
    for name, value in result.quarantine.settings.items():
        usual = defaults.get(name, "")
        rows.append([name, str(value), "as usual" if usual == value else str(usual)])
    page.section("Thresholds used")
    page.table(["setting", "value", "default"], rows, "Explained in headcam scan --help. Luma runs from 0 to 255.")
