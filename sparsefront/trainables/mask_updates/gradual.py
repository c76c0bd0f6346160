"""Gradual pruning: a cubic rise to the final sparsity while the network trains, by magnitude or another score.

An update follows the optimiser's step. It ranks what is left: a weight that is masked is zero and stays so to the end
(no regrowth), so that nothing has to be kept of a dense network. After the last update, at three quarters of the
training by default, the mask is constant and its counts are exactly those of the allocation.

Nodes are ranked by what they own, and leave with it: incoming weights, bias and outgoing weights.

A score is of the weights after the step; what else it may be of says `pruning.in_training`. A rise in many updates is
what scoring in rounds is before training: an update scores once.

Under a pattern every update leaves a mask of it. Blocks are ranked by the sum of their scores, and of each size as many
stay as the schedule's sparsity leaves. An N:M mask is reached from M:M on: when the schedule's density is d, a group
keeps the n = max(N, M d rounded) best of what it has.

References: Zhu and Gupta, To prune, or not to prune: exploring the efficacy of pruning for model compression, 2017 (the
schedule); Mishra et al., Accelerating sparse deep neural networks, 2021, and Zhou et al., Learning N:M fine-grained
structured sparse neural networks from scratch, 2021 (N:M; the path to it is ours).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.pruning import update_span
from sparsefront.spaces.schedules import cubic, update_steps
from sparsefront.trainables.mask_updates.contract import UpdateSettings
from sparsefront.trainables.optimizers import LaneOptimizer

#: Share of the steps before the first update, unless given.
_BEGIN_FRACTION = 0.1


class Gradual:
    """Keeps the best of what is left."""

    def __init__(self, settings: UpdateSettings) -> None:
        if settings.counts is None:
            raise SpaceError("counts=None: gradual pruning needs the survivors of each section at a sparsity")
        self.settings = settings
        begin_fraction = _BEGIN_FRACTION if settings.begin_fraction is None else settings.begin_fraction
        begin, end, every = update_span(settings.steps, begin_fraction, settings.end_fraction, settings.every or 0)
        steps = update_steps(begin, end, every)
        falling: dict[float, npt.NDArray[np.int64]] = {}
        for final in set(settings.sparsities):
            rise = partial(cubic, begin=begin, end=end, every=every, final=final, power=settings.power)
            counts = np.array([settings.counts(rise(step)) for step in steps])
            # Apportioned counts, and numbers of blocks of one size, can rise as the total falls; nothing grows again,
            # so that what is needed later is kept.
            falling[final] = np.maximum.accumulate(counts[::-1], axis=0)[::-1]
        of_lanes = np.stack([falling[final] for final in settings.sparsities], axis=-1)
        self._steps = steps
        self._counts = dict(zip(steps, torch.from_numpy(of_lanes), strict=True))  # of each step (sections, L or 1)

    def start(self, flat: torch.Tensor, keep: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over lanes."""
        if self.settings.score is not None:
            self.settings.score.start(flat, saved)

    def prepare(self, step: int, flat: torch.Tensor, keep: torch.Tensor) -> None:
        """Nothing."""

    def step(
        self, step: int, flat: torch.Tensor, keep: torch.Tensor, gradient: torch.Tensor, optimizer: LaneOptimizer
    ) -> bool:
        """Take a step of the optimiser, and prune if it is time."""
        s, n_past = self.settings, bisect_left(self._steps, step)
        gradient.mul_(keep)
        if s.score is not None and n_past < len(self._steps):
            s.score.observe(flat, gradient, until_update=self._steps[n_past] - step)
        optimizer.step(flat, gradient)
        if step not in self._counts:
            return False
        scores = s.scores(flat, keep).masked_fill_(~s.kept(keep), -torch.inf)
        s.write(s.best(scores, self._counts[step]), keep)
        for state in (flat, *optimizer.slots().values(), *self.slots().values()):
            state.mul_(keep)
        return True

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these."""
        if len(self.settings.sparsities) > 1:
            self._counts = {step: counts[:, lanes.cpu()] for step, counts in self._counts.items()}
        if self.settings.score is not None:
            self.settings.score.keep_lanes(lanes)

    def slots(self) -> dict[str, torch.Tensor]:
        """What the score remembers: else an update depends on the weights, the masks and the step."""
        return {} if self.settings.score is None else self.settings.score.slots()

    def n_skipped(self, step: int) -> int:
        """None: updates follow the optimiser's step."""
        return 0
