"""Patterns that any set of entries fits: single weights, and whole nodes (hidden units or channels)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import Mask, draw, split_sections, top_k
from sparsefront.spaces.patterns.pattern import Scores, checked_scores
from sparsefront.spaces.structure import Structure, Tensor


@dataclass(frozen=True)
class Free:
    """Every set of entries of one `kind` of mask; see `Pattern` for the methods."""

    kind: str
    density = None

    def counts(self, structure: Structure, wanted: Sequence[int] | None) -> tuple[int, ...]:
        """The wanted counts themselves: one for each section, or one over all of them."""
        if wanted is None:
            raise SpaceError(f"counts=None for a {self.kind} mask: must be given; only N:M has counts of its own")
        return tuple(wanted)

    def rivals(self, tensor: Tensor) -> None:
        """All entries of a section, or of the network."""

    def kept(self, structure: Structure, wanted: Sequence[int] | None, left: Mask | None = None) -> tuple[int, ...]:
        """The wanted counts themselves."""
        return self.counts(structure, wanted)

    def on_the_way(self, density: float) -> Free:
        """Itself."""
        return self

    def select(self, scores: Scores, structure: Structure, counts: Sequence[int]) -> Mask:
        """The highest scores of each section; or of all, with at least one in each. Ties to the lower flat index."""
        return top_k(checked_scores(scores, structure, self.kind), structure.section_sizes(self.kind), counts)

    def draw(
        self, structure: Structure, counts: Sequence[int], key: npt.NDArray[np.uint64], *, start: int, stop: int
    ) -> npt.NDArray[np.bool_]:
        """Uniform masks with these counts: those of `masks.draw`."""
        return draw(structure.section_sizes(self.kind), counts, key, start=start, stop=stop)

    def shuffled(self, structure: Structure, mask: Mask, key: npt.NDArray[np.uint64], *, number: int) -> Mask:
        """A uniform mask with the counts of `mask`."""
        counts = [int(np.count_nonzero(part)) for part in split_sections(structure, self.kind, mask)]
        shuffled: Mask = self.draw(structure, counts, key, start=number, stop=number + 1)[0]
        return shuffled
