"""`headcam demo`: the main job, end to end, on a synthetic world or on the user's own videos."""

from collections.abc import Sequence

from headcam.cli.options import say, verb_parser


def main(arguments: Sequence[str]) -> int:
    """Run `headcam demo`; 1 where files were skipped, else 0."""
    parser = verb_parser(
        "demo",
        "Pretrain a small encoder on first-person video, probe it beside honest baselines, and write a report.\n"
        "Without --videos it renders a synthetic world first. The same command again goes on where it stopped.",
        "headcam demo --videos ~/my_videos --labelled ~/pictures --out demo",
    )
    parser.add_argument("--videos", metavar="DIR", type=str | None, default=None, help="folder of your recordings")
    parser.add_argument(
        "--labelled",
        metavar="DIR",
        type=str | None,
        default=None,
        help="probe set: DIR/train/CLASS/* with DIR/val/CLASS/*, or DIR/CLASS/* only (default: synthetic close-ups)",
    )
    parser.add_argument("--out", metavar="DIR", type=str, default="demo", help="folder for everything that is made")
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="about how long to train (two ordinary cores); fixes the steps"
    )
    parser.add_argument(
        "--processes", type=int | None, default=None, help="worker processes (default: one a processor)"
    )
    parser.add_argument("--no_frames", "--no-frames", action="store_true", help="no pictures in the report")
    options = parser.parse_args(list(arguments))

    from headcam.demo import demo

    result = demo(
        options.out,
        videos=options.videos,
        labelled=options.labelled,
        minutes=options.minutes,
        processes=options.processes,
        frames=not options.no_frames,
        quiet=options.quiet,
    )
    say("", result.headline, f"scan: {result.scan_report}")
    if result.skipped:
        say(f"skipped: {'; '.join(result.skipped)} (the report names them with their reasons)")
    say(str(result.report))
    return 1 if result.skipped else 0
