"""The parent itself: all of its nodes and weights."""

from __future__ import annotations

from sparsefront.search.methods.method import Context
from sparsefront.spaces.candidate import Candidate


class Dense:
    """Arm `dense`."""

    summary = "the parent, trained whole"
    source = "the reference of every pruning paper"
    is_dense = True
    needs_scores = False
    criterion: str | None = None

    def n_slots(self, context: Context) -> int:
        """One."""
        return 1

    def candidates(self, context: Context) -> list[Candidate]:
        """The parent of this replicate."""
        return [Candidate(context.replicate, 0.0, "parent")]
