"""`headcam index DIR --out FILE.parquet`: list the recordings of a folder."""

from collections.abc import Sequence

from headcam.cli.options import say, verb_parser


def main(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "index",
        "List every video and picture under a folder, with what can be known of it, in a Parquet table.",
        "headcam index ~/my_videos --out recordings.parquet",
    )
    parser.add_argument("folder", metavar="DIR", type=str, help="folder to look in, recursively")
    parser.add_argument(
        "--out", metavar="FILE.parquet", type=str, required=True, help="table to write or bring up to date"
    )
    parser.add_argument(
        "--processes", type=int | None, default=None, help="worker processes (default: one a processor)"
    )
    parser.add_argument("--full_hash", "--full-hash", action="store_true", help="also hash all bytes of every file")
    parser.add_argument("--timeout_s", type=float, default=60.0, help="seconds for one file, plus one for every 10 MB")
    options = parser.parse_args(list(arguments))

    from pathlib import Path

    from headcam.video.index import index

    result = index(
        Path(options.folder).expanduser(),
        Path(options.out).expanduser(),
        processes=options.processes,
        full_hash=options.full_hash,
        timeout_s=options.timeout_s,
        quiet=options.quiet,
    )
    statuses = result.statuses
    bad = statuses["unreadable"]
    say(
        f"{statuses['ok']} recordings, {result.hours:.2f} hours; {bad} unreadable, {statuses['duplicate']} duplicates, "
        f"{result.ignored} other files passed over" + (" (see the columns status and reason)" if bad else ""),
        f"table: {options.out}",
    )
    return 1 if bad else 0
