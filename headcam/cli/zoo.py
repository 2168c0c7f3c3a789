"""`headcam zoo`: the published models by name, what each is, and their conversion to weights of ours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from headcam.cli.options import say, verb_parser
from headcam.errors import InputError

if TYPE_CHECKING:
    from headcam.ssl.zoo import Published


def main(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "zoo",
        "List the published models, show one, or convert one to weights.safetensors and card.json for headcam probe.\n"
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
    options = parser.parse_args(list(arguments))
    if options.convert is None and (options.out or options.file):
        raise InputError("--out and --file go with --convert", "say --convert NAME --out DIR")
    if options.convert is not None and (options.out is None or options.names):
        raise InputError("--convert takes one model and needs a folder to write to", "say --convert NAME --out DIR")

    from headcam.ssl.zoo import load_with_head

    if options.convert is None:
        say(*_listing(options.names))
        return 0

    from headcam.ssl.weights import save_weights

    encoder, card, head = load_with_head(options.convert, options.file, options.num_heads, options.network)
    path = save_weights(options.out, encoder, card)
    source = card["source"]
    dropped = ", ".join(f"{count} of {part}" for part, count in source["keys_dropped"].items() if count) or "none"
    lines = [
        f"{card['name']}: {source['family']}, {card['parameters']:,} parameters, "
        f"{card['img_size'][0]} x {card['img_size'][1]} pixels",
        f"keys: {source['keys_used']} used, {dropped} left out",
    ]
    if head is not None:
        lines.append(f"its classifier of {card['classes']} classes stays in the file: headcam.ssl.zoo.load_with_head")
    say(*lines, str(path))
    return 0


def _listing(words: Sequence[str]) -> list[str]:
    """Lines for the models whose names contain all words: groups without words, a description where one is left."""
    from headcam.ssl.zoo import find, published

    models = [model for name, model in published().items() if all(word in name for word in words)]
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
    exact = [model for model in models if words == [model.name]] or models
    if not exact:
        exact = [find(" ".join(words))]  # raises, with the nearest names
    if len(exact) == 1:
        return _description(exact[0])
    return [f"{model.name:<48}{model.parameters:>13,} parameters  {model.family}" for model in exact]


def _description(model: "Published") -> list[str]:
    from headcam.ssl.zoo import FOLDER

    arguments = ", ".join(f"{key} {value}" for key, value in model.arguments.items())
    return [
        model.name,
        f"  family        {model.family}",
        f"  encoder       {model.parameters:,} parameters; {arguments}",
        f"  classifier    {f'{model.classes} classes' if model.classes else 'none'}",
        f"  hours         {f'{model.hours:g}' if model.hours is not None else 'not stated'}",
        f"  repository    {model.repo_id or 'none: bring the file'}",
        f"  file          {model.filename}",
        f"  looked for in ${FOLDER}/{model.place.as_posix()}",
        f"headcam zoo --convert {model.name} --out DIR",
    ]
