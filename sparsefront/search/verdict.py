"""The verdict: does an arm beat random search at the same sparsity, the same budget and the same seeds?

What is compared, in each replicate and at each level:

* The *arm's* network is the one of its candidates with the lowest validation error (most arms have one candidate).
  It cost its training and whatever had to be done before: an arm that chooses among scored masks pays for all scores
  of that replicate and level, one that prunes trained weights for the training of its parent.
* *Random search* is granted the same budget. It draws as many masks as that pays for, trains them and keeps the one
  with the lowest validation error; its expected result follows exactly from the random draws that were trained
  (``statistics.best_of_draws``). With fewer draws in the ledger than the budget pays for, all of them, and a note.

Failures neither vanish nor break the pairing. A candidate that *diverged* is a result of its method: it counts with the
accuracy of guessing, as one that never converged, and is kept only where nothing else was drawn. One that ended for
another reason (failed, timeout, out_of_memory, lost, stopped at a rung) says nothing about accuracy: such a random
draw is left out, such a network of an arm leaves its replicate without a pair; both are counted and reported.

Controls are not compared with random search: each says what the arm that it belongs to owes its result to. They are
compared with that arm, as a family of their own, single network against single network: nobody is granted a budget.

Not here: the statistics themselves (``statistics``) and the front (``front``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import ConfigError
from sparsefront.search.design import Design
from sparsefront.search.findings import PREDICTORS, Comparison, ControlComparison, Correlation, Spent, Verdict
from sparsefront.search.front import Batches, chunks
from sparsefront.search.methods import Method, known_methods
from sparsefront.search.methods.controls import control_name
from sparsefront.search.metrics import METRICS
from sparsefront.search.statistics import (
    PairedEffect,
    best_of_draws,
    holm,
    paired_effects,
    paired_interval,
    rank_correlation,
    replicates_needed,
)
from sparsefront.search.wording import headline, sentences
from sparsefront.spaces.seeds import generator

Floats = npt.NDArray[np.float64]

#: The ledger's columns that a verdict reads.
VERDICT_COLUMNS = (
    *("candidate", "stage", "arm", "replicate", "target_sparsity", "outcome", "reused", *PREDICTORS),
    *("val_loss", "val_error", "test_error", "curve_step", "curve_val_error", "passes", "flops", "seconds"),
)


def judge(batches: Batches, design: Design) -> Verdict:
    """Judge every arm of a study against its random arm, and against its controls.

    Labels, per comparison: *equivalent* when two one-sided tests show a difference smaller than the margin (even if it
    is not zero); otherwise *better* or *worse* when the paired t-test finds a difference; otherwise *undecided*. Both
    tests are corrected by Holm over all arms and levels of the metric, each at ``design.alpha``; the intervals are of
    each comparison alone, at level 1 - ``design.alpha``. Levels at which an arm does not exist (of an N:M pattern: all
    but one) are left out. Arms against their controls are labelled alike, by the study's metric only: means over
    an arm's networks in a replicate, corrected over all arms, controls and levels.

    Accuracy is test accuracy; a diverged network counts as guessing, with 1 / ``design.n_classes``. Where images are
    restored, the test PSNR of the worst degradation takes its place, in dB, and that of the images as they were
    degraded the place of guessing. Convergence is the first measured step at which the same on validation examples
    reaches ``convergence_target_fraction`` of what the parent of the same replicate ended with, at most
    ``design.steps`` (a restricted mean); it is left out in studies without a ``dense`` arm.

    Args:
        batches: a ledger's table or record batches, with at least ``VERDICT_COLUMNS``; read once, in any order.
        design: what was asked.

    Returns:
        The verdict. It is a function of the rows and the design alone: the bootstrap is seeded by ``design.seed``.

    Raises:
        ConfigError: if a column is missing.
    """
    record = _read(batches, design)
    networks = _networks(record, design)
    comparisons: list[Comparison] = []
    metrics = [design.metric]
    if any(arm == "dense" for arm, _, _ in networks.cells):
        metrics.append("convergence")
    controls = {
        control_name(arm, kind): (arm, kind)
        for arm, options in design.methods.items()
        for kind in options.get("controls", ())
    }
    for metric in metrics:
        pairs = [
            _pair(networks, record, design, arm=arm, level=level, metric=metric)
            for arm in design.arms
            if arm != "random" and arm not in controls
            for level in _levels(record, design, arm)
        ]
        comparisons.extend(_compare(pairs, design))
    controlled = _compare_controls(
        [
            _pair_control(networks, design, arm=arm, control=kind, level=level)
            for name, (arm, kind) in controls.items()
            for level in _levels(record, design, name)
        ],
        design,
    )
    correlations = _correlations(record, design)
    spent = _spent(record, design)
    return Verdict(
        tuple(comparisons),
        controlled,
        correlations,
        spent,
        headline(comparisons, design),
        sentences(comparisons, controlled, correlations, spent, design),
    )


def label_of(difference: float, p_adjusted: float, p_equivalence_adjusted: float, *, alpha: float) -> str:
    """Name what two corrected tests came to; ``equivalent`` is never the mere absence of a difference.

    Args:
        difference: mean difference, positive where the arm is better.
        p_adjusted: of the test for a difference; NaN if it could not be done.
        p_equivalence_adjusted: of the test for equivalence; NaN if it could not be done.
        alpha: level of both.

    Returns:
        One of ``LABELS``.

    >>> label_of(0.002, 0.01, 0.001, alpha=0.05)
    'equivalent'
    >>> label_of(0.02, 0.01, 0.9, alpha=0.05), label_of(0.02, 0.2, 0.9, alpha=0.05)
    ('better', 'undecided')
    """
    if p_equivalence_adjusted <= alpha:
        return "equivalent"
    if p_adjusted <= alpha:
        return "better" if difference > 0 else "worse"
    return "undecided"


@dataclass
class _Record:
    """What a verdict needs of a ledger: trained rows, and sums over all others."""

    trained: pa.Table
    methods: Mapping[str, Method]
    scoring_passes: dict[tuple[int, float], float] = field(default_factory=dict)
    pruning_passes: dict[tuple[str, int, float], float] = field(default_factory=dict)
    on_the_way: dict[tuple[str, int, float], str] = field(default_factory=dict)  # network of a chain's level, by its id
    passes_of: dict[str, float] = field(default_factory=dict)  # of such a network's training, wherever recorded
    sums: dict[str, Floats] = field(default_factory=dict)  # by arm: passes, flops, seconds
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)  # by arm


@dataclass(frozen=True)
class _Networks:
    """Trained candidates as aligned arrays (n,), and the rows of each (arm, replicate, level)."""

    cells: Mapping[tuple[str, int, float], npt.NDArray[np.int64]]
    counted: npt.NDArray[np.bool_]  # completed or diverged: says something about its method
    selector: Floats  # validation error, inf where it diverged
    value: Floats  # test accuracy, or PSNR
    steps_to_target: Floats  # at most design.steps; NaN without a parent
    reached: npt.NDArray[np.bool_]  # whether it came to the target at all
    passes: Floats  # of its training, wherever that was recorded


@dataclass(frozen=True)
class _Pairs:
    """One arm against random search at one level: (n,) values of each replicate that has both."""

    arm: str
    level: float
    metric: str
    arm_values: Floats
    random_values: Floats
    single_values: Floats
    arm_passes: Floats
    random_passes: Floats
    draws: Floats
    n_short: int  # replicates whose budget pays for more draws than there are
    n_both_censored: int
    n_arm_censored: int
    n_lost_draws: int


@dataclass(frozen=True)
class _ControlPairs:
    """One arm against one of its controls at one level: (n,) values of each replicate that has both."""

    arm: str
    control: str
    level: float
    arm_values: Floats
    control_values: Floats
    n_nothing_to_control: int  # replicates in which the arm diverged, and left no mask


def _read(batches: Batches, design: Design) -> _Record:
    trained: list[pa.Table] = []
    record = _Record(pa.table({}), known_methods(design.methods or {arm: {} for arm in design.arms}))
    for chunk in chunks(batches):
        missing = [name for name in VERDICT_COLUMNS if name not in chunk.schema.names]
        if missing:
            raise ConfigError(
                f"column {missing[0]!r} is missing from this table: read it with the columns "
                "sparsefront.search.verdict.VERDICT_COLUMNS"
            )
        rows = chunk.select(VERDICT_COLUMNS)
        _add_up(record, rows)
        _add_levels(record, rows)
        trained.append(rows.filter(pc.equal(rows["stage"], "trained")))
    if trained:
        record.trained = pa.concat_tables(trained).combine_chunks()
    return record


def _add_up(record: _Record, rows: pa.Table) -> None:
    keys = ["stage", "arm", "replicate", "target_sparsity", "outcome"]
    costs = ["passes", "flops", "seconds"]
    grouped = rows.group_by(keys, use_threads=False).aggregate([("stage", "count"), *((cost, "sum") for cost in costs)])
    for row in grouped.to_pylist():
        arm, place = row["arm"], (row["replicate"], row["target_sparsity"])
        spent = np.array([row[f"{cost}_sum"] or 0.0 for cost in costs])
        record.sums[arm] = record.sums.get(arm, np.zeros(3)) + spent
        if row["stage"] == "pruned":
            record.pruning_passes[arm, *place] = record.pruning_passes.get((arm, *place), 0.0) + spent[0]
            continue
        if row["stage"] == "scored":
            record.scoring_passes[place] = record.scoring_passes.get(place, 0.0) + spent[0]
        counts = record.outcomes.setdefault(arm, {})
        counts[row["outcome"]] = counts.get(row["outcome"], 0) + row["stage_count"]


def _add_levels(record: _Record, rows: pa.Table) -> None:
    """Note networks on the way to a level; one that several arms share has its cost with the first."""
    levels = rows.filter(pc.equal(rows["stage"], "level"))
    for row in levels.select(["arm", "replicate", "target_sparsity", "candidate", "passes"]).to_pylist():
        candidate = row["candidate"]
        record.on_the_way[row["arm"], row["replicate"], row["target_sparsity"]] = candidate
        record.passes_of[candidate] = max(record.passes_of.get(candidate, 0.0), row["passes"] or 0.0)


def _networks(record: _Record, design: Design) -> _Networks:
    rows = record.trained
    if rows.num_rows == 0:
        nothing, never = np.zeros(0), np.zeros(0, dtype=np.bool_)
        return _Networks({}, never, nothing, nothing, nothing, never, nothing)
    places = zip(
        rows["arm"].to_pylist(), rows["replicate"].to_pylist(), rows["target_sparsity"].to_pylist(), strict=True
    )
    gathered: dict[tuple[str, int, float], list[int]] = {}
    for i, place in enumerate(places):
        gathered.setdefault(place, []).append(i)
    cells = {place: np.array(indices, dtype=np.int64) for place, indices in gathered.items()}
    val_error, test_error = _numbers(rows, "val_error"), _numbers(rows, "test_error")
    completed = _equals(rows, "completed") & np.isfinite(val_error) & np.isfinite(test_error)
    diverged = _equals(rows, "diverged")
    # A candidate in several slots was trained once: each slot's arm would have had to pay for it alone.
    codes = np.asarray(rows["candidate"].combine_chunks().dictionary_encode().indices).astype(np.int64)
    cost = np.zeros(codes.max() + 1)
    np.maximum.at(cost, codes, np.nan_to_num(_numbers(rows, "passes")))
    steps_to_target, reached = _steps_to_target(rows, cells, design, val_error=val_error, completed=completed)
    return _Networks(
        cells=cells,
        counted=completed | diverged,
        selector=np.where(completed, val_error, np.inf),
        value=np.where(completed, METRICS[design.metric].from_error(test_error), design.value_of_guessing),
        steps_to_target=steps_to_target,
        reached=reached,
        passes=cost[codes],
    )


def _steps_to_target(
    rows: pa.Table,
    cells: Mapping[tuple[str, int, float], npt.NDArray[np.int64]],
    design: Design,
    *,
    val_error: Floats,
    completed: npt.NDArray[np.bool_],
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Find the first step of each curve that is accurate enough (``design.steps`` if none is, NaN without a parent)."""
    metric = METRICS[design.metric]
    replicate = np.asarray(rows["replicate"])
    allowed_error = np.full(rows.num_rows, np.nan)
    for (arm, number, _), indices in cells.items():
        if arm == "dense" and completed[indices].any():
            value = metric.from_error(val_error[indices][completed[indices]].min())
            allowed_error[replicate == number] = metric.error_at(design.convergence_target_fraction * value)
    # Curves are stored in single precision, final errors in double: 1e-6 is a rounding, not an example.
    first = np.full(rows.num_rows, np.inf)
    of_row = np.asarray(pc.list_parent_indices(rows["curve_val_error"])).astype(np.int64)
    errors = np.asarray(pc.list_flatten(rows["curve_val_error"]), dtype=np.float64)
    steps = np.asarray(pc.list_flatten(rows["curve_step"]), dtype=np.float64)
    if len(steps) != len(errors):
        raise ConfigError(
            f"curve_step and curve_val_error hold {len(steps)} and {len(errors)} points: must be of equal length"
        )
    accurate = errors <= allowed_error[of_row] + 1e-6
    np.minimum.at(first, of_row[accurate], steps[accurate])
    # What trains longer (a retrain_fraction above 1) came to the target only if the others had the time for it.
    reached = completed & (first <= design.steps)
    return np.where(np.isnan(allowed_error), np.nan, np.where(reached, first, float(design.steps))), reached


def _levels(record: _Record, design: Design, arm: str) -> tuple[float, ...]:
    """The study's levels at which an arm exists."""
    method = record.methods.get(arm)
    if method is None or method.is_dense:
        return design.sparsities
    own = set(method.levels(design.sparsities))
    return tuple(level for level in design.sparsities if level in own)


def _pair(networks: _Networks, record: _Record, design: Design, *, arm: str, level: float, metric: str) -> _Pairs:
    values = networks.steps_to_target if metric == "convergence" else networks.value
    found: list[tuple[float, ...]] = []
    n_short = n_both = n_arm = n_lost = 0
    own_level = 0.0 if arm in record.methods and record.methods[arm].is_dense else level
    for replicate in sorted({number for _, number, _ in networks.cells}):
        draws = networks.cells.get(("random", replicate, level), np.zeros(0, dtype=np.int64))
        usable = draws[networks.counted[draws]]
        n_lost += len(draws) - len(usable)
        mine = networks.cells.get((arm, replicate, own_level), np.zeros(0, dtype=np.int64))
        kept = mine[networks.counted[mine]]
        if len(usable) == 0 or len(kept) == 0 or np.isnan(values[usable]).any() or np.isnan(values[kept]).any():
            continue
        cost = float(networks.passes[mine].sum()) + _beforehand(networks, record, design, arm, replicate, level)
        single_cost = float(networks.passes[usable].mean())
        # Nobody can train less than one network.
        granted = max(1.0, cost / single_cost) if single_cost > 0 else 1.0
        n_short += granted > len(usable)
        granted = min(granted, float(len(usable)))
        arm_value = best_of_draws(networks.selector[kept], values[kept], draws=len(kept))
        random_value = best_of_draws(networks.selector[usable], values[usable], draws=granted)
        if metric == "convergence":
            arm_censored = not networks.reached[kept].any()
            n_arm += arm_censored
            n_both += arm_censored and not networks.reached[usable].any()
        single = float(values[usable].mean())
        # The mean of equal values need not equal them to the last bit; rounding is no difference.
        random_value, single = (
            arm_value if math.isclose(arm_value, v, rel_tol=1e-12) else v for v in (random_value, single)
        )
        found.append((arm_value, random_value, single, cost, granted * single_cost, granted))
    columns = np.array(found, dtype=np.float64).reshape(-1, 6).T
    return _Pairs(
        arm=arm,
        level=level,
        metric=metric,
        arm_values=columns[0],
        random_values=columns[1],
        single_values=columns[2],
        arm_passes=columns[3],
        random_passes=columns[4],
        draws=columns[5],
        n_short=n_short,
        n_both_censored=n_both,
        n_arm_censored=n_arm,
        n_lost_draws=n_lost,
    )


def _beforehand(networks: _Networks, record: _Record, design: Design, arm: str, replicate: int, level: float) -> float:
    """Count the passes that an arm's network needed before its own training, as its method declares."""
    method = record.methods.get(arm)
    passes = 0.0
    if method is None:
        return passes
    if method.needs_scores:
        passes += record.scoring_passes.get((replicate, level), 0.0)
    if method.needs_parent:
        parent = networks.cells.get(("dense", replicate, 0.0), np.zeros(0, dtype=np.int64))
        passes += float(networks.passes[parent].sum())
        passes += record.pruning_passes.get((arm, replicate, level), 0.0)
        if method.goes_alone:  # a chain: every level on the way was trained and pruned
            for before in method.levels(design.sparsities):
                place = (arm, replicate, before)
                if before < level:
                    networks_there = networks.cells.get(place, np.zeros(0, dtype=np.int64))
                    passes += float(networks.passes[networks_there].sum())
                    passes += record.passes_of.get(record.on_the_way.get(place, ""), 0.0)
                    passes += record.pruning_passes.get(place, 0.0)
    return passes


def _compare(family: Sequence[_Pairs], design: Design) -> list[Comparison]:
    """Test a family of comparisons together."""
    signs = [-1.0 if pairs.metric == "convergence" else 1.0 for pairs in family]
    differences = [sign * (pairs.arm_values - pairs.random_values) for sign, pairs in zip(signs, family, strict=True)]
    margins = [_margin(pairs.metric, design) for pairs in family]
    names = [f"{pairs.metric}/{pairs.arm}/{pairs.level!r}" for pairs in family]
    # Where nothing converged the differences are zero by censoring: they prove neither this nor that.
    effects = paired_effects(
        differences,
        margins=[
            None if 2 * pairs.n_both_censored > len(pairs.draws) else margin
            for pairs, margin in zip(family, margins, strict=True)
        ],
        rngs=[_generator(design, f"{name}/equal") for name in names],
        level=1.0 - design.alpha,
        is_tested=[pairs.n_both_censored < len(pairs.draws) for pairs in family],
    )
    labels = _labels(effects, differences, margins, design)
    comparisons = []
    for i, (pairs, effect) in enumerate(zip(family, effects, strict=True)):
        single = paired_interval(
            signs[i] * (pairs.arm_values - pairs.single_values),
            rng=_generator(design, f"{names[i]}/single"),
            level=1.0 - design.alpha,
        )
        comparisons.append(
            Comparison(
                arm=pairs.arm,
                sparsity=pairs.level,
                metric=pairs.metric,
                n=effect.n,
                n_missing=max(0, design.replicates - effect.n),
                arm_mean=_mean(pairs.arm_values),
                random_mean=_mean(pairs.random_values),
                difference=effect.difference,
                low=effect.low,
                high=effect.high,
                p_value=effect.p_value,
                p_adjusted=effect.p_adjusted,
                p_equivalence=effect.p_equivalence,
                p_equivalence_adjusted=effect.p_equivalence_adjusted,
                margin=margins[i],
                label=labels[i][0],
                replicates_needed=labels[i][1],
                arm_passes=_mean(pairs.arm_passes),
                random_passes=_mean(pairs.random_passes),
                random_draws_at_equal_budget=_mean(pairs.draws),
                single_draw_difference=single.estimate if effect.n else math.nan,
                single_draw_low=single.low,
                single_draw_high=single.high,
                note=_note(pairs, design),
            )
        )
    return comparisons


def _labels(
    effects: Sequence[PairedEffect], differences: Sequence[Floats], margins: Sequence[float], design: Design
) -> list[tuple[str, int | None]]:
    """The label of each effect of a family, and the replicates that would decide where it is undecided."""
    n_tests = max(1, sum(not math.isnan(effect.p_value) for effect in effects))
    found: list[tuple[str, int | None]] = []
    for effect, values, margin in zip(effects, differences, margins, strict=True):
        label = label_of(effect.difference, effect.p_adjusted, effect.p_equivalence_adjusted, alpha=design.alpha)
        is_open = label == "undecided" and not math.isnan(effect.p_value)
        needed = replicates_needed(values, alpha=design.alpha / n_tests, margin=margin) if is_open else None
        found.append((label, needed))
    return found


def _pair_control(networks: _Networks, design: Design, *, arm: str, control: str, level: float) -> _ControlPairs:
    """Pair an arm with a control: in each replicate the mean over the networks of either."""
    found: list[tuple[float, float]] = []
    n_nothing = 0
    for replicate in range(design.replicates):
        mine, theirs = (
            indices[networks.counted[indices]]
            for indices in (
                networks.cells.get((name, replicate, level), np.zeros(0, dtype=np.int64))
                for name in (arm, control_name(arm, control))
            )
        )
        if len(mine) and not len(theirs):
            n_nothing += bool(np.isinf(networks.selector[mine]).all())
        if len(mine) and len(theirs):
            value, control_value = float(networks.value[mine].mean()), float(networks.value[theirs].mean())
            # The mean of equal values need not equal them to the last bit; rounding is no difference.
            found.append((value, value if math.isclose(value, control_value, rel_tol=1e-12) else control_value))
    columns = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return _ControlPairs(arm, control, level, columns[0], columns[1], n_nothing)


def _compare_controls(family: Sequence[_ControlPairs], design: Design) -> tuple[ControlComparison, ...]:
    """Test arms against their controls, as one family."""
    differences = [pairs.arm_values - pairs.control_values for pairs in family]
    margins = [design.equivalence_margin] * len(family)
    names = [f"{design.metric}/{control_name(pairs.arm, pairs.control)}/{pairs.level!r}/control" for pairs in family]
    rngs = [_generator(design, name) for name in names]
    effects = paired_effects(differences, margins=margins, rngs=rngs, level=1.0 - design.alpha)
    labels = _labels(effects, differences, margins, design)
    comparisons = []
    for pairs, effect, (label, needed) in zip(family, effects, labels, strict=True):
        notes = _missing_notes(effect.n, design)
        if pairs.n_nothing_to_control:
            notes.append(f"the arm diverged in {pairs.n_nothing_to_control} of them and left nothing to control")
        comparisons.append(
            ControlComparison(
                arm=pairs.arm,
                control=pairs.control,
                sparsity=pairs.level,
                metric=design.metric,
                n=effect.n,
                n_missing=max(0, design.replicates - effect.n),
                arm_mean=_mean(pairs.arm_values),
                control_mean=_mean(pairs.control_values),
                difference=effect.difference,
                low=effect.low,
                high=effect.high,
                p_value=effect.p_value,
                p_adjusted=effect.p_adjusted,
                p_equivalence=effect.p_equivalence,
                p_equivalence_adjusted=effect.p_equivalence_adjusted,
                margin=design.equivalence_margin,
                label=label,
                replicates_needed=needed,
                note="; ".join(notes),
            )
        )
    return tuple(comparisons)


def _margin(metric: str, design: Design) -> float:
    return design.convergence_margin_fraction * design.steps if metric == "convergence" else design.equivalence_margin


def _generator(design: Design, what: str) -> np.random.Generator:
    """Seed a bootstrap by what it is for, so that it does not depend on what else is judged."""
    return generator(design.seed, f"verdict/{what}")


def _missing_notes(n: int, design: Design) -> list[str]:
    """Say how many replicates have no pair."""
    if n == 0:
        return ["no replicate has both networks"]
    if n < design.replicates:
        return [f"{design.replicates - n} of {design.replicates} replicates have no pair"]
    return []


def _note(pairs: _Pairs, design: Design) -> str:
    n = len(pairs.arm_values)
    notes = _missing_notes(n, design)
    if pairs.n_lost_draws:
        notes.append(f"random draws without a result, left out: {pairs.n_lost_draws}")
    if pairs.n_short:
        notes.append(f"the budget pays for more random draws than were trained in {pairs.n_short} of {n} replicates")
    if n and pairs.n_both_censored == n:
        notes.append("never reached: no network of either side came to the target")
    elif pairs.n_both_censored:
        notes.append(f"in {pairs.n_both_censored} of {n} replicates no network of either side came to the target")
    elif pairs.n_arm_censored:
        notes.append(f"the arm did not come to the target in {pairs.n_arm_censored} of {n} replicates")
    return "; ".join(notes)


def _correlations(record: _Record, design: Design) -> tuple[Correlation, ...]:
    """Correlate scores with final validation loss over the masks that were trained, ranked within replicates.

    Takes the random masks and those of arms that choose by a score, where they completed, each once. The chosen
    extremes widen the range of scores, which makes a correlation easier to see, not harder.
    """
    rows = record.trained
    if rows.num_rows == 0:
        return ()
    arms = rows["arm"].to_pylist()
    of_pool = np.array(
        [arm == "random" or arm == "worst" or arm.startswith("searched") for arm in arms], dtype=np.bool_
    )
    rows = rows.filter(pa.array(of_pool & _equals(rows, "completed")))
    candidates = rows["candidate"].to_pylist()
    level, replicate, val_loss = (
        _numbers(rows, "target_sparsity"),
        _numbers(rows, "replicate"),
        _numbers(rows, "val_loss"),
    )
    first_rows: dict[tuple[Any, ...], int] = {}
    for i, key in enumerate(zip(candidates, replicate.tolist(), level.tolist(), strict=True)):
        first_rows.setdefault(key, i)
    once = np.zeros(len(candidates), dtype=np.bool_)
    once[list(first_rows.values())] = True
    found: list[Correlation] = []
    for predictor in PREDICTORS:
        scores = _numbers(rows, predictor)
        ranked = []
        for sparsity in design.sparsities:
            inside = once & (level == sparsity)
            rng = generator(design.seed, f"verdict/correlation/{predictor}/{sparsity!r}")
            ranked.append(
                rank_correlation(scores[inside], val_loss[inside], replicate[inside], rng=rng, level=1.0 - design.alpha)
            )
        adjusted = holm([r.p_value for r in ranked])
        found.extend(
            Correlation(sparsity, predictor, r.n, r.n_strata, r.estimate, r.low, r.high, r.p_value, float(p))
            for sparsity, r, p in zip(design.sparsities, ranked, adjusted, strict=True)
            if r.n
        )
    return tuple(found)


def _spent(record: _Record, design: Design) -> tuple[Spent, ...]:
    order = ["pool", *design.arms]
    arms = sorted(record.sums, key=lambda arm: (order.index(arm) if arm in order else len(order), arm))
    found = []
    for arm in arms:
        passes, flops, seconds = record.sums[arm].tolist()
        outcomes = dict(sorted(record.outcomes.get(arm, {}).items()))
        found.append(Spent(arm, passes, flops, seconds, n_candidates=sum(outcomes.values()), outcomes=outcomes))
    return tuple(found)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _numbers(rows: pa.Table, column: str) -> Floats:
    filled = pc.fill_null(pc.cast(rows[column], pa.float64()), math.nan)
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.float64)


def _equals(rows: pa.Table, outcome: str) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(pc.equal(rows["outcome"], outcome), False), dtype=np.bool_)
