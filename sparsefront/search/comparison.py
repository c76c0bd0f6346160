"""The verdict of a search study: does an arm find a better front than the arm it is held against, at equal budget?

In each replicate both runs are read off at the same cost, the smaller of the two totals: whoever was given more, or
stopped less, has no advantage. What is compared is the hypervolume (``attainment``) or, with one objective, the best
value; both on validation. Differences are paired over replicates, since arms share data split, initial weights and data
order.

*Speed*: the share of the other arm's whole budget with which an arm's mean curve comes to where the other's ended; 0.25
is four times as fast. It is the ratio of two means of curves and not a mean of ratios, because single runs often never
come to where a luckier one ended; the interval is the bootstrap's percentiles over replicates, which is somewhat
narrow for few of them.

Not here: the statistics themselves (``statistics``), and verdicts on masks (``verdict``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparsefront.search.attainment import (
    ArmOutcomes,
    Attainment,
    Curve,
    arm_outcomes,
    attain,
    attainment_columns,
    mean_curves,
)
from sparsefront.search.controlled import Controlled, controlled_columns, judge_controls
from sparsefront.search.design import SearchDesign
from sparsefront.search.findings import LABELS, ControlComparison, JudgedEffect, Spent, as_written, plain_data
from sparsefront.search.front import Batches
from sparsefront.search.importance import ArmImportance
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.statistics import paired_effects
from sparsefront.search.verdict import judged_effects
from sparsefront.search.wording import (
    NOT_JUDGED,
    ONE_PAIR,
    has_difference,
    needed_of,
    shown_label,
    shown_needed,
    shown_p,
    shown_pairs,
)
from sparsefront.spaces.seeds import generator

Floats = npt.NDArray[np.float64]

_RESAMPLES = 2000
#: Fewer pairs say nothing of how far a share of the budget may be off: resamples are the same few again.
_MIN_PAIRS = 4

#: Undecided comparisons whose replicates needed the headline gives one by one; of more it gives the range.
_MOST_ESTIMATES = 2

#: The note of a comparison whose arm does not get as far as the other one.
NEVER_REACHED = "the arm never comes to where the other ended"
#: The note of a comparison that has no difference in any replicate, as of a strategy that drew what random search drew.
_ALL_ZERO = "all differences are exactly zero, as of arms that trained the same candidates"


@dataclass(frozen=True)
class SearchComparison(JudgedEffect):
    """One arm against another at equal budget, paired over replicates.

    ``metric`` is 'hypervolume' (a fraction of the box) or the only objective (in its own unit). Every difference is
    positive where the arm is better. What can't be known is NaN or None. The family that p-values are adjusted over is
    all comparisons.
    """

    arm: str
    against: str
    metric: str
    n_missing: int  #: replicates of the design without a pair
    arm_mean: float
    against_mean: float
    budget_passes: float  #: mean cost at which both were read off
    arm_passes: float  #: mean cost of the arm's whole run
    against_passes: float
    cost_ratio: float  #: budget to come to where the other ended, as a share of the other's; inf if it never did
    cost_ratio_low: float
    cost_ratio_high: float
    note: str  #: what the reader must know about this comparison; empty if nothing


@dataclass(frozen=True)
class SearchVerdict:
    """Everything that was found of a search study, in numbers and in sentences."""

    comparisons: tuple[SearchComparison, ...]
    arms: tuple[ArmOutcomes, ...]
    spent: tuple[Spent, ...]
    headline: str
    sentences: tuple[str, ...]
    controls: tuple[ControlComparison, ...] = ()
    #: Of arms with both controls, shuffled within layers (as the arm) against shuffled anywhere; a family of its own.
    layer_ratios: tuple[ControlComparison, ...] = ()
    matters: tuple[str, ...] = ()  #: of each arm with controls, what its results are owed to

    def to_dict(self) -> dict[str, object]:
        """Give the verdict as plain data for JSON; NaN and infinities become null."""
        values = dataclasses.asdict(self)
        for name in ("comparisons", "controls", "layer_ratios"):
            values[name] = [as_written(effect) for effect in values[name]]
        return plain_data(values)


def verdict_columns(design: SearchDesign) -> list[str]:
    """List the ledger's columns that :func:`compare_arms` reads."""
    return list(dict.fromkeys([*attainment_columns(design), *controlled_columns(design)]))


def compare_arms(batches: Batches, design: SearchDesign) -> SearchVerdict:
    """Judge every arm of a search study against the arms that it names.

    Labels are those of ``verdict.judge``: *equivalent* when two one-sided tests show a difference smaller than
    ``design.equivalence_margin``; otherwise *better* or *worse* when the paired t-test finds one; otherwise
    *undecided*. Both tests are corrected by Holm over all comparisons, each at ``design.alpha``.

    Args:
        batches: a ledger's table or record batches, with at least ``verdict_columns(design)``; read once.
        design: what was asked.

    Returns:
        The verdict; a function of the rows and the design alone.

    Raises:
        ConfigError: if a column is missing.
    """
    rows: Batches = list(batches) if design.controls and not isinstance(batches, pa.Table) else batches
    return judge_runs(attain(rows, design), design, judge_controls(rows, design))


def judge_runs(attainment: Attainment, design: SearchDesign, controlled: Controlled) -> SearchVerdict:
    """Judge what was read of the runs, and of their controls; see :func:`compare_arms`."""
    names = [arm.name for arm in design.arms]
    judged = [(arm.name, other) for arm in design.arms for other in arm.opponents if other in names]
    comparisons = _compare([_pair(attainment, *pair) for pair in judged], attainment, design)
    arms = arm_outcomes(attainment, design)
    spent = (*_spent(attainment, design), *controlled.spent)
    return SearchVerdict(
        comparisons,
        arms,
        spent,
        _headline(comparisons, design),
        _sentences(comparisons, arms, controlled, spent, design),
        controlled.comparisons,
        controlled.layer_ratios,
        controlled.matters,
    )


def verdict_rows(verdict: SearchVerdict) -> list[dict[str, str]]:
    """Format the comparisons for a table on a terminal, one row each; shares and errors in percent.

    Args:
        verdict: what :func:`compare_arms` found.

    Returns:
        Rows of strings with the same columns; empty strings for what is not known.
    """
    return [
        {
            "metric": c.metric,
            "arm": c.arm,
            "against": c.against,
            "verdict": shown_label(c.label, c.p_value),
            "difference": signed_quality(c.difference, c.metric) if has_difference(c.n, c.p_value) else "",
            "interval": _range(c) if has_difference(c.n, c.p_value) else "",
            "unit": unit_of(c.metric).strip(),
            "arm mean": shown_quality(c.arm_mean, c.metric),
            "against mean": shown_quality(c.against_mean, c.metric),
            "p": shown_p(c.p_adjusted),
            "p equivalence": shown_p(c.p_equivalence_adjusted),
            "pairs": shown_pairs(c.n, c.n_missing),
            "cost ratio": "" if math.isnan(c.cost_ratio) else ratio_text(c.cost_ratio),
            "replicates needed": shown_needed(c.replicates_needed_low, c.replicates_needed_high),
            "note": c.note or (ONE_PAIR if c.n == 1 else ""),
        }
        for c in verdict.comparisons
    ]


def search_record(
    attainment: Attainment,
    design: SearchDesign,
    verdict: SearchVerdict,
    *,
    importances: Sequence[ArmImportance] = (),
    is_complete: bool,
) -> dict[str, Any]:
    """Give what an experiment tracker shows of a search study: its own run, and one for each arm.

    Curves can't be taken back once they are shown. They are therefore given on a grid of costs that does not depend on
    the study (8 a decade), as far as every replicate has spent that much on candidates that have ended, and only where
    the box can no longer move: of a complete study, or of one whose reference point is given.

    Args:
        attainment: what the verdict was made from.
        design: what was asked.
        verdict: of the same rows.
        importances: of the same rows.
        is_complete: whether the study has ended.

    Returns:
        ``study`` and ``arms`` (by name), each with ``tags``, ``params`` and ``metrics`` {name: value}, all finite;
        arms also have ``series``: {name: [(passes, value), ...]} of the mean over replicates and, with two replicates
        or more, the ends of its interval.
    """
    outcomes = {found.arm: found for found in verdict.arms}
    spent = {found.arm: found for found in verdict.spent}
    metric = attainment.box.metric
    finals = {arm.name: [curve.final for curve in attainment.of(arm.name)] for arm in design.arms}
    arms: dict[str, Any] = {}
    for arm in design.arms:
        if arm.name not in outcomes:
            continue
        found, costs = outcomes[arm.name], spent[arm.name]
        compared = [one for one in verdict.comparisons if one.arm == arm.name]
        metrics: dict[str, float | None] = {
            metric: float(attainment.box.shown(float(np.mean(finals[arm.name])))),
            "front_size": found.front_size,
            "candidates": found.n_candidates,
            "duplicates": found.n_duplicates,
            "infeasible": found.n_infeasible,
            **{f"{name}_share": share for name, share in found.shares.items()},
            **{f"stopped_share_rung_{rung}": share for rung, share in found.stopped.items()},
            **{name: getattr(costs, name) for name in ("passes", "flops", "seconds")},
        }
        for against in compared:
            place = "verdict" if len(compared) == 1 else f"verdict/{against.against}"
            for name in ("n", "arm_mean", "against_mean", "difference", "low", "high", "p_adjusted", "cost_ratio"):
                metrics[f"{place}_{name}"] = getattr(against, name)
        for held in (one for one in verdict.controls if one.arm == arm.name):
            for name in ("n", "arm_mean", "control_mean", "difference", "low", "high", "p_adjusted"):
                metrics[f"control/{held.control}_{name}"] = getattr(held, name)
        metrics |= _importance_metrics([found for found in importances if found.arm == arm.name])
        arms[arm.name] = {
            "tags": {
                "arm": arm.name,
                "strategy": arm.strategy,
                "rungs": arm.rungs.kind,
                **({"against": ", ".join(c.against for c in compared)} if compared else {}),
                **({"verdict": ", ".join(c.label for c in compared)} if compared else {}),
                **{f"control.{one.control}": one.label for one in verdict.controls if one.arm == arm.name},
            },
            "params": {
                "strategy": arm.strategy,
                "candidates": str(arm.candidates),
                "batch": str(arm.batch),
                **{f"option.{name}": str(value) for name, value in sorted(arm.options.items())},
                **{f"rungs.{name}": str(value) for name, value in dataclasses.asdict(arm.rungs).items()},
            },
            "metrics": _finite(metrics),
            "series": {},
        }
    if is_complete or attainment.box.is_settled:
        for name, series in _series(attainment, design).items():
            arms[name]["series"] = series
    return {
        "study": {
            "tags": {"headline": verdict.headline},
            "params": {
                "objectives": ", ".join(design.objectives),
                "replicates": str(design.replicates),
                "steps": str(design.steps),
                "arms": ", ".join(arm.name for arm in design.arms),
            },
            "metrics": _finite(
                {
                    "candidates": sum(found.n_candidates for found in verdict.arms),
                    **{name: sum(getattr(found, name) for found in verdict.spent) for name in ("passes", "seconds")},
                    **{
                        f"{metric}_best": float(attainment.box.shown(max(values)))
                        for values in [[v for of_arm in finals.values() for v in of_arm]]
                        if values
                    },
                }
            ),
        },
        "arms": arms,
    }


def unit_of(metric: str) -> str:
    """Unit in which differences of a metric are written, to stand right behind the number.

    >>> unit_of("hypervolume"), unit_of("val_error"), unit_of("val_loss")
    ('% of the box', ' points', ' nats')
    """
    if metric == "hypervolume":
        return "% of the box"
    return " points" if is_share(metric) else f" {OBJECTIVES[metric].unit}"


def is_share(metric: str) -> bool:
    """Whether a metric is a fraction, which people read in percent."""
    return metric == "hypervolume" or OBJECTIVES[metric].unit == "fraction"


def signed_quality(value: float, metric: str) -> str:
    """Write a difference of a metric with its sign; nothing if it is unknown.

    >>> signed_quality(0.0123, "hypervolume"), signed_quality(-0.5, "val_loss")
    ('+1.23', '-0.5000')
    """
    if not math.isfinite(value):
        return ""
    return f"{100 * value:+.2f}" if is_share(metric) else f"{value:+.4f}" if abs(value) < 100 else f"{value:+,.0f}"


def shown_quality(value: float, metric: str) -> str:
    """Write a value of a metric; nothing if it is unknown.

    >>> shown_quality(0.5, "hypervolume"), shown_quality(12345.0, "n_params")
    ('50.00', '12,345')
    """
    if not math.isfinite(value):
        return ""
    return f"{100 * value:.2f}" if is_share(metric) else f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"


def ratio_text(ratio: float) -> str:
    """Write a share of another arm's budget.

    >>> ratio_text(0.2345), ratio_text(math.inf)
    ('23%', 'never')
    """
    return f"{100 * ratio:.2g}%" if ratio < 0.1 else f"{100 * ratio:.0f}%" if math.isfinite(ratio) else "never"


@dataclass(frozen=True)
class _Pairs:
    """Runs of two arms in the replicates that have both: qualities and costs are (n,)."""

    arm: str
    against: str
    arm_curves: tuple[Curve, ...]
    against_curves: tuple[Curve, ...]
    budget: Floats
    arm_quality: Floats
    against_quality: Floats


def _pair(attainment: Attainment, arm: str, against: str) -> _Pairs:
    others = {curve.replicate: curve for curve in attainment.of(against)}
    pairs = [(curve, others[curve.replicate]) for curve in attainment.of(arm) if curve.replicate in others]
    budget = np.array([min(one.total_cost, other.total_cost) for one, other in pairs])
    mine, theirs = (
        np.array([float(pair[side].at(cost)) for pair, cost in zip(pairs, budget, strict=True)]) for side in (0, 1)
    )
    one, other = (tuple(pair[side] for pair in pairs) for side in (0, 1))
    return _Pairs(arm, against, one, other, budget, mine, theirs)


def _compare(family: Sequence[_Pairs], attainment: Attainment, design: SearchDesign) -> tuple[SearchComparison, ...]:
    """Test a family of comparisons together."""
    differences = [_without_rounding(pairs.arm_quality - pairs.against_quality) for pairs in family]
    n_empty = [_n_empty(pairs, attainment.box.worst) for pairs in family]
    names = [f"comparison/{pairs.arm}/{pairs.against}" for pairs in family]
    margin, level = design.equivalence_margin, 1 - design.alpha
    # Where neither had found anything the differences are zero by lack of budget: they prove neither this nor that.
    effects = paired_effects(
        differences,
        margins=[margin if 2 * k <= len(values) else None for k, values in zip(n_empty, differences, strict=True)],
        rngs=[generator(design.seed, f"{name}/difference") for name in names],
        level=level,
        is_tested=[k < len(values) for k, values in zip(n_empty, differences, strict=True)],
    )
    comparisons = []
    for i, effect in enumerate(judged_effects(effects, differences, [margin] * len(family), alpha=design.alpha)):
        pairs = family[i]
        ratio, ratio_low, ratio_high = _cost_ratio(pairs, rng=generator(design.seed, f"{names[i]}/ratio"), level=level)
        if _is_all_zero(effect):  # more replicates of the same would tell no more
            effect = dataclasses.replace(effect, replicates_needed_low=None, replicates_needed_high=None)
        comparisons.append(
            SearchComparison(
                **vars(effect),
                arm=pairs.arm,
                against=pairs.against,
                metric=attainment.box.metric,
                n_missing=max(0, design.replicates - effect.n),
                arm_mean=float(attainment.box.shown(_mean(pairs.arm_quality))),
                against_mean=float(attainment.box.shown(_mean(pairs.against_quality))),
                budget_passes=_mean(pairs.budget),
                arm_passes=_mean(np.array([curve.total_cost for curve in pairs.arm_curves])),
                against_passes=_mean(np.array([curve.total_cost for curve in pairs.against_curves])),
                cost_ratio=ratio,
                cost_ratio_low=ratio_low,
                cost_ratio_high=ratio_high,
                note=_note(
                    pairs,
                    design,
                    n_empty=n_empty[i],
                    is_reached=not math.isinf(ratio),
                    is_all_zero=_is_all_zero(effect),
                ),
            )
        )
    return tuple(comparisons)


def _without_rounding(difference: Floats) -> Floats:
    """Equal fronts can differ in the last bits of their volumes: that is no difference."""
    return np.where(np.abs(difference) < 1e-12, 0.0, difference)


def _cost_ratio(pairs: _Pairs, *, rng: np.random.Generator, level: float) -> tuple[float, float, float]:
    """Find where the arm's mean curve comes to the other's mean final quality, as a share of the other's mean cost."""
    n = len(pairs.arm_curves)
    totals = np.array([curve.total_cost for curve in pairs.against_curves])
    if n == 0 or not totals.sum() > 0:
        return math.nan, math.nan, math.nan
    finals = np.array([curve.final for curve in pairs.against_curves])
    starts = np.array([curve.start for curve in pairs.arm_curves])
    cost = np.concatenate([curve.cost for curve in pairs.arm_curves])
    order = np.argsort(cost, kind="stable")
    steps = np.concatenate([np.diff(curve.value, prepend=curve.start) for curve in pairs.arm_curves])[order]
    of_run = np.repeat(np.arange(n), [len(curve.cost) for curve in pairs.arm_curves])[order]
    cost = cost[order]

    def ratio(weights: Floats) -> float:
        """Weights (n,) of the replicates, of sum n."""
        if finals @ weights <= starts @ weights + 1e-12 * n:
            return math.nan  # the other found nothing: there is nothing to come to
        mean = (starts @ weights + np.cumsum(steps * weights[of_run])) / n
        reached = mean >= (finals @ weights) / n - 1e-12
        return float(cost[np.argmax(reached)] / (totals @ weights / n)) if reached.any() else math.inf

    estimate = ratio(np.ones(n))
    if n < _MIN_PAIRS:
        return estimate, math.nan, math.nan
    drawn = np.array([ratio(np.bincount(rng.integers(0, n, n), minlength=n).astype(float)) for _ in range(_RESAMPLES)])
    drawn = np.sort(drawn[~np.isnan(drawn)])
    if math.isnan(estimate) or not len(drawn):
        return estimate, math.nan, math.nan
    # Ranks rather than interpolation: some resamples may never get there, and infinities do not mix.
    tail = (1 - level) / 2
    places = [math.floor(tail * (len(drawn) - 1)), math.ceil((1 - tail) * (len(drawn) - 1))]
    return estimate, float(drawn[places[0]]), float(drawn[places[1]])


def _n_empty(pairs: _Pairs, worst: float) -> int:
    """Count the replicates in which neither run had found anything at their equal budget."""
    return int(np.count_nonzero((pairs.arm_quality <= worst) & (pairs.against_quality <= worst)))


def _is_all_zero(effect: JudgedEffect) -> bool:
    """Whether several replicates were compared and none has a difference: without spread the interval is a point."""
    return effect.low == effect.high == 0.0


def _note(pairs: _Pairs, design: SearchDesign, *, n_empty: int, is_reached: bool, is_all_zero: bool) -> str:
    n = len(pairs.budget)
    if n == 0:
        return "no replicate has both runs"
    notes = []
    if n < design.replicates:
        notes.append(f"{design.replicates - n} of {design.replicates} replicates have no pair")
    empty = sum(not len(curve.cost) for curve in pairs.arm_curves)
    if n_empty:
        notes.append(f"at equal budget neither had found anything in {n_empty} of {n} replicates")
    if is_all_zero and n_empty < n:
        notes.append(_ALL_ZERO)
    if empty:
        notes.append(f"the arm completed nothing that counts in {empty} of {n} replicates")
    if not is_reached:
        notes.append(NEVER_REACHED)
    return "; ".join(notes)


def _spent(attainment: Attainment, design: SearchDesign) -> tuple[Spent, ...]:
    found = []
    for arm in design.arms:
        runs = [run for run in attainment.runs if run.arm == arm.name]
        if not runs:
            continue
        passes, flops, seconds = np.sum([run.cost.sum(axis=0) for run in runs], axis=0).tolist()
        names, counts = np.unique(
            np.concatenate([run.outcome[~run.reused] for run in runs]).astype(str), return_counts=True
        )
        outcomes = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
        found.append(Spent(arm.name, passes, flops, seconds, sum(outcomes.values()), outcomes))
    return tuple(found)


def _headline(comparisons: Sequence[SearchComparison], design: SearchDesign) -> str:
    """Answer in one line whether any arm is better than the one that it is held against."""
    others = list(dict.fromkeys(c.against for c in comparisons))
    question = f"Does any arm beat {others[0] if len(others) == 1 else 'its opponent'} at equal budget?"
    judged = [c for c in comparisons if math.isfinite(c.p_value)]
    if not judged:
        paired = [c.note or ONE_PAIR for c in comparisons if c.n]
        why = paired[0] if paired else "no replicate has runs of two arms that are held against each other"
        if not any(arm.opponents for arm in design.arms):
            why = "no arm is held against another one"
        return f"{question} Not judged: {why}"
    metric = judged[0].metric
    margin = f"{design.equivalence_margin * (100 if is_share(metric) else 1):.4g}{unit_of(metric)}"
    meanings = {
        "better": f"better {metric} for",
        "equivalent": f"equivalent to within {margin} for",
        "worse": f"worse {metric} for",
        "undecided": "undecided for",
    }
    parts = []
    for label in LABELS:
        of_label = [c for c in judged if c.label == label]
        if of_label:
            is_short = label != "undecided" or len(of_label) > _MOST_ESTIMATES
            named = ", ".join(_named(c, is_one=len(others) == 1, is_short=is_short) for c in of_label)
            needed = ""
            if label == "undecided" and is_short:
                needed = needed_of([c for c in of_label if not _is_all_zero(c)])
            enough = (
                f" (there are {design.replicates} replicates; {needed} would be enough, depending on the comparison)"
            )
            parts.append(f"{meanings[label]} {named}{enough if needed else ''}")
    labels = {c.label for c in judged}
    if "better" in labels:
        answer = "Yes" if labels == {"better"} else "Sometimes"
    else:
        answer = "Not as far as shown" if "undecided" in labels else "No"
    return f"{question} {answer}: {'; '.join(parts)}"


def _named(comparison: SearchComparison, *, is_one: bool, is_short: bool) -> str:
    name = comparison.arm if is_one else f"{comparison.arm} (against {comparison.against})"
    needed = shown_needed(comparison.replicates_needed_low, comparison.replicates_needed_high)
    if needed and not is_short:
        return f"{name} (there are {comparison.n} replicates; {needed} would be enough)"
    return f"{name} (no difference at all)" if _is_all_zero(comparison) else name


def _sentences(
    comparisons: Sequence[SearchComparison],
    arms: Sequence[ArmOutcomes],
    controlled: Controlled,
    spent: Sequence[Spent],
    design: SearchDesign,
) -> tuple[str, ...]:
    """Say in words what was found: each comparison, speed, controls, what rungs stopped, and what failed."""
    interval = f"{100 * (1 - design.alpha):g}% interval"
    found = []
    for c in comparisons:
        subject = (
            f"{c.metric if '_' in c.metric else c.metric.capitalize()} of {c.arm} against {c.against} at equal budget"
        )
        if math.isfinite(c.p_value):
            difference = f"{signed_quality(c.difference, c.metric)}{unit_of(c.metric)}, {interval} {_range(c)}"
            found.append(f"{subject}: {c.label} ({difference})")
        else:
            found.append(f"{subject}: {NOT_JUDGED} ({c.note or ONE_PAIR})")
    found += controlled.sentences
    for c in comparisons:
        if math.isinf(c.cost_ratio):
            even = "even with" if c.arm_passes >= c.against_passes else "with"
            found.append(
                f"{c.arm} never comes to where {c.against} ended, {even} {_share_of(c)} of {c.against}'s passes"
            )
        elif not math.isnan(c.cost_ratio):
            ends = "unknown"
            if not math.isnan(c.cost_ratio_low):
                ends = f"{ratio_text(c.cost_ratio_low)} to {ratio_text(c.cost_ratio_high)}"
            found.append(
                f"{c.arm} comes to where {c.against} ended with {ratio_text(c.cost_ratio)} of {c.against}'s passes "
                f"({interval} {ends})"
            )
    found += controlled.matters
    for arm in arms:
        if arm.stopped:
            parts = [f"{100 * share:.0f}% at rung {rung}" for rung, share in sorted(arm.stopped.items())]
            found.append(f"Stopped early of {arm.arm}'s candidates: {', '.join(parts)}")
    opposed = {name for arm in design.arms for name in arm.opponents}
    if alone := [arm.name for arm in design.arms if not arm.opponents and arm.name not in opposed]:
        found.append(f"Judged against nobody: {', '.join(alone)}")
    failed = [
        f"{n:,} {outcome.replace('_', ' ')} ({s.arm})"
        for s in spent
        for outcome, n in s.outcomes.items()
        if outcome not in ("completed", "stopped", "pending")
    ]
    if failed:
        found.append(f"Not every candidate completed: {', '.join(failed)}")
    return tuple(found)


def _share_of(comparison: SearchComparison) -> str:
    return ratio_text(comparison.arm_passes / comparison.against_passes)


def _importance_metrics(found: Sequence[ArmImportance]) -> dict[str, float]:
    """Name the importance of each dimension by itself, and by the objective where there are several."""
    return {
        f"importance/{dimension}" if len(found) == 1 else f"importance/{one.objective}/{dimension}": share
        for one in found
        for dimension, share in (one.importances or {}).items()
    }


def _series(attainment: Attainment, design: SearchDesign) -> dict[str, dict[str, list[tuple[int, float]]]]:
    longest = max((curve.total_cost for curve in attainment.curves.values()), default=0.0)
    grid = dict.fromkeys(round(10 ** (k / 8)) for k in range(math.floor(8 * math.log10(max(1.0, longest))) + 1))
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for curve in mean_curves(attainment, design, costs=list(grid)):
        of_arm = attainment.of(curve.arm)
        starts = [float(one.cost[0]) for one in of_arm if len(one.cost)]
        if curve.n_replicates < design.replicates or not starts:
            continue
        settled = min(float(run.cost[: run.n_settled, 0].sum()) for run in attainment.runs if run.arm == curve.arm)
        ends = {"": curve.mean, "_low": curve.low, "_high": curve.high}
        found[curve.arm] = {
            f"{attainment.box.metric}_at_passes{name}": [
                (round(cost), value)
                for cost, value in zip(curve.cost.tolist(), values.tolist(), strict=True)
                if min(starts) <= cost <= settled
            ]
            for name, values in ends.items()
            if np.isfinite(values).all()
        }
    return found


def _range(comparison: SearchComparison) -> str:
    if not math.isfinite(comparison.low):
        return "unknown"
    ends = (comparison.low, comparison.high)
    return " to ".join(signed_quality(end, comparison.metric) for end in ends)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
