"""Weights times the gradient of one number by them, made block by block: a score of every weight that need not exist.

Of one example a Linear layer's gradient is of rank one, the gradient at its outputs times its inputs: it is never
formed. What is made goes into a core's own cache, and what compares it there reads it no second time from memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.trainables.pruning.remains import Remains
from sparsefront.trainables.pruning.state import blocks

#: Share of a matrix from which on what is left of it is worth a form of its own.
_FEW = 0.5


class Part(Protocol):
    """The products of one tensor."""

    def __len__(self) -> int:
        """How many there are."""

    def is_finite(self) -> bool:
        """Whether all products with weights that float32 can hold certainly are finite numbers."""

    def every(self, first: int, step: int) -> npt.NDArray[np.floating]:
        """The products of the entries `first`, `first` + `step`, ...: the same numbers."""

    def blocks(self, low: float) -> Iterator[npt.NDArray[np.floating]]:
        """All of them, in order; weights with a product below `low` may be set to zero."""

    def remove(self, places: npt.NDArray[np.int64]) -> None:
        """Set some weights, by their places, ascending, to zero; of `Remains` nothing: `Remains.part` does it."""

    def left(self, kept: torch.Tensor) -> torch.Tensor | Remains:
        """What `kept` (n,) bool leaves: itself, where weights that are gone have been set to zero, or `Remains`."""

    def joined(self) -> torch.Tensor:
        """All of them, (n,), on the device of the weights."""


@dataclass(frozen=True)
class Product:
    """The weights of one tensor times their gradient: a `Part`.

    Attributes:
        weights: (outputs, ...).
        gradient: of the same shape; or (outputs,) gradients at the outputs and (inputs,) inputs of a Linear layer; or
            None for zeros.
    """

    weights: torch.Tensor
    gradient: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None

    def __len__(self) -> int:
        return self.weights.numel()

    def is_finite(self) -> bool:
        """See `Part`."""
        if self.gradient is None or not self.weights.numel():
            return True
        return _is_finite((self.gradient,) if isinstance(self.gradient, torch.Tensor) else self.gradient)

    def of(self, rows: slice) -> torch.Tensor:
        """The products of some rows."""
        weights = self.weights[rows]
        if self.gradient is None:
            return torch.zeros_like(weights)
        if isinstance(self.gradient, torch.Tensor):
            return self.gradient[rows] * weights
        outputs, inputs = self.gradient
        if self._has_inputs_of_one:
            return outputs[rows, None] * weights
        return (outputs[rows, None] * inputs).mul_(weights)

    @cached_property
    def _has_inputs_of_one(self) -> bool:
        return isinstance(self.gradient, tuple) and _are_ones(self.gradient[1])

    def every(self, first: int, step: int) -> npt.NDArray[np.floating]:
        """See `Part`."""
        weights = self.weights.flatten()[first::step].numpy()
        if self.gradient is None:
            return np.zeros_like(weights)
        if isinstance(self.gradient, torch.Tensor):
            return np.asarray(self.gradient.flatten()[first::step].numpy() * weights)
        outputs, inputs = (factor.numpy() for factor in self.gradient)
        places = np.arange(first, self.weights.numel(), step)
        rows = places // len(inputs)  # vectorised, which `divmod` is not
        return np.asarray(outputs[rows] * inputs[places - rows * len(inputs)] * weights)

    def blocks(self, low: float) -> Iterator[npt.NDArray[np.floating]]:
        """See `Part`."""
        below = math.nextafter(low, -math.inf)
        for rows in blocks(self.weights[None]):
            block, weights = self.of(rows), self.weights[rows]
            # Where a product is not above `below`; a multiplication by what a comparison finds takes twice as long.
            torch.ops.aten.threshold_backward.grad_input(weights, block, below, grad_input=weights)
            yield block.flatten().numpy()

    def remove(self, places: npt.NDArray[np.int64]) -> None:
        """See `Part`."""
        self.weights.view(-1)[torch.from_numpy(places)] = 0

    def left(self, kept: torch.Tensor) -> torch.Tensor | Remains:
        """See `Part`."""
        is_of_rank_one = isinstance(self.gradient, tuple)
        if not is_of_rank_one or np.count_nonzero(kept.numpy()) > _FEW * len(self):
            return kept
        return Remains.of(self.weights, kept)

    def joined(self) -> torch.Tensor:
        """See `Part`."""
        return torch.cat([self.of(rows).flatten() for rows in blocks(self.weights[None])])


class ProductOfRemains:
    """What is left of a Linear layer's weights times their gradient: a `Part` without what is gone."""

    def __init__(self, remains: Remains, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        """Multiply them; (outputs,) are gradients at the outputs, and (inputs,) inputs."""
        self.remains, self._factors = remains, (outputs, inputs)
        # In the order of a `Product`, to the last bit.
        self._products = remains.by_output(outputs.numpy())
        if not _are_ones(inputs):
            self._products *= remains.by_input(inputs)
        self._products *= remains.weights

    def __len__(self) -> int:
        return len(self._products)

    def is_finite(self) -> bool:
        """See `Part`."""
        return _is_finite(self._factors)

    def every(self, first: int, step: int) -> npt.NDArray[np.floating]:
        """See `Part`."""
        return self._products[first::step]

    def blocks(self, low: float) -> Iterator[npt.NDArray[np.floating]]:
        """See `Part`."""
        for some in blocks(torch.from_numpy(self._products)[None]):
            yield self._products[some]

    def left(self, kept: torch.Tensor) -> torch.Tensor | Remains:
        """See `Part`."""
        return self.remains.part(kept)

    def joined(self) -> torch.Tensor:
        """See `Part`."""
        return torch.from_numpy(self._products)

    def remove(self, places: npt.NDArray[np.int64]) -> None:
        """See `Part`."""


def _are_ones(inputs: torch.Tensor) -> bool:
    """Whether the gradient at an output is that by each of its weights: so in the first layer of SynFlow."""
    return bool((inputs == 1).all())


def _is_finite(factors: Sequence[torch.Tensor]) -> bool:
    """Whether certainly all products of entries of these and of a number that float32 can hold are finite."""
    bound = float(torch.finfo(torch.float32).max)
    for factor in factors:  # none of its entries is above its norm
        bound *= math.sqrt(float(torch.dot(factor.flatten(), factor.flatten())))
    return math.isfinite(bound)


class Products:
    """The products of several tensors, one behind the other: a `select.Row`, on a CPU.

    Attributes:
        parts: of each tensor.
        sizes: how many of each.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts, self.sizes = parts, [len(part) for part in parts]
        self._edges = np.cumsum([0, *self.sizes])

    def __len__(self) -> int:
        return int(self._edges[-1])

    def are_finite(self) -> bool:
        """Whether all certainly are finite numbers."""
        return all(part.is_finite() for part in self.parts)

    def every(self, step: int) -> npt.NDArray[np.floating]:
        """The first of each `step` of them."""
        return np.concatenate(
            [part.every(-start % step, step) for part, start in zip(self.parts, self._edges, strict=False)]
        )

    def blocks(self, low: float) -> Iterator[npt.NDArray[np.floating]]:
        """All of them, in order; weights with a product below `low` may be set to zero."""
        return itertools.chain.from_iterable(part.blocks(low) for part in self.parts)

    def remove(self, places: npt.NDArray[np.int64]) -> None:
        """See `Part`."""
        cuts = itertools.pairwise(np.searchsorted(places, self._edges))
        for part, start, (a, b) in zip(self.parts, self._edges, cuts, strict=False):
            part.remove(places[a:b] - start)

    def joined(self) -> torch.Tensor:
        """All of them, (n,), on the device of the weights."""
        return torch.cat([part.joined() for part in self.parts])
