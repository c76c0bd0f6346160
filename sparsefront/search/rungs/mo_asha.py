"""Multi-objective ASHA: as ASHA, ranked by non-domination and then by spread within a front.

A newcomer is compared with the last 1,024 that reached the rung, itself included: all of a bracket, which may be no
larger, and of an asynchronous run those that came last.

Reference: Schmucker, Donini, Zafar, Salinas, Archambeau, Multi-objective asynchronous successive halving, 2021. What
decides is the newcomer's rank, not its place in a list of sorted indices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparsefront.search.rungs.ranks import is_among_best, n_continuing
from sparsefront.search.rungs.rule import RungKind

#: A newcomer is compared with this many arrivals, itself included, so that an arrival costs the same however many came
#: before.
WINDOW = 1024


class FrontRecord:
    """The last `window` loss vectors seen at one rung."""

    def __init__(self, eta: int, window: int = WINDOW) -> None:
        self._eta = eta
        self._window = window
        #: By ascending last loss, which is the order in which fronts are found fastest; and the arrivals' numbers.
        self._losses = np.empty((0, 0))
        self._numbers = np.empty(0, dtype=np.int64)
        self._n = self._n_arrived = 0

    def admits(self, losses: npt.NDArray[np.float64]) -> bool:
        """Enter a loss vector, (m,), and say whether its rank is at most max(1, floor(n / eta)).

        >>> record = FrontRecord(3)
        >>> [record.admits(np.array(pair)) for pair in ((0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (-1.0, -1.0))]
        [True, False, False, True]
        """
        if self._n == self._window:
            oldest = int((self._numbers == self._n_arrived - self._window).argmax())
            for array in (self._losses, self._numbers):
                array[oldest:-1] = array[oldest + 1 :]
            self._n -= 1
        elif self._n == len(self._losses):
            n = min(max(16, 2 * self._n), self._window)
            self._losses = np.concatenate([self._losses.reshape(-1, len(losses)), np.empty((n - self._n, len(losses)))])
            self._numbers = np.concatenate([self._numbers, np.empty(n - self._n, dtype=np.int64)])
        n = self._n
        at = int(self._losses[:n, -1].searchsorted(losses[-1], side="right"))
        for array, newcomer in ((self._losses, losses), (self._numbers, self._n_arrived)):
            array[at + 1 : n + 1] = array[at:n]
            array[at] = newcomer
        self._n += 1
        self._n_arrived += 1
        n_best = n_continuing(self._n, self._eta)
        return is_among_best(self._losses[: self._n], at, n_best, arrivals=self._numbers[: self._n])


MO_ASHA = RungKind(
    "as asha, by non-dominated front and then by spread within the front, over all objectives",
    "Schmucker et al. 2021",
    record=FrontRecord,
    is_multi_objective=True,
    max_bracket=WINDOW,
)
