"""What a score may look at, and how numbers of single parameters become scores of weights and of nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.spaces.structure import Axis, Structure
from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples

#: Numbers for every entry of every tensor of L lanes: (L, *shape) by name.
Entries = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ScoringState:
    """L lanes to be scored, and what the scores read besides their weights.

    Attributes:
        model: the parent; only its module and the names and axes of its structure are read, sizes come from the lanes.
        lanes: what is scored; entries that their `keep` removes score minus infinity.
        examples: scoring batch, the same for all lanes.
        start: (L, P) weights at the beginning of training, or of the cycle.
        keys: for each lane the key of its random draws, from `seeds.philox_key`.
        gradient: (L, P) of the loss, where a training step has it at hand; None to compute that of `examples`.
        products: (L, P) sum of w dL/dw over the steps of training.
    """

    model: Model
    lanes: LaneStack
    examples: Examples | None = None
    start: torch.Tensor | None = None
    keys: Sequence[npt.NDArray[np.uint64]] = ()
    gradient: torch.Tensor | None = None
    products: torch.Tensor | None = None

    @cached_property
    def structure(self) -> Structure:
        """The structure at the size of the lanes."""
        shapes = dict(zip(self.lanes.layout.names, self.lanes.layout.shapes, strict=True))
        return Structure(
            tensors=tuple(replace(t, shape=shapes[t.name]) for t in self.model.structure.tensors),
            groups=tuple(
                replace(g, size=shapes[g.axes[0].tensor][g.axes[0].dim] // g.axes[0].repeat)
                for g in self.model.structure.groups
            ),
        )

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The lanes' tensors: views."""
        return self.lanes.layout.views(self.lanes.flat)

    def of_weights(self, entries: Entries | torch.Tensor) -> torch.Tensor:
        """What `entries`, by name or (L, P), hold for the prunable weights: (L, W), a copy in a weight mask's order."""
        if isinstance(entries, torch.Tensor):
            entries = self.lanes.layout.views(entries)
        return torch.cat([entries[t.name].flatten(1) for t in self.structure.prunable], dim=1)

    def products_of_weights(self, entries: Entries, factors: Entries) -> torch.Tensor:
        """What `entries` times `factors`, both by name, hold for the prunable weights: (L, W), as `of_weights`."""
        tensors = self.structure.prunable
        first = entries[tensors[0].name]
        joined = first.new_empty(len(self.lanes), self.structure.n_weights)
        parts = torch.split(joined, list(self.structure.section_sizes("weight")), dim=1)
        for tensor, part in zip(tensors, parts, strict=True):
            values = entries[tensor.name]
            torch.mul(values, factors[tensor.name], out=part.view(values.shape))
        return joined

    def over_nodes(
        self,
        entries: Entries | torch.Tensor,
        *,
        factors: Entries | None = None,
        of: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Sum of `entries`, by name or (L, P), over all that leaves with a node: (L, N) float64, as in a node mask.

        An entry between two nodes of one group (a skip connection) counts once for each.

        Args:
            entries: what is summed.
            factors: what entries are multiplied by first.
            of: function of float64 entries, element by element, whose values are summed instead; it may overwrite them.
        """
        if isinstance(entries, torch.Tensor):
            entries = self.lanes.layout.views(entries)
        sums: list[torch.Tensor] = []
        leaving: dict[str, list[tuple[Axis, torch.Tensor]]] = {}
        for group in self.structure.groups:
            sums.append(torch.zeros(len(self.lanes), group.size, dtype=torch.float64, device=self.lanes.flat.device))
            for axis in group.axes:
                leaving.setdefault(axis.tensor, []).append((axis, sums[-1]))
        for name, totals in leaving.items():
            # A sum that converts as it goes takes three times as long.
            view = entries[name] if factors is None else entries[name] * factors[name]
            view = view.to(torch.float64, copy=factors is None)
            view = view if of is None else of(view)
            for axis, total in totals:
                split = torch.unflatten(view, axis.dim + 1, (total.shape[1], axis.repeat))
                others = [d for d in range(1, split.dim()) if d != axis.dim + 1]
                # A sum over no dimension at all would be one over every dimension.
                total += split.sum(dim=others) if others else split
        return torch.cat(sums, dim=1)

    def kept(self, kind: str) -> torch.Tensor | None:
        """Which entries of a mask of `kind` still exist: (L, entries) bool, or None for all."""
        if self.lanes.keep is None:
            return None
        # A conversion is vectorised, a comparison with zero is not.
        return (self.of_weights(self.lanes.keep) if kind == "weight" else self.over_nodes(self.lanes.keep)).bool()

    def masked(self, masks: torch.Tensor, kind: str) -> ScoringState:
        """The same lanes without what `masks` (L, entries) bool of `kind` remove; their size stays."""
        layout, structure = self.lanes.layout, self.structure
        keep = torch.ones_like(self.lanes.flat) if self.lanes.keep is None else self.lanes.keep.clone()
        views = layout.views(keep)
        parts = torch.split(masks, list(structure.section_sizes(kind)), dim=1)
        if kind == "weight":
            for tensor, part in zip(structure.prunable, parts, strict=True):
                # Booleans are not multiplied by in vector operations, small integers are.
                views[tensor.name].mul_(part.view(torch.int8).view_as(views[tensor.name]))
        else:
            for group, part in zip(structure.groups, parts, strict=True):
                for axis in group.axes:
                    view = views[axis.tensor]
                    along = part.repeat_interleave(axis.repeat, dim=1)
                    sizes = [len(masks)] + [1] * (view.dim() - 1)
                    sizes[axis.dim + 1] = along.shape[1]
                    view.mul_(along.view(sizes))
        return replace(self, lanes=LaneStack(layout, self.lanes.flat * keep, keep))
