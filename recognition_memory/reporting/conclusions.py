"""The part of the memory report that explains: why the rules differ, what study cost, what may be concluded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from headcam.pages import INK, Estimate, Page, chart
from headcam.recognition_memory.human import human_figures
from headcam.recognition_memory.reporting.charts import (
    MODEL_COLOURS,
    MODEL_MARKERS,
    SMALL,
    exposure_axis,
    marked_points,
    percent,
    rule_name,
    words,
)
from headcam.recognition_memory.scoring.table import POOLED

if TYPE_CHECKING:
    from headcam.recognition_memory.report import Findings, Model


def why_rules_differ(page: Page, f: "Findings") -> None:
    """Memory signal against complexity, over exposures and as a table; nothing without role-swapped sets."""
    table = f.scored.memory
    pooled = table[table["condition"] == POOLED]
    # Of a store, whose scores before study are all equal, there may be figures for degraded tests only.
    models = [model for model in f.models if (model.rows(pooled)["exposures"] > 0).any()]
    if not models:
        return
    page.section(
        "Why the rules differ",
        "Each pair was studied both ways round. With D the loss of the foil minus that of the studied picture, the "
        "mean of D over the two sets is what study did (the memory signal m), half their difference is how much "
        "simpler one picture is than the other, whoever studied it (c). The raw rule decides by m + c: while c "
        "spreads far wider than m, it says which picture is simple.",
    )
    with chart(height=3.1 + 0.17 * len(models)) as figure:
        axes = figure.subplots()
        for k, model in enumerate(models):
            of = model.rows(pooled).sort_values("exposures")
            of = of[(of["exposures"] > 0) & (of["sd_c"] > 0)]
            style = {"color": MODEL_COLOURS[k % 6], "marker": MODEL_MARKERS[k % 6], "markersize": 4}
            axes.plot(
                of["exposures"], of["m_over_sd_c"], label=model.label, markevery=marked_points(of["exposures"]), **style
            )
        axes.axhline(1, color=INK, linestyle="--", linewidth=1.2, label="signal as large as the spread of complexity")
        axes.axhline(0, color=INK, linestyle=":", linewidth=1.0)
        axes.set_ylabel("signal / spread of complexity")
        top = max(2.0, min(5.0, pooled["m_over_sd_c"].max()))
        axes.set_ylim(min(-0.1, pooled["m_over_sd_c"].min()), top)
        exposure_axis(axes, sorted(pooled["exposures"].unique()))
        figure.legend(loc="outside lower center", ncols=1 if len(models) < 3 else 2, fontsize=SMALL)
        first = models[0].rows(pooled).query("exposures > 0").sort_values("exposures").iloc[0]
        page.figure(
            figure,
            "Mean of m over the standard deviation of c, over all pairs and seeds. Below the dashed line complexity "
            "rules the raw score; memory may be there long before.",
            alt=f"{models[0].label}: {first['m_over_sd_c']:.3f} at exposure {int(first['exposures'])}",
        )
    rows = []
    for model in models:
        of = model.rows(pooled).query("exposures > 0").sort_values("exposures")
        for _, row in of.iloc[sorted({0, len(of) - 1})].iterrows():
            raw = model.accuracy(f.scored.accuracy, "raw", row["exposures"])
            rows.append(
                [model.label, int(row["exposures"])]
                + [Estimate(row["mean_m"], digits=4), Estimate(row["mean_over_sd_m"], digits=2)]
                + [Estimate(row["sd_c"], digits=3), Estimate(100 * row["predicted_raw"])]
                + ["not measured" if raw is None else percent(raw), Estimate(100 * row["opposite"])]
            )
    page.table(
        ["model", "exposures", "mean m", "mean/SD of m", "SD of c", "raw %, predicted", "raw %, found", "opposite %"],
        rows,
        "m and c in the unit of the loss, not to be compared between tokenizers. Predicted: what two independent "
        "Gaussians with these numbers give. Opposite: pairs for which the raw rule picks the same picture whichever "
        "was studied. With robust spreads and by condition: memory.csv.",
    )


def cost(page: Page, f: "Findings") -> None:
    """What study did to pictures that were not studied."""
    plain = f.losses[f.losses["test"] == ""]
    means = plain.groupby(["model", "pretraining", "exposures"], as_index=False)[["loss_seen", "loss_unseen"]].mean()
    page.section(
        "What it cost",
        "The foils were never studied. A rise of their mean loss is damage: what was learned about the studied "
        "pictures was taken from what the model knew of all others.",
    )
    _foils_chart(page, [(model, model.rows(means).sort_values("exposures")) for model in f.models])
    rows = []
    for model in f.models:
        of = model.rows(means).sort_values("exposures")
        start, best, end = of.iloc[0], of.loc[of["loss_unseen"].idxmin()], of.iloc[-1]
        at_once = of[of["exposures"] == max(1, start["exposures"])].iloc[0]
        rows.append(
            [model.label, int(start["exposures"]), *(Estimate(x["loss_unseen"], digits=3) for x in (start, at_once))]
            + [Estimate(best["loss_unseen"], digits=3), int(best["exposures"])]
            + [Estimate(end["loss_unseen"], digits=3), Estimate(end["loss_seen"], digits=3)]
        )
    page.table(
        ["model", "measured from", "foils, then", "after one", "lowest", "at", "foils, last", "studied, last"],
        rows,
        "Mean losses over all pairs and runs, each in the unit of its own model; exact for these pictures, so without "
        "an interval. Losses of different tokenizers or palettes are in different units.",
    )


def _foils_chart(page: Page, means: Sequence[tuple["Model", pd.DataFrame]]) -> None:
    """Rise of the foils' mean loss; of losses only, as a change in percent of another score means nothing."""
    shown = [(model, of) for model, of in means if of["loss_unseen"].min() > 0 and not model.bound("")]
    if not shown:
        return
    with chart(height=3.0 + 0.17 * len(shown)) as figure:
        axes = figure.subplots()
        for k, (model, of) in enumerate(shown):
            axes.plot(
                of["exposures"],
                100 * (of["loss_unseen"] / of["loss_unseen"].iloc[0] - 1),
                color=MODEL_COLOURS[k % 6],
                marker=MODEL_MARKERS[k % 6],
                markersize=4,
                markevery=marked_points(of["exposures"]),
                label=model.label,
            )
        axes.axhline(0, color=INK, linestyle=":", linewidth=1.0)
        axes.set_ylabel("change of the foils' loss (%)")
        exposure_axis(axes, sorted({exposure for _, of in shown for exposure in of["exposures"]}))
        figure.legend(loc="outside lower center", ncols=1 if len(shown) < 3 else 2, fontsize=SMALL)
        ends = [100 * (of["loss_unseen"].iloc[-1] / of["loss_unseen"].iloc[0] - 1) for _, of in shown]
        page.figure(
            figure,
            "Mean loss of the foils against the first exposure that was measured, all pairs, conditions and runs.",
            alt="; ".join(f"{model.label}: {end:+.1f} % at the end" for (model, _), end in zip(shown, ends)),
        )


def conclusions(page: Page, f: "Findings") -> None:
    """The paragraph and the list that keep a reader from saying too much."""
    model = f.models[0]
    row = model.accuracy(f.scored.accuracy, model.rule, model.first)
    retained = "test" in f.losses and f.losses["test"].str.startswith("after ").any()
    kept = "retention, above, says how fast its trace fades." if retained else "how fast its trace fades was not asked."
    brady = next(figure for figure in human_figures() if figure.condition == "novel" and figure.study == "Brady")
    page.section(
        "What may and may not be concluded",
        f"What may be said: after {model.studied} with this recipe, the trace that a studied picture left in "
        f"{model.label} is detectable with an accuracy of {words(row)} under the {rule_name(model.rule)} rule. What "
        "may not be said is that a model remembers better or worse than people: the two did not do the same thing.",
    )
    page.bullets(
        [
            f"Time and delay: people saw each picture for {brady.exposure_s:g} s over 5.5 hours ({brady.n_items:,} "
            "pictures), and were tested after all of them. A model is tested right after its last update; " + kept,
            "Task: people looked for repeats while they studied, which keeps them attentive. A model does what its "
            "optimizer does.",
            "Judgement: people say which of two pictures they have seen, with one memory and nothing to refer to. "
            "Every rule but the raw one uses a reference that a person does not have: the model before study, or "
            "other runs. The raw rule uses none, but asks a person-like question of a number that mostly says how "
            "simple a picture is.",
            "Reference: role swapped compares two models, of which each studied one of the two pictures: it adds two "
            "traces, and is an upper bound for one memory. Unstudied reference and calibrated measure one.",
            "An exposure is a number of updates, not a look: learning rate, batch and list length decide what it does. "
            "Compare models at equal recipes, and look at the cost to unstudied pictures beside the gain.",
            "Pictures: the human lines are of the photographs and lists of the named studies. Beside other pictures "
            "they are a mark to find one's way by, not a measurement.",
            "Resolution: small pictures have fewer details to be remembered, and to be told apart by.",
            "Conditions: raw accuracies do not say that one condition is remembered better than another. Pairs of "
            "different objects differ most in complexity, so that the raw rule finds hardest what people find easiest.",
            "Losses of different tokenizers, palettes or picture sizes are in different units: compare accuracies, d' "
            "and mean/SD, not losses.",
            "Pretraining: that raw accuracies after one exposure are alike does not show that pretraining does not "
            "help. Only rules without complexity can show that.",
            "Ceiling: near 100 % an accuracy says little. d' (above) and the harder tests say more. With two seeds the "
            "part of the runs in an interval is underestimated; five are better.",
            "Bounds: a store of raw pixels or of embeddings that finds an identical picture again is an upper bound, "
            "not a memory; a random score is the lower one. They are labelled so wherever they stand.",
        ]
    )
