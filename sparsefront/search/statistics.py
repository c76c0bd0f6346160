"""Statistics of paired comparisons: tests, equivalence, intervals, corrections and the replicates that are needed.

All functions take plain numbers and know nothing of arms or ledgers. Differences are treatment minus control, one
number a pair. What cannot be computed (an interval of one pair) is NaN, never an error.

References: Schuirmann, A comparison of the two one-sided tests procedure ..., J. Pharmacokinet. Biopharm. 15, 1987
(equivalence); Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6, 1979; Efron and
Tibshirani, An introduction to the bootstrap, 1993, ch. 12 (bootstrap-t); Bonett and Wright, Sample size requirements
for estimating Pearson, Kendall and Spearman correlations, Psychometrika 65, 2000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Floats = npt.NDArray[np.float64]

#: A spread below this share of the values is rounding, not variation.
_ROUNDING = 1e-12

#: With fewer pairs resamples that repeat one pair are frequent: Student's interval then covers better (simulated).
_BOOTSTRAP_PAIRS = 8


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it; the bounds are NaN where there is none."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class RankCorrelation:
    """A Spearman correlation within strata: its interval, two-sided p-value and the numbers behind it."""

    estimate: float
    low: float
    high: float
    p_value: float
    n: int
    n_strata: int


#: Pairs above which a permutation test costs seconds and its normal limit is as good.
_PERMUTED_PAIRS = 5_000


def paired_t_test(differences: npt.ArrayLike, *, null: float = 0.0) -> Floats:
    """Test whether the mean of paired differences is ``null``, two-sided.

    Differences without any spread (their t would be 0/0 or infinite) are tested by sign flips instead, whose p-value is
    exact for a symmetric null: 1 if all equal the null, else 2^(1 - n). Accuracies of few examples do produce them.

    Args:
        differences: (..., n) float, finite; the last axis holds the pairs.
        null: mean under the null hypothesis, in the same unit.

    Returns:
        (...) float, p-values; NaN for n < 2.

    >>> float(paired_t_test([1.0, 2.0, 3.0])).__round__(4)
    0.0742
    >>> float(paired_t_test([0.5, 0.5, 0.5]))
    0.25
    """
    n, mean, error, flat = _moments(np.asarray(differences, dtype=np.float64) - null)
    if n < 2:
        return np.full(mean.shape, np.nan)
    t = np.divide(mean, error, out=np.zeros_like(mean), where=~flat)
    spread = 2.0 * special.stdtr(n - 1, -np.abs(t))
    return cast("Floats", np.where(flat, np.where(mean == 0.0, 1.0, 2.0 ** (1 - n)), spread))


def equivalence_test(differences: npt.ArrayLike, *, margin: float) -> Floats:
    """Test whether the mean of paired differences lies within the margin: two one-sided t-tests (TOST).

    The null hypothesis is that the mean is at least ``margin`` away from 0; a small p-value shows equivalence.
    Differences without spread are tested by sign flips: 2^-n inside the margin, 1 on or outside of it.

    Args:
        differences: (..., n) float, finite; the last axis holds the pairs.
        margin: largest difference that does not matter, > 0, in the same unit.

    Returns:
        (...) float, p-values (the larger of the two); NaN for n < 2.

    >>> float(equivalence_test([0.001, -0.002, 0.003, 0.0], margin=0.01)).__round__(4)
    0.0014
    >>> float(equivalence_test([0.02, 0.02, 0.02], margin=0.01))
    1.0
    """
    n, mean, error, flat = _moments(np.asarray(differences, dtype=np.float64))
    if n < 2:
        return np.full(mean.shape, np.nan)
    distance = margin - np.abs(mean)  # to the nearer bound: that one-sided test has the larger p-value
    t = np.divide(distance, error, out=np.zeros_like(mean), where=~flat)
    spread = special.stdtr(n - 1, -t)
    # Rounding must not push a mean that lies on the bound inside of it.
    inside = distance > _ROUNDING * margin
    return cast("Floats", np.where(flat, np.where(inside, 2.0**-n, 1.0), spread))


def holm(p_values: npt.ArrayLike) -> Floats:
    """Adjust the p-values of a family so that the chance of any false alarm stays below alpha (Holm's step-down).

    Valid however the tests depend on each other. A NaN (a test that could not be done) stays NaN and is not counted.

    Args:
        p_values: (k,) float in 0..1 or NaN.

    Returns:
        (k,) float, adjusted p-values in the order given.

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * given[order]))
    return adjusted


def paired_interval(
    differences: npt.ArrayLike, *, rng: np.random.Generator, level: float = 0.95, resamples: int = 4999
) -> Interval:
    """Estimate the mean of paired differences with a studentised bootstrap interval (bootstrap-t).

    Chosen over BCa and the percentile interval because those are too narrow for ten pairs, and over Student's interval
    because it follows the skew of the data; the simulated coverages are in ``tests/search/test_statistics.py``.
    Resamples whose spread is less than a twentieth of the sample's (most pairs drawn are the same one) have no
    meaningful t and are not used; with fewer than 8 pairs they are too many, and Student's interval is given.

    Args:
        differences: (n,) float, finite.
        rng: of the resampling.
        level: coverage, in (0, 1).
        resamples: number of bootstrap resamples.

    Returns:
        The mean and its interval; NaN bounds for n < 2, a point where all differences are equal.

    >>> paired_interval([1.0, 2.0, 3.0], rng=np.random.default_rng(0))  # doctest: +ELLIPSIS
    Interval(estimate=2.0, low=-0.484..., high=4.484...)
    """
    values = np.asarray(differences, dtype=np.float64)
    n, means, errors, flats = _moments(values)
    mean, error = float(means), float(errors)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    if bool(flats):
        return Interval(mean, mean, mean)
    tail = (1.0 - level) / 2.0
    if n < _BOOTSTRAP_PAIRS:
        reach = float(special.stdtrit(n - 1, 1.0 - tail)) * error
        return Interval(mean, mean - reach, mean + reach)
    drawn = values[rng.integers(0, n, (resamples, n))]
    drawn_means = drawn.mean(axis=1)
    drawn_errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    usable = drawn_errors > error / 20.0
    t = (drawn_means[usable] - mean) / drawn_errors[usable]
    upper, lower = np.quantile(t, [1.0 - tail, tail])
    return Interval(mean, mean - float(upper) * error, mean - float(lower) * error)


@dataclass(frozen=True)
class PairedEffect:
    """The mean of paired differences, its interval, and tests corrected over the family that it is one of."""

    n: int  #: pairs
    difference: float
    low: float  #: interval of this comparison alone
    high: float
    p_value: float  #: paired t-test, two-sided
    p_adjusted: float  #: Holm over the family
    p_equivalence: float  #: two one-sided tests against the margin
    p_equivalence_adjusted: float


def paired_effects(
    family: Sequence[Floats],
    *,
    margins: Sequence[float | None],
    rngs: Sequence[np.random.Generator],
    level: float = 0.95,
    is_tested: Sequence[bool] | None = None,
) -> list[PairedEffect]:
    """Test a family of paired comparisons together: for a difference, and for equivalence.

    Args:
        family: (n,) float, finite, of each comparison: its differences; n may differ.
        margins: of each, the largest difference that does not matter; None: equivalence is not tested.
        rngs: of each, of the resampling.
        level: coverage of the intervals, in (0, 1).
        is_tested: of each, whether a difference is tested; None for all. What is not tested is NaN, and not counted.

    Returns:
        One effect for each comparison, in the order given; without a pair all of its numbers are NaN.

    >>> rngs = [np.random.default_rng(0), np.random.default_rng(1)]
    >>> family = [np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.5, 0.5])]
    >>> [round(effect.p_adjusted, 3) for effect in paired_effects(family, margins=[None, 1.0], rngs=rngs)]
    [0.148, 0.25]
    """
    tested = [True] * len(family) if is_tested is None else is_tested
    p_values = [
        float(paired_t_test(differences)) if is_one else math.nan
        for differences, is_one in zip(family, tested, strict=True)
    ]
    p_equivalences = [
        math.nan if margin is None else float(equivalence_test(differences, margin=margin))
        for differences, margin in zip(family, margins, strict=True)
    ]
    p_adjusted, p_equivalence_adjusted = holm(p_values), holm(p_equivalences)
    intervals = [
        paired_interval(differences, rng=rng, level=level)
        if len(differences)
        else Interval(math.nan, math.nan, math.nan)
        for differences, rng in zip(family, rngs, strict=True)
    ]
    return [
        PairedEffect(
            n=len(differences),
            difference=intervals[i].estimate,
            low=intervals[i].low,
            high=intervals[i].high,
            p_value=p_values[i],
            p_adjusted=float(p_adjusted[i]),
            p_equivalence=p_equivalences[i],
            p_equivalence_adjusted=float(p_equivalence_adjusted[i]),
        )
        for i, differences in enumerate(family)
    ]


def rank_correlation(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    strata: npt.ArrayLike,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    permutations: int = 4999,
) -> RankCorrelation:
    """Correlate two quantities by rank within strata, pooled over them (stratified Spearman).

    Each stratum's values are ranked (ties share their mean rank), centred and scaled to unit spread; the pooled
    estimate is the mean of the strata's correlations weighted by their size. So differences *between* strata
    (replicates with other data) count for nothing. The p-value comes from permutations within strata; the interval is
    Fisher's z with the variance of Bonett and Wright, (1 + r^2 / 2) / (n - strata - 2): their n - 3 for one stratum.

    Args:
        x: (n,) float.
        y: (n,) float; pairs with a non-finite value are left out.
        strata: (n,) any; strata of fewer than three pairs, or without any spread, are left out.
        rng: of the permutations.
        level: coverage of the interval.
        permutations: number of random permutations; p is at least 1 / (permutations + 1). Above 5,000 pairs p comes
            from the normal limit of the permutation distribution instead.

    Returns:
        The correlation (-1..1) with NaN for what the data do not allow.

    >>> found = rank_correlation([1, 2, 3, 4], [1, 2, 3, 40], [0, 0, 0, 0], rng=np.random.default_rng(0))
    >>> found.estimate, found.n
    (1.0, 4)
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = np.isfinite(xs) & np.isfinite(ys)
    xs, ys, groups = xs[finite], ys[finite], np.asarray(strata)[finite]
    ranks: list[tuple[Floats, Floats]] = []
    for stratum in np.unique(groups):
        inside = groups == stratum
        one, two = _unit_ranks(xs[inside]), _unit_ranks(ys[inside])
        if len(one) >= 3 and one.any() and two.any():
            ranks.append((one, two))
    n = sum(len(one) for one, _ in ranks)
    if n == 0:
        return RankCorrelation(math.nan, math.nan, math.nan, math.nan, 0, 0)
    weights = np.array([len(one) / n for one, _ in ranks])
    observed = float(np.clip(weights @ [one @ two for one, two in ranks], -1.0, 1.0))
    if n > _PERMUTED_PAIRS:
        # Under permutations each stratum's correlation has mean 0 and variance 1 / (size - 1), exactly.
        deviation = math.sqrt(sum(w**2 / (len(one) - 1) for w, (one, _) in zip(weights, ranks, strict=True)))
        p_value = float(2 * special.ndtr(-abs(observed) / deviation))
    else:
        null = np.zeros(permutations)
        for weight, (one, two) in zip(weights, ranks, strict=True):
            null += weight * (rng.permuted(np.tile(two, (permutations, 1)), axis=1) @ one)
        as_extreme = int(np.count_nonzero(np.abs(null) >= abs(observed) - 1e-12))
        p_value = (1 + as_extreme) / (1 + permutations)
    freedom = n - len(ranks) - 2
    if freedom < 1:
        return RankCorrelation(observed, math.nan, math.nan, p_value, n, len(ranks))
    z = math.atanh(float(np.clip(observed, -1 + 1e-12, 1 - 1e-12)))
    reach = float(special.ndtri(0.5 + level / 2)) * math.sqrt((1 + observed**2 / 2) / freedom)
    return RankCorrelation(observed, math.tanh(z - reach), math.tanh(z + reach), p_value, n, len(ranks))


def replicates_to_decide(
    spread: float, *, margin: float, alpha: float = 0.05, at_least: int = 2, at_most: int = 100_000
) -> int | None:
    """Count the pairs with which a comparison is decided whatever the true difference is.

    A mean is undecided that is too near to zero for the two-sided paired t-test and too near to the margin for the two
    one-sided tests: at most t(1 - alpha / 2) standard errors from the one, and less than t(1 - alpha) from the other.
    Once the margin is as wide as both distances together, no mean is.

    Args:
        spread: standard deviation of the differences, >= 0.
        margin: largest difference that does not matter, in the same unit.
        alpha: level of the tests, each.
        at_least: where to begin, >= 2.
        at_most: where to give up.

    Returns:
        The smallest number of pairs, or None where no number up to ``at_most`` is enough, as without a margin.

    >>> replicates_to_decide(1.0, margin=1.0), replicates_to_decide(0.0, margin=1.0)
    (16, 6)
    """
    if not (math.isfinite(spread) and margin > 0.0):
        return None

    def reached(n: int) -> bool:
        if spread <= _ROUNDING * margin:
            return 2.0 ** (1 - n) <= alpha  # by sign flips
        distances = float(special.stdtrit(n - 1, 1 - alpha / 2) + special.stdtrit(n - 1, 1 - alpha))
        return distances * spread / math.sqrt(n) <= margin

    return _smallest(reached, at_least=at_least, at_most=at_most)


def replicates_needed(
    differences: npt.ArrayLike, *, margin: float, alpha: float = 0.05, level: float = 0.95
) -> tuple[int, int | None] | None:
    """Estimate how many pairs an undecided comparison needs for a decision, whatever the true difference is.

    The spread alone is estimated, and their mean, which is what is undecided, counts for nothing. How uncertain it is
    gives the range: its ends are the numbers for those of the chi-square interval of the standard deviation. With ten
    pairs the range is sevenfold.

    Args:
        differences: (n,) float, finite: those that were not enough.
        margin: largest difference that does not matter.
        alpha: level of the tests; in a family, the one that Holm asks of its first rejection.
        level: coverage of the interval of the standard deviation.

    Returns:
        From how many pairs to how many, both above n, the second None where it is beyond 100,000; None where both are,
        or the spread is unknown (n < 2).

    >>> replicates_needed([1.0, -1.0, 2.0, 0.5, -0.5], margin=1.0)
    (9, 156)
    """
    given = np.asarray(differences, dtype=np.float64)
    n = len(given)
    if n < 2:
        return None
    squares = (n - 1) * float(given.var(ddof=1))
    spreads = [math.sqrt(squares / float(special.chdtri(n - 1, tail))) for tail in ((1 - level) / 2, (1 + level) / 2)]
    # These were not enough: more are needed, however narrow the spread may be.
    low, high = (replicates_to_decide(spread, margin=margin, alpha=alpha, at_least=n + 1) for spread in spreads)
    return None if low is None else (low, high)


def _smallest(reached: Callable[[int], bool], *, at_least: int, at_most: int) -> int | None:
    """Find the smallest n in a range that is enough, by doubling and bisection: power grows with n."""
    low, high = at_least - 1, at_least  # low is not enough, or not in the range
    while not reached(high):
        if high >= at_most:
            return None
        low, high = high, min(2 * high, at_most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def best_of_draws(selector: npt.ArrayLike, values: npt.ArrayLike, *, draws: float) -> float:
    """Expect the value of the draw that a selector prefers among a few of those at hand.

    A policy takes ``draws`` of the n candidates at random without replacement and keeps the one whose selector is
    lowest (ties are broken at random). Its expected value is computed exactly from order statistics, not by simulation:
    the best of m is the k-th of n with probability C(n - k, m - 1) / C(n, m). A broken number of draws mixes its floor
    and its ceiling, so that the policy spends exactly that many on average.

    Args:
        selector: (n,) float, lower is better; inf for a candidate that is only kept if nothing else was drawn.
        values: (n,) float, what is reported of the candidate that is kept.
        draws: how many are drawn, >= 1; more than n count as n.

    Returns:
        The expected value; NaN without candidates.

    >>> best_of_draws([0.3, 0.1, 0.2], [30.0, 10.0, 20.0], draws=1)
    20.0
    >>> best_of_draws([0.3, 0.1, 0.2], [30.0, 10.0, 20.0], draws=3)
    10.0
    >>> round(best_of_draws([0.3, 0.1, 0.2], [30.0, 10.0, 20.0], draws=2), 6)
    13.333333
    """
    chosen_by, found = np.asarray(selector, dtype=np.float64), np.asarray(values, dtype=np.float64)
    n = len(chosen_by)
    if n == 0:
        return math.nan
    draws = min(max(draws, 1.0), float(n))
    whole = math.floor(draws)
    part = draws - whole
    expected = _best_of(chosen_by, found, whole)
    return expected if part == 0.0 else (1 - part) * expected + part * _best_of(chosen_by, found, whole + 1)


def _best_of(selector: Floats, values: Floats, draws: int) -> float:
    n = len(selector)
    total = math.comb(n, draws)
    levels, group_of = np.unique(selector, return_inverse=True)
    expected, n_at_least = 0.0, n
    for group in range(len(levels)):
        members = values[group_of == group]
        n_beyond = n_at_least - len(members)
        # All draws are from this group on, and not all of them from beyond it.
        chance = (math.comb(n_at_least, draws) - math.comb(n_beyond, draws)) / total
        if chance > 0.0:
            expected += chance * float(members.mean())
        n_at_least = n_beyond
    return expected


def _moments(values: Floats) -> tuple[int, Floats, Floats, npt.NDArray[np.bool_]]:
    """Give n, the means over the last axis, their standard errors, and where there is no spread but rounding."""
    n = values.shape[-1]
    if n == 0:
        return (
            0,
            np.full(values.shape[:-1], np.nan),
            np.full(values.shape[:-1], np.nan),
            np.full(values.shape[:-1], False),
        )
    mean = values.mean(axis=-1)
    if n == 1:
        return 1, mean, np.full(mean.shape, np.nan), np.full(mean.shape, False)
    deviation = values.std(axis=-1, ddof=1)
    scale = np.abs(values).max(axis=-1)
    flat = deviation <= _ROUNDING * scale
    return n, np.where(flat & (scale == 0.0), 0.0, mean), deviation / math.sqrt(n), flat


def _unit_ranks(values: Floats) -> Floats:
    ranks = stats.rankdata(values)
    ranks = ranks - ranks.mean()
    norm = float(np.sqrt(ranks @ ranks))
    return np.asarray(ranks / norm if norm > 0 else np.zeros_like(ranks), dtype=np.float64)
