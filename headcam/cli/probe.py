"""`headcam probe`: score an encoder on labelled pictures, beside random weights, raw pixels and chance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headcam.cli.options import add_device_option, add_encoder_options, say, verb_parser

if TYPE_CHECKING:
    from headcam.evaluation.probe import ProbeResult
    from headcam.evaluation.scoring.scores import Score


def main(arguments: Sequence[str]) -> int:
    """Run `headcam probe`; 1 where pictures were skipped or the test set leaks into the training set, else 0."""
    parser = verb_parser(
        "probe",
        "Score an encoder on labelled pictures by named protocols: k nearest neighbours and a linear probe, or\n"
        "few-shot finetuning, label curves, every layer (configs/protocols/). The same encoder with random weights,\n"
        "raw pixels and chance stand beside it. What is finished stays: the same --out goes on, and takes more.",
        "headcam probe runs/mae --labelled pictures --out runs/mae/probe",
    )
    add_encoder_options(parser, pool=None)
    parser.add_argument(
        "--labelled",
        type=str,
        required=True,
        help="DIR/train/CLASS/* with DIR/val/CLASS/*, DIR/CLASS/* only, ImageNet's archives, shards, lists of videos",
    )
    parser.add_argument("--out", type=str, required=True, help="folder for scores.csv, probe.json and cached features")
    parser.add_argument(
        "--protocol",
        type=list[str] | str,
        default=["knn", "linear"],
        help="names of shipped protocols (fewshot-1pct, linear-layers, ...) or YAML files",
    )
    parser.add_argument(
        "--known", type=str | None, default=None, help="set whose layout and split are known, such as labeled-s, core50"
    )
    parser.add_argument(
        "--train_groups", type=list[str] | str, default=[], help="of DIR/CHILD/CLASS/*: train on these children ..."
    )
    parser.add_argument("--test_groups", type=list[str] | str, default=[], help="... and test on these")
    parser.add_argument("--draws", type=int | None, default=None, help="make only so many of a protocol's draws")
    parser.add_argument(
        "--robustness",
        type=list[str] | str,
        default=[],
        help="folders of other test pictures for the linear probes: ImageNet-A/R/Sketch/V2, Geirhos' 16 classes",
    )
    parser.add_argument(
        "--corruptions", action="store_true", help="also score the linear probes on the test pictures corrupted"
    )
    parser.add_argument(
        "--multilabels", type=str | None, default=None, help="JSON of all right classes of each test picture (ReaL)"
    )
    parser.add_argument(
        "--test_selection",
        action="store_true",
        help="also say what choosing on the test set would have given; a biased number, labelled so",
    )
    parser.add_argument(
        "--share_unreadable", type=float, default=0.01, help="stop where more than this share cannot be read"
    )
    parser.add_argument(
        "--cache", type=str | None, default=None, help="folder of features that several probes share (default: in OUT)"
    )
    parser.add_argument("--processes", type=int, default=1, help="that finetuning is spread over; changes no score")
    parser.add_argument("--seed", type=int, default=0, help="of random weights, order of pictures, resampling")
    add_device_option(parser)
    options = parser.parse_args(list(arguments))

    from headcam.evaluation.probe import probe

    result = probe(
        options.checkpoint,
        options.labelled,
        options.out,
        protocol=_listed(options.protocol),
        known=options.known,
        train_groups=_listed(options.train_groups),
        test_groups=_listed(options.test_groups),
        seed=options.seed,
        pool=options.pool,
        layer=options.layer,
        draws=options.draws,
        robustness=_listed(options.robustness),
        corruptions=options.corruptions,
        multilabels=options.multilabels,
        test_selection=options.test_selection,
        share_unreadable=options.share_unreadable,
        cache=options.cache,
        processes=options.processes,
        device=options.device,
        quiet=options.quiet,
    )
    say(*describe(result))
    return 1 if result.skipped or result.report["data"]["test_pictures_also_in_train"] else 0


def _listed(value: list[str] | str) -> list[str]:
    """`--protocol linear`, `--protocol knn,linear` and `--protocol '[knn, linear]'` alike."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def describe(result: "ProbeResult") -> list[str]:
    """The lines that the command prints: data, table, differences, alarms, and last the file to open."""
    data = result.report["data"]
    lines = [
        f"{data['name']}: {len(data['classes'])} classes, {data['train']} training and {data['test']} test "
        f"{data['media']}",
        "",
        *_aligned(_table(result)),
        "",
    ]
    for difference in result.report["differences"]:
        if difference["metric"].endswith("/top1") and _headline(difference["metric"], result):
            lines.append(
                f"{difference['metric']}, {result.model} minus {difference['minus']}: "
                f"{difference['estimate']:+.1f} points [{difference['low']:+.1f}, {difference['high']:+.1f}]"
            )
    for outcome in result.report["outcomes"]:
        share = outcome["details"].get("percent_of_matmul_peak")
        if outcome["model"] == result.model and share is not None and _headline(outcome["stem"], result):
            lines.append(f"{outcome['stem']} ran at {share:.0f} % of this machine's peak of matrix products")
    for found in result.report["test_selection"]:
        if found["model"] == result.model:
            lines.append(
                f"biased: {found['stem']} chosen on the test set would be {found['top1']:.1f} "
                f"({found['top1'] - found['honest_top1']:+.1f} points)"
            )
    if data["skipped"]:
        first = data["skipped"][0]
        lines.append(
            f"skipped: {len(data['skipped'])} {data['media']} that cannot be read, such as {first['picture']} "
            f"({first['reason']}); all are named in {result.report_file}"
        )
    leaked = data["test_pictures_also_in_train"]
    if leaked:
        lines.append(
            f"alarm: {len(leaked)} test {data['media']} are also in the training set, such as {leaked[0]}; "
            f"all are named in {result.report_file}"
        )
    return [*lines, str(result.scores_file)]


def _table(result: "ProbeResult") -> list[list[str]]:
    """A row each metric, a column each model; points of curves, single draws and severities are left to the file."""
    models = list(dict.fromkeys(score.model for score in result.scores))
    cells = {(score.model, score.metric): score for score in result.scores}
    metrics = [m for m in dict.fromkeys(score.metric for score in result.scores) if _headline(m, result)]
    rows = [[metric, *(_cell(cells.get((model, metric))) for model in models)] for metric in metrics]
    return [["percent right [95 % interval]", *models], *rows]


def _headline(metric: str, result: "ProbeResult") -> bool:
    curves = {p["name"] for p in result.report["protocols"].values() if p["kind"] == "LabelCurve"}
    detail = "/draw" in metric or "/layer" in metric or metric.partition("/")[0] in curves
    single_corruption = "/corruption/" in metric and not metric.endswith(("corruption/mean/top1", "/relative/top1"))
    return not detail and not single_corruption


def _cell(score: "Score | None") -> str:
    if score is None:
        return "-"
    exact = score.low == score.high
    return f"{score.value:.1f}" if exact else f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]"


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
