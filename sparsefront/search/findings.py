"""What a verdict consists of: comparisons with random search and with controls, correlations, and what was spent.

Not here: how they are found (``verdict``) and how they are put into words (``wording``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparsefront.search.statistics import PairedEffect

#: What a comparison can come to.
LABELS = ("better", "equivalent", "worse", "undecided")
#: What stands in place of a control where two controls are compared: see ``Verdict.layer_ratios``.
LAYER_RATIOS = "layer_ratios"
PREDICTORS = ("initial_loss", "scalefree_loss", "logit_std")

#: What stands first where an effect is written: who is compared, where, and what either side is worth.
_FIRST = (
    *("arm", "control", "against", "than", "sparsity", "metric", "expect", "n", "n_missing"),
    *("arm_mean", "random_mean", "control_mean", "against_mean"),
)


@dataclass(frozen=True)
class JudgedEffect(PairedEffect):
    """A paired effect, and what it comes to: its difference is positive where the arm is better."""

    margin: float  #: the smallest difference that matters
    label: str  #: better, equivalent, worse or undecided
    #: For a decision whatever the true difference is: from so many to so many, by the interval of the spread. The
    #: second is None where it is beyond 100,000, both where nothing can be estimated.
    replicates_needed_low: int | None
    replicates_needed_high: int | None


@dataclass(frozen=True)
class Comparison(JudgedEffect):
    """One arm against the random arm at one level, paired over replicates.

    Units: test accuracy as a fraction for ``metric="accuracy"``, dB for ``metric="psnr"``, optimiser steps for
    ``metric="convergence"``. Every difference is positive where the arm is better (more of the first two, or fewer
    steps). What can't be known is NaN or None. The family that p-values are adjusted over is all comparisons by this
    metric.
    """

    arm: str
    sparsity: float
    metric: str
    n_missing: int  #: replicates of the design without a pair
    arm_mean: float
    random_mean: float  #: of random search with the arm's budget
    arm_passes: float  #: mean budget of one network of the arm, everything it needed included
    random_passes: float  #: mean budget that the random arm was granted against it
    random_draws_at_equal_budget: float
    n_short: int  #: replicates whose budget would have paid for more random draws than were trained
    single_draw_difference: float  #: against the mean of single random draws
    single_draw_low: float
    single_draw_high: float
    note: str  #: what the reader must know about this comparison; empty if nothing


@dataclass(frozen=True)
class ControlComparison(JudgedEffect):
    """One arm against one of its controls at one level: single networks, paired over replicates.

    Of a search it is over all sparsities: in each replicate the mean over candidates that completed, as their controls
    did. Units are those of the study's metric (test accuracy as a fraction, or dB). Every difference is positive where
    the arm is better than its control. What can't be known is NaN or None. The family that p-values are adjusted over
    is all arms with controls, their controls and levels.
    """

    arm: str
    control: str  #: its kind; in the ledger it is the arm ``control_name(arm, control)`` (see ``Verdict.layer_ratios``)
    sparsity: float | None  #: None in a search
    metric: str
    n_missing: int  #: replicates of the design without a pair
    arm_mean: float
    control_mean: float
    note: str  #: what the reader must know about this comparison; empty if nothing


@dataclass(frozen=True)
class Correlation:
    """How well a score before training ranks networks by their validation loss after it, at one level."""

    sparsity: float
    predictor: str  #: initial_loss, scalefree_loss or logit_std
    n: int  #: candidates
    n_replicates: int
    spearman: float
    low: float
    high: float
    p_value: float
    p_adjusted: float  #: Holm over all levels of this predictor


@dataclass(frozen=True)
class Spent:
    """What an arm spent in all, and what became of its candidates; the arm 'pool' is the scoring of masks."""

    arm: str
    passes: float
    flops: float
    seconds: float
    n_candidates: int
    outcomes: Mapping[str, int]


@dataclass(frozen=True)
class Verdict:
    """Everything that was found, in numbers and in sentences."""

    comparisons: tuple[Comparison, ...]
    controls: tuple[ControlComparison, ...]
    #: Of arms with both controls, shuffled within layers (as the arm) against shuffled anywhere; a family of its own.
    layer_ratios: tuple[ControlComparison, ...]
    correlations: tuple[Correlation, ...]
    spent: tuple[Spent, ...]
    headline: str
    matters: tuple[str, ...]  #: of each arm with controls and each level, what its result is owed to
    sentences: tuple[str, ...]  #: everything, those included

    def to_dict(self) -> dict[str, object]:
        """Give the verdict as plain data for JSON; NaN and infinities become null."""
        values = dataclasses.asdict(self)
        for name in ("comparisons", "controls", "layer_ratios"):
            values[name] = [as_written(effect) for effect in values[name]]
        return plain_data(values)


def as_written(effect: Mapping[str, object]) -> dict[str, object]:
    """Put the values of an effect in the order in which they are written.

    >>> list(as_written({"n": 9, "difference": 0.01, "label": "better", "arm": "imp", "arm_mean": 0.9}))
    ['arm', 'n', 'arm_mean', 'difference', 'label']
    """
    return {name: effect[name] for name in (*_FIRST, *effect) if name in effect}


def plain_data(values: Mapping[str, object]) -> dict[str, object]:
    """Give values as JSON can hold them: tuples become lists, NaN and infinities null.

    >>> plain_data({"found": (1.0, float("nan"))})
    {'found': [1.0, None]}
    """
    return {str(name): _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return plain_data(value)
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
