"""Selection of the k best: exact, ties to the lower index, every row by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.spaces.masks import top_k
from sparsefront.trainables import select
from sparsefront.trainables.select import keep_sections, keep_top, ranks
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


@pytest.mark.parametrize("n", [10_000, 33_000])
def test_large_rows_agree_with_a_stable_sort(n):
    scores = torch.randn(4, n, generator=torch.Generator().manual_seed(1)).mul(100).round()  # full of ties
    scores[2, 50:] = -1
    for k in (1, n // 10, n - 1):
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        expected = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order, value=True)
        assert torch.equal(keep_top(scores, k), expected)
        assert torch.equal(keep_top(scores, torch.full((4,), k)), expected)


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
