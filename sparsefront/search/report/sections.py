"""The sections of the report, in the order in which they are read.

Each takes the numbers of the study and gives HTML; a section whose numbers are missing says so and why.
Not here: the numbers themselves (``numbers``), and the charts, which ``page.js`` draws.
"""

from __future__ import annotations

import functools
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

from sparsefront.search.methods.controls import control_name
from sparsefront.search.metrics import METRICS, Metric
from sparsefront.search.objective import OBJECTIVES, objectives_named
from sparsefront.search.report.markup import (
    UNKNOWN,
    Markup,
    bullets,
    chart,
    details,
    duration,
    engineering,
    interval_graphic,
    p_value,
    paragraph,
    percent,
    section,
    signed,
    signed_interval,
    table,
    text,
    whole,
)
from sparsefront.search.report.numbers import Record, level_text, range_text
from sparsefront.search.wording import NOT_JUDGED, ONE_PAIR, has_difference, shown_label, shown_needed

_LABEL_SYMBOLS = {"better": "▲", "worse": "▼", "equivalent": "≈", "undecided": "?", NOT_JUDGED: "○"}
_PREDICTORS = {
    "initial_loss": "initial loss",
    "scalefree_loss": "scale-free loss",
    "logit_std": "spread of the logits",
}
#: A table's columns: what to show of a row, by header.
Columns = Mapping[str, Callable[[Record], str]]
#: Rows of a folded table; the front itself is complete in the ledger and in ``sparsefront front``.
_N_FRONT_LISTED = 200
#: Columns that the charts of the front show.
_DRAWN = {"val_error", "n_params", "macs"}
#: Contenders less likely than this to be on the front over means are left out of its table.
_LEAST_PROBABILITY = 0.05


def run_section(numbers: Record, provenance: Mapping[str, str]) -> Markup:
    """Say what was run, and where."""
    study = numbers["study"]
    facts = {
        "Data set": study["dataset"],
        "Parent network": study["model"],
        "Masks": f"{study['mask_kind']} masks, allocation {study['allocation']}",
        "Sparsity levels": ", ".join(f"{100 * level:.4g}%" for level in study["sparsities"]) or "none",
        "Arms": ", ".join(study["arms"]) or "none",
        "Replicates": f"{study['replicates']:,}, each shared by all arms",
        "Random masks for each replicate and level": (
            (f"{study['draws']:,} drawn and scored, " if study["scores_masks"] else "")
            + ", ".join(f"{n:,}" for n in study["random_draws_by_level"] or [study["random_draws"]])
            + " trained"
        ),
        "Examples that masks are scored on": f"{study['probe_size']:,}",
        "Training of one network": f"{study['steps']:,} optimiser steps",
        "Seed": str(study["seed"]),
        "Networks trained to the end": f"{numbers['points']['n_completed']:,}",
    }
    return section("run", "What was run", fact_list(facts), provenance_details(provenance))


def fact_list(facts: Mapping[str, str]) -> Markup:
    """List facts by name."""
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())
    return Markup(f'<dl class="facts">{items}</dl>')


def provenance_details(provenance: Mapping[str, str]) -> Markup:
    """List on what it ran, for whoever asks; nothing where nothing is known of it."""
    return details("Devices, versions and digests", fact_list(provenance)) if provenance else Markup("")


def accuracy_section(numbers: Record) -> Markup:
    """Show test accuracy against sparsity."""
    metric = METRICS[numbers["metric"]]
    title = f"1. {metric.title} against sparsity"
    rows = numbers["accuracy"]
    if not rows:
        return section("accuracy", title, note_of(f"No network has a {metric.noun} yet."))
    parent = (
        "The dashed line with its band is the unpruned parent."
        if any(row["sparsity"] == 0 for row in rows)
        else "This study has no unpruned parent (arm <code>dense</code>) to compare with."
    )
    words = (
        "<p>Each marker is an arm's mean over replicates, with Student's 95% interval over replicates; the markers of "
        f"one level stand side by side to be told apart. {parent} Arms share their replicates, so intervals that "
        'overlap do not make arms equal: the paired comparison is in <a href="#verdict">section 2</a>.</p>'
    )
    listed = table(
        f"{metric.title}: mean over replicates and its 95% interval",
        [
            "arm",
            "level",
            "realised sparsity",
            "#accuracy" if numbers["metric"] == "accuracy" else "#PSNR",
            "interval",
            "#replicates",
            "#networks",
            "#parameters",
            "#MACs",
        ],
        [
            [
                arm_name(numbers, row["arm"]),
                level_name(numbers, row["sparsity"]),
                _both_sparsities(row),
                _result(numbers, row["mean"]),
                "one replicate"
                if row["low"] is None
                else f"{_result(numbers, row['low'])} to {_result(numbers, row['high'])}",
                whole(row["n_replicates"]),
                whole(row["n_candidates"]),
                whole(row["n_params"]),
                whole(row["macs"]),
            ]
            for row in rows
        ],
        grouped=True,
    )
    described = f"{metric.title} of each arm against sparsity; the table below has the same numbers."
    folded = details("The same as a table", listed)
    return section("accuracy", title, words, chart("accuracy", described), folded, _controls(numbers))


def _controls(numbers: Record) -> str:
    """Show what each arm came to against its controls; nothing if there are none."""
    words = (
        "A control changes one thing about an arm: a difference to it says that this thing matters. One network is "
        "compared with one network, whatever they cost, paired over replicates. The p-values are corrected for all "
        "rows of this table (Holm) and for no others."
    )
    return controls_part(
        numbers,
        words,
        before={
            "arm": lambda row: arm_name(numbers, row["arm"]),
            "control": lambda row: arm_name(numbers, control_name(row["arm"], row["control"])),
            "level": lambda row: level_name(numbers, row["sparsity"]),
        },
    )


def controls_part(numbers: Record, words: str, *, before: Columns) -> str:
    """Tabulate arms against their controls, with what matters in sentences; nothing if there are none.

    Args:
        numbers: of the page.
        words: what is compared.
        before: columns that say who is, as of `judged_table`.
    """
    rows = numbers["verdict"]["controls"]
    if not any(row["n"] for row in rows):
        return ""
    metric = METRICS[rows[0]["metric"]]
    caption = (
        f"Difference of the arm to its control in {metric.unit} (positive = arm better) with its "
        f"{100 * (1 - numbers['study']['alpha']):.4g}% interval; shaded: the margin of equivalence, "
        f"±{metric.scale * rows[0]['margin']:.3g}; a triangle points to what lies beyond the scale."
    )
    judged = judged_table(
        caption,
        rows,
        before=before,
        difference=lambda row: shown_difference(row, scale=metric.scale, digits=metric.digits),
        reach=_reach(rows),
        after={},
    )
    remarks = _remarks([{**row, "arm": control_name(row["arm"], row["control"])} for row in rows])
    said = bullets(numbers["verdict"]["matters"], css="sentences")
    return f"<h3>Arms against their controls</h3>\n{paragraph(words)}{said}{judged}{remarks}"


def answer(numbers: Record) -> str:
    """Give the verdicts on test results at a glance, and all findings in sentences to unfold."""
    metric = METRICS[numbers["metric"]]
    rows = [row for row in numbers["verdict"]["comparisons"] if row["metric"] == numbers["metric"]]
    levels = sorted({row["sparsity"] for row in rows})
    cells = {(row["arm"], row["sparsity"]): row for row in rows}
    glance = ""
    if any(row["n"] for row in rows):
        glance = table(
            f"{metric.title} against random search with the same budget: verdict, and difference in {_unit(numbers)}",
            ["arm", *(level_text(level, numbers["study"]["mask_kind"]) for level in levels)],
            [
                [arm_name(numbers, arm), *(_glance(cells.get((arm, level)), metric) for level in levels)]
                for arm in dict.fromkeys(row["arm"] for row in rows)
            ],
        )
    return glance + finding_details(numbers)


def finding_details(numbers: Record) -> str:
    """All findings in sentences, to unfold; nothing if there are none."""
    sentences = bullets(numbers["verdict"]["sentences"], css="sentences")
    return details("All findings in sentences", sentences) if sentences else ""


def _unit(numbers: Record) -> str:
    """The unit of differences between test results."""
    return "accuracy points" if numbers["metric"] == "accuracy" else METRICS[numbers["metric"]].unit


def _result(numbers: Record, value: float) -> str:
    """Write a test result with its unit."""
    if numbers["metric"] == "accuracy":
        return percent(value, digits=2)
    metric = METRICS[numbers["metric"]]
    return f"{metric.shown(value)} {metric.unit}"


def _error(numbers: Record, value: float | None) -> str:
    """Write a validation or test error: a fraction in percent, a mean squared error as it is."""
    if value is None or numbers["metric"] == "accuracy":
        return percent(value, digits=2)
    return f"{value:.4g}"


def _glance(row: Record | None, metric: Metric) -> Markup:
    if row is None:
        return Markup(UNKNOWN)
    difference = as_judged(row)["difference"]
    known = "" if difference is None else f" {signed(metric.scale * difference, digits=2)}"
    return Markup(f"{label_badge(as_judged(row)['label'])}{known}")


def as_judged(row: Record) -> Record:
    """A comparison as it is shown: what was not tested is not judged, and has a note that says why."""
    numbers = {} if has_difference(row["n"], row["p_value"]) else dict.fromkeys(("difference", "low", "high"))
    note = row["note"] or (ONE_PAIR if row["n"] == 1 else "")
    return {**row, **numbers, "label": shown_label(row["label"], row["p_value"]), "note": note}


def verdict_section(numbers: Record) -> Markup:
    """Show what each arm came to against random search."""
    title = "2. Verdict: each arm against random search"
    comparisons = numbers["verdict"]["comparisons"]
    if not any(row["n"] for row in comparisons):
        why = "Nothing to compare yet: it takes the random arm and another one in the same replicate at the same level."
        return section("verdict", title, note_of(why))
    words = (
        "Differences are paired over replicates, against random search with the same budget. The p-values of a table "
        "are corrected for all of its rows (Holm)."
    )
    parts: list[str] = [paragraph(words)]
    result = numbers["metric"]
    for metric, heading in ((result, METRICS[result].title), ("convergence", "Speed of convergence")):
        rows = [row for row in comparisons if row["metric"] == metric]
        parts.append(f"<h3>{heading}</h3>")
        if rows:
            parts.append(_verdict_table(numbers, metric, rows))
        else:
            why = " It is measured against the unpruned parent (arm dense)." if metric == "convergence" else ""
            parts.append(note_of(f"Not judged.{why}"))
    return section("verdict", title, *parts)


def _verdict_table(numbers: Record, metric: str, rows: Sequence[Record]) -> Markup:
    study = numbers["study"]
    what = "optimiser steps" if metric == "convergence" else _unit(numbers)
    scale, digits = METRICS[metric].scale, METRICS[metric].digits
    margin = UNKNOWN if rows[0]["margin"] is None else f"{scale * rows[0]['margin']:.3g}"
    caption = (
        f"Difference to random search in {what} (positive = arm better) with its {100 * (1 - study['alpha']):.4g}% "
        f"interval; shaded: the margin of equivalence, ±{margin}; a triangle points to what lies beyond the scale. "
        "Passes are those of one network of the arm, and those that random search was granted for it: so many draws, "
        "of which it keeps the best."
    )
    judged = judged_table(
        caption,
        rows,
        before={
            "arm": lambda row: arm_name(numbers, row["arm"]),
            "level": lambda row: level_name(numbers, row["sparsity"]),
        },
        difference=lambda row: shown_difference(row, scale=scale, digits=digits),
        reach=_reach(rows),
        after={
            "#passes: arm / random": lambda row: (
                f"{engineering(row['arm_passes'])} / {engineering(row['random_passes'])}"
            ),
            "#random draws": lambda row: (
                UNKNOWN if row["random_draws_at_equal_budget"] is None else f"{row['random_draws_at_equal_budget']:.2f}"
            ),
        },
    )
    return Markup(judged + _remarks(rows))


def judged_table(
    caption: str,
    rows: Sequence[Record],
    *,
    before: Columns,
    difference: Callable[[Record], str],
    reach: float,
    after: Columns,
) -> Markup:
    """Tabulate paired comparisons: who is compared, what the tests came to, and what further columns say.

    The numbers of pairs stand in the caption where they are all the same.

    Args:
        caption: of the table.
        rows: comparisons, at least one; neighbours whose first columns are equal form a group.
        before: columns in front of the verdict.
        difference: writes a row's difference.
        reach: where the scale of the interval graphics ends on either side, in the unit of the differences.
        after: columns behind the replicates needed.
    """
    rows = [as_judged(row) for row in rows]
    same_pairs = len({row["n"] for row in rows}) == 1
    pairs: Columns = {} if same_pairs else {"#pairs": lambda row: whole(row["n"])}
    columns: Columns = {
        **before,
        "verdict": lambda row: label_badge(row["label"]),
        "#difference": difference,
        "": lambda row: interval_graphic(row["difference"], row["low"], row["high"], margin=row["margin"], reach=reach),
        "#p, different": lambda row: p_value(row["p_adjusted"]),
        "#p, equivalent": lambda row: p_value(row["p_equivalence_adjusted"]),
        **pairs,
        "#replicates needed": lambda row: _needed(row) if row["label"] == "undecided" else "",
        **after,
    }
    return table(
        caption + (f" Pairs in every row: {rows[0]['n']:,}." if same_pairs else ""),
        list(columns),
        [[cell(row) for cell in columns.values()] for row in rows],
        grouped=True,
    )


def _needed(row: Record) -> str:
    return shown_needed(row["replicates_needed_low"], row["replicates_needed_high"]) or UNKNOWN


def _reach(rows: Sequence[Record]) -> float:
    """Choose the scale of the interval graphics: all of them, but never so wide that the margin can't be seen."""
    ends = [abs(row[name]) for row in rows for name in ("low", "high", "difference", "margin") if row[name] is not None]
    margin = rows[0]["margin"] or 0.0
    widest = max(ends, default=0.0)
    return 1.08 * (min(widest, 5 * margin) if margin else widest)


def shown_difference(row: Record, *, scale: float, digits: int) -> str:
    """A difference with its sign and interval."""
    if row["difference"] is None:
        return UNKNOWN
    low, high = (None if row[end] is None else scale * row[end] for end in ("low", "high"))
    return f"{signed(scale * row['difference'], digits=digits)} {signed_interval(low, high, digits=digits)}".rstrip()


def _remarks(rows: Sequence[Record]) -> str:
    """List what must be known about some comparisons, each remark once."""
    concerned: dict[str, dict[str, list[str]]] = {}
    for row in map(as_judged, rows):
        if row["note"]:
            levels = concerned.setdefault(row["note"], {}).setdefault(row["arm"], [])
            levels += [] if row["sparsity"] is None else [f"{100 * row['sparsity']:.4g}%"]
    said = {
        remark: "; ".join(f"{arm} at {', '.join(levels)}" if levels else arm for arm, levels in arms.items())
        for remark, arms in concerned.items()
    }
    return bullets((f"{whom}: {remark}" for remark, whom in said.items()), css="note")


def front_section(numbers: Record) -> Markup:
    """Show the front over error and size."""
    title = "3. The front, as validation error against parameters and MACs"
    points, members = numbers["points"], numbers["front"]
    if not points["n_completed"]:
        return section("front", title, note_of("No network was trained to the end yet."))
    objectives = ", ".join(f"<code>{text(name)}</code>" for name in numbers["study"]["objectives"])
    words = (
        f"<p>Large outlined markers are the front: no other network beats them in {objectives} together. The others "
        "are faint, and stand a little aside by arm because networks of one level have one size. The line is the "
        "front's best error up to each size. Hover over a marker for its network's id; click an arm in the legend to "
        "hide it. These are single networks, so part of any front is luck: compare arms in section 2.</p>"
    )
    if {o.column for o in objectives_named(numbers["study"]["objectives"])} != _DRAWN:
        words += (
            "<p>The charts show validation error, parameters and MACs, and this study's objectives are others: a "
            "network that looks beaten here can be on the front, and one that looks unbeaten can be missing from it. "
            "The table has the objectives.</p>"
        )
    if on_test := [name for name in numbers["study"]["objectives"] if OBJECTIVES[name].on_test]:
        words += f"<p>Measured on test examples, by which nothing may be chosen: {text(', '.join(on_test))}.</p>"
    sampled = sample_note(points, charts="3 and 4", what="networks")
    columns: dict[str, Callable[[Record], str]] = {
        "network": lambda row: Markup(f"<code>{text(row['candidate'])}</code>"),
        "arm": lambda row: arm_name(numbers, row["arm"]),
        "#replicate": lambda row: whole(row["replicate"]),
        "level": lambda row: level_name(numbers, row["sparsity"]),
        "realised sparsity": _both_sparsities,
        "#parameters": lambda row: whole(row["n_params"]),
        "#MACs": lambda row: whole(row["macs"]),
        "#val. error": lambda row: _error(numbers, row["val_error"]),
        "#test error": lambda row: _error(numbers, row["test_error"]),
    }
    shown = ("val_error", "n_params", "macs", "node_sparsity", "weight_sparsity")
    for o in objectives_named(numbers["study"]["objectives"]):
        if o.column not in shown:
            columns[f"#{o.label}"] = functools.partial(_objective_of, numbers, o.column)
    described = "Validation error against remaining parameters and against MACs; the table below lists the front."
    folded = front_details("The networks of the front", members, columns)
    return section("front", title, words, sampled, chart("front", described), folded, _mean_front(numbers))


def sample_note(points: Record, *, charts: str, what: str) -> str:
    """Say that charts show a sample; nothing if they show everything."""
    if points["n_shown"] >= points["n_completed"]:
        return ""
    return note_of(
        f"Charts {charts} show {points['n_shown']:,} of {points['n_completed']:,} {what}: the whole front, and a "
        "random sample of the others."
    )


def front_details(caption: str, members: Sequence[Record], columns: Columns) -> Markup:
    """The front's members as a table to unfold; only the first of very many."""
    cut = f" (the first {_N_FRONT_LISTED:,} of {len(members):,})" if len(members) > _N_FRONT_LISTED else ""
    body = [[cell(row) for cell in columns.values()] for row in members[:_N_FRONT_LISTED]]
    return details(f"The front as a table ({len(members):,})", table(caption + cut, list(columns), body))


def _mean_front(numbers: Record) -> str:
    """Show the front over means of replicates, and what else might have been on it."""
    names = numbers["study"]["objectives"]
    rows = [
        row
        for row in numbers["mean_front"]
        if row["on_front"] or (row["front_probability"] or 0.0) >= _LEAST_PROBABILITY
    ]
    if not any(row["n_replicates"] > 1 for row in rows):
        return ""
    caption = (
        "Which arm at which level is on the front over means of replicates, and the probability of a place there when "
        f"replicates are resampled; rows below {100 * _LEAST_PROBABILITY:.0f}% are left out"
    )
    body = [
        [
            arm_name(numbers, row["arm"]),
            level_name(numbers, row["target_sparsity"]),
            *(_objective(numbers, name, row[name]) for name in names),
            "yes" if row["on_front"] else "no",
            percent(row["front_probability"], digits=0),
            whole(row["n_replicates"]),
        ]
        for row in rows
    ]
    headers = ["arm", "level", *(f"#{name}" for name in names), "on the front", "#probability", "#replicates"]
    return "<h3>The front over means of replicates</h3>\n" + table(caption, headers, body)


def _objective_of(numbers: Record, name: str, row: Record) -> str:
    return _objective(numbers, name, row[name])


def _objective(numbers: Record, name: str, value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if name.endswith("_error"):
        return _error(numbers, value)
    if name.endswith(("_accuracy", "_sparsity", "_fraction")):
        return percent(value, digits=2)
    return whole(value) if name in ("n_params", "macs") else f"{value:.4g}"


def loss_section(numbers: Record) -> Markup:
    """Show whether the loss before training ranks networks as the loss after it does."""
    title = "4. Does the loss before training foretell the loss after it?"
    points = numbers["points"]
    usable = zip(points["drawn"], points["initial_loss"], points["val_loss"], strict=True)
    if not any(drawn and None not in (before, after) for drawn, before, after in usable):
        return section("losses", title, note_of("No network with a drawn mask has a loss before and after training."))
    words = (
        "<p>Each marker is one trained network whose mask was drawn at random; ranks are compared within replicates. "
        "A search that picks masks by their loss before training can only help where that loss ranks networks as the "
        "final one does (ρ near +1). The initial loss depends on the scale of the logits, which training soon erases; "
        "the scale-free loss is taken after the best temperature.</p>"
    )
    toggle = (
        '<div class="controls"><fieldset><legend hidden>Loss before training</legend>'
        '<label><input type="radio" name="loss" value="initial_loss" checked> initial loss</label>'
        '<label><input type="radio" name="loss" value="scalefree_loss"> scale-free loss</label></fieldset></div>'
    )
    described = "Loss before training against final validation loss, one panel for each level of sparsity."
    rows = numbers["verdict"]["correlations"]
    listed = table(
        "Spearman's rank correlation with the final validation loss, and its interval",
        ["score before training", "level", "#ρ", "interval", "#p (Holm)", "#networks", "#replicates"],
        [
            [
                _PREDICTORS.get(row["predictor"], row["predictor"]),
                level_name(numbers, row["sparsity"]),
                UNKNOWN if row["spearman"] is None else signed(row["spearman"], digits=2),
                signed_interval(row["low"], row["high"], digits=2) or UNKNOWN,
                p_value(row["p_adjusted"]),
                whole(row["n"]),
                whole(row["n_replicates"]),
            ]
            for row in sorted(rows, key=lambda row: list(_PREDICTORS).index(row["predictor"]))
        ],
        grouped=True,
    )
    folded = details("Rank correlations as a table", listed) if rows else ""
    return section("losses", title, words, toggle, chart("losses", described), folded)


def curve_section(numbers: Record) -> Markup:
    """Show learning curves, one level at a time."""
    title = "5. Learning curves"
    if not numbers["curves"]:
        return section("curves", title, note_of("No learning curve was recorded."))
    words = (
        "Validation error while training: completed networks, averaged within each replicate and then over replicates; "
        "bands are Student's 95% intervals over replicates."
    )
    options = "".join(f"<option>{text(level['text'])}</option>" for level in numbers["levels"])
    control = f'<div class="controls"><label>Level: <select id="curve-level">{options}</select></label></div>'
    described = "Validation error of each arm against optimiser steps, at the chosen level."
    return section("curves", title, paragraph(words), control if options else "", chart("curves", described))


def spent_section(numbers: Record) -> Markup:
    """Show what each arm spent, and what became of its candidates."""
    title = "6. What each arm spent"
    spent = numbers["verdict"]["spent"]
    if not spent:
        return section("spent", title, note_of("Nothing was spent yet."))
    words = (
        "A pass is one example taken forward and backward; a forward pass alone counts a third. Scoring of masks, "
        "pretraining, and stopped, failed or repeated work are included. A network that several arms share is paid for "
        "by the first of them. Time is the wall time of a batched training, divided over its networks."
    )
    total: Record = {
        name: sum(row[name] or 0 for row in spent) for name in ("n_candidates", "passes", "flops", "seconds")
    }
    total["outcomes"] = sum((Counter(row["outcomes"]) for row in spent), Counter())
    named = [*((arm_name(numbers, row["arm"]), row) for row in spent), (Markup("<strong>all</strong>"), total)]
    costs = cost_table(named, counted="candidates")
    return section("spent", title, paragraph(words), costs, failures_details(numbers))


def cost_table(named: Sequence[tuple[Markup, Record]], *, counted: str) -> Markup:
    """Tabulate what was spent, and what became of what was counted, by name."""
    outcomes = sorted(
        {outcome for _, row in named for outcome in row["outcomes"]}, key=lambda name: (name != "completed", name)
    )
    return table(
        f"Cost by arm, and what became of its {counted}",
        ["arm", f"#{counted}", "#passes", "#operations", "#time", *(f"#{name.replace('_', ' ')}" for name in outcomes)],
        [
            [
                name,
                whole(row["n_candidates"]),
                engineering(row["passes"]),
                engineering(row["flops"], unit="FLOP"),
                duration(row["seconds"]),
                *(whole(row["outcomes"].get(outcome, 0)) for outcome in outcomes),
            ]
            for name, row in named
        ],
    )


def failures_details(numbers: Record) -> str:
    """What failed, and why; nothing if nothing did."""
    failures = numbers["failures"]
    if not failures["n"]:
        return note_of("No candidate failed.")
    listed = table(
        "What failed, by outcome, arm and message",
        ["outcome", "arm", "stage", "#candidates", "~message", "one of them"],
        [
            [
                row["outcome"].replace("_", " "),
                arm_name(numbers, row["arm"]),
                row["stage"],
                whole(row["n"]),
                row["error"],
                Markup(f"<code>{text(row['candidate'] or UNKNOWN)}</code>"),
            ]
            for row in failures["listed"]
        ],
    )
    rest = ""
    if failures["n_unlisted"]:
        rest = note_of(f"{failures['n_unlisted']:,} further failures with other messages are not listed.")
    return f"<h3>Failures ({failures['n']:,})</h3>\n{listed}{rest}"


def words_section(numbers: Record) -> Markup:
    """Define what the report's words mean."""
    study = numbers["study"]
    words = resources.files(__package__).joinpath("words.html").read_text(encoding="utf-8")
    filled = string.Template(words).substitute(
        alpha=f"{study['alpha']:g}",
        margin_points=f"{METRICS[numbers['metric']].scale * study['equivalence_margin']:.3g} {_unit(numbers)}",
        margin_steps=f"{study['convergence_margin_fraction'] * study['steps']:.4g}",
        target_percent=f"{100 * study['convergence_target_fraction']:.4g}",
        result=METRICS[numbers["metric"]].title,
        result_in_text="accuracy" if numbers["metric"] == "accuracy" else "PSNR",
        guessing="the accuracy of guessing"
        if numbers["metric"] == "accuracy"
        else "the PSNR of the images as they were degraded",
    )
    return section("words", "8. How to read this", filled)


def note_of(words: str) -> Markup:
    """A remark in small print."""
    return paragraph(words, css="note")


def arm_name(numbers: Record, name: str) -> Markup:
    """Name an arm beside the colour that it has in all charts."""
    colour = next((arm["colour"] for arm in numbers["arms"] if arm["name"] == name), None)
    swatch = f'<span class="swatch" style="background:{text(colour)}"></span>' if colour else ""
    return Markup(f"{swatch}{text('pool (scoring)' if name == 'pool' else name)}")


def level_name(numbers: Record, sparsity: float) -> Markup:
    """Name a level by what was asked for, and by what this removed of the other kind."""
    if sparsity == 0:
        return Markup("unpruned")
    kind = numbers["study"]["mask_kind"]
    other = "weight" if kind == "node" else "node"
    realised = next((level[f"{other}_sparsity"] for level in numbers["levels"] if level["sparsity"] == sparsity), None)
    low, high = realised or (None, None)
    also = "" if low is None else f" <small>{other}s {text(range_text(low, high))}</small>"
    return Markup(f"{text(kind)}s {100 * sparsity:.4g}%{also}")


def label_badge(label: str) -> Markup:
    """A label of the verdict with its symbol and colour."""
    css = text(label.replace(" ", "-"))
    return Markup(f'<span class="label {css}">{_LABEL_SYMBOLS.get(label, "")} {text(label)}</span>')


def _both_sparsities(row: Record) -> str:
    return f"nodes {percent(row['node_sparsity'], digits=1)}, weights {percent(row['weight_sparsity'], digits=1)}"
