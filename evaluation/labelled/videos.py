"""Labelled videos: which file, which stretch of it, of which class, and which are for training and which for the test.

The layouts that users have them in (class folders, lists, Kinetics, Something-Something) are told apart and listed in
`headcam.evaluation.labelled.video_lists`; here every file gets its id, and faults are named. Videos that are listed and
not there (Kinetics loses some every month) are counted as skipped; whether those that are there can be decoded is found
when clips are read (`headcam.evaluation.features.clips`).
"""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import LabelledSet
from headcam.evaluation.labelled.video_lists import NOT_THERE, VideoListing, VideoRow, list_videos
from headcam.files import recording_id, sha256_json
from headcam.progress import Progress

_READERS = 4  # threads that read files for their ids; they wait for the disk, not for the processor
_AT_A_TIME = 1024  # videos that wait for a thread: Kinetics has 650,000
_DIRECTION = re.compile(r"(?<![a-z])(?:left|right)(?:wards?|most|hand|handed|hander)?(?![a-z])|clockwise")


@dataclass(frozen=True, slots=True)
class Video:
    """One labelled video, or a stretch of one.

    Attributes:
        root: folder that `name` is below; one object for all videos of a set.
        name: path of the file below `root`, with forward slashes.
        label: index into the classes of its set.
        sha256: the recording's id (`headcam.files.recording_id`: sampled content); of a stretch, 16 hex digits of the
            SHA-256 over id, start and end.
        start_seconds, end_seconds: the stretch that the label is of; None: to the end of the file.
        group: the recording that it was cut from, where the list tells.
    """

    root: Path
    name: str
    label: int
    sha256: str
    start_seconds: float = 0.0
    end_seconds: float | None = None
    group: str = ""

    @property
    def path(self) -> Path:
        """The file."""
        return self.root / self.name


def read_videos(source: str | os.PathLike, *, quiet: bool = True) -> LabelledSet:
    """List labelled videos and read their recording ids.

    Args:
        source: a folder, or a list or annotation file of the training part, in one of the layouts of
            `headcam.evaluation.labelled.video_lists`.
        quiet: show no progress.
    Returns:
        A set with `media` "videos" whose rows are `Video`, ordered by label, id and name. Its classes are those that
            have a video; `skipped` names the videos that are listed and not there.
    Raises:
        InputError: no such source, none of the layouts, a line that cannot be understood, a label that the list of
            classes does not have, fewer than two classes, or a class without any video in a part.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise InputError(f"labelled videos {source} do not exist", "give a folder of videos, or a list of them")
    listing = list_videos(source)
    names = _class_names(listing, source)
    numbers = {name: number for number, name in enumerate(names)}
    total = len(listing.train) + len(listing.test)
    with Progress("reading videos", total, "videos", quiet=quiet) as progress:
        parts = [_videos(listing, rows, numbers, progress) for rows in (listing.train, listing.test)]
    for part, videos, rows in (("training", parts[0], listing.train), ("test", parts[1], listing.test)):
        _check_classes(source, part, names, videos, rows, listing.skipped)
    name = (source if source.is_dir() else listing.root).resolve().name
    skipped = tuple(sorted(set(listing.skipped)))
    return LabelledSet(name, tuple(names), *parts, listing.layout, skipped, media="videos")


def direction_sensitive(classes: Iterable[str]) -> tuple[str, ...]:
    """The class names that a mirror image could make wrong: they speak of left, right or (counter)clockwise.

    Words count, not letters: "leftward", "right-handed" and "swipe_left" do; "upright", "bright" and "leftover" do
    not. A bare number says nothing and counts: without names nobody can rule it out.
    """
    return tuple(name for name in classes if name.strip().isdecimal() or _DIRECTION.search(_words(name)))


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _class_names(listing: VideoListing, source: Path) -> list[str]:
    """Class names in their order, of classes that a list names a video of."""
    used = {row.label for row in (*listing.train, *listing.test)}
    names = sorted(used) if listing.classes is None else [name for name in listing.classes if name in used]
    if len(names) < 2:
        raise InputError(
            f"labelled videos {source} have {len(names)} class{'es' if not names else ''}, and a score needs two",
            "give videos of two or more classes",
        )
    return names


def _videos(
    listing: VideoListing, rows: list[VideoRow], numbers: dict[str, int], progress: Progress
) -> tuple[Video, ...]:
    videos = []
    with ThreadPoolExecutor(_READERS) as pool:
        for first in range(0, len(rows), _AT_A_TIME):
            some = rows[first : first + _AT_A_TIME]
            for row, (found, reason) in zip(some, pool.map(lambda row: _examined(listing.root, row), some)):
                progress.advance(current=row.name)
                if found is None:
                    listing.skipped.append((row.name, reason))
                else:
                    sha256, start, end = found
                    videos.append(Video(listing.root, row.name, numbers[row.label], sha256, start, end, row.group))
    return tuple(sorted(videos, key=lambda v: (v.label, v.sha256, v.name, v.start_seconds)))


def _examined(root: Path, row: VideoRow) -> tuple[tuple[str, float, float | None] | None, str]:
    """(id, start, end) of a listed video, or None and why not."""
    path = root / row.name
    try:
        identity = recording_id(path)
    except FileNotFoundError:
        return None, NOT_THERE
    except OSError as error:
        return None, os.strerror(error.errno) if error.errno else str(error)
    if row.end is None or not _reaches(path, row.end):
        return (identity, 0.0, None), ""
    return (sha256_json([identity, row.start, row.end])[:16], row.start, row.end), ""


def _reaches(path: Path, end_seconds: float) -> bool:
    """Whether a file is long enough to be the whole recording: `<id>.mp4` is the ten seconds alone in some copies."""
    try:
        with av.open(str(path)) as container:
            return (container.duration or 0) / av.time_base >= end_seconds - 1
    except (av.error.FFmpegError, OSError):
        return False  # it cannot be read, which is found and told when its clips are wanted


def _check_classes(
    source: Path,
    part: str,
    names: list[str],
    videos: tuple[Video, ...],
    rows: list[VideoRow],
    skipped: list[tuple[str, str]],
) -> None:
    have = {video.label for video in videos}
    missing = [name for number, name in enumerate(names) if number not in have]
    if missing:
        listed = sum(row.label == missing[0] for row in rows)
        others = f" (of {len(missing)} such classes the first)" if len(missing) > 1 else ""
        raise InputError(
            f"class {missing[0]} of {source} has no {part} video that is there ({listed} found by name, "
            f"{len(skipped)} of all classes skipped){others}",
            "add videos of it, or take the class out of both parts",
        )
