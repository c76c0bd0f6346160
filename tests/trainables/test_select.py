"""Selection of the k best: exact, ties to the lower index, every row by itself."""

import itertools
import math
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.spaces.masks import top_k
from sparsefront.trainables import select
from sparsefront.trainables.select import keep_sections, keep_sections_and_lows, keep_top, ranks
from tests.oracles.spaces import best


@st.composite
def scored(draw, *, min_size=1):
    """Rows full of ties."""
    n_lanes, n = draw(st.integers(1, 4)), draw(st.integers(min_size, 12))
    values = draw(st.lists(st.integers(-3, 3), min_size=n_lanes * n, max_size=n_lanes * n))
    return torch.tensor(values, dtype=draw(st.sampled_from([torch.float32, torch.int32, torch.float64]))).view(
        n_lanes, n
    )


def slow(scores, counts):
    return [
        [i in chosen for i in range(len(row))]
        for row, k in zip(scores.tolist(), counts, strict=True)
        for chosen in [best(row, k)]
    ]


@settings(deadline=None)
@given(scored(), st.data())
def test_exactly_k_are_kept_and_ties_go_to_the_lower_index(scores, data):
    before = scores.clone()
    k = data.draw(st.integers(0, scores.shape[1]))
    assert keep_top(scores, k).tolist() == slow(scores, [k] * len(scores))
    assert torch.equal(scores, before)


@settings(deadline=None)
@given(scored(), st.data())
def test_every_row_may_keep_a_number_of_its_own(scores, data):
    counts = [data.draw(st.integers(0, scores.shape[1])) for _ in scores]
    assert keep_top(scores, torch.tensor(counts)).tolist() == slow(scores, counts)


@settings(deadline=None)
@given(scored(), st.data())
def test_the_threshold_is_the_same_on_the_host_and_on_a_device(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    counts = torch.tensor([data.draw(st.integers(0, scores.shape[1])) for _ in scores])
    for each in (k, counts):
        assert torch.equal(select._threshold_on_host(scores, each), select._threshold_on_device(scores, each))


@settings(deadline=None)
@given(scored(min_size=3), st.data())
def test_sections_agree_with_the_masks_of_spaces(scores, data):
    width = scores.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, width - 1), max_size=2)))
    sizes = np.diff([0, *cuts, width]).tolist()
    scores = scores.float()
    counts = (
        [data.draw(st.integers(1, n)) for n in sizes]
        if data.draw(st.booleans())
        else [data.draw(st.integers(len(sizes), width))]
    )
    expected = [top_k(row.numpy(), sizes, counts).tolist() for row in scores]
    assert keep_sections(scores, sizes, counts).tolist() == expected


def test_a_row_that_is_not_finite_is_its_own_business():
    scores = torch.rand(3, 500, generator=torch.Generator().manual_seed(0))
    expected = keep_top(scores, 40)
    scores[1, ::2] = torch.nan
    for k in (40, torch.tensor([40, 40, 40])):
        found = keep_top(scores, k)
        assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("n", [10_000, 33_000, 300_000])
def test_large_rows_agree_with_a_stable_sort(n):
    scores = torch.randn(4, n, generator=torch.Generator().manual_seed(1)).mul(100).round()  # full of ties
    scores[2, 50:] = -1
    for k in (1, n // 10, n - 1):
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        expected = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order, value=True)
        assert torch.equal(keep_top(scores, k), expected)
        assert torch.equal(keep_top(scores, torch.full((4,), k)), expected)


#: Both zeros, what is smaller than any normal number, both ends, and what is gone.
CORNERS = (0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.0, 1.0000001, -1.0, 3.4028235e38, -3.4028235e38, -math.inf)


@contextmanager
def short_rows_of_many():
    """Rows of 9 and more entries are selected from as long ones are: a sample of 4 or so first, blocks of 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_MANY", 9)
        patch.setattr(select, "_SAMPLED", 4)
        patch.setattr(select, "_BLOCK", 5)
        yield


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    n_lanes=st.integers(1, 3),
    n=st.integers(9, 60),
    corners=st.sets(st.sampled_from(CORNERS), min_size=1),
    corner_fraction=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_long_rows_agree_with_the_slow_selection(seed, n_lanes, n, corners, corner_fraction, dtype, data):
    numbers = np.random.Generator(np.random.Philox(key=seed))
    rows = numbers.choice(sorted(corners), (n_lanes, n))
    rows = np.where(numbers.random(rows.shape) < corner_fraction, rows, numbers.standard_normal(rows.shape))
    scores = torch.from_numpy(rows).to(dtype)
    k = data.draw(st.integers(0, n))
    before = scores.clone()
    with short_rows_of_many():
        assert keep_top(scores, k).tolist() == slow(scores, [k] * n_lanes)
    assert torch.equal(scores, before)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=3)))
    sizes = np.diff([0, *cuts, n]).tolist()
    counts = (
        [data.draw(st.integers(1, size)) for size in sizes]
        if data.draw(st.booleans())
        else [data.draw(st.integers(len(sizes), n))]
    )
    with short_rows_of_many():
        masks, lows = keep_sections_and_lows(scores, sizes, counts)
    assert masks.tolist() == [top_k(row.double().clamp_min(-1e300).numpy(), sizes, counts).tolist() for row in scores]
    assert torch.equal(torch.cat(lows, dim=1).amin(dim=1), scores.where(masks, torch.inf).amin(dim=1))


class Made:
    """A row whose blocks are made, of unlike lengths, in one place."""

    def __init__(self, scores):
        self.scores = scores

    def __len__(self):
        return len(self.scores)

    def every(self, step):
        return self.scores[::step].copy()

    def blocks(self):
        buffer, start = np.empty(7), 0
        for size in itertools.cycle((3, 1, 7)):
            if start >= len(self):
                return
            block = buffer[: min(size, len(self) - start)]
            block[:] = self.scores[start : start + size]
            yield block
            start += size

    def between(self, low, high):
        self.compared = select.compare(self.blocks(), low, high, np.empty(len(self), np.bool_))
        is_between = ~(self.scores < low) & ~(self.scores > high)
        assert self.compared.places.tolist() == np.flatnonzero(is_between).tolist()
        np.testing.assert_array_equal(self.compared.values, self.scores[is_between])
        assert self.compared.n_above == np.count_nonzero(self.scores > high)
        return self.compared.n_above, self.compared.values


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 60),
    n_values=st.sampled_from([2, 10, 10**6]),
    nan_fraction=st.sampled_from([0.0, 0.1]),
    data=st.data(),
)
def test_rows_that_are_made_block_by_block_are_cut_as_those_that_exist(seed, n, n_values, nan_fraction, data):
    numbers = np.random.Generator(np.random.Philox(key=seed))
    scores = numbers.integers(0, n_values, n) / n_values
    scores[numbers.random(n) < nan_fraction] = np.nan
    k = data.draw(st.integers(0, n))
    row = Made(scores)
    with short_rows_of_many():
        stay = select.cut_row(row, k)
    if stay is None:
        return
    kept = row.compared.keep(stay)
    assert torch.equal(torch.from_numpy(kept[None]), keep_top(torch.from_numpy(scores[None]), k))
    assert (scores[kept] > 0).all()


def test_a_long_row_is_cut_block_by_block_as_long_as_what_is_kept_is_positive():
    numbers = np.random.Generator(np.random.Philox(key=1))
    scores = numbers.random(300_000)
    scores[1000:1010] = scores[:10]
    scores[numbers.permutation(300_000)[:100_000]] = 0
    n_left = int(np.count_nonzero(scores))
    for k in (30_000, n_left - 100, n_left):  # of the last two a sample finds little but zeros below the threshold
        row = Made(scores)
        stay = select.cut_row(row, k)
        assert torch.equal(torch.from_numpy(row.compared.keep(stay))[None], keep_top(torch.from_numpy(scores[None]), k))
        assert (scores[row.compared.places] > 0).all()
    assert select.cut_row(Made(scores), n_left + 1) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_long_rows_of_all_sorts_agree_with_a_stable_sort(dtype):
    """Where the sample brackets the threshold, and where it cannot: sorted, periodic, of few values, mostly gone."""
    numbers, n = np.random.Generator(np.random.Philox(key=3)), 270_000
    row = numbers.standard_normal(n).astype(dtype)
    periodic = np.zeros(n, dtype)
    periodic[:: n // select._SAMPLED | 1] = row[:: n // select._SAMPLED | 1]
    gone = np.where(numbers.random(n) < 0.8, dtype(-np.inf), row)
    sizes = [1000, 199_000, 69_900, 100]
    for scores in (row, np.sort(row), np.sign(row), np.maximum(row, 0), gone, periodic):
        order = np.argsort(-scores, kind="stable")
        for k in (5, 3000, 30_000, 150_000, 269_990):
            expected = np.zeros(n, np.bool_)
            expected[order[:k]] = True
            assert np.array_equal(keep_top(torch.from_numpy(scores[None]), k)[0].numpy(), expected)
        mask = keep_sections(torch.from_numpy(scores[None]), sizes, [300])[0].numpy()
        assert np.array_equal(mask, top_k(np.maximum(scores.astype(np.float64), -1e300), sizes, [300]))


def slow_of_numbers(row, k):
    """The k highest of what is a number, none if there are fewer: (n,) bool."""
    kept = np.zeros(len(row), np.bool_)
    order = np.argsort(-row, kind="stable")  # what is not a number comes last
    if k and not np.isnan(row[order[k - 1]]):
        kept[order[:k]] = True
    return kept


def slow_of_sections(row, sizes, k):
    """The best of each section, which is what is not a number if it has that, and then the highest."""
    lifted, start = row.copy(), 0
    for size in sizes:
        section = row[start : start + size]
        lacking = np.flatnonzero(np.isnan(section))
        lifted[start + (lacking[0] if len(lacking) else section.argmax())] = np.inf
        start += size
    return slow_of_numbers(lifted, k)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(9, 60),
    nan_fraction=st.sampled_from([0.02, 0.3, 0.6, 0.95, 1.0]),
    n_values=st.sampled_from([3, 1000]),
    is_long=st.booleans(),
    data=st.data(),
)
def test_rows_with_what_is_not_a_number_keep_the_highest_that_are(seed, n, nan_fraction, n_values, is_long, data):
    numbers = np.random.Generator(np.random.Philox(key=seed))
    rows = numbers.integers(-n_values, n_values, (3, n)).astype(np.float32)
    rows[1, numbers.random(n) < nan_fraction] = np.nan
    scores, k = torch.from_numpy(rows), data.draw(st.integers(1, n - 1))
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=3)))
    sizes = np.diff([0, *cuts, n]).tolist()
    total = data.draw(st.integers(len(sizes), n - 1)) if len(sizes) < n else n
    with short_rows_of_many() if is_long else nullcontext():
        assert np.array_equal(keep_top(scores, k), [slow_of_numbers(row, k) for row in rows])
        if len(sizes) > 1:
            masks = keep_sections(scores, sizes, [total])
            assert np.array_equal(masks, [slow_of_sections(row, sizes, total) for row in rows])


@pytest.mark.parametrize("where", [slice(None), slice(1, None, 2), slice(5, 6)])
def test_a_long_row_that_diverged_is_selected_from_as_a_short_one_is(where):
    n = 1 << 18
    rows = np.random.Generator(np.random.Philox(key=4)).standard_normal((3, n)).astype(np.float32)
    rows[1, where] = np.nan
    scores, sizes = torch.from_numpy(rows), [1000, 200_000, 61_044, 100]
    for k in (26_000, 131_072, 200_000):
        assert np.array_equal(keep_top(scores, k), [slow_of_numbers(row, k) for row in rows])
        assert np.array_equal(keep_sections(scores, sizes, [k]), [slow_of_sections(row, sizes, k) for row in rows])


def test_sections_of_a_view_are_read_where_they_lie():
    flat = torch.rand(3, 60, generator=torch.Generator().manual_seed(2))
    assert torch.equal(keep_top(flat[:, 7:31], 5), keep_top(flat[:, 7:31].clone(), 5))


@settings(deadline=None)
@given(scored(), st.integers(0, 12))
def test_places_are_those_of_a_stable_sort(scores, n_more):
    """Few entries are compared with each other, many are sorted."""
    scores = torch.cat([scores, scores[:, :1].expand(-1, n_more)], dim=1)
    expected = [
        [sorted(range(len(row)), key=lambda j: (-row[j], j)).index(i) for i in range(len(row))]
        for row in scores.tolist()
    ]
    assert ranks(scores).tolist() == expected
    assert ranks(scores[:, None]).tolist() == [[row] for row in expected]
