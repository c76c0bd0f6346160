"""What each run of a search study had attained by the time it had spent so much: anytime hypervolume against cost.

A *run* is one arm in one replicate. Its candidates count in the order of their numbers, never in the order in which
they happened to finish, so that a curve is a function of the record and not of the machine. A candidate's cost is the
sum over all of its rows; what was stopped, diverged or failed costs and never attains anything, nor does a candidate
that breaks a constraint. Test results are never read.

The hypervolume is a fraction of a fixed box, so that arms, replicates and studies can be compared:

* errors and losses are linear, from 0 to what guessing gives (1 - 1/classes, ln(classes) nats; of images to restore to
  the error and the PSNR of those as they were, and to the largest loss seen); sparsities from 1 to 0;
* counts and costs (n_params, macs, passes, ...) are on a log10 scale, from 1 (seconds: 0.001) to a tenth beyond the
  largest that any candidate of the study completed with: a network half as large gains as much anywhere on the scale.

``SearchDesign.reference`` replaces these reference values; with it no curve can move while its study grows.

With a single objective there is no volume: the curve is the best value found so far, in the objective's own unit.

References: Zitzler and Thiele, PPSN 1998 (hypervolume); Lopez-Ibanez and Stuetzle, Automatically improving the anytime
behaviour of optimisation algorithms, EJOR 235, 2014 (anytime hypervolume).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import special

from sparsefront.search.columns import check_columns, numbers_in
from sparsefront.search.design import SearchArm, SearchDesign
from sparsefront.search.front import Batches, chunks, hypervolume, is_nondominated
from sparsefront.search.metrics import METRICS
from sparsefront.search.objective import OBJECTIVES, ideal_point, losses, objectives_named, worst_bounds
from sparsefront.search.schema import KEY, SCHEMA

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
RunKey = tuple[str, int]

#: Rungs were reached, but it is not known yet what becomes of the candidate.
PENDING = "pending"
#: Outcomes that a strategy's search is not charged with as a candidate: nothing was trained.
_UNTRAINED = "infeasible"

#: Smallest value of what is measured on a log10 scale.
_SMALLEST: Mapping[str, float] = {"n_params": 1.0, "macs": 1.0, "passes": 1.0, "flops": 1.0, "seconds": 1e-3}
#: The reference lies this factor beyond the largest value seen: a network at the edge still counts for something.
_BEYOND = 1.1
#: Improvements of a run whose hypervolume is computed; of more, this many evenly chosen ones and the last.
_MAX_VALUES = 1000
#: Sums of the same costs in another order differ by rounding.
_ROUNDING = 1e-9

_COSTS = ("passes", "flops", "seconds")


@dataclass(frozen=True)
class Run:
    """Candidates of one arm in one replicate, by ascending number; arrays of n candidates.

    ``losses`` is (n, m), minimised, and NaN unless the candidate completed and keeps the constraints; ``rung`` is -1
    unless it was stopped; ``cost`` is (n, 3): passes, FLOPs and seconds, over all of its rows.
    """

    arm: str
    replicate: int
    number: Integers
    outcome: npt.NDArray[np.object_]
    reused: Bools
    rung: Integers
    losses: Floats
    cost: Floats

    @property
    def is_counted(self) -> Bools:
        """(n,) candidates that were trained, at least in part: neither duplicates nor infeasible proposals."""
        counted: Bools = ~self.reused & (self.outcome != _UNTRAINED)
        return counted

    @property
    def n_settled(self) -> int:
        """Candidates before the first one that has not ended: nothing can change what they cost and attained."""
        is_open = (self.outcome == PENDING) | (self.number != np.arange(len(self.number)))
        return int(np.argmax(is_open)) if is_open.any() else len(self.number)


@dataclass(frozen=True)
class Box:
    """What hypervolumes are measured in: (m,) ideal and reference of each objective, minimised, in its own unit.

    ``is_settled`` says that no further result can move it.
    """

    objectives: tuple[str, ...]
    ideal: Floats
    reference: Floats
    is_log: Bools
    is_settled: bool

    @property
    def metric(self) -> str:
        """Name of what is measured: hypervolume, or the only objective."""
        return "hypervolume" if len(self.objectives) > 1 else self.objectives[0]

    @property
    def worst(self) -> float:
        """Quality of a run that found nothing."""
        return 0.0 if len(self.objectives) > 1 else -float(self.reference[0])

    def quality(self, points: Floats) -> float:
        """How good a set of points is; more is better.

        Args:
            points: (n, m) losses, finite.

        Returns:
            The hypervolume as a fraction of the box (0..1); with one objective the best loss, negated.
        """
        if len(points) == 0:
            return self.worst
        if len(self.objectives) == 1:
            return max(self.worst, -float(points.min()))
        return hypervolume(self._scaled(points), reference=np.ones(len(self.objectives)))

    def shown(self, quality: float | Floats) -> float | Floats:
        """Turn qualities into what people read: the hypervolume, or the only objective in its own direction."""
        if len(self.objectives) > 1 or OBJECTIVES[self.objectives[0]].higher_is_better:
            return quality
        return -quality

    def _scaled(self, points: Floats) -> Floats:
        """Map the ideal to 0 and the reference to 1; what is better than the ideal counts as ideal."""
        low, high, values = self.ideal.copy(), self.reference.copy(), np.maximum(points, self.ideal)
        for ends in (low, high, values):
            ends[..., self.is_log] = np.log10(ends[..., self.is_log])
        extent = np.where(high > low, high - low, 1.0)
        scaled: Floats = np.where(high > low, (values - low) / extent, 1.0)
        return scaled


@dataclass(frozen=True)
class Curve:
    """Quality of a run against what it had spent: a step function that jumps to ``value[i]`` at ``cost[i]`` passes.

    ``cost`` ascends and ``value`` does not fall; before the first step the quality is ``start``.
    """

    arm: str
    replicate: int
    cost: Floats
    value: Floats
    start: float
    total_cost: float
    front_size: int

    @property
    def final(self) -> float:
        """Quality at the end of the run."""
        return float(self.value[-1]) if len(self.value) else self.start

    def at(self, cost: npt.ArrayLike) -> Floats:
        """Quality once this much was spent; a run that has ended keeps what it has.

        >>> Curve("a", 0, np.array([1.0, 3.0]), np.array([0.2, 0.5]), 0.0, 4.0, 2).at([0.5, 1.0, 9.0])
        array([0. , 0.2, 0.5])
        """
        steps = np.searchsorted(self.cost, np.asarray(cost) * (1 + _ROUNDING), side="right")
        return np.concatenate([[self.start], self.value])[steps]


@dataclass(frozen=True)
class MeanCurve:
    """Mean of an arm's curves over its replicates, in natural direction, with Student's interval (NaN for one)."""

    arm: str
    cost: Floats
    mean: Floats
    low: Floats
    high: Floats
    n_replicates: int


@dataclass(frozen=True)
class ArmOutcomes:
    """What became of an arm's candidates, over all of its replicates.

    Shares are of ``n_candidates``, those that were trained at least in part and have ended; duplicates and infeasible
    proposals were not, and ``n_pending`` have not. ``stopped`` is the share stopped at each rung.
    """

    arm: str
    n_candidates: int
    n_pending: int
    n_duplicates: int
    n_infeasible: int
    shares: Mapping[str, float]
    stopped: Mapping[int, float]
    front_size: float  #: mean over replicates


@dataclass(frozen=True)
class Attainment:
    """The runs of a study, the box that they are measured in, and their curves."""

    runs: tuple[Run, ...]
    box: Box
    curves: Mapping[RunKey, Curve]

    def of(self, arm: str) -> list[Curve]:
        """Curves of one arm, by replicate."""
        return [curve for curve in self.curves.values() if curve.arm == arm]


def attainment_columns(design: SearchDesign) -> list[str]:
    """List the ledger's columns that :func:`attain` reads."""
    quantities = [c.quantity for arm in design.arms for c in arm.space.constraints if c.quantity in SCHEMA.names]
    needed = [*KEY, "outcome", "rung", "reused", *_COSTS, *quantities]
    return list(dict.fromkeys([*needed, *(o.column for o in objectives_named(design.objectives))]))


def attain(batches: Batches, design: SearchDesign) -> Attainment:
    """Follow what each run of a search study attained against what it spent.

    Args:
        batches: a ledger's table or record batches, with at least ``attainment_columns(design)``; read once, in any
            order.
        design: what was asked.

    Returns:
        Runs by arm, in the order of the design, and by replicate; runs without a row are left out.

    Raises:
        ConfigError: if a column is missing.

    Cost: O(n log n) for n rows.
    """
    runs = _runs(batches, design)
    box = _box(runs, design)
    return Attainment(tuple(runs), box, {(run.arm, run.replicate): _curve(run, box) for run in runs})


def mean_curves(
    attainment: Attainment, design: SearchDesign, *, n_costs: int = 200, costs: npt.ArrayLike | None = None
) -> list[MeanCurve]:
    """Average the curves of each arm over its replicates on a grid of costs that all arms share.

    Args:
        attainment: of :func:`attain`.
        design: for its ``alpha`` and the order of arms.
        n_costs: points of the grid, evenly spaced on a log scale from the first result to the end of the longest run.
        costs: the grid itself, ascending.

    Returns:
        One curve for each arm that has runs; up to the end of the arm's longest run.
    """
    found: list[MeanCurve] = []
    grid = _grid(attainment.curves.values(), n_costs) if costs is None else np.asarray(costs, dtype=np.float64)
    for arm in design.arms:
        curves = attainment.of(arm.name)
        if not curves:
            continue
        longest = max(curve.total_cost for curve in curves) * (1 + _ROUNDING)
        own = grid[grid <= longest]
        mean, low, high = _mean_interval(np.array([c.at(own) for c in curves]), level=1 - design.alpha)
        mean, low, high = (np.asarray(attainment.box.shown(values)) for values in (mean, low, high))
        found.append(MeanCurve(arm.name, own, mean, np.minimum(low, high), np.maximum(low, high), len(curves)))
    return found


def has_ended(attainment: Attainment, design: SearchDesign, *, exhausted: Collection[tuple[str, int]] = ()) -> bool:
    """Whether the rows show that every run has ended.

    A run has when all of its candidates came to an outcome, it saw every point of a finite space, or it is one of the
    `exhausted` (arm, replicate).
    """
    runs = {(run.arm, run.replicate): run for run in attainment.runs}
    return all(
        (arm.name, replicate) in runs
        and ((arm.name, replicate) in exhausted or _run_has_ended(runs[arm.name, replicate], arm))
        for arm in design.arms
        for replicate in range(design.replicates)
    )


def _run_has_ended(run: Run, arm: SearchArm) -> bool:
    if run.n_settled < len(run.number):
        return False
    n_counted, n_seen = (int(np.count_nonzero(which)) for which in (run.is_counted, ~run.reused))
    return n_counted >= arm.candidates or n_seen >= arm.space.size


def arm_outcomes(attainment: Attainment, design: SearchDesign) -> tuple[ArmOutcomes, ...]:
    """Count what became of each arm's candidates."""
    found = []
    for arm in design.arms:
        runs = [run for run in attainment.runs if run.arm == arm.name]
        if not runs:
            continue
        outcomes = np.concatenate([run.outcome[run.is_counted] for run in runs])
        rungs = np.concatenate([run.rung[run.is_counted] for run in runs])
        has_ended = outcomes != PENDING
        n_pending = int(np.count_nonzero(~has_ended))
        outcomes, rungs = outcomes[has_ended], rungs[has_ended]
        n = len(outcomes)
        names, counts = np.unique(outcomes.astype(str), return_counts=True)
        at_rung, n_stopped = np.unique(rungs[outcomes == "stopped"], return_counts=True)
        sizes = [attainment.curves[run.arm, run.replicate].front_size for run in runs]
        found.append(
            ArmOutcomes(
                arm=arm.name,
                n_candidates=n,
                n_pending=n_pending,
                n_duplicates=sum(int(np.count_nonzero(run.reused)) for run in runs),
                n_infeasible=sum(int(np.count_nonzero(run.outcome == _UNTRAINED)) for run in runs),
                shares={str(name): int(count) / n for name, count in zip(names, counts, strict=True)},
                stopped={int(rung): int(count) / n for rung, count in zip(at_rung, n_stopped, strict=True)},
                front_size=float(np.mean(sizes)),
            )
        )
    return tuple(found)


def _runs(batches: Batches, design: SearchDesign) -> list[Run]:
    """Bring the rows of each candidate together, run by run."""
    columns = attainment_columns(design)
    parts = []
    for chunk in chunks(batches):
        check_columns(chunk, columns, listed_by="attainment.attainment_columns")
        chunk = chunk.select(columns)
        belongs = pc.is_in(chunk["stage"], pa.array(["rung", "trained"]))
        parts.append(chunk if pc.all(belongs).as_py() else chunk.filter(belongs))
    if not parts:
        return []
    table = pa.concat_tables(parts)
    names = pa.array([arm.name for arm in design.arms])
    table = table.append_column("position", pc.index_in(table["arm"], value_set=names))
    # 'rung' sorts before 'trained': the last row of a candidate is the one that says what became of it.
    by = ["position", "replicate", "slot", "stage", "target_sparsity"]
    # Millions of rows stay where they are: only what is read of them is brought into order, column by column.
    order = pc.sort_indices(table.select(by), [(name, "ascending") for name in by])
    order = order.slice(0, table.num_rows - table["position"].null_count)
    if len(order) == 0:
        return []
    position, replicate, slot = (np.asarray(table[name].take(order)).astype(np.int64) for name in by[:3])
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = (np.diff(position) != 0) | (np.diff(replicate) != 0) | (np.diff(slot) != 0)
    first = np.flatnonzero(is_new)
    last = np.concatenate([first[1:], [len(is_new)]]) - 1
    cost = np.column_stack(
        [np.add.reduceat(np.nan_to_num(numbers_in(table, name))[np.asarray(order)], first) for name in _COSTS]
    )
    ends = table.take(order.take(pa.array(last)))
    reused = np.asarray(pc.fill_null(ends["reused"], False), dtype=np.bool_)
    for j, name in enumerate(_COSTS):
        # What a candidate cost is the sum over its rows; what a copy cost is not known from its own.
        column = pa.array(np.where(reused, np.nan, cost[:, j]))
        ends = ends.set_column(ends.schema.get_field_index(name), name, column)
    outcome = np.asarray(ends["outcome"].to_numpy(zero_copy_only=False), dtype=object)
    # A row at a rung has no outcome: the candidate trains on, or waits to be compared.
    outcome[np.asarray(pc.equal(ends["stage"], "rung"), dtype=np.bool_)] = PENDING
    points = losses(ends, design.objectives)
    points[(outcome != "completed") | ~np.isfinite(points).all(axis=1)] = np.nan
    rung = np.where(outcome == "stopped", np.asarray(pc.fill_null(ends["rung"], -1)).astype(np.int64), -1)
    runs = []
    edges = np.flatnonzero(np.diff(position[last] * (replicate.max() + 1) + replicate[last])) + 1
    for rows in np.split(np.arange(len(last)), edges):
        arm = design.arms[position[last[rows[0]]]]
        own = points[rows]
        own[breaks_constraints(ends.slice(rows[0], len(rows)), arm)] = np.nan
        at = last[rows]
        runs.append(
            Run(
                arm.name,
                int(replicate[at[0]]),
                slot[at],
                outcome[rows],
                reused[rows],
                rung[rows],
                own,
                cost[rows],
            )
        )
    return runs


def breaks_constraints(ends: pa.Table, arm: SearchArm) -> Bools:
    """Mark candidates beyond a constraint that the ledger can tell of."""
    violated = np.zeros(ends.num_rows, dtype=np.bool_)
    for constraint in arm.space.constraints:
        if constraint.quantity in ends.schema.names:
            values = numbers_in(ends, constraint.quantity)
            violated |= np.array([constraint.violation(value) > 0 for value in values.tolist()], dtype=np.bool_)
    return violated


def within_constraints(batches: Iterable[pa.RecordBatch], design: SearchDesign) -> Iterator[pa.RecordBatch]:
    """The same rows without controls, and without candidates that break a constraint which is only known afterwards."""
    controls = pa.array([control.name for control in design.controls], type=pa.string())
    bounded = [arm for arm in design.arms if any(not c.is_known_before_training for c in arm.space.constraints)]
    for batch in batches:
        keep = ~np.asarray(pc.is_in(batch.column("arm"), controls), dtype=np.bool_)
        for arm in bounded:
            mine = np.asarray(pc.equal(batch.column("arm"), arm.name))
            keep &= ~(mine & breaks_constraints(pa.Table.from_batches([batch]), arm))
        yield batch if keep.all() else batch.filter(pa.array(keep))


def scales(names: Sequence[str]) -> tuple[Floats, Bools]:
    """Give the ideal corner of the box over some objectives, minimised, and which of its sides are on a log10 scale.

    >>> scales(["val_error", "n_params"])
    (array([0., 1.]), array([False,  True]))
    """
    is_log = np.array([name in _SMALLEST for name in names]) & (len(names) > 1)
    ideal = ideal_point(names)
    ideal[is_log] = [_SMALLEST[name] for name in np.array(names)[is_log]]
    return ideal, is_log


def _box(runs: Sequence[Run], design: SearchDesign) -> Box:
    names = design.objectives
    ideal, is_log = scales(names)
    if design.reference is not None:
        signs = np.array([-1.0 if OBJECTIVES[name].higher_is_better else 1.0 for name in names])
        return Box(names, ideal, signs * np.array(design.reference, dtype=np.float64), is_log, is_settled=True)
    known = np.array([_of_guessing(design).get(name, math.nan) for name in names])
    known = np.where(np.isnan(known), worst_bounds(names), known)
    largest = np.array([np.nanmax(column, initial=-math.inf) for column in _all_losses(runs, len(names)).T])
    seen = np.where(is_log, _BEYOND * largest, largest)
    # Without any result there is nothing to measure, but a box must have an extent.
    seen = np.where(np.isfinite(seen) & (seen > ideal), seen, ideal + 1.0)
    return Box(names, ideal, np.where(np.isnan(known), seen, known), is_log, is_settled=not bool(np.isnan(known).any()))


def _of_guessing(design: SearchDesign) -> dict[str, float]:
    """What a network is worth that has learned nothing, minimised; of images to restore, one that changes nothing."""
    if design.untouched_psnr is not None:
        error = float(METRICS["psnr"].error_at(design.untouched_psnr))
        return {"val_error": error, "val_psnr_worst": -design.untouched_psnr}
    return {
        "val_error": 1 - 1 / design.n_classes,
        "val_accuracy": -1 / design.n_classes,
        "val_loss": math.log(design.n_classes),
    }


def _all_losses(runs: Sequence[Run], m: int) -> Floats:
    return np.concatenate([np.empty((0, m)), *(run.losses for run in runs)])


def _curve(run: Run, box: Box) -> Curve:
    spent = np.cumsum(run.cost[:, 0])
    usable = np.flatnonzero(np.isfinite(run.losses).all(axis=1))
    points = run.losses[usable]
    # Whatever no earlier point dominates was an improvement when it came: dominance with time as another objective.
    improved = is_nondominated(np.column_stack([points, np.arange(len(points))]))
    points, spent_at = points[improved], spent[usable[improved]]
    chosen = np.arange(len(points))
    if len(points) > _MAX_VALUES:
        chosen = np.unique(np.linspace(0, len(points) - 1, _MAX_VALUES).round().astype(np.int64))
    values: list[float] = []
    front = np.empty((0, len(box.objectives)))
    start = 0
    for stop in (chosen + 1).tolist():
        front = np.vstack([front, points[start:stop]])
        front = front[is_nondominated(front)]
        values.append(box.quality(front))
        start = stop
    value = np.maximum.accumulate(np.array([box.worst, *values]))[1:]
    total = float(spent[-1]) if len(spent) else 0.0
    return Curve(run.arm, run.replicate, spent_at[chosen], value, box.worst, total, len(front))


def _grid(curves: Iterable[Curve], n_costs: int) -> Floats:
    known = list(curves)
    ends = [curve.total_cost for curve in known if curve.total_cost > 0]
    starts = [float(curve.cost[0]) for curve in known if len(curve.cost) and curve.cost[0] > 0]
    if not ends:
        return np.zeros(0)
    high = max(ends)
    # The ends of all curves belong to the grid: their last values are what arms are compared by.
    return np.unique(np.concatenate([np.geomspace(min([*starts, high]), high, n_costs), ends]))


def _mean_interval(values: Floats, *, level: float) -> tuple[Floats, Floats, Floats]:
    """Mean over the first axis with Student's interval; NaN bounds for one value."""
    n = len(values)
    mean = values.mean(axis=0)
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return mean, mean - half, mean + half
