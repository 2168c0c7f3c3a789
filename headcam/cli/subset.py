"""`headcam subset recordings.parquet --hours '[0.1,1]' --out subsets`: draw manifests of several sizes and seeds."""

from collections.abc import Sequence

from headcam.cli.options import say, verb_parser


def main(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "subset",
        "Draw nested subsets of a recordings table by hours, balanced over sources, wearers and days, as manifests\n"
        "that every run can be restricted to. Quarantined seconds (headcam scan) are never drawn.",
        "headcam subset recordings.parquet --fractions '[0.01,0.1,1]' --seeds '[0,1,2]' --held_out 0.1 --out subsets",
    )
    parser.add_argument("recordings", metavar="FILE.parquet", type=str, help="table that headcam index wrote")
    parser.add_argument("--out", metavar="DIR", type=str, required=True, help="folder for the manifests")
    parser.add_argument("--hours", type=list[float], default=[], help="sizes in hours: '[0.1,1,10]'")
    parser.add_argument(
        "--fractions", type=list[float], default=[], help="sizes as fractions of what is not held out: '[0.01,0.1,1]'"
    )
    parser.add_argument("--seeds", type=list[int], default=[0], help="one manifest of each size for each seed")
    parser.add_argument(
        "--rule",
        type=str,
        default="stratified",
        help="stratified: mixed segments; recordings: whole ones; contiguous: one block in the order of paths",
    )
    parser.add_argument(
        "--strata",
        type=list[str],
        default=["source", "wearer", "recorded_on"],
        help="columns whose shares are kept (also: session, camera); '[]' for none",
    )
    parser.add_argument("--segment_s", type=float, default=60.0, help="longest segment of rule stratified, seconds")
    parser.add_argument(
        "--by", type=str, default="recording", help="hold out whole: recording, session, wearer or source"
    )
    parser.add_argument("--held_out", type=float | None, default=None, help="fraction of the hours to hold out, about")
    parser.add_argument("--held_out_seed", type=int, default=0, help="which part that is, whatever --seeds are")
    parser.add_argument("--hold_out", type=list[str], default=[], help="hold out these: '[S]' with --by wearer")
    parser.add_argument(
        "--leave_one_out", action="store_true", help="hold out each in turn: a folder without-NAME each"
    )
    parser.add_argument(
        "--quarantine", type=str, default="auto", help="auto: the table of headcam scan, if any; none; or a file"
    )
    options = parser.parse_args(list(arguments))

    from pathlib import Path

    from headcam.video.sampling.subset import TABLE, subset

    settings = {k: v for k, v in vars(options).items() if k not in ("recordings", "out", "config", "quiet")}
    out = Path(options.out).expanduser()
    found = subset(Path(options.recordings).expanduser(), out, **settings)
    lines = [f"{'manifest':<40} {'hours':>12} {'recordings':>10}  hash"]
    for file, manifest in found.manifests.items():
        lines.append(f"{file:<40} {manifest.hours:>12.4f} {len(manifest.seconds):>10}  {manifest.hash[:12]}")
    say(*lines, f"table: {out / TABLE}")
    return 0
