"""The sections of the report of a search study, in the order in which they are read.

Not here: the numbers themselves (``search_numbers``), and the charts, which ``search_page.js`` draws.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from sparsefront.search.comparison import is_share, unit_of
from sparsefront.search.report.markup import (
    UNKNOWN,
    Markup,
    bullets,
    chart,
    details,
    duration,
    engineering,
    paragraph,
    percent,
    section,
    signed,
    table,
    text,
    whole,
)
from sparsefront.search.report.numbers import Record
from sparsefront.search.report.sections import (
    Columns,
    arm_name,
    as_judged,
    controls_part,
    cost_table,
    fact_list,
    failures_details,
    finding_details,
    front_details,
    judged_table,
    label_badge,
    note_of,
    provenance_details,
    sample_note,
    shown_difference,
)


def search_run_section(numbers: Record, provenance: Mapping[str, str]) -> Markup:
    """Say what was searched, by what, and where."""
    study = numbers["study"]
    facts = {
        "Data set": study["dataset"],
        "Parent network": study["model"],
        "Masks": study["mask_kind"],
        "Objectives": ", ".join(study["objectives"]),
        "Replicates": f"{study['replicates']:,}, each shared by all arms",
        "Training of one candidate": f"{study['steps']:,} optimiser steps, unless the space varies them",
        "Seed": str(study["seed"]),
        "Candidates trained to the end": f"{numbers['points']['n_completed']:,}",
    }
    has_controls = any(arm["controls"] for arm in numbers["arms"])
    arms = table(
        "The arms",
        ["arm", "strategy", "rungs", "#candidates", "#at once", "judged against", *(["controls"] * has_controls)],
        [
            [
                arm_name(numbers, arm["name"]),
                arm["strategy"],
                arm["rungs"],
                whole(arm["candidates"]),
                whole(arm["batch"]),
                Markup(", ".join(arm_name(numbers, name) for name in arm["against"]) or "nobody"),
                *([", ".join(arm["controls"]) or "none"] * has_controls),
            ]
            for arm in numbers["arms"]
        ],
    )
    spaces: dict[str, list[str]] = {}
    for arm in numbers["arms"]:
        spaces.setdefault(arm["space"], []).append(arm["name"])
    described = "".join(
        f"<h3>{text('All arms' if len(spaces) == 1 else ', '.join(names))}</h3>\n<pre>{text(space)}</pre>"
        for space, names in spaces.items()
    )
    return section(
        "run",
        "What was run",
        fact_list(facts),
        arms,
        details("The space that was searched", described),
        provenance_details(provenance),
    )


def search_answer(numbers: Record) -> str:
    """Give the verdicts at a glance, and all findings in sentences to unfold."""
    rows = [as_judged(row) for row in numbers["verdict"]["comparisons"] if row["n"]]
    glance = ""
    if rows:
        unit = unit_of(rows[0]["metric"])
        glance = table(
            f"{_metric(numbers)} at equal budget: verdict, difference ({unit.strip()}), and share of the other's whole "
            "budget that the arm needed to come to where the other ended",
            ["arm", "against", "verdict", "#difference", "#budget to catch up"],
            [
                [
                    arm_name(numbers, row["arm"]),
                    arm_name(numbers, row["against"]),
                    label_badge(row["label"]),
                    _signed(row["difference"], row["metric"]),
                    row["cost_ratio_text"] or UNKNOWN,
                ]
                for row in rows
            ],
        )
    return glance + finding_details(numbers)


def comparison_section(numbers: Record) -> Markup:
    """Show what each arm came to against the one that it is held against."""
    title = "1. Verdict: each arm at equal budget"
    rows = numbers["verdict"]["comparisons"]
    if not any(arm["against"] for arm in numbers["arms"]):
        return section("verdict", title, note_of("No arm is held against another one: there is nothing to judge."))
    if not any(row["n"] for row in rows):
        why = "Nothing to compare yet: it takes two arms that are held against each other in the same replicate."
        return section("verdict", title, note_of(why))
    study = numbers["study"]
    metric = rows[0]["metric"]
    scale = 100.0 if is_share(metric) else 1.0
    ends = [abs(row[name]) for row in rows for name in ("low", "high", "difference") if row[name] is not None]
    margin = study["margin"]
    reach = 1.08 * max(min(max(ends, default=0.0), 8 * margin), margin)
    words = (
        "In each replicate both runs are read off at the same cost, the smaller of their two totals; differences are "
        "paired over replicates, on validation. The p-values are corrected for all rows (Holm)."
    )
    caption = (
        f"Difference in {_metric(numbers).lower()} ({unit_of(metric).strip()}; positive = arm better) with its "
        f"{100 * (1 - study['alpha']):.4g}% interval; shaded: the margin of equivalence, ±{scale * margin:.3g}; a "
        "triangle points to what lies beyond the scale. Budget to catch up: passes with which the arm's mean curve "
        "comes to where the other's ended, as a share of all of the other's passes (below 100% = faster)."
    )
    judged = judged_table(
        caption,
        rows,
        before={
            "against": lambda row: Markup(f"against {arm_name(numbers, row['against'])}"),
            "arm": lambda row: arm_name(numbers, row["arm"]),
        },
        difference=_difference,
        reach=reach,
        after={
            "#budget to catch up": budget_to_catch_up,
            "#passes: arm / other": lambda row: (
                f"{engineering(row['arm_passes'])} / {engineering(row['against_passes'])}"
            ),
        },
    )
    notes = bullets((f"{row['arm']}: {row['note']}" for row in map(as_judged, rows) if row["note"]), css="note")
    return section("verdict", title, paragraph(words), judged, notes, controls_of_search(numbers))


def controls_of_search(numbers: Record) -> str:
    """Show what the networks of each arm came to against their controls; nothing if there are none."""
    words = (
        "A control changes one thing about a network: a difference to it says that this thing matters. Every candidate "
        "that an arm completed has its own, with the same settings, trained to the end; each side is the mean over "
        "these candidates, and both are paired over replicates. The p-values are corrected for all rows of this table "
        "(Holm) and for no others."
    )
    return controls_part(
        numbers,
        words,
        before={
            "arm": lambda row: arm_name(numbers, row["arm"]),
            "control": lambda row: text(row["control"]),
        },
    )


def attainment_section(numbers: Record) -> Markup:
    """Show what was attained against what was spent."""
    study = numbers["study"]
    title = f"2. {_metric(numbers)} against cost"
    if not any(curve["cost"] for curve in numbers["curves"]):
        return section("attainment", title, note_of("Nothing was trained yet."))
    words = (
        "Mean over replicates of what each run had found by the time it had spent so many passes, in the order of its "
        "candidates; bands are Student's intervals over replicates. Stopped and failed candidates cost and add "
        "nothing, and a run that has ended keeps what it has. "
    )
    if study["metric"] == "hypervolume":
        reference = ", ".join(
            f"{name} {_setting(value)}" for name, value in zip(study["objectives"], study["reference"], strict=True)
        )
        words += (
            f"The hypervolume is a fraction of the box up to {reference}; sizes and costs are on a log scale in it."
        )
        if not study["is_settled"]:
            words += (
                " Part of this reference is a tenth beyond the largest that completed: it can move while the study "
                "grows."
            )
    described = f"{_metric(numbers)} of each arm against the passes it spent."
    return section("attainment", title, paragraph(words), chart("attainment", described))


def search_front_section(numbers: Record) -> Markup:
    """Show the front over all arms."""
    title = "3. The front of all arms"
    points, members, axes = numbers["points"], numbers["front"], numbers["axes"]
    unmet = [
        note_of(f"{clause[0].upper()}{clause[1:]}; what breaks a constraint is on no front.")
        for clause in numbers["unmet"]
    ]
    if not points["n_completed"]:
        return section("front", title, *(unmet or [note_of("No candidate was trained to the end yet.")]))
    objectives = ", ".join(f"<code>{text(name)}</code>" for name in numbers["study"]["objectives"])
    words = (
        "<p>Large outlined markers are the front over all arms and replicates: no other candidate beats them in "
        f"{objectives} together. Hover over a marker for its candidate's id and settings; click an arm in the legend "
        "to hide it. These are single networks, so part of any front is luck: compare arms in section 1.</p>"
    )
    sampled = sample_note(points, charts="3 and 6", what="candidates")
    columns: Columns = {
        "candidate": lambda row: Markup(f"<code>{text(row['candidate'])}</code>"),
        "arm": lambda row: arm_name(numbers, row["arm"]),
        "#replicate": lambda row: whole(row["replicate"]),
        "#number": lambda row: whole(row["number"]),
        **{f"#{axis['name']}": functools.partial(_axis_value, axis) for axis in axes},
        "#test error": lambda row: percent(row["test_error"], digits=2),
        "~settings": lambda row: ", ".join(f"{name} {_setting(value)}" for name, value in row["dims"].items()),
    }
    counts = table(
        "Where the front comes from",
        ["arm", "#on the front of all arms", "#front of one run, mean"],
        [
            [
                arm_name(numbers, row["arm"]),
                whole(sum(member["arm"] == row["arm"] for member in members)),
                f"{row['front_size']:.1f}",
            ]
            for row in numbers["outcomes"]
        ],
    )
    folded = front_details("The front", members, columns)
    described = f"{axes[0]['label'].capitalize()} against {' and '.join(axis['label'] for axis in axes[1:])}."
    return section("front", title, words, *unmet, sampled, chart("front", described), counts, folded)


def outcome_section(numbers: Record) -> Markup:
    """Show what became of the candidates: stopped at which rung, completed, failed."""
    title = "4. What became of the candidates"
    rows = numbers["outcomes"]
    if not any(row["n_candidates"] for row in rows):
        return section("outcomes", title, note_of("No candidate was trained yet."))
    words = (
        "Shares of the candidates that were trained, at least in part, and have ended. Duplicates of an earlier "
        "candidate and proposals that break a constraint were not: they are counted in the table, and cost nothing."
    )
    texts = list(dict.fromkeys(part["text"] for row in rows for part in row["parts"]))
    listed = table(
        "The same as a table",
        ["arm", "#candidates", *(f"#{name}" for name in texts), "#duplicates", "#infeasible"],
        [
            [
                arm_name(numbers, row["arm"]),
                whole(row["n_candidates"]),
                *(percent(_share(row, name), digits=1) for name in texts),
                whole(row["n_duplicates"]),
                whole(row["n_infeasible"]),
            ]
            for row in rows
        ],
    )
    described = "Share of each arm's candidates that was stopped at each rung, completed or failed."
    ended = [note_of(f"{clause}.") for clause in numbers["exhausted"]]
    return section("outcomes", title, paragraph(words), chart("outcomes", described), *ended, listed)


def importance_section(numbers: Record) -> Markup:
    """Show which dimensions mattered."""
    title = "5. Which dimensions mattered"
    rows = numbers["importances"]
    known = [row for row in rows if row["importances"]]
    if not known:
        return section("importance", title, note_of("Too few candidates completed: it takes 50 of one arm."))
    objective = known[0]["objective"]
    words = (
        "How much the best tenth of an arm's completed candidates differ from all of them in each dimension "
        f"(PED-ANOVA, shares of 1; ranked within replicates), for {objective}. It is about what the arm visited: "
        "what a strategy settled early varies no longer, and seems unimportant."
    )
    few = [f"{row['arm']} ({row['n']})" for row in rows if not row["importances"]]
    note = note_of(f"Too few completed candidates: {', '.join(few)}.") if few else ""
    names = list(dict.fromkeys(name for row in known for name in row["importances"]))
    listed = table(
        "Importance of each dimension",
        ["arm", "objective", "#candidates", *(f"#{name}" for name in names)],
        [
            [
                arm_name(numbers, row["arm"]),
                row["objective"],
                whole(row["n"]),
                *(percent(row["importances"].get(name), digits=0) for name in names),
            ]
            for row in known
        ],
    )
    described = "Importance of each dimension of the space, arm by arm."
    return section(
        "importance",
        title,
        paragraph(words),
        chart("importance", described),
        note,
        details("The same as a table", listed),
    )


def dimension_section(numbers: Record) -> Markup:
    """Show where in each dimension the candidates lie."""
    title = "6. Dimensions against validation error"
    if not numbers["dimensions"] or not numbers["points"]["n_completed"]:
        return section("dimensions", title, note_of("There is nothing to show yet."))
    n_hidden = len(numbers["dimensions"]) - numbers["n_panels"]
    words = "Completed candidates; outlined: those of the front. The dimensions that matter most come first."
    if n_hidden > 0:
        words += f" {n_hidden} further dimensions are not shown."
    described = "Validation error against each dimension, one panel for each."
    return section("dimensions", title, paragraph(words), chart("dimensions", described))


def search_spent_section(numbers: Record) -> Markup:
    """Show what each arm spent, and what failed."""
    title = "7. What each arm spent"
    spent = numbers["verdict"]["spent"]
    if not spent:
        return section("spent", title, note_of("Nothing was spent yet."))
    words = (
        "A pass is one example taken forward and backward; a forward pass alone counts a third. Stopped, failed and "
        "repeated work is included. Time is the wall time of a batched training, divided over its candidates."
    )
    costs = cost_table([(arm_name(numbers, row["arm"]), row) for row in spent], counted="proposals")
    return section("spent", title, paragraph(words), costs, _pack_times(numbers), failures_details(numbers))


def _pack_times(numbers: Record) -> Markup:
    """Show what packs took beside what was predicted; nothing where nothing was."""
    if not numbers["packs"]:
        return Markup("")
    words = (
        "The packing predicts what each pack takes, to weigh padding against more packs. Of measured over predicted "
        "time a median far from 1 means a faster or slower machine than the prediction was made for; the quartiles "
        "say how well it tells packs from each other, on which the plan depends."
    )
    listed = table(
        "Measured against predicted time of packs",
        ["device", "#packs", "#measured", "#predicted", "#median ratio", "#quartiles"],
        [
            [
                row["device"],
                whole(row["n_packs"]),
                duration(row["seconds"]),
                duration(row["predicted_s"]),
                f"{row['median']:.2f}",
                f"{row['low']:.2f} to {row['high']:.2f}",
            ]
            for row in numbers["packs"]
        ],
    )
    return details("Measured against predicted time", paragraph(words) + listed)


def search_words_section(numbers: Record) -> Markup:
    """Define what the report's words mean."""
    study = numbers["study"]
    metric = study["metric"]
    margin = f"{study['margin'] * (100 if is_share(metric) else 1):.3g}{unit_of(metric)}"
    words = {
        "candidate": "One network that was proposed: the settings of the space, with its masks and training.",
        "replicate": "One data split, initial weights and data order, shared by all arms: comparisons are paired.",
        "run": "One arm in one replicate: a whole search of its own. Random draws of arms that search the same "
        "dimensions are the same points, in the same order.",
        "rung": "A point of the training at which candidates are compared and some are stopped.",
        "hypervolume": "The share of a box of the objectives that is dominated by what was found; more is better. The "
        "box is the same for all arms. " + _extent_of_box(study),
        "equivalent": f"Two one-sided tests show that the difference is smaller than {margin} (level "
        f"{study['alpha']:g}, corrected for all comparisons).",
        "better, worse": "A paired t-test shows a difference, and it was not shown to be smaller than that margin.",
        "undecided": "Neither was shown; this is not evidence of no difference. “Replicates needed” is how many would "
        "be enough for either, whatever the true difference is; a range because a few replicates tell only roughly how "
        "far replicates differ.",
        "not judged": "Nothing could be tested: no replicate or only one has both runs, or neither run had found "
        "anything at equal budget. The remarks under the table say which.",
        "validation, test": "Strategies, rungs, fronts and verdicts see validation only. Test errors are reported.",
    }
    items = "".join(f"<dt>{text(word)}</dt><dd>{text(meaning)}</dd>" for word, meaning in words.items())
    return section("words", "8. How to read this", f'<dl class="words">{items}</dl>')


def _extent_of_box(study: Record) -> str:
    if study["is_given"]:
        return "Its far corner is the reference that the study gives."
    moves = "" if study["is_settled"] else ", so that its far corner can move while the study grows"
    worst = "that of guessing" if study["task"] == "classification" else "that of the images as they were"
    return (
        f"Errors run from 0 to {worst}; sizes and costs, on a log scale, to a tenth beyond the largest "
        f"that completed{moves}."
    )


def _metric(numbers: Record) -> str:
    metric = numbers["study"]["metric"]
    return "Hypervolume" if metric == "hypervolume" else f"Best {metric}"


def _scale(value: float, metric: str) -> tuple[float, int]:
    """What a value of a metric is multiplied with to be read, and how many digits it then takes."""
    return (100.0, 2) if is_share(metric) else (1.0, 4 if abs(value) < 100 else 0)


def _signed(value: float | None, metric: str) -> str:
    if value is None:
        return UNKNOWN
    scale, digits = _scale(value, metric)
    return signed(scale * value, digits=digits)


def _difference(row: Record) -> str:
    scale, digits = _scale(row["difference"] or 0.0, row["metric"])
    return shown_difference(row, scale=scale, digits=digits)


def budget_to_catch_up(row: Record) -> str:
    """Write the share of the other's budget that an arm needed, with its interval as far as it is known."""
    if row["cost_ratio_text"] is None:
        return UNKNOWN
    low, high = row["cost_ratio_low_text"], row["cost_ratio_high_text"]
    if low is None or high is None:
        return f"{row['cost_ratio_text']} [unknown]"
    if low == high:
        return str(row["cost_ratio_text"])
    return f"{row['cost_ratio_text']} " + (f"[{low} or more]" if high == "never" else f"[{low}, {high}]")


def _share(row: Record, name: str) -> float:
    shares: Sequence[float] = [part["share"] for part in row["parts"] if part["text"] == name]
    return sum(shares)


def _axis_value(axis: Record, row: Record) -> str:
    value = row["values"][axis["name"]]
    if value is None:
        return UNKNOWN
    if axis["is_share"]:
        return percent(value, digits=2)
    return whole(value) if float(value).is_integer() else f"{value:.4g}"


def _setting(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else whole(value)
    return str(value)
