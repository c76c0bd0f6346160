"""A dense network of the size that the masks leave, with weights of its own: is the parent worth anything?"""

from __future__ import annotations

from sparsefront.search.methods.method import Context, EveryLevel
from sparsefront.spaces.candidate import Candidate


class SmallDense(EveryLevel):
    """Arm `small_dense`."""

    summary = "a dense network of the compact size with fresh weights"
    source = "Liu et al., Rethinking the value of network pruning, 2019"

    def candidates(self, context: Context) -> list[Candidate]:
        """The small network of this level."""
        return [Candidate(context.replicate, context.sparsity, "small_dense")]
