"""Layer ratios that a global ranking of scores leaves (SNIP ratio, GraSP ratio, ...)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.allocations.registry import kept_count
from sparsefront.spaces.masks import split_sections, top_k
from sparsefront.spaces.structure import Structure


def counts_from_scores(
    structure: Structure, kind: str, scores: npt.NDArray[np.floating], sparsity: float
) -> tuple[int, ...]:
    """Survivors of each section when the highest scores of the whole network are kept, at least one in each.

    Args:
        structure: the parent.
        kind: 'node' or 'weight'.
        scores: one for each entry of the mask, flat and finite; higher is kept, ties to the lower flat index.
        sparsity: fraction of zeros, 0 <= sparsity < 1.

    Raises:
        SpaceError: scores that are not finite or do not fit the mask, or a sparsity out of range.

    Reference: Liu et al., The unreasonable effectiveness of random pruning, 2022 (SNIP ratio, GraSP ratio).

    >>> from sparsefront.spaces.structure import Tensor
    >>> net = Structure((Tensor("a", (2, 2), True), Tensor("b", (1, 2), True)), ())
    >>> counts_from_scores(net, "weight", np.array([6.0, 5, 4, 1, 3, 2]), 0.5)
    (2, 1)
    """
    sizes = structure.section_sizes(kind)
    if not 0 <= sparsity < 1:
        raise SpaceError(f"sparsity={sparsity!r}: must lie in [0, 1)")
    if scores.shape != (sum(sizes),):
        raise SpaceError(f"scores of shape {scores.shape}: one for each of the {sum(sizes)} entries is needed")
    mask = top_k(scores, sizes, (max(len(sizes), kept_count(1 - sparsity, sum(sizes))),))
    return tuple(int(np.count_nonzero(part)) for part in split_sections(structure, kind, mask))
