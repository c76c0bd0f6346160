"""What families of comparisons share: how they are judged, seeds of their bootstraps, and notes on missing pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparsefront.search.design import Design, SearchDesign
from sparsefront.search.findings import JudgedEffect
from sparsefront.search.statistics import Floats, PairedEffect, replicates_needed
from sparsefront.spaces.seeds import generator


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


def judged_effects(
    effects: Sequence[PairedEffect], differences: Sequence[Floats], margins: Sequence[float], *, alpha: float
) -> list[JudgedEffect]:
    """Label each effect of a family, and estimate the replicates that would decide where it is undecided.

    Args:
        effects: of the family, tested together.
        differences: (n,) float of each.
        margins: of each, the smallest difference that matters.
        alpha: level of the tests and, as 1 - alpha, of the intervals.
    """
    n_tests = max(1, sum(not math.isnan(effect.p_value) for effect in effects))
    found = []
    for effect, values, margin in zip(effects, differences, margins, strict=True):
        label = label_of(effect.difference, effect.p_adjusted, effect.p_equivalence_adjusted, alpha=alpha)
        needed = None
        if label == "undecided" and not math.isnan(effect.p_value):
            needed = replicates_needed(values, margin=margin, alpha=alpha / n_tests, level=1.0 - alpha)
        low, high = needed or (None, None)
        found.append(
            JudgedEffect(
                **vars(effect), margin=margin, label=label, replicates_needed_low=low, replicates_needed_high=high
            )
        )
    return found


def seeded(design: Design | SearchDesign, what: str) -> np.random.Generator:
    """Seed a bootstrap by what it is for, so that it does not depend on what else is judged."""
    return generator(design.seed, f"verdict/{what}")


def missing_notes(n: int, design: Design | SearchDesign) -> list[str]:
    """Say how many replicates have no pair."""
    if n == 0:
        return ["no replicate has both networks"]
    if n < design.replicates:
        return [f"{design.replicates - n} of {design.replicates} replicates have no pair"]
    return []


def mean_of(values: Floats) -> float:
    """The mean of (n,) values; NaN without any."""
    return float(values.mean()) if len(values) else math.nan
