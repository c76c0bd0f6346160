import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsefront.search.statistics import (
    best_of_draws,
    equivalence_test,
    holm,
    paired_interval,
    paired_t_test,
    rank_correlation,
    replicates_needed,
    replicates_to_decide,
)

differences = st.lists(st.integers(-50, 50), min_size=2, max_size=12).map(lambda values: [v / 1000 for v in values])


def generator(seed=0):
    return np.random.default_rng(seed)


def binomial_bound(rate, n, *, false_alarm=1e-4):
    """Largest count that a true rate produces, but for one time in ``1 / false_alarm``."""
    return stats.binom.ppf(1 - false_alarm, n, rate)


# --- paired t-test -----------------------------------------------------------------------------------------------


@given(differences)
def test_t_agrees_with_scipy(values):
    if len(set(values)) == 1:
        expected = 1.0 if values[0] == 0 else 2.0 ** (1 - len(values))
    else:
        expected = stats.ttest_1samp(values, 0.0).pvalue
    assert paired_t_test(values) == pytest.approx(expected, rel=1e-9)
    assert paired_t_test([-v for v in values]) == paired_t_test(values)


def test_t_by_hand():
    # mean 2, standard error 1 / sqrt(3), t = 2 sqrt(3) with 2 degrees of freedom: p = 1 - t / sqrt(2 + t^2)
    assert paired_t_test([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-12)
    assert paired_t_test([3.0, 4.0, 5.0], null=2.0) == paired_t_test([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("values", "p_value"),
    [
        ([0.0, 0.0], 1.0),
        ([0.25, 0.25], 0.5),
        ([0.1] * 10, 2**-9),
        ([0.1 + 0.2, 0.3, 0.3], 0.25),  # equal but for rounding
    ],
)
def test_t_without_spread_is_a_sign_flip_test(values, p_value):
    assert paired_t_test(values) == p_value


@pytest.mark.parametrize("values", [[], [0.3]])
def test_fewer_than_two_pairs_prove_nothing(values):
    assert np.isnan(paired_t_test(values))
    assert np.isnan(equivalence_test(values, margin=0.01))


def test_families_are_tested_at_once():
    values = generator().normal(size=(3, 4, 7))
    alone = [[float(paired_t_test(row)) for row in block] for block in values]
    assert np.allclose(paired_t_test(values), alone, rtol=1e-12)
    alone = [[float(equivalence_test(row, margin=0.5)) for row in block] for block in values]
    assert np.allclose(equivalence_test(values, margin=0.5), alone, rtol=1e-12)


# --- equivalence -------------------------------------------------------------------------------------------------


@given(differences)
def test_equivalence_is_the_worse_of_two_one_sided_tests(values):
    margin = 0.01
    if len(set(values)) == 1:
        expected = 2.0 ** -len(values) if abs(values[0]) < margin else 1.0
    else:
        above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(values, margin, alternative="less").pvalue
        expected = max(above, below)
    assert equivalence_test(values, margin=margin) == pytest.approx(expected, rel=1e-9)


def test_a_difference_on_the_margin_is_not_equivalent():
    assert equivalence_test([0.01] * 10, margin=0.01) == 1.0
    assert equivalence_test([0.01, 0.0, 0.02], margin=0.01) == pytest.approx(0.5)


def test_false_equivalence_at_the_margin_stays_below_alpha():
    """n = 10, 20,000 repeats, seed 11: at the margin TOST errs at most alpha = 5% of the time."""
    repeats, margin = 20_000, 1.0
    for spread in (0.3, 1.0, 3.0):
        values = generator(11).normal(margin, spread, (repeats, 10))
        errors = np.count_nonzero(equivalence_test(values, margin=margin) <= 0.05)
        assert errors <= binomial_bound(0.05, repeats)


def test_no_difference_found_is_not_equivalence():
    noisy = generator(1).normal(0, 1.0, 10)
    assert paired_t_test(noisy) > 0.05
    assert equivalence_test(noisy, margin=0.01) > 0.05


# --- Holm --------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # 4 x 0.01, then 3 x 0.02 = 0.06, 2 x 0.03 = 0.06 and 0.06 held by the running maximum
    assert holm([0.03, 0.01, 0.05, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)
    assert holm([0.5]) == [0.5]


def slow_holm_rejections(p_values, alpha):
    """Reject from the smallest on while p <= alpha / (tests left), as the paper says it."""
    rejected, left = set(), sorted(range(len(p_values)), key=lambda i: p_values[i])
    while left and p_values[left[0]] <= alpha / len(left):
        rejected.add(left.pop(0))
    return rejected


@given(st.lists(st.floats(0, 1), max_size=8, unique=True), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    rejected = {i for i, p in enumerate(holm(p_values)) if p <= alpha}
    # alpha / k and alpha against k p may differ in the last digit
    assert rejected ^ slow_holm_rejections(p_values, alpha) <= {
        i for i, p in enumerate(holm(p_values)) if abs(p - alpha) < 1e-12
    }


def test_holm_leaves_out_what_was_not_tested():
    assert np.array_equal(holm([np.nan, 0.02, 0.5]), [np.nan, 0.04, 0.5], equal_nan=True)


# --- bootstrap interval ------------------------------------------------------------------------------------------


def test_interval_of_degenerate_samples():
    one = paired_interval([0.5], rng=generator())
    assert (one.estimate, math.isnan(one.low), math.isnan(one.high)) == (0.5, True, True)
    same = paired_interval([0.5, 0.5, 0.5], rng=generator())
    assert (same.low, same.high) == (0.5, 0.5)
    none = paired_interval([], rng=generator())
    assert math.isnan(none.estimate)


def test_interval_of_few_pairs_is_students():
    values = [0.0, 1.0, 3.0, 4.0]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    found = paired_interval(values, rng=generator(), level=0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_interval_moves_and_scales_with_the_data():
    values = generator(3).exponential(size=12)
    one = paired_interval(values, rng=generator(4))
    two = paired_interval(5 * values + 100, rng=generator(4))
    assert (two.low, two.high) == pytest.approx((5 * one.low + 100, 5 * one.high + 100), rel=1e-9)
    assert one.low < one.estimate < one.high
    wider = paired_interval(values, rng=generator(4), level=0.99)
    assert wider.low < one.low < one.high < wider.high


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "draw", "mean", "at_least"),
    [
        ("normal", lambda rng: rng.normal(0.0, 1.0, 10), 0.0, 0.94),
        ("skewed", lambda rng: rng.exponential(1.0, 10), 1.0, 0.92),
        ("heavy tails", lambda rng: rng.standard_t(3, 10), 0.0, 0.93),
        ("counts", lambda rng: np.round(rng.normal(0.0, 2.0, 10)), 0.0, 0.93),
    ],
)
def test_coverage_of_the_interval_for_ten_pairs(name, draw, mean, at_least):
    """n = 10, 3,000 samples of 999 resamples, seed 5: nominal 95%.

    Measured beside it with the same samples (normal, skewed, heavy tails, counts): Student 95/90/96/96%,
    percentile bootstrap 89/87/89/92%, BCa 89/88/87/91%; bootstrap-t 94/94/93/94%.
    """
    rng, n = generator(5), 3000
    hits = 0
    for _ in range(n):
        found = paired_interval(draw(rng), rng=rng, resamples=999)
        hits += found.low <= mean <= found.high
    # a coverage of at_least + 0.005 would fail here one time in 10,000
    assert hits >= stats.binom.ppf(1e-4, n, at_least + 0.005), f"{name}: {hits / n:.3f}"


# --- rank correlation --------------------------------------------------------------------------------------------


def test_one_stratum_is_spearman():
    rng = generator(2)
    x, y = rng.normal(size=30), rng.integers(0, 6, 30)
    found = rank_correlation(x, y, np.zeros(30), rng=rng)
    expected = stats.spearmanr(x, y)
    assert found.estimate == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.03)
    assert (found.n, found.n_strata) == (30, 1)
    # Fisher's z with Bonett and Wright's variance, by hand
    reach = 1.959964 * math.sqrt((1 + found.estimate**2 / 2) / 27)
    assert found.low == pytest.approx(math.tanh(math.atanh(found.estimate) - reach), abs=1e-6)


def test_differences_between_strata_count_for_nothing():
    """Within each stratum the order is reversed; across strata everything rises."""
    strata = np.repeat(np.arange(5), 6)
    x = strata * 100 + np.tile(np.arange(6), 5)
    y = strata * 100 - np.tile(np.arange(6), 5)
    found = rank_correlation(x, y, strata, rng=generator())
    assert found.estimate == pytest.approx(-1.0)
    assert stats.spearmanr(x, y).statistic > 0.9
    assert found.p_value == 1 / 5000


def test_rank_correlation_ignores_monotone_changes_and_missing_values():
    rng = generator(8)
    x, y, strata = rng.normal(size=24), rng.normal(size=24), np.repeat(np.arange(3), 8)
    one = rank_correlation(x, y, strata, rng=generator())
    two = rank_correlation(
        np.append(np.exp(x), [np.nan, 1.0]), np.append(y**3, [0.0, np.inf]), np.append(strata, [0, 1]), rng=generator()
    )
    assert (one.estimate, one.n) == pytest.approx((two.estimate, two.n))


@pytest.mark.parametrize(("x", "y"), [([], []), ([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3])])
def test_too_little_to_correlate(x, y):
    found = rank_correlation(x, y, [0] * len(x), rng=generator())
    assert (found.n, math.isnan(found.estimate), math.isnan(found.p_value)) == (0, True, True)


def test_false_alarms_and_coverage_of_rank_correlation():
    """10 strata of 8, 400 repeats, seed 21: no correlation."""
    rng, n = generator(21), 400
    strata = np.repeat(np.arange(10), 8)
    found = [
        rank_correlation(rng.normal(size=80), rng.normal(size=80), strata, rng=rng, permutations=199) for _ in range(n)
    ]
    assert sum(f.p_value <= 0.05 for f in found) <= binomial_bound(0.05, n)
    assert sum(not f.low <= 0 <= f.high for f in found) <= binomial_bound(0.05, n)


# --- replicates needed -------------------------------------------------------------------------------------------


def is_decided(drawn, *, margin, alpha):
    return (paired_t_test(drawn) <= alpha) | (equivalence_test(drawn, margin=margin) <= alpha)


@pytest.mark.parametrize(("spread", "margin", "alpha"), [(1.0, 1.0, 0.05), (2.4, 1.0, 0.01), (0.3, 0.5, 0.05)])
def test_so_many_replicates_decide_whatever_their_mean_is(spread, margin, alpha):
    """Samples of exactly this spread, their means in 2,001 steps: with one pair fewer some mean is undecided."""
    n = replicates_to_decide(spread, margin=margin, alpha=alpha)
    undecided = []
    for k in (n - 1, n):
        values = generator(31).normal(size=k)
        values = spread * (values - values.mean()) / values.std(ddof=1)
        means = np.linspace(-2 * margin, 2 * margin, 2001)
        undecided.append(int((~is_decided(values + means[:, None], margin=margin, alpha=alpha)).sum()))
    assert undecided[0] > 0
    assert undecided[1] == 0


def test_so_many_replicates_decide_whatever_is_true():
    """5,000 repeats at each of 21 true differences, seed 37: also where samples have spreads of their own."""
    n = replicates_to_decide(1.0, margin=1.0)
    shares = [
        np.mean(is_decided(generator(37).normal(true, 1.0, (5_000, n)), margin=1.0, alpha=0.05))
        for true in np.linspace(-2.0, 2.0, 21)
    ]
    assert min(shares) > 0.8


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (replicates_to_decide(math.nan, margin=1.0), None),
        (replicates_to_decide(1.0, margin=math.nan), None),
        (replicates_to_decide(1.0, margin=0.0), None),
        (replicates_to_decide(1.0, margin=1e-3), None),  # beyond 100,000
        (replicates_to_decide(1.0, margin=1e-3, at_most=10**8), 12_994_713),
        (replicates_to_decide(0.0, margin=0.1), 6),  # 2^(1 - 6) = 0.031
        (replicates_to_decide(0.0, margin=0.1, at_least=9), 9),
        (replicates_to_decide(1e-6, margin=1.0), 2),
    ],
)
def test_replicates_at_the_edges(found, expected):
    assert found == expected


def test_the_range_of_replicates_covers_what_the_true_spread_asks_for():
    """1,000 repeats of 10 pairs, seed 41: an interval of 95%."""
    rng, n = generator(41), 1000
    true = replicates_to_decide(1.0, margin=0.5)
    ranges = [replicates_needed(rng.normal(0.2, 1.0, 10), margin=0.5) for _ in range(n)]
    n_missed = sum(not low <= true <= high for low, high in ranges)
    assert n_missed <= binomial_bound(0.05, n)
    assert n - n_missed <= binomial_bound(0.95, n)


@given(differences, st.floats(-0.1, 0.1))
def test_the_range_of_replicates_does_not_follow_their_mean(values, shift):
    found = replicates_needed(values, margin=0.02)
    again = replicates_needed(np.array(values) + shift, margin=0.02)
    assert (found is None) == (again is None)
    if found is not None:
        low, high = found
        assert low > len(values)
        assert high is None or high >= low
        assert again[0] == pytest.approx(low, abs=1)
        assert high is None or again[1] == pytest.approx(high, abs=1)


def test_the_range_of_ten_pairs_is_sevenfold():
    low, high = replicates_needed(generator(43).normal(0.0, 1.0, 10), margin=0.1)
    # Chi-square quantiles with 9 degrees of freedom: 2.70 and 19.02.
    assert high / low == pytest.approx(19.02 / 2.70, rel=0.01)


def test_the_range_of_replicates_at_the_edges():
    assert replicates_needed([0.5], margin=1.0) is None
    assert replicates_needed([0.5, 0.5], margin=0.1) == (6, 6)
    assert replicates_needed([0.0, 0.1, 0.2], margin=50.0) == (4, 4)  # three were not enough, whatever the reason
    assert replicates_needed([-9.0, 9.0, 0.0], margin=0.01) is None
    low, high = replicates_needed([-9.0, 9.0, 0.0], margin=0.5)
    assert low > 1000
    assert high is None


# --- best of several draws ---------------------------------------------------------------------------------------


def slow_best_of(selector, values, draws):
    """Average over all subsets, and over the tied members of each."""
    outcomes = []
    for subset in itertools.combinations(range(len(selector)), draws):
        best = min(selector[i] for i in subset)
        tied = [values[i] for i in subset if selector[i] == best]
        outcomes.append(sum(tied) / len(tied))
    return sum(outcomes) / len(outcomes)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-5, 5)), min_size=1, max_size=7), st.integers(1, 7))
def test_best_of_is_the_average_over_all_subsets(pairs, draws):
    selector, values = zip(*pairs, strict=True)
    draws = min(draws, len(pairs))
    assert best_of_draws(selector, values, draws=draws) == pytest.approx(
        slow_best_of(selector, values, draws), abs=1e-9
    )


def test_best_of_broken_numbers_and_more_than_there_are():
    selector, values = [1.0, 2.0, 3.0], [10.0, 20.0, 30.0]
    two, three = (best_of_draws(selector, values, draws=m) for m in (2, 3))
    assert best_of_draws(selector, values, draws=2.25) == pytest.approx(0.75 * two + 0.25 * three)
    assert best_of_draws(selector, values, draws=99.5) == three == 10.0
    assert best_of_draws(selector, values, draws=0.1) == 20.0
    assert math.isnan(best_of_draws([], [], draws=1))


def test_failed_draws_are_kept_only_when_nothing_else_was_drawn():
    assert best_of_draws([math.inf, 0.5], [0.1, 0.9], draws=2) == 0.9
    assert best_of_draws([math.inf, 0.5], [0.1, 0.9], draws=1) == pytest.approx(0.5)


def test_many_draws_stay_exact():
    """100 draws of 1,000: the best has mean rank (n + 1) / (m + 1)."""
    ranks = np.arange(1.0, 1001.0)
    assert best_of_draws(ranks, ranks, draws=100) == pytest.approx(1001 / 101)
