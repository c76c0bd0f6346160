"""What a kind of rungs is: how candidates are bracketed, and how those at one rung are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Record(Protocol):
    """What one rung remembers of those who reached it; made anew, it is rebuilt by the same arrivals."""

    def admits(self, losses: npt.NDArray[np.float64], /) -> bool:
        """Enter a newcomer, (m,) finite losses, and say whether it goes on."""


#: (candidates in a bracket, rungs that the bracket skips) of consecutive brackets, repeated for ever; made from the
#: number of rungs, eta and the study's size of a bracket.
BracketCycle = Callable[[int, int, int], tuple[tuple[int, int], ...]]


def one_size(n_rungs: int, eta: int, size: int) -> tuple[tuple[int, int], ...]:
    """Brackets of the study's size that all have every rung."""
    return ((size, 0),)


@dataclass(frozen=True)
class RungKind:
    """One row of the registry.

    Attributes:
        summary: what it does, in one line.
        source: the paper that it follows.
        record: makes the record of one rung from eta, where each newcomer is compared with those before it; None where
            all of a bracket are compared at once.
        cycle: sizes of the brackets.
        is_multi_objective: whether it compares by all objectives; others compare by one.
        has_rungs: False where nothing is ever compared.
        max_bracket: how many candidates it can compare; None for any number.
        is_scheduled: whether the cluster's scheduler decides, while a candidate trains alone, and not the plan.
    """

    summary: str
    source: str
    record: Callable[[int], Record] | None = None
    cycle: BracketCycle = one_size
    is_multi_objective: bool = False
    has_rungs: bool = True
    max_bracket: int | None = None
    is_scheduled: bool = False

    @property
    def has_bracket_size(self) -> bool:
        """Whether the study's size of a bracket matters."""
        return self.has_rungs and self.cycle is one_size and not self.is_scheduled
