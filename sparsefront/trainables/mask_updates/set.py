"""SET: the weakest connections give way to others at random.

An update follows the optimiser's step. The words that rank what may grow are drawn on the host, for a lane is to be
the same on every device, under a key of the lane and the step, for it is to be the same in every pack. Of node masks
nodes are what gives way and what is drawn (see `node_rewiring`); the paper has connections alone.

Reference: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
network science, Nature Communications 2018 (there the smallest positive and the largest negative weights are dropped;
here, as in the code of Evci et al. 2020, those of smallest magnitude).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter

import numpy as np
import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.pruning import OWN_DECAYS
from sparsefront.spaces.seeds import philox_key, raw_rows
from sparsefront.trainables.mask_updates.contract import UpdateSettings
from sparsefront.trainables.mask_updates.node_rewiring import NodeRewiring
from sparsefront.trainables.mask_updates.rewiring import Rewiring
from sparsefront.trainables.optimizers import LaneOptimizer


class SET:
    """Drops by magnitude, grows at random."""

    def __init__(self, settings: UpdateSettings) -> None:
        self.settings = settings
        self._lanes = list(settings.lanes)
        self._rewiring: Rewiring | NodeRewiring
        if settings.nodes is not None:
            self._rewiring = NodeRewiring(settings, settings.nodes, OWN_DECAYS["set"])
        else:  # the word of a unit is that of its first entry: a sum of words is not uniform, and ties where rounded
            self._rewiring = Rewiring(settings, OWN_DECAYS["set"], itemgetter((..., 0)))

    def start(self, flat: torch.Tensor, keep: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over lanes."""
        if len(self._lanes) != len(flat):
            raise SpaceError(
                f"lanes={self._lanes}: one (replicate, number) for each of the {len(flat)} lanes of the pack is needed"
            )
        self._rewiring.count(keep)

    def prepare(self, step: int, flat: torch.Tensor, keep: torch.Tensor) -> None:
        """Nothing."""

    def step(
        self, step: int, flat: torch.Tensor, keep: torch.Tensor, gradient: torch.Tensor, optimizer: LaneOptimizer
    ) -> bool:
        """Take a step of the optimiser, and an update if one is due."""
        optimizer.step(flat, gradient.mul_(keep))
        fraction = self._rewiring.fraction(step)
        if not fraction:
            return False
        words = self._words(step).to(flat.device, non_blocking=True)
        if isinstance(self._rewiring, NodeRewiring):
            self._rewiring.rewire(fraction, flat, keep, optimizer, words)
        else:
            self._rewiring.rewire(fraction, flat, keep, optimizer, torch.split(words, self.settings.sizes, dim=1))
        return True

    def _words(self, step: int) -> torch.Tensor:
        """Random integers of 24 bits, which float32 holds exactly: (L, W or N), of each lane its own."""
        s, width = self.settings, sum(self.settings.sizes)
        words = np.empty((len(self._lanes), width), dtype=np.uint32)
        for row, lane in zip(words, self._lanes, strict=True):
            row[:] = raw_rows(philox_key(s.seed, "updates", *lane, step), start=0, stop=1, width=width)[0]
        return torch.from_numpy((words >> 8).astype(np.float32))

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these."""
        self._lanes = [self._lanes[i] for i in lanes.tolist()]
        self._rewiring.keep_lanes(lanes)

    def slots(self) -> dict[str, torch.Tensor]:
        """Nothing: an update depends on the weights, the masks, the lane and the step."""
        return {}

    def n_skipped(self, step: int) -> int:
        """None: updates follow the optimiser's step."""
        return 0
