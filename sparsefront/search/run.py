"""One run of a search: an arm in one replicate, from its proposals to what became of them.

A run learns from committed rows alone. Batches are proposed in the order of the candidates' numbers, each from what
became of the batches before it; the rungs decide from what was recorded there. Both are pure, so that a run that is
replayed from the record proposes and decides what it did the first time.

Not here: who trains what with whom, and when (`sparsefront.search.exploration`).
"""

from __future__ import annotations

import hashlib
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparsefront.errors import LedgerError, SparsefrontError
from sparsefront.search.columns import numbers_in
from sparsefront.search.design import ChainSettings, SearchArm, SearchDesign
from sparsefront.search.objective import OBJECTIVES, losses, objectives_named
from sparsefront.search.rungs import RUNGS, Halving, RungDecision, bracket_of, rung_steps
from sparsefront.search.schema import OF_NETWORKS, OUTCOMES, SCHEMA
from sparsefront.search.strategies import (
    COMPLETED,
    FAILED,
    INFEASIBLE,
    PENDING,
    STOPPED,
    STRATEGIES,
    History,
    Strategy,
    Task,
    strategy_family,
)
from sparsefront.search.strategies.random import random_points
from sparsefront.search.work import Decision, Describe, Described
from sparsefront.spaces.candidate import canonical_json
from sparsefront.spaces.domains import Point, Value
from sparsefront.spaces.space import Space

Floats = npt.NDArray[np.float64]

#: Proposals for each candidate to be trained, beyond which a run ends: constraints or repetitions leave too little.
MAX_PROPOSALS_EACH = 50

#: Repetitions after which a strategy that learns is not asked again: so many batches of them, and at least so many
#: proposals. A new one makes up for four: a strategy may repeat itself half of the time for as long as it likes.
MAX_REPEATED_BATCHES, MIN_REPEATS, REPEATS_FOR_A_NEW_ONE = 3, 20, 4

#: Keys of a space that say how many levels a chain has, beside the steps of each.
_LENGTHS_OF_CHAINS = ("masks.method", "masks.pattern", "masks.sparsity", "masks.rate")

_CODES = {"completed": COMPLETED, "stopped": STOPPED, "infeasible": INFEASIBLE}
_NO_OUTCOME = -1
#: What a strategy is told instead of an infinite violation.
_MAX_VIOLATION = 1e12
#: What is kept of every network for those that repeat it: hex digits and names as text, all else as a number.
_NETWORK = np.dtype([(n, {"mask_kind": "S6", "mask_digest": "S32"}.get(n, "f8")) for n in OF_NETWORKS])
#: Numbers of a network as the ledger's columns hold them.
_PLAIN: Mapping[str, Callable[[float], bool | int | float]] = {
    name: {pa.bool_(): bool, pa.int64(): int, pa.float64(): float}[SCHEMA.field(name).type]
    for name in OF_NETWORKS
    if _NETWORK[name].kind == "f"
}
_NOTHING = {"S": b"", "f": np.nan}
_NO_NETWORK: Any = np.array(tuple(_NOTHING[_NETWORK[n].kind] for n in OF_NETWORKS), dtype=_NETWORK)[()]


def networks_in(rows: pa.Table | pa.RecordBatch) -> npt.NDArray[np.void]:
    """What `OF_NETWORKS` says of each row, (n,); empty text and NaN where it is null, or rows lack the column.

    >>> found = networks_in(pa.table({"mask_kind": ["weight", None], "n_params": [8, 9]}))
    >>> found["mask_kind"].tolist(), found["n_params"].tolist(), found["macs"].tolist()
    ([b'weight', b''], [8.0, 9.0], [nan, nan])
    """
    found = np.full(rows.num_rows, _NO_NETWORK, dtype=_NETWORK)
    present = frozenset(rows.schema.names)
    for name in OF_NETWORKS:
        if name not in present:
            continue
        column = rows.column(name)
        if column.null_count == rows.num_rows:
            continue
        is_text = _NETWORK[name].kind == "S"
        found[name] = column.fill_null("").to_numpy(zero_copy_only=False) if is_text else numbers_in(rows, name)
    return found


class Measures:
    """The measured columns that a search study reads, and how they become losses."""

    def __init__(self, design: SearchDesign) -> None:
        names = [*design.objectives, *(n for arm in design.arms for n in arm.rungs.objectives)]
        bounded = [c.quantity for arm in design.arms for c in arm.space.constraints if not c.is_known_before_training]
        objectives = objectives_named(list(dict.fromkeys(names)))
        #: Columns of the ledger, in the order of a row of values.
        self.columns = tuple(dict.fromkeys(["val_loss", "val_error", *(o.column for o in objectives), *bounded]))
        self._places = {name: i for i, name in enumerate(self.columns)}
        self.is_cost = tuple(name in OBJECTIVES and OBJECTIVES[name].cost for name in self.columns)

    def place(self, column: str) -> int | None:
        """Index of a column in a row of values."""
        return self._places.get(column)

    def minimised(self, names: Sequence[str]) -> Callable[[Sequence[float]], list[float]]:
        """The function that turns a row of values, (c,), into losses of these objectives, (m,)."""
        places = [self._places[o.column] for o in objectives_named(names)]
        # Every objective is affine in its column: two values of it tell the function.
        probe = losses(pa.table({column: [0.0, 1.0] for column in self.columns}), names)
        terms = list(zip(places, probe[0].tolist(), (probe[1] - probe[0]).tolist(), strict=True))
        return lambda values: [offset + factor * values[place] for place, offset, factor in terms]


class Candidate:
    """A candidate that has no outcome yet, and how far it has come."""

    __slots__ = (
        "_described", "_first", "behind", "checkpoint", "halving", "is_away", "n_reached", "number",
        "point", "run", "rungs", "start_step", "steps",
    )  # fmt: skip

    def __init__(self, run: Run, number: int, point: Point, *, first: int | None = None) -> None:
        self.run, self.number, self.point = run, number, point
        # Of a repetition, the number of what it repeats: that was trained, and has the name.
        self._first = number if first is None else first
        self.start_step = 0
        self.checkpoint: str | None = None
        #: Steps and checkpoints of all rungs that it reached.
        self.behind: tuple[tuple[int, str | None], ...] = ()
        self.halving: Halving | None = None
        self.is_away = False
        self.n_reached = 0
        #: Indices of the rungs that it meets, and the steps of its full training.
        self.rungs: Sequence[int] = ()
        self.steps = run.steps
        self._described: Described | None = None

    @property
    def described(self) -> Described:
        """What follows from it; worked out when first asked for."""
        if self._described is None:
            self._described = self.run.described(self, first=self._first)
        return self._described

    @property
    def next_rung(self) -> int | None:
        """Index of the rung where its next segment ends; None where full training ends."""
        return self.rungs[self.n_reached] if self.n_reached < len(self.rungs) else None

    @property
    def stop_step(self) -> int:
        """Step at which its next segment ends."""
        rung = None if self.run.is_scheduled else self.next_rung
        return self.steps if rung is None else self.run.ladder[rung]


class Run:
    """Candidates of one arm in one replicate."""

    def __init__(
        self, design: SearchDesign, arm: SearchArm, replicate: int, describe: Describe, measures: Measures
    ) -> None:
        self.arm, self.replicate = arm, replicate
        self._design, self._describe, self._measures = design, describe, measures
        self._family = strategy_family(arm.strategy)
        self.is_adaptive = self._family.is_adaptive
        self._strategy: Strategy | None = None
        self.steps = longest_training(arm.space, design.steps, arm.chain)
        lengths = {"training.steps", *(() if arm.chain is None else _LENGTHS_OF_CHAINS)}
        self._varies_steps = any(d.key in lengths for d in arm.space.dimensions)
        #: Steps of the rungs, ascending.
        self.ladder = rung_steps(arm.rungs, self.steps)
        #: Whether candidates train alone, past all rungs, until the cluster's scheduler stops them.
        self.is_scheduled = RUNGS[arm.rungs.kind].is_scheduled
        self._latest: Halving | None = None
        self._to_losses = measures.minimised(design.objectives)
        self._to_rung_losses = measures.minimised(arm.rungs.objectives)
        constraints = arm.space.constraints
        self._known_before = [c for c in constraints if c.is_known_before_training]
        self._known_after = [c for c in constraints if not c.is_known_before_training]
        #: What was proposed, by number, as strategies may see it; a run that does not look back forgets it.
        self._points: list[Point] = []
        self._seen: dict[bytes, int] = {}
        #: All points, where a run can come to the end of its space: several may be one candidate.
        self._met: set[bytes] | None = None if arm.space.size > MAX_PROPOSALS_EACH * arm.candidates else set()
        self.unfinished: dict[int, Candidate] = {}
        #: Candidates that nobody trains, by the step they are at and the step their next segment ends.
        self.ready: dict[tuple[int, int], dict[int, Candidate]] = {}
        #: What its controls are held against, by number: candidates that completed under a mask which removes
        #: something, with its digest.
        self.completed: dict[int, tuple[Point, str]] = {}
        self.keeps_masks = any(control.arm == arm.name for control in design.controls)
        #: How many are handed out.
        self.n_away = 0
        self._copies: dict[int, tuple[Candidate, int]] = {}
        self._copied: dict[int, list[int]] = {}
        self._violating: dict[int, float] = {}
        self._decisions: dict[int, Decision] = {}
        self._announced: set[int] = set()
        #: Repetitions that no new proposal made up for; once they are too many, random draws take the strategy's place.
        self._n_repeats = 0
        self._is_stuck = False
        self.n_proposed = self.n_accepted = self.n_terminal = 0
        self.n_infeasible = self.n_reused = self.n_stopped = self.n_failed = self.n_finished = 0
        #: Whether nothing more will be proposed, and what ended it before its time.
        self.is_exhausted = False
        self._failure: str | None = None
        m, c = len(design.objectives), len(measures.columns)
        self._values = np.empty((0, c))
        self._losses, self._partial = np.empty((0, m)), np.empty((0, m))
        self._fidelity, self._violations = np.empty(0), np.empty(0)
        self._codes, self._kinds = np.empty(0, dtype=np.int8), np.empty(0, dtype=np.int8)
        self._networks = np.empty(0, dtype=_NETWORK)

    def __str__(self) -> str:
        """As messages name it."""
        return f"arm {self.arm.name!r}, replicate {self.replicate}"

    def describe(self, point: Point) -> Described:
        """What follows from a point of this run."""
        return self._describe(self.replicate, point, self.arm.space)

    def described(self, candidate: Candidate, *, first: int) -> Described:
        """What follows from a candidate, which has the name of number `first`."""
        return self.named(self.describe(candidate.point), first)

    def settings_of(self, candidate: Candidate) -> dict[str, Any]:
        """Study keys that a candidate sets."""
        return self.arm.space.settings(candidate.point)

    def fixed_of(self, candidate: Candidate, settings: Mapping[str, Any]) -> dict[str, Value]:
        """Columns of a candidate that its point does not tell; `settings` are those of its point."""
        return self.arm.fixed.values(settings)

    def named(self, described: Described, number: int) -> Described:
        """The same, with the id that candidate `number` has in this run.

        Where data grow from rung to rung, the steps at which they do are part of what is trained: another ladder, or
        none, trains another network on the same settings.
        """
        if self.arm.rungs.fidelity != "data_fraction" or not self.ladder:
            return described
        rungs = bracket_of(self.arm.rungs, number, self.steps, batch=self._batch).rungs
        met = [self.ladder[k] for k in rungs if self.ladder[k] < described.steps]
        return replace(described, id=_id_on_ladder(described.id, self.arm.rungs.fidelity, met)) if met else described

    @property
    def _batch(self) -> int:
        """Candidates of a batch that is waited for, as `bracket_of` takes it."""
        return self.arm.batch if self.is_adaptive else 0

    @property
    def is_over(self) -> bool:
        """Whether everything it will ever propose has ended."""
        return self.is_exhausted and self.n_terminal == self.n_proposed

    @property
    def can_propose(self) -> bool:
        """Whether its next batch can be asked for now."""
        return not self.is_exhausted and (not self.is_adaptive or self.n_terminal == self.n_proposed)

    def may_open(self, n_back: int) -> bool:
        """Whether something could be handed out once so many candidates, of those that are, have come back."""
        return bool(self.ladder) or not self.is_adaptive or self.n_away <= n_back

    # Proposing -------------------------------------------------------------------------------------------------------

    def propose(self) -> None:
        """Ask for the next batch; candidates that are to be trained become ready.

        A strategy that raises, and constraints that leave too little, end the run; all others go on.
        """
        numbers = range(self.n_proposed, self.n_proposed + self.arm.batch)
        # The rest of a small space is found without a model that is paid for every repetition. It follows from what was
        # proposed: a run that is replayed draws from the same number on.
        if self._n_repeats >= max(MAX_REPEATED_BATCHES * self.arm.batch, MIN_REPEATS):
            self._is_stuck = self.is_adaptive
        try:
            if self._is_stuck:
                proposed = random_points(self._task_of_strategy(), numbers.start, numbers.stop)
            else:
                proposed = self._make_strategy().propose(self._history(), numbers)
            # Copies are ours, whatever the strategy does with its own.
            points = [dict(point) for point in proposed]
            for point in points:
                self.arm.space.check(point)
            if len(points) > len(numbers):
                raise ValueError(f"{len(points)} points were proposed, {len(numbers)} were asked for")
        except (Exception, SystemExit):  # whatever a user's module does, the others go on; an interrupt is for all
            self._fail(traceback.format_exc())
            return
        self._grow(self.n_proposed + len(points))
        for point in points:
            if self.is_exhausted:
                return
            self._take(point)
        if len(points) < len(numbers) and not self.is_exhausted:
            if self.arm.strategy in STRATEGIES:  # the rows show that a grid was walked through
                self._exhaust()
            else:
                self._fail(
                    f"strategy {self.arm.strategy!r} proposed {len(points)} of the {len(numbers)} points that it was "
                    f"asked for, which says that it has no more: the run ends with {self.n_accepted:,} of "
                    f"candidates={self.arm.candidates}"
                )

    def _fail(self, why: str) -> None:
        """End the run: whatever keeps it from going on is a result of its arm, recorded under the next number."""
        self._failure = why
        number = self.n_proposed
        self._grow(number + 1)
        self._decide(number, None, "failed", error=why)
        self.n_proposed += 1
        self._leave(number)
        self._exhaust()

    def _make_strategy(self) -> Strategy:
        if self._strategy is None:
            self._strategy = self._family.make(self._task_of_strategy(), self._family.options(**self.arm.options))
        return self._strategy

    def _task_of_strategy(self) -> Task:
        arm, design = self.arm, self._design
        return Task(
            arm.space,
            design.seed,
            self.replicate,
            design.objectives,
            arm.candidates,
            arm.batch,
            lambda point: self.describe(point).costs,
        )

    def _history(self) -> History:
        n = self.n_proposed if self.is_adaptive else 0
        return History(
            tuple(self._points),
            _frozen(self._losses[:n]),
            _frozen(self._partial[:n]),
            _frozen(self._codes[:n]),
            _frozen(self._fidelity[:n]),
            _frozen(self._violations[:n]),
        )

    def _take(self, point: dict[str, Value]) -> None:
        """Give a proposal the next number, and find out whether it has to be trained."""
        number, space = self.n_proposed, self.arm.space
        self.n_proposed += 1
        if self.is_adaptive:
            self._points.append(MappingProxyType(point))
        first = self._seen.setdefault(bytes.fromhex(space.digest(point)), number)
        candidate = Candidate(self, number, point, first=first)
        if first != number:
            self._n_repeats += 1
            self._leave(number)
            self._repeat(candidate, first)
        else:
            self._n_repeats = max(0, self._n_repeats - REPEATS_FOR_A_NEW_ONE)
            self._enter(candidate)
        if self._met is not None:
            self._met.add(bytes.fromhex(space.digest(point, exact=True)))
        if self.n_accepted >= self.arm.candidates or (self._met is not None and len(self._met) >= space.size):
            self._exhaust()
        elif self.n_proposed >= MAX_PROPOSALS_EACH * self.arm.candidates:
            if self.n_infeasible > self.n_reused:
                self._fail(
                    f"{self.n_infeasible:,} of {self.n_proposed:,} proposals violate "
                    f"{', '.join(map(str, self._known_before))}: constraints leave too little of the space for "
                    f"candidates={self.arm.candidates}, and the run ends with {self.n_accepted:,}; loosen them or "
                    "narrow the space in a new study"
                )
            else:
                self._exhaust()

    def _repeat(self, candidate: Candidate, first: int) -> None:
        """Let a candidate end as that number did, or will, which it is the same as."""
        self.n_reused += 1
        self._copies[candidate.number] = candidate, first
        if self._kinds[first] == _NO_OUTCOME:
            self._copied.setdefault(first, []).append(candidate.number)
        else:
            self._decide_copy(candidate.number, first)

    def _enter(self, candidate: Candidate) -> None:
        """Queue a new candidate, unless it can be seen beforehand that it will not be trained."""
        number = candidate.number
        try:
            if self._known_before:
                costs = candidate.described.costs
                excess = {c: c.violation(costs[c.quantity]) for c in self._known_before}
                broken = [c for c, v in excess.items() if v > 0]
                if broken:
                    self.n_infeasible += 1
                    self._violating[number] = min(_MAX_VIOLATION, sum(excess[c] for c in broken))
                    why = "; ".join(f"{c.quantity}={costs[c.quantity]:g} violates {c}" for c in broken)
                    self._decide(number, candidate, "infeasible", error=why)
                    self._leave(number)
                    return
            if self._varies_steps:
                candidate.steps = candidate.described.steps
        except SparsefrontError as error:
            self.n_accepted += 1
            self.unfinished[number] = candidate
            self.refuse(candidate, str(error))
            self._leave(number)
            return
        self.n_accepted += 1
        self.unfinished[number] = candidate
        if self.is_scheduled:
            candidate.rungs = [k for k, step in enumerate(self.ladder) if step < candidate.steps]
        elif self.ladder:
            candidate.halving = self._halving(number)
            rungs = candidate.halving.bracket.rungs
            met = [k for k in rungs if self.ladder[k] < candidate.steps] if self._varies_steps else rungs
            candidate.rungs = met
            if not candidate.rungs:
                self._leave(number)
        self._make_ready(candidate)

    def _halving(self, number: int) -> Halving:
        """The comparisons of a number; numbers are asked for in ascending order."""
        if self._latest is None or number >= self._latest.bracket.stop:
            bracket = bracket_of(self.arm.rungs, number, self.steps, batch=self._batch)
            self._latest = Halving(self.arm.rungs, bracket)
        return self._latest

    def _leave(self, number: int) -> None:
        """Let nobody wait at a rung for a new number."""
        if self.ladder and not self.is_scheduled:
            self._apply(self._halving(number).leave(number))

    def _exhaust(self) -> None:
        self.is_exhausted = True
        if self._latest is not None and not self.arm.rungs.asynchronous:
            for number in range(self.n_proposed, self._latest.bracket.stop):
                self._apply(self._latest.leave(number))

    def _make_ready(self, candidate: Candidate) -> None:
        at = candidate.start_step, candidate.stop_step
        self.ready.setdefault(at, {})[candidate.number] = candidate

    def take_ready(self, at: tuple[int, int]) -> list[Candidate]:
        """All candidates that are ready for one segment, to be handed out."""
        taken = list(self.ready.pop(at, {}).values())
        for candidate in taken:
            candidate.is_away = True
        self.n_away += len(taken)
        return taken

    def _recall(self, candidate: Candidate) -> None:
        """Its segment is done: it need not be handed out, or has come back."""
        if candidate.is_away:
            candidate.is_away = False
            self.n_away -= 1
            return
        at = candidate.start_step, candidate.stop_step
        waiting = self.ready.get(at, {})
        if waiting.pop(candidate.number, None) is not None and not waiting:
            del self.ready[at]

    # Learning --------------------------------------------------------------------------------------------------------

    def has_ended(self, number: int) -> bool:
        """Whether the outcome of a candidate is committed."""
        return number < self.n_proposed and self._kinds[number] != _NO_OUTCOME

    def has_reached(self, number: int, rung: int) -> bool:
        """Whether it is committed that a candidate reached a rung, or that it has ended."""
        candidate = self.unfinished.get(number)
        if candidate is None:
            return self.has_ended(number)
        return rung in candidate.rungs[: candidate.n_reached]

    def reached(
        self, number: int, rung: int, values: Sequence[float], checkpoint: str | None, identity: str | None
    ) -> None:
        """Learn that a candidate reached a rung, with what was measured there, (c,).

        Raises:
            LedgerError: the record is not of this run.
        """
        self._catch_up(number)
        candidate = self.unfinished.get(number)
        if candidate is None or candidate.next_rung != rung:
            raise LedgerError(
                f"candidate {number} of {self}: the record has it at rung {rung}, where it cannot be: the ledger is "
                "of another version, of another study, or damaged; it can be read still, but to go on start a new one "
                "in another folder"
            )
        self._check_identity(candidate, identity)
        is_on_its_way = self.is_scheduled and candidate.is_away
        if not is_on_its_way:
            self._recall(candidate)
        self._measure(number, values)
        candidate.n_reached += 1
        candidate.start_step = self.ladder[rung]
        candidate.checkpoint = checkpoint
        candidate.behind = (*candidate.behind, (candidate.start_step, checkpoint))
        self._fidelity[number] = min(1.0, candidate.start_step / candidate.steps)
        if self.is_scheduled:
            if not is_on_its_way:
                self._make_ready(candidate)
            return
        assert candidate.halving is not None
        reached = self._to_rung_losses(self._complete(number, candidate))
        if all(map(math.isfinite, reached)):
            sparsity = candidate.described.weight_sparsity if self.arm.rungs.bands else 0.0
            self._apply(candidate.halving.arrive(number, rung, reached, weight_sparsity=sparsity))
        else:
            names = ", ".join(self.arm.rungs.objectives)
            self._decide(number, candidate, "diverged", error=f"rung {rung} was reached without a finite {names}")

    def _apply(self, decisions: Iterable[RungDecision]) -> None:
        for decision in decisions:
            candidate = self.unfinished.get(decision.number)
            if candidate is None:  # it had ended by the time that its neighbours were compared with it
                continue
            if not decision.continues:
                self._decide(decision.number, candidate, "stopped", rung=decision.rung)
                continue
            self._make_ready(candidate)
            assert candidate.halving is not None
            if candidate.next_rung is None and decision.rung + 1 in candidate.halving.bracket.rungs:
                self._apply(candidate.halving.leave(decision.number))

    def halt(self, number: int) -> None:
        """Decide that a candidate was stopped by the cluster's scheduler, at the last rung that it reached."""
        candidate = self.unfinished[number]
        self._decide(number, candidate, "stopped", rung=candidate.rungs[candidate.n_reached - 1])

    def ended(
        self,
        number: int,
        outcome: str,
        values: Sequence[float],
        identity: str | None,
        network: np.void = _NO_NETWORK,
    ) -> None:
        """Learn what became of a candidate, with what was measured, (c,), and what its network is (`networks_in`).

        Raises:
            LedgerError: the record is not of this run.
        """
        self._catch_up(number)
        self._decisions.pop(number, None)
        self._announced.discard(number)
        self._kinds[number] = OUTCOMES.index(outcome)
        self.n_terminal += 1
        if number in self._copies:
            copy, first = self._copies.pop(number)
            self._check_identity(copy, identity)
            for array in (self._values, self._losses, self._partial, self._fidelity, self._violations, self._codes):
                array[number] = array[first]
            return
        code = _CODES.get(outcome, FAILED)
        candidate = self.unfinished.pop(number, None)
        if candidate is None:  # infeasible, or its strategy raised
            self._violations[number] = self._violating.pop(number, 0.0)
            self._codes[number] = code
            self.n_failed += code == FAILED
        else:
            self._networks[number] = network
            self._conclude(candidate, code, values, identity)
        for copied in self._copied.pop(number, ()):
            self._decide_copy(copied, number)

    def _conclude(self, candidate: Candidate, code: int, values: Sequence[float], identity: str | None) -> None:
        """Take the result of a candidate that was to be trained."""
        number = candidate.number
        self._check_identity(candidate, identity)
        self._recall(candidate)
        self._measure(number, values)
        if code == COMPLETED:
            known = self._complete(number, candidate)
            reached, violation = self._to_losses(known), self._violation(known)
            if all(map(math.isfinite, (*reached, violation))):
                self._losses[number], self._violations[number] = reached, violation
                self._fidelity[number] = 1.0
                network = self._networks[number]
                if self.keeps_masks and network["weight_sparsity"] > 0 and (digest := network["mask_digest"].decode()):
                    self.completed[number] = candidate.point, digest
            else:
                code = FAILED
        elif code == STOPPED:
            self._partial[number] = self._to_losses(self._complete(number, candidate))
        self._codes[number] = code
        self.n_finished += 1
        self.n_stopped += code == STOPPED
        self.n_failed += code == FAILED
        if candidate.halving is not None and code == FAILED:
            self._apply(candidate.halving.leave(number))

    def _catch_up(self, number: int) -> None:
        """Propose what was proposed when a row of this number was committed."""
        while number >= self.n_proposed and self.can_propose:
            self.propose()
        if number >= self.n_proposed:
            why = "" if self._failure is None else f" ({self._failure.strip().splitlines()[-1]})"
            raise LedgerError(
                f"candidate {number} of {self} is on record, but strategy {self.arm.strategy!r} does not propose it "
                f"now{why}: go on with the versions of the packages and the modules that the study was begun with"
            )

    def _check_identity(self, candidate: Candidate, identity: str | None) -> None:
        """See that a strategy that looks back proposes what is on record."""
        if self.is_adaptive and identity is not None and candidate.described.id != identity:
            raise LedgerError(
                f"candidate {candidate.number} of {self} is on record as {identity}, but strategy "
                f"{self.arm.strategy!r} proposes {candidate.described.id} now: go on with the versions of the packages "
                "and the modules that the study was begun with"
            )

    # Values of one candidate are few: as lists they are handled in a tenth of the time that arrays take.

    def _measure(self, number: int, values: Sequence[float]) -> None:
        """Add costs to those of earlier segments; the last of all other values counts."""
        known = self._values[number].tolist()
        for i, (value, is_cost) in enumerate(zip(values, self._measures.is_cost, strict=True)):
            if math.isfinite(value):
                known[i] = known[i] + value if is_cost and math.isfinite(known[i]) else value
        self._values[number] = known

    def _complete(self, number: int, candidate: Candidate) -> list[float]:
        """A candidate's values; what follows without training is filled in where no row told it."""
        known: list[float] = self._values[number].tolist()
        if any(map(math.isnan, known)):
            for column in ("n_params", "macs", "weight_sparsity", "node_sparsity"):
                place = self._measures.place(column)
                if place is not None and math.isnan(known[place]):
                    known[place] = candidate.described.costs[column]
            self._values[number] = known
        return known

    def _violation(self, values: Sequence[float]) -> float:
        places = [(c, self._measures.place(c.quantity)) for c in self._known_after]
        return sum(max(0.0, c.violation(values[i])) for c, i in places if i is not None)

    # Deciding --------------------------------------------------------------------------------------------------------

    def decided(self) -> list[Decision]:
        """Rows to be committed that were decided since the last call, in the order of their decisions."""
        found = list(self._decisions.values())
        self._announced.update(self._decisions)
        self._decisions.clear()
        return found

    @property
    def is_deciding(self) -> bool:
        """Whether there are decisions that are not committed yet."""
        return bool(self._decisions or self._announced)

    def refuse(self, candidate: Candidate, error: str) -> None:
        """Decide that a candidate failed because there can be no such network."""
        self._recall(candidate)
        settings = self.arm.space.settings(candidate.point)
        self._decisions[candidate.number] = Decision(
            self.arm.name,
            self.replicate,
            candidate.number,
            "failed",
            candidate.point,
            settings,
            None,
            fixed=self.fixed_of(candidate, settings),
            error=error,
        )

    def _decide(
        self,
        number: int,
        candidate: Candidate | None,
        outcome: str,
        *,
        rung: int | None = None,
        error: str | None = None,
    ) -> None:
        settings = {} if candidate is None else self.arm.space.settings(candidate.point)
        self._decisions[number] = Decision(
            self.arm.name,
            self.replicate,
            number,
            outcome,
            None if candidate is None else candidate.point,
            settings,
            None if candidate is None else candidate.described,
            rung=rung,
            steps=0 if candidate is None else candidate.start_step,
            values=self._known_values(number),
            fixed={} if candidate is None else self.fixed_of(candidate, settings),
            error=error,
        )

    def _decide_copy(self, number: int, first: int) -> None:
        """A candidate that repeats another one ends as that did."""
        copy, _ = self._copies[number]
        outcome = OUTCOMES[self._kinds[first]]
        rung, steps = None, 0
        if outcome == "completed":
            steps = copy.described.steps
        elif outcome in ("stopped", "diverged"):
            steps = round(float(self._fidelity[first]) * copy.described.steps)
            rung = self.ladder.index(steps) if outcome == "stopped" and steps in self.ladder else None
        try:
            described = copy.described
        except SparsefrontError:
            described = None
        settings = self.arm.space.settings(copy.point)
        self._decisions[number] = Decision(
            self.arm.name,
            self.replicate,
            number,
            outcome,
            copy.point,
            settings,
            described,
            rung=rung,
            steps=steps,
            reused_from=first,
            values=self._known_values(first),
            network=self._known_network(first),
            fixed=self.fixed_of(copy, settings),
            error=None if outcome == "completed" else f"repeats candidate {first}",
        )

    def _known_values(self, number: int) -> dict[str, float]:
        values: list[float] = self._values[number].tolist()
        known = zip(self._measures.columns, values, self._measures.is_cost, strict=True)
        return {column: value for column, value, is_cost in known if not is_cost and math.isfinite(value)}

    def _known_network(self, number: int) -> dict[str, Any]:
        """What is on record of a candidate's network, by ledger column."""
        known: dict[str, Any] = {}
        for name, value in zip(OF_NETWORKS, self._networks[number].item(), strict=True):
            if isinstance(value, bytes):
                known |= {name: value.decode()} if value else {}
            elif not math.isnan(value):
                known[name] = _PLAIN[name](value)
        return known

    def _grow(self, n: int) -> None:
        """Make room for n candidates."""
        if n <= len(self._codes):
            return
        size = max(n, 2 * len(self._codes), 64)
        for name in ("_values", "_losses", "_partial", "_fidelity", "_violations", "_codes", "_kinds", "_networks"):
            old = getattr(self, name)
            new = np.full((size, *old.shape[1:]), _EMPTY[name], dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


_EMPTY: Mapping[str, Any] = {
    "_values": np.nan,
    "_losses": np.nan,
    "_partial": np.nan,
    "_fidelity": 0.0,
    "_violations": 0.0,
    "_codes": PENDING,
    "_kinds": _NO_OUTCOME,
    "_networks": _NO_NETWORK,
}


def _id_on_ladder(identity: str, fidelity: str, steps: Sequence[int]) -> str:
    """Id of a candidate whose fidelity grows at these steps: 32 hex digits."""
    named = canonical_json({"candidate": identity, "fidelity": fidelity, "steps": list(steps)})
    return hashlib.blake2b(named.encode(), digest_size=16).hexdigest()


def longest_training(space: Space, steps: int, chain: ChainSettings | None = None) -> int:
    """Optimiser steps of the longest training in a space; `steps` where it does not say.

    Of pruning chains (`chain`: where the space does not say what they are) those of all levels.

    >>> longest_training(Space.from_table({"training": {"steps": {"low": 100, "high": 900}}}), 500)
    900
    >>> space = Space.from_table({"masks": {"rate": {"low": 0.2, "high": 0.5}}})
    >>> from sparsefront.spaces.pruning import Pruning
    >>> longest_training(space, 500, ChainSettings(sparsity=0.5, methods=(Pruning("levels"), Pruning("trained"))))
    2500
    """
    longest = int(space.ends_of("training.steps", steps)[1])
    if chain is None:
        return longest
    sparsity = space.ends_of("masks.sparsity", chain.sparsity)[1]
    slowest = [replace(m, rate=space.ends_of("masks.rate", m.rate)[0], ap_fraction=0.0) for m in chain.methods]
    return longest * max(len(method.chain(sparsity)) for method in slowest)


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
