"""The masks that scores lead to: exact counts in each section, or over all of them, for many lanes at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsefront.errors import SpaceError
from sparsefront.trainables.select import keep_sections_and_lows


def keep_best(
    scores: torch.Tensor, sizes: Sequence[int], counts: Sequence[int], *, left: torch.Tensor | None = None
) -> torch.Tensor:
    """`keep_sections` of scores that may be minus infinity, for what is gone; what cannot be is refused.

    Args:
        scores: (L, sum of sizes); minus infinity for what is gone already and cannot be kept.
        sizes: (s,) entries of each section.
        counts: (s,) survivors of each section; or (1,) survivors over all, of which each section keeps at least one.
        left: (L, sum of sizes) bool: what is not gone, where `scores` are not negative and zero of what is gone.

    Returns:
        (L, sum of sizes) bool.

    Raises:
        SpaceError: a count outside 1..the entries that are left.

    >>> keep_best(torch.tensor([[3.0, 1.0, 1.0, 1.0]]), [4], [2]).tolist()
    [[True, True, False, False]]
    """
    if len(counts) not in (1, len(sizes)):
        raise SpaceError(f"counts={list(counts)}: one for each of {len(sizes)} sections, or one over all, is needed")
    limits = sizes if len(counts) == len(sizes) else [sum(sizes)]
    for k, n in zip(counts, limits, strict=True):
        if not 1 <= k <= n:
            raise SpaceError(f"count={k} of {n} entries: must lie in 1..{n}")
    if len(counts) < len(sizes) and counts[0] < len(sizes):
        raise SpaceError(f"counts={list(counts)}: at least one survivor in each of {len(sizes)} sections is needed")
    masks, lows = keep_sections_and_lows(scores, sizes, counts)
    if left is not None and not bool((torch.cat(lows, dim=1) > 0).all()):  # zeros are kept: what is gone must be told
        return keep_best(scores.where(left, -torch.inf), sizes, counts)
    is_gone = torch.cat(lows, dim=1) == -torch.inf
    if bool(is_gone.any()):
        lanes = is_gone.any(dim=1).nonzero()[:, 0].tolist()
        raise SpaceError(f"lanes={lanes}: fewer entries are left than are to be kept; lower the density")
    return masks


def check_finite(what: str, values: torch.Tensor) -> None:
    """Refuse lanes with `values` (L, n) that are not finite; `what` says what they are."""
    # A sum is finite if every term is, unless it overflows: then entry by entry.
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        lanes = (~values.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
        raise SpaceError(f"{what} of lanes={lanes}: must be finite; a diverged network cannot be pruned")
