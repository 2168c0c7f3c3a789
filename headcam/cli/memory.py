"""`headcam memory {prepare,run,score,page,report}`: what is remembered of pictures that were seen once, or some times.

The words follow one another: stimuli to a manifest, an experiment on it, scores of its table, one report of several
runs; `page` is the same experiment for people.
"""

from collections.abc import Sequence
from pathlib import Path

from headcam.cli.options import add_device_option, config_path, say, verb_parser
from headcam.errors import InputError

_WORDS = {
    "prepare": "make a manifest of a folder of stimuli: pairs, leaks, copies",
    "run": "let a model study and be tested, exposure by exposure; score and report it",
    "score": "score tables of losses, made here or elsewhere, under every rule that they allow",
    "page": "write the same experiment for people, as a page for the browser",
    "report": "one page of several runs, tables and people",
}


def main(arguments: Sequence[str]) -> int:
    word, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    if word in _WORDS:
        return {"prepare": _prepare, "run": _run, "score": _score, "page": _page, "report": _report}[word](rest)
    parser = verb_parser(
        "memory",
        "Recognition memory, beside people: headcam memory WORD --help shows the options of a word.\n\n"
        + "\n".join(f"  {word:<9}{text}" for word, text in _WORDS.items()),
        "headcam memory prepare stimuli --synthetic pairs\n"
        "  headcam memory run configs/memory/micro.yaml --manifest stimuli/manifest.csv --out memory",
    )
    parser.add_argument("word", type=str, help=", ".join(_WORDS))
    parser.parse_args(list(arguments))
    raise InputError(f"{word!r} is no word of headcam memory", f"use one of {', '.join(_WORDS)}")


def _prepare(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "memory prepare",
        f"{_WORDS['prepare'].capitalize()}.\n"
        "A set is a folder with study/ and test/CONDITION_seen, test/CONDITION_unseen; DIR is one, or holds several.",
        "headcam memory prepare brady --out brady.csv",
    )
    parser.add_argument("folder", metavar="DIR", type=str, help="folder of the stimuli")
    parser.add_argument("--out", metavar="FILE.csv", type=str | None, default=None, help="default: DIR/manifest.csv")
    parser.add_argument("--name", type=str | None, default=None, help="of the experiment (default: the folder's)")
    parser.add_argument(
        "--synthetic",
        type=str | None,
        default=None,
        help="make stimuli in DIR first: pairs (novel, exemplar, state, rendered) or noise (random pixels)",
    )
    parser.add_argument("--num_pairs", type=int | None, default=None, help="synthetic: pairs of each condition")
    parser.add_argument("--num_fillers", type=int | None, default=None, help="synthetic: pictures studied, not tested")
    parser.add_argument("--img_size", type=int, default=64, help="synthetic: side in pixels")
    parser.add_argument("--seed", type=int, default=0, help="synthetic: of the world")
    options = parser.parse_args(list(arguments))

    from headcam.recognition_memory.stimuli.generated import generate_stimuli, noise_stimuli
    from headcam.recognition_memory.stimuli.prepare import prepare

    if options.synthetic is not None:
        makers = {"pairs": generate_stimuli, "noise": noise_stimuli}
        if options.synthetic not in makers:
            raise InputError(f"--synthetic {options.synthetic} is unknown", f"use one of {', '.join(makers)}")
        given = {name: getattr(options, name) for name in ("num_pairs", "num_fillers") if getattr(options, name)}
        size = (options.img_size, options.img_size)
        makers[options.synthetic](options.folder, size=size, seed=options.seed, **given, quiet=options.quiet)
    result = prepare(options.folder, options.out, name=options.name, quiet=options.quiet)
    lines = [
        f"{len(result.sets)} study set{'s' if len(result.sets) > 1 else ''} ({', '.join(result.sets)}): "
        f"{result.study} study pictures, {result.pairs} pairs"
    ]
    flagged = ", ".join(f"{flag} {count}" for flag, count in result.flagged.items())
    lines += [f"flagged: {result.flagged_rows} rows ({flagged}); see the column flags"] if result.flagged_rows else []
    lines += [f"skipped: {file}: {reason}" for file, reason in result.skipped]
    say(*lines, *(f"note: {note}" for note in result.notes), f"manifest: {result.manifest}")
    return 1 if result.flagged_rows or result.skipped else 0


def _run(arguments: Sequence[str]) -> int:
    from headcam.recognition_memory.experiment import add_experiment_options, experiment_of

    parser = verb_parser(
        "memory run",
        f"{_WORDS['run'].capitalize()}.\nCONFIG is a YAML file (configs/memory), the same as --config.",
        "headcam memory run configs/memory/micro.yaml --manifest stimuli/manifest.csv --out memory",
    )
    parser.add_argument("--out", metavar="DIR", type=str, default="memory", help="folder of the experiment")
    add_device_option(parser)
    parser.add_argument("--no_frames", "--no-frames", action="store_true", help="no pictures in the report")
    add_experiment_options(parser)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", str(config_path(arguments[0])), *arguments[1:]]
    options = parser.parse_args(list(arguments))

    from headcam.recognition_memory.report import report
    from headcam.recognition_memory.run import run

    result = run(experiment_of(parser, options), options.out, device=options.device, quiet=options.quiet)
    page = report([result.folder], result.folder, frames=not options.no_frames, quiet=options.quiet)
    say(*(f"note: {note}" for note in result.notes), *_headline(page.parent), f"table: {result.table}", f"page: {page}")
    return 1 if result.pairs_left_out else 0


def _score(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "memory score",
        f"{_WORDS['score'].capitalize()}.\n"
        "Columns: model, pretraining, study_set, seed, condition, exposures, pair, loss_seen, loss_unseen.",
        "headcam memory score memory/losses.csv --out scores",
    )
    parser.add_argument("tables", metavar="TABLE", type=str, nargs="+", help="CSV files, or .csv.gz")
    parser.add_argument("--out", metavar="DIR", type=str, required=True, help="folder for accuracy.csv and the others")
    parser.add_argument(
        "--predictions",
        type=int | None,
        default=None,
        help="predictions that a loss is the mean of, in nats (4095 for 64 x 64 pixels): gives bits of a picture",
    )
    parser.add_argument("--n_resamples", type=int, default=9999, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    options = parser.parse_args(list(arguments))

    from headcam.recognition_memory.scoring.scores import score

    result = score(
        options.tables,
        options.out,
        predictions=options.predictions,
        n_resamples=options.n_resamples,
        seed=options.seed,
        quiet=options.quiet,
    )
    say(
        *result.left_out,
        *(f"note: {note}" for note in result.notes),
        *_headline(result.folder),
        f"scores: {result.folder / 'accuracy.csv'}",
    )
    return 0


def _page(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "memory page",
        f"{_WORDS['page'].capitalize()}:\nstudy with repeat detection, then the two-alternative test. It needs no "
        "network; each participant's\ndata are saved as one JSON file, which headcam memory report takes.",
        "headcam memory page stimuli/manifest.csv --out experiment.html --num_pairs 20",
    )
    parser.add_argument("manifest", metavar="MANIFEST", type=str, help="of headcam memory prepare, or its folder")
    parser.add_argument("--out", metavar="FILE.html", type=str, required=True, help="the page")
    parser.add_argument(
        "--study_set", type=str | None, default=None, help="set that all study (default: by participant number)"
    )
    parser.add_argument("--num_pairs", type=int | None, default=None, help="tested pairs of each condition")
    parser.add_argument("--num_fillers", type=int | None, default=None, help="pictures studied, not tested")
    parser.add_argument("--conditions", type=list[str] | None, default=None, help="which to test")
    parser.add_argument("--study_ms", type=int, default=3000, help="how long a picture is shown")
    parser.add_argument("--isi_ms", type=int, default=800, help="the blank after it")
    parser.add_argument("--repeats", type=float, default=0.1, help="share of studied pictures that come again; 0: none")
    parser.add_argument("--no_feedback", action="store_true", help="do not tell whether a press was right")
    parser.add_argument("--break_every", type=int, default=150, help="pictures between two breaks")
    parser.add_argument("--size", type=int, default=256, help="largest side of pictures in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    options = parser.parse_args(list(arguments))

    from headcam.recognition_memory.people.page import write_page

    given = {name: value for name, value in vars(options).items() if name not in ("config", "no_feedback")}
    result = write_page(**given, feedback=not options.no_feedback)
    pairs = ", ".join(f"{count} {condition}" for condition, count in result.pairs.items())
    say(
        f"{result.study} pictures to study, {result.repeats} of them twice; pairs: {pairs}; about {result.minutes:.0f} "
        f"minutes; {result.bytes / 1e6:.1f} MB",
        *(f"left out: {count} pairs, {reason}" for reason, count in result.left_out.items()),
        *(f"note: {note}" for note in result.notes),
        f"page: {result.path}",
    )
    return 0


def _report(arguments: Sequence[str]) -> int:
    parser = verb_parser(
        "memory report",
        f"{_WORDS['report'].capitalize()}, side by side.",
        "headcam memory report memory/none memory/video --out report --people ann.json ben.json",
    )
    parser.add_argument("runs", metavar="RUN", type=str, nargs="+", help="folders of headcam memory run, or tables")
    parser.add_argument("--out", metavar="DIR", type=str, required=True, help="folder for the page and its tables")
    parser.add_argument("--people", metavar="FILE", type=str, nargs="*", default=[], help="data files of memory page")
    parser.add_argument(
        "--human_items",
        metavar="FILE.csv",
        type=str | None,
        default=None,
        help="people's accuracy on single pairs: condition, pair, accuracy, n (and study_set)",
    )
    parser.add_argument("--no_frames", "--no-frames", action="store_true", help="no pictures on the page")
    options = parser.parse_args(list(arguments))

    from headcam.recognition_memory.report import report

    page = report(
        options.runs,
        options.out,
        people=options.people,
        human_items=options.human_items,
        frames=not options.no_frames,
        quiet=options.quiet,
    )
    say(*_headline(page.parent), f"page: {page}")
    return 0


def _headline(folder: Path) -> list[str]:
    """Accuracy of each model over all conditions after the fewest exposures, rule by rule, as scored in `folder`."""
    import pandas as pd

    table = pd.read_csv(folder / "accuracy.csv", keep_default_na=False)
    if "test" in table:
        table = table[table["test"] == ""]
    table = table[(table["condition"] == "pooled") & (table["exposures"] > 0)]
    lines = []
    for (model, pretraining), rows in table.groupby(["model", "pretraining"], sort=False):
        first = rows[rows["exposures"] == rows["exposures"].min()]
        rules = ", ".join(
            f"{row.rule} {100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
            for row in first.itertuples()
        )
        name = f"{model} ({pretraining})" if pretraining else model
        row = first.iloc[0]
        lines.append(
            f"{name}, % right after {row.exposures} exposure{'s' if row.exposures > 1 else ''}: {rules}; "
            f"{row.n_pairs} pairs, {row.n_runs} runs"
        )
    return lines
