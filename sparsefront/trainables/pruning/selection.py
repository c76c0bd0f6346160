"""The masks that scores lead to: exact counts in each section, or over all of them, for many lanes at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from sparsefront.errors import SpaceError
from sparsefront.trainables.select import keep_top


def keep_best(scores: torch.Tensor, sizes: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
    """The masks that keep the highest scores: exactly `counts`, ties to the lower index; `spaces.masks.top_k` batched.

    Args:
        scores: (L, sum of sizes); minus infinity for what is gone already and cannot be kept.
        sizes: (s,) entries of each section.
        counts: (s,) survivors of each section; or (1,) survivors over all, of which each section keeps at least one.

    Returns:
        (L, sum of sizes) bool.

    Raises:
        SpaceError: a count outside 1..the entries that are left.

    >>> keep_best(torch.tensor([[3.0, 1.0, 1.0, 1.0]]), [4], [2]).tolist()
    [[True, True, False, False]]
    """
    if len(counts) == 1 and len(sizes) > 1:
        if counts[0] < len(sizes):
            raise SpaceError(f"counts={list(counts)}: at least one survivor in each of {len(sizes)} sections is needed")
        masks = _top(scores, counts[0])
        # In numpy, which stops at the first one that it finds.
        host = torch.split(masks.cpu(), list(sizes), dim=1)
        if not all(part.numpy().any(axis=1).all() for part in host):
            masks = _top(_with_best_first(scores, sizes), counts[0])
        return masks
    if len(counts) != len(sizes):
        raise SpaceError(f"counts={list(counts)}: one for each of {len(sizes)} sections, or one over all, is needed")
    parts = torch.split(scores, list(sizes), dim=1)
    return torch.cat([_top(part, k) for part, k in zip(parts, counts, strict=True)], dim=1)


def _with_best_first(scores: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The scores with infinity at the best entry of each section, the first of equals."""
    lifted = scores.clone()
    for a, b in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
        best, where = scores[:, a:b].max(dim=1, keepdim=True)
        _check(best == -torch.inf)
        lifted[:, a:b].scatter_(1, where, torch.inf)
    return lifted


def _top(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k highest of each row (L, n), ties to the lower index."""
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise SpaceError(f"count={k} of {n} entries: must lie in 1..{n}")
    masks = keep_top(scores, k)
    if bool(scores.amin() == -torch.inf):
        _check(masks & (scores == -torch.inf))
    return masks


def _check(is_gone: torch.Tensor) -> None:
    """Refuse masks that keep what is gone already: (L, any) bool."""
    lanes = np.flatnonzero(is_gone.cpu().numpy().any(axis=1)).tolist()
    if lanes:
        raise SpaceError(f"lanes={lanes}: fewer entries are left than are to be kept; lower the density")
