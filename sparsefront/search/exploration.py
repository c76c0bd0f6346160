"""What is left to do in a search study: a pure function of its design and of the rows committed so far.

The plan of a study of masks is `sparsefront.search.plan`; this is its counterpart for studies that search a space. What
is proposed and who goes on after a rung is decided in `sparsefront.search.run`; here candidates are put into packs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparsefront.errors import SparsefrontError
from sparsefront.search.columns import numbers_in
from sparsefront.search.control_run import ControlRun
from sparsefront.search.design import SearchDesign
from sparsefront.search.packing import PackCost, plan_packs
from sparsefront.search.run import Candidate, Measures, Run, networks_in
from sparsefront.search.schema import OF_NETWORKS
from sparsefront.search.work import Decision, Describe, SearchLane, SegmentWork

#: Columns that tell what a row is about; the first five are its key.
_COLUMNS = ("stage", "arm", "replicate", "target_sparsity", "slot", "outcome", "candidate", "checkpoint")
_ROWS_AT_ONCE = 10_000
#: New candidates that are packed together, as rounds of full packs for all workers: more find more of their size.
_ROUNDS = 2


class Totals(NamedTuple):
    """Candidates of all runs; `finished` of `planned` are trained, stopped or failed; the others cost nothing."""

    finished: int
    planned: int
    stopped: int
    failed: int
    infeasible: int
    reused: int


#: The step where candidates are, and the step where their next segment ends.
_Segment = tuple[int, int]


class Exploration:
    """The work of a search study that is neither committed nor handed out.

    A pure function of the design and of the committed rows, but for the packs in which work is handed out: they follow
    the workers, and no result depends on them. Candidates of different arms share packs.

    What is handed out first: runs whose strategy waits for results, those of all replicates in turn; then the others,
    replicate by replicate. Of these, survivors of a rung are collected until there is a full round of packs for all
    workers, and new candidates go before smaller rounds, until the replicate has no new ones.
    """

    def __init__(
        self,
        design: SearchDesign,
        describe: Describe,
        *,
        pack_cost: PackCost,
        workers: int,
        max_lanes: int,
        stored: Callable[[str], bytes] | None = None,
    ) -> None:
        """Prepare a plan that knows no rows yet.

        Args:
            design: what was asked.
            describe: what follows from a point without training it.
            pack_cost: what packs are expected to take.
            workers: packs at once.
            max_lanes: candidates in a pack, at most.
            stored: packed bits of a mask by its digest, once its candidate is committed; only controls need them.
        """
        self._measures = Measures(design)
        self._runs: dict[tuple[str, int], Run] = {}
        for replicate in range(design.replicates):
            for arm in design.arms:
                self._runs[arm.name, replicate] = Run(design, arm, replicate, describe, self._measures)
            for control in design.controls:
                assert stored is not None
                original = self._runs[control.arm, replicate]
                run = ControlRun(design, control, original, describe, self._measures, stored)
                self._runs[control.name, replicate] = run
        self._design, self._pack_cost = design, pack_cost
        self._workers, self._max_lanes = workers, max_lanes
        #: Packs that were lost, packs of runs that wait for them, and all others.
        self._returned: deque[SegmentWork] = deque()
        self._urgent: deque[SegmentWork] = deque()
        self._planned: deque[SegmentWork] = deque()
        self._n_in_flight = 0
        #: Runs that are not over.
        self._open = dict(self._runs)
        #: Columns that `absorb` reads.
        self.columns = tuple(dict.fromkeys((*_COLUMNS, *self._measures.columns, *OF_NETWORKS)))

    def resize(self, *, workers: int, max_lanes: int) -> None:
        """Divide work that is not queued yet into packs of another size, once it is known where it runs."""
        self._workers, self._max_lanes = workers, max_lanes

    # Learning --------------------------------------------------------------------------------------------------------

    def absorb(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Learn from committed rows, in commit order.

        Raises:
            LedgerError: rows that this study's strategies do not propose, or that cannot follow from those before.
        """
        if rows.num_rows > _ROWS_AT_ONCE:
            for start in range(0, rows.num_rows, _ROWS_AT_ONCE):
                self.absorb(rows.slice(start, _ROWS_AT_ONCE))
            return
        values = np.column_stack([numbers_in(rows, column) for column in self._measures.columns]).tolist()
        columns = [rows.column(column).to_numpy(zero_copy_only=False).tolist() for column in _COLUMNS]
        for measured, network, *row in zip(values, networks_in(rows), *columns, strict=True):
            stage, arm, replicate, level, slot, outcome, identity, checkpoint = row
            run = self._runs[arm, replicate]
            if stage == "rung":
                run.reached(slot, int(level), measured, checkpoint, identity)
            elif stage == "trained" and not run.has_ended(slot):
                run.ended(slot, outcome, measured, identity, network)

    def is_new(self, rows: pa.RecordBatch | pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows are not committed yet, by key: (n,) bool."""
        keys = zip(*(rows.column(name).to_pylist() for name in _COLUMNS[:5]), strict=True)
        return np.array([not self._has(*key) for key in keys], dtype=np.bool_)

    def _has(self, stage: str, arm: str, replicate: int, level: float, slot: int) -> bool:
        run = self._runs[arm, replicate]
        return run.has_reached(slot, int(level)) if stage == "rung" else run.has_ended(slot)

    # Handing out -----------------------------------------------------------------------------------------------------

    def next_work(self) -> SegmentWork | None:
        """Work to hand out now, or None if there is none until more rows are absorbed.

        Raises:
            RuntimeError: nothing is left to wait for, and the study is not complete: a mistake of this program.
        """
        self._advance()
        while True:
            queue = self._returned or self._urgent or self._plan_urgent() or self._planned or self._plan_others()
            if not queue:
                break
            work = queue.popleft()
            left = self.without_committed(work)
            if left:
                self._n_in_flight += 1
                return left[0]
        if not self._n_in_flight and not self.is_done and not any(run.is_deciding for run in self._open.values()):
            raise RuntimeError(f"nothing is handed out, and yet the study is not complete: {self.totals()}")
        return None

    def may_open(self, ended: Sequence[SegmentWork]) -> bool:
        """Whether something could be handed out once all rows of `ended` are absorbed.

        Not where all runs wait for a whole batch, and part of each is still away.
        """
        back = Counter((lane.arm, work.replicate) for work in ended for lane in work.lanes)
        return any(run.may_open(back[key]) for key, run in self._open.items())

    def finished(self, work: SegmentWork) -> None:
        """All rows of `work` are absorbed.

        Raises:
            RuntimeError: if they are not: a worker that leaves candidates out must not look like a study that is done.
        """
        left = self.without_committed(work)
        if left and work.passing:
            lane = work.lanes[0]
            run = self._runs[lane.arm, work.replicate]
            if run.unfinished[lane.slot].start_step > lane.start_step:
                run.halt(lane.slot)
                left = []
        if left:
            raise RuntimeError(f"pack {work.key} ended, but some of its rows never came: {left}")
        self._n_in_flight -= 1

    def give_back(self, works: Iterable[SegmentWork]) -> None:
        """Take back one pack that was lost with its worker, divided perhaps; what is committed of it is left out."""
        self._n_in_flight -= 1
        for work in works:
            for part in self.without_committed(work):
                self._returned.append(self._alone(part) if part.passing else part)

    def _alone(self, work: SegmentWork) -> SegmentWork:
        """A candidate that trains alone, from the last rung that it reached."""
        lane = work.lanes[0]
        candidate = self._runs[lane.arm, work.replicate].unfinished[lane.slot]
        ladder = candidate.run.ladder
        passing = tuple((k, ladder[k]) for k in candidate.rungs[candidate.n_reached :])
        left = (work.stops[0] - candidate.start_step) / (work.stops[0] - lane.start_step)
        return replace(work, lanes=(_lane(candidate),), passing=passing, predicted_s=left * work.predicted_s)

    def without_committed(self, work: SegmentWork) -> list[SegmentWork]:
        """What is left of `work` once committed rows are taken out of it."""
        runs = {arm: self._runs[arm, work.replicate] for arm in {lane.arm for lane in work.lanes}}
        left = []
        for i, (lane, rung) in enumerate(zip(work.lanes, work.rung, strict=True)):
            run = runs[lane.arm]
            if not (run.has_ended(lane.slot) if rung is None else run.has_reached(lane.slot, rung)):
                left.append(i)
        if len(left) == len(work.lanes):
            return [work]
        return [work.only(left)] if left else []

    def _advance(self) -> None:
        """Let runs that wait for nothing propose their next batch."""
        for key, run in list(self._open.items()):
            while run.can_propose and run.n_terminal == run.n_proposed:
                run.propose()
            if run.is_over:
                del self._open[key]

    def _plan_urgent(self) -> deque[SegmentWork]:
        """Pack candidates that a strategy waits for: of one replicate and segment, those with most left to do."""
        runs = [run for run in self._open.values() if run.is_adaptive]
        waiting = [(at, run.replicate) for run in runs for at in run.ready]
        if waiting:
            at, replicate = min(waiting)
            mine = [run for run in runs if run.replicate == replicate]
            # Runs wait for themselves alone: where they are many, they keep the workers busy in turn.
            self._pack(self._urgent, mine, at, workers=-(-self._workers // len(runs)))
        return self._urgent

    def _plan_others(self) -> deque[SegmentWork]:
        """Pack candidates that nobody waits for."""
        replicates: dict[int, list[Run]] = {}
        for run in self._open.values():
            if not run.is_adaptive:
                replicates.setdefault(run.replicate, []).append(run)
        for runs in replicates.values():
            if self._pack_round(runs) or self._pack_new(runs):
                return self._planned
            if not any(run.n_away for run in runs) and self._pack_rest(runs):
                return self._planned
        for runs in replicates.values():
            if self._pack_rest(runs):
                break
        return self._planned

    def _pack_round(self, runs: Sequence[Run]) -> bool:
        """Pack the survivors of a rung, the farthest first, if they are enough for all workers."""
        full = [at for at, n in _ready(runs).items() if at[0] > 0 and n >= self._workers * self._max_lanes]
        return bool(full) and self._pack_others(runs, max(full))

    def _pack_new(self, runs: Sequence[Run]) -> bool:
        """Propose and pack new candidates of one replicate, the arms in step."""
        target = _ROUNDS * self._workers * self._max_lanes
        n_new, n_asked = sum(n for at, n in _ready(runs).items() if at[0] == 0), 0
        while n_new < target and (n_new == 0 or n_asked < 2 * target):
            able = [run for run in runs if run.can_propose]
            if not able:
                break
            run = min(able, key=lambda run: run.n_accepted / run.arm.candidates)
            before = run.n_proposed
            run.propose()
            n_asked += run.n_proposed - before
            n_new = sum(n for at, n in _ready(runs).items() if at[0] == 0)
        packed = [self._pack_others(runs, at) for at in sorted(_ready(runs)) if at[0] == 0]
        return any(packed)

    def _pack_rest(self, runs: Sequence[Run]) -> bool:
        """Pack whoever is ready, those with most left to do first: others may join the rest meanwhile."""
        return any(self._pack_others(runs, at) for at in sorted(_ready(runs))[:1])

    def _pack_others(self, runs: Sequence[Run], at: _Segment) -> bool:
        n = _ready(runs)[at]
        n_to_come = sum(r.arm.candidates - r.n_accepted for r in self._open.values() if not r.is_exhausted)
        return self._pack(self._planned, runs, at, workers=-(-self._workers * n // (n + n_to_come)))

    def _pack(self, queue: deque[SegmentWork], runs: Sequence[Run], at: _Segment, *, workers: int) -> bool:
        """Queue packs of all candidates that are ready for one segment; whether there are any.

        Args:
            queue: of the packs.
            runs: of one replicate.
            at: the segment.
            workers: that these packs should keep busy.
        """
        candidates = []
        for run in runs:
            for candidate in run.take_ready(at):
                try:
                    candidate.described  # noqa: B018  (worked out here)
                except SparsefrontError as error:
                    run.refuse(candidate, str(error))
                else:
                    candidates.append(candidate)
        if not candidates:
            return False
        for is_scheduled in (False, True):
            of_kind = [c for c in candidates if c.run.is_scheduled == is_scheduled]
            planned = plan_packs(
                [candidate.described.shape for candidate in of_kind],
                [at[1] - at[0]] * len(of_kind),
                cost=self._pack_cost,
                max_lanes=1 if is_scheduled else self._max_lanes,
                workers=workers,
            )
            for pack in planned:
                members = [of_kind[i] for i in pack.indices]
                work = SegmentWork(
                    runs[0].replicate,
                    tuple(_lane(candidate) for candidate in members),
                    (at[1],) * len(members),
                    tuple(None if is_scheduled else candidate.next_rung for candidate in members),
                    pack.padded,
                    pack.predicted_s,
                )
                queue.append(self._alone(work) if is_scheduled else work)
        return True

    # Deciding --------------------------------------------------------------------------------------------------------

    def decided(self) -> list[Decision]:
        """Rows that the driver itself must commit at once, decided since the last call; ask until there are none."""
        self._advance()
        return [decision for run in self._open.values() for decision in run.decided()]

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to hand out or to record, and nothing handed out is still away."""
        return not self._n_in_flight and self.is_complete

    @property
    def is_complete(self) -> bool:
        """Whether everything is committed."""
        return all(run.is_over for run in self._open.values())

    def totals(self) -> Totals:
        """Counts of the whole study."""
        runs = self._runs.values()
        return Totals(
            finished=sum(run.n_finished for run in runs),
            planned=sum(run.n_accepted if run.is_exhausted else run.arm.candidates for run in runs),
            stopped=sum(run.n_stopped for run in runs),
            failed=sum(run.n_failed for run in runs),
            infeasible=sum(run.n_infeasible for run in runs),
            reused=sum(run.n_reused for run in runs),
        )


def _ready(runs: Iterable[Run]) -> dict[_Segment, int]:
    """How many candidates are ready, by segment."""
    counts: dict[_Segment, int] = {}
    for run in runs:
        for at, candidates in run.ready.items():
            counts[at] = counts.get(at, 0) + len(candidates)
    return counts


def _lane(candidate: Candidate) -> SearchLane:
    run = candidate.run
    settings = run.settings_of(candidate)
    grows = run.arm.rungs.fidelity == "data_fraction"
    if grows and candidate.next_rung is not None:
        settings["training.data_fraction"] = _data_fraction(candidate, candidate.stop_step)
    return SearchLane(
        candidate.described.id,
        run.arm.name,
        candidate.number,
        candidate.point,
        settings,
        candidate.start_step,
        candidate.checkpoint,
        tuple((step, name, _data_fraction(candidate, step) if grows else None) for step, name in candidate.behind),
        run.fixed_of(candidate, settings),
        run.keeps_masks,
    )


def _data_fraction(candidate: Candidate, step: int) -> float:
    """Share of the training examples in the segment that ends at a step, where it grows from rung to rung."""
    share = step / candidate.steps
    return share * candidate.described.data_fraction
