"""Block patterns: rectangles of outputs x inputs are kept or removed as a whole.

Reference: Narang, Undersander and Diamos, Block-sparse recurrent neural networks, 2017.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import Mask, split_sections
from sparsefront.spaces.patterns.pattern import Scores, checked_scores
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

    def select(self, scores: Scores, structure: Structure, counts: Sequence[int]) -> Mask:
        """The blocks with the highest sums among those of their size; ties to the lower row, then column.

        Raises:
            SpaceError: counts that are not whole blocks, or scores that are not finite or not one for each weight.
        """
        flat = checked_scores(scores, structure, "weight")
        parts = np.split(flat, np.cumsum(structure.section_sizes("weight"))[:-1])
        sums = [self._sums(t, part) for t, part in zip(structure.prunable, parts, strict=True)]
        return self._best(structure, sums, self._exactly(structure, counts))

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
        kept = []
        for t, part in zip(structure.prunable, split_sections(structure, "weight", mask), strict=True):
            sums, sizes = self._sums(t, part), self._sizes(t)
            if not ((sums == 0) | (sums == sizes)).all():
                raise SpaceError(f"mask: cuts a block of tensor {t.name!r}; is no {self.n_out}x{self.n_in} mask")
            kept.append({int(e): int(np.count_nonzero(sums[sizes == e])) for e in np.unique(sizes)[::-1]})
        return self._random(structure, kept, key, number)

    def _sizes(self, tensor: Tensor) -> npt.NDArray[np.int64]:
        """(row blocks, column blocks): entries of each block."""
        n_outputs, n_inputs, n_positions = _matrix(tensor)
        heights = np.minimum(self.n_out, n_outputs - np.arange(0, n_outputs, self.n_out))
        widths = np.minimum(self.n_in, n_inputs - np.arange(0, n_inputs, self.n_in))
        return np.multiply.outer(heights, widths) * n_positions

    def _sums(self, tensor: Tensor, flat: npt.NDArray[np.float64] | Mask) -> npt.NDArray[np.float64]:
        """(row blocks, column blocks): sum of each block."""
        n_outputs, n_inputs, _ = _matrix(tensor)
        over_positions = flat.reshape(n_outputs, n_inputs, -1).sum(axis=2, dtype=np.float64)
        over_rows = np.add.reduceat(over_positions, np.arange(0, n_outputs, self.n_out), axis=0)
        sums: npt.NDArray[np.float64] = np.add.reduceat(over_rows, np.arange(0, n_inputs, self.n_in), axis=1)
        return sums

    def _kept(self, structure: Structure, wanted: Sequence[int] | None) -> list[dict[int, int]]:
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
        return [self._of_each_size(t, k) for t, k in zip(tensors, wanted, strict=True)]

    def _of_each_size(self, tensor: Tensor, wanted: int) -> dict[int, int]:
        """Numbers of blocks with the most entries not above `wanted`; of several, the nearest to equal densities."""
        sizes, numbers = np.unique(self._sizes(tensor), return_counts=True)
        shares = numbers * (wanted / tensor.size)
        # Every choice for all sizes (at most four) but the commonest, of which as many follow as are paid for.
        common = int(np.argmax(numbers))
        ranges = [np.arange(b + 1 if i != common else 1) for i, b in enumerate(numbers)]
        kept = np.stack([g.reshape(-1) for g in np.meshgrid(*ranges, indexing="ij")], axis=1)
        kept[:, common] = np.minimum(numbers[common], (wanted - kept @ sizes) // sizes[common])
        kept = kept[kept[:, common] >= 0]
        entries = kept @ sizes
        kept = kept[entries == entries.max()]
        best = kept[np.argmin(np.abs(kept - shares).sum(axis=1).round(9))]
        if not best.any():
            best[-1] = 1
        return {int(e): int(n) for e, n in zip(sizes[::-1], best[::-1], strict=True)}

    def _exactly(self, structure: Structure, counts: Sequence[int]) -> list[dict[int, int]]:
        if (own := self.counts(structure, counts)) != tuple(counts):
            raise SpaceError(
                f"counts={list(counts)}: whole blocks of {self.n_out}x{self.n_in} leave {list(own)}; take these"
            )
        return self._kept(structure, counts)

    def _random(
        self, structure: Structure, kept: Sequence[dict[int, int]], key: npt.NDArray[np.uint64], number: int
    ) -> Mask:
        shapes = [self._sizes(t).shape for t in structure.prunable]
        edges = np.cumsum([0, *(math.prod(s) for s in shapes)])
        words = raw_rows(key, start=number, stop=number + 1, width=int(edges[-1]))[0].astype(np.float64)
        tables = [words[a:b].reshape(s) for (a, b), s in zip(itertools.pairwise(edges), shapes, strict=True)]
        return self._best(structure, tables, kept)

    def _best(
        self, structure: Structure, sums: Sequence[npt.NDArray[np.float64]], kept: Sequence[dict[int, int]]
    ) -> Mask:
        """The mask of the blocks with the highest sums, `kept` of each size."""
        parts = []
        for t, table, numbers in zip(structure.prunable, sums, kept, strict=True):
            sizes = self._sizes(t)
            chosen = np.zeros(sizes.size, dtype=np.bool_)
            for entries, n in numbers.items():
                members = np.flatnonzero(sizes == entries)
                chosen[members[np.argsort(-table.reshape(-1)[members], kind="stable")[:n]]] = True
            n_outputs, n_inputs, n_positions = _matrix(t)
            wide = chosen.reshape(sizes.shape).repeat(self.n_out, axis=0)[:n_outputs]
            wide = wide.repeat(self.n_in, axis=1)[:, :n_inputs]
            parts.append(wide.reshape(-1).repeat(n_positions))
        return np.concatenate(parts)


def _matrix(tensor: Tensor) -> tuple[int, int, int]:
    """Outputs, inputs, kernel positions."""
    n_outputs, n_inputs, *kernel = (*tensor.shape, 1) if len(tensor.shape) == 1 else tensor.shape
    return n_outputs, n_inputs, math.prod(kernel)
