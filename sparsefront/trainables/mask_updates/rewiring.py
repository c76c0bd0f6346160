"""Dropping the weakest connections of each layer and growing as many others: what SET and RigL share.

Each layer keeps its number of connections. A grown weight starts at 0, as does all that the optimiser knows of it; of
a dropped one nothing is left. Two choices where the literature differs: a connection that was just dropped cannot be
grown in the same update (the algorithm of Evci et al. allows it; the released code then keeps the old weight), and
weights of equal size are dropped from the highest index down, not at random. A connection that is grown into a layer
trained by Adam takes the layer's step count for its bias correction, as in the released code: its first moves are up
to some six times longer than those of a fresh optimiser.

Under a pattern its units are what is dropped and grown. Of blocks, those of the smallest sum of absolute weights give
way to as many of the same size. Of N:M, the weakest connections of the layer, wherever they are, but of a group no
more than it has others to put in their place; each group grows as many as it lost. (A share of every group by itself
would be none: of the two connections that 2:4 leaves, 30% are less than one.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sparsefront.spaces.pruning import N_UPDATES
from sparsefront.spaces.schedules import Decay, drop_fraction
from sparsefront.trainables.mask_updates.contract import Section, UpdateSettings, shared, spread, summed, units_of
from sparsefront.trainables.optimizers import LaneOptimizer
from sparsefront.trainables.select import keep_top, ranks

#: Shortest interval that is chosen unless another is given: weights need steps to show what they are worth.
_SHORTEST = 5


class RewiringSchedule:
    """When how much of each lane and section is replaced."""

    def __init__(self, settings: UpdateSettings, decay: Decay) -> None:
        """Begin with the `decay` of a rule."""
        self.settings = settings
        self._decay: Decay = settings.decay or decay
        self.every = settings.every or max(_SHORTEST, round(settings.end / N_UPDATES))
        #: Of each section what every lane keeps, and how much of it can be replaced at once: two (L,) on the host.
        self.counts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.fraction(self.every)  # refuses a drop fraction that cannot be before anything is trained

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these."""
        lanes = lanes.cpu()
        self.counts = [(active[lanes], room[lanes]) for active, room in self.counts]

    def fraction(self, step: int) -> float:
        """Share of what is kept that is replaced at `step`; 0 where masks stay as they are."""
        s = self.settings
        if step == 0 or step % self.every or step < round((s.begin_fraction or 0.0) * s.steps):
            return 0.0
        return drop_fraction(step, fraction=s.drop_fraction, end=max(1, s.end), kind=self._decay)


class Rewiring(RewiringSchedule):
    """When how many connections of which lane and section are replaced, and the replacement."""

    def __init__(
        self, settings: UpdateSettings, decay: Decay, growth_of_units: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Begin with the `decay` of a rule, and its growth scores of units by those of their entries (the last dim)."""
        super().__init__(settings, decay)
        self._growth_of_units = growth_of_units
        #: Sections with what competes in them; None: all their entries.
        self._places: list[tuple[int, Section, torch.Tensor | None]] = [
            (i, s, index)
            for i, s in enumerate(settings.sections)
            for index in (s.rivals if s.rivals is not None else (None,))
        ]

    def count(self, keep: torch.Tensor) -> None:
        """Count the connections of `keep` (L, P), which no update changes, and how many can be replaced at once."""
        self.counts = []
        for _, section, index in self._places:
            kept = section.of(keep)
            if index is None:
                active = kept.sum(dim=1).long()
                room = section.size - active
            else:
                of_groups = units_of(kept, index)[..., 0].sum(dim=2).long()
                active, room = of_groups.sum(dim=1), of_groups.minimum(index.shape[1] - of_groups).sum(dim=1)
            self.counts.append((active.cpu(), room.cpu()))

    def rewire(
        self,
        fraction: float,
        flat: torch.Tensor,
        keep: torch.Tensor,
        optimizer: LaneOptimizer,
        growth: Sequence[torch.Tensor],
    ) -> None:
        """Replace ``floor(fraction x connections)`` of every section, or as many as there is room for.

        Under a pattern these are connections in groups of M, or blocks, of each size by itself.

        Args:
            fraction: in (0, 1].
            flat: (L, P) weights, changed in place.
            keep: (L, P) zeros and ones, changed in place.
            optimizer: its slots are changed in place.
            growth: scores of each section, (L, size) float >= 0, of which the highest are grown; scratch afterwards.
        """
        states = (flat, *optimizer.slots().values())
        for (i, section, index), (active, room) in zip(self._places, self.counts, strict=True):
            n_dropped = n_replaced(fraction, active, room)
            if not n_dropped.any():
                continue
            weights, kept = section.of(flat), section.of(keep)
            if index is None:
                # Scores of -1 for what cannot be chosen, without a rounding of the others: (keep - 1) + |w| and
                # |g| (1 - keep) - keep. Several times faster than a fill where a comparison says so.
                masked = kept - 1
                survivors = keep_top(weights.abs().add_(masked), shared(active - n_dropped))
                grown = keep_top(growth[i].mul_(masked.neg_()).sub_(kept), shared(n_dropped))
                stays = survivors.to(kept.dtype)
                torch.add(stays, grown, out=kept)
            else:
                stays = self._replace_units(weights, kept, growth[i], index, active - n_dropped)
            for state in states:
                section.of(state).mul_(stays)

    def _replace_units(
        self,
        weights: torch.Tensor,
        kept: torch.Tensor,
        growth: torch.Tensor,
        index: torch.Tensor,
        n_staying: torch.Tensor,
    ) -> torch.Tensor:
        """Replace all but `n_staying` (L,) units of one section's groups in `kept`; which entries stay, (L, size)."""
        of_units = units_of(kept, index)[..., 0]
        n_kept = of_units.sum(dim=2, keepdim=True)
        strength = summed(units_of(weights, index).abs_()) + (of_units - 1)
        if len(index) > 1:
            # A group may lose what it has others for: not its 2 n - m strongest, if it keeps n of m.
            strength.masked_fill_(ranks(strength) < 2 * n_kept - index.shape[1], torch.inf)
        survivors = keep_top(strength.flatten(1), shared(n_staying)).view_as(of_units)
        n_grown = n_kept - survivors.sum(dim=2, keepdim=True)
        grown = ranks(self._growth_of_units(units_of(growth, index)) * (1 - of_units) - of_units) < n_grown
        stays = kept.clone()
        spread(survivors, index, stays)
        spread(survivors | grown, index, kept)
        return stays


def n_replaced(fraction: float, active: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """``floor(fraction x active)``, or as many as there is room for."""
    return torch.minimum((active * fraction + 1e-9).long(), room)
