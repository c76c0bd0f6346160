"""The plan against a slow oracle: whatever is lost, late or replayed, every slot is filled once, and as it must be."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.search.design import Design
from sparsefront.search.methods import BASELINE, METHODS, PRUNERS, Best, Context, Cut, Missing, methods_of
from sparsefront.search.methods.method import EveryLevel
from sparsefront.search.plan import Lane, Plan, ScoreWork, Slot, TrainWork, Work
from sparsefront.search.schema import KEY, SCHEMA
from sparsefront.spaces.candidate import Candidate, CandidateNames
from sparsefront.spaces.controls import CONTROLS
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.schedules import levels

NAMES = CandidateNames({"seed": 1})
STEPS, RANDOM_DRAWS = 10, 2
#: Ties, and everything that is no score.
LOSSES = (0.5, 1.0, 2.0, None, math.nan, math.inf)
Row = Mapping[str, Any]
Tables = Mapping[str, Mapping[str, Any]]


def make_design(arms: Tables | Iterable[str] = BASELINE, **changes: Any) -> Design:
    tables = arms if isinstance(arms, Mapping) else {arm: {} for arm in arms}
    design = Design(
        name="plan",
        seed=1,
        replicates=2,
        sparsities=(0.5, 0.9),
        arms=tuple(methods_of(tables)),
        methods=tables,
        draws=6,
        random_draws=RANDOM_DRAWS,
        probe_size=8,
        steps=STEPS,
        mask_kind="node",
        allocation="uniform",
        model="mlp",
        dataset="digits",
    )
    return replace(design, **changes)


@dataclass(frozen=True)
class World:
    """What would happen to every candidate if it were run: the same whoever asks, and whenever.

    `given_up` are slots whose candidates were lost too often; `frailty` is the chance that one fails by itself.
    """

    design: Design
    initial: Mapping[tuple[int, float, int], float | None]
    scalefree: Mapping[tuple[int, float, int], float | None]
    seed: int
    frailty: float
    given_up: set[tuple[Any, ...]] = field(default_factory=set)

    @classmethod
    def of(cls, design: Design, chance: Random) -> World:
        draws = [(r, s, i) for r in range(design.replicates) for s in design.sparsities for i in range(design.draws)]
        dead = chance.random() < 0.2
        pool = LOSSES[3:] if dead else LOSSES
        return cls(
            design,
            {draw: chance.choice(pool) for draw in draws},
            {draw: chance.choice(pool) for draw in draws},
            chance.getrandbits(32),
            chance.choice((0.0, 0.1, 0.4)),
        )

    def fate(self, candidate: Candidate) -> str:
        chance = Random(f"{self.seed}{NAMES.of(candidate)}")
        return chance.choice(("diverged", "failed")) if chance.random() < self.frailty else "completed"

    def digest(self, candidate: Candidate) -> str | None:
        """Of the mask that a candidate ends with: one that it was given, drew, shuffled or made."""
        if candidate.network != "masked" or candidate.draw is not None:
            return None
        if candidate.mask is not None and not (candidate.control and CONTROLS[candidate.control].shuffle):
            return candidate.mask
        return f"made by {NAMES.of(candidate)}"

    @staticmethod
    def cut(origin: str, method: Pruning, sparsity: float) -> str:
        """Digest of the mask that a method cuts from a network."""
        return hashlib.sha256(f"{origin}{method.as_data()}{sparsity!r}".encode()).hexdigest()[:32]

    def run(self, work: Work) -> list[list[Row]]:
        """Batches of rows that a worker reports for `work`, one for each thing that ends at the same moment."""
        if isinstance(work, ScoreWork):
            return [[self.scored(work.replicate, work.sparsity, i) for i in range(work.start, work.stop)]]
        return [self.trained(work, lane) for lane in work.lanes]

    def scored(self, replicate: int, sparsity: float, draw: int) -> Row:
        row = row_of("scored", "pool", replicate, sparsity, draw)
        place = replicate, sparsity, draw
        return {**row, "mask_draw": draw, "initial_loss": self.initial[place], "scalefree_loss": self.scalefree[place]}

    def trained(self, work: TrainWork, lane: Lane, outcome: str = "") -> list[Row]:
        candidate, name = lane.candidate, NAMES.of(lane.candidate)
        assert lane.id == name
        # It begins with weights that were kept, and keeps its own for those that begin with them.
        assert lane.checkpoint == (None if candidate.origin is None else f"weights of {candidate.origin}")
        assert lane.keeps_weights == any(cut.method.survivors == "trained" for cut in lane.cuts)
        outcome = outcome or self.fate(candidate)
        completed = outcome == "completed"
        made = {
            "outcome": outcome,
            "candidate": name,
            "mask_draw": candidate.draw,
            "mask_digest": self.digest(candidate) if completed else candidate.mask,
            "checkpoint": f"weights of {name}" if completed and lane.keeps_weights else None,
        }
        rows = [{**row_of(lane.stage, s.arm, *lane.level, s.slot), **made} for s in lane.slots]
        for cut in lane.cuts if completed else ():
            row = row_of("pruned", cut.arm, candidate.replicate, cut.sparsity, 0)
            rows.append({**row, "candidate": name, "mask_digest": self.cut(name, cut.method, cut.sparsity)})
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


FAILED = ("failed", None, None, None)


class Oracle:
    """What a finished study must hold, by key: (outcome, mask_draw, mask_digest, candidate), the slow way."""

    def __init__(self, world: World) -> None:
        self.world, self.rows = world, {}
        design = world.design
        self.rows: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        pruners = {arm: self.method(arm) for arm in design.methods if self.called(arm) in PRUNERS}
        prunes = any(method.needs_parent for method in pruners.values())
        for r in range(design.replicates):
            if prunes or "dense" in design.methods:
                self.add("dense", r, 0.0, 0, Candidate(r, 0.0, "parent"))
            for s in design.sparsities:
                self.drawn(r, s)
                if "small_dense" in design.methods:
                    self.add("small_dense", r, s, 0, Candidate(r, s, "small_dense"))
            for arm, method in pruners.items():
                self.pruned(arm, method, r)
                for control in design.methods[arm].get("controls", ()):
                    for s in self.levels(method):
                        if s in design.sparsities:
                            self.control(arm, method, control, r, s)

    def called(self, arm: str) -> str:
        return str(self.world.design.methods[arm].get("method", arm))

    def method(self, arm: str) -> Pruning:
        changes = {k: v for k, v in self.world.design.methods[arm].items() if k not in ("method", "controls")}
        return replace(PRUNERS[self.called(arm)].method, **changes)

    def levels(self, method: Pruning) -> list[float]:
        wanted = sorted(s for s in self.world.design.sparsities if method.pattern == "unstructured" or s == 0.5)
        if method.when != "levels" or not wanted:
            return wanted
        exact = {1 - s: s for s in wanted}
        return [exact.get(density, 1 - density) for density in levels(wanted, method.rate)[1:]]

    def add(self, arm: str, r: int, s: float, slot: int, candidate: Candidate) -> str | None:
        """The row of a candidate; its id if it completes."""
        stage = "trained" if s == 0.0 or s in self.world.design.sparsities else "level"
        outcome = "lost" if (arm, r, s, slot) in self.world.given_up else self.world.fate(candidate)
        name = NAMES.of(candidate)
        digest = self.world.digest(candidate) if outcome == "completed" else candidate.mask
        self.rows[stage, arm, r, s, slot] = (outcome, candidate.draw, digest, name)
        return name if outcome == "completed" else None

    def drawn(self, r: int, s: float) -> None:
        world, design = self.world, self.world.design
        chosen = {
            "searched": (world.initial, 1),
            "searched_scalefree": (world.scalefree, 1),
            "worst": (world.initial, -1),
        }
        draws = range(design.draws)
        if chosen.keys() & design.methods.keys():
            self.rows |= {("scored", "pool", r, s, i): ("completed", i, None, None) for i in draws}
        for i in range(design.random_draws):
            self.add("random", r, s, i, Candidate(r, s, "masked", draw=i))
        for arm in chosen.keys() & design.methods.keys():
            losses, sign = chosen[arm]
            best = None
            for i in draws:
                loss = losses[r, s, i]
                if loss is None or not math.isfinite(loss):
                    continue
                if best is None or sign * loss < sign * losses[r, s, best]:  # type: ignore[operator]
                    best = i
            if best is None:
                self.rows["trained", arm, r, s, 0] = FAILED
            else:
                self.add(arm, r, s, 0, Candidate(r, s, "masked", draw=best))

    def pruned(self, arm: str, method: Pruning, r: int) -> None:
        parent = self.completed("dense", r, 0.0) if method.needs_parent else None
        origin = parent
        for s in self.levels(method):
            stage = "trained" if s in self.world.design.sparsities else "level"
            if not method.needs_parent:
                self.add(arm, r, s, 0, Candidate(r, s, "masked", method=method))
                continue
            origin = origin if method.when == "levels" else parent
            if origin is None:
                self.rows[stage, arm, r, s, 0] = FAILED
                continue
            mask = self.world.cut(origin, method, s)
            self.rows["pruned", arm, r, s, 0] = ("completed", None, mask, origin)
            k = round(method.rewind_fraction * STEPS)
            began: dict[str, Any] = {}
            if method.survivors == "trained":
                began = {"start": "trained", "origin": origin, "method": method}
            elif k:
                began = {"start": "rewound", "rewind_step": k}
            origin = self.add(arm, r, s, 0, Candidate(r, s, "masked", mask=mask, **began))

    def completed(self, arm: str, r: int, s: float) -> str | None:
        outcome, _, _, name = self.rows["trained", arm, r, s, 0]
        return name if outcome == "completed" else None

    def control(self, arm: str, method: Pruning, control: str, r: int, s: float) -> None:
        name = f"{arm}_{control}"
        if control == "dense_budget":
            n_levels = sum(level <= s for level in self.levels(method)) if method.when == "levels" else 1
            each = STEPS - round(method.rewind_fraction * STEPS)
            steps = n_levels * each + (STEPS if method.needs_parent else 0)
            self.add(name, r, s, 0, Candidate(r, s, "parent", steps=steps))
        elif self.completed(arm, r, s) is None:
            self.rows["trained", name, r, s, 0] = FAILED
        elif control == "small_dense":
            mask = self.rows["trained", arm, r, s, 0][2]
            self.add(name, r, s, 0, Candidate(r, s, "small_dense", mask=mask, control=control))
        else:
            mask = self.rows["trained", arm, r, s, 0][2]
            k = 0 if control == "fresh_weights" else round(method.rewind_fraction * STEPS)
            began: dict[str, Any] = {"start": "rewound", "rewind_step": k} if k else {}
            if method.needs_parent and method.survivors == "trained" and control != "fresh_weights":
                began = {"start": "trained", "method": method, "origin": self.rows["pruned", arm, r, s, 0][3]}
            elif method.pattern != "unstructured" and control == "shuffled_layers":
                began["method"] = Pruning("trained", pattern=method.pattern)
            self.add(name, r, s, 0, Candidate(r, s, "masked", mask=mask, control=control, **began))


class Simulation:
    """A driver without a cluster: hands work to imaginary workers, which may be slow, die or be forgotten."""

    def __init__(self, world: World, chance: Random, *, max_retries: int = 1) -> None:
        self.world, self.chance, self.max_retries = world, chance, max_retries
        self.ledger: list[pa.RecordBatch] = []
        self.sizes = chance.randint(1, 4), chance.randint(1, 4)
        self.plan = self.new_plan()
        self.away: list[tuple[Work, list[list[Row]]]] = []
        self.late: list[list[Row]] = []

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
            rows = (row_of(one.stage, slot.arm, one.replicate, one.sparsity, slot.slot) for slot in one.slots)
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
            self.late += reports  # a worker that was given up for lost may report all the same
        elif fate < chaos * 0.6:
            self.crash()
        elif reports:
            report = reports.pop(0)
            self.commit(report)
            if self.chance.random() < 0.1:
                self.commit(report)
        elif self.late and self.chance.random() < 0.5:
            self.commit(self.late.pop())
        else:
            del self.away[at]
            self.plan.finished(work)

    def lose(self, work: Work) -> None:
        """As the driver does it: divide until the culprit is alone, then give it up after its retries."""
        left = self.plan.without_committed(work)
        if left and all(len(w.halves()) == 1 for w in left) and work.attempt >= self.max_retries:
            for one in left:
                if isinstance(one, ScoreWork):
                    for report in self.world.run(one):
                        self.commit(report)
                    continue
                for lane in one.lanes:
                    self.world.given_up.update((s.arm, *lane.level, s.slot) for s in lane.slots)
                    self.commit(self.world.trained(one, lane, "lost"))
            self.plan.finished(work)
            return
        parts: list[Work] = []
        for one in left:
            halves = one.halves()
            parts += [replace(w, attempt=one.attempt + 1 if len(halves) == 1 else 0) for w in halves]
        self.plan.give_back(parts)

    def crash(self) -> None:
        """The driver dies and comes back: only the ledger is left, merged perhaps, and packs of another size."""
        self.away, self.late = [], []
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


#: Arms of studies to be planned: every method, chains with and without rewinding or kept weights, and controls.
ARMS: Tables = {
    **{arm: {} for arm in METHODS if arm != "random"},
    "imp": {"controls": ["shuffled", "small_dense", "dense_budget"]},
    "quick": {"method": "imp", "rate": 0.6, "controls": ["fresh_weights"]},
    "late": {"method": "imp_rewind", "rewind_fraction": 0.3, "controls": ["shuffled_layers", "dense_budget"]},
    "tuned": {"method": "lr_rewind", "rate": 0.5},
    "tuned_again": {"method": "lr_rewind", "rate": 0.5, "controls": ["small_dense"]},
    "snip": {"controls": ["shuffled_layers", "fresh_weights", "small_dense"]},
    "nm_2_4": {"controls": ["shuffled_layers", "dense_budget"]},
}
designs = st.builds(
    make_design,
    replicates=st.integers(1, 2),
    sparsities=st.sampled_from([(0.5,), (0.9, 0.5), (0.5, 0.75, 0.9)]),
    arms=st.sets(st.sampled_from(list(ARMS)), max_size=7).map(
        lambda chosen: {arm: ARMS.get(arm, {}) for arm in ("random", *ARMS) if arm == "random" or arm in chosen}
    ),
    draws=st.integers(2, 7),
    random_draws=st.integers(1, 2),
)


@settings(max_examples=40, deadline=None)
@given(design=designs, seed=st.integers(0, 2**32), chaos=st.sampled_from([0.0, 0.2, 0.5]))
def test_every_slot_is_filled_once_and_as_the_oracle_says(design: Design, seed: int, chaos: float) -> None:
    chance = Random(seed)
    simulation = Simulation(World.of(design, chance), chance)
    simulation.finish(chaos=chaos)

    rows = simulation.rows()
    keys = [tuple(row[name] for name in KEY) for row in rows]
    assert len(set(keys)) == len(keys)
    told = ("outcome", "mask_draw", "mask_digest", "candidate")
    assert (
        dict(zip(keys, (tuple(row[name] for name in told) for row in rows), strict=True))
        == Oracle(simulation.world).rows
    )
    scored, to_score, trained, to_train = simulation.plan.totals()
    assert scored == to_score == sum(row["stage"] == "scored" for row in rows)
    assert trained == to_train == sum(row["stage"] in ("trained", "level") for row in rows)
    assert simulation.plan.is_complete


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
            for lane in work.lanes:
                # Slot by slot: a replayed plan may ask at once what a live one asked one after the other.
                found |= {(lane.stage, lane.checkpoint, lane.candidate, slot) for slot in lane.slots}
                found |= {(lane.candidate, cut, lane.keeps_weights) for cut in lane.cuts}
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
    assert [lane.slots for lane in work.lanes] == [(Slot("dense", 0),)] * 2
    assert [lane.level for lane in work.lanes] == [(0, 0.0), (1, 0.0)]
    method = PRUNERS["magnitude"].method
    assert [lane.cuts for lane in work.lanes] == [(Cut("magnitude", 0.5, method), Cut("magnitude", 0.9, method))] * 2
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
    assert [type(w) for w in (first, second, third)] == [TrainWork, ScoreWork, ScoreWork]
    assert first is not None
    assert isinstance(third, ScoreWork)
    plan.give_back([*third.halves(), first])
    assert [plan.next_work() for _ in range(3)] == [first, *third.halves()]


def packs_of(design: Design, *, workers: int, at_once: int, chance: Random) -> list[list[tuple[str, int, float]]]:
    """(arm, replicate, sparsity) of the lanes of all packs, in a world where whoever is away returns at random."""
    world = replace(World.of(design, Random(0)), frailty=0.0)
    plan = Plan(design, NAMES, masks_per_pack=4, lanes_per_pack=16, workers=workers)
    away: list[tuple[Work, list[list[Row]]]] = []
    found: list[list[tuple[str, int, float]]] = []
    while not plan.is_done:
        work = plan.next_work() if len(away) < at_once else None
        if work is not None:
            away.append((work, world.run(work)))
            if isinstance(work, TrainWork):
                found.append([(lane.slots[0].arm, *lane.level) for lane in work.lanes])
            continue
        for one in plan.decided():
            plan.absorb(batch_of(row_of(one.stage, s.arm, one.replicate, one.sparsity, s.slot) for s in one.slots))
        at = chance.randrange(len(away))
        work, reports = away[at]
        if reports:
            plan.absorb(batch_of(reports.pop(0)))
        else:
            del away[at]
            plan.finished(work)
    assert plan.is_complete
    return found


def test_chains_of_a_cohort_travel_together_and_there_is_a_cohort_for_every_worker() -> None:
    design = make_design({"imp": {"rate": 0.5}, "rigl": {}}, replicates=5, sparsities=(0.5, 0.75), mask_kind="weight")
    for workers, cohorts in ((1, [range(5)]), (2, [range(2), range(2, 5)]), (4, [range(r, r + 1) for r in range(5)])):
        found = packs_of(design, workers=workers, at_once=1, chance=Random(0))
        assert sorted(found) == sorted(
            [(arm, r, level) for r in cohort]
            for cohort in cohorts
            for arm, level in (("dense", 0.0), *((arm, level) for arm in ("imp", "rigl") for level in (0.5, 0.75)))
        )


@given(seed=st.integers(0, 2**32 - 1), at_once=st.integers(1, 6), workers=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_packs_do_not_depend_on_who_returns_first(seed: int, at_once: int, workers: int) -> None:
    arms: Tables = {
        "random": {},
        "searched": {"controls": ["small_dense"]},
        "imp": {"controls": ["shuffled", "fresh_weights", "dense_budget"]},
        "lr_rewind": {"rate": 0.6},
        "rigl": {"controls": ["shuffled_layers"]},
        "magnitude_oneshot": {"controls": ["shuffled"]},
    }
    design = make_design(arms, replicates=5, mask_kind="weight", sparsities=(0.5, 0.75))
    expected = packs_of(design, workers=workers, at_once=1, chance=Random(0))
    found = packs_of(design, workers=workers, at_once=at_once, chance=Random(seed))
    assert sorted(found) == sorted(expected)


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


def test_a_failure_in_the_middle_of_a_chain_fails_all_levels_after_it_and_their_controls() -> None:
    arms = {"random": {}, "imp": {"controls": ["shuffled", "dense_budget"]}}
    design = make_design(arms, replicates=1, sparsities=(0.5, 0.8), random_draws=1)
    plan = Plan(design, NAMES, masks_per_pack=4, lanes_per_pack=4)
    chain = METHODS["imp"].levels((0.5, 0.8))
    parent = row_of("trained", "dense", 0, 0.0, 0)
    plan.absorb(
        batch_of([{**parent, "candidate": "p"}, {**row_of("pruned", "imp", 0, chain[0], 0), "mask_digest": "m"}])
    )
    plan.absorb(batch_of([{**row_of("level", "imp", 0, chain[0], 0), "outcome": "diverged"}]))
    reasons = {}
    while found := plan.decided():
        for one in found:
            (slot,) = one.slots
            reasons[slot.arm, one.sparsity] = one.reason
            assert one.stage == ("trained" if one.sparsity in (0.5, 0.8) else "level")
            plan.absorb(batch_of([{**row_of(one.stage, slot.arm, 0, one.sparsity, 0), "outcome": "failed"}]))
    assert set(reasons) == {*(("imp", s) for s in chain[1:]), *(("imp_shuffled", s) for s in (0.5, 0.8))}
    assert reasons["imp", chain[1]] == f"its network at {chain[0]:g} did not complete (diverged)"
    assert reasons["imp_shuffled", 0.8] == "its network at 0.8 did not complete (failed)"
    left = handed_out(plan)
    assert {slot for *_, slot in left} == {Slot("random", 0), Slot("imp_dense_budget", 0)}


def test_an_arm_whose_candidate_another_arm_had_before_is_filled_in_a_resumed_study_too() -> None:
    arms = {"random": {}, "imp": {"rate": 0.9}, "mirl": {"rate": 0.9}}
    design = make_design(arms, replicates=1, sparsities=(0.5,), random_draws=1)
    plan = Plan(design, NAMES, masks_per_pack=4, lanes_per_pack=4)
    cut = [{**row_of("pruned", arm, 0, 0.5, 0), "mask_digest": "cd" * 16} for arm in ("imp", "mirl")]
    rows = [row_of("trained", arm, 0, 0.5, 0) for arm in ("random", "imp")]
    plan.absorb(batch_of([row_of("trained", "dense", 0, 0.0, 0), *cut, *rows]))
    work = plan.next_work()
    assert isinstance(work, TrainWork)
    assert [lane.slots for lane in work.lanes] == [(Slot("mirl", 0),)]
    assert plan.next_work() is None


def test_equal_networks_of_chains_that_go_in_step_are_trained_once_and_cut_for_both() -> None:
    design = make_design(("random", "imp", "mirl"), replicates=1, sparsities=(0.36,), random_draws=1)
    plan = Plan(design, NAMES, masks_per_pack=4, lanes_per_pack=4)
    first, last = METHODS["imp"].levels((0.36,))
    cut = [{**row_of("pruned", arm, 0, first, 0), "mask_digest": "m", "candidate": "p"} for arm in ("imp", "mirl")]
    plan.absorb(batch_of([row_of("trained", "dense", 0, 0.0, 0), *cut]))
    packs = [plan.next_work() for _ in range(2)]
    (work,) = (w for w in packs if isinstance(w, TrainWork) and w.lanes[0].stage == "level")
    (lane,) = work.lanes
    assert lane.slots == (Slot("imp", 0), Slot("mirl", 0))
    assert [(cut.arm, cut.sparsity) for cut in lane.cuts] == [("imp", last), ("mirl", last)]


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

    class Counted(EveryLevel):
        summary = source = ""
        needs_scores = True

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
            slots = [(lane.level, s) for lane in work.lanes for s in lane.slots]
            plan.absorb(batch_of(row_of("trained", s.arm, *level, s.slot) for level, s in slots))
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
