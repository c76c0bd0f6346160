"""Arms that choose one of R random masks by a score taken before training.

Reference: Farahani, Random search as a baseline for sparse neural network architecture search, 2024.
"""

from __future__ import annotations

from sparsefront.search.methods.method import Context, EveryLevel, Missing
from sparsefront.spaces.candidate import Candidate


class Selected(EveryLevel):
    """The scored mask that stands out in one way."""

    source = "Farahani 2024 (the scale-free score and the worst mask are controls of ours)"
    needs_scores = True

    def __init__(self, summary: str, which: str) -> None:
        self.summary = summary
        self._which = which

    def candidates(self, context: Context) -> list[Candidate] | Missing | None:
        """The chosen draw, once all are scored."""
        if context.best is None:
            return None
        number: int | None = getattr(context.best, self._which)
        if number is None:
            return Missing("no mask of this level has a finite score")
        return [Candidate(context.replicate, context.sparsity, "masked", draw=number)]
