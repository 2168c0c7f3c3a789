"""`headcam sample`: what a GPT on tokens draws, how it goes on, what surprises it, and whether it remembers."""

from collections.abc import Sequence
from typing import Literal

import jsonargparse

from headcam.cli.options import add_device_option, say, verb_parser
from headcam.errors import InputError

_NUM = 4  # samples, pictures or clips, and completions of each, where nothing is said


def main(arguments: Sequence[str]) -> int:
    """Run `headcam sample`; prints what has to be said and the files that it wrote, the last is the one to open."""
    options = _parser().parse_args(list(arguments))

    from headcam.tokenizers.autoregression.sampling import Sampling

    settings = Sampling(options.temperature, options.top_k, options.top_p)
    if options.what == "context":
        return _context(options)
    if options.what != "free" and options.data is None:
        raise InputError(f"sample {options.what} needs pictures or clips", "give --data")

    from headcam.tokenizers.autoencoders.tokenizer import clip_step
    from headcam.tokenizers.autoregression import show
    from headcam.tokenizers.autoregression.loading import class_number, load_gpt_and_tokenizer

    *models, card = load_gpt_and_tokenizer(options.run, options.tokenizer, options.device)
    label = class_number(card, options.label)
    drawing = show.Drawing(settings, label, options.seed, options.batch_size, options.quiet)
    num, many = (_NUM if n is None else n for n in (options.num, options.completions))
    step_s = clip_step(card.get("tokenizer") or {}, options.step_s)
    if options.what == "free":
        shown = show.free(*models, options.out, drawing, num=num, step_s=step_s)
    elif options.what == "half":
        shown = show.half(*models, options.data, options.out, drawing, num=num, completions=many, given=options.given)
    elif options.what == "continue":
        shown = show.continuation(
            *models, options.data, options.out, drawing, num=num, completions=many, given=options.given, step_s=step_s
        )
    else:
        shown = show.surprise(
            *models, options.data, options.out, num=num, label=label, seed=options.seed, step_s=step_s
        )
    if options.tokens:
        show.save_tokens(options.tokens, shown.tokens)
    say(*shown.notes, *([options.tokens] if options.tokens else []), *map(str, shown.files))
    return 0


def _context(options: jsonargparse.Namespace) -> int:
    if options.train is None or options.held_out is None:
        raise InputError("sample context compares two sides", "give --train and --held_out, token stores")

    from headcam.tokenizers.context import context

    names = ("fractions", "num", "temperature", "top_k", "top_p", "seed", "device", "checkpoints", "lpips", "quiet")
    given = {name: options[name] for name in names if options[name] is not None}
    if options.completions is not None:
        given["samples"] = options.completions
    made = context(
        run=options.run,
        train=options.train,
        held_out=options.held_out,
        out=options.out,
        frames=not options.no_frames,
        **given,
    )
    say(*made.notes, str(made.page))
    return 0


def _parser() -> jsonargparse.ArgumentParser:
    parser = verb_parser(
        "sample",
        "Draw from a GPT on tokens:\n"
        "  free      samples of nothing given, as a sheet (clips: also as GIF and MP4)\n"
        "  half      pictures completed from their upper half\n"
        "  continue  clips continued from their first frames, beside the true clip, as GIF, MP4 and film strip\n"
        "  surprise  pictures or clips beside maps of bits per token\n"
        "  context   how continuations change with the share that is given, on training and held-out items; a page",
        "headcam sample half runs/gpt --data frames --out pictures --top_k 100",
    )
    parser.add_argument(
        "what", type=Literal["free", "half", "continue", "surprise", "context"], help="what to draw, see above"
    )
    parser.add_argument("run", type=str, help="run folder of a GPT, weights.safetensors with its card, or .ckpt")
    parser.add_argument("--out", type=str, required=True, help="folder for the pictures")
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="half, continue, surprise: frame store, clip store, file of headcam index, or folder of pictures",
    )
    parser.add_argument(
        "--tokenizer", type=str | None, default=None, help="of weights that carry no copy of theirs: its run folder"
    )
    parser.add_argument(
        "--num",
        type=int | None,
        default=None,
        help=f"samples (free), pictures, clips or items of each store (default: {_NUM}, context: 16)",
    )
    parser.add_argument(
        "--completions",
        type=int | None,
        default=None,
        help=f"half, continue, context: samples of each (default: {_NUM}, context: 8)",
    )
    parser.add_argument(
        "--given",
        type=int | None,
        default=None,
        help="rows of tokens (half) or frames (continue) that are given; default: half of them",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most likely token")
    parser.add_argument("--top_k", type=int | None, default=None, help="only the k most likely tokens")
    parser.add_argument(
        "--top_p", type=float | None, default=None, help="only the fewest tokens that have this probability together"
    )
    parser.add_argument(
        "--label", type=str | None, default=None, help="class, by name or number, of models that are conditioned on one"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pictures and of all draws")
    parser.add_argument("--batch_size", type=int, default=16, help="samples that advance together")
    parser.add_argument(
        "--step_s", type=float | None, default=None, help="clips: seconds between two frames; null: as in training"
    )
    parser.add_argument("--tokens", type=str | None, default=None, help="also write the tokens to this .npy file")
    parser.add_argument("--train", type=str | None, default=None, help="context: token store the model was trained on")
    parser.add_argument("--held_out", type=str | None, default=None, help="context: token store of held-out data")
    parser.add_argument(
        "--fractions", type=list[float] | None, default=None, help="context: shares of the tokens that are given"
    )
    parser.add_argument(
        "--checkpoints",
        type=list[str] | None,
        default=None,
        help="context: earlier checkpoints or runs of the model, for the amount of training as an axis",
    )
    parser.add_argument("--lpips", type=str | None, default=None, help="context: file of LPIPS weights")
    parser.add_argument("--no_frames", action="store_true", help="context: no pictures on the page")
    add_device_option(parser)
    return parser
