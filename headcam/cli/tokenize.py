"""`headcam tokenize {palette,store,report}`: fit a colour palette, encode data into tokens, compare tokenizers.

Tokenizers that are trained by gradients are trained with `headcam fit` (configs/tokenizers).
"""

from collections.abc import Sequence

from headcam.cli.options import add_device_option, say, verb_parser
from headcam.errors import InputError

_WORDS = {
    "palette": "fit a palette of colours by k-means: the tokenizer of iGPT",
    "store": "encode frames or clips into a store of tokens that models of tokens train from",
    "report": "compare tokenizers on held-out data: a page",
}
_DATA = "a frame store, a clip store, or a file of headcam index"


def main(arguments: Sequence[str]) -> int:
    word, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if word in _WORDS:
        return {"palette": _palette, "store": _store, "report": _report}[word](rest)
    parser = verb_parser(
        "tokenize",
        "Pictures and clips as tokens: headcam tokenize WORD --help shows the options of a word.\n\n"
        + "\n".join(f"  {word:<9}{text}" for word, text in _WORDS.items()),
        "headcam tokenize palette frames --out runs/palette\n"
        "  headcam tokenize store frames --tokenizer runs/palette --out tokens\n"
        "  headcam tokenize report runs/palette runs/vqgan --data held_out --out report",
    )
    parser.add_argument("word", type=str, help="palette, store or report")
    parser.parse_args(list(arguments))
    raise InputError(f"{word!r} is no word of headcam tokenize", f"use one of {', '.join(_WORDS)}")


def _palette(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "tokenize palette",
        f"{_WORDS['palette'].capitalize()}.\nA pixel is a token: the number of the nearest of K colours.",
        "headcam tokenize palette frames --out runs/palette",
    )
    parser.add_argument("data", type=str, help="frame store, or file of headcam index")
    parser.add_argument("--out", metavar="DIR", type=str, required=True, help="folder for the palette")
    parser.add_argument("--codebook_size", type=int, default=512, help="number of colours")
    parser.add_argument("--img_size", type=int, default=64, help="side in pixels of the pictures that it is for")
    parser.add_argument("--pixels_per_frame", type=int, default=32, help="pixels drawn from each frame")
    parser.add_argument("--max_frames", type=int, default=10_000, help="frames drawn at most; every 10th is held out")
    parser.add_argument("--seed", type=int, default=0, help="of the draws and of k-means")
    parser.add_argument("--manifest", metavar="FILE.json", type=str | None, default=None, help="draw from its seconds")
    options = parser.parse_args(list(arguments))

    from headcam.tokenizers.autoencoders.palette import fit_palette

    result = fit_palette(**_given(options))
    where = f"{result.held_out_frames} held-out frames" if result.held_out_frames else "the fitted frames"
    lines = [
        f"{options.codebook_size} colours from {result.pixels} pixels of {result.frames} frames",
        f"mean squared error of a channel, 8 bits, on {where}: {result.mse:.2f} "
        f"(one colour for all pixels: {result.mse_one_colour:.2f})",
    ]
    lost = result.skipped
    if lost:
        lines.append(f"skipped: {len(lost)} frames could not be decoded, first {lost[0].recording}: {lost[0].reason}")
    say(*lines, f"palette: {result.folder / 'card.json'}")
    return 1 if lost else 0


def _store(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "tokenize store",
        f"{_WORDS['store'].capitalize()}.\nClips are stored where the tokenizer is one of clips.",
        "headcam tokenize store frames --tokenizer runs/vqgan --out tokens --crops 4 --scale '[0.2,1]' --flip 0.5",
    )
    parser.add_argument("data", type=str, help=_DATA)
    parser.add_argument("--tokenizer", metavar="RUN", type=str, required=True, help="run folder, weights or .ckpt")
    parser.add_argument("--out", metavar="DIR", type=str, required=True, help="folder of the store, new or unfinished")
    parser.add_argument("--crops", type=int, default=1, help="rows of each frame or clip")
    parser.add_argument(
        "--scale",
        type=tuple[float, float] | None,
        default=None,
        help="range of a crop's area as a fraction of the frame's (default: the largest central crop for one crop, "
        "else [0.2,1])",
    )
    parser.add_argument("--flip", type=float, default=0.0, help="probability of mirroring")
    parser.add_argument(
        "--step_s", type=float | None, default=None, help="clips: seconds between two frames; null: as in training"
    )
    parser.add_argument(
        "--stride_s",
        type=float | None,
        default=None,
        help="clips: seconds from the start of one to the next (default: the span of a clip)",
    )
    parser.add_argument("--manifest", metavar="FILE.json", type=str | None, default=None, help="encode its seconds")
    parser.add_argument("--batch_size", type=int, default=16, help="frames or clips that are encoded together")
    parser.add_argument("--seed", type=int, default=0, help="of crops and flips")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode")
    add_device_option(parser)
    options = parser.parse_args(list(arguments))

    from headcam.tokenizers.token_shards import SKIPPED
    from headcam.tokenizers.token_store import make_token_store

    result = make_token_store(**_given(options))
    grid = " x ".join(map(str, result.grid))
    lines = [
        f"{result.samples} grids of {grid} tokens ({result.vocab_size} codes) of {result.recordings} recordings, "
        f"{result.hours:.2f} hours of video"
    ]
    if result.skipped:
        lost_s = sum(skip.seconds for skip in result.skipped)
        what = f"{len(result.skipped)} frames or clips, {lost_s:.1f} s"
        lines.append(f"skipped: {what}, see {result.folder / SKIPPED} for the reasons")
    if not result.verified:
        lines.append("not verified: no scan was used (headcam scan)")
    say(*lines, f"table: {result.table}")
    return 1 if result.skipped else 0


def _report(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "tokenize report",
        f"{_WORDS['report'].capitalize()}: what they lose, which codes they use, pictures side by side.",
        "headcam tokenize report runs/palette runs/vqgan --data held_out --out report",
    )
    parser.add_argument("tokenizers", metavar="RUN", type=str, nargs="+", help="run folders, weights or .ckpt files")
    parser.add_argument(
        "--data", type=str, nargs="+", required=True, help=f"each a folder of pictures, {_DATA}; held out"
    )
    parser.add_argument("--out", metavar="DIR", type=str, required=True, help="folder for the page")
    parser.add_argument("--num", type=int, default=256, help="items of each data set; FID takes 10,000 or more")
    parser.add_argument(
        "--lpips", metavar="FILE", type=str | None, default=None, help="weights of LPIPS; without, it is left out"
    )
    parser.add_argument(
        "--inception", metavar="FILE", type=str | None, default=None, help="weights of Inception v3, for FID and KID"
    )
    parser.add_argument(
        "--encoder",
        metavar="RUN",
        type=str | None,
        default=None,
        help="an encoder of headcam fit: KID is on its features where there are no Inception weights",
    )
    parser.add_argument(
        "--step_s", type=float | None, default=None, help="clips: seconds between two frames; null: as in training"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of items and of the bootstrap")
    add_device_option(parser)
    parser.add_argument("--no_frames", "--no-frames", action="store_true", help="no pictures on the page")
    options = parser.parse_args(list(arguments))

    from headcam.tokenizers.report import report

    given = _given(options)
    frames = not given.pop("no_frames")
    result = report(**given, frames=frames)
    lines = [f"left out: {sentence}" for sentence in result.left_out]
    if result.skipped:
        lines.append(f"skipped: {result.skipped} items could not be decoded")
    say(*lines, f"page: {result.page}")
    return 1 if result.skipped else 0


def _given(options: object) -> dict:
    """The options as keyword arguments of the function that a word calls: one spelling for both."""
    return {name: value for name, value in vars(options).items() if name != "config"}
