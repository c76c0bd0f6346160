"""Layer-wise sparsity at a fixed total: a point of the simplex as exact counts, and counts as such a point.

Every rule that divides a total over layers is a point here: equal shares are the uniform allocation, ERK's densities
are its shares (Evci et al., Rigging the lottery, 2020, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsefront.errors import SpaceError

#: An exact count that arithmetic in float64 missed by less than this is that count.
_ROUNDING = 1e-6


def counts_from_shares(sizes: Sequence[int], total: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Survivors of each section: proportional to share x size, each in 1..size, adding up to `total` exactly.

    Sections that would exceed their size are full and the rest is scaled again, as ERK does; no section falls below one
    survivor. What is left after rounding down goes to the largest remainders, ties to the lower index.

    Args:
        sizes: (s,) entries of each section.
        total: survivors over all sections, s..sum of sizes.
        shares: (s,) positive; only their ratios matter. Equal shares mean equal densities.

    Raises:
        SpaceError: a total that cannot be reached, or a share that is not positive and finite.

    >>> counts_from_shares([100, 100, 10], 63, [1.0, 0.5, 8.0])
    (35, 18, 10)
    """
    if len(shares) != len(sizes) or not all(0 < s < math.inf for s in shares):
        raise SpaceError(f"shares={list(shares)}: one positive number for each of the {len(sizes)} sections is needed")
    if not len(sizes) <= total <= sum(sizes) or min(sizes, default=0) < 1:
        raise SpaceError(
            f"total={total} over sections of {list(sizes)}: must lie in {len(sizes)}..{sum(sizes)}; each keeps one"
        )
    largest = max(shares)
    wanted = _filled(sizes, total, [share / largest for share in shares])
    counts = [min(n, max(1, math.floor(x + _ROUNDING))) for x, n in zip(wanted, sizes, strict=True)]
    while (left := total - sum(counts)) != 0:
        step = 1 if left > 0 else -1
        room = [i for i, (c, n) in enumerate(zip(counts, sizes, strict=True)) if (c < n if step > 0 else c > 1)]
        room.sort(key=lambda i: (-step * round(wanted[i] - counts[i], 9), i))
        for i in room[: abs(left)]:
            counts[i] += step
    return tuple(counts)


def shares_of(sizes: Sequence[int], counts: Sequence[int]) -> tuple[float, ...]:
    """Shares, the largest 1, from which `counts_from_shares` makes exactly these counts.

    >>> shares_of([100, 50], [20, 20])
    (0.5, 1.0)

    Raises:
        SpaceError: a count outside 1..size.
    """
    if len(counts) != len(sizes) or any(not 1 <= k <= n for k, n in zip(counts, sizes, strict=True)):
        raise SpaceError(f"counts={list(counts)} for sections of {list(sizes)}: each must lie in 1..size")
    densities = [k / n for k, n in zip(counts, sizes, strict=True)]
    return tuple(d / max(densities) for d in densities)


def _filled(sizes: Sequence[int], total: int, shares: Sequence[float]) -> list[float]:
    """The real numbers clip(scale x share x size, 1, size) whose scale makes them add up to `total`.

    Their sum grows with the scale, in straight pieces between the scales at which a section leaves 1 or reaches its
    size: the piece that holds the total is found by bisection, the scale on it in closed form.
    """
    raw = [share * n for share, n in zip(shares, sizes, strict=True)]

    def at(scale: float) -> list[float]:
        return [min(float(n), max(1.0, scale * r)) for r, n in zip(raw, sizes, strict=True)]

    edges = sorted({1 / r for r in raw} | {n / r for r, n in zip(raw, sizes, strict=True)})
    a, b = 0, len(edges) - 1  # sum at edges[a] <= total <= sum at edges[b]
    while b - a > 1:
        middle = (a + b) // 2
        if sum(at(edges[middle])) <= total:
            a = middle
        else:
            b = middle
    inner = (edges[a] + edges[b]) / 2
    free = [1 < inner * r < n for r, n in zip(raw, sizes, strict=True)]
    below = at(inner)
    fixed = sum(x for x, is_free in zip(below, free, strict=True) if not is_free)
    slope = sum(r for r, is_free in zip(raw, free, strict=True) if is_free)
    scale = (total - fixed) / slope if slope else inner
    return at(min(edges[b], max(edges[a], scale)))
