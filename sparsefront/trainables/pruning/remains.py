"""What is left of a tensor of weights, in the form in which it is run through and scored fastest, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch


class Left(Protocol):
    """What is left of a tensor of weights."""

    def __len__(self) -> int:
        """How many weights."""

    def mask(self) -> torch.Tensor:
        """Which: (entries,) bool."""


class RunThrough(Left, Protocol):
    """What is left of a Linear layer in a form of its own."""

    def outputs(self, given: torch.Tensor) -> torch.Tensor:
        """The layer's outputs (..., outputs) for one row of inputs (..., inputs), of which gradients know."""


@dataclass(frozen=True)
class Masked:
    """What `kept` (entries,) bool leaves of a tensor, in which zeros stand for what is gone."""

    kept: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return int(np.count_nonzero(self.kept))

    def mask(self) -> torch.Tensor:
        """See `Left`."""
        return torch.from_numpy(self.kept)


@dataclass(frozen=True)
class Ranked:
    """What is left of the weights of a Linear layer with inputs of one, the best first.

    Their scores are in proportion to them, with a factor for each output: once sorted, what is left of an output is
    told by a number, its flow is a sum that is known, and a threshold is found by bisection.

    Attributes:
        weights: (outputs, inputs) float64 >= 0, which float32 can hold; zero for what was gone when they were sorted.
        ordered: (outputs, inputs) float32, each output's descending.
        flows: (outputs, inputs) float64, their sums up to each.
        n_left: (outputs,) how many are left of each output.
    """

    weights: torch.Tensor
    ordered: npt.NDArray[np.float32]
    flows: torch.Tensor
    n_left: npt.NDArray[np.int64]

    @classmethod
    def of(cls, weights: torch.Tensor, kept: npt.NDArray[np.bool_]) -> Ranked:
        """What `kept` (outputs x inputs,) bool leaves of `weights`, which are zero elsewhere."""
        ordered = -np.sort(-weights.float().numpy(), axis=1)
        flows = torch.from_numpy(ordered).double().cumsum(dim=1)
        return cls(weights, ordered, flows, np.count_nonzero(kept.reshape(ordered.shape), axis=1))

    def part(self, n_left: npt.NDArray[np.int64]) -> Ranked:
        """The best `n_left` (outputs,) of each output."""
        return replace(self, n_left=n_left)

    def __len__(self) -> int:
        return int(self.n_left.sum())

    def mask(self) -> torch.Tensor:
        """See `Left`; of equals the first."""
        weights = self.weights.numpy()
        lowest = np.where(self.n_left > 0, self._last(self.ordered), np.inf)
        kept = weights >= lowest[:, None]
        n_surplus = np.count_nonzero(kept, axis=1) - self.n_left
        for i in np.flatnonzero(n_surplus):
            kept[i, np.flatnonzero(weights[i] == lowest[i])[-n_surplus[i] :]] = False
        return torch.from_numpy(kept.reshape(-1))

    def outputs(self, given: torch.Tensor) -> torch.Tensor:
        """See `RunThrough`; there is no gradient by `given`."""
        flows = np.where(self.n_left > 0, self._last(self.flows.numpy()), 0.0)
        return torch.from_numpy(flows).view(*given.shape[:-1], -1).requires_grad_()

    def _last(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What `values` (outputs, inputs) hold for the last that is left of each output."""
        return np.take_along_axis(values, np.maximum(self.n_left - 1, 0)[:, None], axis=1)[:, 0]


class Remains:
    """The weights that are left of a Linear layer, by their flat index: what runs through them reads nothing else.

    Attributes:
        shape: (outputs, inputs) of the whole matrix.
        weights: (n,) float64.
        columns: (n,) int32, which input each is of.
    """

    def __init__(
        self,
        weights: npt.NDArray[np.float64],
        columns: npt.NDArray[np.int32],
        starts: npt.NDArray[np.int32],
        shape: Sequence[int],
    ) -> None:
        """Take what is left; `starts` (outputs + 1,) says where each output's weights begin."""
        from scipy.sparse import csr_array  # a tenth of a second, which other scores need not wait for

        self.shape, self.weights, self.columns, self._starts = tuple(shape), weights, columns, starts
        self._matrix = csr_array((weights, columns, starts), shape=self.shape)

    @classmethod
    def of(cls, weights: torch.Tensor, kept: npt.NDArray[np.bool_]) -> Remains:
        """What `kept` (outputs x inputs,) bool leaves of `weights` (outputs, inputs) float64."""
        n_outputs, n_inputs = weights.shape
        places = np.flatnonzero(kept)
        begins = np.arange(n_outputs + 1) * n_inputs
        starts = np.searchsorted(places, begins)
        columns = places - np.repeat(begins[:-1], np.diff(starts))
        return cls(
            weights.flatten().index_select(0, torch.from_numpy(places)).numpy(),
            columns.astype(np.int32),
            starts.astype(np.int32),
            weights.shape,
        )

    def part(self, kept: npt.NDArray[np.bool_]) -> Remains:
        """What `kept` (n,) bool leaves of it."""
        places = np.flatnonzero(kept)
        at = torch.from_numpy(places)
        return Remains(
            torch.from_numpy(self.weights).index_select(0, at).numpy(),
            torch.from_numpy(self.columns).index_select(0, at).numpy(),
            np.searchsorted(places, self._starts).astype(np.int32),
            self.shape,
        )

    def __len__(self) -> int:
        return len(self.weights)

    def mask(self) -> torch.Tensor:
        """See `Left`."""
        places = self.columns + self.by_output(np.arange(self.shape[0]) * self.shape[1])
        mask = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool)
        mask[torch.from_numpy(places)] = True
        return mask

    def by_output(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """For each weight the one of `values` (outputs,) that is of its output: (n,)."""
        return np.repeat(values, np.diff(self._starts))

    def by_input(self, values: torch.Tensor) -> npt.NDArray[np.float64]:
        """For each weight the one of `values` (inputs,) that is of its input: (n,)."""
        # numpy's `take` converts the columns to 64 bits first.
        return np.asarray(values.index_select(0, torch.from_numpy(self.columns)).numpy())

    def outputs(self, given: torch.Tensor) -> torch.Tensor:
        """See `RunThrough`."""
        found: torch.Tensor = _Multiplied.apply(given, self._matrix)  # type: ignore[no-untyped-call]  # torch has no type for it
        return found


class _Multiplied(torch.autograd.Function):
    """One row of inputs times a matrix of SciPy's."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, matrix: Any) -> torch.Tensor:
        ctx.matrix = matrix
        return torch.from_numpy(matrix @ given.flatten().numpy()).view(*given.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return torch.from_numpy(ctx.matrix.T @ gradient.flatten().numpy()).view(*gradient.shape[:-1], -1), None
