"""The plan against a slow oracle: whatever is lost, late or replayed, every slot is filled once, and as it must be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.search.design import Design
from sparsefront.search.methods import METHODS, Best, Context, Missing
from sparsefront.search.plan import Plan, ScoreWork, Slot, TrainWork, Work
from sparsefront.search.schema import KEY, SCHEMA
from sparsefront.spaces.candidate import Candidate, CandidateNames

NAMES = CandidateNames({"seed": 1})
#: Ties, and everything that is no score.
LOSSES = (0.5, 1.0, 2.0, None, math.nan, math.inf)
Row = Mapping[str, Any]


def make_design(**changes: Any) -> Design:
    design = Design(
        name="plan",
        seed=1,
        replicates=2,
        sparsities=(0.5, 0.9),
        arms=tuple(METHODS),
        draws=6,
        random_draws=2,
        probe_size=8,
        steps=10,
        mask_kind="node",
        allocation="uniform",
        model="mlp",
        dataset="digits",
    )
    return replace(design, **changes)


@dataclass(frozen=True)
class World:
    """What would happen to every candidate if it were run: the same whoever asks, and whenever."""

    design: Design
    initial: Mapping[tuple[int, float, int], float | None]
    scalefree: Mapping[tuple[int, float, int], float | None]
    parents: Mapping[int, str]

    @classmethod
    def of(cls, design: Design, chance: Random) -> World:
        draws = [(r, s, i) for r in range(design.replicates) for s in design.sparsities for i in range(design.draws)]
        dead = chance.random() < 0.2
        pool = LOSSES[3:] if dead else LOSSES
        return cls(
            design,
            {draw: chance.choice(pool) for draw in draws},
            {draw: chance.choice(pool) for draw in draws},
            {r: chance.choice(("completed", "completed", "diverged", "lost")) for r in range(design.replicates)},
        )

    def run(self, work: Work) -> list[list[Row]]:
        """Batches of rows that a worker reports for `work`, one for each thing that ends at the same moment."""
        if isinstance(work, ScoreWork):
            return [[self.scored(work.replicate, work.sparsity, i) for i in range(work.start, work.stop)]]
        return [self.trained(work, lane.candidate, lane.slots) for lane in work.lanes]

    def scored(self, replicate: int, sparsity: float, draw: int) -> Row:
        row = row_of("scored", "pool", replicate, sparsity, draw)
        place = replicate, sparsity, draw
        return {**row, "mask_draw": draw, "initial_loss": self.initial[place], "scalefree_loss": self.scalefree[place]}

    def trained(self, work: TrainWork, candidate: Candidate, slots: Iterable[Slot]) -> list[Row]:
        is_parent = candidate.network == "parent"
        outcome = self.parents[work.replicate] if is_parent else "completed"
        made = {"outcome": outcome, "candidate": NAMES.of(candidate), "mask_draw": candidate.draw}
        rows = [
            {**row_of("trained", s.arm, work.replicate, work.sparsity, s.slot), **made, "mask_digest": candidate.mask}
            for s in slots
        ]
        if is_parent and outcome == "completed":
            rows += [
                {**row_of("pruned", criterion, work.replicate, sparsity, 0), "mask_digest": f"cut-{sparsity}"}
                for criterion, sparsity in work.derive
            ]
        return rows


def row_of(stage: str, arm: str, replicate: int, sparsity: float, slot: int) -> dict[str, Any]:
    return {
        "stage": stage,
        "arm": arm,
        "replicate": replicate,
        "target_sparsity": sparsity,
        "slot": slot,
        "outcome": "completed",
    }


def batch_of(rows: Iterable[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA)


def expected(world: World) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The oracle: (mask_draw, mask_digest) of every row that the finished study must hold, by key."""
    design, rows = world.design, {}
    arms = {arm: METHODS[arm] for arm in design.arms}
    scores = any(m.needs_scores for m in arms.values())
    prunes = any(m.criterion for m in arms.values())
    for r in range(design.replicates):
        if prunes or "dense" in arms:
            rows["trained", "dense", r, 0.0, 0] = (None, None)
        for s in design.sparsities:
            draws = range(design.draws)
            if scores:
                rows |= {("scored", "pool", r, s, i): (i, None) for i in draws}
            rows |= {("trained", "random", r, s, i): (i, None) for i in range(design.random_draws)}
            if "small_dense" in arms:
                rows["trained", "small_dense", r, s, 0] = (None, None)
            if "magnitude" in arms:
                ok = world.parents[r] == "completed"
                if ok:
                    rows["pruned", "magnitude", r, s, 0] = (None, f"cut-{s}")
                rows["trained", "magnitude", r, s, 0] = (None, f"cut-{s}" if ok else None)
            chosen = {
                "searched": (world.initial, 1),
                "searched_scalefree": (world.scalefree, 1),
                "worst": (world.initial, -1),
            }
            for arm in chosen.keys() & arms.keys():
                losses, sign = chosen[arm]
                best = None
                for i in draws:
                    loss = losses[r, s, i]
                    if loss is None or not math.isfinite(loss):
                        continue
                    if best is None or sign * loss < sign * losses[r, s, best]:  # type: ignore[operator]
                        best = i
                rows["trained", arm, r, s, 0] = (best, None)
    return rows


class Simulation:
    """A driver without a cluster: hands work to imaginary workers, which may be slow, die or be forgotten."""

    def __init__(self, world: World, chance: Random, *, max_retries: int = 1) -> None:
        self.world, self.chance, self.max_retries = world, chance, max_retries
        self.ledger: list[pa.RecordBatch] = []
        self.sizes = chance.randint(1, 4), chance.randint(1, 4)
        self.plan = self.new_plan()
        self.away: list[tuple[Work, list[list[Row]]]] = []

    def new_plan(self) -> Plan:
        masks, lanes = self.sizes
        return Plan(self.world.design, NAMES, masks_per_pack=masks, lanes_per_pack=lanes)

    def commit(self, rows: Iterable[Row]) -> None:
        batch = batch_of(rows)
        fresh = batch.filter(pa.array(self.plan.is_new(batch)))
        if fresh.num_rows:
            self.ledger.append(fresh)
            self.plan.absorb(fresh)

    def record_decided(self) -> None:
        for one in self.plan.decided():
            rows = (row_of("trained", slot.arm, one.replicate, one.sparsity, slot.slot) for slot in one.slots)
            self.commit([{**row, "outcome": "failed", "error": one.reason} for row in rows])

    def step(self, *, chaos: float) -> None:
        self.record_decided()
        if len(self.away) < 3 and self.chance.random() < 0.7:
            work = self.plan.next_work()
            if work is not None:
                self.away.append((work, self.world.run(work)))
                return
        if not self.away:
            return
        at = self.chance.randrange(len(self.away))
        work, reports = self.away[at]
        fate = self.chance.random()
        if fate < chaos / 2:
            del self.away[at]
            self.lose(work)
        elif fate < chaos * 0.6:
            self.crash()
        elif reports:
            report = reports.pop(0)
            self.commit(report)
            if self.chance.random() < 0.1:
                self.commit(report)  # a worker that was given up for lost reports late
        else:
            del self.away[at]
            self.plan.finished(work)

    def lose(self, work: Work) -> None:
        """As the driver does it: divide until the culprit is alone, then give it up after its retries."""
        left = self.plan.without_committed(work)
        if left and all(len(w.halves()) == 1 for w in left) and work.attempt >= self.max_retries:
            for one in left:
                for report in self.world.run(one):
                    self.commit([row for row in report if row["stage"] != "pruned"])
            self.plan.finished(work)
            return
        parts: list[Work] = []
        for one in left:
            halves = one.halves()
            parts += [replace(w, attempt=one.attempt + 1 if len(halves) == 1 else 0) for w in halves]
        self.plan.give_back(parts)

    def crash(self) -> None:
        """The driver dies and comes back: only the ledger is left, merged perhaps, and packs of another size."""
        self.away = []
        self.sizes = self.chance.randint(1, 4), self.chance.randint(1, 4)
        self.plan = self.new_plan()
        if self.ledger and self.chance.random() < 0.5:
            self.plan.absorb(pa.Table.from_batches(self.ledger))
        else:
            for batch in self.ledger:
                self.plan.absorb(batch)

    def finish(self, *, chaos: float) -> None:
        for i in range(10_000):
            self.step(chaos=chaos if i < 200 else 0.0)
            if self.plan.is_done:
                return
        raise AssertionError("the plan never came to an end")

    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in self.ledger for row in batch.to_pylist()]


designs = st.builds(
    make_design,
    replicates=st.integers(1, 3),
    sparsities=st.sampled_from([(0.5,), (0.9, 0.5), (0.5, 0.75, 0.9)]),
    arms=st.sets(st.sampled_from([a for a in METHODS if a != "random"])).map(
        lambda others: tuple(a for a in METHODS if a == "random" or a in others)
    ),
    draws=st.integers(2, 7),
    random_draws=st.integers(1, 2),
)


@settings(max_examples=40, deadline=None)
@given(design=designs, seed=st.integers(0, 2**32), chaos=st.sampled_from([0.0, 0.2, 0.5]))
def test_every_slot_is_filled_once_and_as_the_oracle_says(design: Design, seed: int, chaos: float) -> None:
    chance = Random(seed)
    world = World.of(design, chance)
    if chaos:  # parents that are given up leave no masks, which only a world without such losses can foresee
        world = replace(world, parents=dict.fromkeys(world.parents, "diverged"))
    simulation = Simulation(world, chance)
    simulation.finish(chaos=chaos)

    rows = simulation.rows()
    keys = [tuple(row[name] for name in KEY) for row in rows]
    assert len(set(keys)) == len(keys)
    found = dict(zip(keys, ((row["mask_draw"], row["mask_digest"]) for row in rows), strict=True))
    assert found == expected(world)
    scored, to_score, trained, to_train = simulation.plan.totals()
    assert scored == to_score == sum(row["stage"] == "scored" for row in rows)
    assert trained == to_train == sum(row["stage"] == "trained" for row in rows)


@settings(max_examples=20, deadline=None)
@given(design=designs, seed=st.integers(0, 2**32))
def test_a_replayed_plan_knows_what_the_live_one_knew(design: Design, seed: int) -> None:
    chance = Random(seed)
    simulation = Simulation(World.of(design, chance), chance)
    for _ in range(chance.randint(0, 60)):
        simulation.step(chaos=0.0)
    simulation.record_decided()
    # What is away is lost, as for a driver that died.
    for work, _ in simulation.away:
        simulation.plan.give_back([work])
    replayed = simulation.new_plan()
    for batch in simulation.ledger:
        replayed.absorb(batch)
    assert replayed.totals() == simulation.plan.totals()
    assert handed_out(replayed) == handed_out(simulation.plan)


def handed_out(plan: Plan) -> set[tuple[Any, ...]]:
    """Everything that the plan hands out now, candidate by candidate, so that packs do not matter."""
    found: set[tuple[Any, ...]] = set()
    while (work := plan.next_work()) is not None:
        if isinstance(work, ScoreWork):
            found |= {(work.replicate, work.sparsity, i) for i in range(work.start, work.stop)}
        else:
            found |= {(lane.candidate, lane.id, lane.slots, work.derive) for lane in work.lanes}
    return found


def test_a_plan_without_work_is_done_at_once() -> None:
    design = make_design(replicates=1, sparsities=(0.5,), arms=("random",), random_draws=1)
    plan = Plan(design, NAMES, masks_per_pack=4, lanes_per_pack=4)
    work = plan.next_work()
    assert isinstance(work, TrainWork)
    plan.absorb(batch_of([row_of("trained", "random", 0, 0.5, 0)]))
    assert not plan.is_done
    plan.finished(work)
    assert plan.is_done
    assert plan.next_work() is None
    assert plan.totals() == (0, 0, 1, 1)


def test_a_pack_that_ends_without_all_of_its_rows_is_an_error_not_an_end() -> None:
    plan = Plan(make_design(arms=("random",)), NAMES, masks_per_pack=4, lanes_per_pack=4)
    work = plan.next_work()
    assert work is not None
    with pytest.raises(RuntimeError, match=r"pack train-r0-s0\.5-.* ended, but some of its rows never came"):
        plan.finished(work)


def test_the_parent_is_trained_for_magnitude_even_when_it_is_no_arm() -> None:
    plan = Plan(make_design(arms=("random", "magnitude")), NAMES, masks_per_pack=4, lanes_per_pack=4)
    work = plan.next_work()
    assert isinstance(work, TrainWork)
    assert [lane.slots for lane in work.lanes] == [(Slot("dense", 0),)]
    assert work.derive == (("magnitude", 0.5), ("magnitude", 0.9))
    assert plan.totals() == (0, 0, 0, 2 + 2 * 2 * 3)


def test_a_searched_mask_that_is_also_a_random_draw_travels_once_in_both_slots() -> None:
    design = make_design(replicates=1, sparsities=(0.5,), arms=("random", "searched"), draws=3)
    plan = Plan(design, NAMES, masks_per_pack=8, lanes_per_pack=8)
    losses = {0: 2.0, 1: 1.0, 2: 1.5}
    plan.absorb(
        batch_of(
            {**row_of("scored", "pool", 0, 0.5, i), "initial_loss": x, "scalefree_loss": x} for i, x in losses.items()
        )
    )
    work = plan.next_work()
    assert isinstance(work, TrainWork)
    assert [(lane.candidate.draw, lane.slots) for lane in work.lanes] == [
        (0, (Slot("random", 0),)),
        (1, (Slot("random", 1), Slot("searched", 0))),
    ]


def test_trainings_are_handed_out_before_scorings_and_lost_work_before_both() -> None:
    plan = Plan(make_design(), NAMES, masks_per_pack=6, lanes_per_pack=8)
    first, second, third = (plan.next_work() for _ in range(3))
    assert [type(w) for w in (first, second, third)] == [TrainWork, TrainWork, ScoreWork]
    assert isinstance(third, ScoreWork)
    plan.give_back(third.halves())
    assert [plan.next_work() for _ in range(2)] == third.halves()


def test_work_that_cannot_be_divided_is_its_own_half() -> None:
    one = ScoreWork(0, 0.5, 3, 4)
    assert one.halves() == [one]
    assert [(w.start, w.stop) for w in ScoreWork(0, 0.5, 3, 8).halves()] == [(3, 5), (5, 8)]


def test_a_failed_parent_makes_magnitude_impossible_and_says_why() -> None:
    design = make_design(replicates=1, sparsities=(0.5,), arms=("random", "magnitude"))
    plan = Plan(design, NAMES, masks_per_pack=4, lanes_per_pack=4)
    plan.absorb(batch_of([{**row_of("trained", "dense", 0, 0.0, 0), "outcome": "diverged"}]))
    (found,) = plan.decided()
    assert found.slots == (Slot("magnitude", 0),)
    assert found.reason == "the parent of replicate 0 did not complete (diverged)"
    assert plan.decided() == []


def test_only_the_scores_that_are_missing_make_an_arm_impossible() -> None:
    design = make_design(replicates=1, sparsities=(0.5,), arms=("random", "searched", "searched_scalefree"))
    plan = Plan(design, NAMES, masks_per_pack=8, lanes_per_pack=8)
    plan.absorb(batch_of({**row_of("scored", "pool", 0, 0.5, i), "initial_loss": 1.0} for i in range(6)))
    (found,) = plan.decided()
    assert (found.slots, found.reason) == ((Slot("searched_scalefree", 0),), "no mask of this level has a finite score")


def test_learning_costs_what_was_learnt_not_what_is_planned() -> None:
    # Counted, not timed: a level is looked at when it is new and when its scores or its pruned mask are complete.
    design = make_design(replicates=10, sparsities=(0.5, 0.7, 0.9), arms=("random", "searched"), draws=20)
    asked = 0

    class Counted:
        summary = source = ""
        is_dense, needs_scores = False, True
        criterion: str | None = None

        def n_slots(self, context: Context) -> int:
            return 1

        def candidates(self, context: Context) -> list[Candidate] | Missing | None:
            nonlocal asked
            asked += 1
            return METHODS["searched"].candidates(context)

    plan = Plan(design, NAMES, masks_per_pack=1, lanes_per_pack=8)
    plan._arms["searched"] = Counted()
    while (work := plan.next_work()) is not None:
        if isinstance(work, ScoreWork):
            row = row_of("scored", "pool", work.replicate, work.sparsity, work.start)
            plan.absorb(batch_of([{**row, "initial_loss": 1.0, "scalefree_loss": 1.0}]))
        else:
            slots = [s for lane in work.lanes for s in lane.slots]
            plan.absorb(batch_of(row_of("trained", s.arm, work.replicate, work.sparsity, s.slot) for s in slots))
        plan.finished(work)
    assert plan.is_done
    assert asked == 2 * 10 * 3  # with 600 packs


@pytest.mark.parametrize("rows", [[], [row_of("scored", "pool", 0, 0.5, 0)]])
def test_is_new_marks_rows_one_by_one(rows: list[Row]) -> None:
    plan = Plan(make_design(arms=("random", "searched")), NAMES, masks_per_pack=4, lanes_per_pack=4)
    if rows:
        plan.absorb(batch_of(rows))
    asked = batch_of([row_of("scored", "pool", 0, 0.5, i) for i in (0, 1)])
    assert plan.is_new(asked).tolist() == [not rows, True]
    mixed = batch_of([row_of("trained", "random", 0, 0.5, 0), row_of("scored", "pool", 0, 0.5, 0)])
    assert plan.is_new(mixed).tolist() == [True, not rows]
    assert plan.is_new(batch_of([])).tolist() == []


def test_ties_go_to_the_earlier_draw_whichever_order_they_arrive_in() -> None:
    design = make_design(replicates=1, sparsities=(0.5,), arms=("random", "searched", "worst"), draws=4)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        plan = Plan(design, NAMES, masks_per_pack=8, lanes_per_pack=8)
        for i in order:
            loss = {0: None, 1: 1.0, 2: 1.0, 3: math.nan}[i]
            plan.absorb(
                batch_of([{**row_of("scored", "pool", 0, 0.5, i), "initial_loss": loss, "scalefree_loss": 1.0}])
            )
        assert plan._levels[0, 0.5].best() == Best(1, 0, 1)
