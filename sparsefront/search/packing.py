"""Which candidates train in one batch: the packs of least total work, with their predicted time.

Candidates of unequal size share a pack by padding every tensor to the largest of the pack. A large pack saves launches,
a small one saves padding; the plan weighs the two by a cost model.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sparsefront.spaces.shape import Shape

#: Smaller packs are not tried if this share of the workers' time, or less, is idle.
_IDLE_SHARE = 0.05

#: Forward and backward passes cost three times the forward pass, of two operations a multiply-accumulate.
_FLOPS_PER_MAC = 6

#: Fewer candidates than this are not halved any further.
_LEAF = 4

#: Packs of a block, of which the prices are held; candidates with which they end, at least; and their lanes at first.
_BLOCK, _COLUMNS, _REACH = 2**18, 256, 32

#: Packs that are priced at once: a core's own cache holds them.
_AT_ONCE = 2**15

#: A pack is left aside for a better one only if it is worse by more than rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class PackCost:
    """Time of a pack on one device: start + steps x (launch + lanes x (lane + operations + parameters)).

    Lanes are padded, but for ragged ones on a device that has `product_s`: these take their own size only.

    Attributes:
        launch_s: of a step, however many lanes.
        lane_s: of a lane in a step, however small.
        flops_per_s: floating-point operations.
        elementwise_per_s: parameters that the optimiser updates.
        start_s: of a pack, however long: its gradients are recorded, and a trial of Tune begins and ends.
        output_s: of an output of a convolution, for each example: of small ones memory takes longer than arithmetic.
        product_s: of the three products with a weight tensor, however small, of a lane that is not padded.
        unit_s: of an output of such a lane, for each example, besides.
    """

    launch_s: float
    lane_s: float
    flops_per_s: float
    elementwise_per_s: float
    start_s: float = 0.0
    output_s: float = 0.0
    product_s: float = 0.0
    unit_s: float = 0.0


#: One core of an Intel Xeon with AMX, torch 2.13, one thread, float32, Adam. Launches, lanes and operations were fitted
#: to steps of 1 to 48 multilayer perceptrons 40-w-...-10 of one to three hidden layers of 8 to 128 units, batch 32 or
#: 100, before the optimiser was fused and gradients came without copies; the fused optimiser was timed by itself since
#: (0.7 to 0.9 ms for 690,000 parameters). A recording takes 25 ms, a trial 10 to 30 ms. An output of three convolutions
#: of 8 to 48 channels takes 9 to 25 ns in packs of 4 and 16 lanes, batch 100. Of lanes that are not padded, a small
#: product takes 1.2 to 2 us, and an activation with its slope 0.3 ns an output and example. A plan depends on ratios
#: only.
CPU_COST = PackCost(
    launch_s=2.4e-4,
    lane_s=5.7e-6,
    flops_per_s=1.0e11,
    elementwise_per_s=9e8,
    start_s=0.05,
    output_s=1.2e-8,
    product_s=4.5e-6,
    unit_s=4e-10,
)

#: An order of magnitude for a data-centre GPU, not fitted to measurements.
GPU_COST = PackCost(launch_s=1e-3, lane_s=0.0, flops_per_s=1e13, elementwise_per_s=2e10, start_s=0.1)


@dataclass(frozen=True)
class PlannedPack:
    """Candidates that train together.

    Attributes:
        indices: of the candidates, in the order in which the plan was given them.
        padded: shape of every tensor, large enough for all of them.
        predicted_s: seconds that the segment will take.
    """

    indices: tuple[int, ...]
    padded: tuple[tuple[int, ...], ...]
    predicted_s: float


def plan_packs(
    shapes: Sequence[Shape],
    steps: Sequence[int],
    *,
    cost: PackCost,
    max_lanes: int,
    workers: int = 1,
) -> list[PlannedPack]:
    """Part candidates into packs of least total predicted time.

    Lanes of a pack are of one group and train the same number of steps. Candidates that may travel together are put in
    two orders, by size and by halving the set along its longest side; contiguous packs are cut from each by dynamic
    programming, optimally for that order, and the cheaper partition is taken.

    If that leaves workers idle, the work of a pack (padding left aside) is limited: to about the share of a worker, to
    half or to a quarter of it. The plan that is predicted to end first is taken.

    Args:
        shapes: of n candidates.
        steps: (n,) optimiser steps that each trains in this segment, at least 1.
        cost: of a step on one worker.
        max_lanes: of a pack, at least 1.
        workers: that the packs are for.

    Returns:
        Packs, the longest first; every candidate is in one. The shapes in each pack, though not which of equal
        candidates, are independent of the order of the candidates.

    Cost: O(n x max_lanes) for n candidates that may travel together; less where their sizes differ, as packs much
    larger than the best are not priced: 6,000 networks of three widths of 8 to 300, 4,096 lanes at most, take 0.1 s by
    `CPU_COST` and 0.7 s by `GPU_COST`.

    >>> small, large = (Shape("mlp", ((width, 40), (10, width)), (1, 1), 100) for width in (8, 512))
    >>> plan = plan_packs([small, large, small, large], [1000] * 4, cost=CPU_COST, max_lanes=64)
    >>> [pack.indices for pack in plan]
    [(1, 3), (0, 2)]
    """
    if max_lanes < 1 or workers < 1:
        raise ValueError(f"max_lanes={max_lanes}, workers={workers}: must be at least 1")
    together: dict[tuple[str, int, int, tuple[int, ...], tuple[int, ...], bool], list[int]] = {}
    for i, (shape, n_steps) in enumerate(zip(shapes, steps, strict=True)):
        dims = tuple(map(len, shape.tensors))
        key = (shape.group, n_steps, shape.batch_size, shape.positions, dims, shape.ragged and cost.product_s > 0)
        together.setdefault(key, []).append(i)
    classes = [
        (_RaggedClass if key[-1] else _Class)(shapes, together[key], key[1], cost, max_lanes)
        for key in sorted(together)
    ]

    def limited(limit_s: float) -> list[_Part]:
        plan = [part for one in classes for part in one.parts(limit_s)]
        return sorted(plan, key=lambda part: -part.seconds)

    best = limited(math.inf)
    for packs_each in (1, 2, 4):
        total_s = math.fsum(part.seconds for part in best)
        if total_s >= (1 - _IDLE_SHARE) * workers * _end_s(best, workers):
            break
        plan = limited(_work_limit_s(classes, max_lanes, packs_each * workers))
        best = min(best, plan, key=lambda plan: _end_s(plan, workers))
    return [part.of.pack(part) for part in best]


class _Part(NamedTuple):
    """Columns of a class that would be a pack, and its predicted seconds."""

    of: _Class
    columns: npt.NDArray[np.int64]
    seconds: float


class _Class:
    """Candidates that may travel together, by size, and what packs of them cost."""

    def __init__(
        self, shapes: Sequence[Shape], indices: Sequence[int], steps: int, cost: PackCost, max_lanes: int
    ) -> None:
        first, self._max_lanes = shapes[indices[0]], max_lanes
        self._dims = [len(tensor) for tensor in first.tensors]
        self.launch_s = cost.start_s + steps * cost.launch_s
        self._set_prices(first, steps, cost)
        # A row for every dimension of every tensor, a column for every candidate: padding is a maximum of columns.
        # Floats hold sizes exactly, and are multiplied faster.
        sizes = np.array([list(chain.from_iterable(shapes[i].tensors)) for i in indices], dtype=np.float64)
        rows = sizes.reshape(len(indices), sum(self._dims)).T.tolist()
        # Most rows are equal: a width is that of a weight, of its bias and of the next weight.
        places = {row: i for i, row in enumerate(dict.fromkeys(map(tuple, rows)))}
        self._row_of = [places[tuple(row)] for row in rows]
        distinct = np.array(list(places), dtype=np.float64).reshape(len(places), len(indices))
        by_size = np.lexsort((*distinct[::-1], self.seconds(distinct)))
        self._indices, self.sizes = np.array(indices)[by_size], distinct[:, by_size]
        self.work_s = self.seconds(self.sizes)

    def _set_prices(self, first: Shape, steps: int, cost: PackCost) -> None:
        """Seconds of a lane, for all steps of the segment: of each, and of its entries and outputs."""
        self._lane_s = steps * cost.lane_s
        # Seconds of an entry of each tensor.
        self._entry_s = [
            steps * (_FLOPS_PER_MAC * first.batch_size * uses / cost.flops_per_s + 1 / cost.elementwise_per_s)
            for uses in first.positions
        ]
        # And of an output, which is an entry of the first dimension at each of its places.
        self._output_s = [
            steps * first.batch_size * uses * cost.output_s if uses > 1 else 0.0 for uses in first.positions
        ]

    def seconds(self, sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Seconds of a lane of each size, for all steps of the segment: (distinct rows, ...) -> (...)."""
        seconds = np.full(sizes.shape[1:], self._lane_s)
        rows = iter(self._row_of)
        for n_dims, entry_s, output_s in zip(self._dims, self._entry_s, self._output_s, strict=True):
            tensor_s = np.full(sizes.shape[1:], entry_s)
            of_tensor = list(islice(rows, n_dims))
            for row in of_tensor:
                tensor_s *= sizes[row]
            seconds += tensor_s
            if output_s:
                seconds += output_s * sizes[of_tensor[0]]
        return seconds

    def parts(self, limit_s: float) -> list[_Part]:
        """The cheaper of the partitions by size and by halving."""
        partitions = [self._cut(order, limit_s) for order in self._orders]
        return min(partitions, key=lambda parts: math.fsum(part.seconds for part in parts))

    @cached_property
    def _orders(self) -> list[_Order]:
        n = len(self._indices)
        return [_Order(columns, min(self._max_lanes, n)) for columns in (np.arange(n), _by_halving(self.sizes))]

    def _cut(self, order: _Order, limit_s: float) -> list[_Part]:
        """Contiguous packs of least total time."""
        n = len(order.columns)
        work_s = np.concatenate([[0.0], np.cumsum(self.work_s[order.columns])])
        # A single candidate is a pack whatever its work.
        lows = np.searchsorted(work_s, work_s[1:] - limit_s * (1 + 1e-9))
        lows = np.minimum(np.maximum(lows, np.arange(1, n + 1) - order.most), np.arange(n)).tolist()
        least_s = np.zeros(n + 1)  # time of the best partition of the first j
        last = [(0, 0.0)] * (n + 1)  # where its last pack begins, and what that takes
        for stop, (low, (block, i)) in enumerate(zip(lows, order.ends(self), strict=True), start=1):
            while True:
                lanes_s = block.seconds[i, : stop - low][::-1]
                total_s = lanes_s + least_s[stop - len(lanes_s) : stop]
                best = int(total_s.argmin())
                # If a pack is worse than another by more than a launch, so are all that begin before it: divided where
                # it begins, they take a launch more and no more of anything else.
                enough_s = (total_s[best] + self.launch_s) * (1 + _ROUNDING)
                if len(lanes_s) == stop - low or total_s.max() > enough_s:
                    break
                block.reach_further(self)
            least_s[stop] = total_s[best] + self.launch_s
            last[stop] = stop - len(lanes_s) + best, self.launch_s + float(lanes_s[best])
        found = []
        stop = n
        while stop:
            start, seconds = last[stop]
            found.append(_Part(self, order.columns[start:stop], seconds))
            stop = start
        return found[::-1]

    def pack(self, part: _Part) -> PlannedPack:
        """A part of this class as the plan tells it."""
        largest = self.sizes[:, part.columns].max(axis=1).astype(int).tolist()
        dims = iter([largest[row] for row in self._row_of])
        padded = tuple(tuple(next(dims) for _ in range(n_dims)) for n_dims in self._dims)
        return PlannedPack(tuple(sorted(self._indices[part.columns].tolist())), padded, part.seconds)


class _RaggedClass(_Class):
    """Candidates that travel together without padding: a pack takes what its lanes take, so that it holds all it may.

    Neighbours by size share one all the same, as their weights are padded where they are kept between segments.
    """

    def _set_prices(self, first: Shape, steps: int, cost: PackCost) -> None:
        super()._set_prices(first, steps, cost)
        self._lane_s = steps * cost.product_s * sum(uses > 0 for uses in first.positions)
        self._output_s = [steps * first.batch_size * cost.unit_s if uses else 0.0 for uses in first.positions]

    def parts(self, limit_s: float) -> list[_Part]:
        """The fewest packs of neighbours."""
        cumulated = [0.0, *np.cumsum(self.work_s).tolist()]
        return [
            _Part(self, np.arange(start, stop), self.launch_s + (cumulated[stop] - cumulated[start]))
            for start, stop in _filled(cumulated, limit_s, self._max_lanes)
        ]


class _Order:
    """Candidates of a class in one order, and what packs of neighbours cost.

    Attributes:
        columns: (n,) columns of the class's sizes.
        most: lanes of a pack at most.
    """

    def __init__(self, columns: npt.NDArray[np.int64], most: int) -> None:
        self.columns, self.most = columns, most
        self._n_columns = max(_COLUMNS, _BLOCK // most)
        self._first: _Block | None = None

    def ends(self, of: _Class) -> Iterator[tuple[_Block, int]]:
        """For each column, the block of packs that has those that end with it, and their row there."""
        for start in range(0, len(self.columns), self._n_columns):
            block = self._first if start == 0 else None
            if block is None:
                n_before = min(start, self.most - 1)
                sizes = of.sizes[:, self.columns[start - n_before : start + self._n_columns]]
                block = _Block(sizes, n_before, self.most)
                block.reach_further(of)
            if start == 0:  # small classes have no other block, and are asked again with another limit
                self._first = block
            for i in range(len(block.seconds)):
                yield block, i


class _Block:
    """What packs of neighbours cost that end with some columns, up to a number of lanes.

    Attributes:
        seconds: (columns, lanes) of the lanes of the packs that end with each, the smallest pack first; those that
            would begin before the first column have any number.
    """

    def __init__(self, sizes: npt.NDArray[np.float64], n_before: int, most: int) -> None:
        # Its class is told with each question: two that knew each other would stay until garbage is looked for.
        self._sizes = np.pad(sizes, ((0, 0), (most - 1 - n_before, 0)))
        self._most = most
        self._padded = np.zeros((len(sizes), sizes.shape[1] - n_before))
        self.seconds = np.empty((sizes.shape[1] - n_before, 0))

    def reach_further(self, of: _Class) -> None:
        """Price packs of more lanes: of twice as many as yet."""
        n, done = self.seconds.shape
        reach = min(self._most, max(_REACH, 2 * done))
        seconds = np.empty((n, reach))
        seconds[:, :done] = self.seconds
        at_once = max(1, _AT_ONCE // n)
        for first in range(done, reach, at_once):
            lanes = range(first, min(first + at_once, reach))
            # Of the pack of k + 1 lanes that ends with a column: that of k lanes, and one column more before it.
            padded = np.empty((len(self._sizes), len(lanes), n))
            before = self._padded
            for i, k in enumerate(lanes):
                begins = self._most - 1 - k
                before = np.maximum(before, self._sizes[:, begins : begins + n], out=padded[:, i])
            self._padded = before.copy()
            each_s = of.seconds(padded)
            each_s *= np.arange(lanes.start + 1, lanes.stop + 1)[:, None]
            seconds[:, lanes.start : lanes.stop] = each_s.T
        self.seconds = seconds


def _by_halving(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Order of columns in which neighbours are alike in every row: halved at the median of the row of largest ratio."""
    varying = sorted(row for row in map(tuple, sizes.tolist()) if min(row) < max(row))
    if not varying:
        return np.arange(sizes.shape[1])
    logarithms = np.log2(np.array(varying) + 1.0)
    ordered: list[npt.NDArray[np.int64]] = []
    waiting = [np.arange(sizes.shape[1])]
    while waiting:
        columns = waiting.pop()
        if len(columns) <= _LEAF:
            ordered.append(columns)
            continue
        own = logarithms[:, columns]
        ranges = np.maximum.reduce(own, axis=1) - np.minimum.reduce(own, axis=1)
        longest = int(ranges.argmax())
        if not ranges[longest]:
            ordered.append(columns)
            continue
        columns = columns[own[longest].argsort(kind="stable")]
        waiting += [columns[len(columns) // 2 :], columns[: len(columns) // 2]]
    return np.concatenate(ordered)


def _work_limit_s(classes: Sequence[_Class], max_lanes: int, n_wanted: int) -> float:
    """The least that packs need hold at most, if there may be `n_wanted` - 1 more than without a limit.

    That is at most the `n_wanted`-th part of all work, plus the work of the largest candidate: but for the last of a
    class and those of most lanes, every pack cut at this limit holds more than that part.
    """
    cumulated = [[0.0, *np.cumsum(one.work_s).tolist()] for one in classes]

    def n_packs(limit_s: float) -> int:
        return sum(1 for work_s in cumulated for _ in _filled(work_s, limit_s, max_lanes))

    high = math.fsum(work_s[-1] for work_s in cumulated)
    low = high / n_wanted / 2
    n_most = n_packs(high) + n_wanted - 1
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if n_packs(middle) <= n_most else (middle, high)
    return high


def _filled(cumulated_s: Sequence[float], limit_s: float, max_lanes: int) -> Iterator[tuple[int, int]]:
    """Start and stop of packs that are filled one after the other up to a limit of work, given what all before take."""
    start, n = 0, len(cumulated_s) - 1
    while start < n:
        fits = bisect.bisect_right(cumulated_s, cumulated_s[start] + limit_s * (1 + 1e-12)) - 1
        stop = min(max(fits, start + 1), start + max_lanes, n)
        yield start, stop
        start = stop


def _end_s(plan: Sequence[_Part], workers: int) -> float:
    """When the last worker ends if each takes the longest pack that is left."""
    ends_s = [0.0] * workers
    for part in plan:
        heapq.heapreplace(ends_s, ends_s[0] + part.seconds)
    return max(ends_s)
