"""`headcam fit`: the Lightning command line with a run folder, one-line errors and exact resume.

Conventions are Lightning's (`--config`, `--print_config`, `--trainer.max_steps`, `--model.…`, `--data.…`,
`--ckpt_path`); added are `--out`, the run folder, `--checkpoint_every`, `--init` (weights to start from), `--health.…`
and `--plan_memory`. The same command on a folder that holds an unfinished run of the same config goes on with it, also
on another number of processes. Exit status beside the usual ones: 143, stopped by SIGTERM or SIGUSR1 between two steps.
"""

import logging
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from headcam.cli.options import HelpFormatter, config_path, say, shipped_configs
from headcam.errors import HeadcamError, InputError
from headcam.runs import MetricsFile
from headcam.ssl.objective import Objective
from headcam.ssl.training.distributed import AgreedError, CleanStop, Preflight, Stopped, say_once
from headcam.ssl.training.health import HealthSettings, TrainingHealth
from headcam.ssl.training.precision import resolve_precision
from headcam.ssl.training.run_folder import RunFolder, TrainingProgress, WholeCheckpoints, checkpoints
from headcam.ssl.weights import open_checkpoint
from headcam.video.data_module import FrameDataModule

# What may differ between the two configs of a stopped and a resumed run, with everything below it: no sample and no
# number (beyond rounding) depends on it. What makes up the global batch may differ as well; `RunFolder` holds that
# their product stays.
_HARMLESS = (
    *("out", "ckpt_path", "checkpoint_every", "keep_checkpoints", "health", "plan_memory", "model.init_args.compute"),
    *("data.init_args.num_workers", "data.init_args.batch_size"),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy", "accumulate_grad_batches")),
    *(f"trainer.{name}" for name in ("enable_progress_bar", "val_check_interval", "log_every_n_steps")),
)
_STOPPED = 143  # exit status: 128 + SIGTERM, as shells say it

_USAGE = (
    "headcam fit --config FILE.yaml [--out FOLDER] [--trainer.max_steps N] [--model.KEY VALUE] [--data.KEY VALUE] ..."
)
_DESCRIPTION = """Train a model; the same command goes on with a run that was stopped.

example:
  headcam fit --config configs/ssl/mae_vits16.yaml --data.train='[frames]' --trainer.max_steps=20000 --out runs/first"""

# Runs are counted in steps of an endless loader (headcam.video.sampling.plan): epochs and their bookkeeping are off.
_TRAINER_DEFAULTS = {
    "max_steps": -1,
    "max_epochs": -1,
    "logger": False,
    "check_val_every_n_epoch": None,
    "val_check_interval": 500,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 50,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


class _MemoryPlanned(Exception):
    """The plan that `--plan_memory` asked for was made; nothing is trained."""


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _cause(ex) or InputError(_plain(message), "headcam fit --config FILE --print_config shows all keys")


class _Fit(LightningCLI):
    """Lightning's command line with the one verb `fit`; building it parses, builds and trains.

    Attributes:
        run: the run folder.
        run_config: the complete config as YAML, in the form that `headcam fit --config` reads.
    """

    def __init__(self, arguments: Sequence[str]):
        self._arguments = arguments
        super().__init__(
            Objective,
            FrameDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            parser_kwargs={
                "formatter_class": HelpFormatter,
                "fit": {"usage": _USAGE, "description": _DESCRIPTION, "formatter_class": HelpFormatter},
            },
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=["fit", *_with_packaged_configs(arguments)],
            trainer_defaults=_TRAINER_DEFAULTS,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.pop("error_handler", None)
        parser = _Parser(allow_abbrev=False, **kwargs)
        parser.add_argument("-c", "--config", action="config", help="YAML file with any of the keys below")
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def _parse_ckpt_path(self) -> None:
        """Lightning would read hyperparameters from the checkpoint here; ours are in the run's config.yaml."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", type=str | None, default=None, help="run folder (default: runs/<config's name>)")
        parser.add_argument("--checkpoint_every", type=int, default=500, help="optimizer steps between checkpoints")
        parser.add_argument(
            "--keep_checkpoints",
            type=Literal["newest", "all"],
            default="newest",
            help="which of them stay, as checkpoints/step-*.ckpt: all are for questions of how training went on",
        )
        parser.add_argument(
            "--init", type=str | None, default=None, help="start from weights: zoo:NAME, a run folder or a weights file"
        )
        parser.add_argument(
            "--plan_memory", type=bool, default=False, help="say what a step takes on the device, and train nothing"
        )
        parser.add_class_arguments(HealthSettings, "health")

    def before_instantiate_classes(self) -> None:
        config = self.config.fit
        if config.trainer.max_steps is None or config.trainer.max_steps < 1:
            raise InputError(
                f"trainer.max_steps is {config.trainer.max_steps}: a run's length is given in optimizer steps",
                "set --trainer.max_steps, for example to 10000",
            )
        if config.plan_memory:  # of the precision that is asked for, whatever this machine can do
            return
        accelerator = str(config.trainer.accelerator)
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
        config.trainer.precision, reason = resolve_precision(config.trainer.precision, on_cpu)
        if reason:
            say_once(reason)
        self.run = Path(config.out or _default_out(self._arguments))
        self.run_config = yaml.safe_dump(_plain_config(self), sort_keys=False)
        config.ckpt_path = self._checkpoint_to_resume(config.ckpt_path)

    def _checkpoint_to_resume(self, wanted: str | None) -> str | None:
        """The checkpoint that training goes on from, None for a new run; refuses a folder that is another run's."""
        if wanted and not Path(wanted).is_file():
            raise InputError(f"--ckpt_path {wanted} does not exist", "give a .ckpt file of a run")
        if (self.run / "config.yaml").exists():
            self._check_same(self.run / "config.yaml")
        elif self.run.exists() and (not self.run.is_dir() or any(self.run.iterdir())):
            raise InputError(f"--out {self.run} is there and holds no run", "choose another folder")
        last = self.run / "checkpoints" / "last.ckpt"
        checkpoint = wanted or (str(last) if last.exists() else None)
        if checkpoint:
            open_checkpoint(checkpoint)  # a damaged file is named now, not by Lightning in the middle of its start
        return checkpoint

    def _check_same(self, path: Path) -> None:
        """Refuse to go on with a run whose config is another one; name the first key that differs."""
        old, new = (_flat(yaml.safe_load(t)) for t in (path.read_text("utf-8"), self.run_config))
        if set(new) - set(old):  # an older version wrote it; what it could not say has its default
            parsed = self.parser.parse_args(["fit", "--config", str(path)])
            old = _flat(_plain_config(self, parsed)) | old
        for key in sorted(old | new):
            harmless = any(key == name or key.startswith(f"{name}.") for name in _HARMLESS)
            if not harmless and old.get(key) != new.get(key):
                raise InputError(
                    f"{path.parent} holds a run with another config: {key} is {old.get(key)} there and {new.get(key)} "
                    "here",
                    "choose another --out, or repeat the command that started that run to go on with it",
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init.fit
        trainer = config.trainer
        if config.plan_memory:  # before there is a trainer, which may ask for devices that are elsewhere
            say(_memory_table(self.model, trainer, self.datamodule.batch_size))
            raise _MemoryPlanned
        if config.init and not config.ckpt_path:  # a checkpoint brings its own weights
            self.model.initial_weights = config.init
        self.health = TrainingHealth(self.run, config.health)
        folder = RunFolder(self.run, self.run_config, self.health)
        saver = checkpoints(self.run, config.checkpoint_every, config.keep_checkpoints)
        own = [Preflight(), self.health, folder, saver, CleanStop(Path(saver.dirpath) / "last.ckpt")]
        if trainer.enable_progress_bar is not False:
            own.append(TrainingProgress(folder))
        plugins = [WholeCheckpoints(), *_as_list(trainer.plugins)]
        if SLURMEnvironment.detect() and not any(isinstance(one, ClusterEnvironment) for one in plugins):
            plugins.append(SLURMEnvironment(auto_requeue=False))  # see CleanStop, and configs/slurm/
        options = {
            "callbacks": [*own, *_as_list(trainer.callbacks)],
            "plugins": plugins,
            "default_root_dir": str(self.run),
        }
        return super().instantiate_trainer(**options, **kwargs)


def main(arguments: Sequence[str]) -> int:
    """Train; returns the exit status."""
    # Lightning's greetings, tips and advertisements; its warnings stay.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Advice of Lightning's about loaders and loggers that headcam chose on purpose, and jsonargparse's own future.
        warnings.filterwarnings("ignore", module=r"lightning\..*|jsonargparse\..*")
        warnings.filterwarnings("ignore", message=r"(?s).*skip_none parameter was deprecated.*")
        # Of FSDP2 about outputs that are views: none is changed in place.
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
        warnings.filterwarnings("ignore", message=r".*(does not have many workers|You are using `torch.load`).*")
        try:
            cli = _fit(arguments)
        except _MemoryPlanned:
            return 0
        except Stopped as stop:
            say_once(f"stopped by {stop.signal_name} after step {stop.step}, saved; the same command goes on")
            return _STOPPED
        except AgreedError:
            if rank_zero_only.rank:
                return 2
            raise
        trainer, run = cli.trainer, cli.run
        last = (MetricsFile(run / "metrics.csv").rows() or [{}])[-1]
        validated = "val/loss" in last and int(last["step"]) == trainer.global_step
        # One process decides for all: the others may look before it has written.
        if cli.datamodule.validates and not trainer.strategy.broadcast(validated):
            trainer.validate(cli.model, cli.datamodule, verbose=False)  # the last step was no validation step
    if trainer.is_global_zero:
        say(
            f"trained {trainer.global_step} steps; metrics, pictures and weights: {run}",
            f"{run / 'weights.safetensors'}",
        )
    skipped = len(cli.health.skipped)
    if skipped:
        say_once(f"{skipped} steps were skipped: loss or gradient was no number; their samples: {cli.health.path}")
    return 1 if skipped or any(getattr(callback, "alarms", None) for callback in trainer.callbacks) else 0


def _memory_table(model: Objective, trainer: Any, batch_size: int) -> str:
    """What a training step of `model` takes, for the devices, strategy and precision that the config names."""
    from headcam.ssl.planning.memory_plan import plan_memory

    devices = int(trainer.devices) if str(trainer.devices).isdigit() else 1
    plan = plan_memory(
        model,
        trainer.precision or "32-true",
        processes=devices * trainer.num_nodes,
        shard=isinstance(trainer.strategy, ModelParallelStrategy),
        accumulate=trainer.accumulate_grad_batches > 1,
    )
    lines = [plan.table(batch_size)]
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        lines.append(f"largest batch on {torch.cuda.get_device_name(0)}: {plan.largest_batch(total)}")
    return "\n".join(lines)


def _fit(arguments: Sequence[str]) -> _Fit:
    """Parse, build and train; an error of ours comes out as it was raised, not in jsonargparse's wrapping."""
    try:
        return _Fit(arguments)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning shuts down and exits with 1
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        problem = " ".join(str(error).split()).rstrip(".")
        raise InputError(problem, "change the option of trainer that this names") from error
    except Exception as error:
        cause = _cause(error)
        if cause is None or cause is error:
            raise
        raise cause from None


def _cause(error: BaseException | None) -> HeadcamError | None:
    """The error of ours that `error` wraps, if any."""
    text = str(error)
    while error is not None and not isinstance(error, HeadcamError):
        error = error.__cause__ or error.__context__
    if error is None:
        # jsonargparse up to 4.40 keeps only the text of what a member of a union raised.
        for line in text.splitlines():
            if ". Fix: " in line:
                return InputError(*line.strip().removeprefix("- ").split(". Fix: ", 1))
    return error


def _plain_config(cli: LightningCLI, config: Any = None) -> dict[str, Any]:
    """A complete config (default: this command's) as plain values, in the form that `headcam fit --config` reads."""
    config = cli.config if config is None else config
    text = cli.parser.dump(config, skip_link_targets=False, skip_none=False, format="yaml")
    return yaml.safe_load(text)["fit"]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _plain(message: str) -> str:
    """jsonargparse's message on one line; of the complaints it lists for a union of types, the one that tells."""
    listed = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip().startswith("- ")]
    telling = [line for line in listed if not line.startswith(("Expected a <class 'NoneType'>", "Does not validate"))]
    return " ".join((telling or [message])[0].split()).rstrip(".")


def _with_packaged_configs(arguments: Sequence[str]) -> list[str]:
    """`--config NAME` with the path of the packaged file where NAME is no file here."""
    out = list(arguments)
    for k, argument in enumerate(out):
        if argument in ("--config", "-c") and k + 1 < len(out):
            out[k + 1] = str(config_path(out[k + 1]))
        elif argument.startswith("--config="):
            out[k] = f"--config={config_path(argument.removeprefix('--config='))}"
    if not any(
        a in ("--config", "-c", "--help", "-h") or a.startswith(("--config=", "--model", "--print_config")) for a in out
    ):
        raise InputError("headcam fit was given no config", f"pass --config with one of {', '.join(shipped_configs())}")
    return out


def _default_out(arguments: Sequence[str]) -> str:
    names = [Path(b).stem for a, b in pairwise(arguments) if a in ("--config", "-c")]
    names += [Path(a).stem for a in arguments if a.startswith("--config=")]
    return f"runs/{names[-1] if names else 'run'}"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return out
