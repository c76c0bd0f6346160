"""How much masks have in common, against what chance alone would give them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError


@dataclass(frozen=True)
class Overlap:
    """What pairs of masks share, each (pairs,) float64.

    Attributes:
        n_shared: entries that both keep.
        n_expected: what two independent random masks with the same counts in each section share on average, the sum of
            k1 k2 / n over sections.
        jaccard: shared entries over entries that either keeps.
        beyond_chance: (shared - expected) / (most possible - expected): 1 for the most that the counts allow, 0 for
            chance, below 0 for less; not a number where the counts leave no choice.
        z: (shared - expected) / standard deviation of two random masks (hypergeometric in each section); not a number
            where the counts leave no choice.
    """

    n_shared: npt.NDArray[np.float64]
    n_expected: npt.NDArray[np.float64]
    jaccard: npt.NDArray[np.float64]
    beyond_chance: npt.NDArray[np.float64]
    z: npt.NDArray[np.float64]


def pairwise_overlap(masks: npt.NDArray[np.bool_], sizes: Sequence[int]) -> Overlap:
    """Overlap of every pair of masks, in the order (0, 1), (0, 2), ..., (1, 2), ...

    Masks of networks with unlike initial weights share what the layers' counts make them share: their units are not
    the same units.

    Args:
        masks: (m, entries) bool, entries kept, of one structure.
        sizes: entries of each section (`Structure.section_sizes`).

    Returns:
        m (m - 1) / 2 pairs.

    Raises:
        SpaceError: if the sections do not add up to the entries.

    Cost: O(m^2 entries), as products of matrices.

    >>> masks = np.array([[True, True, False, False], [True, False, True, False]])
    >>> pair = pairwise_overlap(masks, [4])
    >>> pair.n_shared.tolist(), pair.n_expected.tolist(), pair.jaccard.round(3).tolist()
    ([1.0], [1.0], [0.333])
    """
    if masks.ndim != 2 or masks.shape[1] != sum(sizes):
        raise SpaceError(f"masks of shape {masks.shape} for sections of {list(sizes)}: must be (m, {sum(sizes)})")
    first, second = np.triu_indices(len(masks), k=1)
    shared, expected, most, variance = (np.zeros(len(first)) for _ in range(4))
    total = np.zeros(len(masks))
    for a, b in itertools.pairwise(np.cumsum([0, *sizes])):
        n = b - a
        section = masks[:, a:b].astype(np.float64)
        counts = section.sum(axis=1)
        total += counts
        k, other = counts[first], counts[second]
        shared += (section @ section.T)[first, second]
        mean = k * other / max(n, 1)
        expected += mean
        most += np.minimum(k, other)
        variance += mean * (n - k) * (n - other) / max(n * (n - 1), 1)
    either = total[first] + total[second] - shared
    return Overlap(
        n_shared=shared,
        n_expected=expected,
        jaccard=_ratio(shared, either),
        beyond_chance=_ratio(shared - expected, np.where(variance > 0, most - expected, 0)),
        z=_ratio(shared - expected, np.sqrt(variance)),
    )


def _ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Quotients, not a number where the divisor is zero."""
    out: npt.NDArray[np.float64] = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return out
