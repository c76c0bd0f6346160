"""Claims of papers, judged: is an arm's network better than another's, as somebody wrote that it is?

A claim is about single networks, as papers are: each test compares the mean over an arm's networks with the mean over
another's, replicate by replicate. Unlike a verdict (``sparsefront.search.verdict``) it grants nobody a budget.

Not here: words and tables (``sparsefront.search.claim_words``), and the statistics themselves (``statistics``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import ConfigError, did_you_mean, nearest
from sparsefront.search.columns import numbers_in
from sparsefront.search.design import Design
from sparsefront.search.methods import known_methods
from sparsefront.search.methods.pruned import Pruned
from sparsefront.search.metrics import METRICS
from sparsefront.search.schema import KEY
from sparsefront.search.statistics import Floats, PairedEffect, paired_effects
from sparsefront.search.verdict.families import mean_of
from sparsefront.search.verdict.networks import Integers, Networks, networks_of
from sparsefront.search.verdict.record import VERDICT_COLUMNS, read_record
from sparsefront.spaces.seeds import generator

Expectation = Literal["higher", "lower", "equivalent"]

#: What a test of a claim, and the claim, can come to.
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"


#: The metric that says how fast networks come to the verdict's target, in steps; lower is faster.
_CONVERGENCE = "convergence"


def claim_metrics(design: Design, schema: pa.Schema) -> tuple[str, ...]:
    """What networks may be compared by: their task's metric, steps to converge, or a column of the study's ledger."""
    types = pa.types
    numeric = [
        field.name
        for field in schema
        if field.name not in KEY
        and (types.is_floating(field.type) or types.is_integer(field.type) or types.is_boolean(field.type))
    ]
    return (design.metric, _CONVERGENCE, *numeric)


@dataclass(frozen=True)
class ClaimTest:
    """One test of a claim: the difference between two arms, and what is expected of it.

    Attributes:
        arm: whose networks.
        against: with whose networks they are compared.
        sparsity: at which of the study's; all are tested together. Empty: at each of them.
        metric: a name of `claim_metrics`.
        expect: what the arm's value is: 'higher', 'lower' or 'equivalent'.
        margin: the largest difference that does not matter; None for the study's (of columns of the ledger:
            equivalence is not tested).
        than: name of another study whose difference between these arms is subtracted from this one's; empty for none.
    """

    arm: str
    expect: Expectation
    against: str = "random"
    sparsity: tuple[float, ...] = ()
    metric: str = "accuracy"
    margin: float | None = None
    than: str = ""


@dataclass(frozen=True)
class Claim:
    """What a paper claims and at what scale, what is tested here and at what scale."""

    claim: str
    paper: str
    original_scale: str
    our_scale: str
    tests: tuple[ClaimTest, ...]

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Claim:
        """A claim from plain data, as JSON gives it back.

        Raises:
            TypeError: if it is none.
            KeyError: if it is none.
        """
        tests = tuple(ClaimTest(**{**test, "sparsity": tuple(test["sparsity"])}) for test in data["tests"])
        return cls(**{**data, "tests": tests})


@dataclass(frozen=True)
class Evidence:
    """A study's design and its rows, with at least `claim_columns` as far as its ledger has them."""

    design: Design
    rows: pa.Table

    @cached_property
    def networks(self) -> Networks:
        """All of them, as a verdict sees them."""
        return networks_of(read_record(self.rows.to_batches(), self.design), self.design)


@dataclass(frozen=True)
class ClaimEffect(PairedEffect):
    """What one test found at one sparsity, in the unit of its metric.

    Differences are arm minus against; with `than`, less the difference there. The family that p-values are adjusted
    over is all tests of the claim; without a margin those of equivalence are NaN.
    """

    arm: str
    against: str
    than: str
    sparsity: float
    metric: str
    expect: Expectation
    n_missing: int  #: replicates of the design without a pair
    arm_mean: float
    against_mean: float
    margin: float | None
    verdict: str  #: reproduced, not reproduced or inconclusive
    note: str


@dataclass(frozen=True)
class ClaimFinding:
    """What a study found about its claim."""

    study: str
    claim: Claim
    tests: tuple[ClaimEffect, ...]
    verdict: str  #: reproduced if all tests are, not reproduced if any is not, else inconclusive
    alpha: float
    n_trained: int  #: networks recorded
    n_planned: int  #: networks of the whole study

    @property
    def is_finished(self) -> bool:
        """Whether more rows can still change it."""
        return self.n_trained >= self.n_planned


def claim_columns(claim: Claim) -> list[str]:
    """Columns of the ledger that judging a claim reads."""
    of_metrics = [test.metric for test in claim.tests if test.metric not in METRICS]
    if any(test.metric == _CONVERGENCE for test in claim.tests):
        of_metrics += VERDICT_COLUMNS
    return list(dict.fromkeys(["stage", "arm", "replicate", "target_sparsity", "outcome", "test_error", *of_metrics]))


def judge_claim(
    claim: Claim,
    evidence: Evidence,
    others: Mapping[str, Evidence] | None = None,
    *,
    n_trained: int = 0,
    n_planned: int = 0,
) -> ClaimFinding:
    """Judge a claim by the study that tests it.

    In each replicate an arm is worth the mean over its networks there. A diverged network counts as guessing by the
    metric of its task, and by convergence like one that never came to the target: with all steps of a training; by any
    other it has no value, like one that failed. Replicates without a value of both arms are left out, and counted; by
    convergence those, too, in which nobody came to the target. The tests of a claim, one at each sparsity, are
    corrected together by Holm.

    Args:
        claim: the claim.
        evidence: the study.
        others: studies that tests name with `than`, by name; where one is missing, the test is inconclusive.
        n_trained: networks recorded, to be shown.
        n_planned: networks of the whole study, to be shown.

    Returns:
        The finding: a function of rows, designs and claim alone, for the bootstrap is seeded by the study's seed.

    Raises:
        ConfigError: a test of something that a study does not have.
    """
    design = evidence.design
    placed = [
        (test, sparsity)
        for number, test in enumerate(claim.tests)
        for sparsity in checked_test(test, design, evidence.rows.schema, where=f"claim.tests.{number}")
    ]
    pairs = [_pairs(test, sparsity, evidence, others or {}) for test, sparsity in placed]
    margins = [_margin(test, design) for test, _ in placed]
    effects = paired_effects(
        [p.differences for p in pairs],
        margins=margins,
        rngs=[
            generator(design.seed, f"claim/{test.metric}/{test.arm}/{test.against}/{test.than}/{sparsity!r}")
            for test, sparsity in placed
        ],
        level=1.0 - design.alpha,
    )
    findings = []
    for i, (test, sparsity) in enumerate(placed):
        effect = effects[i]
        findings.append(
            ClaimEffect(
                **vars(effect),
                arm=test.arm,
                against=test.against,
                than=test.than,
                sparsity=sparsity,
                metric=test.metric,
                expect=test.expect,
                n_missing=max(0, design.replicates - effect.n),
                arm_mean=mean_of(pairs[i].arm_values),
                against_mean=mean_of(pairs[i].against_values),
                margin=margins[i],
                verdict=verdict_of(
                    test.expect,
                    effect.difference,
                    effect.p_adjusted,
                    effect.p_equivalence_adjusted,
                    margin=margins[i],
                    alpha=design.alpha,
                ),
                note=pairs[i].note,
            )
        )
    verdict = whole_verdict([finding.verdict for finding in findings])
    return ClaimFinding(design.name, claim, tuple(findings), verdict, design.alpha, n_trained, n_planned)


def verdict_of(
    expect: Expectation,
    difference: float,
    p_adjusted: float,
    p_equivalence_adjusted: float,
    *,
    margin: float | None,
    alpha: float,
) -> str:
    """Name what one test came to.

    * Expected higher or lower: reproduced if the difference is significant and has that sign; not reproduced if it is
      significant and has the other one, or if the arms are equivalent.
    * Expected equivalent: reproduced if equivalence is shown; not reproduced if the difference is significant and not
      within the margin.

    All else is inconclusive.

    Args:
        expect: what the arm's value should be.
        difference: mean difference, arm minus against.
        p_adjusted: of the test for a difference; NaN if it could not be done.
        p_equivalence_adjusted: of the test for equivalence; NaN if it could not be done.
        margin: the largest difference that does not matter.
        alpha: level of both tests.

    >>> verdict_of("higher", 0.03, 0.001, 0.9, margin=0.01, alpha=0.05)
    'reproduced'
    >>> verdict_of("lower", 0.03, 0.001, 0.9, margin=0.01, alpha=0.05)
    'not reproduced'
    >>> verdict_of("equivalent", 0.03, 0.2, 0.9, margin=0.01, alpha=0.05)
    'inconclusive'
    """
    is_different, is_equivalent = p_adjusted <= alpha, p_equivalence_adjusted <= alpha
    if expect == "equivalent":
        if is_equivalent:
            return REPRODUCED
        return NOT_REPRODUCED if is_different and margin is not None and abs(difference) >= margin else INCONCLUSIVE
    if is_different and (difference > 0) == (expect == "higher"):
        return REPRODUCED
    return NOT_REPRODUCED if is_different or is_equivalent else INCONCLUSIVE


def whole_verdict(verdicts: Sequence[str]) -> str:
    """The verdict on a claim: reproduced if all of its tests are, not reproduced if any is not.

    >>> whole_verdict(["reproduced", "inconclusive"]), whole_verdict(["inconclusive", "not reproduced"])
    ('inconclusive', 'not reproduced')
    """
    if NOT_REPRODUCED in verdicts:
        return NOT_REPRODUCED
    return REPRODUCED if verdicts and all(verdict == REPRODUCED for verdict in verdicts) else INCONCLUSIVE


def checked_test(test: ClaimTest, design: Design, schema: pa.Schema, *, where: str) -> tuple[float, ...]:
    """The sparsities of a test, once it is sure that the study can answer it.

    Args:
        test: the test.
        design: the study.
        schema: columns of its ledger.
        where: what messages begin with.

    Raises:
        ConfigError: one line with key, value and what is accepted.
    """
    for key, arm in (("arm", test.arm), ("against", test.against)):
        if arm not in design.arms:
            raise ConfigError(f"{where}.{key}={arm!r}: {nearest(arm, design.arms)}")
    if test.arm == test.against:
        raise ConfigError(f"{where}.against={test.against!r}: must be another arm than the one that is tested")
    for sparsity in test.sparsity:
        if sparsity not in design.sparsities:
            accepted = ", ".join(f"{s:g}" for s in design.sparsities)
            raise ConfigError(f"{where}.sparsity={sparsity!r}: must be one of the study's sparsities ({accepted})")
    if len(set(test.sparsity)) != len(test.sparsity):
        raise ConfigError(f"{where}.sparsity={list(test.sparsity)}: every value may appear once")
    metrics = claim_metrics(design, schema)
    if test.metric not in metrics:
        raise ConfigError(
            f"{where}.metric={test.metric!r}: must be {metrics[0]!r}, {_CONVERGENCE!r} or a column of numbers in the "
            f"study's ledger"
            f"{did_you_mean(test.metric, metrics)}"
        )
    if test.metric == _CONVERGENCE and "dense" not in design.arms:
        raise ConfigError(
            f"{where}.metric={test.metric!r}: needs the arm 'dense', whose accuracy is what the others come to; add it"
        )
    if test.expect == "equivalent" and _margin(test, design) is None:
        raise ConfigError(
            f"{where}.margin: is missing, and the study's is one of {metrics[0]}; say which difference in "
            f"{test.metric} does not matter"
        )
    if test.than == design.name:
        raise ConfigError(f"{where}.than={test.than!r}: must be the name of another study")
    return test.sparsity or design.sparsities


@dataclass(frozen=True)
class _Pairs:
    """(n,) values of each replicate that has both arms, and of their difference what is tested."""

    differences: Floats
    arm_values: Floats
    against_values: Floats
    note: str


def _pairs(test: ClaimTest, sparsity: float, evidence: Evidence, others: Mapping[str, Evidence]) -> _Pairs:
    design = evidence.design
    arm = _values(evidence, test.arm, sparsity, test.metric)
    against = _values(evidence, test.against, sparsity, test.metric)
    subtracted: Mapping[int, float] = dict.fromkeys(arm, 0.0)
    notes = []
    if test.than:
        subtracted = {}
        if test.than in others:
            subtracted = _differences(test, sparsity, others[test.than], design)
        else:
            notes.append(f"study {test.than!r} is not among those given")
    replicates = sorted(arm.keys() & against.keys() & subtracted.keys())
    if test.metric == _CONVERGENCE:
        telling = [r for r in replicates if _came_to_target(test, sparsity, evidence, r)]
        if len(telling) < len(replicates):
            notes.append(
                f"nobody came to the target in {len(replicates) - len(telling)} of {len(replicates)} replicates"
            )
        replicates = telling
    if len(replicates) < design.replicates and not notes:
        notes.append(f"{design.replicates - len(replicates)} of {design.replicates} replicates have no pair")
    ours, theirs, there = (
        np.array([values[r] for r in replicates], dtype=np.float64) for values in (arm, against, subtracted)
    )
    # Equal means need not be equal to the last bit; rounding is no difference.
    difference = np.where(np.isclose(ours, theirs, rtol=1e-12, atol=0.0), 0.0, ours - theirs)
    return _Pairs(difference - there, ours, theirs, "; ".join(notes))


def _differences(test: ClaimTest, sparsity: float, other: Evidence, design: Design) -> dict[int, float]:
    """What the same arms differ by in another study, by replicate."""
    where = f"claim.tests of {design.name!r}: than={test.than!r}"
    if other.design.seed != design.seed:
        raise ConfigError(
            f"{where}: has seed={other.design.seed}, and this study {design.seed}; replicates are paired by it, so it "
            "must be the same"
        )
    try:
        checked_test(
            dataclasses.replace(test, sparsity=(sparsity,), than=""), other.design, other.rows.schema, where="it"
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: cannot answer the same test ({error})") from error
    arm, against = (_values(other, name, sparsity, test.metric) for name in (test.arm, test.against))
    return {r: arm[r] - against[r] for r in arm.keys() & against.keys()}


def _values(evidence: Evidence, arm: str, sparsity: float, metric: str) -> dict[int, float]:
    """What an arm is worth in each replicate: the mean over its networks that have a value."""
    if metric == _CONVERGENCE:
        return _steps_to_target(evidence, arm, sparsity)
    design, rows = evidence.design, evidence.rows
    level = _level_of(arm, sparsity, design)
    here = rows.filter(
        (pc.field("stage") == "trained") & (pc.field("arm") == arm) & (pc.field("target_sparsity") == level)
    )
    outcome = np.asarray(here["outcome"].to_pylist(), dtype=object)
    if metric == design.metric:
        values = METRICS[metric].from_error(numbers_in(here, "test_error"))
        values = np.where(outcome == "diverged", design.value_of_guessing, values)
        counted = np.isin(outcome, ("completed", "diverged"))
    else:
        values, counted = numbers_in(here, metric), outcome == "completed"
    counted &= np.isfinite(values)
    replicate = np.asarray(here["replicate"], dtype=np.int64)
    return {int(r): float(values[counted & (replicate == r)].mean()) for r in np.unique(replicate[counted])}


def _steps_to_target(evidence: Evidence, arm: str, sparsity: float) -> dict[int, float]:
    """Mean steps of an arm's networks to the target in each replicate where somebody looked on the way."""
    networks, found = evidence.networks, dict[int, float]()
    method = known_methods(evidence.design.methods or {arm: {}})[arm]
    if isinstance(method, Pruned) and method.method.keeps_weights:
        return found  # of trained weights the first steps are no measure of speed
    for replicate in range(evidence.design.replicates):
        here = _networks_at(evidence, arm, sparsity, replicate)
        if networks.is_timed[here].any() and np.isfinite(networks.steps_to_target[here]).all():
            found[replicate] = float(networks.steps_to_target[here].mean())
    return found


def _came_to_target(test: ClaimTest, sparsity: float, evidence: Evidence, replicate: int) -> bool:
    """Whether any network of either arm did: else both have the steps of a training, which proves nothing."""
    both = (_networks_at(evidence, arm, sparsity, replicate) for arm in (test.arm, test.against))
    return any(evidence.networks.reached[here].any() for here in both)


def _networks_at(evidence: Evidence, arm: str, sparsity: float, replicate: int) -> Integers:
    """Networks of an arm that say something about its method, by index."""
    here = evidence.networks.at(arm, replicate, _level_of(arm, sparsity, evidence.design))
    return here[evidence.networks.counted[here]]


def _level_of(arm: str, sparsity: float, design: Design) -> float:
    """Where an arm's networks are that stand beside others at a sparsity: those without a mask are at none."""
    methods = known_methods(design.methods or {name: {} for name in design.arms})
    return 0.0 if methods[arm].is_dense else sparsity


def _margin(test: ClaimTest, design: Design) -> float | None:
    if test.margin is not None or test.metric not in METRICS:
        return test.margin
    return design.margin_of(test.metric)
