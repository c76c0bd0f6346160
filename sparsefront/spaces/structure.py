"""What a parent network is made of, as plain numbers: its tensors, and the nodes that masks may remove.

A *node* is a hidden unit of a Linear layer or a channel of a convolution. All tensor axes that shrink together when a
node goes form a *node group* (a skip connection ties two layers into one group; a flattened convolution gives every
channel several columns of the next layer). Shapes, parameters and multiply-accumulates of any sub-network follow from
this description alone, before anything is built.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sparsefront.errors import SpaceError

#: Of a parameter count: a network scaled by one factor is kept if it is as near.
_NEAR_ENOUGH = 0.01
#: How `Structure.scaled_to` finds a network. A study records it where networks are scaled, so that what a version began
#: under another rule is not gone on with: the words change whenever the rule does.
SCALING = "one factor within 1%, else the nearest of all roundings"
#: Groups whose roundings are all tried: 2^6 of them.
_MOST_GROUPS = 6


@dataclass(frozen=True)
class Tensor:
    """One parameter tensor.

    `positions` is how often each entry is used in one example's forward pass (1 in a Linear layer, the output length
    in a convolution), so that multiply-accumulates are entries x positions. Norms are not `prunable`, nor are biases
    (but see `Structure.with_prunable_biases`); they cost no multiply-accumulates by convention. A tensor that is not
    `trained` (a fixed random projection) stays as it was drawn: it multiplies like any other, but is no parameter, for
    a seed restores it.
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

    @property
    def is_bias(self) -> bool:
        """Whether it is added, and multiplies nothing, where it is prunable."""
        return len(self.shape) == 1 and not self.positions


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
        """Prunable weights, and biases where these are prunable."""
        return sum(self.tensor_sizes)

    @cached_property
    def tensor_sizes(self) -> tuple[int, ...]:
        """Entries of a weight mask in each prunable tensor."""
        return tuple(t.size for t in self.prunable)

    @cached_property
    def _layer_sizes(self) -> tuple[int, ...]:
        """Entries of a weight mask in each layer: a bias is of the layer of the weights before it."""
        sizes: list[int] = []
        for tensor in self.prunable:
            if tensor.is_bias:
                sizes[-1] += tensor.size
            else:
                sizes.append(tensor.size)
        return tuple(sizes)

    @cached_property
    def n_nodes(self) -> int:
        """Hidden nodes over all groups."""
        return sum(g.size for g in self.groups)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one example's forward pass."""
        return sum(t.size * t.positions for t in self.multiplied)

    @property
    def has_prunable_biases(self) -> bool:
        """Whether weight masks act on biases, too."""
        return any(t.is_bias for t in self.prunable)

    def with_prunable_biases(self) -> Structure:
        """The same network, in which the bias of every layer whose weights are prunable is prunable with them.

        A bias then follows its layer's weights, and is of the same section of a mask.

        >>> net = Structure((Tensor("a.weight", (3, 2), True), Tensor("a.bias", (3,), False)), ())
        >>> both = net.with_prunable_biases()
        >>> net.section_sizes("weight"), both.section_sizes("weight"), both.tensor_sizes, both.macs
        ((6,), (9,), (6, 3), 6)
        """
        names = {t.name.removesuffix("weight") + "bias" for t in self.prunable}
        biases = {t.name: t for t in self.tensors if t.name in names and len(t.shape) == 1 and t.trained}
        tensors: list[Tensor] = []
        for tensor in self.tensors:
            if tensor.name in biases:
                continue
            tensors.append(tensor)
            bias = biases.get(tensor.name.removesuffix("weight") + "bias") if tensor.prunable else None
            tensors += [] if bias is None else [replace(bias, prunable=True, positions=0)]
        return replace(self, tensors=tuple(tensors))

    def section_sizes(self, kind: str) -> tuple[int, ...]:
        """Sizes of what a mask of `kind` is divided into: node groups, or the prunable tensors of each layer."""
        if kind == "node":
            return tuple(g.size for g in self.groups)
        if kind == "weight":
            return self._layer_sizes
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
        """The network of this family, its groups scaled alike, whose parameter count is near to `n_params`.

        All groups by one factor, rounded up, if that comes within 1%. Else every group keeps a share of its nodes, one
        share for all, rounded up or down, at least one: the nearest of all such networks of up to six groups; of more,
        one that is off by at most half the parameters of a node, unless all have one node or all have theirs. Of two
        counts equally near the larger is taken.

        >>> net = Structure((Tensor("a.weight", (8, 2), True),), (NodeGroup("a", 8, (Axis("a.weight", 0),)),))
        >>> net.scaled_to(9).n_params
        10
        """
        largest = max(g.size for g in self.groups)
        alike = min(
            (self.compact([max(1, -(-g.size * i // largest)) for g in self.groups]) for i in range(1, largest + 1)),
            key=lambda net: (abs(net.n_params - n_params), -net.n_params),
        )
        if abs(alike.n_params - n_params) <= _NEAR_ENOUGH * n_params:
            return alike
        return min(
            (self.compact(kept) for kept in self._roundings(n_params)),
            key=lambda net: (abs(net.n_params - n_params), -net.n_params, net._unevenness(self)),
        )

    def _roundings(self, n_params: int) -> Iterator[list[int]]:
        """Counts of nodes around `n_params`: of each way of rounding a share, the two that it lies between."""
        n_groups = len(self.groups)
        shares = sorted({(k / g.size, k, g.size) for g in self.groups for k in range(g.size + 1)})
        ways: Iterable[Sequence[bool]] = itertools.product((False, True), repeat=n_groups)
        if n_groups > _MOST_GROUPS:  # one after the other is rounded up: each step is one node of one group
            ways = ([i < n_up for i in range(n_groups)] for n_up in range(n_groups + 1))
        for is_up in ways:

            def kept(share: tuple[float, int, int], is_up: Sequence[bool] = is_up) -> list[int]:
                _, k, n = share
                counts = (g.size * k // n + up for g, up in zip(self.groups, is_up, strict=True))
                return [min(max(1, count), g.size) for count, g in zip(counts, self.groups, strict=True)]

            at = bisect.bisect_left(shares, n_params, key=lambda share: self.compact(kept(share)).n_params)
            yield from (kept(share) for share in shares[max(0, at - 1) : at + 1])

    def _unevenness(self, parent: Structure) -> float:
        """How far apart the shares are that groups have of the parent's nodes."""
        shares = [mine.size / theirs.size for mine, theirs in zip(self.groups, parent.groups, strict=True)]
        return max(shares) - min(shares)
