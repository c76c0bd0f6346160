"""RigL: the weakest connections give way to those with the largest gradient.

As in algorithm 1 of the paper, and in the released code, an update takes the place of the optimiser's step; a step at
which nothing is to be dropped is an ordinary one. The gradient is that of the loss on the step's batch, without weight
decay, before the update. Of blocks, those grow whose gradient has the largest Euclidean norm.

Of node masks, nodes give way to others (see `node_rewiring`). All weights of a node that is away have a gradient of
zero: its outgoing weights for its activation is zero, its incoming ones for the outgoing are. For the gradient of an
update it therefore has the incoming weights that it would come back with, which no output of the network shows; those
nodes come in whose outgoing weights have the gradient of largest Euclidean norm. That is ours; the paper has
connections alone.

Reference: Evci et al., Rigging the lottery: making all tickets winners, ICML 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from sparsefront.spaces.pruning import OWN_DECAYS
from sparsefront.trainables.mask_updates.contract import UpdateSettings
from sparsefront.trainables.mask_updates.node_rewiring import NodeRewiring
from sparsefront.trainables.mask_updates.rewiring import Rewiring
from sparsefront.trainables.optimizers import LaneOptimizer


class RigL:
    """Drops by magnitude, grows by gradient; blocks by its norm."""

    def __init__(self, settings: UpdateSettings) -> None:
        self.settings = settings
        self._rewiring: Rewiring | NodeRewiring
        if settings.nodes is not None:
            self._rewiring = NodeRewiring(settings, settings.nodes, OWN_DECAYS["rigl"])
        else:
            self._rewiring = Rewiring(settings, OWN_DECAYS["rigl"], partial(torch.linalg.vector_norm, dim=-1))

    def start(self, flat: torch.Tensor, keep: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over lanes."""
        self._rewiring.count(keep)

    def prepare(self, step: int, flat: torch.Tensor, keep: torch.Tensor) -> None:
        """Let the gradient of an update see what nodes that are away could do."""
        if isinstance(self._rewiring, NodeRewiring) and self._rewiring.fraction(step):
            self._rewiring.insert_away(flat, keep)

    def step(
        self, step: int, flat: torch.Tensor, keep: torch.Tensor, gradient: torch.Tensor, optimizer: LaneOptimizer
    ) -> bool:
        """Take a step of the optimiser, or an update in its place."""
        fraction = self._rewiring.fraction(step)
        if not fraction:
            optimizer.step(flat, gradient.mul_(keep))
            return False
        if isinstance(self._rewiring, NodeRewiring):
            flat.mul_(keep)
            growth = self._rewiring.gradient_of_nodes(gradient)
            self._rewiring.rewire(fraction, flat, keep, optimizer, growth)
            return True
        gradient.abs_()
        self._rewiring.rewire(fraction, flat, keep, optimizer, [s.of(gradient) for s in self.settings.sections])
        return True

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these."""
        self._rewiring.keep_lanes(lanes)

    def slots(self) -> dict[str, torch.Tensor]:
        """Nothing: an update depends on the weights, the masks and the step."""
        return {}

    def n_skipped(self, step: int) -> int:
        """Updates among the first `step` steps."""
        return sum(self._rewiring.fraction(t) > 0 for t in range(step))
