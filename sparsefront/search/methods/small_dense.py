"""A dense network of the size that the masks leave, with weights of its own: is the parent worth anything?"""

from __future__ import annotations

from sparsefront.search.methods.method import Context
from sparsefront.spaces.candidate import Candidate


class SmallDense:
    """Arm `small_dense`."""

    summary = "a dense network of the compact size with fresh weights"
    source = "Liu et al., Rethinking the value of network pruning, 2019"
    is_dense = False
    needs_scores = False
    criterion: str | None = None

    def n_slots(self, context: Context) -> int:
        """One."""
        return 1

    def candidates(self, context: Context) -> list[Candidate]:
        """The small network of this level."""
        return [Candidate(context.replicate, context.sparsity, "small_dense")]
