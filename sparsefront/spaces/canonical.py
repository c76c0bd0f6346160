"""One form for all masks that differ only by the order of hidden units.

Hidden units of a group may trade places without changing what a network can compute, so two searched masks may be one
candidate. A weight mask is a graph: units are its vertices, kept weights its edges, inputs and outputs are fixed. Its
canonical form is found as graph canonisation does it (McKay and Piperno, Practical graph isomorphism II, 2014): units
are coloured by what they are connected to until nothing changes; where units still look alike, each is singled out in
turn, and the smallest mask that comes out is taken. A unit needs no turn if a symmetry of the mask maps one that had
its turn onto it.

Few masks need more than the colouring. One with many intricate symmetries may: after 1,000 turns the smallest mask so
far is taken, which is still one answer for the same bits, but maybe not the same for their permutation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import Mask, pack_bits, split_sections, split_tensors, unpack_bits
from sparsefront.spaces.structure import Structure, Tensor

#: For each group, the colour of each node, from 0; and a permutation of the nodes.
Colours = list[npt.NDArray[np.int64]]
Order = list[npt.NDArray[np.int64]]

#: How often a node is singled out before the smallest mask so far is taken.
MAX_TURNS = 1000
#: Nodes singled out one after the other before the first order is taken (each is a level of recursion).
_MAX_SINGLED = 200


def canonical_bits(structure: Structure, kind: str, packed: bytes) -> bytes:
    """The mask that stands for all permutations of the hidden units of this one; itself one of them.

    Args:
        structure: the parent that the mask belongs to.
        kind: 'weight', or 'node': of a node mask only the number of kept nodes in each group remains, at its front.
        packed: the mask as `masks.pack_bits` packs it.

    Returns:
        Packed bits of the same length, with as many kept entries in each section.

    Raises:
        SpaceError: bits of another length, or a tensor with more than two axes that follow node groups.

    >>> from sparsefront.spaces.structure import Axis, NodeGroup, Tensor
    >>> net = Structure((Tensor("a", (2, 2), True), Tensor("b", (1, 2), True)),
    ...                 (NodeGroup("h", 2, (Axis("a", 0), Axis("b", 1))),))
    >>> both = [pack_bits(np.array(m, dtype=bool)).tobytes() for m in ([1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 0])]
    >>> canonical_bits(net, "weight", both[0]) == canonical_bits(net, "weight", both[1])
    True
    """
    sections = structure.section_sizes(kind)
    mask = unpack_bits(packed, sum(sections))
    if kind == "node":
        front = [np.arange(len(part)) < np.count_nonzero(part) for part in split_sections(structure, kind, mask)]
        return pack_bits(np.concatenate(front)).tobytes() if front else packed
    return _Search(structure, mask).smallest() if structure.groups else packed


def permuted(structure: Structure, mask: Mask, orders: Sequence[npt.NDArray[np.int64]]) -> bytes:
    """Packed weight mask with node `orders[g][i]` of each group g in place i."""
    parts = split_tensors(structure, mask)
    out = []
    for tensor, part in zip(structure.prunable, parts, strict=True):
        entries = part.reshape(tensor.shape)
        for group, order in zip(structure.groups, orders, strict=True):
            for axis in group.axes:
                if axis.tensor == tensor.name:
                    index = (order[:, None] * axis.repeat + np.arange(axis.repeat)).ravel()
                    entries = np.take(entries, index, axis=axis.dim)
        out.append(entries.ravel())
    return pack_bits(np.concatenate(out)).tobytes()


@dataclass(frozen=True)
class _Side:
    """How the nodes of `group` see the nodes of `other` in one tensor: (size, size of other) ids of what joins them.

    `other` is None where the axis beyond is fixed: inputs, outputs, or none.
    """

    group: int
    other: int | None
    joined: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Found:
    """The first mask below a colouring and the order of nodes that gives it, and the smallest mask below it."""

    first: bytes
    order: Order
    smallest: bytes


class _Search:
    """The search for the smallest permutation of one weight mask."""

    def __init__(self, structure: Structure, mask: Mask) -> None:
        self.structure = structure
        self.mask = mask
        parts = split_tensors(structure, mask)
        self.sides = [
            side for t, part in zip(structure.prunable, parts, strict=True) for side in _sides(structure, t, part)
        ]
        self.n_turns = 0
        self.automorphisms: list[Order] = []

    def smallest(self) -> bytes:
        """The smallest mask over all orders that refine the colouring."""
        start: Colours = [np.zeros(g.size, dtype=np.int64) for g in self.structure.groups]
        for side in self.sides:
            if side.other is None:
                start[side.group] = _ranks(np.column_stack([start[side.group], side.joined]))
        return self._best(self._refined(start), []).smallest

    def _refined(self, colours: Colours) -> Colours:
        """Colours split until nodes of one colour see the same colours through the same weights."""
        colours = list(colours)
        n_before = -1
        while (n_now := sum(int(c.max()) + 1 for c in colours)) != n_before:
            n_before = n_now
            for side in self.sides:
                if side.other is not None and int(colours[side.group].max()) + 1 < len(colours[side.group]):
                    seen = side.joined * len(colours[side.other]) + colours[side.other]
                    colours[side.group] = _ranks(np.column_stack([colours[side.group], np.sort(seen, axis=1)]))
        return colours

    def _best(self, colours: Colours, singled: list[tuple[int, int]]) -> _Found:
        """What is below a stable colouring that came of these nodes being singled out."""
        colours, tie = self._settled(colours)
        if tie is None:
            return self._leaf(colours)
        group, nodes = tie
        if len(singled) >= _MAX_SINGLED:
            return self._first(colours)
        below = self._best(self._turn(colours, group, nodes[0]), [*singled, (group, nodes[0])])
        smallest = below.smallest
        tried = [nodes[0]]
        for node in nodes[1:]:
            if self.n_turns >= MAX_TURNS:
                break
            if self._is_image(group, node, tried, singled):
                continue
            tried.append(node)
            turned = self._turn(colours, group, node)
            first = self._first(turned)
            if first.smallest == below.first:  # an automorphism maps the first branch onto this one
                gamma = [np.empty_like(order) for order in first.order]
                for image, origin, target in zip(gamma, below.order, first.order, strict=True):
                    image[origin] = target
                self.automorphisms.append(gamma)
            else:
                smallest = min(smallest, self._best(turned, [*singled, (group, node)]).smallest)
        return _Found(below.first, below.order, smallest)

    def _first(self, colours: Colours) -> _Found:
        """The mask at the end of always singling out the first node."""
        while True:
            colours, tie = self._settled(colours)
            if tie is None:
                return self._leaf(colours)
            colours = self._turn(colours, tie[0], tie[1][0])

    def _leaf(self, colours: Colours) -> _Found:
        order = [np.argsort(c, kind="stable") for c in colours]
        packed = permuted(self.structure, self.mask, order)
        return _Found(packed, order, packed)

    def _turn(self, colours: Colours, group: int, node: int) -> Colours:
        """One node before the others of its colour, and what follows from it."""
        self.n_turns += 1
        doubled = colours[group] * 2 + 1
        doubled[node] -= 1
        split = list(colours)
        split[group] = _ranks(doubled[:, None])
        return self._refined(split)

    def _settled(self, colours: Colours) -> tuple[Colours, tuple[int, list[int]] | None]:
        """Colours in which nodes that can trade places one by one are told apart, and the first tie that is left."""
        settled = list(colours)
        for group, colour in enumerate(colours):
            spread = colour * len(colour)
            for shared in np.flatnonzero(np.bincount(colour) > 1):
                nodes = [int(i) for i in np.flatnonzero(colour == shared)]
                if not all(self._is_swap(group, nodes[0], node) for node in nodes[1:]):
                    return settled, (group, nodes)
                spread[nodes] += np.arange(len(nodes))
            settled[group] = _ranks(spread[:, None])
        return settled, None

    def _is_image(self, group: int, node: int, tried: list[int], singled: list[tuple[int, int]]) -> bool:
        """Whether a symmetry that leaves the singled nodes in place maps a tried node onto this one."""
        if any(self._is_swap(group, node, other) for other in tried):
            return True
        fixing = [gamma for gamma in self.automorphisms if all(gamma[g][v] == v for g, v in singled)]
        reached, frontier = set(tried), list(tried)
        while frontier:
            at = frontier.pop()
            for gamma in fixing:
                image = int(gamma[group][at])
                if image not in reached:
                    reached.add(image)
                    frontier.append(image)
        return node in reached

    def _is_swap(self, group: int, a: int, b: int) -> bool:
        """Whether exchanging two nodes changes no bit."""
        for side in self.sides:
            if side.group != group:
                continue
            rows = side.joined[[a, b]]
            if side.other == group:  # both axes of the tensor trade places
                order = np.arange(rows.shape[1])
                order[[a, b]] = order[[b, a]]
                rows[1] = rows[1][order]
            if (rows[0] != rows[1]).any():
                return False
        return True


def _sides(structure: Structure, tensor: Tensor, part: Mask) -> list[_Side]:
    """How one tensor joins nodes, seen from each axis that follows a group."""
    axes = sorted(
        (axis.dim, g, axis.repeat)
        for g, group in enumerate(structure.groups)
        for axis in group.axes
        if axis.tensor == tensor.name
    )
    entries = part.reshape(tensor.shape)
    if not axes:
        return []
    if len(axes) == 1:
        dim, g, _ = axes[0]
        rows = np.moveaxis(entries, dim, 0).reshape(structure.groups[g].size, -1)
        return [_Side(g, None, _ranks(rows)[:, None])]
    if len(axes) > 2:
        raise SpaceError(
            f"tensor {tensor.name!r}: {len(axes)} of its axes follow node groups; at most 2 can be permuted"
        )
    (d1, g1, r1), (d2, g2, r2) = axes
    n1, n2 = structure.groups[g1].size, structure.groups[g2].size
    moved = np.moveaxis(entries, (d1, d2), (0, 1)).reshape(n1, r1, n2, r2, -1)
    joined = _ranks(np.moveaxis(moved, 2, 1).reshape(n1 * n2, -1)).reshape(n1, n2)
    if g1 == g2:  # a node's weight to itself is no weight to another; each pair is seen from both ends
        both = joined * (int(joined.max()) + 1) + joined.T
        own = np.eye(n1, dtype=np.int64)
        return [_Side(g1, g2, _ranks((both * 2 + own).reshape(-1, 1)).reshape(n1, n2))]
    return [_Side(g1, g2, joined), _Side(g2, g1, np.ascontiguousarray(joined.T))]


def _ranks(rows: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Rank of each row among the distinct rows: depends on contents alone, not on where the row stands."""
    rows = np.ascontiguousarray(rows)
    if rows.shape[1] == 1:
        ranks: npt.NDArray[np.int64] = np.unique(rows[:, 0], return_inverse=True)[1].astype(np.int64)
        return ranks
    width = rows.shape[1] * rows.itemsize
    raw = rows.tobytes()
    contents = [raw[i : i + width] for i in range(0, len(raw), width)]
    rank = {content: i for i, content in enumerate(sorted(set(contents)))}
    return np.array([rank[content] for content in contents], dtype=np.int64)
