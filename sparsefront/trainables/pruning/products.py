"""Weights times the gradient of one number by them, made block by block: a score of every weight that need not exist.

Of one example a Linear layer's gradient is of rank one, the gradient at its outputs times its inputs: it is never
formed. What is made goes into a core's own cache, and what compares it there reads it no second time from memory.
"""

from __future__ import annotations

import itertools
import math
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

    def is_finite(self) -> bool:
        """Whether all products with weights that float32 can hold certainly are finite numbers."""
        if self.gradient is None or not self.weights.numel():
            return True
        factors = (self.gradient,) if isinstance(self.gradient, torch.Tensor) else self.gradient
        bound = float(torch.finfo(torch.float32).max)
        for factor in factors:  # none of its entries is above its norm
            bound *= math.sqrt(float(torch.dot(factor.flatten(), factor.flatten())))
        return math.isfinite(bound)

    def of(self, rows: slice) -> torch.Tensor:
        """The products of some rows."""
        weights = self.weights[rows]
        if self.gradient is None:
            return torch.zeros_like(weights)
        if isinstance(self.gradient, torch.Tensor):
            return self.gradient[rows] * weights
        outputs, inputs = self.gradient
        return (outputs[rows, None] * inputs).mul_(weights)

    def every(self, first: int, step: int) -> npt.NDArray[np.floating]:
        """The products of the entries `first`, `first` + `step`, ... by flat index: the same numbers."""
        weights = self.weights.flatten()[first::step].numpy()
        if self.gradient is None:
            return np.zeros_like(weights)
        if isinstance(self.gradient, torch.Tensor):
            return np.asarray(self.gradient.flatten()[first::step].numpy() * weights)
        outputs, inputs = (factor.numpy() for factor in self.gradient)
        rows, columns = np.divmod(np.arange(first, self.weights.numel(), step), len(inputs))
        return np.asarray(outputs[rows] * inputs[columns] * weights)


class Products:
    """The products of several tensors, one behind the other: a `select.Row`, on a CPU."""

    def __init__(self, parts: Sequence[Product]) -> None:
        self._parts = parts
        self._edges = np.cumsum([0, *(part.weights.numel() for part in parts)])

    def __len__(self) -> int:
        return int(self._edges[-1])

    def are_finite(self) -> bool:
        """Whether all certainly are finite numbers."""
        return all(part.is_finite() for part in self._parts)

    def every(self, step: int) -> npt.NDArray[np.floating]:
        """The first of each `step` of them."""
        return np.concatenate(
            [part.every(-start % step, step) for part, start in zip(self._parts, self._edges, strict=False)]
        )

    def blocks(self, low: float) -> Iterator[npt.NDArray[np.floating]]:
        """All of them, in order; weights with a product below `low` are set to zero."""
        below = math.nextafter(low, -math.inf)
        for part in self._parts:
            for rows in blocks(part.weights[None]):
                block, weights = part.of(rows), part.weights[rows]
                # Where a product is not above `below`; a multiplication by what a comparison finds takes twice as long.
                torch.ops.aten.threshold_backward.grad_input(weights, block, below, grad_input=weights)
                yield block.flatten().numpy()

    def remove(self, places: npt.NDArray[np.int64]) -> None:
        """Set some weights, ascending, to zero."""
        cuts = itertools.pairwise(np.searchsorted(places, self._edges))
        for part, start, (a, b) in zip(self._parts, self._edges, cuts, strict=False):
            part.weights.view(-1)[torch.from_numpy(places[a:b] - start)] = 0

    def joined(self) -> torch.Tensor:
        """All of them, (n,), on the device of the weights."""
        return torch.cat([part.of(rows).flatten() for part in self._parts for rows in blocks(part.weights[None])])
