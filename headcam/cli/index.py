"""`headcam index DIR --out FILE.parquet`: list the recordings of a folder."""

from collections.abc import Sequence

from headcam.cli.options import say, verb_parser


def main(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "index",
        "List every video and picture under a folder, with what can be known of it, in a Parquet table.\n"
        "Who wore the camera, and when, comes from the files' names (--names) and from a CSV (--metadata) with the\n"
        "columns path or recording, source, wearer, age_days, recorded_on, session, camera, birth_date. Both can be\n"
        "changed later: the same command fills these columns anew and examines no file again.",
        "headcam index ~/my_videos --out recordings.parquet",
    )
    parser.add_argument("folder", metavar="DIR", type=str, help="folder to look in, recursively")
    parser.add_argument(
        "--out", metavar="FILE.parquet", type=str, required=True, help="table to write or bring up to date"
    )
    parser.add_argument(
        "--names",
        type=str,
        default="folders",
        help="what file names tell: saycam, ego4d, epic-kitchens, babyview, or folders (source = first subfolder)",
    )
    parser.add_argument(
        "--metadata", metavar="FILE.csv", type=str | None, default=None, help="CSV that tells more, and wins over names"
    )
    parser.add_argument(
        "--processes", type=int | None, default=None, help="worker processes (default: one a processor)"
    )
    parser.add_argument("--full_hash", "--full-hash", action="store_true", help="also hash all bytes of every file")
    parser.add_argument("--engine", type=str, default="local", help="what runs the processes: local, or ray")
    parser.add_argument("--timeout_s", type=float, default=60.0, help="seconds for one file, plus one for every 10 MB")
    options = parser.parse_args(list(arguments))

    from pathlib import Path

    from headcam.video.index import index

    result = index(
        Path(options.folder).expanduser(),
        Path(options.out).expanduser(),
        names=options.names,
        metadata=None if options.metadata is None else Path(options.metadata).expanduser(),
        engine=options.engine,
        processes=options.processes,
        full_hash=options.full_hash,
        timeout_s=options.timeout_s,
        quiet=options.quiet,
    )
    statuses = result.statuses
    bad = statuses["unreadable"]
    matches = result.matches
    told = []
    if options.names != "folders":
        told.append(f"names: {matches.named} of {matches.files} files follow {options.names}, the others are unknown")
    if options.metadata is not None:
        rows = matches.rows_without_file
        such = f", such as {rows[0]}" if rows else ""
        told.append(
            f"metadata: {matches.files - matches.files_without_row} of {matches.files} files have a row; "
            f"{len(rows)} rows have no file{such}"
        )
    say(
        f"{statuses['ok']} recordings, {result.hours:.2f} hours; {bad} unreadable, {statuses['duplicate']} duplicates, "
        f"{result.ignored} other files passed over" + (" (see the columns status and reason)" if bad else ""),
        *told,
        f"table: {options.out}",
    )
    return 1 if bad else 0
