"""The plan of a search: whatever is lost, late or replayed, every candidate ends once, and as it must."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import LedgerError, SpaceError
from sparsefront.search.design import RungSettings, SearchControl, SearchDesign
from sparsefront.search.exploration import Exploration
from sparsefront.search.run import MAX_PROPOSALS_EACH
from sparsefront.search.schema import KEY
from sparsefront.search.strategies import (
    COMPLETED,
    FAILED,
    INFEASIBLE,
    STOPPED,
    STRATEGIES,
    History,
    Options,
    Strategy,
    Task,
)
from sparsefront.search.strategies.random import random_points
from sparsefront.search.work import Decision, Described, SegmentWork
from sparsefront.spaces.constraints import Constraint
from sparsefront.spaces.domains import Point
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space
from tests.synthetic_exploration import (
    SPACE,
    STEPS,
    arm_of,
    batch_of,
    decided,
    describe,
    design_of,
    explore,
    loss_of,
    reported,
)

HALVING = RungSettings("successive_halving", eta=3, min_steps=3, bracket=12)
ASHA = RungSettings("asha", eta=2, min_steps=3, bracket=10)
PARETO = RungSettings("mo_asha", eta=2, min_steps=3, bracket=16, objectives=("val_error", "n_params"))
GROWN = RungSettings("hyperband", eta=3, min_steps=3, fidelity="data_fraction")
WHOLE = Space.from_table({"training": {"batch_size": {"low": 5, "high": 8}, "lr": {"choices": [0.1, 0.2, 0.3, 0.4]}}})
FINITE = Space.from_table({"training": {"optimizer": {"choices": ["adam", "sgd"]}, "batch_size": {"choices": [5, 10]}}})

MIXED = design_of(
    arm_of("plain"),
    arm_of("halving", rungs=HALVING),
    arm_of("asha", rungs=replace(ASHA, bands=(0.7,))),
    arm_of("hyperband", rungs=RungSettings("hyperband", eta=3, min_steps=3)),
    arm_of("evolving", "evolution", candidates=16, rungs=HALVING),
    arm_of("pareto", "evolution", candidates=16, rungs=PARETO),
    arm_of("few", space=FINITE, rungs=ASHA),
    arm_of("grown", "evolution", space=WHOLE, candidates=14, rungs=GROWN),
    arm_of("small", space=replace(Space.from_table(SPACE), constraints=(Constraint("n_params", "<=", 600.0),))),
    controls=(
        SearchControl("plain_shuffled", "plain", "shuffled"),
        SearchControl("plain_dense_budget", "plain", "dense_budget"),
        SearchControl("evolving_fresh_weights", "evolving", "fresh_weights"),
        SearchControl("few_shuffled_layers", "few", "shuffled_layers"),
        SearchControl("small_small_dense", "small", "small_dense"),
    ),
)
ASYNCHRONOUS = design_of(
    arm_of("asha", rungs=replace(ASHA, asynchronous=True)),
    arm_of("pareto", "evolution", rungs=replace(PARETO, asynchronous=True)),
)


class Simulation:
    """A driver without a cluster: imaginary workers may be slow, die or be forgotten, and the driver may be killed."""

    def __init__(self, design: SearchDesign, chance: Random, *, kills: bool = False, **changes: Any) -> None:
        self.design, self.chance, self.kills, self.changes = design, chance, kills, changes
        self.plan = explore(design, **changes)
        self.commits: list[pa.RecordBatch] = []
        self.is_decided: list[bool] = []
        self.running: list[tuple[SegmentWork, list[dict[str, Any]]]] = []
        self.handed_out: list[SegmentWork] = []

    def commit(self, rows: Sequence[dict[str, Any]], *, is_decided: bool = False) -> None:
        batch = batch_of(rows)
        assert self.plan.is_new(batch).all()
        self.commits.append(batch)
        self.is_decided.append(is_decided)
        self.plan.absorb(batch)
        assert not self.plan.is_new(batch).any()

    def record(self) -> None:
        while decisions := self.plan.decided():
            self.commit([decided(one) for one in decisions], is_decided=True)

    def take(self) -> SegmentWork | None:
        self.record()
        work = self.plan.next_work()
        if work is not None:
            self.handed_out.append(work)
            rows = reported(work)
            self.chance.shuffle(rows)
            self.running.append((work, rows))
        return work

    def step(self) -> None:
        work, rows = self.running.pop(self.chance.randrange(len(self.running)))
        fate = self.chance.random()
        if self.kills and fate < 0.1:  # lost with its worker; a part may have come through
            done = self.chance.randrange(len(rows) + 1)
            if rows[:done]:
                self.commit(rows[:done])
            self.plan.give_back([h for left in self.plan.without_committed(work) for h in left.halves()])
        elif self.kills and fate < 0.12:  # the driver is killed, and everything under way with it
            self.running.clear()
            self.plan = explore(self.design, **self.changes)
            for batch in self.commits:
                self.plan.absorb(batch)
        elif fate < 0.5 and len(rows) > 1:  # some lanes report before the others
            self.commit(rows[:1])
            self.running.append((work, rows[1:]))
        else:
            self.commit(rows)
            self.plan.finished(work)

    def run(self, workers: int = 2) -> list[dict[str, Any]]:
        while True:
            while len(self.running) < workers and self.take() is not None:
                pass
            self.record()
            if not self.running:
                if self.plan.is_done:
                    break
                continue
            self.step()
        assert self.plan.is_complete
        assert self.plan.next_work() is None
        return self.rows()

    def rows(self) -> list[dict[str, Any]]:
        columns = [*KEY, "candidate", "outcome", "rung", "reused", "val_loss"]
        rows = pa.Table.from_batches(self.commits).select(columns).to_pylist()
        return sorted(rows, key=lambda row: tuple(row[name] for name in KEY))


def ends(rows: Sequence[dict[str, Any]], arm: str, replicate: int = 0) -> list[dict[str, Any]]:
    return [r for r in rows if r["stage"] == "trained" and r["arm"] == arm and r["replicate"] == replicate]


def run_in_order(design: SearchDesign, **changes: Any) -> list[dict[str, Any]]:
    return Simulation(design, Random(0), **changes).run(workers=1)


# Order, loss and replay ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_order() -> list[dict[str, Any]]:
    return run_in_order(MIXED)


@given(seed=st.integers(0, 2**32), workers=st.integers(1, 5), max_lanes=st.sampled_from([2, 5, 64]))
@settings(max_examples=3, deadline=None)
def test_what_becomes_of_candidates_depends_on_nothing_but_the_design(
    in_order: list[dict[str, Any]], seed: int, workers: int, max_lanes: int
) -> None:
    simulation = Simulation(MIXED, Random(seed), kills=True, workers=workers, max_lanes=max_lanes)
    assert simulation.run(workers) == in_order


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_nor_does_it_under_many_more_losses_and_kills(in_order: list[dict[str, Any]], seed: int) -> None:
    simulation = Simulation(MIXED, Random(seed), kills=True, workers=seed % 5 + 1, max_lanes=seed % 9 + 1)
    assert simulation.run(seed % 5 + 1) == in_order


def test_every_candidate_ends_exactly_once(in_order: list[dict[str, Any]]) -> None:
    keys = Counter(tuple(row[name] for name in KEY) for row in in_order)
    assert set(keys.values()) == {1}
    for arm in MIXED.arms:
        for replicate in range(MIXED.replicates):
            mine = ends(in_order, arm.name, replicate)
            assert [row["slot"] for row in mine] == list(range(len(mine)))
            n_counted = sum(not row["reused"] and row["outcome"] != "infeasible" for row in mine)
            assert n_counted == (4 if arm.name == "few" else arm.candidates)


def test_controls_are_of_what_was_completed_once_the_run_is_over(in_order: list[dict[str, Any]]) -> None:
    simulation = Simulation(MIXED, Random(5), kills=True, max_lanes=5)
    rows = simulation.run(3)
    assert rows == in_order
    names = {control.name for control in MIXED.controls}
    lanes = {
        (lane.arm, work.replicate, lane.slot): lane
        for work in simulation.handed_out
        for lane in work.lanes
        if lane.arm in names
    }
    seen: set[str] = set()
    for control in MIXED.controls:
        for replicate in range(MIXED.replicates):
            originals = {
                row["slot"]: row["candidate"]
                for row in ends(rows, control.arm, replicate)
                if row["outcome"] == "completed" and not row["reused"]
            }
            mine = ends(rows, control.name, replicate)
            assert [row["slot"] for row in mine] == list(range(len(originals)))
            assert len(originals) > 0
            of_slot = {row["slot"]: lanes[control.name, replicate, row["slot"]] for row in mine}
            assert [lane.fixed["control_of"] for lane in of_slot.values()] == sorted(originals)
            for lane in of_slot.values():
                assert lane.settings["masks.control"] == control.kind
                original = lane.fixed["control_of"]
                assert isinstance(original, int)
                expected = None if control.kind == "dense_budget" else bytes.fromhex(originals[original])
                assert lane.settings.get("masks.bits") == expected
                assert (lane.start_step, lane.keeps_mask) == (0, False)
            seen |= {row["candidate"] for row in mine}
    assert not seen & {row["candidate"] for row in rows if row["arm"] not in names}
    for work in simulation.handed_out:
        assert all(lane.keeps_mask == (lane.arm in ("plain", "evolving", "few", "small")) for lane in work.lanes)


def is_stop(outcome: str, reused: object) -> bool:
    """Whether it was stopped at a rung; copies are told of when the candidate that they repeat has ended."""
    return outcome == "stopped" and reused in (None, False)


@pytest.mark.parametrize("design", [MIXED, ASYNCHRONOUS], ids=["brackets", "asynchronous"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=2, deadline=None)
def test_a_replay_decides_at_every_prefix_what_was_decided_live(design: SearchDesign, seed: int) -> None:
    live = Simulation(design, Random(seed), kills=True)
    live.run(3)
    replayed = explore(design)
    for batch, is_decided in zip(live.commits, live.is_decided, strict=True):
        ours = {(d.arm, d.replicate, d.slot, d.rung) for d in replayed.decided() if is_stop(d.outcome, d.reused_from)}
        rows = batch.to_pylist() if is_decided else []
        theirs = {(r["arm"], r["replicate"], r["slot"], r["rung"]) for r in rows if is_stop(r["outcome"], r["reused"])}
        assert ours == theirs
        replayed.absorb(batch)
    assert replayed.is_done
    assert replayed.totals() == live.plan.totals()


def test_a_whole_ledger_is_absorbed_at_once(in_order: list[dict[str, Any]]) -> None:
    live = Simulation(MIXED, Random(3))
    live.run()
    table = pa.Table.from_batches(live.commits)
    whole = explore(MIXED)
    whole.absorb(table.select(list(whole.columns)))
    assert whole.is_done
    assert whole.totals() == live.plan.totals()


def test_an_asynchronous_run_decides_in_the_order_of_commits() -> None:
    design = design_of(arm_of("asha", rungs=RungSettings("asha", eta=2, min_steps=9, asynchronous=True)), replicates=1)
    orders = {}
    for name, is_reversed in (("ascending", False), ("descending", True)):
        plan = explore(design, workers=1, max_lanes=64)
        works = [plan.next_work()]
        while (work := plan.next_work()) is not None:
            works.append(work)
        rows = [row for work in works if work is not None for row in reported(work)]
        rows = sorted((r for r in rows if r["stage"] == "rung"), key=lambda r: r["val_loss"], reverse=is_reversed)
        plan.absorb(batch_of(rows))
        orders[name] = {d.slot for d in plan.decided() if d.outcome == "stopped"}
        # The first always goes on; after that the newcomer must be among the best half of those before it.
        best = [row["slot"] for row in rows]
        assert best[0] not in orders[name]
    assert len(orders["descending"]) < len(orders["ascending"])  # who is better than all before it goes on


# Rungs ---------------------------------------------------------------------------------------------------------------


def test_the_best_of_a_bracket_go_on() -> None:
    design = design_of(arm_of("halving", rungs=replace(HALVING, bracket=24)), replicates=1)
    rows = run_in_order(design)
    alive = list(range(24))
    for rung, step in enumerate((3, 9)):
        values = {
            row["slot"]: row["val_loss"] for row in rows if row["stage"] == "rung" and row["target_sparsity"] == rung
        }
        assert set(values) <= set(alive)
        best = sorted(values, key=lambda slot: (values[slot], slot))[: max(1, len(values) // 3)]
        stopped = {row["slot"] for row in ends(rows, "halving") if row["outcome"] == "stopped" and row["rung"] == rung}
        assert stopped == set(values) - set(best), step
        alive = best


def test_a_survivor_goes_on_from_its_checkpoint() -> None:
    simulation = Simulation(design_of(arm_of("asha", rungs=ASHA)), Random(1))
    simulation.run()
    later = [lane for work in simulation.handed_out for lane in work.lanes if lane.start_step > 0]
    assert later
    assert all(lane.checkpoint == f"{lane.id}@{lane.start_step}" for lane in later)
    assert all(lane.checkpoint is None for w in simulation.handed_out for lane in w.lanes if lane.start_step == 0)


def test_a_rung_without_a_finite_loss_is_a_divergence() -> None:
    plan = explore(design_of(arm_of("asha", rungs=ASHA), replicates=1))
    work = plan.next_work()
    assert work is not None
    rows = [{**row, "stage": "rung", "outcome": "completed", "val_loss": None} for row in reported(work)]
    plan.absorb(batch_of(rows))
    found = plan.decided()
    assert {d.outcome for d in found} == {"diverged"}
    assert len(found) == len(work.lanes)
    assert found[0].error == "rung 0 was reached without a finite val_loss"


def test_candidates_of_different_length_meet_the_rungs_below_their_own_end() -> None:
    space = Space.from_table({"training": {"lr": {"low": 0.1, "high": 1.0}, "steps": {"choices": [5, 12, 27]}}})
    simulation = Simulation(design_of(arm_of("asha", rungs=ASHA, space=space)), Random(2), kills=True)
    rows = simulation.run()
    assert {row["outcome"] for row in rows} >= {"completed", "stopped"}
    for work in simulation.handed_out:
        for lane, stop, rung in zip(work.lanes, work.stops, work.rung, strict=True):
            assert stop == (lane.settings["training.steps"] if rung is None else (3, 6, 12, 24)[rung])
            assert stop <= lane.settings["training.steps"]


def test_a_rung_of_data_trains_on_as_large_a_share_as_of_the_steps() -> None:
    rungs = RungSettings("asha", eta=3, min_steps=3, fidelity="data_fraction")
    simulation = Simulation(design_of(arm_of("asha", rungs=rungs), replicates=1), Random(2))
    simulation.run()
    shares = {
        (stop, lane.settings.get("training.data_fraction"))
        for work in simulation.handed_out
        for lane, stop in zip(work.lanes, work.stops, strict=True)
    }
    assert shares == {(3, 3 / 27), (9, 9 / 27), (27, None)}


def test_a_rung_of_data_takes_its_share_of_what_the_study_trains_on() -> None:
    rungs = RungSettings("asha", eta=3, min_steps=3, fidelity="data_fraction")
    design = design_of(arm_of("asha", rungs=rungs), replicates=1)
    half = lambda *asked: replace(describe(*asked), data_fraction=0.5)  # noqa: E731
    work = explore(design, describe=half).next_work()
    assert work is not None
    assert {lane.settings["training.data_fraction"] for lane in work.lanes} == {0.5 * 3 / 27}


def test_an_id_says_how_the_data_grow() -> None:
    """Arms of one replicate draw the same points: what is trained alike has one id, and nothing else has."""
    grown = RungSettings("asha", eta=3, min_steps=3, fidelity="data_fraction")
    arms = [
        arm_of("plain"),
        arm_of("steps", rungs=replace(grown, fidelity="steps")),
        arm_of("grown", rungs=grown),
        arm_of("same", rungs=replace(grown, kind="successive_halving", bracket=8)),
        arm_of("later", rungs=replace(grown, min_steps=9)),
        arm_of("hyperband", rungs=replace(grown, kind="hyperband"), candidates=40),
    ]
    rows = run_in_order(design_of(*arms, replicates=1))
    ids = {(row["arm"], row["slot"]): row["candidate"] for row in rows}
    assert all(ids[row["arm"], row["slot"]] == row["candidate"] for row in rows)
    for slot in range(24):
        assert ids["steps", slot] == ids["plain", slot]
        assert ids["same", slot] == ids["grown", slot]
        assert len({ids[arm, slot] for arm in ("plain", "grown", "later")}) == 3
    # Brackets of 9, 5 and 3, that skip no rung, one, and both: the last trains on all data from the start.
    assert [next(a for a in ("grown", "later", "plain") if ids[a, n] == ids["hyperband", n]) for n in (0, 9, 14)] == [
        "grown", "later", "plain"
    ]  # fmt: skip


def test_what_repeats_a_candidate_has_its_id() -> None:
    """In a bracket with other rungs too."""
    rungs = RungSettings("hyperband", eta=3, min_steps=3, fidelity="data_fraction")
    points = Space.from_table(
        {"training": {"optimizer": {"choices": ["adam", "sgd"]}, "batch_size": {"low": 1, "high": 12}}}
    )
    rows = ends(run_in_order(design_of(arm_of("few", space=points, rungs=rungs), replicates=1)), "few")
    copies = [row for row in rows if row["reused"]]
    assert max(row["slot"] for row in copies) > 9
    assert {row["candidate"] for row in copies} <= {row["candidate"] for row in rows if not row["reused"]}


# What strategies are told --------------------------------------------------------------------------------------------


class Remembering:
    """Random draws, adaptive by name only; keeps what it is told."""

    summary = source = "test"
    is_adaptive = True
    options = Options

    def __init__(self) -> None:
        self.told: list[tuple[History, range]] = []

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        return None

    def make(self, task: Task, options: Options) -> Strategy:
        return Proposer(self, task)

    def points(self, task: Task, numbers: range) -> list[Point]:
        return random_points(task, numbers.start, numbers.stop)


class Proposer:
    def __init__(self, family: Remembering, task: Task) -> None:
        self.family, self.task = family, task

    def propose(self, history: History, numbers: range) -> list[Point]:
        self.family.told.append((history, numbers))
        return self.family.points(self.task, numbers)


def registered(monkeypatch: pytest.MonkeyPatch, family: Remembering) -> Remembering:
    monkeypatch.setitem(STRATEGIES, "own", family)  # type: ignore[arg-type]
    return family


def test_an_adaptive_strategy_is_asked_when_its_last_batch_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    family = registered(monkeypatch, Remembering())
    design = design_of(arm_of("own", "own", rungs=replace(PARETO, bracket=8)), replicates=1)
    simulation = Simulation(design, Random(5), kills=False, workers=4, max_lanes=3)
    rows = {row["slot"]: row for row in ends(simulation.run(4), "own")}
    assert [numbers for _, numbers in family.told] == [range(8), range(8, 16), range(16, 24)]
    history, _ = family.told[-1]
    assert len(history) == len(history.points) == 16
    assert list(history.points) == Space.from_table(SPACE).draw(philox_key(1, "propose", 0), 0, 16)
    for slot in range(16):
        row, identity = rows[slot], describe(0, history.points[slot], design.arms[0].space)
        code = history.outcomes[slot]
        if row["outcome"] == "completed":
            loss = loss_of(identity.id, STEPS)
            assert loss is not None
            assert code == COMPLETED
            assert history.fidelity[slot] == 1.0
            assert history.losses[slot].tolist() == [loss / 4, identity.n_params]
        else:
            assert np.isnan(history.losses[slot]).all()
        if row["outcome"] == "stopped":
            step = (3, 6, 12, 24)[row["rung"]]
            loss = loss_of(identity.id, step)
            assert loss is not None
            assert code == STOPPED
            assert history.fidelity[slot] == step / STEPS
            assert history.partial[slot].tolist() == [loss / 4, identity.n_params]
        else:
            assert np.isnan(history.partial[slot]).all()
        if row["outcome"] == "diverged":
            assert code == FAILED
    assert {rows[slot]["outcome"] for slot in range(16)} == {"completed", "stopped", "diverged"}
    assert (history.violations == 0).all()
    for array in (history.losses, history.partial, history.outcomes, history.fidelity, history.violations):
        assert not array.flags.writeable


def test_costs_are_summed_over_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    family = registered(monkeypatch, Remembering())
    arm = arm_of("own", "own", rungs=replace(ASHA, bracket=8), candidates=16)
    Simulation(design_of(arm, objectives=("val_loss", "passes", "seconds"), replicates=1), Random(0)).run()
    history, _ = family.told[-1]
    done = history.losses[history.outcomes == COMPLETED]
    assert len(done)
    assert (done[:, 1] == STEPS).all()
    assert (done[:, 2] == 0.5 * 5).all()  # four rungs and the end
    stopped = history.partial[(history.outcomes == STOPPED) & (history.fidelity == 3 / STEPS)]
    assert len(stopped)
    assert (stopped[:, 1:] == [3.0, 0.5]).all()


def test_a_measured_constraint_is_told_as_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    family = registered(monkeypatch, Remembering())
    space = replace(Space.from_table(SPACE), constraints=(Constraint("val_loss", "<=", 0.5),))
    Simulation(design_of(arm_of("own", "own", space=space, candidates=16), replicates=1), Random(0)).run()
    history, _ = family.told[-1]
    done = history.outcomes == COMPLETED
    expected = np.maximum(0.0, (history.losses[done, 0] * 4 - 0.5) / 0.5)
    np.testing.assert_allclose(history.violations[done], expected, atol=1e-12)
    assert expected.max() > 0
    assert (history.violations[~done] == 0).all()


def test_infeasible_proposals_cost_a_number_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    family = registered(monkeypatch, Remembering())
    bound = Constraint("n_params", "<=", 500.0)
    space = replace(Space.from_table(SPACE), constraints=(bound,))
    simulation = Simulation(design_of(arm_of("own", "own", space=space), replicates=1), Random(0))
    rows = ends(simulation.run(), "own")
    outcomes = Counter("infeasible" if row["outcome"] == "infeasible" else "trained" for row in rows)
    assert outcomes["trained"] == 24
    assert outcomes["infeasible"] > 5
    trained = [lane for work in simulation.handed_out for lane in work.lanes]
    assert all(describe(0, lane.point, space).n_params <= 500 for lane in trained)
    assert len(trained) == 24
    history, _ = family.told[-1]
    for slot in np.flatnonzero(history.outcomes == INFEASIBLE):
        n_params = describe(0, history.points[slot], space).n_params
        assert history.violations[slot] == bound.violation(n_params) > 0
    assert simulation.plan.totals()._asdict() == {
        "finished": 24, "planned": 24, "stopped": 0, "failed": sum(r["outcome"] == "diverged" for r in rows),
        "infeasible": outcomes["infeasible"], "reused": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "bound", "n_kept"), [("random", 1.0, (0, 0)), ("random", 28.0, (0, 2)), ("evolution", 1.0, (0, 0))]
)
def test_constraints_that_leave_too_little_end_their_run_alone(
    strategy: str, bound: float, n_kept: tuple[int, int]
) -> None:
    space = replace(Space.from_table(SPACE), constraints=(Constraint("n_params", "<=", bound),))
    arms = [arm_of("none", strategy, space=space, candidates=4, rungs=HALVING), arm_of("plain")]
    design = design_of(*arms)
    simulation = Simulation(design, Random(0), kills=True)
    rows = simulation.run()
    n_proposals = 4 * MAX_PROPOSALS_EACH
    for replicate in range(2):
        mine = ends(rows, "none", replicate)
        n_infeasible = sum(row["outcome"] == "infeasible" for row in mine)
        assert len(mine) == n_proposals + 1
        assert mine[-1]["outcome"] == "failed"
        assert mine[-1]["candidate"] is None
        assert n_infeasible == n_proposals - n_kept[replicate]
        assert len(ends(rows, "plain", replicate)) == 24
        committed = pa.Table.from_batches(simulation.commits).to_pylist()
        (why,) = (r["error"] for r in committed if r["slot"] == n_proposals and r["replicate"] == replicate)
        assert why == (
            f"{n_infeasible:,} of {n_proposals:,} proposals violate n_params <= "
            f"{bound:g}: constraints leave too little of the space for candidates=4, and the run ends with "
            f"{n_proposals - n_infeasible}; loosen them or narrow the space in a new study"
        )
    assert simulation.plan.totals().planned == sum(
        row["outcome"] != "infeasible" and row["candidate"] is not None for row in rows if row["stage"] == "trained"
    )
    assert run_in_order(design) == rows
    again = explore(design)
    again.absorb(pa.Table.from_batches(simulation.commits))
    assert again.is_done
    assert again.totals() == simulation.plan.totals()


def test_nobody_waits_in_a_bracket_for_a_strategy_that_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Remembering):
        is_adaptive = False

        def points(self, task: Task, numbers: range) -> list[Point]:
            if numbers.start < 8:
                return super().points(task, numbers)
            raise ZeroDivisionError("never divide")

    registered(monkeypatch, Failing())
    design = design_of(arm_of("own", "own", rungs=HALVING), arm_of("plain"), replicates=1)
    rows = Simulation(design, Random(0), kills=True).run()
    assert len(ends(rows, "own")) == 9
    assert {"completed", "stopped"} <= {row["outcome"] for row in ends(rows, "own")}


# Duplicates ----------------------------------------------------------------------------------------------------------


def test_a_repeated_candidate_is_recorded_and_not_trained() -> None:
    simulation = Simulation(design_of(arm_of("few", space=FINITE, rungs=ASHA, candidates=4)), Random(0), kills=True)
    rows = simulation.run()
    trained = Counter(
        (work.replicate, lane.slot, lane.start_step) for work in simulation.handed_out for lane in work.lanes
    )
    for replicate in range(2):
        mine = ends(rows, "few", replicate)
        first: dict[str, dict[str, Any]] = {}
        for row in mine:
            original = first.setdefault(row["candidate"], row)
            assert row["reused"] == (original is not row)
            assert row["outcome"] == original["outcome"]
            assert row["rung"] == original["rung"]
            assert row["val_loss"] == original["val_loss"]
            assert ((replicate, row["slot"], 0) in trained) != row["reused"]
        assert len(first) == 4
        assert len(mine) > 4
    assert simulation.plan.totals().planned == 8


def test_a_run_ends_with_its_space() -> None:
    rows = run_in_order(design_of(arm_of("grid", "grid", space=FINITE, candidates=24), replicates=1))
    assert len(ends(rows, "grid")) == 4
    # A batch that ends with the grid: nobody can know before asking again.
    simulation = Simulation(design_of(arm_of("grid", "grid", space=FINITE, candidates=24, batch=2)), Random(0))
    assert len(ends(simulation.run(), "grid")) == 4


@pytest.mark.parametrize("is_adaptive", [False, True])
def test_a_strategy_that_repeats_itself_ends_in_time(monkeypatch: pytest.MonkeyPatch, is_adaptive: bool) -> None:
    class Stuck(Remembering):
        def points(self, task: Task, numbers: range) -> list[Point]:
            return random_points(task, 0, 1) * len(numbers)

    family = registered(monkeypatch, Stuck())
    family.is_adaptive = is_adaptive
    design = design_of(arm_of("own", "own", candidates=3, rungs=ASHA), replicates=1)
    simulation = Simulation(design, Random(0), kills=True)
    rows = ends(simulation.run(), "own")
    if not is_adaptive:
        assert len(rows) == 3 * MAX_PROPOSALS_EACH
        assert sum(not row["reused"] for row in rows) == 1
        return
    # Asked for four batches of eight, of which 31 proposals are repetitions, it makes way for draws at random.
    assert max(numbers.stop for _, numbers in family.told) == 32
    assert [row["slot"] for row in rows if not row["reused"]] == [0, 32, 33]
    drawn = Space.from_table(SPACE).draw(philox_key(1, "propose", 0), 32, 34)
    assert [row["candidate"] for row in rows[-2:]] == [describe(0, p, Space.from_table(SPACE)).id for p in drawn]
    assert len(rows) == 34
    assert ends(run_in_order(design), "own") == rows
    again = explore(design)
    again.absorb(pa.Table.from_batches(simulation.commits))
    assert again.is_done


def test_a_strategy_that_repeats_itself_half_of_the_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Halting(Remembering):
        def points(self, task: Task, numbers: range) -> list[Point]:
            return [random_points(task, n - n % 2, n - n % 2 + 1)[0] for n in numbers]

    family = registered(monkeypatch, Halting())
    rows = ends(run_in_order(design_of(arm_of("own", "own", candidates=100, batch=1), replicates=1)), "own")
    assert len(rows) == 199
    assert len(family.told) == 199


@pytest.mark.parametrize("strategy", ["tpe", "nsga2", "evolution"])
def test_strategies_that_learn_come_to_the_end_of_a_small_space(strategy: str) -> None:
    table = {
        "training": {"optimizer": {"choices": ["adam", "sgd"]}, "lr": {"choices": [0.1 * i for i in range(1, 13)]}}
    }
    rows = run_in_order(design_of(arm_of("own", strategy, space=Space.from_table(table), batch=4), replicates=1))
    assert sum(not row["reused"] for row in ends(rows, "own")) == 24
    assert len(ends(rows, "own")) < 24 * MAX_PROPOSALS_EACH / 4


# What goes wrong -----------------------------------------------------------------------------------------------------


class Ends(Remembering):
    """A strategy of a user's own that has six points."""

    def points(self, task: Task, numbers: range) -> list[Point]:
        return random_points(task, numbers.start, max(numbers.start, min(numbers.stop, 6)))


@pytest.mark.parametrize(("batch", "n_last"), [(4, 2), (3, 0)])
def test_a_users_strategy_that_has_no_more_points_leaves_a_record(batch: int, n_last: int) -> None:
    design = design_of(arm_of("own", f"{__name__}:Ends", batch=batch, rungs=HALVING), arm_of("plain"))
    simulation = Simulation(design, Random(0), kills=True)
    rows = simulation.run()
    for replicate in range(2):
        mine = ends(rows, "own", replicate)
        assert len(mine) == 7
        assert [row["outcome"] == "failed" for row in mine] == [False] * 6 + [True]
        assert len(ends(rows, "plain", replicate)) == 24
        committed = pa.Table.from_batches(simulation.commits).to_pylist()
        (why,) = (row["error"] for row in committed if row["outcome"] == "failed" and row["replicate"] == replicate)
        assert why == (
            f"strategy '{__name__}:Ends' proposed {n_last} of the {batch} points that it was asked for, which says "
            "that it has no more: the run ends with 6 of candidates=24"
        )
    again = explore(design)
    again.absorb(pa.Table.from_batches(simulation.commits))
    assert again.is_done


def test_an_interrupt_ends_more_than_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Remembering):
        def points(self, task: Task, numbers: range) -> list[Point]:
            raise KeyboardInterrupt

    registered(monkeypatch, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        run_in_order(design_of(arm_of("own", "own"), replicates=1))


def test_points_that_a_strategy_proposed_are_not_its_own_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Any]] = []

    class Keeping(Remembering):
        def points(self, task: Task, numbers: range) -> list[Point]:
            for point in kept:
                point["lr"] = 0.05
            kept[:] = [dict(point) for point in super().points(task, numbers)]
            return list(kept)

    family = registered(monkeypatch, Keeping())
    run_in_order(design_of(arm_of("own", "own"), replicates=1))
    history, _ = family.told[-1]
    assert list(history.points) == Space.from_table(SPACE).draw(philox_key(1, "propose", 0), 0, 16)


@pytest.mark.parametrize("error", ["raises", "leaves", "floods", "exits", "writes"])
def test_a_strategy_that_fails_ends_its_run_alone(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    class Failing(Remembering):
        def points(self, task: Task, numbers: range) -> list[Point]:
            if numbers.start < 8:
                return super().points(task, numbers)
            if error == "raises":
                raise ZeroDivisionError("never divide")
            if error == "exits":
                raise SystemExit(3)
            if error == "writes":
                self.told[-1][0].points[0]["lr"] = 0.5  # type: ignore[index]  # that it is read-only is what is tested
            return [{"lr": 9.0}] if error == "leaves" else super().points(task, range(9))

    registered(monkeypatch, Failing())
    design = design_of(arm_of("own", "own"), arm_of("plain"), replicates=1)
    simulation = Simulation(design, Random(0), kills=True)
    rows = simulation.run()
    mine = ends(rows, "own")
    assert len(mine) == 9
    assert mine[-1]["outcome"] == "failed"
    assert mine[-1]["candidate"] is None
    assert len(ends(rows, "plain")) == 24
    words = {
        "raises": "never divide",
        "leaves": "depth is missing",
        "floods": "9 points were proposed, 8 were asked for",
        "exits": "SystemExit: 3",
        "writes": "'mappingproxy' object does not support item assignment",
    }
    errors = [row["error"] for batch in simulation.commits for row in batch.to_pylist() if row["outcome"] == "failed"]
    assert len(errors) == 1
    assert words[error] in errors[0]
    again = explore(design)
    again.absorb(pa.Table.from_batches(simulation.commits))
    assert again.is_done
    assert again.totals() == simulation.plan.totals()


def test_a_candidate_that_cannot_be_is_a_failure_of_its_own() -> None:
    def picky(replicate: int, point: Point, space: Space) -> Described:
        if point["optimizer"] == "sgd":
            raise SpaceError("sgd: never heard of it")
        return describe(replicate, point, space)

    design = design_of(arm_of("asha", rungs=ASHA))
    simulation = Simulation(design, Random(0), kills=True, describe=picky)
    rows = [row for row in simulation.run() if row["stage"] == "trained"]
    failed = [row for row in rows if row["outcome"] == "failed"]
    assert len(rows) == 48
    assert 10 < len(failed) < 40
    assert simulation.plan.totals().failed >= len(failed)


def test_a_candidate_that_fails_is_never_compared() -> None:
    design = design_of(arm_of("halving", rungs=replace(HALVING, bracket=24)), replicates=1)
    plan = explore(design, workers=1, max_lanes=64)
    works = []
    while (work := plan.next_work()) is not None:
        works.append(work)
    rows = sorted((r for w in works for r in reported(w)), key=lambda r: r["slot"])
    for outcome, row in zip(("lost", "timeout", "failed", "out_of_memory"), rows, strict=False):
        row |= {"stage": "trained", "outcome": outcome, "target_sparsity": 0.0}
    plan.absorb(batch_of(rows))
    n = sum(row["stage"] == "rung" for row in rows)
    assert len([d for d in plan.decided() if d.outcome == "stopped"]) == n - n // 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"slot": 24},
            "candidate 24 of arm 'plain', replicate 0 is on record, but strategy 'evolution' does not propose",
        ),
        ({"candidate": "f" * 32}, f"is on record as {'f' * 32}, but strategy 'evolution' proposes"),
        (
            {"stage": "rung", "target_sparsity": 1.0},
            "candidate 0 of arm 'plain', replicate 0: the record has it at rung 1",
        ),
    ],
)
def test_a_record_of_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    plan = explore(design_of(arm_of("plain", "evolution", rungs=ASHA), replicates=1, seed=1))
    plan.decided()
    work = plan.next_work()
    assert work is not None
    first = min(reported(work), key=lambda row: row["slot"])
    with pytest.raises(LedgerError, match=message):
        plan.absorb(batch_of([{**first, "slot": 0, **change}]))


# Packs ---------------------------------------------------------------------------------------------------------------


def test_lanes_of_a_pack_belong_together() -> None:
    simulation = Simulation(MIXED, Random(7), kills=True, max_lanes=5)
    simulation.run(3)
    has_company = False
    for work in simulation.handed_out:
        spaces = {arm.name: arm.space for arm in MIXED.arms}
        spaces |= {control.name: spaces[control.arm] for control in MIXED.controls}
        shapes = [describe(work.replicate, lane.point, spaces[lane.arm]).shape for lane in work.lanes]
        assert 1 <= len(work.lanes) <= 5
        assert work.predicted_s > 0
        assert len({shape.group for shape in shapes}) == len({lane.start_step for lane in work.lanes}) == 1
        assert len(set(work.stops)) == 1
        for shape in shapes:
            for tensor, padded in zip(shape.tensors, work.padded, strict=True):
                assert all(a <= b for a, b in zip(tensor, padded, strict=True))
        has_company |= len({lane.arm for lane in work.lanes}) > 1
    assert has_company


def test_packs_are_handed_out_replicate_by_replicate() -> None:
    simulation = Simulation(design_of(arm_of("a"), arm_of("b", rungs=ASHA), replicates=4), Random(0), workers=1)
    simulation.run(workers=1)
    firsts = [work.replicate for work in simulation.handed_out if work.lanes[0].start_step == 0]
    assert firsts == sorted(firsts)


def test_runs_that_wait_go_first() -> None:
    plan = explore(design_of(arm_of("plain", candidates=200), arm_of("evolving", "evolution"), replicates=2))
    works = [plan.next_work() for _ in range(8)]
    arms = [{lane.arm for lane in work.lanes} for work in works if work is not None]
    n_urgent = sum(names == {"evolving"} for names in arms)
    assert arms[:n_urgent] == [{"evolving"}] * n_urgent
    assert {w.replicate for w in works[:n_urgent] if w} == {0, 1}
    assert {"plain"} in arms


def test_lost_work_comes_back_without_what_is_committed() -> None:
    plan = explore(design_of(arm_of("plain"), replicates=1), workers=1, max_lanes=64)
    work = plan.next_work()
    assert work is not None
    assert len(work.lanes) > 3
    rows = reported(work)
    plan.absorb(batch_of(rows[:1]))
    (left,) = plan.without_committed(work)
    assert left.lanes == work.lanes[1:]
    assert left.predicted_s < work.predicted_s
    with pytest.raises(RuntimeError, match="its rows never came"):
        plan.finished(work)
    plan.give_back([replace(half, attempt=1) for half in left.halves()])
    again = [plan.next_work(), plan.next_work()]
    assert [w.attempt for w in again if w] == [1, 1]
    assert tuple(lane for w in again if w for lane in w.lanes) == work.lanes[1:]
    plan.absorb(batch_of(rows[1:]))
    for w in again:
        assert w is not None
        assert not plan.without_committed(w)
        plan.finished(w)


def test_a_single_lane_is_not_divided() -> None:
    plan = explore(design_of(arm_of("plain", candidates=1), replicates=1))
    work = plan.next_work()
    assert work is not None
    assert work.halves() == [work]
    assert work.key == f"segment-r0-0-27-{work.lanes[0].id[:8]}-1"


def test_packs_follow_a_new_size() -> None:
    plan = explore(design_of(arm_of("plain"), replicates=1), workers=4, max_lanes=1)
    plan.resize(workers=1, max_lanes=64)
    work = plan.next_work()
    assert work is not None
    assert len(work.lanes) > 1


def test_few_candidates_are_kept_at_a_time() -> None:
    plan = explore(design_of(arm_of("asha", rungs=ASHA, candidates=5000), replicates=1), workers=1, max_lanes=8)
    most = 0
    (run,) = plan._runs.values()  # what is kept is not to be seen from outside
    for _ in range(300):
        work = plan.next_work()
        assert work is not None
        plan.absorb(batch_of(reported(work)))
        plan.finished(work)
        while found := plan.decided():
            plan.absorb(batch_of([decided(one) for one in found]))
        most = max(most, len(run.unfinished))
    assert run.n_proposed > 500
    assert most < 100


def test_nothing_to_do_and_nothing_to_wait_for_is_a_mistake() -> None:
    plan = explore(design_of(arm_of("plain", candidates=1), replicates=1))
    work = plan.next_work()
    assert work is not None
    assert plan.next_work() is None
    plan.give_back([])  # a driver that loses work
    with pytest.raises(RuntimeError, match="nothing is handed out, and yet the study is not complete"):
        plan.next_work()


def test_decisions_are_told_once() -> None:
    space = replace(Space.from_table(SPACE), constraints=(Constraint("n_params", "<=", 500.0),))
    plan = explore(design_of(arm_of("small", space=space), replicates=1))
    found: list[Decision] = plan.decided()
    assert found
    assert {d.outcome for d in found} == {"infeasible"}
    assert not plan.decided()
    one = found[0]
    assert one.described is not None
    assert one.point is not None
    assert one.steps == 0
    assert one.error == f"n_params={one.described.n_params} violates n_params <= 500"
    assert isinstance(plan, Exploration)
