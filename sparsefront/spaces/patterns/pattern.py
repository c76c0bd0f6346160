"""What a pattern is: the sets of entries that a mask may keep, and how one of them is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import Mask
from sparsefront.spaces.structure import Structure

Scores = npt.NDArray[np.floating]


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

    def select(self, scores: Scores, structure: Structure, counts: Sequence[int]) -> Mask:
        """The mask of the pattern that keeps the highest scores, with exactly these counts."""

    def draw(
        self, structure: Structure, counts: Sequence[int], key: npt.NDArray[np.uint64], *, start: int, stop: int
    ) -> npt.NDArray[np.bool_]:
        """Masks number `start`..`stop` under `key`, uniform over those of the pattern with these counts."""

    def shuffled(self, structure: Structure, mask: Mask, key: npt.NDArray[np.uint64], *, number: int) -> Mask:
        """Mask number `number` under `key`, uniform over those with as much in every section as `mask`."""


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
