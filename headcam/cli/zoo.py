"""`headcam zoo`: the published models by name, what each is, and their conversion to weights of ours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from headcam.cli.options import say, verb_parser
from headcam.errors import InputError

if TYPE_CHECKING:
    from headcam.ssl.zoo import Published


def main(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "zoo",
        "List the published models, show one, or convert one to weights.safetensors and card.json: encoders for\n"
        "headcam probe, tokenizers for headcam tokenize, GPTs (with their tokenizer) for headcam sample.\n"
        "A model's file is the one given by --file, or in the folder that HEADCAM_ZOO names, or downloaded.",
        "headcam zoo vith14",
    )
    parser.add_argument(
        "names", metavar="WORD", nargs="*", type=str, default=[], help="show names that contain all these words"
    )
    parser.add_argument(
        "--convert", metavar="NAME|FILE", type=str, help="a published name, or any file of a known layout"
    )
    parser.add_argument("--file", type=str, help="the file of the named model, where it is already at hand")
    parser.add_argument("--out", metavar="DIR", type=str, help="folder for weights.safetensors and card.json")
    parser.add_argument(
        "--network", type=Literal["teacher", "student"], default="teacher", help="which one of a DINO or Mugs file"
    )
    parser.add_argument(
        "--num_heads", type=int | None, default=None, help="attention heads, where the width is no published one"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR|FILE",
        type=str,
        help="of a GPT given as a file: what headcam zoo made of its tokenizer, or the published file",
    )
    parser.add_argument(
        "--grid", metavar="N", type=int, nargs="+", help="time slots, rows and columns of a video GPT's tokens"
    )
    options = parser.parse_args(list(arguments))
    if options.convert is None and (options.out or options.file):
        raise InputError("--out and --file go with --convert", "say --convert NAME --out DIR")
    if options.convert is not None and (options.out is None or options.names):
        raise InputError("--convert takes one model and needs a folder to write to", "say --convert NAME --out DIR")
    if options.convert is None:
        say(*_listing(options.names))
        return 0

    from headcam.tokenizers.published.zoo import is_generative

    say(*(_convert_generative(options) if is_generative(options.convert) else _convert_encoder(options)))
    return 0


def _convert_encoder(options: Any) -> list[str]:
    from headcam.ssl.weights import save_weights
    from headcam.ssl.zoo import load_with_head

    encoder, card, head = load_with_head(options.convert, options.file, options.num_heads, options.network)
    path = save_weights(options.out, encoder, card)
    lines = [_headline(card, f"{card['img_size'][0]} x {card['img_size'][1]} pixels"), _keys(card)]
    if head is not None:
        lines.append(f"its classifier of {card['classes']} classes stays in the file: headcam.ssl.zoo.load_with_head")
    return [*lines, str(path)]


def _convert_generative(options: Any) -> list[str]:
    from headcam.ssl.weights import save_weights
    from headcam.tokenizers.autoregression.gpt import GPT
    from headcam.tokenizers.published.converters import save_gpt
    from headcam.tokenizers.published.zoo import load

    model, card, tokenizer = load(
        options.convert, options.file, tokenizer=options.tokenizer, grid=options.grid, num_heads=options.num_heads
    )
    size = " x ".join(map(str, model.grid)) + f" tokens of {model.vocab_size:,}"
    if not isinstance(model, GPT):
        path = save_weights(options.out, model, card)
        return [_headline(card, f"{model.img_size[0]} x {model.img_size[1]} pixels to {size}"), _keys(card), str(path)]
    path = save_gpt(options.out, model, card, tokenizer)
    lines = [_headline(card, size), _keys(card)]
    if model.start == "none":
        lines.append(f"it has no start token: its scores are of {model.num_positions} tokens, given the first")
    lines.append(
        "no tokenizer was given (--tokenizer): it scores tokens, no pictures"
        if tokenizer is None
        else f"its tokenizer, {tokenizer[1]['name']}, is in {options.out}/tokenizer"
    )
    return [*lines, str(path)]


def _headline(card: dict[str, Any], size: str) -> str:
    return f"{card['name']}: {card['source']['family']}, {card['parameters']:,} parameters, {size}"


def _keys(card: dict[str, Any]) -> str:
    source = card["source"]
    dropped = ", ".join(f"{count} of {part}" for part, count in source["keys_dropped"].items() if count) or "none"
    return f"keys: {source['keys_used']} used, {dropped} left out"


def _listing(words: Sequence[str]) -> list[str]:
    """Lines for the models whose names contain all words: groups without words, a description where one is left."""
    from headcam.ssl.zoo import published as encoders
    from headcam.tokenizers.published.zoo import find
    from headcam.tokenizers.published.zoo import published as generative

    models = [model for name, model in (encoders() | generative()).items() if all(word in name for word in words)]
    if not words:
        groups: dict[str, int] = {}
        for model in models:
            group = model.name.split("/")[0]
            groups[group] = groups.get(group, 0) + 1
        lines = [f"{group:<20}{count:>4}" for group, count in groups.items()]
        return [
            *lines,
            f"{len(models)} published models; headcam zoo WORD ... lists those whose names contain all words",
        ]
    if not models:
        models = [find(" ".join(words))]  # raises, with the nearest names
    named = [model for model in models if words in ([model.name], [model.name.split("/")[1]])]
    models = named if len(named) == 1 else models
    if len(models) == 1:
        return _description(models[0])
    return [f"{model.name:<48}{model.parameters:>13,} parameters  {model.family}" for model in models]


def _description(model: "Published") -> list[str]:
    from headcam.ssl.zoo import FOLDER
    from headcam.tokenizers.published.zoo import published, tokenizer_name

    arguments = ", ".join(f"{key} {value}" for key, value in model.arguments.items())
    generative = model.name in published()
    lines = [
        model.name,
        f"  family        {model.family}",
        f"  {'model' if generative else 'encoder':<13} {model.parameters:,} parameters; {arguments}",
    ]
    if not generative:
        lines += [
            f"  classifier    {f'{model.classes} classes' if model.classes else 'none'}",
            f"  hours         {f'{model.hours:g}' if model.hours is not None else 'not stated'}",
        ]
    elif model.family != "vqgan":
        lines.append(f"  tokenizer     {tokenizer_name(model) or 'in the same file'}")
    return [
        *lines,
        f"  repository    {model.repo_id or 'none: bring the file'}",
        f"  file          {model.filename}",
        f"  looked for in ${FOLDER}/{model.place.as_posix()}",
        f"headcam zoo --convert {model.name} --out DIR",
    ]
