"""What a pattern is: the sets of entries that a mask may keep, and how one of them is chosen.

A pattern of weights divides a tensor into *units*, which are kept or removed as a whole (a weight, a block), and these
into *groups*, each of which keeps a number of its own units that is fixed beforehand. Units of one group are rivals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import Mask
from sparsefront.spaces.structure import Structure, Tensor

Scores = npt.NDArray[np.floating]
#: (groups, units of each group, entries of each unit): flat indices in a tensor, of groups that are equally large.
Rivals = npt.NDArray[np.int64]


class Pattern(Protocol):
    """A family of masks, of which all with the same counts are equally many entries large in every section.

    `counts` and what it returned are the same: a pattern leaves counts alone that it gave. Two patterns are equal if
    they allow the same masks.
    """

    @property
    def kind(self) -> str:
        """Kind of the masks: 'weight' or 'node'."""

    @property
    def density(self) -> float | None:
        """The density that the pattern itself fixes; None if any may be asked for."""

    def counts(self, structure: Structure, wanted: Sequence[int] | None) -> tuple[int, ...]:
        """The survivors of each section (or of all, one number) that are left when `wanted` are asked for."""

    def rivals(self, tensor: Tensor) -> tuple[Rivals, ...] | None:
        """What competes in a tensor; an entry in none of the groups is always kept. None: all its entries, freely."""

    def kept(self, structure: Structure, wanted: Sequence[int] | None, left: Mask | None = None) -> tuple[int, ...]:
        """Units that each group keeps, for all `rivals` of all tensors in order; `wanted` itself if those are None.

        `left` is a mask of the pattern (or of one on the way to it) that has more, if not all; it need not be kept to
        its last unit, but nothing else can be.
        """

    def on_the_way(self, density: float) -> Pattern:
        """What a network obeys while it is pruned to this pattern, at the moment when it has this density."""

    def select(self, scores: Scores, structure: Structure, counts: Sequence[int]) -> Mask:
        """The mask of the pattern that keeps the highest scores, with exactly these counts."""

    def draw(
        self, structure: Structure, counts: Sequence[int], key: npt.NDArray[np.uint64], *, start: int, stop: int
    ) -> npt.NDArray[np.bool_]:
        """Masks number `start`..`stop` under `key`, uniform over those of the pattern with these counts."""

    def shuffled(self, structure: Structure, mask: Mask, key: npt.NDArray[np.uint64], *, number: int) -> Mask:
        """Mask number `number` under `key`, uniform over those with as much in every section as `mask`."""


def keep_rivals(
    pattern: Pattern, structure: Structure, scores: npt.NDArray[np.float64], numbers: Sequence[int]
) -> Mask:
    """The mask that keeps the units of highest summed scores (W,), `numbers` of each group; ties to the first."""
    kept = np.ones(len(scores), dtype=np.bool_)
    for index, n in zip(all_rivals(pattern, structure), numbers, strict=True):
        order = np.argsort(-scores[index].sum(axis=2), axis=1, kind="stable")
        chosen = np.zeros(order.shape, dtype=np.bool_)
        np.put_along_axis(chosen, order[:, :n], values=True, axis=1)
        kept[index] = chosen[..., None]
    return kept


def all_rivals(pattern: Pattern, structure: Structure) -> Iterator[Rivals]:
    """What competes in each tensor, as indices of a weight mask."""
    start = 0
    for tensor in structure.prunable:
        for index in pattern.rivals(tensor) or ():
            yield start + index
        start += tensor.size


def checked_scores(scores: Scores, structure: Structure, kind: str) -> npt.NDArray[np.float64]:
    """The scores in float64.

    Raises:
        SpaceError: not one number for each entry of the mask, or one that is not finite.
    """
    checked = np.asarray(scores, dtype=np.float64)
    size = sum(structure.section_sizes(kind))
    if checked.shape != (size,):
        raise SpaceError(f"scores of shape {checked.shape}: one for each of the {size} entries of a {kind} mask needed")
    if not np.isfinite(checked).all():
        raise SpaceError("scores: must be finite; a diverged network cannot be pruned")
    return checked
