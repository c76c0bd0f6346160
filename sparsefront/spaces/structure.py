"""What a parent network is made of, as plain numbers: its tensors, and the nodes that masks may remove.

A *node* is a hidden unit of a Linear layer or a channel of a convolution. All tensor axes that shrink together when a
node goes form a *node group* (a skip connection ties two layers into one group; a flattened convolution gives every
channel several columns of the next layer). Shapes, parameters and multiply-accumulates of any sub-network follow from
this description alone, before anything is built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sparsefront.errors import SpaceError


@dataclass(frozen=True)
class Tensor:
    """One parameter tensor.

    `positions` is how often each entry is used in one example's forward pass (1 in a Linear layer, the output length
    in a convolution), so that multiply-accumulates are entries x positions. Biases and norms are not `prunable`; they
    cost no multiply-accumulates by convention. A tensor that is not `trained` (a fixed random projection) stays as it
    was drawn: it multiplies like any other, but is no parameter, for a seed restores it.
    """

    name: str
    shape: tuple[int, ...]
    prunable: bool
    positions: int = 1
    trained: bool = True

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Axis:
    """A tensor's dimension `dim` that follows a node group; each node owns `repeat` consecutive entries of it."""

    tensor: str
    dim: int
    repeat: int = 1


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that live and die together over several tensor axes."""

    name: str
    size: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Structure:
    """Tensors and node groups of a network, in the order of computation.

    >>> net = Structure(
    ...     tensors=(Tensor("a.weight", (3, 2), True), Tensor("a.bias", (3,), False), Tensor("b.weight", (1, 3), True)),
    ...     groups=(NodeGroup("a", 3, (Axis("a.weight", 0), Axis("a.bias", 0), Axis("b.weight", 1))),),
    ... )
    >>> net.n_params, net.macs, net.compact([2]).n_params
    (12, 9, 8)
    """

    tensors: tuple[Tensor, ...]
    groups: tuple[NodeGroup, ...]

    @cached_property
    def prunable(self) -> tuple[Tensor, ...]:
        """Tensors that weight masks act on."""
        return tuple(t for t in self.tensors if t.prunable)

    @cached_property
    def multiplied(self) -> tuple[Tensor, ...]:
        """Tensors that cost multiply-accumulates: the prunable ones, and those that are fixed."""
        return tuple(t for t in self.tensors if t.prunable or not t.trained)

    @cached_property
    def n_params(self) -> int:
        """Trained parameters, biases included."""
        return sum(t.size for t in self.tensors if t.trained)

    @cached_property
    def n_weights(self) -> int:
        """Prunable weights."""
        return sum(self._weight_sizes)

    @cached_property
    def _weight_sizes(self) -> tuple[int, ...]:
        return tuple(t.size for t in self.prunable)

    @cached_property
    def n_nodes(self) -> int:
        """Hidden nodes over all groups."""
        return sum(g.size for g in self.groups)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one example's forward pass."""
        return sum(t.size * t.positions for t in self.multiplied)

    def section_sizes(self, kind: str) -> tuple[int, ...]:
        """Sizes of what a mask of `kind` is divided into: node groups, or prunable tensors."""
        if kind == "node":
            return tuple(g.size for g in self.groups)
        if kind == "weight":
            return self._weight_sizes
        raise SpaceError(f"mask kind={kind!r}: must be 'node' or 'weight'")

    def compact(self, kept: Sequence[int]) -> Structure:
        """The same network with `kept[g]` nodes left in group g.

        Raises:
            SpaceError: if a count is not in 1..size of its group.
        """
        if len(kept) != len(self.groups):
            raise SpaceError(f"kept={list(kept)}: one count for each of the {len(self.groups)} node groups is needed")
        shapes = {t.name: list(t.shape) for t in self.tensors}
        for group, k in zip(self.groups, kept, strict=True):
            if not 1 <= k <= group.size:
                raise SpaceError(f"kept={k} nodes in group {group.name!r}: must lie in 1..{group.size}")
            for axis in group.axes:
                shapes[axis.tensor][axis.dim] = k * axis.repeat
        return Structure(
            tensors=tuple(replace(t, shape=tuple(shapes[t.name])) for t in self.tensors),
            groups=tuple(replace(g, size=int(k)) for g, k in zip(self.groups, kept, strict=True)),
        )

    def scaled_to(self, n_params: int) -> Structure:
        """The network of this family, all groups scaled alike, whose parameter count is nearest to `n_params`.

        >>> net = Structure((Tensor("a.weight", (8, 2), True),), (NodeGroup("a", 8, (Axis("a.weight", 0),)),))
        >>> net.scaled_to(9).n_params
        10
        """
        largest = max(g.size for g in self.groups)
        candidates = (
            self.compact([max(1, -(-g.size * i // largest)) for g in self.groups]) for i in range(1, largest + 1)
        )
        return min(candidates, key=lambda net: (abs(net.n_params - n_params), -net.n_params))
