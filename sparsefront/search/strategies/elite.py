"""The best candidates of a run: constrained non-dominated rank, then crowding distance.

References: Deb, Pratap, Agarwal and Meyarivan, A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE
Transactions on Evolutionary Computation 2002 (sections III and VI).
"""

from __future__ import annotations

import moocore
import numpy as np
import numpy.typing as npt

from sparsefront.search.strategies.strategy import PENDING, History

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def crowding(losses: Floats) -> Floats:
    """Crowding distance of each point of one front: (n,) >= 0, infinite at its ends.

    Args:
        losses: (n, m) finite.

    >>> crowding(np.array([[0.0, 4.0], [1.0, 1.0], [4.0, 0.0]])).tolist()
    [inf, 2.0, inf]
    """
    n, m = losses.shape
    distance = np.zeros(n)
    if n <= 2:
        return np.full(n, np.inf)
    for j in range(m):
        order = np.argsort(losses[:, j], kind="stable")
        column = losses[order, j]
        extent = column[-1] - column[0]
        if extent > 0:
            distance[order[1:-1]] += (column[2:] - column[:-2]) / extent
        distance[order[[0, -1]]] = np.inf
    return distance


def preference(losses: Floats, violations: Floats) -> Indices:
    """Rows from the best to the worst: feasible ones by rank and crowding, then the others by violation; ties by index.

    Args:
        losses: (n, m) finite, minimised.
        violations: (n,) >= 0; NaN counts as infinite.

    >>> preference(np.array([[2.0], [1.0], [0.0]]), np.array([0.0, 0.0, 0.5])).tolist()
    [1, 0, 2]
    """
    n = len(losses)
    broken = np.where(np.isnan(violations), np.inf, violations)
    rank = np.zeros(n)
    crowded = np.zeros(n)
    feasible = np.flatnonzero(broken <= 0)
    if len(feasible):
        ranks = moocore.pareto_rank(losses[feasible])
        rank[feasible] = ranks
        for front in range(int(ranks.max()) + 1):
            members = feasible[ranks == front]
            crowded[members] = crowding(losses[members])
    rank[broken > 0] = n
    return np.lexsort((np.arange(n), -crowded, rank, np.maximum(broken, 0))).astype(np.int64)


class Elite:
    """The best `size` candidates of a history that grows, found block by block as generations would find them.

    A fold over consecutive blocks of `size` numbers: the best of (the elite so far, the block) are the next elite. It
    is a function of the history alone; what is kept between calls only saves work, and is dropped if the history it was
    made from is not the beginning of the one that is asked about.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._forget()

    def _forget(self) -> None:
        self._n_folded = 0
        self._best: Indices = np.empty(0, dtype=np.int64)
        self._fingerprint = 0

    def best(self, history: History) -> Indices:
        """Indices of the best candidates that completed, best first: at most `size`."""
        if self._n_folded > len(history) or history.fingerprint(self._n_folded, is_partial=False) != self._fingerprint:
            self._forget()
        best, before = self._best, self._n_folded
        succeeded = history.succeeded(before)
        pending = np.flatnonzero(history.outcomes[before:] == PENDING)
        n_settled = before + int(pending[0]) if len(pending) else len(history)
        for start in range(before, len(history), self._size):
            stop = min(start + self._size, len(history))
            found = np.concatenate([best, start + np.flatnonzero(succeeded[start - before : stop - before])])
            best = found[preference(history.losses[found], history.violations[found])][: self._size]
            if stop <= n_settled and stop - start == self._size:
                self._n_folded, self._best = stop, best
        if self._n_folded > before:
            self._fingerprint = history.fingerprint(self._n_folded, is_partial=False)
        return best
