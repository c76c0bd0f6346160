"""Domains: coordinates of values and back, counts, and refusals."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.domains import Bits, Choice, Float, Integer, shown
from sparsefront.spaces.masks import pack_bits

UNIT = st.floats(0, 1)
MAGNITUDE = st.floats(1e-12, 1e12)


@st.composite
def floats(draw):
    log = draw(st.booleans())
    low = draw(MAGNITUDE) if log else draw(st.floats(-1e9, 1e9))
    high = low * draw(st.floats(1.0001, 1e9)) if log else low + max(1.0, abs(low)) * draw(st.floats(1e-6, 1e6))
    return Float(low, high, log)


@st.composite
def integers(draw):
    log = draw(st.booleans())
    low = draw(st.integers(1, 10**6) if log else st.integers(-(10**6), 10**6))
    step = 1 if log else draw(st.integers(1, 1000))
    return Integer(low, low + step * draw(st.integers(1, 10**5)), log, step)


SCALARS = (
    st.lists(st.text(max_size=8), min_size=1, max_size=20, unique=True)
    | st.lists(st.integers(-1000, 1000), min_size=1, max_size=20, unique=True)
    | st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20, unique=True)
    | st.just([False, True])
    | st.just([True])
)
CHOICES = SCALARS.map(lambda values: Choice(tuple(values)))
CUBES = floats() | integers() | CHOICES


@given(CUBES, UNIT)
def test_decoded_values_are_values_and_survive_encoding(domain, u):
    value = domain.decode(u)
    assert domain.contains(value)
    assert domain.clip(value) == value
    again = domain.decode(domain.encode(value))
    assert again == value
    assert type(again) is type(value)
    assert 0 <= domain.encode(value) <= 1


@given(CUBES, st.lists(UNIT, max_size=5))
def test_values_decode_alike_alone_and_together(domain, units):
    assert domain.decode_all(np.array(units, dtype=float)) == [domain.decode(u) for u in units]


@given(floats() | integers())
def test_bounds_are_the_ends_of_the_axis(domain):
    assert (domain.decode(0.0), domain.decode(1.0)) == (domain.low, domain.high)
    assert (domain.decode(-3.0), domain.decode(3.0)) == (domain.low, domain.high)
    assert domain.contains(domain.low)
    assert domain.contains(domain.high)
    assert not domain.contains(math.nextafter(domain.high, math.inf))


@given(floats(), UNIT)
def test_coordinates_of_floats_come_back(domain, u):
    # ten digits of the length, or of a value whose logarithm spans at least 1e-4: 1e-10 / 1e-4 with room for arithmetic
    assert domain.encode(domain.decode(u)) == pytest.approx(u, abs=1e-5)


@given(floats() | integers(), UNIT, UNIT)
def test_decoding_is_monotone(domain, u, v):
    assert (domain.decode(u) <= domain.decode(v)) or u > v


@given(floats(), st.floats(allow_nan=False, allow_infinity=False))
def test_clipping_a_float_is_nearest(domain, value):
    assert domain.clip(value) == min(max(value, domain.low), domain.high)


@given(integers(), st.floats(-1e7, 1e7))
def test_clipping_an_integer_is_nearest(domain, value):
    clipped = domain.clip(value)
    assert domain.contains(clipped)
    near = range(max(domain.low, clipped - domain.step), min(domain.high, clipped + domain.step) + 1, domain.step)
    assert abs(clipped - value) <= min(abs(v - value) for v in near) + 1e-9


def test_every_integer_has_its_cell():
    for domain in (Integer(3, 40, log=True), Integer(-4, 8, step=3), Integer(1, 2, log=True)):
        values = list(range(domain.low, domain.high + 1, domain.step))
        assert domain.n_values == len(values)
        assert [domain.decode(domain.encode(v)) for v in values] == values


def test_cells_of_a_logarithmic_integer_are_as_long_as_on_a_log_scale():
    domain = Integer(1, 8, log=True)
    grid = np.array(domain.decode_all((np.arange(200_000) + 0.5) / 200_000))
    for v in range(1, 9):
        expected = (math.log(v + 0.5) - math.log(v - 0.5)) / (math.log(8.5) - math.log(0.5))
        assert np.mean(grid == v) == pytest.approx(expected, abs=2e-5)


def test_choices_of_a_kind():
    assert Choice((1, 0.5)).values == (1.0, 0.5)
    assert all(type(v) is float for v in Choice((1, 0.5)).values)
    flag = Choice((False, True))
    assert flag.contains(True)
    assert not flag.contains(1)
    assert not Choice((0, 1)).contains(True)
    assert Choice((32, 64, 128)).clip(70) == 64
    assert not Choice(("a",)).contains([])
    with pytest.raises(SpaceError, match="value='lion': must be one of"):
        Choice(("adam", "sgd")).clip("lion")
    with pytest.raises(SpaceError, match="value=1: must be one of"):
        flag.clip(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(0, 1, log=True), r"low=0.0: must be greater than 0 where log=true"),
        (lambda: Float(1, 1), r"high=1.0: must be greater than low=1.0"),
        (lambda: Float(float("nan"), 1), r"low=nan: must be a finite number"),
        (lambda: Float(0, float("inf")), r"high=inf: must be a finite number"),
        (lambda: Float(-1e308, 1e308), r"high=1e\+308 with low=-1e\+308: their distance"),
        (lambda: Float(1e-150, 1e150, log=True), r"high=1e\+150: must be at most 200 powers of ten above low=1e-150"),
        (lambda: Float("0", 1), r"low='0': must be a number"),
        (lambda: Float(True, 2), r"low=True: must be a number"),
        (lambda: Float(0, 10**400), r"high=1000*\.\.\.: must be a finite number"),
        (lambda: Float(0, 1, log="yes"), r"log='yes': must be true or false"),
        (lambda: Integer(0.5, 3), r"low=0.5: must be an integer"),
        (lambda: Integer(1, 2**60), r"high=\d+: must be an integer of at most 2\^53"),
        (lambda: Integer(1, 10, step=0), r"step=0: must be at least 1"),
        (lambda: Integer(1, 10, step=4), r"step=4: must divide high - low = 9"),
        (lambda: Integer(1, 9, log=True, step=2), r"step=2: must be 1 where log=true"),
        (lambda: Choice(()), r"choices=\[\]: at least one"),
        (lambda: Choice(("a", 1)), r"choices=\['a', 1\]: must be all text, all numbers or all flags"),
        (lambda: Choice((True, 2)), r"must be all text"),
        (lambda: Choice(([1],)), r"must be all text"),
        (lambda: Choice(("a", "a")), r"'a' may appear once"),
        (lambda: Choice((1, 1.0)), r"1.0 may appear once"),
        (lambda: Choice((1.0, float("nan"))), r"choices=nan: must be a finite number"),
        (lambda: Bits((4, 4), (0, 1)), r"kept=\[0, 1\]: 0 must lie in 1..4"),
        (lambda: Bits((4, 4), (1,)), r"kept=\[1\]: 1 must lie in 2..8"),
        (lambda: Bits((4, 4), (1, 1, 1)), r"one count for each section"),
        (lambda: Bits((), ()), r"one count for each section"),
    ],
)
def test_domains_that_cannot_be_are_refused(make, message):
    with pytest.raises(SpaceError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def all_masks(sections, kept):
    """Every mask with these counts, by trying all."""
    for bits in itertools.product((False, True), repeat=sum(sections)):
        parts, at = [], 0
        for n in sections:
            parts.append(sum(bits[at : at + n]))
            at += n
        if tuple(parts) == kept or (len(kept) == 1 < len(sections) and sum(parts) == kept[0] and min(parts) >= 1):
            yield pack_bits(np.array(bits)).tobytes()


@pytest.mark.parametrize(("sections", "kept"), [((4, 3), (2, 1)), ((5,), (2,)), ((3, 4, 2), (4,)), ((2, 2, 2), (6,))])
def test_bits_count_and_contain_all_masks(sections, kept):
    domain = Bits(sections, kept)
    masks = set(all_masks(sections, kept))
    assert domain.n_values == len(masks)
    size = -(-sum(sections) // 8)
    every = {bytes(b) for b in itertools.product(range(256), repeat=size)}
    assert {b for b in every if domain.contains(b)} == masks
    assert domain.first() in masks


def test_bits_of_a_large_network_are_uncountable_and_have_no_nearest():
    domain = Bits((235_200, 30_000, 1_000), (23_520, 3_000, 100))
    assert domain.n_values == math.inf
    assert domain.contains(domain.first())
    with pytest.raises(SpaceError, match=r"value=b'.*: must be the packed bits of a mask that keeps \[23520"):
        domain.clip(bytes(len(domain.first())))
    assert not domain.contains("1")
    assert Bits((2,) * 20, (30,)).n_values == math.inf


def test_what_an_error_shows_is_one_short_line():
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown(list(range(1000)))) == 100
    assert "digits" in shown(10**5000)
