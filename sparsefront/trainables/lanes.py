"""Lanes: the weights of many sub-networks in one flat buffer, gathered from the parent at their real size.

A pack holds the parameters of L lanes as one (L, P) tensor, so that an optimiser step is a few passes over one buffer.
Each lane's tensors are views of its row. Lanes of unequal size share a pack by padding: a padded node has zero weights
in and out, which the lane's parameter mask keeps at zero, so that it is silent (all activations map 0 to 0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.spaces.masks import split_sections, split_tensors
from sparsefront.spaces.structure import Structure


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a lane lies in its flat row; the last `n_fixed` tensors are not trained."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    n_fixed: int = 0

    @classmethod
    def of(cls, structure: Structure) -> Layout:
        """Layout of a network's tensors, in their order but for those that are not trained, which come last."""
        tensors = sorted(structure.tensors, key=lambda t: not t.trained)
        return cls(tuple(t.name for t in tensors), tuple(t.shape for t in tensors), sum(not t.trained for t in tensors))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each tensor."""
        return tuple(math.prod(s) for s in self.shapes)

    @cached_property
    def width(self) -> int:
        """Entries of a row."""
        return sum(self.sizes)

    @property
    def trained_names(self) -> tuple[str, ...]:
        """Tensors that are trained."""
        return self.names[: len(self.names) - self.n_fixed]

    @cached_property
    def trained_width(self) -> int:
        """Entries of a row that are trained: its first ones."""
        return sum(self.sizes[: len(self.trained_names)])

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each tensor of every lane: (L, *shape), a view of `flat` (L, P); P may end with what is trained."""
        names = self.names if flat.shape[1] == self.width else self.trained_names
        parts = torch.split(flat, list(self.sizes[: len(names)]), dim=1)
        return {n: p.view(flat.shape[0], *s) for n, p, s in zip(names, parts, self.shapes, strict=False)}

    def flatten(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Inverse of `views`: (L, P), a copy; of the trained tensors alone if the others are not among `tensors`."""
        return torch.cat([tensors[n].flatten(1) for n in self.names if n in tensors], dim=1)


@dataclass(frozen=True)
class LaneStack:
    """L lanes side by side.

    Attributes:
        layout: shapes of one lane, padding included.
        flat: (L, P) float32 parameters.
        keep: (L, P) float32 of zeros and ones, or None if every entry exists. Zero entries stay exactly zero.
    """

    layout: Layout
    flat: torch.Tensor
    keep: torch.Tensor | None

    def __len__(self) -> int:
        return self.flat.shape[0]

    def part(self, start: int, stop: int) -> LaneStack:
        """Lanes start..stop, not copied."""
        return replace(self, flat=self.flat[start:stop], keep=None if self.keep is None else self.keep[start:stop])

    def select(self, lanes: slice | Sequence[int]) -> LaneStack:
        """Some of the lanes, copied."""
        index = lanes if isinstance(lanes, slice) else torch.as_tensor(list(lanes), device=self.flat.device)
        return replace(
            self, flat=self.flat[index].clone(), keep=None if self.keep is None else self.keep[index].clone()
        )


def dense_lanes(
    structure: Structure, weights: Sequence[Mapping[str, npt.NDArray[np.float32]]], device: torch.device
) -> LaneStack:
    """One unmasked lane for each set of weights, all of shape `structure`."""
    layout = Layout.of(structure)
    rows = [np.concatenate([w[n].reshape(-1) for n in layout.names]) for w in weights]
    return LaneStack(layout, torch.from_numpy(np.stack(rows)).to(device), None)


def weight_masked_lanes(
    structure: Structure, parent: Mapping[str, torch.Tensor], masks: npt.NDArray[np.bool_]
) -> LaneStack:
    """Lanes of the parent's shape whose masked weights are zero and stay so.

    Args:
        structure: the parent.
        parent: its weights; device and type are taken over.
        masks: (L, prunable weights) bool.
    """
    layout = Layout.of(structure)
    device = next(iter(parent.values())).device
    by_tensor = dict(zip((t.name for t in structure.prunable), split_tensors(structure, masks), strict=True))
    ones = np.ones((len(masks), 1), dtype=np.float32)
    parts = [
        by_tensor[n].astype(np.float32) if n in by_tensor else np.broadcast_to(ones, (len(masks), size))
        for n, size in zip(layout.names, layout.sizes, strict=True)
    ]
    keep = torch.from_numpy(np.concatenate(parts, axis=1)).to(device)
    flat = torch.cat([parent[n].flatten() for n in layout.names])
    return LaneStack(layout, flat * keep, keep)


def node_masked_lanes(
    structure: Structure,
    parent: Mapping[str, torch.Tensor],
    masks: npt.NDArray[np.bool_],
    *,
    kept: Sequence[KeptNodes] | None = None,
) -> LaneStack:
    """Lanes that hold only the kept nodes of the parent: compact networks, padded if their sizes differ.

    Args:
        structure: the parent.
        parent: its weights; device and type are taken over.
        masks: (L, hidden nodes) bool, at least one node kept in every group.
        kept: the nodes of `masks`, padded to more than the widest of them perhaps (`kept_nodes`).
    """
    kept = kept_nodes(structure, masks) if kept is None else kept
    device = next(iter(parent.values())).device
    layout = Layout.of(structure.compact([k.width for k in kept]))
    gathered = gather_tensors(structure, parent, kept)
    flat = torch.cat([gathered[n].reshape(len(masks), -1) for n in layout.names], dim=1)
    if all(k.valid is None for k in kept):
        return LaneStack(layout, flat, None)
    ones = {n: torch.ones_like(parent[n]) for n in layout.names}
    keep_parts = gather_tensors(structure, ones, kept)
    keep = torch.cat([keep_parts[n].reshape(len(masks), -1) for n in layout.names], dim=1)
    return LaneStack(layout, flat.to(device), keep)


@dataclass(frozen=True)
class KeptNodes:
    """Which nodes of one group each lane keeps: (L, width) indices; `valid` (L, width) is None without padding."""

    indices: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_] | None

    @property
    def width(self) -> int:
        """Nodes of the widest lane."""
        return int(self.indices.shape[1])

    def of(self, lanes: Sequence[int]) -> KeptNodes:
        """Those of some lanes, as wide as they are."""
        rows = list(lanes)
        return KeptNodes(self.indices[rows], None if self.valid is None else self.valid[rows])


def kept_nodes(structure: Structure, masks: npt.NDArray[np.bool_]) -> list[KeptNodes]:
    """Kept node indices of every group, ascending, padded with node 0 to the widest lane."""
    kept: list[KeptNodes] = []
    for section in split_sections(structure, "node", masks):
        counts = np.count_nonzero(section, axis=1)
        columns = np.nonzero(section)[1]
        width = int(counts.max())
        if (counts == width).all():
            kept.append(KeptNodes(columns.reshape(len(masks), width), None))
            continue
        valid = np.arange(width) < counts[:, None]
        indices = np.zeros((len(masks), width), dtype=np.int64)
        indices[valid] = columns
        kept.append(KeptNodes(indices, valid))
    return kept


def gather_tensors(
    structure: Structure,
    parent: Mapping[str, torch.Tensor],
    kept: Sequence[KeptNodes],
    *,
    only: Sequence[str] | None = None,
) -> dict[str, torch.Tensor]:
    """Cut each lane's rows and columns out of the parent's tensors: name -> (L, *compact shape).

    Padded entries are zero. `only` limits the work to some tensors.
    """
    device = next(iter(parent.values())).device
    axes: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor | None]]] = {t.name: {} for t in structure.tensors}
    for group, nodes in zip(structure.groups, kept, strict=True):
        expanded: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for axis in group.axes:
            if axis.repeat not in expanded:
                expanded[axis.repeat] = _expand(nodes, axis.repeat, device)
            axes[axis.tensor][axis.dim] = expanded[axis.repeat]
    n_lanes = len(kept[0].indices)
    result: dict[str, torch.Tensor] = {}
    for name in [t.name for t in structure.tensors] if only is None else only:
        tensor = parent[name]
        if not axes[name]:
            result[name] = tensor.expand(n_lanes, *tensor.shape)
            continue
        rows, row_valid = axes[name].get(0, (None, None))
        columns, column_valid = axes[name].get(1, (None, None))
        if rows is None:
            cut = tensor[:, columns].movedim(0, 1) if columns is not None else tensor
        else:
            cut = tensor[rows] if columns is None else tensor[rows[:, :, None], columns[:, None, :]]
        if row_valid is not None:
            cut = cut * row_valid.view(*row_valid.shape, *([1] * (cut.dim() - 2)))
        if column_valid is not None:
            cut = cut * column_valid.view(n_lanes, 1, -1, *([1] * (cut.dim() - 3)))
        result[name] = cut
    return result


def _expand(nodes: KeptNodes, repeat: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Indices (and validity as float) of every entry that the kept nodes own on an axis of `repeat` entries a node."""
    indices, valid = nodes.indices, nodes.valid
    if repeat > 1:
        indices = (indices[:, :, None] * repeat + np.arange(repeat)).reshape(len(indices), -1)
        valid = None if valid is None else np.repeat(valid, repeat, axis=1)
    return (
        torch.from_numpy(indices).to(device),
        None if valid is None else torch.from_numpy(valid.astype(np.float32)).to(device),
    )
