"""Ranks of loss vectors: by non-dominated front, then by spread within the front.

A rank belongs to an element; it is not the sorted list of indices (the two are each other's inverse permutations).

References: Schmucker, Donini, Zafar, Salinas, Archambeau, Multi-objective asynchronous successive halving, 2021; Deb,
Pratap, Agarwal, Meyarivan, NSGA-II, 2002.
"""

from __future__ import annotations

import moocore
import numpy as np
import numpy.typing as npt

Losses = npt.NDArray[np.float64]


def n_continuing(n: int, eta: int) -> int:
    """How many of `n` candidates at a rung go on: max(1, floor(n / eta)).

    >>> [n_continuing(n, 3) for n in (1, 2, 3, 5, 6)]
    [1, 1, 1, 1, 2]
    """
    return max(1, n // eta)


def ranks_of(losses: Losses) -> npt.NDArray[np.int64]:
    """Rank of every element, 1 for the best.

    Elements of an earlier non-dominated front come first. Within a front they are ordered as an epsilon net: it starts
    from the best of the first objective, and goes on with the element that is farthest from those already chosen.
    Distances are Euclidean between the objectives' own ranks within the front, so that no objective's scale matters.
    Ties are decided by the lower losses in the order of the objectives, equal elements by their place: the earlier is
    better.

    Args:
        losses: (n, m) float, finite, minimised; m >= 1. With m = 1 this is the ordinary rank.

    Returns:
        (n,) int64, a permutation of 1..n, aligned with the rows of `losses`; empty for no rows.

    Cost: O(n log n) for the fronts of m <= 2, O(n^2 log n) beyond; O(f^2 m) for a front of f.

    >>> ranks_of(np.array([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]))
    array([2, 3, 1])
    >>> ranks_of(np.array([[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [4.0, 0.0]]))
    array([1, 4, 3, 5, 2])
    """
    ranks = np.empty(len(losses), dtype=np.int64)
    fronts = _front_numbers(losses)
    n_better = 0
    for front in range(fronts.max(initial=-1) + 1):
        indices = np.flatnonzero(fronts == front)
        ranks[indices[_spread(losses[indices])]] = np.arange(n_better + 1, n_better + len(indices) + 1)
        n_better += len(indices)
    return ranks


def is_among_best(losses: Losses, index: int, n_best: int, *, arrivals: npt.NDArray[np.int64] | None = None) -> bool:
    """Whether ``ranks_of(losses)[index] <= n_best``, with no more work than that takes.

    Args:
        losses: as of `ranks_of`. Of two objectives the fronts are found in a third of the time where the last ascends.
        index: of the element that is asked about.
        n_best: how many are among the best.
        arrivals: (n,) distinct numbers, by which the earlier of equal elements is told; by default their places.

    >>> is_among_best(np.array([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]), 2, 1)
    True
    """
    own = losses[index]
    # Objective by objective: along rows of two or three NumPy takes ten times as long.
    no_worse, no_better = losses[:, 0] <= own[0], losses[:, 0] >= own[0]
    for column, loss in zip(losses.T[1:], own[1:], strict=True):
        no_worse &= column <= loss
        no_better &= column >= loss
    # Whoever dominates it is in an earlier front, whoever it dominates in a later one.
    if np.count_nonzero(no_worse > no_better) >= n_best:
        return False
    if len(losses) - np.count_nonzero(no_better > no_worse) <= n_best:
        return True
    if losses.shape[1] == 1:
        n_better, indices = int(np.count_nonzero(no_worse > no_better)), (no_worse & no_better).nonzero()[0]
    else:
        fronts = moocore.pareto_rank(losses)
        n_better, indices = int(np.count_nonzero(fronts < fronts[index])), (fronts == fronts[index]).nonzero()[0]
    if n_better >= n_best or n_better + len(indices) <= n_best:
        return n_better < n_best
    if arrivals is not None:
        indices = indices[arrivals[indices].argsort()]
    chosen = _spread(losses[indices], n_best - n_better)
    return bool((indices[chosen] == index).any())


def _front_numbers(losses: Losses) -> npt.NDArray[np.int64]:
    """Number of the non-dominated front of every element, 0 for the first; equal elements share a front."""
    if losses.shape[1] == 1 or not len(losses):
        return _places(losses[:, 0])
    return np.asarray(moocore.pareto_rank(losses), dtype=np.int64)


def _spread(front: Losses, n_first: int | None = None) -> npt.NDArray[np.int64]:
    """Indices of a front's elements (the first `n_first` of them) in the order of the epsilon net."""
    n, m = front.shape
    sorted_indices = np.lexsort(front.T[::-1])
    if m == 1:
        return sorted_indices[:n_first]
    places = np.stack([_places(column) for column in front[sorted_indices].T]).astype(np.float64)
    places /= np.maximum(places.max(axis=1, keepdims=True), 1.0)
    chosen = np.zeros(min(n, n if n_first is None else n_first), dtype=np.int64)
    nearest = np.full(n, np.inf)
    gaps, distances = np.empty_like(places), np.empty(n)
    last = 0
    for i in range(1, len(chosen)):
        np.subtract(places, places[:, last, None], out=gaps)
        np.square(gaps, out=gaps)
        np.add.reduce(gaps, axis=0, out=distances)
        np.minimum(nearest, distances, out=nearest)
        nearest[last] = -1.0  # below the distance of an equal element
        chosen[i] = last = int(nearest.argmax())
    return sorted_indices[chosen]


def _places(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Place of every value among the distinct ones, from 0."""
    order = values.argsort(kind="stable")
    ascending = values[order]
    places = np.zeros(len(values), dtype=np.int64)
    places[order[1:]] = np.cumsum(ascending[1:] != ascending[:-1])
    return places
