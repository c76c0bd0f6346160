"""What a strategy is given and asked: the history of its run, and the next points of its space.

A *run* is one arm in one replicate. A strategy decides from the record alone: its answer is a function of its task, the
history and the candidates' numbers, so that a resumed study proposes what the killed one would have proposed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from sparsefront.spaces.domains import Point
from sparsefront.spaces.space import Space

#: What became of a candidate, as `History.outcomes` codes it; all that ended without a result (diverged, failed,
#: timeout, out of memory, lost) is FAILED.
COMPLETED, STOPPED, FAILED, INFEASIBLE, PENDING = range(5)


@dataclass(frozen=True)
class History:
    """Candidates 0..n-1 of one run, in the order of their numbers; arrays and points are read-only.

    Attributes:
        points: the n candidates; `dict(point)` is a copy that can be changed.
        losses: (n, m) float64, minimised; NaN unless completed.
        partial: (n, m) float64, minimised: what a stopped candidate had reached; NaN for all others.
        outcomes: (n,) int8 codes.
        fidelity: (n,) float64, fraction of the full training that was done, 0..1.
        violations: (n,) float64 >= 0: sum of what exceeds the constraints, relative to their bounds; 0 is feasible.
    """

    points: Sequence[Point]
    losses: npt.NDArray[np.float64]
    partial: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.int8]
    fidelity: npt.NDArray[np.float64]
    violations: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.outcomes)

    def succeeded(self, start: int = 0) -> npt.NDArray[np.bool_]:
        """(n - start,) bool: completed with finite losses; what a strategy may learn values from."""
        is_finite = np.isfinite(self.losses[start:]).all(axis=1)
        return np.asarray((self.outcomes[start:] == COMPLETED) & is_finite, dtype=np.bool_)

    def has_parents(self, population: int) -> bool:
        """Whether half a population came to its end, or none was stopped before: what is bred of few is like those."""
        if STOPPED not in self.outcomes:
            return True
        return int(np.count_nonzero((self.outcomes != STOPPED) & (self.outcomes != PENDING))) >= population // 2

    def fingerprint(self, n: int, *, is_partial: bool = True) -> int:
        """Checksum of what became of candidates 0..n-1: a cache made from them holds as long as it stays the same.

        Without `is_partial` it says nothing of how far those came that did not complete.
        """
        crc = 0
        partial = (self.partial, self.fidelity) if is_partial else ()
        for array in (self.losses, self.outcomes, self.violations, *partial):
            crc = zlib.crc32(np.ascontiguousarray(array[:n]).data, crc)
        return crc


@dataclass(frozen=True)
class Task:
    """What a strategy is made for.

    Attributes:
        space: where its points come from.
        seed: the study's.
        replicate: index of the replicate.
        objectives: names of what is minimised, in the order of the columns of `History.losses`.
        candidates: how many the run will train.
        batch: how many are proposed at once.
        costs: what a point will cost, computed without training: n_params, macs, weight_sparsity, node_sparsity.
    """

    space: Space
    seed: int
    replicate: int
    objectives: tuple[str, ...]
    candidates: int
    batch: int
    costs: Callable[[Point], Mapping[str, float]]


class Options(BaseModel):
    """Options of a strategy: frozen, unknown keys refused, every default visible."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Strategy(Protocol):
    """Proposes points; a pure function of its task, the history and the numbers (it may keep caches)."""

    def propose(self, history: History, numbers: range) -> list[Point]:
        """Candidates of these numbers; for an adaptive strategy they begin where the history ends.

        Fewer than asked for: the strategy has no more, and the run ends with these. Of a user's own this is recorded as
        a failure of its run, which says how many it had: rows alone could not tell it from a run that goes on.
        """


class StrategyFamily(Protocol):
    """One row of the registry; a user's own is a class like this, named ``package.module:Class``.

    One of ours that enumerates has `n_points(space, options)`, too: how many points it has.

    Attributes:
        summary: what it does, in one line.
        source: paper or convention that it follows.
        is_adaptive: whether proposals depend on earlier results.
        options: its options, with their defaults.
    """

    @property
    def summary(self) -> str: ...  # noqa: D102

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def is_adaptive(self) -> bool: ...  # noqa: D102

    @property
    def options(self) -> type[Options]: ...  # noqa: D102

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Why it cannot search this space for these objectives; None if it can."""

    def make(self, task: Task, options: Options) -> Strategy:
        """The strategy of one run."""
