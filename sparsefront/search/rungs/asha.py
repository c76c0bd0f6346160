"""ASHA, stopping variant: a newcomer goes on if it is among the best of those that reached the rung before it.

Unlike the published rule, a stopped candidate is never promoted later; unlike Ray's, the newcomer counts among those
that it is compared with, so that one of eta goes on from the first arrivals on.

Reference: Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar, A system for massively parallel
hyperparameter tuning, MLSys 2020.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from sparsefront.search.rungs.ranks import n_continuing
from sparsefront.search.rungs.rule import RungKind


class ScalarRecord:
    """All losses seen at one rung, parted into the best that would go on and the rest; O(log n) an arrival."""

    def __init__(self, eta: int) -> None:
        self._eta = eta
        self._best: list[float] = []  # negated: the worst of the best comes first
        self._rest: list[float] = []

    def admits(self, losses: npt.NDArray[np.float64]) -> bool:
        """Enter a loss, (1,), and say whether its rank is at most max(1, floor(n / eta)); of equals the earlier wins.

        >>> record = ScalarRecord(3)
        >>> [record.admits(np.array([loss])) for loss in (0.5, 0.6, 0.4, 0.4, 0.1, 0.3)]
        [True, False, True, False, True, True]
        """
        (loss,) = losses.tolist()
        best, rest = self._best, self._rest
        n_best = n_continuing(len(best) + len(rest) + 1, self._eta)
        if best and loss < -best[0]:
            if len(best) < n_best:
                heapq.heappush(best, -loss)
            else:
                heapq.heappush(rest, -heapq.heapreplace(best, -loss))
            return True
        if len(best) == n_best:
            heapq.heappush(rest, loss)
            return False
        # There is room for one more; of equals the earlier takes it.
        if rest and rest[0] <= loss:
            heapq.heappush(best, -heapq.heapreplace(rest, loss))
            return False
        heapq.heappush(best, -loss)
        return True


ASHA = RungKind(
    "a newcomer goes on if it is among the best, one of eta, of those that reached the rung before it",
    "Li et al. 2020",
    record=ScalarRecord,
)
