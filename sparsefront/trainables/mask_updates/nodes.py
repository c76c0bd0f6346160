"""Nodes (hidden units and channels) of lanes at full size: what of a lane's row each of them owns.

A node that is away has neither incoming weights nor a bias nor outgoing ones. It comes back with its initial incoming
weights, no bias and no outgoing weights, so that the network's function does not jump; the gradient of its outgoing
weights then says what it could do. Weights between a node that comes in and one that is away are outgoing ones first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.lanes import LaneStack, Layout

#: Dimensions of a tensor along which nodes own incoming weights and biases, and outgoing weights.
_IN, _OUT = 0, 1


class Nodes:
    """Where the nodes of a network lie in rows (L, P) of its layout, or in their trained parts."""

    def __init__(self, structure: Structure, layout: Layout) -> None:
        """Find the nodes.

        Raises:
            SpaceError: the layout is not that of the structure itself: compact lanes have no place for what comes back.
        """
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        if other := [t.name for t in structure.tensors if shapes[t.name] != t.shape]:
            raise SpaceError(
                f"shape={shapes[other[0]]} of {other[0]!r}: nodes that leave in training need lanes of the parent's "
                "own shapes"
            )
        self._structure, self._layout = structure, layout
        #: Nodes of each node group.
        self.sizes = structure.section_sizes("node")

    def _owned(self, flat: torch.Tensor, dims: Collection[int]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Nodes of a group by their columns in a mask, and what they own of a tensor: (L, nodes, ...), a view."""
        views = self._layout.views(flat)
        start = 0
        for group in self._structure.groups:
            columns = slice(start, start + group.size)
            start += group.size
            for axis in group.axes:
                if axis.dim in dims and axis.tensor in views:
                    owned = torch.unflatten(views[axis.tensor], axis.dim + 1, (group.size, axis.repeat))
                    yield columns, owned.movedim(axis.dim + 1, 1)

    def _sums(self, entries: torch.Tensor, dims: Collection[int]) -> torch.Tensor:
        """Sum of `entries` (L, P) over what each node owns along `dims`: (L, N) float64."""
        sums = torch.zeros(len(entries), sum(self.sizes), dtype=torch.float64, device=entries.device)
        for columns, owned in self._owned(entries, dims):
            sums[:, columns] += owned.flatten(2).sum(dim=2, dtype=torch.float64)
        return sums

    def _scale(self, entries: torch.Tensor, factors: torch.Tensor, dims: Collection[int]) -> None:
        """Multiply in place what each node owns along `dims` by its factor (L, N)."""
        factors = factors.to(entries.dtype)
        for columns, owned in self._owned(entries, dims):
            owned.mul_(factors[:, columns].view(len(entries), -1, *[1] * (owned.dim() - 2)))

    def kept(self, keep: torch.Tensor) -> torch.Tensor:
        """The nodes of which `keep` (L, P), zeros and ones, leaves anything: (L, N) bool, a node mask."""
        return self._sums(keep, (_IN, _OUT)) > 0

    def write(self, masks: torch.Tensor, keep: torch.Tensor) -> None:
        """Inverse of `kept`: write which entries the nodes of `masks` (L, N) leave into `keep` (L, P)."""
        self._scale(keep.fill_(1), masks, (_IN, _OUT))

    def norms(self, flat: torch.Tensor) -> torch.Tensor:
        """L2 norm of all that each node owns: (L, N) float64."""
        return self._sums(flat.double().square(), (_IN, _OUT)).sqrt_()

    def outgoing(self, entries: torch.Tensor) -> torch.Tensor:
        """Sum of `entries` (L, P) over the outgoing weights of each node: (L, N) float64."""
        return self._sums(entries, (_OUT,))

    def insert(self, flat: torch.Tensor, places: torch.Tensor, initial: torch.Tensor, sources: torch.Tensor) -> None:
        """Add `initial` weights ((P,) or (L, P)) to `flat` at `places` (L, P), ones and zeros.

        Outgoing weights of nodes that are not among `sources` (L, N) are left out; `places` is scratch afterwards.
        """
        self._scale(places, sources, (_OUT,))
        flat.addcmul_(places, initial)

    def without_biases(self, initial: torch.Tensor) -> torch.Tensor:
        """A copy of weights (P,) or (L, P), in which biases are zero: (1, P) or (L, P)."""
        initial = initial.clone().view(-1, initial.shape[-1])
        for name, view in self._layout.views(initial).items():
            if name.rpartition(".")[2] == "bias":
                view.zero_()
        return initial


def full_size_lanes(
    structure: Structure, parent: Mapping[str, torch.Tensor], masks: npt.NDArray[np.bool_]
) -> LaneStack:
    """Lanes of the parent's own shapes in which the nodes that masks remove have no trained weights.

    Args:
        structure: the parent.
        parent: its weights; device and type are taken over.
        masks: (L, hidden nodes) bool, at least one node kept in every group.
    """
    layout = Layout.of(structure)
    flat = torch.cat([parent[name].flatten() for name in layout.names]).repeat(len(masks), 1)
    keep = torch.ones_like(flat)
    Nodes(structure, layout).write(torch.from_numpy(masks).to(flat.device), keep[:, : layout.trained_width])
    return LaneStack(layout, flat * keep, keep)
