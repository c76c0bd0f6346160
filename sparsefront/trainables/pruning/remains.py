"""What is left of a matrix of weights, row by row: what runs through it reads nothing of what is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class Remains:
    """The weights that are left of a Linear layer, in the order of their flat index, on a CPU.

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
    def of(cls, weights: torch.Tensor, kept: torch.Tensor) -> Remains:
        """What `kept` (outputs x inputs,) bool leaves of `weights` (outputs, inputs) float64."""
        n_outputs, n_inputs = weights.shape
        places = np.flatnonzero(kept.numpy())
        begins = np.arange(n_outputs + 1) * n_inputs
        starts = np.searchsorted(places, begins)
        columns = places - np.repeat(begins[:-1], np.diff(starts))
        return cls(
            weights.flatten().index_select(0, torch.from_numpy(places)).numpy(),
            columns.astype(np.int32),
            starts.astype(np.int32),
            weights.shape,
        )

    def part(self, kept: torch.Tensor) -> Remains:
        """What `kept` (n,) bool leaves of it."""
        places = np.flatnonzero(kept.numpy())
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
        """Which of the matrix's weights are left: (outputs x inputs,) bool."""
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
        """The layer's outputs (..., outputs) for one row of inputs (..., inputs), of which gradients know."""
        found: torch.Tensor = _Multiplied.apply(given, self._matrix)  # type: ignore[no-untyped-call]
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
