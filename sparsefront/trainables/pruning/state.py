"""What a score may look at, and how numbers of single parameters become scores of weights and of nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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

#: Entries of one lane that are worked on at a time on a CPU: a core's own cache holds them. It is a number of one lane,
#: so that a lane's sums are the same in any company.
_BLOCK = 1 << 16


def blocks(tensors: torch.Tensor, *, step: int = 1) -> Iterator[slice]:
    """Which rows of every lane's tensor (L, n, ...) to work on at a time, on a CPU: multiples of `step`."""
    n = tensors.shape[1]
    at_once = n if tensors.device.type != "cpu" else _BLOCK * n // max(1, tensors[0].numel()) // step * step
    for start in range(0, n, max(step, at_once)):
        yield slice(start, min(n, start + max(step, at_once)))


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

    def lane(self, number: int) -> ScoringState:
        """One of the lanes, copied."""
        rows = slice(number, number + 1)
        start, gradient, products = (
            None if each is None else each[rows].clone() for each in (self.start, self.gradient, self.products)
        )
        return replace(
            self,
            lanes=self.lanes.select(rows),
            start=start,
            keys=self.keys[rows],
            gradient=gradient,
            products=products,
        )

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

    def alone(self) -> list[ScoringState]:
        """Each lane as a state of its own."""
        return [
            replace(
                self,
                lanes=self.lanes.part(i, i + 1),
                start=None if self.start is None else self.start[i : i + 1],
                keys=self.keys[i : i + 1],
                gradient=None if self.gradient is None else self.gradient[i : i + 1],
                products=None if self.products is None else self.products[i : i + 1],
            )
            for i in range(len(self.lanes))
        ]

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The lanes' tensors: views."""
        return self.lanes.layout.views(self.lanes.flat)

    def of_weights(self, entries: Entries | torch.Tensor) -> torch.Tensor:
        """What `entries`, by name or (L, P), hold for the prunable weights: (L, W), a copy in a weight mask's order."""
        if isinstance(entries, torch.Tensor):
            entries = self.lanes.layout.views(entries)
        return torch.cat([entries[t.name].flatten(1) for t in self.structure.prunable], dim=1)

    def over_weights(
        self,
        entries: Entries,
        *,
        factors: Entries | None = None,
        of: Callable[[torch.Tensor], object] | None = None,
    ) -> torch.Tensor:
        """What `entries` hold for the prunable weights: (L, W), a copy in a weight mask's order.

        Args:
            entries: by name.
            factors: what they are multiplied by first, by name.
            of: is given some entries after the others; it may overwrite them, element by element.
        """
        tensors = self.structure.prunable
        first = entries[tensors[0].name]
        joined = first.new_empty(len(self.lanes), self.structure.n_weights)
        parts = torch.split(joined, list(self.structure.tensor_sizes), dim=1)
        for tensor, part in zip(tensors, parts, strict=True):
            values = entries[tensor.name].flatten(1)
            others = None if factors is None else factors[tensor.name].flatten(1)
            for rows in blocks(values):
                block = part[:, rows]
                if others is None:
                    block.copy_(values[:, rows])
                else:
                    torch.mul(values[:, rows], others[:, rows], out=block)
                if of is not None:
                    of(block)
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
            entries: what is summed; a tensor that is not among them is zero.
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
            if name not in entries:
                continue
            values, others = entries[name], None if factors is None else factors[name]
            of_whole_nodes = math.lcm(*(axis.repeat for axis, _ in totals if axis.dim == 0))
            for rows in blocks(values, step=of_whole_nodes):
                view = values[:, rows] if others is None else values[:, rows] * others[:, rows]
                # A sum that converts as it goes takes three times as long.
                view = view.to(torch.float64, copy=others is None)
                view = view if of is None else of(view)
                for axis, total in totals:
                    # Over what lies together, or over what is apart, but not over both at once, which is slow.
                    if axis.dim == 0:
                        into = total[:, rows.start // axis.repeat : rows.stop // axis.repeat]
                        into += view.reshape(*into.shape, -1).sum(dim=2)
                    else:
                        total += view.sum(dim=1).view(*total.shape, -1).sum(dim=2)
        return torch.cat(sums, dim=1)

    def kept(self, kind: str) -> torch.Tensor | None:
        """Which entries of a mask of `kind` still exist: (L, entries) bool, or None for all."""
        if self.lanes.keep is None:
            return None
        # A conversion is vectorised, a comparison with zero is not.
        return (self.of_weights(self.lanes.keep) if kind == "weight" else self.over_nodes(self.lanes.keep)).bool()

    def without_gone(self, scores: torch.Tensor, kind: str) -> torch.Tensor:
        """Scores of a mask's entries (L, entries), in place minus infinity for those that are gone already."""
        if self.lanes.keep is None:
            return scores
        if kind == "node":
            return scores.sub_(self.over_nodes(self.lanes.keep).sign_().reciprocal_().sub_(1))
        views = self.lanes.layout.views(self.lanes.keep)
        parts = torch.split(scores, list(self.structure.tensor_sizes), dim=1)
        for tensor, part in zip(self.structure.prunable, parts, strict=True):
            keep = views[tensor.name].flatten(1)
            for rows in blocks(part):
                # 1 / kept - 1 is zero or infinite: on a CPU twice as fast as to fill where it is not kept.
                part[:, rows].sub_(keep[:, rows].reciprocal().sub_(1))
        return scores

    def masked(self, masks: torch.Tensor, kind: str) -> ScoringState:
        """The same lanes without what `masks` (L, entries) bool of `kind` remove; their size stays."""
        layout = self.lanes.layout
        keep = torch.ones_like(self.lanes.flat) if self.lanes.keep is None else self.lanes.keep.clone()
        self.remove(layout.views(keep), masks, kind)
        return replace(self, lanes=LaneStack(layout, self.lanes.flat * keep, keep))

    def remove(self, entries: Entries, masks: torch.Tensor, kind: str) -> None:
        """Set `entries`, by name, to zero in place where `masks` (L, entries) bool of `kind` remove them."""
        structure = self.structure
        if kind == "weight":
            parts = torch.split(masks, list(structure.tensor_sizes), dim=1)
            for tensor, part in zip(structure.prunable, parts, strict=True):
                into, kept = entries[tensor.name], part.view_as(entries[tensor.name])
                if into.device.type == "cpu":  # by numpy in vector operations, which torch has for small integers alone
                    np.multiply(into.numpy(), kept.numpy(), out=into.numpy())
                else:
                    into.mul_(kept)
            return
        parts = torch.split(masks, list(structure.section_sizes(kind)), dim=1)
        for group, part in zip(structure.groups, parts, strict=True):
            for axis in group.axes:
                view = entries[axis.tensor]
                along = part.repeat_interleave(axis.repeat, dim=1)
                sizes = [len(masks)] + [1] * (view.dim() - 1)
                sizes[axis.dim + 1] = along.shape[1]
                view.mul_(along.view(sizes))
