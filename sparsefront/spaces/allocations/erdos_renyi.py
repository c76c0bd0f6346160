"""Erdos-Renyi densities: larger tensors become sparser.

References: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity (SET),
2018 (ER); Evci et al., Rigging the lottery, 2020, section 3 (ERK, with the kernel's dimensions); Liu et al., The
unreasonable effectiveness of random pruning, 2022 (ERK+).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsefront.errors import SpaceError
from sparsefront.spaces.structure import Structure


def er(structure: Structure, kind: str, density: float) -> list[float]:
    """Densities proportional to (n_in + n_out) / (n_in n_out), kernel dimensions left out; capped at 1."""
    return _scaled(structure, kind, density, [sum(t.shape[:2]) / math.prod(t.shape[:2]) for t in structure.prunable])


def erk(structure: Structure, kind: str, density: float) -> list[float]:
    """Densities proportional to (sum of all dimensions) / (product of all dimensions); capped at 1.

    >>> from sparsefront.spaces.structure import Tensor
    >>> shapes = {"a": (256, 64), "b": (128, 256), "c": (10, 128)}
    >>> net = Structure(tuple(Tensor(n, s, True) for n, s in shapes.items()), ())
    >>> [round(d, 4) for d in erk(net, "weight", 0.1)]
    [0.117, 0.0702, 0.6457]
    """
    return _scaled(structure, kind, density, [sum(t.shape) / math.prod(t.shape) for t in structure.prunable])


def erk_plus(structure: Structure, kind: str, density: float) -> list[float]:
    """ERK with a dense classifier: the last tensor is kept whole, ERK divides what is left of the budget.

    Where less than one weight for each other tensor would be left, it is ERK.

    >>> from sparsefront.spaces.structure import Tensor
    >>> shapes = {"a": (256, 64), "b": (128, 256), "c": (10, 128)}
    >>> net = Structure(tuple(Tensor(n, s, True) for n, s in shapes.items()), ())
    >>> [round(d, 4) for d in erk_plus(net, "weight", 0.1)]
    [0.1044, 0.0626, 1.0]
    """
    raw = [sum(t.shape) / math.prod(t.shape) for t in structure.prunable]
    last = len(raw) - 1
    if density * structure.n_weights - structure.prunable[last].size < last:
        return erk(structure, kind, density)
    return _scaled(structure, kind, density, raw, dense=[last])


def _scaled(
    structure: Structure, kind: str, density: float, raw: Sequence[float], *, dense: Sequence[int] = ()
) -> list[float]:
    """Scale `raw` to the total density; sections that would exceed 1 are capped and the rest scaled again.

    `dense` sections are capped from the beginning.
    """
    if kind != "weight":
        raise SpaceError(
            f"allocation='er' or 'erk' with mask kind={kind!r}: they divide weights; use 'uniform' or 'global'"
        )
    sizes = [t.size for t in structure.prunable]
    capped = set(dense)
    while len(capped) < len(sizes):
        free = [i for i in range(len(sizes)) if i not in capped]
        budget = density * sum(sizes) - sum(sizes[i] for i in capped)
        scale = budget / sum(raw[i] * sizes[i] for i in free)
        largest = max(free, key=lambda i: raw[i])
        if scale * raw[largest] <= 1:
            return [1.0 if i in capped else scale * raw[i] for i in range(len(sizes))]
        capped.add(largest)
    return [1.0] * len(sizes)
