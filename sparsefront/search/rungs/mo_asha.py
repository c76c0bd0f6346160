"""Multi-objective ASHA: as ASHA, ranked by non-domination and then by spread within a front.

Reference: Schmucker, Donini, Zafar, Salinas, Archambeau, Multi-objective asynchronous successive halving, 2021. What
decides is the newcomer's rank, not its place in a list of sorted indices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparsefront.search.rungs.ranks import is_among_best, n_continuing
from sparsefront.search.rungs.rule import RungKind

#: A newcomer is compared with this many arrivals, itself included, so that an arrival costs the same however many came
#: before; larger than any bracket that is worth waiting for.
WINDOW = 1000


class FrontRecord:
    """The last `window` loss vectors seen at one rung."""

    def __init__(self, eta: int, window: int = WINDOW) -> None:
        self._eta = eta
        self._window = window
        self._losses = np.empty((0, 0))
        self._start = self._stop = 0

    def admits(self, losses: npt.NDArray[np.float64]) -> bool:
        """Enter a loss vector, (m,), and say whether its rank is at most max(1, floor(n / eta)).

        >>> record = FrontRecord(3)
        >>> [record.admits(np.array(pair)) for pair in ((0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (-1.0, -1.0))]
        [True, False, False, True]
        """
        if self._stop == len(self._losses):
            # Twice the room for what stays: one copy in as many arrivals.
            kept = self._losses[self._start : self._stop]
            self._losses = np.empty((min(max(16, 2 * len(kept)), 2 * self._window), len(losses)))
            if len(kept):
                self._losses[: len(kept)] = kept
            self._start, self._stop = 0, len(kept)
        self._losses[self._stop] = losses
        self._stop += 1
        self._start = max(self._start, self._stop - self._window)
        recorded = self._losses[self._start : self._stop]
        return is_among_best(recorded, len(recorded) - 1, n_continuing(len(recorded), self._eta))


MO_ASHA = RungKind(
    "as asha, by non-dominated front and then by spread within the front, over all objectives",
    "Schmucker et al. 2021",
    record=FrontRecord,
    is_multi_objective=True,
)
