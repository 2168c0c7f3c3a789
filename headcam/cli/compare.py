"""`headcam compare`: probed checkpoints side by side, in one page and one table."""

from collections.abc import Sequence

from headcam.cli.options import say, verb_parser


def main(arguments: Sequence[str]) -> int:
    """Run `headcam compare`; 1 where a probe skipped pictures or its test set leaks into the training set, else 0."""
    parser = verb_parser(
        "compare",
        "Set what several probes found side by side: scores with intervals, paired differences, curves, the pictures "
        "and\nclasses on which models differ. Only numbers of one protocol and the same pictures are compared.",
        "headcam compare runs/mae/probe runs/dino/probe --out compared",
    )
    parser.add_argument("probes", metavar="PROBE_OUT", type=str, nargs="+", help="folders that headcam probe wrote")
    parser.add_argument("--out", metavar="DIR", type=str, required=True, help="folder for compare.html and compare.csv")
    parser.add_argument(
        "--labelled", metavar="DIR", type=str | None, default=None, help="what was probed, to show pictures of it"
    )
    parser.add_argument("--no_frames", "--no-frames", action="store_true", help="no pictures on the page")
    parser.add_argument(
        "--metric", type=str | None, default=None, help="what the page is about, such as linear/top1 (the default)"
    )
    parser.add_argument("--names", metavar="A,B", type=str | None, default=None, help="names of the models, in order")
    options = parser.parse_args(list(arguments))

    from headcam.evaluation.compare import compare

    result = compare(
        options.probes,
        options.out,
        labelled=options.labelled,
        frames=not options.no_frames,
        metric=options.metric,
        names=None if options.names is None else [name.strip() for name in options.names.split(",")],
        quiet=options.quiet,
    )
    say(
        result.headline,
        *(f"alarm: {alarm}" for alarm in result.alarms),
        f"table: {result.table}",
        f"page: {result.page}",
    )
    return 1 if result.alarms else 0
