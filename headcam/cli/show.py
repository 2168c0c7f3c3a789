"""`headcam show`: pictures of what a trained model completes, or of what it attends to."""

from collections.abc import Sequence
from typing import Literal

from headcam.cli.options import say, verb_parser


def main(arguments: Sequence[str]) -> int:
    """Run `headcam show`; prints the pictures that it wrote, the last line is a file to open."""
    parser = verb_parser(
        "show",
        "Pictures of what a trained model sees: completions of a masked autoencoder (picture, what was shown of it,\n"
        "what it made of it), or the attention of the class token to each patch, head by head, at any resolution.",
        "headcam show attention runs/first --data frames --img_size 448 --out pictures",
    )
    parser.add_argument("what", type=Literal["completions", "attention"], help="what to draw")
    parser.add_argument("run", type=str, help="run folder, .ckpt, or (attention) weights.safetensors with its card")
    parser.add_argument(
        "--data", type=str, required=True, help="frame store, clip store, file of headcam index, or folder of pictures"
    )
    parser.add_argument("--out", type=str, required=True, help="folder for the pictures")
    parser.add_argument("--num", type=int, default=4, help="samples to show")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples and of random masks")
    parser.add_argument("--step_s", type=float, default=8 / 30, help="clips: seconds between two frames")
    parser.add_argument(
        "--masks",
        type=list[Literal["random", "centre", "temporal"]],
        default=["random", "centre"],
        help="completions: kinds of masks; temporal is for clips",
    )
    parser.add_argument("--mask_ratio", type=float | None, default=None, help="completions: another mask ratio")
    parser.add_argument("--img_size", type=int | None, default=None, help="attention: side in pixels, such as 896")
    parser.add_argument("--block", type=int, default=-1, help="attention: number of the block, -1 for the last")
    options = parser.parse_args(list(arguments))

    from headcam.ssl.looking import show

    shared = {"num": options.num, "seed": options.seed, "step_s": options.step_s}
    if options.what == "completions":
        masks, ratio = options.masks, options.mask_ratio
        files = show.completions(options.run, options.data, options.out, masks=masks, mask_ratio=ratio, **shared)
        say(*map(str, files))
    else:
        size, block = options.img_size, options.block
        say(str(show.attention(options.run, options.data, options.out, img_size=size, block=block, **shared)))
    return 0
