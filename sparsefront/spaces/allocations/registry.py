"""The allocations by name, and the exact counts that they lead to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sparsefront.errors import SpaceError, nearest
from sparsefront.spaces.allocations.erdos_renyi import er, erk, erk_plus
from sparsefront.spaces.allocations.uniform import uniform, uniform_plus
from sparsefront.spaces.structure import Structure


class Densities(Protocol):
    """A rule that divides a total density over the sections of a mask."""

    def __call__(self, structure: Structure, kind: str, density: float, /) -> list[float]:
        """One density in (0, 1] for each section."""


@dataclass(frozen=True)
class Allocation:
    """One row of the registry.

    `densities` is None where sections share a single count (global); `of_biases` says whether biases that are pruned
    have one.
    """

    summary: str
    source: str
    kinds: tuple[str, ...]
    densities: Densities | None
    exact_total: bool
    of_biases: bool = False


ALLOCATIONS: Mapping[str, Allocation] = {
    "uniform": Allocation(
        "the same density in every layer",
        "convention",
        ("node", "weight"),
        uniform,
        exact_total=False,
        of_biases=True,
    ),
    "global": Allocation(
        "one count over all layers; at least one survivor in each",
        "Frankle and Carbin 2019",
        ("node", "weight"),
        None,
        exact_total=True,
        of_biases=True,
    ),
    "er": Allocation(
        "Erdos-Renyi: density ~ (n_in + n_out) / (n_in n_out)", "Mocanu et al. 2018", ("weight",), er, exact_total=True
    ),
    "erk": Allocation(
        "Erdos-Renyi-Kernel: the same with kernel dimensions", "Evci et al. 2020", ("weight",), erk, exact_total=True
    ),
    "uniform_plus": Allocation(
        "uniform, but the first convolution is dense and the classifier keeps 0.2 at least",
        "Gale et al. 2019",
        ("weight",),
        uniform_plus,
        exact_total=True,
    ),
    "erk_plus": Allocation(
        "ERK, but the classifier is dense", "Liu et al. 2022", ("weight",), erk_plus, exact_total=True
    ),
}

#: The allocation whose densities or counts come as data.
EXPLICIT = "explicit"

#: Share of the survivors by which explicit densities may miss the sparsity that they stand beside.
_AGREEMENT = 0.01


def kept_count(density: float, size: int) -> int:
    """Exact count of survivors: max(1, round(density x size)), halves up.

    The product is rounded to 9 decimals first, so that 1 - 0.9 counts as 0.1.

    >>> kept_count(1 - 0.9, 15), kept_count(0.5, 5), kept_count(0.001, 10)
    (2, 3, 1)
    """
    return min(size, max(1, math.floor(round(density * size, 9) + 0.5)))


def kept_counts(
    structure: Structure, kind: str, sparsity: float, allocation: str, *, explicit: Sequence[float] | None = None
) -> tuple[int, ...]:
    """Exact number of survivors in each section, or ``(k,)`` over all sections for a global allocation.

    Where the rule fixes the total (`Allocation.exact_total`), counts are apportioned by largest remainder so that they
    add up to k of the whole exactly; uniform rounds each layer by itself, and explicit ones are what they are.

    Args:
        structure: the parent.
        kind: 'node' or 'weight'.
        sparsity: fraction of zeros, 0 <= sparsity < 1.
        allocation: a name of `ALLOCATIONS`, or 'explicit'.
        explicit: for 'explicit' alone: of each section its density (float in (0, 1]) or its survivors (int).

    Raises:
        SpaceError: unknown allocation, or one that cannot divide this kind of mask; explicit numbers that cannot be, or
            that miss the sparsity by more than rounding and 1% of the survivors.
    """
    if allocation not in (*ALLOCATIONS, EXPLICIT):
        raise SpaceError(f"allocation={allocation!r}: {nearest(allocation, (*ALLOCATIONS, EXPLICIT))}")
    if (allocation == EXPLICIT) != (explicit is not None):
        raise SpaceError(
            f"allocation={allocation!r} with explicit={explicit!r}: numbers for the sections belong to allocation "
            "'explicit', and to no other"
        )
    if not 0 <= sparsity < 1:
        raise SpaceError(f"sparsity={sparsity!r}: must lie in [0, 1)")
    if explicit is not None:
        return _explicit_counts(structure, kind, sparsity, explicit)
    rule = ALLOCATIONS[allocation]
    if kind not in rule.kinds:
        raise SpaceError(
            f"allocation={allocation!r} with mask kind={kind!r}: it divides {' and '.join(rule.kinds)} masks only"
        )
    if kind == "weight" and structure.has_prunable_biases and not rule.of_biases:
        raise SpaceError(
            f"allocation={allocation!r}: has no density for biases; use one of "
            f"{', '.join(name for name, row in ALLOCATIONS.items() if row.of_biases)} where they are pruned"
        )
    sizes = structure.section_sizes(kind)
    density = 1 - sparsity
    if rule.densities is None:
        return (max(kept_count(density, sum(sizes)), len(sizes)),)
    densities = rule.densities(structure, kind, density)
    if not rule.exact_total:
        return tuple(kept_count(d, n) for d, n in zip(densities, sizes, strict=True))
    return _apportion([d * n for d, n in zip(densities, sizes, strict=True)], sizes, kept_count(density, sum(sizes)))


def _explicit_counts(structure: Structure, kind: str, sparsity: float, explicit: Sequence[float]) -> tuple[int, ...]:
    """The counts that explicit densities or counts are, checked against the sparsity."""
    sizes = structure.section_sizes(kind)
    is_counts = all(isinstance(x, int) and not isinstance(x, bool) for x in explicit)
    if len(explicit) != len(sizes) or not (is_counts or all(isinstance(x, float) for x in explicit)):
        raise SpaceError(
            f"explicit={list(explicit)}: {len(sizes)} numbers are needed, one for each section: all of them densities "
            "(a dense one is 1.0), or all of them counts (integers)"
        )
    if not all(1 <= x <= n if is_counts else 0 < x <= 1 for x, n in zip(explicit, sizes, strict=True)):
        raise SpaceError(
            f"explicit={list(explicit)} for sections of {list(sizes)}: must be densities in (0, 1] or counts in 1..size"
        )
    counts = tuple(int(x) if is_counts else kept_count(x, n) for x, n in zip(explicit, sizes, strict=True))
    wanted = kept_count(1 - sparsity, sum(sizes))
    if abs(sum(counts) - wanted) > len(sizes) + _AGREEMENT * wanted:
        left = 1 - sum(counts) / sum(sizes)
        raise SpaceError(
            f"sparsity={sparsity!r} with explicit={list(explicit)}: these leave sparsity {left:.6g}; change one of "
            "the two"
        )
    return counts


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
