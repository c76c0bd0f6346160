"""Hyperband: successive halving in brackets that trade the number of candidates against the first rung.

Reference: Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar, Hyperband, JMLR 2018, algorithm 1.
"""

from __future__ import annotations

from sparsefront.search.rungs.rule import RungKind


def hyperband_cycle(n_rungs: int, eta: int, size: int = 0) -> tuple[tuple[int, int], ...]:
    """Sizes of the brackets s = s_max, ..., 0, where s_max is the number of rungs: ceil((s_max + 1) eta^s / (s + 1)).

    Bracket s skips the first s_max - s rungs. The published sizes are kept: `size`, the study's size of a bracket, does
    not matter.

    >>> hyperband_cycle(3, 3)
    ((27, 0), (12, 1), (6, 2), (4, 3))
    """
    return tuple((-(-(n_rungs + 1) * eta**s // (s + 1)), n_rungs - s) for s in range(n_rungs, -1, -1))


HYPERBAND = RungKind(
    "successive halving in brackets of different first rungs: many candidates from early on, few from late on",
    "Li et al. 2018",
    cycle=hyperband_cycle,
)
