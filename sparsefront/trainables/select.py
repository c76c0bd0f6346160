"""The k best of each row, exactly: the selection behind masks that change in training, for all lanes at once.

`spaces.masks.top_k` is the same rule for one mask in numpy. Higher is better; ties go to the lower flat index.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch


def keep_top(scores: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """The k highest entries of each row: (L, n) bool on the device of `scores`.

    Rows do not see each other; a row with a score that is not a number may keep fewer. On a GPU nothing waits for the
    device.

    Args:
        scores: (L, n), finite, of any real type; overwritten never.
        k: entries to keep of each row, 0..n; or (L,) integers, one for each row.

    Cost: O(L n). On a CPU by numpy's vectorised selection: 32 rows of 32,768 take 2 ms of one core, where
    ``torch.kthvalue`` takes 12 and a stable sort 77.

    >>> keep_top(torch.tensor([[3.0, 1.0, 1.0, 1.0]]), 2).tolist()
    [[True, True, False, False]]
    """
    n = scores.shape[1]
    if isinstance(k, int) and k in (0, n):
        return torch.full(scores.shape, k == n, dtype=torch.bool, device=scores.device)
    if isinstance(k, torch.Tensor):
        k = k.to(scores.device)
    if scores.device.type == "cpu":
        threshold = _threshold_on_host(scores, k)
        kept = scores >= threshold
        n_kept = torch.from_numpy(np.count_nonzero(kept.numpy(), axis=1))
        if bool((n_kept == k).all()):  # no ties at the threshold
            return kept
    else:
        threshold = _threshold_on_device(scores, k)
    above, equal = scores > threshold, scores == threshold
    missing = (k - above.sum(dim=1))[:, None]
    return above.logical_or_(equal.logical_and_(equal.cumsum(dim=1) <= missing))


def _threshold_on_device(scores: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """The k-th highest entry of each row, (L, 1); of a row that keeps nothing, its highest."""
    if isinstance(k, int):
        return torch.kthvalue(scores, scores.shape[1] - k + 1, dim=1, keepdim=True).values
    ordered = scores.sort(dim=1, descending=True).values
    return ordered.gather(1, (k[:, None] - 1).clamp_min(0))


def _threshold_on_host(scores: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """The same, faster."""
    # Of the negative: many equal low scores (masked weights) make the selection of the highest ten times slower.
    negative = -scores.numpy()
    if isinstance(k, int):
        negative.partition(k - 1, axis=1)
        return torch.from_numpy(-negative[:, k - 1 : k])
    places = np.maximum(k.numpy() - 1, 0)
    for row, place in zip(negative, places, strict=True):
        row.partition(place)
    return torch.from_numpy(-np.take_along_axis(negative, places[:, None], axis=1))


def keep_sections(scores: torch.Tensor, sizes: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
    """The highest entries of each row, exactly `counts` of its sections: (L, W) bool.

    Args:
        scores: (L, W), finite.
        sizes: (s,) entries of each section, W in all.
        counts: (s,) entries to keep of each section; or (1,) over all sections, of which each keeps at least its best.

    >>> keep_sections(torch.tensor([[5.0, 4.0, 3.0, 1.0]]), [3, 1], [2]).tolist()
    [[True, False, False, True]]
    """
    edges = list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
    if len(counts) == len(sizes):
        return torch.cat([keep_top(scores[:, a:b], k) for (a, b), k in zip(edges, counts, strict=True)], dim=1)
    lifted = scores.clone()
    for a, b in edges:
        lifted.scatter_(1, scores[:, a:b].argmax(dim=1, keepdim=True) + a, torch.inf)
    return keep_top(lifted, counts[0])


#: Units of a group up to which comparing each with each is faster than a sort (4 of 262,144 groups: 5 ms against 23).
_FEW = 8


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Place of each entry among those of its last dimension: 0 for the highest, the lower index first of equals.

    A row with a score that is not a number may have places twice.

    >>> ranks(torch.tensor([[3.0, 1.0, 1.0, 5.0]])).tolist()
    [[1, 2, 3, 0]]
    """
    n = scores.shape[-1]
    if n > _FEW:
        order = scores.argsort(dim=-1, descending=True, stable=True)
        return torch.empty_like(order).scatter_(-1, order, torch.arange(n, device=order.device).expand_as(order))
    columns = scores.movedim(-1, 0).contiguous()
    places = torch.zeros(columns.shape, dtype=torch.uint8, device=scores.device)
    for later in range(n):
        for earlier in range(later):
            wins = columns[later] > columns[earlier]
            places[earlier] += wins
            places[later] += ~wins
    return places.movedim(0, -1)
