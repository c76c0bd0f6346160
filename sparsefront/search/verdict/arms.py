"""Arms against random search: what each replicate grants either side, and the family that is tested together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsefront.search.design import Design
from sparsefront.search.findings import Comparison
from sparsefront.search.methods.pruned import Pruned
from sparsefront.search.statistics import Floats, best_of_draws, paired_effects, paired_interval
from sparsefront.search.verdict.families import judged_effects, mean_of, missing_notes, seeded
from sparsefront.search.verdict.networks import Networks, pairs_of, without_rounding
from sparsefront.search.verdict.record import Record, levels_of


def arms_against_random(
    networks: Networks, record: Record, design: Design, *, arms: Sequence[str], metric: str
) -> list[Comparison]:
    """Compare arms with random search by one metric, at every level at which each exists, as one family."""
    pairs = [
        _pair(networks, record, design, arm=arm, level=level, metric=metric)
        for arm in arms
        for level in levels_of(record, design, arm)
    ]
    return _compare(pairs, design)


#: Of a sum of passes: a budget that is that of the draws but for it pays for no more of them.
_ROUNDING = 1e-9


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
    n_untimed: int  # replicates in which nobody knows when the target was reached
    n_lost_draws: int
    goes_on: bool  # the arm's networks begin with weights that were trained to the end before

    @property
    def n_telling(self) -> int:
        """Replicates whose difference tells something: it is not zero because nobody came to the target, or looked."""
        if self.goes_on and self.metric == "convergence":
            return 0  # of trained weights the first steps are no measure of speed
        return len(self.draws) - max(self.n_both_censored, self.n_untimed)


def _pair(networks: Networks, record: Record, design: Design, *, arm: str, level: float, metric: str) -> _Pairs:
    values = networks.steps_to_target if metric == "convergence" else networks.value
    found: list[tuple[float, ...]] = []
    n_short = n_both = n_arm = n_untimed = n_lost = 0
    own_level = 0.0 if arm in record.methods and record.methods[arm].is_dense else level
    for pair in pairs_of(networks, (arm, own_level), ("random", level)):
        kept, usable = pair.arm_kept, pair.against_kept
        n_lost += len(pair.against) - len(usable)
        if not pair.is_whole or np.isnan(values[usable]).any() or np.isnan(values[kept]).any():
            continue
        before = _beforehand(networks, record, design, arm, pair.replicate, level)
        cost = float(networks.passes[pair.arm].sum()) + before
        single_cost = float(networks.passes[usable].mean())
        # Nobody can train less than one network.
        granted = max(1.0, cost / single_cost) if single_cost > 0 else 1.0
        n_short += int(granted > len(usable) * (1 + _ROUNDING))
        granted = min(granted, float(len(usable)))
        arm_value = best_of_draws(networks.selector[kept], values[kept], draws=len(kept))
        random_value = best_of_draws(networks.selector[usable], values[usable], draws=granted)
        if metric == "convergence":
            arm_censored = not networks.reached[kept].any()
            n_arm += arm_censored
            n_both += arm_censored and not networks.reached[usable].any()
            n_untimed += not (networks.is_timed[kept].any() or networks.is_timed[usable].any())
        random_value, single = (
            without_rounding(arm_value, value) for value in (random_value, float(values[usable].mean()))
        )
        found.append((arm_value, random_value, single, cost, granted * single_cost, granted))
    method = record.methods.get(arm)
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
        n_untimed=n_untimed,
        n_lost_draws=n_lost,
        goes_on=isinstance(method, Pruned) and method.method.keeps_weights,
    )


def _beforehand(networks: Networks, record: Record, design: Design, arm: str, replicate: int, level: float) -> float:
    """Count the passes that an arm's network needed before its own training, as its method declares."""
    method = record.methods.get(arm)
    passes = 0.0
    if method is None:
        return passes
    if method.needs_scores:
        passes += record.scoring_passes.get((replicate, level), 0.0)
    if method.needs_parent:
        passes += float(networks.passes[networks.at("dense", replicate, 0.0)].sum())
        passes += record.pruning_passes.get((arm, replicate, level), 0.0)
        if method.goes_alone:  # a chain: every level on the way was trained and pruned
            for before in method.levels(design.sparsities):
                place = (arm, replicate, before)
                if before < level:
                    passes += float(networks.passes[networks.at(*place)].sum())
                    passes += record.passes_of.get(record.on_the_way.get(place, ""), 0.0)
                    passes += record.pruning_passes.get(place, 0.0)
    return passes


def _compare(family: Sequence[_Pairs], design: Design) -> list[Comparison]:
    """Test a family of comparisons together."""
    signs = [-1.0 if pairs.metric == "convergence" else 1.0 for pairs in family]
    differences = [sign * (pairs.arm_values - pairs.random_values) for sign, pairs in zip(signs, family, strict=True)]
    margins = [design.margin_of(pairs.metric) for pairs in family]
    names = [f"{pairs.metric}/{pairs.arm}/{pairs.level!r}" for pairs in family]
    # Where nothing converged, or nobody looked, the differences are zero by censoring: they prove nothing.
    effects = paired_effects(
        differences,
        margins=[
            None if 2 * pairs.n_telling < len(pairs.draws) else margin
            for pairs, margin in zip(family, margins, strict=True)
        ],
        rngs=[seeded(design, f"{name}/equal") for name in names],
        level=1.0 - design.alpha,
        # One that is left is one pair among zeros, as little to test as one pair alone.
        is_tested=[pairs.n_telling > 1 for pairs in family],
    )
    comparisons = []
    for i, (pairs, effect) in enumerate(
        zip(family, judged_effects(effects, differences, margins, alpha=design.alpha), strict=True)
    ):
        single = paired_interval(
            signs[i] * (pairs.arm_values - pairs.single_values),
            rng=seeded(design, f"{names[i]}/single"),
            level=1.0 - design.alpha,
        )
        comparisons.append(
            Comparison(
                **vars(effect),
                arm=pairs.arm,
                sparsity=pairs.level,
                metric=pairs.metric,
                n_missing=max(0, design.replicates - effect.n),
                arm_mean=mean_of(pairs.arm_values),
                random_mean=mean_of(pairs.random_values),
                arm_passes=mean_of(pairs.arm_passes),
                random_passes=mean_of(pairs.random_passes),
                random_draws_at_equal_budget=mean_of(pairs.draws),
                n_short=pairs.n_short,
                single_draw_difference=single.estimate if effect.n else math.nan,
                single_draw_low=single.low,
                single_draw_high=single.high,
                note=_note(pairs, design),
            )
        )
    return comparisons


def _note(pairs: _Pairs, design: Design) -> str:
    n = len(pairs.arm_values)
    notes = missing_notes(n, design)
    if pairs.n_lost_draws:
        notes.append(f"random draws without a result, left out: {pairs.n_lost_draws}")
    if pairs.n_short:
        notes.append(f"the budget pays for more random draws than were trained in {pairs.n_short} of {n} replicates")
    if n and pairs.goes_on and pairs.metric == "convergence":
        notes.append("its networks go on from weights that were trained to the end: their first steps are no speed")
    elif n and pairs.n_both_censored == n:
        notes.append("never reached: no network of either side came to the target")
    elif n and pairs.n_untimed == n:
        notes.append("validation was measured at the end alone: nobody knows when the target was reached")
    elif n > 1 and pairs.n_telling == 1:
        why = "no network of either side came to the target"
        if pairs.n_untimed > pairs.n_both_censored:
            why = "validation was measured at the end alone"
        notes.append(f"too few pairs: in {n - 1} of {n} replicates {why}")
    elif pairs.n_both_censored:
        notes.append(f"in {pairs.n_both_censored} of {n} replicates no network of either side came to the target")
    elif pairs.n_arm_censored:
        notes.append(f"the arm did not come to the target in {pairs.n_arm_censored} of {n} replicates")
    return "; ".join(notes)
