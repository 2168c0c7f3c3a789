"""`headcam store FILE.parquet --out DIR`: decode an index into shards of small JPEG frames."""

from collections.abc import Sequence

from headcam.cli.options import say, verb_parser


def main(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "store",
        "Decode the recordings of an index once, into WebDataset shards of small upright JPEG frames.",
        "headcam store recordings.parquet --out frames",
    )
    parser.add_argument("recordings", metavar="FILE.parquet", type=str, help="table that headcam index wrote")
    parser.add_argument("--out", metavar="DIR", type=str, required=True, help="folder of the store, new or unfinished")
    parser.add_argument("--frames_per_second", type=float, default=1.0, help="pictures for a second of video")
    parser.add_argument(
        "--short_side", type=int, default=256, help="pixels of a picture's shorter side, never enlarged"
    )
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs, 1 to 100")
    parser.add_argument("--backend", type=str, default="pyav", help="reader: pyav or decord")
    parser.add_argument(
        "--processes", type=int | None, default=None, help="worker processes (default: one a processor)"
    )
    options = parser.parse_args(list(arguments))

    from pathlib import Path

    from headcam.video.frame_store import SKIPPED, TABLE, store

    result = store(
        Path(options.recordings).expanduser(),
        Path(options.out).expanduser(),
        frames_per_second=options.frames_per_second,
        short_side=options.short_side,
        quality=options.quality,
        backend=options.backend,
        processes=options.processes,
        quiet=options.quiet,
    )
    lost_s = sum(s.end_s - s.start_s for s in result.skipped)
    lines = [f"{result.frames} frames of {result.recordings} recordings, {result.hours:.2f} hours of video"]
    if result.skipped:
        lines.append(
            f"skipped: {len(result.skipped)} stretches, {lost_s:.1f} s, see {result.folder / SKIPPED} for the reasons"
        )
    say(*lines, f"table: {result.folder / TABLE}")
    return 1 if result.skipped else 0
