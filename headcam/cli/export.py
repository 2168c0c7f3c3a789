"""`headcam export`: embeddings of pictures or headcam frames as a Parquet or npz table."""

from collections.abc import Sequence

from headcam.cli.options import add_device_option, add_encoder_options, say, verb_parser


def main(arguments: Sequence[str]) -> int:
    """Run `headcam export`; 1 where pictures were skipped, else 0."""
    parser = verb_parser(
        "export",
        "Write the embeddings of a frozen encoder for every picture of a folder, every frame of a store, or a\n"
        "frame of every second of an index; with path, or recording and time.",
        "headcam export runs/first --data frames --out embeddings.parquet",
    )
    add_encoder_options(parser)
    parser.add_argument(
        "--data", type=str, required=True, help="folder of pictures, frame store, or file of headcam index"
    )
    parser.add_argument("--out", type=str, required=True, help="file to write, .parquet or .npz")
    add_device_option(parser)
    options = parser.parse_args(list(arguments))

    from headcam.evaluation.embeddings import export

    made = export(
        options.checkpoint,
        options.data,
        options.out,
        pool=options.pool,
        layer=options.layer,
        device=options.device,
        quiet=options.quiet,
    )
    lines = [f"{made.rows} embeddings of {made.dim} numbers"]
    if made.skipped:
        name, reason = made.skipped[0]
        lines.append(
            f"skipped: {len(made.skipped)} that cannot be read, such as {name} ({reason}); see {made.out}.json"
        )
    say(*lines, str(made.out))
    return 1 if made.skipped else 0
