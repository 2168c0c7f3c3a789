"""The main job, end to end, as `headcam demo` does it: render, index, scan, subset, store, fit, probe, memory, report.

    synthetic walks, or --videos ─▶ index ─▶ scan ─▶ subset: train | held out ─▶ store ─▶ fit ─▶ probe ─▶ memory ─▶ page
                                      synthetic close-ups, or --labelled ──────────────────────────┘       │
                                                 synthetic pairs of pictures, studied and tested ──────────┘

Each step is the code of the verb of the same name, and what it leaves in OUT is what that verb would leave. All of
them go on where they were stopped, so the same command again does what is left; a step that is finished is skipped.
The recipe of the training is `configs/demo/mae.yaml`, the test of memory is in `headcam.demo_memory`; the page is made
by `headcam.demo_report` from the files alone.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headcam.cli import fit
from headcam.cli.options import config_path, say
from headcam.demo_memory import CONFIGS as MEMORY_CONFIGS
from headcam.demo_memory import STEPS_PER_MINUTE as MEMORY_STEPS_PER_MINUTE
from headcam.demo_memory import remember
from headcam.demo_report import write_report
from headcam.demo_results import SCAN_REPORT, load_demo
from headcam.errors import InputError
from headcam.evaluation.labelled.sets import labels_of, read_labelled, selection_mask
from headcam.evaluation.probe import probe
from headcam.evaluation.protocols import KNN
from headcam.files import claim, sha256_file
from headcam.progress import Progress
from headcam.randomness import stream
from headcam.runs import MetricsFile
from headcam.video.index import index, media_files
from headcam.video.quarantine import quarantine_of, verified_stretches
from headcam.video.recordings import read_recordings
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.subset import subset
from headcam.video.scanning.scan import scan
from headcam.video.stores.frame_store import store
from headcam.video.stretches import total_s
from headcam.video.synthetic.world import render_labelled, render_walks

VERSION = 3  # of OUT/demo.json
CONFIG = "configs/demo/mae.yaml"
STEPS_PER_MINUTE = 200  # optimizer steps of the recipe that two ordinary cores do in a minute, with some reserve
BATCH_SIZE = 64  # of the recipe
_SHORT_SIDE = 128  # pixels of stored frames: twice the encoder's side, so that crops are seldom enlarged
_RATES = (5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # frames stored for a second of video
_HELD_OUT_SHARE = 0.1  # of recordings
_LARGEST_SHARE = 0.25  # of all verified seconds that held-out recordings may take together


@dataclass(frozen=True)
class World:
    """How much of the synthetic world is rendered: walks to train on, close-ups to probe on, pairs to remember."""

    num_walks: int = 40
    seconds: float = 30.0
    fps: float = 2.0  # the time goes into more rooms rather than into frames that hardly differ
    size: tuple[int, int] = (128, 160)
    num_train: int = 100
    num_val: int = 50
    picture_size: tuple[int, int] = (96, 96)
    num_pairs: int = 20  # of each of three conditions
    num_fillers: int = 140  # studied too, never tested
    pair_size: tuple[int, int] = (64, 64)
    seed: int = 0


@dataclass(frozen=True)
class DemoResult:
    """What a demo ended with: its page, that of its scan, the result in one sentence, what was skipped by kind."""

    report: Path
    scan_report: Path
    headline: str
    skipped: tuple[str, ...]


def demo(
    out: str | os.PathLike,
    *,
    videos: str | os.PathLike | None = None,
    labelled: str | os.PathLike | None = None,
    minutes: float = 4.0,
    processes: int | None = None,
    frames: bool = True,
    quiet: bool = False,
    world: World | None = None,
) -> DemoResult:
    """Run all steps into folder `out` and write `out/report.html`.

    Args:
        out: folder; one that holds an unfinished demo of the same settings is continued.
        videos: folder of recordings (and pictures); None renders synthetic walks.
        labelled: folder of labelled pictures (`headcam.evaluation.labelled.sets`); None renders synthetic close-ups.
        minutes: about how long to train, on two ordinary cores; it fixes the number of steps, whatever they take.
        processes: worker processes that render, index, scan and store; None for one a processor. Changes no result.
        frames: whether the report and the scan's page show pictures.
        quiet: no progress on standard error.
        world: size of the synthetic world.
    Raises:
        InputError: `out` holds something else, a folder without video or without a verified second of it, or labelled
            pictures that no probe can use. All that can be known before the training is checked before it.
        StorageError: `out` cannot be written.
    """
    world = world or World()
    out = Path(out).expanduser().absolute()
    videos, labelled = (Path(p).expanduser().absolute() if p else None for p in (videos, labelled))
    steps = _steps(minutes)
    _check_places(out, videos, labelled)
    if videos:
        media_files(videos)  # a folder without any is refused now, not after the rendering
    _check_labelled(labelled)
    processes = processes or os.cpu_count() or 1
    _claim(
        out,
        {
            "contract": "demo",
            "version": VERSION,
            "videos": str(videos) if videos else None,
            "labelled": str(labelled) if labelled else None,
            "minutes": minutes,
            "world": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(world).items()},
            "config_hash": sha256_file(config_path(CONFIG)),
            "memory_config_hashes": [sha256_file(config_path(name)) for name in MEMORY_CONFIGS],
        },
    )

    rendered = " and ".join(
        ([] if videos else [f"{world.num_walks} synthetic walks of {world.seconds:g} s"])
        + ([] if labelled else [f"{world.num_train + world.num_val} synthetic close-ups of each kind of thing"])
    )
    say(f"1/9 render   {rendered or 'nothing: videos and labelled pictures are given'}")
    _render(out, world, videos is None, labelled is None, processes, quiet)
    videos, labelled = videos or out / "world" / "walks", labelled or out / "world" / "close-ups"

    recordings = out / "recordings.parquet"
    say(f"2/9 index    the recordings of {videos}")
    index(videos, recordings, processes=processes, quiet=quiet)

    say("3/9 scan     every frame, to train on verified seconds only")
    scan(recordings, report=out / SCAN_REPORT, frames=frames, processes=processes, quiet=quiet)

    split = _split(recordings, out / "subsets")
    count = {name: len(manifest.seconds) for name, (_, manifest) in split.items()}
    say(f"4/9 subset   {count['train']} recordings to train on, {count.get('held_out', 0)} held out")

    rate = store_rate(3600 * split["train"][1].hours, steps * BATCH_SIZE)
    say(f"5/9 store    {rate:g} frames a second of their verified seconds")
    for name, (manifest, _) in split.items():
        store(
            recordings,
            out / "frames" / name,
            frames_per_second=rate,
            short_side=_SHORT_SIDE,
            manifest=manifest,
            processes=processes,
            quiet=quiet,
        )

    trained = _is_trained(out / "mae", steps)
    say(f"6/9 fit      {steps} steps of {BATCH_SIZE} images" + (" (finished before)" if trained else ""))
    if not trained:
        _fit(out, steps, quiet)

    probed = _is_probed(out)
    say(f"7/9 probe    the encoder on {labelled}" + (" (finished before)" if probed else ""))
    if not probed:
        probe(out / "mae", labelled, out / "probe", quiet=quiet)

    studied = 3 * world.num_pairs + world.num_fillers
    say(f"8/9 memory   {studied} rendered pictures a set, studied by a GPT on the same frames and by an untrained one")
    remember(
        out,
        steps=max(1, round(minutes * MEMORY_STEPS_PER_MINUTE)),
        num_pairs=world.num_pairs,
        num_fillers=world.num_fillers,
        size=world.pair_size,
        seed=world.seed,
        processes=processes,
        frames=frames,
        quiet=quiet,
    )

    say("9/9 report   one HTML file")
    write_report(out, out / "report.html", frames=frames)
    finished = load_demo(out)
    return DemoResult(out / "report.html", out / SCAN_REPORT, finished.headline, tuple(finished.skipped_kinds))


def recordings_to_hold_out(seconds: Mapping[str, float]) -> list[str]:
    """Which of the recordings (id -> its verified seconds) are held out, in the order of ids.

    A tenth is (at least one recording; none where there is only one). Which ones follows from their ids alone: each id
    has a random key, and those with the smallest keys are taken. A recording that would bring the held-out part above
    a quarter of all seconds is passed over, so that one long recording among short ones is not lost for the training;
    where that leaves none, the shortest is held out. (The draw of `headcam subset --held_out` is fair instead: it may
    take the long one.)
    """
    if len(seconds) < 2:
        return []
    keys = {name: float(stream(0, "held out recordings", int(name, 16)).random()) for name in seconds}
    order = sorted(seconds, key=lambda name: (keys[name], name))
    wanted = max(1, round(_HELD_OUT_SHARE * len(seconds)))
    room = _LARGEST_SHARE * sum(seconds.values())
    chosen: list[str] = []
    for name in order:
        if len(chosen) < wanted and seconds[name] <= room:
            chosen.append(name)
            room -= seconds[name]
    return sorted(chosen) or [min(order, key=seconds.__getitem__)]


def _split(recordings_file: Path, out: Path) -> dict[str, tuple[Path, Manifest]]:
    """Write manifests of all verified seconds to `out`: `train` and, where anything is held out, `held_out`."""
    table = read_recordings(recordings_file)
    verified = verified_stretches(table, quarantine_of(recordings_file, table))
    held_out = recordings_to_hold_out({name: total_s(stretches) for name, stretches in verified.items()})
    found = subset(recordings_file, out, fractions=[1.0], rule="recordings", hold_out=held_out)
    return {
        "held_out" if manifest.rule == "held_out" else "train": (out / file, manifest)
        for file, manifest in found.manifests.items()
    }


def store_rate(seconds: float, samples: int) -> float:
    """Frames to store for each second of video: five, or so few that no more frames are stored than will be drawn."""
    return next((rate for rate in _RATES if rate * seconds <= samples), _RATES[-1])


def _steps(minutes: float) -> int:
    steps = round(minutes * STEPS_PER_MINUTE)
    if not 1 <= steps < 10**9:
        raise InputError(f"minutes is {minutes:g}", "use a number above 0, such as 4")
    return steps


def _check_places(out: Path, videos: Path | None, labelled: Path | None) -> None:
    above = next(p for p in (out, *out.parents) if p.exists())
    if not above.is_dir():
        raise InputError(f"--out {out} is or lies in {above}, which is no folder", "choose another place")
    for option, folder in (("--videos", videos), ("--labelled", labelled)):
        if folder and not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise InputError(f"{option} {folder} {what}", "give the folder that holds your files")
        if folder and out.resolve().is_relative_to(folder.resolve()):
            fix = "choose another --out: what is made there would be read as your own pictures"
            raise InputError(f"--out {out} lies in {option} {folder}", fix)


def _check_labelled(labelled: Path | None) -> None:
    """Refuse now what the probe would refuse after the training."""
    if labelled is None:
        return
    data = read_labelled(labelled)
    selection_mask(labels_of(data.train))
    needed = max(KNN().k)
    if len(data.train) < needed:
        raise InputError(
            f"--labelled {labelled} has {len(data.train)} training pictures, and the kNN vote is of {needed}",
            f"give at least {needed} training pictures",
        )


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Note in OUT what is made there; refuse a folder that holds something else."""
    note = out / "demo.json"
    if not note.exists() and out.is_dir() and any(p for p in out.iterdir() if not p.name.startswith(".")):
        raise InputError(f"--out {out} is there and holds no demo", "choose another folder")
    claim(note, settings, "a demo")


def _render(out: Path, world: World, walks: bool, close_ups: bool, processes: int, quiet: bool) -> None:
    if walks:
        with Progress("rendering walks", world.num_walks, "walks", quiet) as progress:
            render_walks(
                out / "world" / "walks",
                num_walks=world.num_walks,
                seconds=world.seconds,
                fps=world.fps,
                size=world.size,
                seed=world.seed,
                processes=processes,
                progress=progress,
            )
    if close_ups:
        with Progress("rendering close-ups", None, "pictures", quiet) as progress:
            render_labelled(
                out / "world" / "close-ups",
                num_train=world.num_train,
                num_val=world.num_val,
                size=world.picture_size,
                seed=world.seed,
                processes=processes,
                progress=progress,
            )


def _fit(out: Path, steps: int, quiet: bool) -> None:
    held_out = out / "frames" / "held_out"
    arguments: Sequence[str] = [
        f"--config={CONFIG}",
        f"--out={out / 'mae'}",
        f"--data.train={json.dumps([str(out / 'frames' / 'train')])}",
        f"--data.val={json.dumps([str(held_out)]) if held_out.exists() else 'null'}",
        f"--trainer.max_steps={steps}",
        f"--model.optimizer.warmup_steps={steps // 10}",
        f"--trainer.val_check_interval={max(1, steps // 8)}",
        f"--trainer.log_every_n_steps={max(1, steps // 40)}",
        f"--checkpoint_every={max(1, steps // 8)}",
        f"--trainer.enable_progress_bar={'false' if quiet else 'true'}",
    ]
    with redirect_stdout(io.StringIO()):  # the run folder that it names is not what the user is to open
        fit.main(arguments)


def _is_trained(run: Path, steps: int) -> bool:
    """Whether the run has all its steps and, where recordings are held out, its last validation."""
    if not (run / "card.json").exists():
        return False
    rows = MetricsFile(run / "metrics.csv").rows()
    validated = not (run.parent / "frames" / "held_out").exists() or (bool(rows) and "val/loss" in rows[-1])
    return validated and json.loads((run / "card.json").read_text("utf-8"))["step"] == steps


def _is_probed(out: Path) -> bool:
    """Whether the probe of these very weights is complete (its scores are written last)."""
    report = out / "probe" / "probe.json"
    if not (report.exists() and (out / "probe" / "scores.csv").exists()):
        return False
    card = json.loads((out / "mae" / "card.json").read_text("utf-8"))
    # `probe` writes hash and scores together; other weights under the same folder are refused by it, by name.
    return json.loads(report.read_text("utf-8"))["model"]["weights_hash"] == card["weights_hash"]
