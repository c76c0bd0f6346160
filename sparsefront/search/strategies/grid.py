"""Grid search: every combination of a few values of each dimension once, in a random order that nobody has to store.

Own code rather than Optuna's `GridSampler`, which keeps the list of all combinations in the study's storage, cannot say
candidate i without the ones before it, and knows no conditional dimensions.

References: Bergstra and Bengio, Random search for hyper-parameter optimization, JMLR 2012 (why not to use it); Black
and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002 (the order: a Feistel network with cycle walking).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from sparsefront.search.strategies.strategy import History, Options, Strategy, Task
from sparsefront.spaces.domains import Bits, Choice, Domain, Integer, Point, Value
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space

_ROUNDS = 6


class GridOptions(Options):
    """How fine the grid is."""

    levels: int = Field(
        default=5, ge=2, le=1000, description="values of each numeric dimension, ends included; choices are all taken"
    )


def permuted(index: int, n: int, key: bytes) -> int:
    """Image of `index` under a pseudo-random permutation of 0..n-1; n may be of any size.

    >>> sorted(permuted(i, 100, b"key") for i in range(100)) == list(range(100))
    True
    """
    half = ((n - 1).bit_length() + 1) // 2
    low = (1 << half) - 1
    while True:  # less than four times on average: the power of four above n is below 4 n
        left, right = index >> half, index & low
        for step in range(_ROUNDS):
            message = step.to_bytes(1, "big") + right.to_bytes(half // 8 + 1, "big")
            word = int.from_bytes(hashlib.shake_128(key + message).digest(half // 8 + 1), "big")
            left, right = right, left ^ (word & low)
        index = left << half | right
        if index < n:
            return index


def levels_of(domain: Domain, levels: int) -> list[Value]:
    """Values of one dimension on the grid: all choices; numbers at equal distances on their scale, with the ends.

    >>> from sparsefront.spaces import domains
    >>> levels_of(Integer(1, 3), 5), levels_of(domains.Float(1e-3, 1e-1, log=True), 3), levels_of(Choice(("a", "b")), 1)
    ([1, 2, 3], [0.001, 0.01, 0.1], ['a', 'b'])
    """
    assert not isinstance(domain, Bits)
    if isinstance(domain, Choice):
        return list(domain.values)
    if isinstance(domain, Integer) and domain.n_values <= levels:
        return list(range(domain.low, domain.high + 1, domain.step))
    return list(dict.fromkeys(domain.decode(float(u)) for u in np.linspace(0, 1, levels)))


class _Cases:
    """The grid as cases, one for each combination of the dimensions that others depend on; in a case all is free."""

    def __init__(self, space: Space, levels: int) -> None:
        self._space = space
        values = {d.name: levels_of(d.domain, levels) for d in space.dimensions}
        parents = _parents(space)
        self._cases: list[tuple[dict[str, Value], list[tuple[str, list[Value]]]]] = []
        self._ends: list[int] = []
        total = 0
        for combination in itertools.product(*(values[name] for name in parents)):
            case = dict(zip(parents, combination, strict=True))
            free = [(d.name, values[d.name]) for d in space.dimensions if d.name not in case and d.is_active(case)]
            total += math.prod(len(v) for _, v in free)
            self._cases.append((case, free))
            self._ends.append(total)

    @property
    def total(self) -> int:
        """Points of the grid."""
        return self._ends[-1]

    def point(self, index: int) -> Point:
        """Point number `index` in the order of enumeration."""
        which = bisect.bisect_right(self._ends, index)
        case, free = self._cases[which]
        rest = index - (self._ends[which - 1] if which else 0)
        chosen = dict(case)
        for name, values in free:
            rest, digit = divmod(rest, len(values))
            chosen[name] = values[digit]
        return {d.name: chosen[d.name] for d in self._space.dimensions if d.name in chosen}


def _parents(space: Space) -> list[str]:
    """Names of the dimensions that conditions of others refer to, in the space's order."""
    named = {d.condition.dimension for d in space.dimensions if d.condition is not None}
    return [name for name in space.names if name in named]


class _Grid:
    def __init__(self, task: Task, options: GridOptions) -> None:
        self._cases = _Cases(task.space, options.levels)
        self._key = philox_key(task.seed, "grid", task.replicate).tobytes()

    def propose(self, history: History, numbers: range) -> list[Point]:
        total = self._cases.total
        return [self._cases.point(permuted(number, total, self._key)) for number in numbers if number < total]


class Grid:
    """Every combination of a few levels; a run ends when it has seen all of them."""

    summary = "every combination of a few values of each dimension, once, in a random order"
    source = "convention; Bergstra and Bengio 2012 show why random draws are better"
    is_adaptive = False
    options = GridOptions

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Masks cannot be enumerated."""
        if space.bits is not None:
            return "searched mask bits cannot be enumerated: use strategy 'random', 'size_stratified' or 'evolution'"
        return None

    def n_points(self, space: Space, options: Options) -> int:
        """Points of the grid: after so many there are no more."""
        assert isinstance(options, GridOptions)
        return _Cases(space, options.levels).total

    def make(self, task: Task, options: Options) -> Strategy:
        """The grid of one run, in the order of its replicate."""
        assert isinstance(options, GridOptions)
        return _Grid(task, options)
