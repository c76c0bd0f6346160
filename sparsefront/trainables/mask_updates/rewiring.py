"""Dropping the weakest connections of each layer and growing as many others: what SET and RigL share.

Each layer keeps its number of connections. A grown weight starts at 0, as does all that the optimiser knows of it; of
a dropped one nothing is left. Two choices where the literature differs: a connection that was just dropped cannot be
grown in the same update (the algorithm of Evci et al. allows it; the released code then keeps the old weight), and
weights of equal size are dropped from the highest index down, not at random. A connection that is grown into a layer
trained by Adam takes the layer's step count for its bias correction, as in the released code: its first moves are up
to some six times longer than those of a fresh optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsefront.spaces.schedules import Decay, drop_fraction
from sparsefront.trainables.mask_updates.contract import N_UPDATES, UpdateSettings
from sparsefront.trainables.optimizers import LaneOptimizer
from sparsefront.trainables.select import keep_top

#: Shortest interval that is chosen unless another is given: weights need steps to show what they are worth.
_SHORTEST = 5


class Rewiring:
    """When how many connections of which lane and section are replaced, and the replacement."""

    def __init__(self, settings: UpdateSettings, decay: Decay) -> None:
        self._settings = settings
        self._decay: Decay = settings.decay or decay
        self.every = settings.every or max(_SHORTEST, round(settings.end / N_UPDATES))
        self._active: list[torch.Tensor] = []
        self.fraction(self.every)  # refuses a drop fraction that cannot be before anything is trained

    def count(self, keep: torch.Tensor) -> None:
        """Count the connections of `keep` (L, P), which no update changes."""
        self._active = [s.of(keep).sum(dim=1).long().cpu() for s in self._settings.sections]

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these."""
        self._active = [active[lanes.cpu()] for active in self._active]

    def fraction(self, step: int) -> float:
        """Share of the connections that is replaced at `step`; 0 where masks stay as they are."""
        s = self._settings
        if step == 0 or step % self.every or step < round((s.begin_fraction or 0.0) * s.steps):
            return 0.0
        return drop_fraction(step, fraction=s.drop_fraction, end=max(1, s.end), kind=self._decay)

    def rewire(
        self,
        fraction: float,
        flat: torch.Tensor,
        keep: torch.Tensor,
        optimizer: LaneOptimizer,
        growth: Sequence[torch.Tensor],
    ) -> None:
        """Replace ``floor(fraction x connections)`` of every section, or as many as there is room for.

        Args:
            fraction: in (0, 1].
            flat: (L, P) weights, changed in place.
            keep: (L, P) zeros and ones, changed in place.
            optimizer: its slots are changed in place.
            growth: scores of each section, (L, size) float >= 0, of which the highest are grown; scratch afterwards.
        """
        slots = list(optimizer.slots().values())
        for section, active, scores in zip(self._settings.sections, self._active, growth, strict=True):
            n_dropped = torch.minimum((active * fraction + 1e-9).long(), section.size - active)
            if not n_dropped.any():
                continue
            weights, kept = section.of(flat), section.of(keep)
            # Scores of -1 for what cannot be chosen, without a rounding of the others: (keep - 1) + |w| and
            # |g| (1 - keep) - keep. Several times faster than a fill where a comparison says so.
            masked = kept - 1
            survivors = keep_top(weights.abs().add_(masked), _shared(active - n_dropped))
            grown = keep_top(scores.mul_(masked.neg_()).sub_(kept), _shared(n_dropped))
            stays = survivors.to(kept.dtype)
            for state in (flat, *slots):
                section.of(state).mul_(stays)
            torch.add(stays, grown, out=kept)


def _shared(counts: torch.Tensor) -> int | torch.Tensor:
    """One number if all lanes agree."""
    return int(counts[0]) if bool((counts == counts[0]).all()) else counts
