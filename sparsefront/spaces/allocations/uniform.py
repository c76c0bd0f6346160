"""The same density in every section, and its variant that spares the first convolution and the classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sparsefront.spaces.structure import Structure

#: What the classifier keeps under uniform+ at least.
_CLASSIFIER_DENSITY = 0.2


def uniform(structure: Structure, kind: str, density: float) -> list[float]:
    """Density of every section: `density`.

    >>> from sparsefront.spaces.structure import Structure, Tensor
    >>> uniform(Structure((Tensor("w", (4, 4), True), Tensor("v", (2, 4), True)), ()), "weight", 0.5)
    [0.5, 0.5]
    """
    return [density] * len(structure.section_sizes(kind))


def uniform_plus(structure: Structure, kind: str, density: float) -> list[float]:
    """Uniform, but the first convolution is dense and the classifier (last tensor) keeps at least 0.2.

    The other tensors share one density, such that the total is met. Where less than one weight would be left for each
    of them (or there is none), it is uniform.

    References: Gale, Elsen and Hooker, The state of sparsity in deep neural networks, 2019; Liu et al., The
    unreasonable effectiveness of random pruning, 2022.

    >>> from sparsefront.spaces.structure import Structure, Tensor
    >>> shapes = {"a": (16, 1, 5), "b": (32, 16, 5), "c": (10, 32)}
    >>> net = Structure(tuple(Tensor(n, s, True) for n, s in shapes.items()), ())
    >>> [round(d, 4) for d in uniform_plus(net, "weight", 0.1)]
    [1.0, 0.0594, 0.2]
    """
    sizes = [t.size for t in structure.prunable]
    convolutions = [i for i, t in enumerate(structure.prunable) if len(t.shape) > 2]
    floor = math.ceil(round(_CLASSIFIER_DENSITY * sizes[-1], 9)) / sizes[-1]
    spared = dict.fromkeys(convolutions[:1], 1.0)
    shared = _shared(sizes, density, spared)
    if len(sizes) - 1 not in spared and (shared is None or shared < _CLASSIFIER_DENSITY):
        spared[len(sizes) - 1] = floor
        shared = _shared(sizes, density, spared)
    if shared is None:
        return uniform(structure, kind, density)
    return [spared.get(i, shared) for i in range(len(sizes))]


def _shared(sizes: Sequence[int], density: float, spared: Mapping[int, float]) -> float | None:
    """What sections have that are not spared; None where that is less than an entry for each, or there are none."""
    others = [n for i, n in enumerate(sizes) if i not in spared]
    budget = density * sum(sizes) - sum(d * sizes[i] for i, d in spared.items())
    return budget / sum(others) if others and budget >= len(others) else None
