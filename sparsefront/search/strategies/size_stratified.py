"""Random search that is uniform over the logarithm of the parameter count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sparsefront.errors import SparsefrontError
from sparsefront.search.strategies.strategy import History, Options, Strategy, Task
from sparsefront.spaces.domains import Point
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.spaces.space import Space

#: Candidates that share one pool of draws. Part of what a number means: changing it changes every candidate.
_BLOCK = 64
#: Draws from which the range of sizes is taken.
_RANGE_DRAWS = 1024


class SizeStratifiedOptions(Options):
    """How finely sizes are told apart, and how many draws are looked at."""

    bins: int = Field(default=32, ge=1, le=4096, description="strata of log n_params")
    pool: int = Field(default=32, ge=1, le=1024, description="draws of the space for each candidate")


class _SizeStratified:
    def __init__(self, task: Task, options: SizeStratifiedOptions) -> None:
        self._task = task
        self._options = options
        self._blocks: dict[int, list[Point]] = {}

    def propose(self, history: History, numbers: range) -> list[Point]:
        points = []
        for number in numbers:
            block = number // _BLOCK
            if block not in self._blocks:
                self._blocks = {block: self._block(block)}
            points.append(self._blocks[block][number % _BLOCK])
        return points

    def _draw(self, purpose: str, start: int, stop: int) -> tuple[list[Point], npt.NDArray[np.float64]]:
        """Raw draws and their log n_params."""
        task = self._task
        points = task.space.draw(philox_key(task.seed, purpose, task.replicate), start, stop)
        return points, np.array([self._size(point) for point in points])

    def _size(self, point: Point) -> float:
        """Log n_params; NaN where there is no such network, or it would not be trained."""
        try:
            costs = self._task.costs(point)
        except SparsefrontError:
            return math.nan
        known = [c for c in self._task.space.constraints if c.is_known_before_training]
        if any(c.violation(float(costs[c.quantity])) > 0 for c in known):
            return math.nan
        return math.log(max(1.0, costs["n_params"]))

    @cached_property
    def _edges(self) -> npt.NDArray[np.float64]:
        """(bins - 1,) inner edges of the strata, between the smallest and the largest of a fixed set of draws."""
        _, sizes = self._draw("size_range", 0, _RANGE_DRAWS)
        sizes = sizes[np.isfinite(sizes)] if np.isfinite(sizes).any() else np.zeros(1)
        return np.linspace(sizes.min(), sizes.max(), self._options.bins + 1)[1:-1]

    def _block(self, block: int) -> list[Point]:
        """The 64 candidates of one block: for each a stratum drawn uniformly, and a draw of the pool that lies in it.

        A stratum without a draw left gives one of the nearest stratum that has some; no draw is given twice. When none
        is left that exists and meets the constraints, the others follow: they count for nothing, and a run that has
        proposed too many of them ends with the constraints that are to blame.
        """
        n_pool = _BLOCK * self._options.pool
        points, sizes = self._draw("size_pool", block * n_pool, (block + 1) * n_pool)
        bins = np.searchsorted(self._edges, sizes, side="right")
        rng = generator(self._task.seed, "size_stratum", self._task.replicate, block)
        targets = rng.integers(self._options.bins, size=_BLOCK)
        is_left = np.isfinite(sizes)
        others = iter(np.flatnonzero(~is_left))
        found = []
        for target in targets:
            if not is_left.any():
                found.append(points[next(others)])
                continue
            distance = np.where(is_left, np.abs(bins - target), self._options.bins)
            chosen = int(np.argmin(distance))  # the first: draws of a stratum come in no particular order
            is_left[chosen] = False
            found.append(points[chosen])
        return found


class SizeStratified:
    """Random search for those who want small networks to be visited."""

    summary = "random draws chosen so that log n_params is uniform: plain random search hardly visits small networks"
    source = "stratified sampling; Radosavovic et al. 2020 compare networks by size alike"
    is_adaptive = False
    options = SizeStratifiedOptions

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Every space can be drawn from."""
        return None

    def make(self, task: Task, options: Options) -> Strategy:
        """The draws of one run; looks at `pool` draws of the space for each candidate."""
        assert isinstance(options, SizeStratifiedOptions)
        return _SizeStratified(task, options)
