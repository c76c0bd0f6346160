"""Arms against their controls: single network against single network, in a family of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsefront.search.design import Design, SearchDesign
from sparsefront.search.findings import LAYER_RATIOS, ControlComparison
from sparsefront.search.methods.controls import control_name
from sparsefront.search.statistics import Floats, paired_effects
from sparsefront.search.verdict.families import judged_effects, mean_of, missing_notes, seeded
from sparsefront.search.verdict.networks import Networks, pairs_of, without_rounding
from sparsefront.search.verdict.record import Record, levels_of


def controls_of(design: Design) -> dict[str, tuple[str, str]]:
    """Arms that are controls: the arm that each belongs to, and its kind."""
    return {
        control_name(arm, kind): (arm, kind)
        for arm, options in design.methods.items()
        for kind in options.get("controls", ())
    }


def arms_against_controls(networks: Networks, record: Record, design: Design) -> tuple[ControlComparison, ...]:
    """Compare arms with their controls by the study's metric, at every level at which each exists, as one family."""
    pairs = [
        _pair(networks, arm=arm, control=kind, level=level, compared=(arm, control_name(arm, kind)))
        for name, (arm, kind) in controls_of(design).items()
        for level in levels_of(record, design, name)
    ]
    return compare_controls(pairs, design)


def layer_ratios(networks: Networks, record: Record, design: Design) -> tuple[ControlComparison, ...]:
    """Compare random positions under an arm's layer ratios with random positions anywhere, as one family.

    An arm differs from its control `shuffled` in positions and in layer ratios, from `shuffled_layers` in positions
    alone. What separates the two controls is the ratios.
    """
    pairs = [
        _pair(networks, arm=arm, control=LAYER_RATIOS, level=level, compared=(within, anywhere))
        for arm, options in design.methods.items()
        if {"shuffled_layers", "shuffled"} <= set(options.get("controls", ()))
        for within, anywhere in [(control_name(arm, "shuffled_layers"), control_name(arm, "shuffled"))]
        for level in levels_of(record, design, anywhere)
    ]
    return compare_controls(pairs, design)


@dataclass(frozen=True)
class ControlPairs:
    """One arm against one of its controls at one level: (n,) values of each replicate that has both.

    ``level`` is None where all are taken together; ``notes`` is what the reader must know besides.
    """

    arm: str
    control: str
    level: float | None
    arm_values: Floats
    control_values: Floats
    notes: tuple[str, ...] = ()


def _pair(networks: Networks, *, arm: str, control: str, level: float, compared: tuple[str, str]) -> ControlPairs:
    """Pair the two that are compared, by their names in the ledger: in each replicate the mean over their networks."""
    mine_of, theirs_of = compared
    found: list[tuple[float, float]] = []
    n_nothing = 0
    for pair in pairs_of(networks, (mine_of, level), (theirs_of, level)):
        mine, theirs = pair.arm_kept, pair.against_kept
        if len(mine) and not len(theirs):
            n_nothing += bool(np.isinf(networks.selector[mine]).all())
        if pair.is_whole:
            value, control_value = float(networks.value[mine].mean()), float(networks.value[theirs].mean())
            found.append((value, without_rounding(value, control_value)))
    columns = np.array(found, dtype=np.float64).reshape(-1, 2).T
    nothing = (f"the arm diverged in {n_nothing} of them and left nothing to control",) if n_nothing else ()
    return ControlPairs(arm, control, level, columns[0], columns[1], nothing)


def compare_controls(family: Sequence[ControlPairs], design: Design | SearchDesign) -> tuple[ControlComparison, ...]:
    """Test arms against their controls by the study's metric, as one family."""
    differences = [pairs.arm_values - pairs.control_values for pairs in family]
    margins = [design.margin_of(design.metric)] * len(family)
    names = [f"{design.metric}/{control_name(pairs.arm, pairs.control)}/{pairs.level!r}/control" for pairs in family]
    rngs = [seeded(design, name) for name in names]
    effects = paired_effects(differences, margins=margins, rngs=rngs, level=1.0 - design.alpha)
    comparisons = []
    for pairs, effect in zip(family, judged_effects(effects, differences, margins, alpha=design.alpha), strict=True):
        notes = [*missing_notes(effect.n, design), *pairs.notes]
        comparisons.append(
            ControlComparison(
                **vars(effect),
                arm=pairs.arm,
                control=pairs.control,
                sparsity=pairs.level,
                metric=design.metric,
                n_missing=max(0, design.replicates - effect.n),
                arm_mean=mean_of(pairs.arm_values),
                control_mean=mean_of(pairs.control_values),
                note="; ".join(notes),
            )
        )
    return tuple(comparisons)
