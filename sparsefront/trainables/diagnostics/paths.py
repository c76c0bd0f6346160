"""Which weights lie on a path from the inputs to the outputs, for many masks at once.

Tensors are taken in the order of computation. What a unit of a node group holds persists from one tensor that writes
to the group to the next, as a skip connection hands it on: a unit that one of several writers brings to life is alive
for all readers after it, and a writer is useful if any reader after it is. One pass forwards and one backwards find
what removing dead units again and again would (the unrolled network has no cycles).

A channel of a convolution counts as one unit: a kernel's tap that meets nothing but padding is taken for a path.
Rows or columns that belong to no group (inputs, outputs, a stream under a norm) are taken to be alive and useful.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sparsefront.spaces.structure import Structure
from sparsefront.trainables.lanes import LaneStack


@dataclass(frozen=True)
class Paths:
    """Survivors and paths of L lanes, all bool.

    Attributes:
        kept: tensor -> (L, *shape): entries that the mask left.
        effective: tensor -> (L, *shape): weights on a path from an input to an output; biases of units that such a
            weight enters, and of outputs. The bias of a unit whose input is constant can be folded into the next one.
        varying: tensor that multiplies -> (L, rows): rows that something reaches from the inputs; the others are
            constant.
        is_reached: one (L, nodes) a group: something reaches the node from the inputs at some point.
        is_alive: one (L, nodes) a group: the node is on a path.
        is_connected: (L,): there is a path from an input to an output.
    """

    kept: Mapping[str, torch.Tensor]
    effective: Mapping[str, torch.Tensor]
    varying: Mapping[str, torch.Tensor]
    is_reached: tuple[torch.Tensor, ...]
    is_alive: tuple[torch.Tensor, ...]
    is_connected: torch.Tensor


def find_paths(structure: Structure, lanes: LaneStack) -> Paths:
    """Paths through the masks of `lanes` (their weights do not matter).

    Args:
        structure: the parent; lanes may be smaller than it.
        lanes: masks in `keep`; without one every entry is kept.

    Cost: O(L P), a few passes over bytes.
    """
    kept = _kept(lanes)
    n_lanes, device = len(lanes), lanes.flat.device
    owners: dict[tuple[str, int], tuple[int, int]] = {}
    sizes = [0] * len(structure.groups)
    for g, group in enumerate(structure.groups):
        for axis in group.axes:
            owners[axis.tensor, axis.dim] = (g, axis.repeat)
            sizes[g] = kept[axis.tensor].shape[1 + axis.dim] // axis.repeat
    layers = [t.name for t in structure.multiplied if len(t.shape) > 1]
    links = {name: kept[name].flatten(3).any(dim=3) if kept[name].dim() > 3 else kept[name] for name in layers}

    def none() -> list[torch.Tensor]:
        return [torch.zeros(n_lanes, size, dtype=torch.bool, device=device) for size in sizes]

    def entries(nodes: list[torch.Tensor], name: str, dim: int) -> torch.Tensor:
        """The state of the nodes along an axis, (L, entries); all True where no group owns it."""
        if (name, dim) not in owners:
            return torch.ones(n_lanes, links[name].shape[1 + dim], dtype=torch.bool, device=device)
        g, repeat = owners[name, dim]
        return nodes[g].repeat_interleave(repeat, dim=1)

    def add(nodes: list[torch.Tensor], name: str, dim: int, state: torch.Tensor) -> None:
        if (name, dim) in owners:
            g, repeat = owners[name, dim]
            nodes[g] = nodes[g] | state.view(*nodes[g].shape, repeat).any(dim=2)

    reached, useful = none(), none()
    read: dict[str, torch.Tensor] = {}
    varying: dict[str, torch.Tensor] = {}
    for name in layers:
        read[name] = links[name] & entries(reached, name, 1)[:, None, :]
        varying[name] = read[name].any(dim=2)
        add(reached, name, 0, varying[name])
    effective: dict[str, torch.Tensor] = {}
    alive = none()
    is_connected = torch.zeros(n_lanes, dtype=torch.bool, device=device)
    for name in reversed(layers):
        into = entries(useful, name, 0)[:, :, None]
        add(useful, name, 1, (links[name] & into).any(dim=1))
        on_path = read[name] & into
        add(alive, name, 0, on_path.any(dim=2))
        add(alive, name, 1, on_path.any(dim=1))
        if (name, 0) not in owners:
            is_connected |= on_path.flatten(1).any(dim=1)
        effective[name] = kept[name] & on_path.view(*on_path.shape, *([1] * (kept[name].dim() - 3)))
    for name in kept.keys() - set(layers):
        weight = f"{name.rsplit('.', 1)[0]}.weight"
        if (name, 0) not in owners:
            effective[name] = kept[name]
            continue
        g, repeat = owners[name, 0]
        lives = (
            effective[weight].flatten(2).any(dim=2) if weight in layers else alive[g].repeat_interleave(repeat, dim=1)
        )
        effective[name] = kept[name] & lives.view(*lives.shape, *([1] * (kept[name].dim() - 2)))
    return Paths(kept, effective, varying, tuple(reached), tuple(alive), is_connected)


def _kept(lanes: LaneStack) -> dict[str, torch.Tensor]:
    if lanes.keep is not None:
        return lanes.layout.views(lanes.keep != 0)
    everything = torch.ones(1, lanes.layout.width, dtype=torch.bool, device=lanes.flat.device)
    return {name: one.expand(len(lanes), *one.shape[1:]) for name, one in lanes.layout.views(everything).items()}
