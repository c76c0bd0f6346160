"""Search studies with a simulated clock: strategies and rungs at any scale, without training anything.

The real `Exploration` is driven by imaginary workers. What a candidate would reach is told by an objective: a synthetic
one, or the curves of a finished study.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparsefront.errors import ConfigError
from sparsefront.search.attainment import arm_outcomes, attain, attainment_columns, mean_curves
from sparsefront.search.design import SearchArm, SearchDesign
from sparsefront.search.exploration import Exploration, Totals
from sparsefront.search.garbage import rare_collections
from sparsefront.search.packing import PackCost
from sparsefront.search.points import points_from_rows
from sparsefront.search.schema import SCHEMA
from sparsefront.search.work import Decision, Describe, Described, SegmentWork, Sets
from sparsefront.spaces.domains import Point
from sparsefront.spaces.space import Space

Floats = npt.NDArray[np.float64]


class _Row(NamedTuple):
    """What a simulated study commits of a candidate: of the ledger's columns, those that can be told."""

    stage: str
    arm: str
    replicate: int
    target_sparsity: float
    slot: int
    outcome: str | None
    candidate: str | None
    checkpoint: str | None = None
    rung: int | None = None
    reused: bool = False
    steps: int = 0
    n_params: int | None = None
    macs: int | None = None
    weight_sparsity: float | None = None
    node_sparsity: float | None = None
    val_loss: float | None = None
    val_error: float | None = None
    initial_loss: float | None = None
    scalefree_loss: float | None = None
    passes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0


#: Columns of the rows of a simulated study.
COLUMNS = _Row._fields
_SCHEMA = pa.schema([SCHEMA.field(name) for name in COLUMNS])
#: Candidates that are on their way at a time, roughly.
_POINTS_REMEMBERED = 65_536
#: Batches of simulated rows that are joined into one.
_BATCHES_JOINED = 256

#: Loss before training, as of guessing one of ten classes.
_START_LOSS = math.log(10)


@dataclass(frozen=True)
class Query:
    """What an objective is asked: a candidate, and how long it was trained (`step` of `described.steps`)."""

    arm: SearchArm
    replicate: int
    point: Point
    described: Described
    step: int


class Objective(Protocol):
    """Tells what a candidate would have reached; one row of the registry, or a finished study."""

    def __call__(self, query: Query, /) -> tuple[float, float]:
        """(validation loss in nats, validation error as a fraction); a loss that is not finite has diverged."""


@dataclass(frozen=True)
class Synthetic:
    """One row of the registry of synthetic objectives."""

    summary: str
    objective: Objective


def bowl(query: Query) -> tuple[float, float]:
    """A smooth bowl over the unit cube with its optimum at 0.3, reached along an exponential learning curve."""
    final = 0.2 + 4.0 * _distance(query) + _noise(query)
    loss = final + (_START_LOSS - final) * math.exp(-5.0 * _progress(query))
    return loss, _error(loss)


def tradeoff(query: Query) -> tuple[float, float]:
    """The bowl, to which small networks add what they lack: error falls with the logarithm of the parameters."""
    capacity = max(0.0, 1.0 - math.log10(max(1, query.described.n_params)) / 6.0)
    final = 0.05 + 1.5 * capacity + 2.0 * _distance(query) + _noise(query)
    loss = final + (_START_LOSS - final) * math.exp(-5.0 * _progress(query))
    return loss, _error(loss)


def inverted(query: Query) -> tuple[float, float]:
    """A plateau, higher for the better candidates, then the bowl at once: the best learn last, after half the training.

    Rungs in the first half keep the worst; a first rung beyond it keeps the best.
    """
    distance = _distance(query)
    final = 0.2 + 4.0 * distance + _noise(query)
    learns_at = 0.5 * (1.0 - min(1.0, 2.0 * distance))
    loss = final if _progress(query) >= learns_at else _START_LOSS + 0.1 * (_START_LOSS - final)
    return loss, _error(loss)


SYNTHETIC: Mapping[str, Synthetic] = {
    "bowl": Synthetic("a smooth bowl with exponential learning curves", bowl),
    "tradeoff": Synthetic("the bowl, with an error that falls as the network grows", tradeoff),
    "inverted": Synthetic("the best in the end are the worst at first: early ranking is inverted", inverted),
}


def _distance(query: Query) -> float:
    """Mean squared distance from 0.3 in the unit cube; inactive dimensions are left out."""
    unit = query.arm.space.encode([query.point])[0]
    active = unit[~np.isnan(unit)]
    return float(np.add.reduce((active - 0.3) ** 2)) / len(active) if len(active) else 0.0


def _progress(query: Query) -> float:
    return query.step / query.described.steps


def _noise(query: Query) -> float:
    """A replicate's luck: a hundredth, the same whenever it is asked."""
    return 0.01 * (int(query.described.id[:8], 16) / 0xFFFFFFFF)


def _error(loss: float) -> float:
    return 0.9 * (1.0 - math.exp(-loss))


@dataclass(frozen=True)
class _OnRecord:
    """What a study recorded of one candidate.

    Attributes:
        curve: (n, 3) step, validation loss and error, by step; n may be 0.
        ended: what ended it: 'completed', 'stopped', or a failure.
        steps: that it was trained for.
    """

    curve: Floats
    ended: str
    steps: int

    def at(self, step: int) -> tuple[float, float] | None:
        """Loss and error at a step, not finite once it had failed; None where the record does not tell."""
        if self.ended not in ("completed", "stopped") and step >= self.steps:
            return math.inf, math.inf
        if not len(self.curve) or (self.ended == "stopped" and step > self.steps):
            return None
        i = int(np.searchsorted(self.curve[:, 0], step, side="right")) - 1
        _, loss, error = self.curve[max(0, i)]
        return float(loss), float(error)


class LedgerObjective:
    """A finished study, asked again: what is on record gets its own curve, all else that of the nearest candidate.

    A candidate that was stopped or failed has its own curve as far as it came, so that the study's own rungs are
    repeated exactly over the steps that were evaluated (in between, the last evaluation before counts); one that failed
    fails again. Beyond that, and off the record, the curve is that of the nearest candidate that was trained to its
    end: in the unit cube of the space, within the replicate; of equals those of the same arm, then the first. A
    strategy that goes elsewhere sees a surface of plateaus, no finer than the record.

    Args:
        rows: of stages 'rung' and 'trained', with the columns of the space and the curves.
        design: of that study.

    Raises:
        ConfigError: nothing of a replicate was trained to its end, or mask bits were searched: they have no distance.
    """

    columns = (
        "stage", "arm", "replicate", "slot", "candidate", "outcome", "reused", "steps", "val_loss", "val_error",
        "curve_step", "curve_val_loss", "curve_val_error",
    )  # fmt: skip

    def __init__(self, rows: pa.Table, design: SearchDesign) -> None:
        self._completed: dict[int, list[tuple[SearchArm, Point, _OnRecord]]] = {}
        self._own: dict[tuple[int, str], dict[str, _OnRecord]] = {}
        self._units: dict[tuple[int, str], tuple[Floats, npt.NDArray[np.bool_]]] = {}
        for arm in design.arms:
            if arm.space.bits is not None:
                raise ConfigError(
                    f"arm {arm.name!r}: searched mask bits have no distance; simulate a synthetic objective instead"
                )
        arms = {arm.name: arm for arm in design.arms}
        curves: dict[tuple[str, int, int], dict[int, tuple[float, float]]] = {}
        ends: dict[tuple[str, int, int], tuple[int, dict[str, Any]]] = {}
        for i, row in enumerate(rows.select(self.columns).to_pylist()):
            key = row["arm"], row["replicate"], row["slot"]
            if key[0] not in arms or row["stage"] not in ("rung", "trained") or row["reused"]:
                continue
            curve = curves.setdefault(key, {})
            measured = (row[name] or () for name in self.columns[-3:])
            for step, loss, error in zip(*measured, strict=True):
                curve.setdefault(step, (loss, error))
            is_measured = row["val_loss"] is not None and row["val_error"] is not None
            if is_measured and (row["stage"] == "rung" or row["outcome"] == "completed"):
                # What was decided by, to the last bit: curves hold single precision.
                curve[row["steps"]] = row["val_loss"], row["val_error"]
            if row["stage"] == "trained" and row["outcome"] != "infeasible":
                ends[key] = i, row
        for arm in design.arms:
            mine = {key: end for key, end in ends.items() if key[0] == arm.name and _has_point(end[1])}
            points = points_from_rows(
                rows.take(pa.array([i for i, _ in mine.values()], type=pa.int64())), arm.space, _no_blob
            )
            for (key, (_, row)), point in zip(mine.items(), points, strict=True):
                points_of_curve = sorted((step, *measured) for step, measured in curves[key].items())
                known = np.array(points_of_curve, dtype=np.float64).reshape(-1, 3)
                one = _OnRecord(known, row["outcome"], row["steps"] or 0)
                # Exact: the space of a record does not know what of a point takes effect, and that of a study does.
                self._own.setdefault((key[1], arm.space.digest(point, exact=True)), {}).setdefault(arm.name, one)
                if one.ended == "completed" and len(known):
                    self._completed.setdefault(key[1], []).append((arm, point, one))
        missing = [r for r in range(design.replicates) if r not in self._completed]
        if missing:
            raise ConfigError(
                f"replicate {missing[0]}: no candidate with a curve completed; there is nothing to replay"
            )

    def __call__(self, query: Query, /) -> tuple[float, float]:
        """Loss and error at the step, of the candidate itself or of the nearest one."""
        own = self._own.get((query.replicate, query.arm.space.digest(query.point, exact=True)), {})
        same = own.get(query.arm.name) or next(iter(own.values()), None)
        found = None if same is None else same.at(query.step)
        if found is None:
            found = self._nearest(query).at(query.step)
            assert found is not None, "what completed has a curve"
        return found

    def _nearest(self, query: Query) -> _OnRecord:
        space, known = query.arm.space, self._completed[query.replicate]
        key = query.replicate, query.arm.name
        if key not in self._units:
            units = np.concatenate([_encoded(space, arm.space, point) for arm, point, _ in known])
            self._units[key] = units, np.array([arm.name != query.arm.name for arm, _, _ in known])
        (units, is_other), asked = self._units[key], space.encode([query.point])[0]
        gaps = np.abs(units - asked)
        # Where only one of the two has the dimension, they are as far apart as can be.
        gaps = np.where(np.isnan(gaps), (np.isnan(units) != np.isnan(asked)).astype(np.float64), gaps)
        distances = np.square(gaps).sum(axis=1)
        nearest = np.flatnonzero(distances == distances.min())
        return known[int(nearest[np.argmin(is_other[nearest])])][2]


def _has_point(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a candidate: one that says that its strategy raised is not."""
    return row["outcome"] in ("completed", "stopped") or row["candidate"] is not None


def _encoded(space: Space, own: Space, point: Point) -> Floats:
    """A point of one space in the unit cube of another: what that has not is inactive."""
    if own is space:
        return space.encode([point])
    return space.encode(
        [{n: v for n, v in point.items() if n in space.by_name and space.by_name[n].domain.contains(v)}]
    )


def _no_blob(digest: str) -> bytes:
    raise ConfigError(f"mask {digest}: searched mask bits cannot be simulated")


@dataclass(frozen=True)
class Simulated:
    """What a simulated study took.

    Attributes:
        makespan_s: from the beginning to the last result, simulated.
        utilisation: fraction of the workers' time that they worked.
        n_packs: that were handed out.
        lanes_each: mean candidates in a pack.
        totals: what became of the candidates.
        stopped: candidates stopped, by arm and rung.
        n_rows: that a ledger would have held.
    """

    makespan_s: float
    utilisation: float
    n_packs: int
    lanes_each: float
    totals: Totals
    stopped: Mapping[str, Mapping[int, int]]
    n_rows: int


@rare_collections()
def simulate(
    design: SearchDesign,
    describe: Describe,
    objective: Objective,
    *,
    workers: int,
    max_lanes: int,
    pack_cost: PackCost,
    seconds: Callable[[SegmentWork], float] | None = None,
    on_rows: Callable[[pa.RecordBatch], object] | None = None,
) -> Simulated:
    """Run a search study with imaginary workers and a clock that jumps from result to result.

    Deterministic: packs that end at the same moment end in the order in which they were handed out.

    Args:
        design: of the study.
        describe: tells what a candidate is.
        objective: tells what it would reach.
        workers: packs at once.
        max_lanes: candidates in a pack.
        pack_cost: for packing.
        seconds: what a pack takes; by default what the packing predicts.
        on_rows: called with the rows of every commit, in order; columns `COLUMNS`.

    Raises:
        SparsefrontError: as `Exploration`.
    """
    describe = _remembering(describe)
    exploration = Exploration(design, describe, pack_cost=pack_cost, workers=workers, max_lanes=max_lanes)
    arms = {arm.name: arm for arm in design.arms}
    stopped: dict[str, Counter[int]] = {name: Counter() for name in arms}
    running: list[tuple[float, int, float, SegmentWork]] = []
    now_s, busy_s, n_packs, n_lanes, n_rows = 0.0, 0.0, 0, 0, 0

    def commit(batch: pa.RecordBatch) -> None:
        nonlocal n_rows
        n_rows += batch.num_rows
        exploration.absorb(batch)
        if on_rows is not None:
            on_rows(batch)

    def commit_decided() -> None:
        while decisions := exploration.decided():
            for decision in decisions:
                if decision.rung is not None and decision.reused_from is None:
                    stopped[decision.arm][decision.rung] += 1
            commit(_batch([_decided_row(decision) for decision in decisions]))

    commit_decided()
    while True:
        while len(running) < workers and (work := exploration.next_work()) is not None:
            took_s = work.predicted_s if seconds is None else seconds(work)
            heapq.heappush(running, (now_s + took_s, n_packs, took_s, work))
            n_packs, n_lanes, busy_s = n_packs + 1, n_lanes + len(work.lanes), busy_s + took_s
        commit_decided()
        if not running:
            if exploration.is_done:
                break
            continue
        now_s, _, took_s, work = heapq.heappop(running)
        commit(_batch(_segment_rows(work, arms, describe, objective, took_s / len(work.lanes))))
        exploration.finished(work)
        commit_decided()
    return Simulated(
        makespan_s=now_s,
        utilisation=busy_s / (workers * now_s) if now_s else 1.0,
        n_packs=n_packs,
        lanes_each=n_lanes / n_packs if n_packs else 0.0,
        totals=exploration.totals(),
        stopped={name: dict(sorted(counts.items())) for name, counts in stopped.items()},
        n_rows=n_rows,
    )


def _remembering(describe: Describe) -> Describe:
    """The same function, which knows the points that it was asked about last: plan and workers ask for each."""
    known: OrderedDict[tuple[int, int], tuple[Point, Described]] = OrderedDict()

    def remembered(replicate: int, point: Point, space: Sets) -> Described:
        key = replicate, id(point)  # the point is held, so that its id stays taken
        found = known.get(key)
        if found is None:
            found = known[key] = point, describe(replicate, point, space)
            if len(known) > _POINTS_REMEMBERED:
                known.popitem(last=False)
        return found[1]

    return remembered


def _segment_rows(
    work: SegmentWork, arms: Mapping[str, SearchArm], describe: Describe, objective: Objective, seconds: float
) -> list[_Row]:
    """What a worker would report of a pack."""
    rows = []
    for lane, stop, rung in zip(work.lanes, work.stops, work.rung, strict=True):
        arm = arms[lane.arm]
        described = describe(work.replicate, lane.point, arm.space)
        loss, error = objective(Query(arm, work.replicate, lane.point, described, stop))
        has_diverged = not math.isfinite(loss)
        is_end = rung is None or has_diverged
        passes = float((stop - lane.start_step) * described.shape.batch_size)
        rows.append(
            _Row(
                stage="trained" if is_end else "rung",
                arm=lane.arm,
                replicate=work.replicate,
                target_sparsity=0.0 if rung is None or has_diverged else float(rung),
                slot=lane.slot,
                outcome="diverged" if has_diverged else "completed" if is_end else None,
                candidate=lane.id,
                rung=None if has_diverged else rung,
                steps=stop,
                n_params=described.n_params,
                macs=described.macs,
                weight_sparsity=described.weight_sparsity,
                node_sparsity=described.node_sparsity,
                val_loss=None if has_diverged else loss,
                val_error=None if has_diverged else error,
                passes=passes,
                flops=6.0 * described.macs * passes,
                seconds=seconds,
            )
        )
    return rows


def _decided_row(decision: Decision) -> _Row:
    """The row that a driver commits for a decision."""
    described, values = decision.described, decision.values or {}
    row = _Row(
        stage="trained",
        arm=decision.arm,
        replicate=decision.replicate,
        target_sparsity=0.0,
        slot=decision.slot,
        outcome=decision.outcome,
        candidate=None if described is None else described.id,
        rung=decision.rung,
        reused=decision.reused_from is not None,
        steps=decision.steps,
        val_loss=values.get("val_loss"),
        val_error=values.get("val_error"),
        initial_loss=values.get("initial_loss"),
        scalefree_loss=values.get("scalefree_loss"),
    )
    if described is None:
        return row
    return row._replace(
        n_params=described.n_params,
        macs=described.macs,
        weight_sparsity=described.weight_sparsity,
        node_sparsity=described.node_sparsity,
    )


def _batch(rows: Sequence[_Row]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )


@dataclass(frozen=True)
class ArmSimulation:
    """What one arm of a simulated study attained, over its replicates.

    Attributes:
        arm: its name.
        quality: mean hypervolume at the end, as a fraction of the box; with one objective, the best value.
        low: of the interval over replicates; NaN for one.
        high: of that interval.
        passes: forward and backward passes; of a replicate as the mean over all, as are the next three.
        candidates: trained at least in part.
        reused: proposals that repeated an earlier one.
        infeasible: proposals that no network could follow from within the constraints.
        stopped_fraction: of the candidates, by rung.
        cost: grid of passes, and `curve` the mean quality there.
        curve: see `cost`.
    """

    arm: str
    quality: float
    low: float
    high: float
    passes: float
    candidates: float
    reused: float
    infeasible: float
    stopped_fraction: Mapping[int, float]
    cost: Floats
    curve: Floats


@dataclass(frozen=True)
class StudySimulation:
    """A simulated study: what it took and what its arms attained; `metric` names the quality.

    `remarks` are what is said of the study before it runs.
    """

    simulated: Simulated
    arms: tuple[ArmSimulation, ...]
    metric: str
    replicates: int
    remarks: tuple[str, ...] = ()

    def as_table(self) -> list[dict[str, object]]:
        """One row for each arm; all but shares and the quality's interval are means over replicates."""
        return [
            {
                "arm": arm.arm,
                self.metric: arm.quality,
                "low": arm.low,
                "high": arm.high,
                "passes": arm.passes,
                "candidates": _count(arm.candidates),
                "stopped_fraction": sum(arm.stopped_fraction.values()),
                "reused": _count(arm.reused),
                "infeasible": _count(arm.infeasible),
            }
            for arm in self.arms
        ]


class _Kept:
    """Columns of all rows, in batches that are joined now and then: many small ones cost far more than their data."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = [name for name in columns if name in _SCHEMA.names]
        self._joined: list[pa.Table] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Keep the columns of a batch."""
        self._batches.append(batch.select(self._columns))
        if len(self._batches) >= _BATCHES_JOINED:
            self._join()

    def _join(self) -> None:
        if self._batches:
            self._joined.append(pa.Table.from_batches(self._batches).combine_chunks())
            self._batches = []

    def table(self) -> pa.Table:
        """All of them."""
        self._join()
        schema = pa.schema([_SCHEMA.field(name) for name in self._columns])
        return pa.concat_tables(self._joined) if self._joined else schema.empty_table()


def simulate_study(
    design: SearchDesign,
    describe: Describe,
    objective: Objective,
    *,
    workers: int,
    max_lanes: int,
    pack_cost: PackCost,
    seconds: Callable[[SegmentWork], float] | None = None,
) -> StudySimulation:
    """Simulate a study and say what each arm attained; arguments as of `simulate`."""
    kept = _Kept(attainment_columns(design))
    simulated = simulate(
        design,
        describe,
        objective,
        workers=workers,
        max_lanes=max_lanes,
        pack_cost=pack_cost,
        seconds=seconds,
        on_rows=kept.add,
    )
    attainment = attain(kept.table(), design)
    outcomes = {one.arm: one for one in arm_outcomes(attainment, design)}
    arms = []
    nothing = float(attainment.box.shown(attainment.box.worst))
    for mean in mean_curves(attainment, design):
        known, curves = outcomes[mean.arm], attainment.of(mean.arm)
        ends = [float(values[-1]) if len(values) else nothing for values in (mean.mean, mean.low, mean.high)]
        arms.append(
            ArmSimulation(
                arm=mean.arm,
                quality=ends[0],
                low=ends[1],
                high=ends[2],
                passes=float(np.mean([curve.total_cost for curve in curves])),
                candidates=known.n_candidates / design.replicates,
                reused=known.n_duplicates / design.replicates,
                infeasible=known.n_infeasible / design.replicates,
                stopped_fraction=known.stopped,
                cost=mean.cost,
                curve=mean.mean,
            )
        )
    return StudySimulation(simulated, tuple(arms), attainment.box.metric, design.replicates)


def _count(mean: float) -> float:
    """A mean of whole numbers, as such a number where it is one."""
    return int(mean) if mean.is_integer() else mean
