"""Selection of the best: against the one that works on one mask at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import top_k
from sparsefront.trainables.pruning import keep_best


@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    n_values=st.sampled_from([1, 2, 5, 1000]),
    data=st.data(),
)
def test_lanes_are_cut_as_masks_by_themselves(seed, sizes, n_values, data):
    numbers = np.random.Generator(np.random.Philox(key=seed))
    scores = numbers.integers(-n_values, n_values, (3, sum(sizes))).astype(np.float32)
    if data.draw(st.booleans(), label="global"):
        counts = [data.draw(st.integers(len(sizes), sum(sizes)))]
    else:
        counts = [data.draw(st.integers(1, n)) for n in sizes]
    masks = keep_best(torch.from_numpy(scores), sizes, counts)
    for mask, row in zip(masks.numpy(), scores, strict=True):
        assert mask.tolist() == top_k(row, sizes, counts).tolist()


def test_counts_that_no_mask_can_have_are_refused():
    scores = torch.tensor([[1.0, 2, 3, 4, 5], [1.0, 2, -torch.inf, -torch.inf, 5]])
    with pytest.raises(SpaceError, match=r"count=4 of 3 entries: must lie in 1\.\.3"):
        keep_best(scores, [2, 3], [1, 4])
    with pytest.raises(SpaceError, match=r"counts=\[1\]: at least one survivor in each of 2 sections is needed"):
        keep_best(scores, [2, 3], [1])
    with pytest.raises(SpaceError, match=r"counts=\[1, 1, 1\]: one for each of 2 sections, or one over all, is needed"):
        keep_best(scores, [2, 3], [1, 1, 1])
    with pytest.raises(SpaceError, match=r"lanes=\[1\]: fewer entries are left than are to be kept"):
        keep_best(scores, [2, 3], [1, 2])
    with pytest.raises(SpaceError, match=r"lanes=\[1\]: fewer entries are left than are to be kept"):
        keep_best(scores, [2, 2, 1], [3])


def test_counts_that_no_long_row_can_have_are_refused():
    """Rows of which only a sample is looked at first."""
    n = 300_000
    scores = torch.rand(2, n, generator=torch.Generator().manual_seed(0))
    scores[1, 100_000:] = -torch.inf
    scores[1, -1] = 1
    for dtype in (torch.float32, torch.float64):
        assert keep_best(scores.to(dtype), [n - 1, 1], [100_001]).sum(dim=1).tolist() == [100_001] * 2
        with pytest.raises(SpaceError, match=r"lanes=\[1\]: fewer entries are left than are to be kept"):
            keep_best(scores.to(dtype), [n - 1, 1], [100_002])
        with pytest.raises(SpaceError, match=r"lanes=\[1\]: fewer entries are left than are to be kept"):
            keep_best(scores.to(dtype), [200_000, 50_000, 50_000], [3])
        with pytest.raises(SpaceError, match=r"lanes=\[1\]: fewer entries are left than are to be kept"):
            keep_best(scores.to(dtype), [200_000, 50_000, 50_000], [1, 1, 2])


@pytest.mark.parametrize("counts", [[2], [2, 1]])
def test_what_scores_zero_and_is_left_goes_before_what_is_gone(counts):
    scores = torch.tensor([[0.0, 0.0, 5.0, 0.0, 3.0]])
    left = torch.tensor([[False, True, True, False, True]])
    sizes = [5] if len(counts) == 1 else [4, 1]
    expected = [[False, False, True, False, True]] if len(counts) == 1 else [[False, True, True, False, True]]
    assert keep_best(scores, sizes, counts, left=left).tolist() == expected
    assert keep_best(scores, sizes, [3], left=left).tolist() == [[False, True, True, False, True]]
    with pytest.raises(SpaceError, match="fewer entries are left than are to be kept"):
        keep_best(scores, sizes, [4], left=left)
