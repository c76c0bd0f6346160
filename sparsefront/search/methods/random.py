"""Random masks, trained: the baseline that every other arm is judged against."""

from __future__ import annotations

from sparsefront.search.methods.method import Context, EveryLevel
from sparsefront.spaces.candidate import Candidate


class Random(EveryLevel):
    """Arm `random`: the first r masks drawn, fixed before any score is seen."""

    summary = "the first r random masks, fixed before any score is seen"
    source = "Farahani 2024; Liu et al., The unreasonable effectiveness of random pruning, 2022"

    def n_slots(self, context: Context) -> int:
        """The study's number of random draws."""
        return context.random_draws

    def candidates(self, context: Context) -> list[Candidate]:
        """Draws 0..r-1."""
        return [Candidate(context.replicate, context.sparsity, "masked", draw=i) for i in range(context.random_draws)]
