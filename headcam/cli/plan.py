"""`headcam plan --config RECIPE --hours H --gpus N --gpu NAME`: batch, steps, time, memory and disk before a run."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headcam.cli.options import Parser, config_path, say, verb_parser
from headcam.errors import HeadcamError, InputError

if TYPE_CHECKING:
    from headcam.ssl.objective import Objective


def main(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "plan",
        "Say what a run of headcam fit will take, from hours of video, a recipe and GPUs: the batch that fits, the\n"
        "learning rate, steps, time at a share of the devices' peak, memory by part, disk. Nothing is trained, no GPU\n"
        "is needed. Any setting of the model can be changed: --model.img_size=448 --model.compute.checkpointing=all",
        "headcam plan --config configs/ssl/headcam_mae_vith14_448.yaml --hours 500 --gpus 4 --gpu h100-80gb",
    )
    _add_options(parser)
    arguments, recipe = _recipe(arguments)
    options, objective = objective_of(parser, arguments)

    from headcam.files import write_json
    from headcam.ssl.planning.run_plan import gpu_of, plan_run

    precision = options.precision or recipe["precision"] or "bf16-mixed"
    steps = options.steps if options.steps is not None or options.passes is not None else recipe["steps"]
    plan = plan_run(
        objective,
        hours=_hours(options.hours, options.recordings),
        gpu=gpu_of(options.gpu, precision, options.gpu_memory_gb, options.gpu_tflops),
        gpus=options.gpus,
        batch_size=_batch_size(options.batch_size, recipe["batch_size"]),
        global_batch=options.global_batch,
        passes=options.passes,
        steps=steps,
        precision=precision,
        shard=options.shard,
        share=options.share,
    )
    say(plan.table())
    if options.out:
        write_json(options.out, plan.as_json())
        say(f"plan: {options.out}")
    return 0


def objective_of(parser: Parser, arguments: Sequence[str]) -> tuple[Any, "Objective"]:
    """Parse `arguments` with a parser that has `--model`, and build the objective: on the meta device, untrained.

    Returns:
        The parsed options and the objective.
    Raises:
        InputError: no model was given, or one that cannot be built.
    """
    try:
        options = parser.parse_args(list(arguments))
        build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before jsonargparse 4.49
        objective = build(options).model
    except Exception as error:
        if unknown := re.search(r"Option '([\w.]+)' is not accepted", str(error)):
            raise InputError(
                f"--model.{unknown[1]} is no setting of this model",
                "headcam fit --config FILE --print_config shows all",
            ) from None
        raise _ours(error) from None
    if objective is None:
        raise InputError(
            "there is no model to plan for", "give a recipe with --config, such as configs/ssl/mae_vits16.yaml"
        )
    return options, objective


def _add_options(parser: Parser) -> None:
    from headcam.ssl.objective import Objective

    parser.add_subclass_arguments(Objective, "model", required=False, help="the objective, as for headcam fit")
    parser.add_argument("--hours", type=float | None, default=None, help="hours of video that are trained on")
    parser.add_argument(
        "--recordings",
        metavar="FILE",
        type=str | None,
        default=None,
        help="instead: an index (.parquet) or a manifest (.json)",
    )
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs")
    parser.add_argument("--gpu", type=str, default="a100-80gb", help="a100-40gb, a100-80gb, h100-80gb, h200-141gb")
    parser.add_argument("--gpu_memory_gb", type=float | None, default=None, help="memory of another GPU, in 10^9 bytes")
    parser.add_argument(
        "--gpu_tflops", type=float | None, default=None, help="peak of another GPU at the run's precision"
    )
    parser.add_argument(
        "--batch_size",
        type=str | None,
        default=None,
        help="samples a GPU: a number, or largest (default: the recipe's)",
    )
    parser.add_argument(
        "--global_batch",
        type=int | None,
        default=None,
        help="samples of an optimizer step, in as many micro-steps as needed",
    )
    parser.add_argument("--passes", type=float | None, default=None, help="how often every second is seen on average")
    parser.add_argument(
        "--steps", type=int | None, default=None, help="optimizer steps (default: the recipe's max_steps)"
    )
    parser.add_argument(
        "--precision", type=str | None, default=None, help="32-true, bf16-mixed or 16-mixed (default: the recipe's)"
    )
    parser.add_argument("--shard", action="store_true", help="FSDP: divide weights and optimizer state among the GPUs")
    parser.add_argument(
        "--share", type=float, default=0.4, help="of the GPUs' peak that the run will reach, for the time"
    )
    parser.add_argument(
        "--out", metavar="FILE.json", type=str | None, default=None, help="write the plan there as well"
    )


def _recipe(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Of a recipe of `headcam fit` the parser here gets the model only; batch, steps and precision come beside.

    A `--config` that is no recipe (it has neither `data` nor `trainer`) holds this verb's own options.
    """
    import yaml

    recipe: dict[str, Any] = {"batch_size": None, "steps": None, "precision": None}
    out = list(arguments)
    for k, argument in enumerate(out):
        if argument != "--config" and not argument.startswith("--config="):
            continue
        name = argument.removeprefix("--config=") if "=" in argument else "".join(out[k + 1 : k + 2])
        path = config_path(name)
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(
                f"config {name} is not YAML: {error}", "give a recipe such as those in configs/ssl"
            ) from error
        if not isinstance(content, dict):
            raise InputError(f"config {name} holds no settings", "give a recipe such as those in configs/ssl")
        own = str(path)
        if {"data", "trainer"} & content.keys():
            data, trainer = (content.get(part) or {} for part in ("data", "trainer"))
            recipe["batch_size"] = (data.get("init_args") or {}).get("batch_size")
            recipe["steps"], recipe["precision"] = trainer.get("max_steps"), trainer.get("precision")
            own = yaml.safe_dump({"model": content.get("model")})
        if "=" in argument:
            out[k] = f"--config={own}"
        elif k + 1 < len(out):
            out[k + 1] = own
    return out, recipe


def _hours(hours: float | None, recordings: str | None) -> float:
    """The hours given, or those of an index (without what is in quarantine) or a manifest."""
    from pathlib import Path

    if (hours is None) == (recordings is None):
        raise InputError(f"--hours is {hours} and --recordings is {recordings}", "give one of them")
    if hours is not None:
        return hours
    path = Path(recordings).expanduser()
    if path.suffix == ".json":
        from headcam.video.sampling.manifest import Manifest

        return Manifest.read(path).hours

    from headcam.video.quarantine import quarantine_of, verified_stretches
    from headcam.video.recordings import read_recordings
    from headcam.video.stretches import total_s

    table = read_recordings(path)
    stretches = verified_stretches(table, quarantine_of(path, table))
    return sum(map(total_s, stretches.values())) / 3600


def _batch_size(given: str | None, recipe: int | None) -> int:
    """Samples a GPU; 0 stands for the largest that fits."""
    if given is None:
        return recipe or 0
    if given == "largest":
        return 0
    if not given.isdigit() or int(given) < 1:
        raise InputError(f"--batch_size is {given!r}", "give a number from 1 on, or largest")
    return int(given)


def _ours(error: BaseException) -> BaseException:
    """The error of ours that jsonargparse wrapped, if any, else the error itself."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, HeadcamError):
        found = found.__cause__ or found.__context__
    return found or error
