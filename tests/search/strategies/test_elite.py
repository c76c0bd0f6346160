"""The elite of a history: against a slow oracle, and the same however the history grew."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.search.strategies.elite import Elite, crowding, preference
from sparsefront.search.strategies.strategy import COMPLETED, FAILED, PENDING, History

_LOSSES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


def _dominates(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> bool:
    return bool((a <= b).all() and (a < b).any())


def _ranks(losses: npt.NDArray[np.float64]) -> list[int]:
    """Peel fronts off, the definition."""
    ranks, left, rank = [-1] * len(losses), set(range(len(losses))), 0
    while left:
        front = {i for i in left if not any(_dominates(losses[j], losses[i]) for j in left)}
        for i in front:
            ranks[i] = rank
        left -= front
        rank += 1
    return ranks


@given(losses=_LOSSES)
def test_preference_is_rank_then_crowding_then_index(losses: list[tuple[int, int]]) -> None:
    array = np.array(losses, dtype=np.float64)
    ranks = _ranks(array)
    crowded = np.zeros(len(array))
    for rank in set(ranks):
        members = [i for i, r in enumerate(ranks) if r == rank]
        crowded[members] = crowding(array[members])
    expected = sorted(range(len(array)), key=lambda i: (ranks[i], -crowded[i], i))
    assert preference(array, np.zeros(len(array))).tolist() == expected


def test_feasible_goes_before_infeasible_whatever_the_losses() -> None:
    losses = np.array([[0.0, 0.0], [9.0, 9.0], [1.0, 1.0], [2.0, 2.0]])
    assert preference(losses, np.array([np.nan, 0.0, 0.7, 0.1])).tolist() == [1, 3, 2, 0]


def test_crowding_of_ties_and_pairs() -> None:
    assert crowding(np.zeros((1, 2))).tolist() == [np.inf]
    assert crowding(np.ones((4, 2))).tolist() == [np.inf, 0.0, 0.0, np.inf]


def _history(losses: list[tuple[int, int]], outcomes: list[int]) -> History:
    n = len(losses)
    codes = np.array(outcomes, dtype=np.int8)
    values = np.where((codes == COMPLETED)[:, None], np.array(losses, dtype=np.float64).reshape(n, 2), np.nan)
    return History([{}] * n, values, np.full((n, 2), np.nan), codes, np.ones(n), np.zeros(n))


@given(
    losses=_LOSSES,
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 8),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_elite_does_not_depend_on_how_the_history_was_shown(
    losses: list[tuple[int, int]], seed: int, size: int, cuts: list[int]
) -> None:
    outcomes = np.random.default_rng(seed).choice([COMPLETED, COMPLETED, FAILED, PENDING], size=len(losses)).tolist()
    whole = _history(losses, outcomes)
    live = Elite(size)
    for cut in cuts:  # shorter, longer, and with results that arrive late
        shown = [PENDING if i % 3 == 0 else code for i, code in enumerate(outcomes)][:cut]
        live.best(_history(losses[:cut], shown))
        live.best(_history(losses[:cut], outcomes[:cut]))
    best = live.best(whole)
    assert best.tolist() == Elite(size).best(whole).tolist()
    assert len(best) == min(size, whole.succeeded().sum())


def test_elite_holds_the_front_that_fits() -> None:
    rng = np.random.default_rng(0)
    losses = [(int(a), int(b)) for a, b in rng.integers(0, 1000, (500, 2))]
    best = Elite(50).best(_history(losses, [COMPLETED] * 500))
    front = {i for i, rank in enumerate(_ranks(np.array(losses, dtype=np.float64))) if rank == 0}
    assert len(front) < 50
    assert front <= set(best.tolist())
