"""Counts at a fixed total from shares, and shares from counts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.shares import counts_from_shares, shares_of
from sparsefront.spaces.structure import Structure, Tensor

SIZES = st.lists(st.integers(1, 100_000), min_size=1, max_size=8)
NETS = [(64, 256, 128, 10), (40, 256, 128, 10), (784, 300, 100, 10), (7, 3, 2)]


@st.composite
def shared(draw):
    sizes = draw(SIZES)
    shares = draw(st.lists(st.floats(0.01, 1), min_size=len(sizes), max_size=len(sizes)))
    return sizes, draw(st.integers(len(sizes), sum(sizes))), shares


def perceptron(sizes):
    return Structure(tuple(Tensor(str(i), (b, a), True) for i, (a, b) in enumerate(itertools.pairwise(sizes))), ())


def water_level(sizes, total, shares):
    """Real-valued counts by bisection of the scale; slow and obvious."""
    low, high = 0.0, 2.0 * max(n / (s * n) for n, s in zip(sizes, shares, strict=True)) * max(sizes)
    for _ in range(300):
        scale = (low + high) / 2
        used = sum(min(n, max(1.0, scale * s * n)) for n, s in zip(sizes, shares, strict=True))
        low, high = (scale, high) if used < total else (low, scale)
    return [min(n, max(1.0, high * s * n)) for n, s in zip(sizes, shares, strict=True)]


@given(shared())
def test_counts_add_up_and_are_the_rounded_water_level(case):
    sizes, total, shares = case
    counts = counts_from_shares(sizes, total, shares)
    assert sum(counts) == total
    assert all(1 <= k <= n for k, n in zip(counts, sizes, strict=True))
    level = water_level(sizes, total, shares)
    assert all(abs(k - x) < 1 + 1e-4 for k, x in zip(counts, level, strict=True))


@given(shared(), st.floats(1e-3, 1e3))
def test_only_ratios_of_shares_matter(case, factor):
    sizes, total, shares = case
    first = counts_from_shares(sizes, total, shares)
    scaled = counts_from_shares(sizes, total, [s * factor for s in shares])
    assert sum(abs(a - b) for a, b in zip(first, scaled, strict=True)) <= 2  # a tie of remainders may fall otherwise


@given(st.data(), SIZES)
def test_any_counts_are_a_point(data, sizes):
    counts = tuple(data.draw(st.integers(1, n)) for n in sizes)
    shares = shares_of(sizes, counts)
    assert max(shares) == 1
    assert counts_from_shares(sizes, sum(counts), shares) == counts


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
@pytest.mark.parametrize("net", NETS)
def test_named_allocations_are_points(net, sparsity, allocation):
    structure = perceptron(net)
    sizes = structure.section_sizes("weight")
    counts = kept_counts(structure, "weight", sparsity, allocation)
    assert counts_from_shares(sizes, sum(counts), shares_of(sizes, counts)) == counts


@pytest.mark.parametrize(("sparsity", "densities"), [(0.5, [0.4341, 1, 1]), (0.9, [0.0796, 0.2302, 1.0])])
def test_erk_densities_of_lenet_are_its_shares(sparsity, densities):
    # Closed form of Evci et al. 2020, section 3, for 784-300-100-10, to 4 decimals: counts may be off by that.
    structure = perceptron((784, 300, 100, 10))
    sizes = structure.section_sizes("weight")
    counts = kept_counts(structure, "weight", sparsity, "erk")
    found = counts_from_shares(sizes, sum(counts), densities)
    assert all(abs(a - b) <= 5e-5 * n + 1 for a, b, n in zip(found, counts, sizes, strict=True))


def test_equal_shares_are_equal_densities():
    assert counts_from_shares([1000, 100, 10], 111, [0.3] * 3) == (100, 10, 1)


def test_ties_go_to_the_lower_index():
    assert counts_from_shares([10, 10, 10], 10, [1, 1, 1]) == (4, 3, 3)


@pytest.mark.parametrize(
    ("sizes", "total", "shares", "message"),
    [
        ([5, 5], 1, [1, 1], r"total=1 over sections of \[5, 5\]: must lie in 2..10"),
        ([5, 5], 11, [1, 1], "total=11"),
        ([5, 5], 4, [1, 0], r"shares=\[1, 0\]: one positive number for each of the 2"),
        ([5, 5], 4, [1], "shares="),
        ([5, 5], 4, [1, float("nan")], "shares="),
        ([5, 5], 4, [1, float("inf")], "shares="),
        ([], 0, [], "total=0"),
    ],
)
def test_impossible_totals_and_shares_are_refused(sizes, total, shares, message):
    with pytest.raises(SpaceError, match=message):
        counts_from_shares(sizes, total, shares)


def test_impossible_counts_have_no_shares():
    with pytest.raises(SpaceError, match=r"counts=\[0, 2\] for sections of \[5, 5\]"):
        shares_of([5, 5], [0, 2])
