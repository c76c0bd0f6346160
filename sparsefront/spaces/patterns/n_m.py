"""N:M patterns: N weights are kept of each M that follow each other along a tensor's input dimension.

References: Mishra et al., Accelerating sparse deep neural networks, 2021 (2:4); Zhou et al., Learning N:M fine-grained
structured sparse neural networks from scratch, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import Mask
from sparsefront.spaces.patterns.pattern import Rivals, Scores, checked_scores, keep_rivals
from sparsefront.spaces.seeds import raw_rows
from sparsefront.spaces.structure import Structure, Tensor


@dataclass(frozen=True)
class NM:
    """N of M along the input dimension (of a convolution: its input channels, at each kernel position by itself).

    Inputs that are left over when their number is not divisible by M stay dense, and so do tensors of one dimension:
    the realised density is above N / M by those. The counts follow from the tensors' shapes alone.
    """

    n: int
    m: int
    kind = "weight"

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise SpaceError(f"pattern {self.n}:{self.m}: N of M with 1 <= N <= M is needed, such as 2:4")

    @property
    def density(self) -> float:
        """Share of the weights that is kept where the inputs are divisible by M: N / M."""
        return self.n / self.m

    def counts(self, structure: Structure, wanted: Sequence[int] | None) -> tuple[int, ...]:
        """What the pattern leaves of each tensor, whatever is wanted.

        >>> NM(2, 4).counts(Structure((Tensor("a", (3, 8), True), Tensor("b", (2, 10), True)), ()), None)
        (12, 12)
        """
        return tuple(t.size - self._n_groups(t) * (self.m - self.n) for t in structure.prunable)

    def rivals(self, tensor: Tensor) -> tuple[Rivals, ...]:
        """The groups of M; none in a tensor without an input dimension, or with fewer than M inputs."""
        if not self._n_groups(tensor):
            return ()
        n_outputs, n_inputs = tensor.shape[:2]
        wide = np.arange(tensor.size).reshape(n_outputs, n_inputs, -1).swapaxes(1, 2)
        return (wide[..., : n_inputs // self.m * self.m].reshape(-1, self.m, 1),)

    def kept(self, structure: Structure, wanted: Sequence[int] | None, left: Mask | None = None) -> tuple[int, ...]:
        """N of each group, whatever is wanted."""
        return tuple(self.n for t in structure.prunable if self._n_groups(t))

    def on_the_way(self, density: float) -> NM:
        """The M of every group fall to N one by one: n = max(N, M x density, rounded), halves up.

        >>> [NM(2, 4).on_the_way(density).n for density in (1.0, 0.8, 0.625, 0.62, 0.5)]
        [4, 3, 3, 2, 2]
        """
        return NM(max(self.n, min(self.m, int(self.m * density + 0.5))), self.m)

    def select(self, scores: Scores, structure: Structure, counts: Sequence[int]) -> Mask:
        """The N highest scores of each group; ties to the lower flat index.

        Raises:
            SpaceError: counts other than those of the pattern, or scores that are not finite or not one a weight.
        """
        if tuple(counts) != (own := self.counts(structure, None)):
            raise SpaceError(f"counts={list(counts)}: pattern {self.n}:{self.m} leaves {list(own)} of this network")
        return keep_rivals(self, structure, checked_scores(scores, structure, "weight"), self.kept(structure, None))

    def draw(
        self, structure: Structure, counts: Sequence[int], key: npt.NDArray[np.uint64], *, start: int, stop: int
    ) -> npt.NDArray[np.bool_]:
        """Masks that keep a uniform set of N in every group."""
        out = np.empty((stop - start, structure.n_weights), dtype=np.bool_)
        for i, row in enumerate(out):
            words = raw_rows(key, start=start + i, stop=start + i + 1, width=len(row))[0]
            row[:] = self.select(words.astype(np.float64), structure, counts)
        return out

    def shuffled(self, structure: Structure, mask: Mask, key: npt.NDArray[np.uint64], *, number: int) -> Mask:
        """A uniform N:M mask.

        Raises:
            SpaceError: a mask that is none.
        """
        counts = self.counts(structure, None)
        if not np.array_equal(self.select(mask.astype(np.float64), structure, counts), mask):
            raise SpaceError(f"mask of {np.count_nonzero(mask)} weights: is no {self.n}:{self.m} mask of this network")
        shuffled: Mask = self.draw(structure, counts, key, start=number, stop=number + 1)[0]
        return shuffled

    def _n_groups(self, tensor: Tensor) -> int:
        """Groups of M; none in a tensor without an input dimension."""
        if len(tensor.shape) < 2:
            return 0
        return tensor.size // tensor.shape[1] * (tensor.shape[1] // self.m)
