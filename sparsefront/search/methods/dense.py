"""The parent itself: all of its nodes and weights."""

from __future__ import annotations

from collections.abc import Sequence

from sparsefront.search.methods.method import Context, EveryLevel
from sparsefront.spaces.candidate import Candidate


class Dense(EveryLevel):
    """Arm `dense`."""

    summary = "the parent, trained whole"
    source = "the reference of every pruning paper"
    is_dense = True

    def levels(self, sparsities: Sequence[float]) -> tuple[float, ...]:
        """Level 0 alone."""
        return (0.0,)

    def candidates(self, context: Context) -> list[Candidate]:
        """The parent of this replicate."""
        return [Candidate(context.replicate, 0.0, "parent")]
