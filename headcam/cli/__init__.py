"""The `headcam` command: a table of verbs, each in a thin file that parses, calls and says where the result is.

A verb's file is imported only when that verb is called, so that `headcam --help` needs no torch. Exit status: 0 done;
1 done, but something was skipped or an alarm was raised (said in one line); 2 bad input; 130 interrupted.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from headcam import __version__
from headcam.errors import HeadcamError

# verb -> (module with `main(arguments) -> int`, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "doctor": ("headcam.cli.doctor", "say what this machine can do, and what is missing"),
    "demo": ("headcam.cli.demo", "the main job, end to end, on a synthetic world or on your own videos"),
    "index": ("headcam.cli.index", "list the recordings of a folder: size, rate, duration, key frames, faults"),
    "scan": ("headcam.cli.scan", "verify an index by decoding it: damaged, black, frozen, doubled seconds; a page"),
    "subset": ("headcam.cli.subset", "draw nested subsets by hours, as manifests that a run can be restricted to"),
    "store": ("headcam.cli.store", "decode recordings once into shards of small JPEG frames, or of short clips"),
    "fit": ("headcam.cli.fit", "train a model (the Lightning command line: --config, --trainer.max_steps, ...)"),
    "plan": ("headcam.cli.plan", "say before a run what it takes: batch, learning rate, steps, time, memory by part"),
    "probe": ("headcam.cli.probe", "score an encoder by named protocols (kNN, linear, few-shot ...), beside baselines"),
    "compare": ("headcam.cli.compare", "several probed checkpoints side by side: one page, one table"),
    "tokenize": ("headcam.cli.tokenize", "palettes, stores of tokens, and tokenizers compared on a page"),
    "sample": ("headcam.cli.sample", "draw from a GPT: pictures, completions, continued clips, maps of surprise"),
    "show": ("headcam.cli.show", "pictures of what a model completes and of what it attends to"),
    "export": ("headcam.cli.export", "embeddings of pictures or headcam frames, as Parquet or npz"),
    "memory": ("headcam.cli.memory", "recognition memory beside people: stimuli, runs, scores, a page for people"),
    "zoo": ("headcam.cli.zoo", "published models: list them, and convert them exactly to this layout"),
}


def usage() -> str:
    """What `headcam --help` prints: the question, the verbs, how to go on."""
    rows = "\n".join(f"  {verb:<10}{text}" for verb, (_, text) in VERBS.items())
    return (
        f"headcam {__version__}: how much first-person video does a learner need "
        "before it sees as well as a person?\n\n"
        f"usage: headcam VERB [options]\n\n{rows}\n\n"
        "headcam VERB --help     options of a verb, with an example that works as written\n"
        "headcam --version       the version\n"
        "--traceback             after any verb: show where in the code an error arose"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `headcam` with `arguments` (default: those of the process) and return the exit status."""
    # Threads that spin while they wait make torch many times slower as soon as another process wants one of the cores
    # (measured on two: 11 images/s instead of 153); asleep they cost an idle machine some percent. Before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in arguments
    arguments = [a for a in arguments if a != "--traceback"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        return _fail(f"{verb!r} is not a verb of headcam. Fix: use one of {', '.join(VERBS)}")
    try:
        return importlib.import_module(VERBS[verb][0]).main(rest)
    except HeadcamError as error:
        if show_traceback:
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        if show_traceback:
            raise
        print("headcam: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    print(f"headcam: {message}", file=sys.stderr)
    return 2
