"""`headcam store FILE.parquet --out DIR`: decode an index into shards of small frames, or of short clips."""

from collections.abc import Sequence
from typing import Any

from headcam.cli.options import say, verb_parser
from headcam.errors import InputError

_OF_KIND = {"frames": ("keyframes", "quality"), "clips": ("segment_s", "gop", "crf")}  # options that one kind has


def main(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "store",
        "Decode the recordings of an index once, into WebDataset shards of small upright pictures:\n"
        "JPEG frames at a steady rate or at key frames (--kind frames), or short MP4 segments that clips are\n"
        "decoded from fast, with the exact source time of every frame (--kind clips).\n"
        "Seconds that headcam scan put into quarantine are left out.",
        "headcam store recordings.parquet --out frames\n"
        "  headcam store recordings.parquet --kind clips --out clips --rotate 180",
    )
    parser.add_argument("recordings", metavar="FILE.parquet", type=str, help="table that headcam index wrote")
    parser.add_argument("--out", metavar="DIR", type=str, required=True, help="folder of the store, new or unfinished")
    parser.add_argument("--kind", type=str, default="frames", help="what to store: frames or clips")
    parser.add_argument(
        "--frames_per_second",
        type=float | None,
        default=None,
        help="pictures for a second of video (default: 1 for frames, every frame of the source for clips)",
    )
    parser.add_argument(
        "--short_side", type=int, default=256, help="pixels of a picture's shorter side, never enlarged"
    )
    parser.add_argument(
        "--rotate", type=int, default=0, help="degrees clockwise on top of the file's flag: 0, 90, 180 or 270"
    )
    parser.add_argument(
        "--crop",
        type=tuple[float, float, float, float] | None,
        default=None,
        help="[left,top,right,bottom] as fractions of the picture as turned: what to keep",
    )
    parser.add_argument("--keyframes", action="store_true", help="frames: the key frames, no others")
    parser.add_argument("--quality", type=int | None, default=None, help="frames: of the JPEGs, 1 to 100 (default: 90)")
    parser.add_argument("--segment_s", type=float | None, default=None, help="clips: seconds a segment (default: 30)")
    parser.add_argument(
        "--gop", type=int | None, default=None, help="clips: frames from key frame to key frame (default: 32)"
    )
    parser.add_argument(
        "--crf", type=int | None, default=None, help="clips: x264's rate factor, 0 to 51, 51 worst (default: 20)"
    )
    parser.add_argument(
        "--manifest", metavar="FILE.json", type=str | None, default=None, help="store what headcam subset drew"
    )
    parser.add_argument(
        "--quarantine",
        type=str,
        default="auto",
        help="table of headcam scan: auto (the one beside the index, if there is one), none, or a file",
    )
    parser.add_argument("--backend", type=str, default="pyav", help="reader: pyav, decord, torchcodec or opencv")
    parser.add_argument(
        "--processes", type=int | None, default=None, help="worker processes (default: one a processor)"
    )
    parser.add_argument("--engine", type=str, default="local", help="what runs the processes: local, or ray")
    options = parser.parse_args(list(arguments))

    from pathlib import Path

    from headcam.video.stores.clip_store import store_clips
    from headcam.video.stores.frame_store import store
    from headcam.video.stores.shards import SKIPPED

    def path(name: str | None) -> Path | None:
        return None if name is None else Path(name).expanduser()

    result = {"frames": store, "clips": store_clips}[_kind(options)](
        path(options.recordings),
        path(options.out),
        short_side=options.short_side,
        rotate=options.rotate,
        crop=options.crop,
        backend=options.backend,
        manifest=path(options.manifest),
        quarantine=options.quarantine if options.quarantine in ("auto", "none") else path(options.quarantine),
        processes=options.processes,
        engine=options.engine,
        quiet=options.quiet,
        **_given(options, "frames_per_second", *_OF_KIND[options.kind]),
    )
    lost_s = sum(s.end_s - s.start_s for s in result.skipped)
    what = "frames" if options.kind == "frames" else "segments"
    lines = [f"{result.samples} {what} of {result.recordings} recordings, {result.hours:.2f} hours of video"]
    if result.skipped:
        lines.append(
            f"skipped: {len(result.skipped)} stretches, {lost_s:.1f} s, see {result.folder / SKIPPED} for the reasons"
        )
    if result.verified:
        lines.append("verified: only seconds that headcam scan found good")
    else:
        lines.append(f"not verified: no scan was used (headcam scan {options.recordings}, then store in a new folder)")
    say(*lines, f"table: {result.table}")
    return 1 if result.skipped else 0


def _kind(options: Any) -> str:
    if options.kind not in _OF_KIND:
        raise InputError(f"there is no store of kind {options.kind!r}", f"use --kind {' or '.join(_OF_KIND)}")
    for kind, names in _OF_KIND.items():
        if kind != options.kind and (wrong := _given(options, *names)):
            raise InputError(f"--{next(iter(wrong))} is an option of --kind {kind}", "leave it out")
    if options.keyframes and options.frames_per_second is not None:
        raise InputError("--keyframes and --frames_per_second exclude each other", "give one of them")
    return options.kind


def _given(options: Any, *names: str) -> dict[str, Any]:
    """The options among `names` that were given; the others keep the defaults of the function that is called."""
    return {name: value for name in names if (value := getattr(options, name)) not in (None, False)}
