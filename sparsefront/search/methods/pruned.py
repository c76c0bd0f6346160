"""Arms that train the parent, prune it once by a criterion, rewind what is left to its initial weights and retrain.

Reference: Frankle and Carbin, The lottery ticket hypothesis, 2019 (one-shot pruning, rewound to initialisation).
"""

from __future__ import annotations

from sparsefront.search.methods.method import Context, Missing
from sparsefront.spaces.candidate import Candidate


class Pruned:
    """The mask that a criterion cuts from the trained parent."""

    source = "Frankle and Carbin 2019, one-shot"
    is_dense = False
    needs_scores = False

    def __init__(self, summary: str, criterion: str) -> None:
        self.summary = summary
        self.criterion: str | None = criterion

    def n_slots(self, context: Context) -> int:
        """One."""
        return 1

    def candidates(self, context: Context) -> list[Candidate] | Missing | None:
        """The pruned mask, once the parent is trained."""
        mask = context.derived.get(self.criterion or "")
        if mask is None or isinstance(mask, Missing):
            return mask
        return [Candidate(context.replicate, context.sparsity, "masked", mask=mask)]
