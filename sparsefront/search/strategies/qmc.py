"""Quasi-random search: a scrambled Sobol' sequence over the unit cube of the space.

SciPy's engine rather than Optuna's `QMCSampler`: Optuna keeps the next index in the study's storage, proposes its first
candidate at random, and makes a new engine for every candidate; here candidate i is row i of the sequence anywhere.

References: Sobol' 1967; Owen 1998 (scrambling); Bousquet et al., Critical hyper-parameters: no random, no cry, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sparsefront.search.strategies.strategy import History, Options, Strategy, Task
from sparsefront.spaces.domains import Point
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space

if TYPE_CHECKING:
    from scipy.stats import qmc


class QmcOptions(Options):
    """A quasi-random sequence has none."""


class _Qmc:
    def __init__(self, task: Task) -> None:
        self._task = task
        self._next = 0
        self._engine: qmc.Sobol | None = None

    def propose(self, history: History, numbers: range) -> list[Point]:
        return self._task.space.decode(self._rows(numbers))

    def _rows(self, numbers: range) -> npt.NDArray[np.float64]:
        """Rows of the sequence, (len(numbers), d); the engine goes on from where it stands if it can."""
        d = self._task.space.n_cube
        if not numbers or not d:
            return np.empty((len(numbers), d))
        if self._engine is None or self._next > numbers.start:
            from scipy.stats import qmc  # half a second, which other strategies need not wait for

            rng = np.random.default_rng(philox_key(self._task.seed, "qmc", self._task.replicate))
            self._engine, self._next = qmc.Sobol(d, scramble=True, rng=rng), 0
        if numbers.start > self._next:
            self._engine.fast_forward(numbers.start - self._next)
        # One row first: SciPy warns when a sequence begins with a number of rows that is no power of two.
        rows = (
            [self._engine.random(1), self._engine.random(len(numbers) - 1)]
            if len(numbers) > 1
            else [self._engine.random(1)]
        )
        self._next = numbers.stop
        return np.vstack(rows)


class Qmc:
    """Points that fill the space more evenly than random ones."""

    summary = "scrambled Sobol' sequence over the space: more even than random draws"
    source = "Sobol' 1967; Owen 1998; Bousquet et al. 2017"
    is_adaptive = False
    options = QmcOptions

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Masks have no place in a cube."""
        if space.bits is not None:
            return "searched mask bits have no coordinate: use strategy 'random', 'size_stratified' or 'evolution'"
        return None

    def make(self, task: Task, options: Options) -> Strategy:
        """The sequence of one run, scrambled by its replicate."""
        return _Qmc(task)
