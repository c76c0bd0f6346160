"""The same density in every section, and its variant that spares the first convolution and the classifier."""

from __future__ import annotations

import math

from sparsefront.spaces.structure import Structure

#: What the classifier keeps under uniform+ at least, where the total density is below it.
_CLASSIFIER_DENSITY = 0.2


def uniform(structure: Structure, kind: str, density: float) -> list[float]:
    """Density of every section: `density`.

    >>> from sparsefront.spaces.structure import Structure, Tensor
    >>> uniform(Structure((Tensor("w", (4, 4), True), Tensor("v", (2, 4), True)), ()), "weight", 0.5)
    [0.5, 0.5]
    """
    return [density] * len(structure.section_sizes(kind))


def uniform_plus(structure: Structure, kind: str, density: float) -> list[float]:
    """Uniform, but the first convolution is dense and the classifier (last tensor) keeps 0.2 where `density` is below.

    The other tensors share one density, such that the total is met. Where less than one weight would be left for each
    of them (or there is none), it is uniform.

    References: Gale, Elsen and Hooker, The state of sparsity in deep neural networks, 2019; Liu et al., The
    unreasonable effectiveness of random pruning, 2022.

    >>> from sparsefront.spaces.structure import Structure, Tensor
    >>> net = Structure((Tensor("a", (16, 1, 5), True), Tensor("b", (32, 16, 5), True), Tensor("c", (10, 32), True)), ())
    >>> [round(d, 4) for d in uniform_plus(net, "weight", 0.1)]
    [1.0, 0.0576, 0.2]
    """
    tensors = structure.prunable
    spared = {i: 1.0 for i, t in enumerate(tensors) if len(t.shape) > 2 and all(len(u.shape) < 3 for u in tensors[:i])}
    if density < _CLASSIFIER_DENSITY:
        size = tensors[-1].size
        spared.setdefault(len(tensors) - 1, math.ceil(round(_CLASSIFIER_DENSITY * size, 9)) / size)
    others = [t.size for i, t in enumerate(tensors) if i not in spared]
    budget = density * structure.n_weights - sum(d * tensors[i].size for i, d in spared.items())
    if not others or budget < len(others):
        return uniform(structure, kind, density)
    return [spared.get(i, budget / sum(others)) for i in range(len(tensors))]
