from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.overlap import pairwise_overlap


def every_mask(sizes, counts):
    sections = [
        [np.isin(np.arange(n), kept) for kept in itertools.combinations(range(n), k)]
        for n, k in zip(sizes, counts, strict=True)
    ]
    return np.array([np.concatenate(parts) for parts in itertools.product(*sections)])


@pytest.mark.parametrize(("sizes", "counts"), [([5], [2]), ([4, 3], [2, 1]), ([3, 4, 2], [3, 1, 1])])
def test_chance_is_that_of_all_masks(sizes, counts):
    """Mean and variance of the shared entries of two masks that are drawn independently, by listing all of them."""
    masks = every_mask(sizes, counts)
    found = pairwise_overlap(masks, sizes)
    shared = [int((a & b).sum()) for a, b in itertools.product(masks, masks)]
    np.testing.assert_allclose(found.n_expected, np.mean(shared))
    np.testing.assert_allclose(found.z, (found.n_shared - np.mean(shared)) / np.std(shared))


@given(st.integers(0, 2**32 - 1))
def test_pairs_are_counted_as_sets(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, size=3).tolist()
    masks = rng.random((4, sum(sizes))) < 0.5
    found = pairwise_overlap(masks, sizes)
    for i, (a, b) in enumerate(itertools.combinations(masks, 2)):
        one, other = set(np.flatnonzero(a)), set(np.flatnonzero(b))
        assert found.n_shared[i] == len(one & other)
        if one | other:
            assert found.jaccard[i] == pytest.approx(len(one & other) / len(one | other))
        else:
            assert np.isnan(found.jaccard[i])
    assert not (found.beyond_chance > 1 + 1e-12).any()


def test_hand_examples():
    masks = np.array([[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]], dtype=bool)
    found = pairwise_overlap(masks, [4, 2])  # the second section leaves no choice
    assert found.n_shared.tolist() == [4, 2, 2]
    assert found.n_expected.tolist() == [3, 3, 3]
    assert found.jaccard.tolist() == [1, 1 / 3, 1 / 3]
    assert found.beyond_chance.tolist() == [1, -1, -1]
    dense = pairwise_overlap(np.ones((2, 6), dtype=bool), [4, 2])
    assert dense.jaccard.tolist() == [1]
    assert np.isnan([dense.beyond_chance, dense.z]).all()
    assert len(pairwise_overlap(masks[:1], [4, 2]).jaccard) == 0


def test_sections_have_to_add_up():
    with pytest.raises(SpaceError, match=r"masks of shape \(2, 6\) for sections of \[4, 3\]: must be \(m, 7\)"):
        pairwise_overlap(np.ones((2, 6), dtype=bool), [4, 3])
