"""Replacing the weakest nodes of each layer by as many others: what SET and RigL share on node masks.

Each node group keeps its number of nodes. Those of smallest norm over all that they own leave; a node that was just
dropped cannot come back in the same update, and of equal norms the highest index leaves first. What comes in has its
initial incoming weights, and neither a bias nor outgoing weights (see `nodes`); all that the optimiser knows of it is
zero.
"""

from __future__ import annotations

import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.schedules import Decay
from sparsefront.trainables.mask_updates.contract import UpdateSettings, finite, shared
from sparsefront.trainables.mask_updates.nodes import Nodes
from sparsefront.trainables.mask_updates.rewiring import RewiringSchedule, n_replaced
from sparsefront.trainables.optimizers import LaneOptimizer
from sparsefront.trainables.select import keep_top


class NodeRewiring(RewiringSchedule):
    """When how many nodes of which lane and group are replaced, and the replacement."""

    def __init__(self, settings: UpdateSettings, nodes: Nodes, decay: Decay) -> None:
        """Begin with the `decay` of a rule.

        Raises:
            SpaceError: no initial weights for nodes that come in.
        """
        super().__init__(settings, decay)
        if settings.initial is None:
            raise SpaceError("initial=None: nodes that come in while a network trains need the weights it began with")
        self._nodes = nodes
        self._initial = nodes.without_biases(settings.initial)

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these."""
        super().keep_lanes(lanes)
        if len(self._initial) > 1:
            self._initial = self._initial[lanes]

    def count(self, keep: torch.Tensor) -> None:
        """Count the nodes of `keep` (L, P), which no update changes, and how many can be replaced at once."""
        groups = torch.split(self._nodes.kept(keep), list(self._nodes.sizes), dim=1)
        active = [kept.sum(dim=1).cpu() for kept in groups]
        self.counts = [(k, n - k) for n, k in zip(self._nodes.sizes, active, strict=True)]

    def insert_away(self, flat: torch.Tensor, keep: torch.Tensor) -> None:
        """Give nodes that are away the incoming weights that they would come back with; no output changes."""
        self._nodes.insert(flat, 1 - keep, self._initial, self._nodes.kept(keep))

    def gradient_of_nodes(self, gradient: torch.Tensor) -> torch.Tensor:
        """Squared norm of the gradient (L, P) of each node's outgoing weights: (L, N) float64."""
        return self._nodes.outgoing(gradient.double().square())

    def rewire(
        self, fraction: float, flat: torch.Tensor, keep: torch.Tensor, optimizer: LaneOptimizer, growth: torch.Tensor
    ) -> None:
        """Replace ``floor(fraction x nodes)`` of every group, or as many as there is room for.

        Args:
            fraction: in (0, 1].
            flat: (L, P) weights, changed in place.
            keep: (L, P) zeros and ones, changed in place.
            optimizer: its slots are changed in place.
            growth: (L, N) scores >= 0, of which the highest that are away come in; scratch afterwards.
        """
        sizes = list(self._nodes.sizes)
        counts = [(n_replaced(fraction, active, room), active) for active, room in self.counts]
        if not any(bool(n.any()) for n, _ in counts):
            return
        kept = self._nodes.kept(keep)
        strength = self.settings.scores(flat, keep).masked_fill_(~kept, -1)
        growth = finite(growth).masked_fill_(kept, -1)
        parts = list(zip(torch.split(strength, sizes, dim=1), torch.split(growth, sizes, dim=1), counts, strict=True))
        stays = torch.cat([keep_top(each, shared(active - n)) for each, _, (n, active) in parts], dim=1)
        grown = torch.cat([keep_top(each, shared(n)) for _, each, (n, _) in parts], dim=1)
        self._nodes.write(stays, keep)
        for state in (flat, *optimizer.slots().values()):
            state.mul_(keep)
        before = keep.clone()
        self._nodes.write(stays | grown, keep)
        self._nodes.insert(flat, keep - before, self._initial, ~grown)
