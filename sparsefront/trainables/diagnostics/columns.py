"""The diagnostics of a trained lane as columns of numbers.

References: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020
(layer collapse); Vysogorets and Kempe, Connectivity matters: neural network pruning through the lens of effective
sparsity, 2023 (effective density); Liu et al., Activate-while-pruning (dead-neuron rates).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.diagnostics.activity import SILENT_BELOW, silent_fractions
from sparsefront.trainables.diagnostics.paths import Paths, find_paths
from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples

#: Column -> (meaning, unit).
COLUMNS: Mapping[str, tuple[str, str]] = {
    "density_prunable": ("kept prunable weights, of the parent's", "fraction"),
    "density_total": ("kept trained parameters, biases and norms included, of the parent's", "fraction"),
    "density_macs": ("multiply-accumulates of kept weights, of the parent's", "fraction"),
    "effective_density": ("prunable weights on a path from an input to an output, of the parent's", "fraction"),
    "effective_params": ("trained parameters on such a path; biases of constant units are folded away", "parameters"),
    "macs": ("multiply-accumulates of kept weights in one example's forward pass", "operations"),
    "is_collapsed": ("a layer has no weight left, or no path leads from an input to an output", "bool"),
    "n_dead_units": ("hidden units that the mask left but that are on no path", "units"),
    "n_constant_units": ("those of them that nothing reaches from the inputs", "units"),
    "static_dead_fraction": ("hidden activations that are constant by the mask, and silent", "fraction"),
    "dynamic_dead_fraction": (
        f"hidden activations that are silent, over units and examples: a <= 0, or |a| < {SILENT_BELOW:g} if not ReLU",
        "fraction",
    ),
}


@dataclass(frozen=True)
class RealSize:
    """What a padded lane really is.

    Attributes:
        shapes: of each tensor of the layout, without padding.
        n_weights: prunable weights of the lane's own parent.
        n_params: trained parameters of it.
        macs: multiply-accumulates of its forward pass.
    """

    shapes: tuple[tuple[int, ...], ...]
    n_weights: int
    n_params: int
    macs: int


@torch.no_grad()
def diagnose(
    model: Model,
    lanes: LaneStack,
    examples: Examples | None,
    *,
    kind: str = "weight",
    real: Sequence[RealSize] | None = None,
) -> dict[str, npt.NDArray[np.generic]]:
    """Every column of `COLUMNS` for every lane.

    Densities are relative to the parent's size. All but the dead fractions follow from the masks alone. The dead
    fractions are over units (a channel counts once) that follow a layer directly and that the mask left; they are not
    a number without examples, for a lane that diverged, or where the module shows none of its activations.

    Args:
        model: the parent.
        lanes: trained lanes with their masks.
        examples: the fixed evaluation batch, or None.
        kind: of the masks; a node that a node mask removed is no unit of the lane, one without weights is.
        real: of each lane, where lanes of several networks are padded to one size; `kind` says nothing then.

    Returns:
        Column -> (L,) array of float64, int64 or bool.

    Raises:
        SpaceError: unknown kind.
    """
    if kind not in ("node", "weight"):
        raise SpaceError(f"mask kind={kind!r}: must be 'node' or 'weight'")
    structure = model.structure
    paths = find_paths(structure, lanes)
    n_kept = {name: _count(kept) for name, kept in paths.kept.items()}
    n_effective = {name: _count(entries) for name, entries in paths.effective.items()}
    weights = [t.name for t in structure.prunable]
    trained = [t.name for t in structure.tensors if t.trained]
    multiplying = [t.name for t in structure.prunable if not t.is_bias]
    is_collapsed = ~paths.is_connected
    if real is not None:
        exists = _existing_really(structure, lanes, real)
        for name in multiplying:
            place = lanes.layout.names.index(name)
            is_there = torch.tensor([0 not in r.shapes[place] for r in real], device=lanes.flat.device)
            is_collapsed = is_collapsed | (is_there & (n_kept[name] == 0))
    else:
        exists = _existing(structure, paths, kind)
        if kind == "weight":  # a node mask leaves a node in every group; what is empty then is padding
            for name in multiplying:
                is_collapsed = is_collapsed | (n_kept[name] == 0)
    sizes = real or [RealSize((), structure.n_weights, structure.n_params, structure.macs)] * len(lanes)
    n_weights, n_params, parent_macs = torch.tensor(
        [[r.n_weights for r in sizes], [r.n_params for r in sizes], [r.macs for r in sizes]],
        dtype=torch.float64,
        device=lanes.flat.device,
    )
    macs = sum((n_kept[t.name] * t.positions for t in structure.multiplied), start=_zeros(lanes))
    is_dead = [e & ~a for e, a in zip(exists, paths.is_alive, strict=True)]
    is_constant = [e & ~r for e, r in zip(exists, paths.is_reached, strict=True)]
    static, dynamic = _dead_fractions(model, lanes, examples, paths, exists)
    columns = {
        "density_prunable": _total(n_kept, weights, lanes) / n_weights,
        "density_total": _total(n_kept, trained, lanes) / n_params,
        "density_macs": macs / parent_macs,
        "effective_density": _total(n_effective, weights, lanes) / n_weights,
        "effective_params": _total(n_effective, trained, lanes),
        "macs": macs,
        "is_collapsed": is_collapsed,
        "n_dead_units": sum((_count(d) for d in is_dead), start=_zeros(lanes)),
        "n_constant_units": sum((_count(c) for c in is_constant), start=_zeros(lanes)),
        "static_dead_fraction": static,
        "dynamic_dead_fraction": dynamic,
    }
    return {name: columns[name].cpu().numpy() for name in COLUMNS}


def _dead_fractions(
    model: Model, lanes: LaneStack, examples: Examples | None, paths: Paths, exists: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Static and dynamic dead fraction: two (L,) float64."""
    n_units = _zeros(lanes)
    n_static, silence = _zeros(lanes), _zeros(lanes).double()
    for name, silent in ({} if examples is None else silent_fractions(model, lanes, examples)).items():
        counted = torch.ones_like(silent, dtype=torch.bool)
        for group, nodes in zip(model.structure.groups, exists, strict=True):
            for axis in group.axes:
                if (axis.tensor, axis.dim) == (name, 0):
                    counted = nodes.repeat_interleave(axis.repeat, dim=1)
        n_units += _count(counted)
        silence += (silent * counted).sum(dim=1)
        # The value of a constant unit is the same for all examples, folded constants before it included.
        n_static += _count(counted & ~paths.varying[name] & (silent == 1))
    n_units[~lanes.flat.isfinite().all(dim=1)] = 0
    n_static, silence = torch.where(n_units > 0, n_static, 0), torch.where(n_units > 0, silence, 0)
    return n_static / n_units.double(), silence / n_units  # 0 / 0 is not a number


def _existing(structure: Structure, paths: Paths, kind: str) -> list[torch.Tensor]:
    """Nodes that are part of the lane, one (L, nodes) bool a group: padding is not."""
    if kind == "weight":
        return [torch.ones_like(alive) for alive in paths.is_alive]
    exists = [torch.zeros_like(alive) for alive in paths.is_alive]
    for nodes, group in zip(exists, structure.groups, strict=True):
        for axis in group.axes:
            entries = paths.kept[axis.tensor].movedim(1 + axis.dim, 1)
            by_entry = entries[..., None].flatten(2).any(dim=2)
            nodes |= by_entry.view(*nodes.shape, axis.repeat).any(dim=2)
    return exists


def _existing_really(structure: Structure, lanes: LaneStack, real: Sequence[RealSize]) -> list[torch.Tensor]:
    """Nodes that are part of the lane, which are the first of every group: one (L, nodes) bool a group."""
    found: list[torch.Tensor] = []
    places = {name: i for i, name in enumerate(lanes.layout.names)}
    for group in structure.groups:
        axis = group.axes[0]
        place = places[axis.tensor]
        width = lanes.layout.shapes[place][axis.dim] // axis.repeat
        counts = torch.tensor([r.shapes[place][axis.dim] // axis.repeat for r in real], device=lanes.flat.device)
        found.append(torch.arange(width, device=lanes.flat.device) < counts[:, None])
    return found


def _count(entries: torch.Tensor) -> torch.Tensor:
    """True entries of each lane: (L, ...) -> (L,) int64."""
    return entries.flatten(1).count_nonzero(dim=1)


def _total(counts: Mapping[str, torch.Tensor], names: Sequence[str], lanes: LaneStack) -> Any:
    return sum((counts[name] for name in names), start=_zeros(lanes))


def _zeros(lanes: LaneStack) -> torch.Tensor:
    return torch.zeros(len(lanes), dtype=torch.int64, device=lanes.flat.device)
