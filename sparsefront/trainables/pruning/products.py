"""Weights times the gradient of one number by them, made block by block: a score of every weight that need not exist.

Of one example a Linear layer's gradient is of rank one, the gradient at its outputs times its inputs: it is never
formed. What is made goes into a core's own cache, and what compares it there reads it no second time from memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.trainables.pruning.remains import Left, Masked, Ranked, Remains
from sparsefront.trainables.pruning.state import blocks
from sparsefront.trainables.select import Compared, compare

#: Share of a matrix from which on what is left of it is worth a form of its own.
_FEW = 0.4


class Part(Protocol):
    """The products of one tensor."""

    def __len__(self) -> int:
        """How many there are."""

    def is_finite(self) -> bool:
        """Whether all products with weights that float32 can hold certainly are finite numbers."""

    def every(self, first: int, step: int) -> npt.NDArray[np.floating]:
        """The products of the entries `first`, `first` + `step`, ... in an order of its own."""

    def between(self, low: float, high: float) -> tuple[int, npt.NDArray[np.floating]]:
        """As `select.Row` has it; weights with a product below `low` may be set to zero."""

    def left(self, stay: npt.NDArray[np.bool_]) -> Left:
        """What was above, and what stays of that in between: (m,) bool. Nothing else is left afterwards."""


@dataclass
class Product:
    """The weights of one tensor times their gradient: a `Part`.

    Attributes:
        weights: (outputs, ...), >= 0 where they are cut.
        gradient: of the same shape; or (outputs,) gradients at the outputs and (inputs,) inputs of a Linear layer; or
            None for zeros.
        is_of_ones: whether it is of a Linear layer with inputs of one, whatever the weights are.
    """

    weights: torch.Tensor
    gradient: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None
    is_of_ones: bool = False
    _compared: Compared = field(init=False, repr=False)

    def __len__(self) -> int:
        return self.weights.numel()

    def is_finite(self) -> bool:
        """See `Part`."""
        if self.gradient is None or not self.weights.numel():
            return True
        return _is_finite((self.gradient,) if isinstance(self.gradient, torch.Tensor) else self.gradient)

    def joined(self) -> torch.Tensor:
        """All of them, (n,), on the device of the weights."""
        return torch.cat([self._of(rows).flatten() for rows in blocks(self.weights[None])])

    def _of(self, rows: slice) -> torch.Tensor:
        """The products of some rows."""
        weights = self.weights[rows]
        if self.gradient is None:
            return torch.zeros_like(weights)
        if isinstance(self.gradient, torch.Tensor):
            return self.gradient[rows] * weights
        outputs, inputs = self.gradient
        if self.is_of_ones:
            return outputs[rows, None] * weights
        return (outputs[rows, None] * inputs).mul_(weights)

    def every(self, first: int, step: int) -> npt.NDArray[np.floating]:
        """See `Part`."""
        weights = self.weights.flatten()[first::step].numpy()
        if self.gradient is None:
            return np.zeros_like(weights)
        if isinstance(self.gradient, torch.Tensor):
            return np.asarray(self.gradient.flatten()[first::step].numpy() * weights)
        outputs, inputs = (factor.numpy() for factor in self.gradient)
        rows, columns = _places(first, step, len(self), len(inputs))
        return np.asarray(outputs[rows] * inputs[columns] * weights)

    def between(self, low: float, high: float) -> tuple[int, npt.NDArray[np.floating]]:
        """See `Part`."""
        self._compared = compare(self._cut_blocks(low), low, high, np.empty(len(self), dtype=np.bool_))
        return self._compared.n_above, self._compared.values

    def _cut_blocks(self, low: float) -> Iterator[npt.NDArray[np.floating]]:
        """All of them, in order; weights with a product below `low` are set to zero."""
        below = math.nextafter(low, -math.inf)
        for rows in blocks(self.weights[None]):
            block, weights = self._of(rows), self.weights[rows]
            # Where a product is not above `below`; a multiplication by what a comparison finds takes twice as long.
            torch.ops.aten.threshold_backward.grad_input(weights, block, below, grad_input=weights)
            yield block.flatten().numpy()

    def left(self, stay: npt.NDArray[np.bool_]) -> Left:
        """See `Part`."""
        kept = self._compared.keep(stay)
        self.weights.view(-1)[torch.from_numpy(self._compared.places[~stay])] = 0
        masked = Masked(kept)
        if self.is_of_ones:
            return Ranked.of(self.weights, kept)
        if isinstance(self.gradient, tuple) and len(masked) <= _FEW * len(self):
            return Remains.of(self.weights, kept)
        return masked


class ProductOfRemains:
    """What is left of a Linear layer's weights times their gradient: a `Part` without what is gone."""

    def __init__(self, remains: Remains, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        """Multiply them; (outputs,) are gradients at the outputs, and (inputs,) inputs."""
        self._remains, self._factors = remains, (outputs, inputs)
        # In the order of a `Product`, to the last bit.
        self._products = remains.by_output(outputs.numpy())
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

    def between(self, low: float, high: float) -> tuple[int, npt.NDArray[np.floating]]:
        """See `Part`."""
        parts = (self._products[some] for some in blocks(torch.from_numpy(self._products)[None]))
        self._compared = compare(parts, low, high, np.empty(len(self), dtype=np.bool_))
        return self._compared.n_above, self._compared.values

    def left(self, stay: npt.NDArray[np.bool_]) -> Left:
        """See `Part`."""
        return self._remains.part(self._compared.keep(stay))


class ProductOfRanked:
    """Sorted weights times the gradients at their outputs: a `Part` that looks at few of them."""

    def __init__(self, ranked: Ranked, outputs: torch.Tensor) -> None:
        """Take gradients at the outputs: (outputs,)."""
        self._ranked, self._outputs = ranked, outputs.numpy()

    def __len__(self) -> int:
        return self._ranked.ordered.size

    def is_finite(self) -> bool:
        """See `Part`."""
        return _is_finite((torch.from_numpy(self._outputs),))

    def every(self, first: int, step: int) -> npt.NDArray[np.floating]:
        """See `Part`."""
        rows, columns = _places(first, step, len(self), self._ranked.ordered.shape[1])
        is_left = columns < self._ranked.n_left[rows]
        return np.asarray(self._outputs[rows] * self._ranked.ordered.reshape(-1)[first::step] * is_left)

    def between(self, low: float, high: float) -> tuple[int, npt.NDArray[np.floating]]:
        """See `Part`."""
        self._n_above, n_from = self._n_not_below(np.array([[math.nextafter(high, math.inf)], [low]]))
        n_between = n_from - self._n_above
        self._rows = np.repeat(np.arange(len(n_between)), n_between)
        begins = np.cumsum(n_between) - n_between - self._n_above
        columns = np.arange(len(self._rows)) - np.repeat(begins, n_between)
        return int(self._n_above.sum()), self._outputs[self._rows] * self._ranked.ordered[self._rows, columns]

    def _n_not_below(self, lows: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """How many of what is left of each output are not below each of `lows` (m, 1), by bisection: (m, outputs)."""
        n_outputs, n_inputs = self._ranked.ordered.shape
        found, begins = np.zeros((len(lows), n_outputs), np.int64), np.arange(n_outputs) * n_inputs
        for power in reversed(range(n_inputs.bit_length())):
            more = found + (1 << power)
            weights = self._ranked.ordered.take(begins + np.minimum(more, n_inputs) - 1)
            found = np.where((more <= self._ranked.n_left) & (self._outputs * weights >= lows), more, found)
        return found

    def left(self, stay: npt.NDArray[np.bool_]) -> Left:
        """See `Part`: of one output's equals it does not matter which stay, and those above them do before."""
        return self._ranked.part(self._n_above + np.bincount(self._rows[stay], minlength=len(self._outputs)))


def _places(first: int, step: int, n: int, n_columns: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the entries `first`, `first` + `step`, ... of a matrix of `n`."""
    places = np.arange(first, n, step)
    rows = places // n_columns  # vectorised, which `divmod` is not
    return rows, places - rows * n_columns


def _is_finite(factors: Sequence[torch.Tensor]) -> bool:
    """Whether certainly all products of entries of these and of a number that float32 can hold are finite."""
    bound = float(torch.finfo(torch.float32).max)
    for factor in factors:  # none of its entries is above its norm
        bound *= math.sqrt(float(torch.dot(factor.flatten(), factor.flatten())))
    return math.isfinite(bound)


class Products:
    """The products of several tensors, one behind the other: a `select.Row`, on a CPU."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._edges = np.cumsum([0, *(len(part) for part in parts)])
        self._n_between: list[int] = []

    def __len__(self) -> int:
        return int(self._edges[-1])

    def are_finite(self) -> bool:
        """Whether all certainly are finite numbers."""
        return all(part.is_finite() for part in self._parts)

    def every(self, step: int) -> npt.NDArray[np.floating]:
        """See `select.Row`."""
        return np.concatenate(
            [part.every(-start % step, step) for part, start in zip(self._parts, self._edges, strict=False)]
        )

    def between(self, low: float, high: float) -> tuple[int, npt.NDArray[np.floating]]:
        """See `select.Row`."""
        found = [part.between(low, high) for part in self._parts]
        self._n_between = [len(values) for _, values in found]
        return sum(n_above for n_above, _ in found), np.concatenate([values for _, values in found])

    def left(self, stay: npt.NDArray[np.bool_]) -> list[Left]:
        """What is left of each tensor, with what stays of that in between: see `Part`."""
        edges = np.cumsum(self._n_between)[:-1]
        return [part.left(some) for part, some in zip(self._parts, np.split(stay, edges), strict=True)]
