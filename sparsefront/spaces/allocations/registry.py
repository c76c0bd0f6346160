"""The allocations by name, and the exact counts that they lead to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sparsefront.errors import SpaceError
from sparsefront.spaces.allocations.erdos_renyi import er, erk
from sparsefront.spaces.allocations.uniform import uniform
from sparsefront.spaces.structure import Structure


class Densities(Protocol):
    """A rule that divides a total density over the sections of a mask."""

    def __call__(self, structure: Structure, kind: str, density: float, /) -> list[float]:
        """One density in (0, 1] for each section."""


@dataclass(frozen=True)
class Allocation:
    """One row of the registry; `densities` is None where sections share a single count (global)."""

    summary: str
    source: str
    kinds: tuple[str, ...]
    densities: Densities | None
    exact_total: bool


ALLOCATIONS: Mapping[str, Allocation] = {
    "uniform": Allocation(
        "the same density in every layer", "convention", ("node", "weight"), uniform, exact_total=False
    ),
    "global": Allocation(
        "one count over all layers; at least one survivor in each",
        "Frankle and Carbin 2019",
        ("node", "weight"),
        None,
        exact_total=True,
    ),
    "er": Allocation(
        "Erdos-Renyi: density ~ (n_in + n_out) / (n_in n_out)", "Mocanu et al. 2018", ("weight",), er, exact_total=True
    ),
    "erk": Allocation(
        "Erdos-Renyi-Kernel: the same with kernel dimensions", "Evci et al. 2020", ("weight",), erk, exact_total=True
    ),
}


def kept_count(density: float, size: int) -> int:
    """Exact count of survivors: max(1, round(density x size)), halves up.

    The product is rounded to 9 decimals first, so that 1 - 0.9 counts as 0.1.

    >>> kept_count(1 - 0.9, 15), kept_count(0.5, 5), kept_count(0.001, 10)
    (2, 3, 1)
    """
    return min(size, max(1, math.floor(round(density * size, 9) + 0.5)))


def kept_counts(structure: Structure, kind: str, sparsity: float, allocation: str) -> tuple[int, ...]:
    """Exact number of survivors in each section, or ``(k,)`` over all sections for a global allocation.

    Where the rule fixes the total (ER, ERK), counts are apportioned by largest remainder so that they add up to
    k of the whole exactly; uniform rounds each layer by itself.

    Args:
        structure: the parent.
        kind: 'node' or 'weight'.
        sparsity: fraction of zeros, 0 <= sparsity < 1.
        allocation: a name of `ALLOCATIONS`.

    Raises:
        SpaceError: unknown allocation, or one that cannot divide this kind of mask.
    """
    if allocation not in ALLOCATIONS:
        raise SpaceError(f"allocation={allocation!r}: must be one of {', '.join(ALLOCATIONS)}")
    if not 0 <= sparsity < 1:
        raise SpaceError(f"sparsity={sparsity!r}: must lie in [0, 1)")
    rule = ALLOCATIONS[allocation]
    if kind not in rule.kinds:
        raise SpaceError(
            f"allocation={allocation!r} with mask kind={kind!r}: it divides {' and '.join(rule.kinds)} masks only"
        )
    sizes = structure.section_sizes(kind)
    density = 1 - sparsity
    if rule.densities is None:
        return (max(kept_count(density, sum(sizes)), len(sizes)),)
    densities = rule.densities(structure, kind, density)
    if not rule.exact_total:
        return tuple(kept_count(d, n) for d, n in zip(densities, sizes, strict=True))
    return _apportion([d * n for d, n in zip(densities, sizes, strict=True)], sizes, kept_count(density, sum(sizes)))


def _apportion(shares: Sequence[float], sizes: Sequence[int], total: int) -> tuple[int, ...]:
    """Integers near `shares`, each in 1..size, that add up to `total` (Hamilton's largest-remainder method)."""
    counts = [min(n, max(1, math.floor(round(s, 9)))) for s, n in zip(shares, sizes, strict=True)]
    step = 1 if sum(counts) < total else -1
    while sum(counts) != total:
        room = [i for i, (c, n) in enumerate(zip(counts, sizes, strict=True)) if (c < n if step > 0 else c > 1)]
        if not room:  # fewer survivors asked for than there are layers
            break
        chosen = max(room, key=lambda i: (step * (shares[i] - counts[i]), -i))
        counts[chosen] += step
    return tuple(counts)
