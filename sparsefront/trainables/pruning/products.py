"""Weights times the gradient of one number by them, made block by block: a score of every weight that need not exist.

Of one example a Linear layer's gradient is of rank one, the gradient at its outputs times its inputs: it is never
formed. What is made goes into a core's own cache, and what compares it there reads it no second time from memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.trainables.pruning.state import blocks


@dataclass(frozen=True)
class Product:
    """The weights of one tensor times their gradient.

    Attributes:
        weights: (outputs, ...).
        gradient: of the same shape; or (outputs,) gradients at the outputs and (inputs,) inputs of a Linear layer; or
            None for zeros.
    """

    weights: torch.Tensor
    gradient: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None

    def of(self, rows: slice) -> torch.Tensor:
        """The products of some rows."""
        weights = self.weights[rows]
        if self.gradient is None:
            return torch.zeros_like(weights)
        if isinstance(self.gradient, torch.Tensor):
            return self.gradient[rows] * weights
        outputs, inputs = self.gradient
        return (outputs[rows, None] * inputs).mul_(weights)

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """The products of some entries, by flat index: the same numbers."""
        weights = self.weights.flatten()[places]
        if self.gradient is None:
            return torch.zeros_like(weights)
        if isinstance(self.gradient, torch.Tensor):
            return self.gradient.flatten()[places] * weights
        outputs, inputs = self.gradient
        rows = places.div(len(inputs), rounding_mode="floor")
        return (outputs[rows] * inputs[places - rows * len(inputs)]).mul_(weights)


class Products:
    """The products of several tensors, one behind the other: a `select.Row`, on a CPU.

    Attributes:
        total: sum of what `blocks` has made.
    """

    def __init__(self, parts: Sequence[Product]) -> None:
        self.total = 0.0
        self._parts = parts
        self._edges = np.cumsum([0, *(part.weights.numel() for part in parts)])

    def __len__(self) -> int:
        return int(self._edges[-1])

    def at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Those at some places, ascending."""
        cuts = itertools.pairwise(np.searchsorted(places, self._edges))
        parts = zip(self._parts, self._edges, cuts, strict=False)
        found = [part.at(torch.from_numpy(places[a:b] - start)) for part, start, (a, b) in parts]
        return np.asarray(torch.cat(found).numpy())

    def blocks(self) -> Iterator[npt.NDArray[np.floating]]:
        """All of them, in order."""
        for part in self._parts:
            for rows in blocks(part.weights[None]):
                block = part.of(rows).flatten().numpy()
                self.total += float(block.sum())
                yield block

    def joined(self) -> torch.Tensor:
        """All of them, (n,), on the device of the weights."""
        return torch.cat([part.of(rows).flatten() for part in self._parts for rows in blocks(part.weights[None])])
