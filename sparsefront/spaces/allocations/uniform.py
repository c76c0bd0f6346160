"""The same density in every section."""

from __future__ import annotations

from sparsefront.spaces.structure import Structure


def uniform(structure: Structure, kind: str, density: float) -> list[float]:
    """Density of every section: `density`.

    >>> from sparsefront.spaces.structure import Structure, Tensor
    >>> uniform(Structure((Tensor("w", (4, 4), True), Tensor("v", (2, 4), True)), ()), "weight", 0.5)
    [0.5, 0.5]
    """
    return [density] * len(structure.section_sizes(kind))
