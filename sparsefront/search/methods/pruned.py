"""Arms that prune by a criterion: at initialisation, after training, level by level, or while they train.

References: see `sparsefront.search.methods.pruners` for each, and Lee et al., JaxPruner, 2023, for the cut of a method
into score, pattern, allocation and schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsefront.search.methods.method import Context, Cut, Missing, Trained
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.pruning import Pruning


class Pruned:
    """An arm that a pruning method makes of the parent."""

    is_dense = False
    needs_scores = False
    goes_with = ""

    def __init__(self, name: str, summary: str, source: str, method: Pruning) -> None:
        self.name, self.summary, self.source, self.method = name, summary, source, method
        self.needs_parent = method.needs_parent
        self.goes_alone = method.when == "levels"

    def levels(self, sparsities: Sequence[float]) -> tuple[float, ...]:
        """Those of the study that its pattern can have; a method that prunes by levels passes others on its way."""
        return self.method.levels(sparsities)

    def cuts(self, sparsity: float, sparsities: Sequence[float]) -> tuple[Cut, ...]:
        """Of the parent all masks, or the first of the chain; of a level the next one."""
        if not self.needs_parent:
            return ()
        chain = self.levels(sparsities)
        if self.method.when != "levels":
            return tuple(Cut(self.name, s, self.method) for s in chain) if sparsity == 0.0 else ()
        place = 0 if sparsity == 0.0 else chain.index(sparsity) + 1
        return (Cut(self.name, chain[place], self.method, chain[place + 1 :]),) if place < len(chain) else ()

    def n_slots(self, context: Context) -> int:
        """One."""
        return 1

    def candidates(self, context: Context) -> list[Candidate] | Missing | None:
        """The pruned network, once its mask is known; where the mask is made in its training, at once."""
        place = context.replicate, context.sparsity
        if not self.needs_parent:
            return [Candidate(*place, "masked", method=self.method)]
        cut = context.derived.get(self.name)
        if cut is None or isinstance(cut, Missing):
            return cut
        return [self._survivors(context, cut)]

    def _survivors(self, context: Context, cut: Trained) -> Candidate:
        place, method = (context.replicate, context.sparsity), self.method
        if method.survivors == "fresh":
            return Candidate(*place, "masked", mask=cut.mask, start="fresh")
        if method.survivors == "rewound":
            step = method.rewind_step(context.steps)
            if not step:
                return Candidate(*place, "masked", mask=cut.mask)
            return Candidate(*place, "masked", mask=cut.mask, start="rewound", rewind_step=step)
        return Candidate(*place, "masked", mask=cut.mask, start="trained", method=method, origin=cut.id)
