"""An experiment with people in the browser: one HTML file that holds pictures, program and instructions.

    manifest ──choose──▶ pairs and fillers of each set ──▶ page.html + experiment.js + jsPsych ──▶ memory.html
                                                                       │ a person, a browser, no network
                                          people.data.read_people ◀── memory-7-2026-01-31.json

After Brady, Konkle, Alvarez and Oliva (2008, PNAS 105(38), 14325-14329): pictures are studied one at a time for 3 s
with 0.8 s between them, while the participant looks for repeats; then two pictures are shown, of which one was studied.
Only fillers come twice, so that a tested picture is studied once. How many fillers repeat and after how many pictures
(1, 2, 4, ... up to 256, equally often as far as the list allows) is ours. Order, repeats and sides follow from the
page's seed and the participant's number; so does the set, where the page holds two: odd numbers study the first.

What the file holds can be read by anyone who has it: pass on a page only where you may pass on its pictures.
"""

import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path

import jinja2
import simplejpeg
from markupsafe import Markup
from PIL import Image

from headcam import __version__
from headcam.errors import InputError
from headcam.files import sha256_json, write_text
from headcam.progress import Progress
from headcam.randomness import stream
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, Pair, Stimulus, load_pictures

PAGE_CONTRACT = "memory_page/1"
DATA_CONTRACT = "memory_people/1"

_LAGS = [1 << k for k in range(9)]  # pictures between a filler and its repeat
_TEST_GAP_MS = 500  # blank after an answer
_TEST_SECONDS = 4  # a guess at how long an answer takes, for the duration that the page announces
_JPEG_QUALITY = 90
_PICTURES_AT_ONCE = 256
_LARGE_BYTES = 50_000_000
_KEY = 16  # hex digits of the SHA-256 of a picture's file that name it in the page and in the data
_SCRIPTS = ("jspsych/jspsych.min.js", "jspsych/html-button-response.min.js", "experiment.js")


@dataclass(frozen=True)
class PageFacts:
    """What a page holds, to be said beside its name.

    Attributes:
        path: of the page.
        bytes: its size.
        study_sets: the sets that it holds; participants take turns.
        study: pictures that a participant studies, repeats not counted.
        repeats: of these, how many come a second time.
        pairs: tested pairs by condition.
        minutes: about how long it takes.
        left_out: pairs that people cannot be tested on, by reason.
        notes: what the experimenter has to know besides, sentences.
    """

    path: Path
    bytes: int
    study_sets: tuple[str, ...]
    study: int
    repeats: int
    pairs: dict[str, int]
    minutes: float
    left_out: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Set:
    name: str
    pairs: tuple[Pair, ...]
    fillers: tuple[Stimulus, ...]

    def stimuli(self) -> list[Stimulus]:
        return [*self.fillers, *(s for pair in self.pairs for s in (pair.seen, pair.unseen))]


def write_page(
    manifest: MemoryManifest | str | PathLike,
    out: str | PathLike,
    *,
    study_set: str | None = None,
    num_pairs: int | None = None,
    num_fillers: int | None = None,
    conditions: Sequence[str] | None = None,
    study_ms: int = 3000,
    isi_ms: int = 800,
    repeats: float = 0.1,
    feedback: bool = True,
    break_every: int = 150,
    size: int = 256,
    seed: int = 0,
    quiet: bool = False,
) -> PageFacts:
    """Write the experiment of a manifest as one HTML file.

    Pairs that a person cannot be tested on are left out, in all sets alike, and counted: the foil is studied, or a
    picture stands in an earlier pair (it would no longer be new). Where pairs or fillers are limited, they are drawn
    by `seed`, and smaller draws are parts of larger ones.

    Args:
        manifest: of the stimuli, or its path.
        out: the page, such as memory.html.
        study_set: the set that all participants study; None: by participant number, both sets in the page.
        num_pairs: tested pairs of each condition; None: all.
        num_fillers: pictures studied and not tested; None: all that no test uses, as many in each set.
        conditions: which to test; None: all.
        study_ms, isi_ms: how long a picture is shown, and the blank after it, milliseconds.
        repeats: repeated pictures, as a fraction of the studied ones; 0 for none.
        feedback: whether a press on "Seen before" is answered at once.
        break_every: pictures, or answers, between two breaks.
        size: largest side of the pictures in the page, pixels; they are cut square as for a model, and not enlarged.
        seed: of every draw, the page's and the participants'.
    Raises:
        InputError: an unknown set or condition, more pairs or fillers than there are, too few fillers to repeat, or a
            number that makes no experiment.
    """
    manifest = manifest if isinstance(manifest, MemoryManifest) else MemoryManifest.read(manifest)
    for name, value, least in (
        ("study_ms", study_ms, 1),
        ("isi_ms", isi_ms, 0),
        ("break_every", break_every, 1),
        ("size", size, 8),
    ):
        if value < least:
            raise InputError(f"{name} is {value}", f"use at least {least}")
    if not 0 <= repeats < 1:
        raise InputError(f"repeats is {repeats}, a fraction of the studied pictures", "use a number from 0 to below 1")

    sets, left_out = _choose(manifest, study_set, conditions, num_pairs, num_fillers, seed)
    study = len(sets[0].pairs) + len(sets[0].fillers)
    num_repeats = round(repeats * study)
    fillers = len(sets[0].fillers)
    if num_repeats and fillers <= num_repeats:
        raise InputError(
            f"{num_repeats} of {study} studied pictures are to repeat, but only fillers do and there are {fillers}",
            "lower repeats (0 for none), or study more fillers",
        )
    settings = {
        "data_contract": DATA_CONTRACT,
        "study_ms": study_ms,
        "isi_ms": isi_ms,
        "test_gap_ms": _TEST_GAP_MS,
        "repeats": num_repeats,
        "lags": _LAGS,
        "feedback": feedback,
        "break_every": break_every,
        "size": size,
        "seed": seed,
    }
    pictures = _pictures(manifest, sets, size, quiet)
    minutes = ((study + num_repeats) * (study_ms + isi_ms) / 1000 + len(sets[0].pairs) * _TEST_SECONDS) / 60
    html = _render(manifest, sets, settings, pictures, study, minutes)
    write_text(out, html)
    size_bytes = len(html.encode())
    return PageFacts(
        path=Path(out),
        bytes=size_bytes,
        study_sets=tuple(s.name for s in sets),
        study=study,
        repeats=num_repeats,
        pairs=dict(Counter(pair.condition for pair in sets[0].pairs)),
        minutes=minutes,
        left_out=left_out,
        notes=_notes(sets, size_bytes),
    )


def _choose(
    manifest: MemoryManifest,
    study_set: str | None,
    conditions: Sequence[str] | None,
    num_pairs: int | None,
    num_fillers: int | None,
    seed: int,
) -> tuple[list[_Set], dict[str, int]]:
    """The pairs and fillers of each set, the same numbers of pairs in all; and the pairs left out, by reason."""
    names = manifest.study_sets if study_set is None else (study_set,)
    left_out: Counter[str] = Counter()
    taken: dict[str, set[str]] = {name: set() for name in names}  # pictures that stand in a pair already
    chosen: dict[str, list[Pair]] = {name: [] for name in names}
    for condition in conditions or manifest.conditions:
        by_set = {name: {pair.number: pair for pair in manifest.pairs(name, condition)} for name in names}
        numbers = sorted(set.intersection(*(set(pairs) for pairs in by_set.values())))
        usable = []
        for number in stream(seed, f"people page, pairs of {condition}", 0).permutation(numbers).tolist():
            if num_pairs is not None and len(usable) == num_pairs:
                break
            reasons = {_unusable(manifest, name, by_set[name][number], taken[name]) for name in names} - {""}
            if reasons:
                left_out[min(reasons)] += 1
                continue
            usable.append(number)
            for name in names:
                pair = by_set[name][number]
                taken[name] |= {pair.seen.sha256, pair.unseen.sha256}
        if (num_pairs is not None and len(usable) < num_pairs) or not usable:
            raise InputError(
                f"condition {condition} of manifest {manifest.name} has {len(usable)} pairs that people can be tested "
                f"on in sets {', '.join(names)}, {num_pairs or 1} are wanted"
                + "".join(f"; {number} left out so far: {reason}" for reason, number in left_out.items()),
                "lower num_pairs, leave the condition out, or choose one study_set",
            )
        for name in names:
            chosen[name] += [by_set[name][number] for number in sorted(usable)]
    unused = {name: _unused(manifest, name) for name in names}
    most = min(len(fillers) for fillers in unused.values())
    num_fillers = most if num_fillers is None else num_fillers
    if not 0 <= num_fillers <= most:
        raise InputError(
            f"num_fillers is {num_fillers}; sets {', '.join(names)} have {most} studied pictures that no test uses",
            f"use 0 to {most}",
        )
    sets = []
    for name in names:
        order = stream(seed, "people page, fillers", 0).permutation(len(unused[name]))[:num_fillers]
        sets.append(_Set(name, tuple(chosen[name]), tuple(unused[name][k] for k in order)))
    return sets, dict(left_out)


def _unusable(manifest: MemoryManifest, study_set: str, pair: Pair, taken: set[str]) -> str:
    if pair.unseen.sha256 in {s.sha256 for s in manifest.study(study_set)}:
        return "the foil is studied"
    if {pair.seen.sha256, pair.unseen.sha256} & taken:
        return "a picture stands in another tested pair"
    return ""


def _unused(manifest: MemoryManifest, study_set: str) -> list[Stimulus]:
    """Studied pictures that no test of the set uses, by content: sets that share them draw the same ones."""
    tested = {s.sha256 for s in manifest.stimuli if s.study_set == study_set and s.role == "test"}
    by_hash = {s.sha256: s for s in manifest.study(study_set) if s.sha256 not in tested}
    return [by_hash[key] for key in sorted(by_hash)]


def _pictures(manifest: MemoryManifest, sets: Sequence[_Set], size: int, quiet: bool) -> dict[str, str]:
    """Key -> data URI of every picture, each once, in the order of their content."""
    by_hash = {s.sha256: s for one in sets for s in one.stimuli()}
    stimuli = [by_hash[key] for key in sorted(by_hash)]
    size = min(size, max(_side(manifest, s) for s in stimuli))
    uris = {}
    with Progress("pictures", total=len(stimuli), unit="pictures", quiet=quiet) as progress:
        for start in range(0, len(stimuli), _PICTURES_AT_ONCE):
            part = stimuli[start : start + _PICTURES_AT_ONCE]
            pixels = load_pictures(manifest, part, (size, size), "bicubic").permute(0, 2, 3, 1).contiguous().numpy()
            for stimulus, picture in zip(part, pixels):
                data = simplejpeg.encode_jpeg(picture, quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
                uris[_key(stimulus)] = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
            progress.advance(len(part))
    return uris


def _side(manifest: MemoryManifest, stimulus: Stimulus) -> int:
    """Pixels of the shorter side of the file; 1 where it cannot be opened, which `load_pictures` says better."""
    try:
        with Image.open(manifest.root / stimulus.path) as picture:
            return min(picture.size)
    except OSError:
        return 1


def _key(stimulus: Stimulus) -> str:
    return stimulus.sha256[:_KEY]


def _render(
    manifest: MemoryManifest,
    sets: Sequence[_Set],
    settings: dict,
    pictures: dict[str, str],
    study: int,
    minutes: float,
) -> str:
    design = [
        {
            "name": one.name,
            "fillers": [_key(s) for s in one.fillers],
            "pairs": [
                {"condition": p.condition, "number": p.number, "seen": _key(p.seen), "unseen": _key(p.unseen)}
                for p in one.pairs
            ],
        }
        for one in sets
    ]
    page = {
        "contract": PAGE_CONTRACT,
        "headcam": __version__,
        "hash": sha256_json([PAGE_CONTRACT, manifest.hash, settings, design]),
        "manifest": {"name": manifest.name, "hash": manifest.hash},
        "settings": settings,
        "sets": design,
        "pictures": pictures,
    }
    here = files("headcam.recognition_memory.people")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(here.joinpath("page.html").read_text("utf-8")).render(
        study=study + settings["repeats"],
        repeats=settings["repeats"],
        feedback=settings["feedback"],
        breaks=study + settings["repeats"] > settings["break_every"],
        seconds=_seconds(settings["study_ms"]),
        minutes=_minutes(minutes),
        data=Markup(json.dumps(page, separators=(",", ":")).replace("<", "\\u003c")),
        scripts=[_script(here.joinpath(name).read_text("utf-8")) for name in _SCRIPTS],
    )


def _script(text: str) -> Markup:
    # Source maps would be fetched from the network by a browser whose developer tools are open.
    lines = [line for line in text.splitlines() if not line.startswith("//# sourceMappingURL=")]
    text = "\n".join(lines)
    if "</script" in text:
        raise ValueError("a script that closes its own element cannot be put into a page")
    return Markup(text)


def _seconds(ms: int) -> str:
    return "one second" if ms == 1000 else f"{ms / 1000:g} seconds"


def _minutes(minutes: float) -> str:
    if minutes < 1.5:
        return "a minute"
    if minutes < 90:
        return f"{round(minutes)} minutes"
    return f"{minutes / 60:.1f} hours"


def _notes(sets: Sequence[_Set], size_bytes: int) -> tuple[str, ...]:
    notes = ["the page holds the pictures: pass it on only where you may pass those on"]
    if len(sets) > 1:
        names = ", ".join(one.name for one in sets)
        notes.append(f"participants 1, 2, ... study the sets {names} in turn: give out numbers without gaps")
    if size_bytes > _LARGE_BYTES:
        notes.append("a page above 50 MB opens slowly on a phone: lower size, num_pairs or num_fillers")
    return tuple(notes)
