"""Block patterns: rectangles of outputs x inputs are kept or removed as a whole.

Reference: Narang, Undersander and Diamos, Block-sparse recurrent neural networks, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import Mask, split_sections
from sparsefront.spaces.patterns.pattern import Rivals, Scores, all_rivals, checked_scores, keep_rivals
from sparsefront.spaces.seeds import raw_rows
from sparsefront.spaces.structure import Structure, Tensor


@dataclass(frozen=True)
class Block:
    """Whole blocks of `n_out` x `n_in` over the first two dimensions of a tensor; kernel positions stay together.

    Where a dimension is not divisible, the last blocks are smaller. How many blocks of each size are kept follows from
    the count alone, as near to equal densities as their whole numbers allow, so that all masks of a count have exactly
    as many entries; blocks of equal size compete by the sum of their scores, those of unlike size do not. Tensors of
    one dimension have one input.
    """

    n_out: int
    n_in: int
    kind = "weight"
    density = None

    def __post_init__(self) -> None:
        if min(self.n_out, self.n_in) < 1:
            raise SpaceError(f"pattern {self.n_out}x{self.n_in}: a block has at least 1x1 entries, outputs x inputs")

    def counts(self, structure: Structure, wanted: Sequence[int] | None) -> tuple[int, ...]:
        """Entries of each tensor in the whole blocks that `wanted` pays for: the most that is not above it.

        At least one block, of the largest size, is kept in each tensor.

        >>> net = Structure((Tensor("a", (8, 8), True), Tensor("b", (10, 8), True)), ())
        >>> Block(4, 4).counts(net, [33, 33]), Block(4, 4).counts(net, [1, 41])
        ((32, 32), (16, 40))
        """
        return tuple(sum(n * e for e, n in kept.items()) for kept in self._kept(structure, wanted))

    def rivals(self, tensor: Tensor) -> tuple[Rivals, ...]:
        """All blocks of a size, one group for each size, the largest first."""
        n_outputs, n_inputs, n_positions = _matrix(tensor)
        sizes = self._sizes(tensor).reshape(-1)
        n_wide = -(-n_inputs // self.n_in)
        of_entries = np.arange(n_outputs)[:, None] // self.n_out * n_wide + np.arange(n_inputs) // self.n_in
        by_block = np.argsort(of_entries.reshape(-1).repeat(n_positions), kind="stable")
        starts = np.cumsum(sizes) - sizes
        return tuple(
            by_block[starts[sizes == size][None, :, None] + np.arange(size)] for size in np.unique(sizes)[::-1]
        )

    def kept(self, structure: Structure, wanted: Sequence[int] | None, left: Mask | None = None) -> tuple[int, ...]:
        """Blocks of each size, of those that are left."""
        return tuple(n for kept in self._kept(structure, wanted, left) for n in kept.values())

    def on_the_way(self, density: float) -> Block:
        """Itself."""
        return self

    def select(self, scores: Scores, structure: Structure, counts: Sequence[int]) -> Mask:
        """The blocks with the highest sums among those of their size; ties to the lower row, then column.

        Raises:
            SpaceError: counts that are not whole blocks, or scores that are not finite or not one for each weight.
        """
        return keep_rivals(
            self, structure, checked_scores(scores, structure, "weight"), self._exactly(structure, counts)
        )

    def draw(
        self, structure: Structure, counts: Sequence[int], key: npt.NDArray[np.uint64], *, start: int, stop: int
    ) -> npt.NDArray[np.bool_]:
        """Masks that keep a uniform set of the blocks of each size."""
        kept = self._exactly(structure, counts)
        return np.stack([self._random(structure, kept, key, i) for i in range(start, stop)])

    def shuffled(self, structure: Structure, mask: Mask, key: npt.NDArray[np.uint64], *, number: int) -> Mask:
        """A uniform mask with as many blocks of each size in each tensor as `mask`.

        Raises:
            SpaceError: a mask that cuts a block.
        """
        numbers = [n for numbers in self._numbers(structure, mask) for n in numbers]
        return self._random(structure, numbers, key, number)

    def _numbers(self, structure: Structure, mask: Mask) -> list[list[int]]:
        """Of each tensor, how many blocks of each size `mask` keeps, largest first."""
        found: list[list[int]] = []
        for t, part in zip(structure.prunable, split_sections(structure, "weight", mask), strict=True):
            of_sizes = [part[index] for index in self.rivals(t)]
            if any((units.any(axis=2) != units.all(axis=2)).any() for units in of_sizes):
                raise SpaceError(f"mask: cuts a block of tensor {t.name!r}; is no {self.n_out}x{self.n_in} mask")
            found.append([int(units[..., 0].sum()) for units in of_sizes])
        return found

    def _sizes(self, tensor: Tensor) -> npt.NDArray[np.int64]:
        """(row blocks, column blocks): entries of each block."""
        n_outputs, n_inputs, n_positions = _matrix(tensor)
        heights = np.minimum(self.n_out, n_outputs - np.arange(0, n_outputs, self.n_out))
        widths = np.minimum(self.n_in, n_inputs - np.arange(0, n_inputs, self.n_in))
        return np.multiply.outer(heights, widths) * n_positions

    def _kept(
        self, structure: Structure, wanted: Sequence[int] | None, left: Mask | None = None
    ) -> list[dict[int, int]]:
        """Of each tensor, how many blocks of each size (entries) are kept, largest first."""
        tensors = structure.prunable
        if wanted is None or len(wanted) != len(tensors):
            raise SpaceError(
                f"counts={None if wanted is None else list(wanted)} for a block pattern: one for each of the "
                f"{len(tensors)} tensors is needed; divide a global count with counts_from_scores"
            )
        for t, k in zip(tensors, wanted, strict=True):
            if not 1 <= k <= t.size:
                raise SpaceError(f"counts={list(wanted)}: {k} for tensor {t.name!r}, must lie in 1..{t.size}")
        limits = [None] * len(tensors) if left is None else self._numbers(structure, left)
        return [self._of_each_size(t, k, most) for t, k, most in zip(tensors, wanted, limits, strict=True)]

    def _of_each_size(self, tensor: Tensor, wanted: int, most: Sequence[int] | None) -> dict[int, int]:
        """Numbers of blocks with the most entries not above `wanted`; of several, the nearest to equal densities.

        None of them is above `most`, largest size first; None for all there are.
        """
        sizes, numbers = np.unique(self._sizes(tensor), return_counts=True)
        limits = numbers if most is None else np.array(most[::-1])
        # Every choice for all sizes (at most four) but the commonest, of which as many follow as are paid for.
        common = int(np.argmax(numbers))
        ranges = [np.arange(b + 1 if i != common else 1) for i, b in enumerate(limits)]
        kept = np.stack([g.reshape(-1) for g in np.meshgrid(*ranges, indexing="ij")], axis=1)
        kept[:, common] = np.minimum(limits[common], (wanted - kept @ sizes) // sizes[common])
        kept = kept[kept[:, common] >= 0]
        entries = kept @ sizes
        kept = kept[entries == entries.max()]
        # Of what is kept, not of what was wanted: the same entries are the same blocks, whoever asks for them.
        shares = numbers * (entries.max() / tensor.size)
        best = kept[np.argmin(np.abs(kept - shares).sum(axis=1).round(9))]
        if not best.any():
            return self._of_each_size(tensor, int(sizes[np.flatnonzero(limits)[-1]]), most)
        return {int(e): int(n) for e, n in zip(sizes[::-1], best[::-1], strict=True)}

    def _exactly(self, structure: Structure, counts: Sequence[int]) -> tuple[int, ...]:
        """Blocks of each size that are `counts` entries."""
        if (own := self.counts(structure, counts)) != tuple(counts):
            raise SpaceError(
                f"counts={list(counts)}: whole blocks of {self.n_out}x{self.n_in} leave {list(own)}; take these"
            )
        return self.kept(structure, counts)

    def _random(self, structure: Structure, numbers: Sequence[int], key: npt.NDArray[np.uint64], number: int) -> Mask:
        """A uniform mask with these numbers of blocks: one random word ranks each, in the order of their rows."""
        first = np.concatenate([index[..., 0].reshape(-1) for index in all_rivals(self, structure)])
        scores = np.zeros(structure.n_weights)
        scores[np.sort(first)] = raw_rows(key, start=number, stop=number + 1, width=len(first))[0]
        return keep_rivals(self, structure, scores, numbers)


def _matrix(tensor: Tensor) -> tuple[int, int, int]:
    """Outputs, inputs, kernel positions."""
    n_outputs, n_inputs, *kernel = (*tensor.shape, 1) if len(tensor.shape) == 1 else tensor.shape
    return n_outputs, n_inputs, math.prod(kernel)
