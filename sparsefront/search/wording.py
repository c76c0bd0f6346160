"""A verdict in words: the headline, the findings as sentences, and the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sparsefront.search.design import Design, SearchDesign
from sparsefront.search.findings import (
    LABELS,
    LAYER_RATIOS,
    Comparison,
    ControlComparison,
    Correlation,
    JudgedEffect,
    Spent,
    Verdict,
)
from sparsefront.search.metrics import METRICS

#: What people read in place of a label where nothing could be tested, and why where a comparison has no note.
NOT_JUDGED = "not judged"
ONE_PAIR = "one pair"


def verdict_rows(verdict: Verdict) -> list[dict[str, str]]:
    """Format the comparisons for a table on a terminal, one row each; accuracies in percent.

    Args:
        verdict: what :func:`judge` found.

    Returns:
        Rows of strings with the same columns; empty strings for what is not known.
    """
    return [
        {
            **_paired_row(c),
            "random mean": _shown(c.random_mean, c.metric),
            "random draws": f"{c.random_draws_at_equal_budget:.2f}" if c.n else "",
        }
        for c in verdict.comparisons
    ]


def control_rows(controls: Sequence[ControlComparison]) -> list[dict[str, str]]:
    """Format the comparisons of arms with their controls, as `verdict_rows` does the others."""
    return [
        {**_paired_row(c), "control": c.control, "control mean": _shown(c.control_mean, c.metric)} for c in controls
    ]


def _paired_row(c: Comparison | ControlComparison) -> dict[str, str]:
    """What rows say of any comparison of pairs."""
    has_shown = has_difference(c.n, c.p_value)
    return {
        "metric": c.metric,
        "arm": c.arm,
        "sparsity": "" if c.sparsity is None else f"{c.sparsity:g}",
        "verdict": shown_label(c.label, c.p_value),
        "difference": _signed(c.difference, c.metric) if has_shown else "",
        "interval": _range(c) if has_shown else "",
        "unit": _unit(c.metric),
        "arm mean": _shown(c.arm_mean, c.metric),
        "p": shown_p(c.p_adjusted),
        "p equivalence": shown_p(c.p_equivalence_adjusted),
        "pairs": shown_pairs(c.n, c.n_missing),
        "replicates needed": shown_needed(c.replicates_needed_low, c.replicates_needed_high),
        "note": c.note or (ONE_PAIR if c.n == 1 else ""),
    }


def shown_label(label: str, p_value: float | None) -> str:
    """The label of a comparison as people read it; one without a test is no finding, not even an undecided one.

    >>> shown_label("better", 0.01), shown_label("undecided", 0.6), shown_label("undecided", math.nan)
    ('better', 'undecided', 'not judged')
    """
    return NOT_JUDGED if p_value is None or math.isnan(p_value) else label


def has_difference(n: int, p_value: float | None) -> bool:
    """Whether a comparison of `n` pairs has a difference to show: zeros where nobody got anywhere are none.

    >>> has_difference(10, 0.6), has_difference(1, math.nan), has_difference(10, math.nan), has_difference(0, None)
    (True, True, False, False)
    """
    return n == 1 or not (p_value is None or math.isnan(p_value))


def shown_p(value: float) -> str:
    """Write a p-value; nothing if it is unknown.

    >>> shown_p(0.04567), shown_p(0.0001), shown_p(math.nan)
    ('0.046', '<0.001', '')
    """
    if not math.isfinite(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def shown_pairs(n: int, n_missing: int) -> str:
    """Write how many replicates were paired, and how many of the design were not.

    >>> shown_pairs(9, 1), shown_pairs(10, 0)
    ('9 (1 missing)', '10')
    """
    return f"{n}" + (f" ({n_missing} missing)" if n_missing else "")


def shown_needed(low: int | None, high: int | None) -> str:
    """Write how many replicates would decide: two digits, for more are not known; nothing if nothing is.

    >>> shown_needed(17, 331), shown_needed(101, 2_345), shown_needed(20, None), shown_needed(None, None)
    ('17 to 340', '110 to 2,400', '20 or more', '')
    >>> shown_needed(6, 6)
    '6'
    """
    if low is None:
        return ""
    if high is None:
        return f"{_rough(low):,} or more"
    return f"{_rough(low):,} to {_rough(high):,}" if high > low else f"{low:,}"


def _rough(n: int) -> int:
    """The next number up of two digits and zeros."""
    unit: int = 10 ** max(0, len(f"{n}") - 2)
    return -(-n // unit) * unit


def needed_of(effects: Sequence[JudgedEffect]) -> str:
    """How many replicates would decide some comparisons, from the fewest to the most; nothing if one is unknown.

    >>> needed_of([])
    ''
    """
    lows = [effect.replicates_needed_low for effect in effects]
    highs = [effect.replicates_needed_high for effect in effects]
    known = [low for low in lows if low is not None]
    if not known or len(known) < len(lows):
        return ""
    return shown_needed(min(known), None if None in highs else max(high for high in highs if high is not None))


def headline(comparisons: Sequence[Comparison], design: Design) -> str:
    """Answer in one line what a study is for, from the results of its searched arms (of all arms without one)."""
    metric = METRICS[design.metric]
    of_results = [c for c in comparisons if c.metric == design.metric]
    searched = [c for c in of_results if c.arm.startswith("searched")]
    question = f"Does {'searching' if searched else 'any arm'} beat drawing at random at equal budget?"
    judged = [c for c in searched or of_results if math.isfinite(c.p_value)]
    if not judged:
        why = "no arm has a trained network beside trained random ones"
        if any(c.n for c in searched or of_results):
            why = f"there is {ONE_PAIR}, and a test needs two"
        return f"{question} Not judged: {why}"
    places = {label: [c for c in judged if c.label == label] for label in LABELS}
    meanings = {
        "better": metric.better,
        "equivalent": f"equivalent to within {_margin(design.equivalence_margin, design.metric)}",
        "worse": metric.worse,
        "undecided": "undecided",
    }
    parts = [f"{meanings[label]} {_places(found, judged)}" for label, found in places.items() if found]
    if needed := needed_of(places["undecided"]):
        by = ", depending on the comparison" if len(places["undecided"]) > 1 else ""
        parts[-1] += f" (there are {design.replicates} replicates; {needed} would be enough{by})"
    parts[-1] += _shortage(judged)
    if len(places["undecided"]) == len(judged):
        return f"{question} {parts[0].capitalize()}"
    if places["better"]:
        answer = "Yes" if len(places["better"]) == len(judged) else "Sometimes"
    else:
        answer = "Not as far as shown" if places["undecided"] else "No"
    return f"{question} {answer}: {'; '.join(parts)}"


def _shortage(judged: Sequence[Comparison]) -> str:
    """Say where random search had less than its budget; what it beats all the same needs no reservation."""
    short = [c for c in judged if c.n_short and c.label != "worse"]
    if not short:
        return ""
    worst = max(short, key=lambda c: c.n_short / c.n)
    up_to = "" if all((c.n_short, c.n) == (worst.n_short, worst.n) for c in judged) else "up to "
    return (
        f", though in {up_to}{worst.n_short} of {worst.n} replicates the budget would have paid for more random masks "
        "than were trained"
    )


def _places(comparisons: Sequence[Comparison], judged: Sequence[Comparison]) -> str:
    """Say where a label applies: by sparsity, and by arm where several are judged."""
    if len(comparisons) == len(judged) > 1:
        return f"in all {len(judged)} comparisons"
    if len({c.arm for c in judged}) == 1:
        return f"at sparsity {', '.join(f'{c.sparsity:g}' for c in comparisons)}"
    by_arm: dict[str, list[str]] = {}
    for c in comparisons:
        by_arm.setdefault(c.arm, []).append(f"{c.sparsity:g}")
    return ", ".join(f"for {arm} at sparsity {' and '.join(levels)}" for arm, levels in by_arm.items())


def sentences(
    comparisons: Sequence[Comparison],
    controls: Sequence[ControlComparison],
    matters: Sequence[str],
    correlations: Sequence[Correlation],
    spent: Sequence[Spent],
    design: Design,
) -> tuple[str, ...]:
    """Say in words what was found: arms by each metric, arms and controls, scores before training, and what failed."""
    sentences = []
    interval = f"{100 * (1 - design.alpha):g}% interval"
    for metric in METRICS:
        for arm in design.arms:
            found = [c for c in comparisons if c.metric == metric and c.arm == arm]
            if found:
                what = METRICS[metric].title
                parts = _findings(found, interval)
                sentences.append(f"{what} of {arm} against random search at equal budget: {parts}")
    sentences += control_sentences(controls, design)
    sentences += matters
    initial = [c for c in correlations if c.predictor == "initial_loss"]
    if initial:
        ranked = [_ranked(c, interval) for c in initial]
        sentences.append(f"Rank correlation of the loss before training with the one after it: {', '.join(ranked)}")
    failed = [
        f"{n} {outcome} ({s.arm})"
        for s in spent
        for outcome, n in s.outcomes.items()
        if outcome not in ("completed", "stopped")
    ]
    if failed:
        sentences.append(f"Not every candidate completed: {', '.join(failed)}")
    return tuple(sentences)


def control_sentences(controls: Sequence[ControlComparison], design: Design | SearchDesign) -> list[str]:
    """Say what each arm came to against each of its controls."""
    interval = f"{100 * (1 - design.alpha):g}% interval"
    found = []
    for arm, control in dict.fromkeys((c.arm, c.control) for c in controls):
        parts = _findings([c for c in controls if (c.arm, c.control) == (arm, control)], interval)
        found.append(f"{METRICS[design.metric].title} of {arm} against its control {control}: {parts}")
    return found


#: What a control that is worse than its arm says, what one that is better, and what is compared.
_MATTERS: Mapping[str, tuple[str, str, str]] = {
    "shuffled_layers": (
        "its positions within layers matter",
        "random positions within its layers are better than its own",
        "positions within layers",
    ),
    LAYER_RATIOS: (
        "its layer ratios matter",
        "random positions anywhere are better than under its layer ratios",
        "layer ratios",
    ),
    "shuffled": (
        "its mask matters, positions and layer ratios together",
        "random positions anywhere are better than its mask",
        "positions and layer ratios together",
    ),
    "fresh_weights": (
        "its mask belongs to the weights that it was found on",
        "its mask is better on fresh weights",
        "its own weights against fresh ones",
    ),
    "small_dense": (
        "it beats a small dense network",
        "a small dense network beats it",
        "it against a small dense network",
    ),
    "dense_budget": (
        "it beats the dense parent trained for its budget",
        "the dense parent trained for its budget beats it",
        "it against the dense parent trained for its budget",
    ),
}
#: What positions within layers and layer ratios come to together.
_MASK_OR_RATIOS: Mapping[tuple[str, str], str] = {
    ("better", "better"): "both the mask and its layer ratios matter",
    ("better", "equivalent"): "it is the mask that matters, not its layer ratios",
    ("equivalent", "better"): "it is the layer ratios that matter, not which entries they leave",
    ("equivalent", "equivalent"): "neither the mask nor its layer ratios matter, to within {margin}",
}


def what_matters(
    controls: Sequence[ControlComparison], ratios: Sequence[ControlComparison], design: Design | SearchDesign
) -> tuple[str, ...]:
    """Say of each arm with controls, and each level, what its result is owed to: one sentence.

    Whether it is the mask or the layer ratios is said where both are known: different, or equivalent. What was not
    shown to differ is never called the same.

    Args:
        controls: arms against their controls.
        ratios: `Verdict.layer_ratios`; where one was judged it stands for the control 'shuffled'.
        design: what was asked.
    """
    found: list[str] = []
    for arm, level in dict.fromkeys((c.arm, c.sparsity) for c in controls):
        own = {c.control: c for c in (*controls, *ratios) if (c.arm, c.sparsity) == (arm, level)}
        is_judged = {name: math.isfinite(c.p_value) for name, c in own.items()}
        if LAYER_RATIOS in own and (is_judged[LAYER_RATIOS] or not is_judged["shuffled"]):
            del own["shuffled"]
        both = [own[name] for name in ("shuffled_layers", LAYER_RATIOS) if is_judged.get(name)]
        lead = _MASK_OR_RATIOS.get((both[0].label, both[1].label), "") if len(both) == 2 else ""
        lead = lead.format(margin=_margin(design.margin_of(design.metric), design.metric))
        clauses = [
            _matter(own[name], ratios if name == LAYER_RATIOS else controls, design)
            for name in dict.fromkeys((*_MATTERS, *own))
            if name in own
        ]
        found.append(f"{arm}{_place(level)}: {'; '.join([lead, *clauses] if lead else clauses)}")
    return tuple(found)


def _matter(c: ControlComparison, family: Sequence[ControlComparison], design: Design | SearchDesign) -> str:
    """What one comparison with a control says, of a family that was tested together."""
    name = f"its control {c.control}"
    better, worse, compared = _MATTERS.get(c.control, (f"it beats {name}", f"{name} beats it", f"it against {name}"))
    if not math.isfinite(c.p_value):
        return f"{compared}: {NOT_JUDGED} ({c.note or ONE_PAIR})"
    said = {
        "better": better,
        "worse": worse,
        "equivalent": f"{compared}: equivalent to within {_margin(c.margin, c.metric)}",
        "undecided": f"{compared}: no difference shown{_in_spite(c, family, design.alpha)}, nor equivalence",
    }[c.label]
    interval = f"{100 * (1 - design.alpha):g}% interval"
    return f"{said} ({_signed(c.difference, c.metric)} {_unit(c.metric)}, {interval} {_range(c)})"


def _in_spite(c: ControlComparison, family: Sequence[ControlComparison], alpha: float) -> str:
    """Why no difference is shown where the interval, which is of this comparison alone, excludes zero."""
    if not (c.low > 0 or c.high < 0):
        return ""
    if c.p_value > alpha:
        return " by the paired test"
    return f" after correction for {sum(math.isfinite(other.p_value) for other in family)} comparisons"


def _findings(found: Sequence[Comparison | ControlComparison], interval: str) -> str:
    """Say what comparisons came to, level by level."""
    return ", ".join(
        f"{c.label}{_place(c.sparsity)} ({_signed(c.difference, c.metric)} {_unit(c.metric)}, {interval} {_range(c)})"
        if math.isfinite(c.p_value)
        else f"{NOT_JUDGED}{_place(c.sparsity)} ({c.note or ONE_PAIR})"
        for c in found
    )


def _place(sparsity: float | None) -> str:
    """Where a finding is of, behind whom or what it is of; a search has no levels."""
    return "" if sparsity is None else f" at sparsity {sparsity:g}"


def _margin(margin: float, metric: str) -> str:
    """A margin with its unit."""
    value = f"{METRICS[metric].scale * margin:g}"
    if metric != "accuracy":
        return f"{value} {_unit(metric)}"
    return f"{value} accuracy point{'' if value == '1' else 's'}"


def _unit(metric: str) -> str:
    return METRICS[metric].unit


def _signed(value: float, metric: str) -> str:
    if not math.isfinite(value):
        return ""
    return f"{METRICS[metric].scale * value:+.{METRICS[metric].digits}f}"


def _ranked(found: Correlation, interval: str) -> str:
    """One rank correlation with its interval, which a single replicate has none of.

    >>> _ranked(Correlation(0.9, "initial_loss", 8, 1, -0.5, math.nan, math.nan, 0.2, 0.2), "95% interval")
    '-0.50 at sparsity 0.9 (95% interval unknown)'
    """
    ends = f"{found.low:+.2f} to {found.high:+.2f}" if math.isfinite(found.low) else "unknown"
    return f"{found.spearman:+.2f} at sparsity {found.sparsity:g} ({interval} {ends})"


def _range(comparison: Comparison | ControlComparison) -> str:
    if not math.isfinite(comparison.low):
        return "unknown"
    return f"{_signed(comparison.low, comparison.metric)} to {_signed(comparison.high, comparison.metric)}"


def _shown(value: float, metric: str) -> str:
    if not math.isfinite(value):
        return ""
    return METRICS[metric].shown(value)
