"""Simulated studies: the clock, what strategies and rungs attain there, and the replay of a finished study."""

from __future__ import annotations

import gc
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sparsefront.errors import ConfigError
from sparsefront.search.design import RungSettings, SearchDesign
from sparsefront.search.packing import CPU_COST
from sparsefront.search.points import points_to_columns
from sparsefront.search.simulator import (
    COLUMNS,
    SYNTHETIC,
    LedgerObjective,
    Objective,
    Query,
    Simulated,
    bowl,
    inverted,
    simulate,
    simulate_study,
    tradeoff,
)
from sparsefront.search.work import SegmentWork
from sparsefront.spaces.constraints import Constraint
from sparsefront.spaces.domains import Bits
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space
from tests.synthetic_exploration import SPACE, STEPS, arm_of, describe, design_of

ASHA = RungSettings("asha", eta=3, min_steps=1, bracket=27)
DESIGN = design_of(arm_of("random", candidates=54), arm_of("asha", rungs=ASHA, candidates=54))


def run(design: SearchDesign, objective: Objective = bowl, *, workers: int = 2) -> tuple[Simulated, pa.Table]:
    batches: list[pa.RecordBatch] = []
    simulated = simulate(
        design, describe, objective, workers=workers, max_lanes=16, pack_cost=CPU_COST, on_rows=batches.append
    )
    return simulated, pa.Table.from_batches(batches)


def test_a_simulation_is_deterministic_and_complete() -> None:
    first, rows = run(DESIGN)
    again, same = run(DESIGN)
    assert first == again
    assert rows.equals(same)
    assert tuple(rows.schema.names) == COLUMNS
    assert rows.num_rows == first.n_rows
    assert first.totals.finished == first.totals.planned == 2 * 2 * 54
    assert sum(first.stopped["asha"].values()) == first.totals.stopped > 54
    assert first.stopped["random"] == {}


def test_garbage_is_looked_for_as_before_once_it_is_over() -> None:
    before, during = gc.get_threshold(), []

    def seen(work: SegmentWork) -> float:
        during.append(gc.get_threshold())
        return 1.0

    simulate(DESIGN, describe, bowl, workers=2, max_lanes=16, pack_cost=CPU_COST, seconds=seen)
    assert gc.get_threshold() == before
    assert all(threshold[0] > before[0] for threshold in during)


def test_the_clock_counts_work_over_workers() -> None:
    design = design_of(arm_of("random", candidates=16))
    taken: list[float] = []

    def second(work: SegmentWork) -> float:
        taken.append(float(len(work.lanes)))
        return taken[-1]

    one = simulate(design, describe, bowl, workers=1, max_lanes=4, pack_cost=CPU_COST, seconds=second)
    assert one.makespan_s == sum(taken) == 32.0
    assert one.utilisation == 1.0
    assert one.n_packs == len(taken)
    assert one.lanes_each == 32 / len(taken)
    taken.clear()
    three = simulate(design, describe, bowl, workers=3, max_lanes=4, pack_cost=CPU_COST, seconds=second)
    assert max(taken) + 32 / 3 >= three.makespan_s >= 32 / 3
    assert three.utilisation == pytest.approx(32 / 3 / three.makespan_s)


def test_decisions_do_not_depend_on_the_workers() -> None:
    ends = []
    for workers in (1, 7):
        _, rows = run(DESIGN, workers=workers)
        by = [(name, "ascending") for name in ("stage", "arm", "replicate", "slot", "target_sparsity")]
        ends.append(rows.sort_by(by).select(["candidate", "outcome", "rung", "val_loss"]))
    assert ends[0].equals(ends[1])


def test_an_arm_that_trains_nothing_attains_nothing() -> None:
    space = replace(Space.from_table(SPACE), constraints=(Constraint("n_params", "<=", 1.0),))
    arms = [arm_of("none", space=space, candidates=4, against=("plain",)), arm_of("plain", against=("plain",))]
    found = simulate_study(
        design_of(*arms), describe, SYNTHETIC["tradeoff"].objective, workers=2, max_lanes=8, pack_cost=CPU_COST
    )
    none, plain = found.arms
    assert (none.quality, none.low, none.high, none.passes, none.infeasible) == (0.0, 0.0, 0.0, 0.0, 200)
    assert plain.quality > 0


def test_what_has_no_finite_loss_diverges() -> None:
    def half(query: Query, /) -> tuple[float, float]:
        return (math.nan, math.nan) if query.point["optimizer"] == "sgd" else bowl(query)

    simulated, rows = run(DESIGN, half)
    diverged = rows.filter(pa.compute.equal(rows["outcome"], "diverged"))
    assert 40 < diverged.num_rows == simulated.totals.failed < 170
    assert diverged["val_loss"].null_count == diverged.num_rows
    assert simulated.totals.finished == simulated.totals.planned


def test_arms_are_compared_as_those_of_a_real_study() -> None:
    study = simulate_study(DESIGN, describe, tradeoff, workers=2, max_lanes=16, pack_cost=CPU_COST)
    assert study.metric == "hypervolume"
    random, asha = study.as_table()
    assert [random["arm"], asha["arm"]] == ["random", "asha"]
    # Of a replicate, all of them.
    assert random["passes"] == 54 * STEPS * 10
    assert [row["candidates"] for row in (random, asha)] == [54, 54]
    assert asha["passes"] < random["passes"] / 2  # type: ignore[operator]
    assert random["stopped_fraction"] == 0
    assert 0.6 < asha["stopped_fraction"] < 1  # type: ignore[operator]
    for row, arm in zip((random, asha), study.arms, strict=True):
        assert arm.low <= arm.quality <= arm.high
        assert 0 < arm.quality < 1
        assert row["hypervolume"] == arm.curve[-1]
        assert (np.diff(arm.cost) > 0).all()
        assert (np.diff(arm.curve) >= 0).all()


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_losses_fall_to_a_final_value(name: str) -> None:
    objective = SYNTHETIC[name].objective
    arm = DESIGN.arms[0]
    for point in arm.space.draw(np.array([1, 2], dtype=np.uint64), 0, 30):
        described = describe(0, point, arm.space)
        values = np.array([objective(Query(arm, 0, point, described, step)) for step in range(1, STEPS + 1)])
        assert (np.diff(values, axis=0) <= 0).all()
        assert (values[:, 0] > 0).all()
        assert ((values[:, 1] > 0) & (values[:, 1] < 0.9)).all()


def best_of(design: SearchDesign, objective: Objective) -> dict[str, float]:
    study = simulate_study(design, describe, objective, workers=2, max_lanes=16, pack_cost=CPU_COST)
    return {arm.arm: arm.quality for arm in study.arms}


def test_a_grace_period_keeps_the_best_where_early_ranking_is_inverted() -> None:
    """All of a bracket are compared: 27 candidates, whose best is the last to leave its plateau."""
    early = RungSettings("successive_halving", eta=3, min_steps=1, bracket=27)
    late = replace(early, min_steps=15)
    design = design_of(
        arm_of("random", candidates=27),
        arm_of("early", candidates=27, rungs=early),
        arm_of("late", candidates=27, rungs=late),
        objectives=("val_loss",),
        replicates=5,
    )
    best = best_of(design, inverted)
    assert best["late"] == best["random"]
    assert best["early"] > best["random"] + 0.2


def test_halving_finds_what_random_search_finds_where_early_ranking_is_right() -> None:
    rungs = RungSettings("successive_halving", eta=3, min_steps=3, bracket=54)
    arms = arm_of("random", candidates=54), arm_of("halving", candidates=54, rungs=rungs)
    best = best_of(design_of(*arms, objectives=("val_loss",), replicates=3), bowl)
    assert best["halving"] == pytest.approx(best["random"], abs=0.01)


# A finished study, asked again ---------------------------------------------------------------------------------------


def finished(design: SearchDesign) -> pa.Table:
    """The ledger of a finished random search, with every candidate's curve at every step."""
    arm = design.arms[0]
    _, table = run(replace(design, arms=(arm,)))
    rows = []
    for row in table.to_pylist():
        replicate, number = row["replicate"], row["slot"]
        (point,) = arm.space.draw(philox_key(design.seed, "propose", replicate), number, number + 1)
        described = describe(replicate, point, arm.space)
        curve = [bowl(Query(arm, replicate, point, described, step)) for step in range(1, STEPS + 1)]
        columns = {name: values[0] for name, values in points_to_columns([point], arm.space).items()}
        curves = {
            "curve_step": list(range(1, STEPS + 1)),
            "curve_val_loss": [loss for loss, _ in curve],
            "curve_val_error": [error for _, error in curve],
        }
        rows.append({**row, **columns, **curves})
    return pa.Table.from_pylist(rows)


def test_rungs_are_replayed_exactly_over_a_finished_study() -> None:
    ledger = finished(DESIGN)
    replayed, rows = run(DESIGN, LedgerObjective(ledger, DESIGN))
    true, expected = run(DESIGN, bowl)
    assert replayed == true
    columns = ["stage", "arm", "replicate", "slot", "outcome", "rung", "val_loss", "val_error"]
    assert rows.select(columns).equals(expected.select(columns))


def test_a_strategy_sees_the_nearest_candidate_of_a_finished_study() -> None:
    objective = LedgerObjective(finished(DESIGN), DESIGN)
    arm, space = DESIGN.arms[0], DESIGN.arms[0].space
    known = set()
    for _replicate in range(2):
        _, rows = run(DESIGN)
        known |= set(rows["val_loss"].to_pylist())
    asked = space.draw(np.array([9, 9], dtype=np.uint64), 0, 20)
    found = {objective(Query(arm, 0, point, describe(0, point, space), STEPS))[0] for point in asked}
    assert found <= known
    assert len(found) > 5
    # An evolving search, which goes where nothing was trained, has something to go by.
    evolved, _ = run(design_of(arm_of("evolving", "evolution", candidates=40)), objective)
    assert evolved.totals.finished == 80


def with_curves(rows: pa.Table, design: SearchDesign, objective: Objective, *, every: int = 3) -> pa.Table:
    """The ledger of a simulated study with its points, and curves that reach as far as each row."""
    arms = {arm.name: arm for arm in design.arms}
    told = []
    for row in rows.to_pylist():
        arm, number = arms[row["arm"]], row["slot"]
        (point,) = arm.space.draw(philox_key(design.seed, "propose", row["replicate"]), number, number + 1)
        known = describe(row["replicate"], point, arm.space)
        has_failed = row["outcome"] == "diverged"
        # Whoever diverged has no curve beyond, and what decided a row has no curve of its own: decisions report none.
        steps = [] if row["outcome"] == "stopped" else range(every, row["steps"] + (not has_failed), every)
        curve = [objective(Query(arm, row["replicate"], point, known, step)) for step in steps]
        columns = {name: values[0] for name, values in points_to_columns([point], arm.space).items()}
        curves = {
            "curve_step": list(steps),
            "curve_val_loss": [float(np.float32(loss)) for loss, _ in curve],
            "curve_val_error": [float(np.float32(error)) for _, error in curve],
        }
        told.append({**row, **columns, **curves})
    return pa.Table.from_pylist(told)


def fragile(query: Query) -> tuple[float, float]:
    """The bowl, where a fifth of the candidates diverge on their way."""
    chance = int(query.described.id[-4:], 16) / 0xFFFF
    return (math.inf, math.inf) if 5 * chance < query.step / STEPS else bowl(query)


@pytest.mark.parametrize("kind", ["asha", "successive_halving", "hyperband", "mo_asha"])
def test_a_study_with_rungs_repeats_itself_what_was_stopped_and_what_diverged_included(kind: str) -> None:
    objectives = ("val_loss", "n_params") if kind == "mo_asha" else ("val_loss",)
    rungs = RungSettings(kind, eta=3, min_steps=3, bracket=18, objectives=objectives)
    design = design_of(arm_of("random"), arm_of("halved", candidates=54, rungs=rungs))
    true, expected = run(design, fragile)
    assert {"stopped", "completed", "diverged"} <= set(expected["outcome"].to_pylist())
    replayed, rows = run(design, LedgerObjective(with_curves(expected, design, fragile), design))
    assert rows.equals(expected)
    assert replayed == true


def test_of_equals_the_one_of_the_same_arm_is_asked() -> None:
    """Two arms trained the same candidates to different ends: the rungs of one give shares of the data."""
    grown = RungSettings("asha", eta=3, min_steps=3, fidelity="data_fraction")
    design = design_of(arm_of("random", candidates=8), arm_of("grown", candidates=8, rungs=grown), replicates=1)

    def worse(query: Query) -> tuple[float, float]:
        loss, error = bowl(query)
        return (loss + 1.0, error) if query.arm.name == "grown" else (loss, error)

    _, table = run(design, worse)
    objective = LedgerObjective(with_curves(table, design, worse), design)
    random, arm = design.arms
    told = set(zip(table["arm"].to_pylist(), table["val_loss"].to_pylist(), strict=True))
    shared = min(completed(table, "random") & completed(table, "grown"))
    (point,) = arm.space.draw(philox_key(design.seed, "propose", 0), shared, shared + 1)
    for asked in (point, {**point, "lr": float(point["lr"]) * 1.0001}):  # on record, and beside it
        for own in (random, arm):
            found, _ = objective(Query(own, 0, asked, describe(0, asked, own.space), STEPS))
            assert (own.name, found) in told


def completed(table: pa.Table, arm: str) -> set[int]:
    """Numbers of an arm's candidates that were trained to the end."""
    rows = table.select(["arm", "stage", "outcome", "slot"]).to_pylist()
    return {r["slot"] for r in rows if (r["arm"], r["stage"], r["outcome"]) == (arm, "trained", "completed")}


def test_between_evaluations_the_last_one_counts() -> None:
    table = finished(design_of(DESIGN.arms[0], replicates=1))
    sparse = table.set_column(
        table.schema.get_field_index("curve_step"), "curve_step", pa.array([[1, 10, 27]] * table.num_rows)
    )
    for name in ("curve_val_loss", "curve_val_error"):
        values = [[v[0], v[9], v[26]] for v in table[name].to_pylist()]
        sparse = sparse.set_column(sparse.schema.get_field_index(name), name, pa.array(values))
    arm = DESIGN.arms[0]
    objective = LedgerObjective(sparse, design_of(arm, replicates=1))
    point = arm.space.draw(np.array([1, 1], dtype=np.uint64), 0, 1)[0]
    at = {step: objective(Query(arm, 0, point, describe(0, point, arm.space), step)) for step in (1, 9, 10, 26, 27)}
    assert at[1] == at[9] > at[10] == at[26] > at[27]


def test_a_study_without_curves_cannot_be_replayed() -> None:
    table = finished(design_of(DESIGN.arms[0], replicates=1))
    with pytest.raises(ConfigError, match="replicate 1: no candidate with a curve completed"):
        LedgerObjective(table, DESIGN)
    bits = Space.from_table({"masks": {"bits": True}}, bits=Bits((40, 40), (4, 4)))
    with pytest.raises(ConfigError, match="arm 'masks': searched mask bits have no distance"):
        LedgerObjective(table, design_of(arm_of("masks", space=bits)))


@pytest.mark.slow
def test_a_hundred_thousand_candidates() -> None:
    rungs = RungSettings("asha", eta=4, min_steps=1, bracket=256)
    design = design_of(arm_of("asha", rungs=rungs, candidates=100_000, batch=64), replicates=1)
    simulated, _ = run(design)
    assert simulated.totals.finished == 100_000
