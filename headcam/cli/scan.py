"""`headcam scan recordings.parquet`: verify an index by decoding it, and set apart what must not be trained on."""

from collections.abc import Sequence

from headcam.cli.options import say, verb_parser


def main(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "scan",
        "Decode every recording of an index in child processes and write a table of the seconds that must not be\n"
        "trained on (undecodable, black, frozen, duplicate, wrong time stamps), and a page about them. Training uses\n"
        "the table beside the index by itself.",
        "headcam scan recordings.parquet",
    )
    add = parser.add_argument
    add("recordings", metavar="FILE.parquet", type=str, help="table that headcam index wrote")
    add(
        "--out", metavar="FILE.parquet", type=str | None, help="table to write (default: recordings.quarantine.parquet)"
    )
    add("--report", metavar="FILE.html", type=str | None, help="page to write (default: recordings.scan.html)")
    add("--no_frames", "--no-frames", action="store_true", help="no pictures on the page")
    add("--processes", type=int | None, default=None, help="worker processes (default: one a processor)")
    add("--engine", type=str, default="local", help="where they run: local, or ray")
    add("--timeout_s", type=float, default=60.0, help="seconds that a decoder may stay silent")
    add(
        "--decode", type=str, default="all",
        help="all frames, or keyframes: a quick look that verifies key frames only",
    )  # fmt: skip
    add("--black_luma", type=float, default=32.0, help="black: mean luma (0 to 255) of at most this,")
    add("--black_spread", type=float, default=8.0, help="and a standard deviation over the picture of at most this,")
    add("--black_s", type=float, default=1.0, help="for at least so many seconds")
    add("--frozen_difference", type=float, default=0.25, help="frozen: mean luma difference of at most this,")
    add("--frozen_s", type=float, default=2.0, help="for at least so many seconds")
    add("--gap_s", type=float, default=1.0, help="a gap: a frame on screen for longer than this,")
    add("--gap_steps", type=float, default=10.0, help="and longer than so many usual steps between frames")
    add("--duplicate_s", type=float, default=2.0, help="the same footage elsewhere for at least so many seconds,")
    add("--duplicate_bits", type=int, default=10, help="with picture hashes (63 bits) that differ in at most so many")
    options = parser.parse_args(list(arguments))

    from dataclasses import fields
    from pathlib import Path

    from headcam.video.quarantine import quarantine_path
    from headcam.video.scanning.frames import Settings
    from headcam.video.scanning.report import headline
    from headcam.video.scanning.scan import scan

    index = Path(options.recordings).expanduser()
    out = Path(options.out).expanduser() if options.out else quarantine_path(index)
    report = Path(options.report).expanduser() if options.report else index.with_name(f"{index.stem}.scan.html")
    result = scan(
        index,
        out,
        report,
        settings=Settings(**{field.name: options[field.name] for field in fields(Settings)}),
        frames=not options.no_frames,
        processes=options.processes,
        engine=options.engine,
        timeout_s=options.timeout_s,
        quiet=options.quiet,
    )
    known = "" if result.looked_at else " (nothing new to look at: all recordings were scanned before)"
    say(headline(result) + known)
    for reason, rows in result.by_reason.items():
        stretches = f"{len(rows)} stretch{'es' if len(rows) > 1 else ''}"
        say(f"  {reason:<12}{result.seconds[reason]:10.1f} s in {stretches}")
    if result.lost:
        say(f"  {result.lost} recordings made the decoder crash or hang, or were killed: see the column detail")
    say(f"table: {out}", f"page:  {report}")
    return 1 if result.quarantine.table.num_rows else 0
