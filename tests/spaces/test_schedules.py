"""Schedules: published vectors, exact ends, and levels that meet every target."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.allocations.registry import kept_count
from sparsefront.spaces.schedules import cubic, drop_fraction, geometric, levels, update_steps

spans = st.tuples(st.integers(0, 50), st.integers(0, 200), st.integers(1, 60))


def test_the_cubic_schedule_to_nine_tenths_in_ten_steps():
    found = [round(cubic(t, begin=0, end=10, every=1, final=0.9), 4) for t in range(11)]
    assert found == [0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]


@given(spans)
def test_updates_are_evenly_spaced_from_the_first_to_the_last_step(span):
    begin, length, every = span
    steps = update_steps(begin, begin + length, every)
    assert (steps[0], steps[-1]) == (begin, begin + length)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert all(gap == every for gap in gaps[:-1])
    assert all(1 <= gap <= every for gap in gaps[-1:])


@given(spans, st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0.5, 5))
def test_sparsity_rises_at_updates_only_and_ends_exactly(span, a, b, power):
    begin, length, every = span
    initial, final = sorted((a, b))
    steps = update_steps(begin, begin + length, every)

    def at(t):
        return cubic(t, begin=begin, end=begin + length, every=every, initial=initial, final=final, power=power)

    values = [at(t) for t in range(begin + length + 3)]
    assert values[:begin] == [initial] * begin
    assert values[begin + length :] == [final] * 3
    for t, (before, after) in enumerate(itertools.pairwise(values), start=1):
        assert after == before if t not in steps else after >= before - 1e-15
    for t in steps[:-1]:
        left = 1 - (t - begin) / length
        assert at(t) == pytest.approx(final - (final - initial) * left**power, abs=1e-12)


def test_everything_goes_at_once_where_begin_is_end():
    assert [cubic(t, begin=5, end=5, every=3, final=0.8) for t in (4, 5, 6)] == [0.0, 0.8, 0.8]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.3, 0.3, 0.3, 0.3, 0.0]),
        ("cosine", [0.3, 0.15 * (1 + math.sqrt(0.5)), 0.15, 0.15 * (1 - math.sqrt(0.5)), 0.0]),
        ("linear", [0.3, 0.225, 0.15, 0.075, 0.0]),
    ],
)
def test_drop_fractions_decay_as_published(kind, expected):
    found = [drop_fraction(t, fraction=0.3, end=100, kind=kind) for t in (0, 25, 50, 75, 100)]
    assert found == pytest.approx(expected, abs=1e-15)
    assert drop_fraction(1000, fraction=0.3, end=100, kind=kind) == 0


def test_rounds_keep_the_same_share_each():
    densities = [geometric(0.05, i, 100) for i in range(101)]
    assert (densities[0], densities[-1]) == (1.0, 0.05)
    assert [b / a for a, b in itertools.pairwise(densities)] == pytest.approx([0.05**0.01] * 100)


def test_levels_of_the_usual_rate_are_its_powers():
    for n in range(1, 40):
        chain = levels([1 - 0.8**n])
        assert len(chain) == n + 1
        assert chain == pytest.approx([0.8**i for i in range(n + 1)])
    assert [round(levels([1 - 0.8**20])[n], 4) for n in (1, 5, 10, 11, 15, 20)] == [
        0.8, 0.3277, 0.1074, 0.0859, 0.0352, 0.0115,
    ]  # fmt: skip


@given(
    st.lists(st.integers(0, 9_999), min_size=1, max_size=6, unique=True).map(sorted),
    st.floats(0.01, 0.9),
)
def test_levels_meet_every_target_exactly_and_never_remove_more_than_the_rate(ten_thousandths, rate):
    targets = [i / 10_000 for i in ten_thousandths]
    chain = levels(targets, rate)
    assert chain[0] == 1.0
    assert chain[-1] == 1 - targets[-1]
    stops = [chain.index(1 - s) for s in targets]
    assert stops == sorted(set(stops))
    kept = [b / a for a, b in itertools.pairwise(chain)]
    assert all((1 - rate) * (1 - 1e-8) <= share < 1 for share in kept)
    for a, b in itertools.pairwise(sorted({0, *stops})):
        assert kept[a:b] == pytest.approx([kept[a]] * (b - a))  # equal steps
        if b - a > 1:  # and no fewer would do
            assert (chain[b] / chain[a]) ** (1 / (b - a - 1)) < 1 - rate
    for s, i in zip(targets, stops, strict=True):
        assert kept_count(1 - (1 - chain[i]), 44_288) == kept_count(1 - s, 44_288)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: update_steps(5, 4, 1), "begin=5, end=4, every=1: 0 <= begin <= end and every >= 1 are needed"),
        (lambda: update_steps(0, 4, 0), "begin=0, end=4, every=0: "),
        (lambda: cubic(0, begin=-1, end=4, every=1, final=0.5), "begin=-1, end=4"),
        (lambda: cubic(0, begin=0, end=4, every=1, final=1.0), r"final=1.0: sparsities in \[0, 1\)"),
        (lambda: cubic(0, begin=0, end=4, every=1, initial=0.9, final=0.5), "initial=0.9, final=0.5"),
        (lambda: cubic(0, begin=0, end=4, every=1, final=math.nan), "final=nan"),
        (lambda: cubic(0, begin=0, end=4, every=1, final=0.5, power=0), "power=0: must be positive"),
        (lambda: drop_fraction(0, fraction=0.3, end=9, kind="cosin"), "kind='cosin' .* did you mean 'cosine'"),
        (lambda: drop_fraction(0, fraction=1.3, end=9), r"fraction=1.3 of connections to drop: must lie in \[0, 1\]"),
        (lambda: drop_fraction(0, fraction=0.3, end=0), "step=0, end=0: "),
        (lambda: drop_fraction(-1, fraction=0.3, end=9), "step=-1, end=9: "),
        (lambda: geometric(0.0, 1, 2), r"density=0.0: must lie in \(0, 1\]"),
        (lambda: geometric(0.5, 3, 2), "round i=3 of n=2: "),
        (lambda: geometric(0.5, 0, 0), "round i=0 of n=0: "),
        (lambda: levels([]), r"targets=\[\]: "),
        (lambda: levels([0.5, 0.5]), r"targets=\[0.5, 0.5\]: sparsities in \[0, 1\), strictly ascending"),
        (lambda: levels([0.5, 1.0]), r"targets=\[0.5, 1.0\]"),
        (lambda: levels([0.5], 1.0), r"rate=1.0: the share that a level removes must lie in \(0, 1\)"),
    ],
)
def test_schedules_that_cannot_be_are_refused(call, message):
    with pytest.raises(SpaceError, match=message):
        call()
