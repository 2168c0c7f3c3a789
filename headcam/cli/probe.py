"""`headcam probe`: score an encoder on labelled pictures, beside random weights, raw pixels and chance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headcam.cli.options import add_device_option, add_encoder_options, say, verb_parser

if TYPE_CHECKING:
    from headcam.evaluation.probe import ProbeResult


def main(arguments: Sequence[str]) -> int:
    """Run `headcam probe`; 1 where pictures were skipped or the test set leaks into the training set, else 0."""
    parser = verb_parser(
        "probe",
        "Score a frozen encoder on a folder of labelled pictures by k nearest neighbours and by a linear probe.\n"
        "The same encoder with random weights, raw pixels and chance stand beside it.",
        "headcam probe runs/mae --labelled pictures --out runs/mae/probe",
    )
    add_encoder_options(parser)
    parser.add_argument(
        "--labelled", type=str, required=True, help="DIR/train/CLASS/* with DIR/val/CLASS/*, or DIR/CLASS/* only"
    )
    parser.add_argument("--out", type=str, required=True, help="folder for scores.csv, probe.json and cached features")
    parser.add_argument("--seed", type=int, default=0, help="of random weights, order of pictures, resampling")
    add_device_option(parser)
    options = parser.parse_args(list(arguments))

    from headcam.evaluation.probe import probe

    result = probe(
        options.checkpoint,
        options.labelled,
        options.out,
        seed=options.seed,
        pool=options.pool,
        layer=options.layer,
        device=options.device,
        quiet=options.quiet,
    )
    say(*describe(result))
    return 1 if result.skipped or result.report["data"]["test_pictures_also_in_train"] else 0


def describe(result: "ProbeResult") -> list[str]:
    """The lines that the command prints: data, table, differences, alarms, and last the file to open."""
    data = result.report["data"]
    metrics = list(dict.fromkeys(score.metric for score in result.scores))
    models = list(dict.fromkeys(score.model for score in result.scores))
    cells = {(score.model, score.metric): score for score in result.scores}

    table = [["percent right [95 % interval]", *metrics]]
    for model in models:
        row = [model]
        for metric in metrics:
            score = cells[model, metric]
            exact = score.low == score.high
            row.append(f"{score.value:.1f}" if exact else f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]")
        table.append(row)
    lines = [
        f"{data['name']}: {len(data['classes'])} classes, {data['train']} training and {data['test']} test pictures",
        "",
        *_aligned(table),
        "",
    ]
    for difference in result.report["differences"]:
        if difference["metric"].endswith("/top1"):
            lines.append(
                f"{difference['metric']}, {result.model} minus {difference['minus']}: "
                f"{difference['estimate']:+.1f} points [{difference['low']:+.1f}, {difference['high']:+.1f}]"
            )
    if data["skipped"]:
        first = data["skipped"][0]
        lines.append(
            f"skipped: {len(data['skipped'])} pictures that cannot be read, such as {first['picture']} "
            f"({first['reason']}); all are named in {result.report_file}"
        )
    leaked = data["test_pictures_also_in_train"]
    if leaked:
        lines.append(
            f"alarm: {len(leaked)} test pictures are also in the training set, such as {leaked[0]}; "
            f"all are named in {result.report_file}"
        )
    return [*lines, str(result.scores_file)]


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
