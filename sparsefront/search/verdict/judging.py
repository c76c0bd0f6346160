"""A whole verdict: every arm against random search and against its controls, scores, and what was spent."""

from __future__ import annotations

from sparsefront.search.design import Design
from sparsefront.search.findings import Verdict
from sparsefront.search.front import Batches
from sparsefront.search.verdict.arms import arms_against_random
from sparsefront.search.verdict.controls import arms_against_controls, controls_of, layer_ratios
from sparsefront.search.verdict.networks import networks_of
from sparsefront.search.verdict.record import read_record, spent_of
from sparsefront.search.verdict.scores import correlations_of
from sparsefront.search.wording import headline, sentences, what_matters


def judge(batches: Batches, design: Design) -> Verdict:
    """Judge every arm of a study against its random arm, and against its controls.

    Labels, per comparison: *equivalent* when two one-sided tests show a difference smaller than the margin (even if it
    is not zero); otherwise *better* or *worse* when the paired t-test finds a difference; otherwise *undecided*. Both
    tests are corrected by Holm over all arms and levels of the metric, each at ``design.alpha``; the intervals are of
    each comparison alone, at level 1 - ``design.alpha``. Levels at which an arm does not exist (of an N:M pattern: all
    but one) are left out. Arms against their controls are labelled alike, by the study's metric only: means over
    an arm's networks in a replicate, corrected over all arms, controls and levels. So are, in a family of their own,
    arms' masks shuffled within layers against shuffled anywhere.

    Accuracy is test accuracy; a diverged network counts as guessing, with 1 / ``design.n_classes``. Where images are
    restored, the test PSNR of the worst degradation takes its place, in dB, and that of the images as they were
    degraded the place of guessing. Convergence is the first measured step at which the same on validation examples
    reaches ``convergence_target_fraction`` of what the parent of the same replicate ended with, at most
    ``design.steps`` (a restricted mean), with the steps before the one that an arm rewinds to; arms whose networks go
    on from trained weights are not judged by it. It is left out in studies without a ``dense`` arm.

    Args:
        batches: a ledger's table or record batches, with at least ``VERDICT_COLUMNS``; read once, in any order.
        design: what was asked.

    Returns:
        The verdict. It is a function of the rows and the design alone: the bootstrap is seeded by ``design.seed``.

    Raises:
        ConfigError: if a column is missing.
    """
    record = read_record(batches, design)
    networks = networks_of(record, design)
    controls = controls_of(design)
    arms = [arm for arm in design.arms if arm != "random" and arm not in controls]
    has_parent = any(arm == "dense" for arm, _, _ in networks.cells)
    comparisons = [
        comparison
        for metric in (design.metric, *(("convergence",) if has_parent else ()))
        for comparison in arms_against_random(networks, record, design, arms=arms, metric=metric)
    ]
    controlled = arms_against_controls(networks, record, design)
    ratios = layer_ratios(networks, record, design)
    correlations = correlations_of(record, design)
    spent = spent_of(record, design)
    matters = what_matters(controlled, ratios, design)
    return Verdict(
        tuple(comparisons),
        controlled,
        ratios,
        correlations,
        spent,
        headline(comparisons, design),
        matters,
        sentences(comparisons, controlled, matters, correlations, spent, design),
    )
