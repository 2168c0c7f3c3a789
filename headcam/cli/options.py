"""What the verbs' parsers share: `--config`, `--print_config`, `--quiet`, one-line errors, packaged config files."""

import argparse
import sys
from pathlib import Path
from typing import Literal, NoReturn

import jsonargparse

import headcam
from headcam.errors import InputError


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of a description, so that its example can be copied."""


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose complaints are one line that names the option, exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split())
        raise InputError(text.rstrip("."), f"see {self.prog} --help")


def verb_parser(verb: str, description: str, example: str) -> Parser:
    """The parser of `headcam VERB`, with the options that every verb has."""
    parser = Parser(
        prog=f"headcam {verb}",
        description=f"{description}\n\nexample:\n  {example}",
        formatter_class=HelpFormatter,
        exit_on_error=True,
    )
    parser.add_argument("--config", action="config", help="YAML file with values of the options below")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return parser


def add_encoder_options(parser: Parser, pool: str | None = "avg") -> None:
    """An encoder and what of it is taken as a picture's features; `pool` None: what protocols say."""
    parser.add_argument("checkpoint", type=str, help="run folder, weights.safetensors (card.json beside it) or .ckpt")
    parser.add_argument(
        "--pool", type=Literal["avg", "cls"] | None, default=pool, help="mean of patch tokens or class token"
    )
    parser.add_argument(
        "--layer",
        type=str | None,
        default=None,
        help="of a GPT: number of the block (default: the middle one); of a tokenizer: latents (default) or quantized",
    )


def add_device_option(parser: Parser) -> None:
    """Where a verb computes."""
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, mps")


def config_path(name: str) -> Path:
    """The file that `--config NAME` means: a path as given, else the file of that name shipped in the package.

    `configs/ssl/mae_vits16.yaml` so works in a checkout and, from the wheel, in any folder.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    parts = given.parts[1:] if given.parts[:1] == ("configs",) else given.parts
    for folder in headcam.__path__:
        shipped = Path(folder, "configs", *parts)
        if not given.is_absolute() and shipped.is_file():
            return shipped
    raise InputError(f"config {name} was not found", f"give a YAML file, or one of: {', '.join(shipped_configs())}")


def shipped_configs() -> list[str]:
    """Names of the YAML files that come with the package, as `--config` takes them."""
    found = set()
    for folder in headcam.__path__:
        root = Path(folder, "configs")
        found |= {f"configs/{p.relative_to(root).as_posix()}" for p in root.rglob("*.yaml")}
    return sorted(found)


def say(*lines: str) -> None:
    """Print a result's lines on standard output."""
    print("\n".join(lines), file=sys.stdout, flush=True)
