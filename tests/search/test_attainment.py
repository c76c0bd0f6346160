"""Curves of attained hypervolume: against a slow oracle, and what may and may not count."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsefront.errors import ConfigError
from sparsefront.search.attainment import (
    PENDING,
    Curve,
    RunKey,
    arm_outcomes,
    attain,
    attainment_columns,
    has_ended,
    mean_curves,
)
from sparsefront.search.design import SearchDesign
from sparsefront.search.front import Batches
from sparsefront.search.schema import SCHEMA
from sparsefront.spaces.space import Space
from tests.synthetic_search import TABLE, make_search_design, make_search_table


def ledger(*rows: dict[str, Any]) -> pa.Table:
    """Rows of one arm and replicate by default: trained, completed, not reused; at a rung without an outcome."""
    shared = {
        "stage": "trained",
        "arm": "random",
        "replicate": 0,
        "target_sparsity": 0.0,
        "reused": False,
        "passes": 0.0,
    }
    outcomes = {"trained": "completed", "scored": "completed", "rung": None}
    filled = [dict.fromkeys(SCHEMA.names) | shared | row for row in rows]
    return pa.Table.from_pylist(
        [{**row, "outcome": outcomes[row["stage"]]} | given for row, given in zip(filled, rows, strict=True)],
        schema=SCHEMA,
    )


def curves_of(table: Batches, design: SearchDesign) -> Mapping[RunKey, Curve]:
    return attain(table, design).curves


def one_arm(**changes: Any) -> SearchDesign:
    return make_search_design(arms={"random": {}}, replicates=1, **changes)


def area(points: list[tuple[float, float]]) -> float:
    """Area that points dominate in the unit square, by sweeping over the first objective."""
    total, best = 0.0, 1.0
    edges = sorted({x for x, _ in points if x < 1} | {1.0})
    for left, right in itertools.pairwise(edges):
        best = min([best, *(y for x, y in points if x <= left)])
        total += (right - left) * (1 - max(0.0, best))
    return total


@settings(max_examples=60)
@given(
    found=st.lists(
        st.tuples(
            st.floats(0.0, 1.0),
            st.integers(1, 10**6),
            st.sampled_from(["completed", "completed", "stopped", "diverged", "infeasible"]),
            st.integers(0, 500),
        ),
        min_size=1,
        max_size=30,
    ),
    order=st.randoms(use_true_random=False),
)
def test_a_curve_equals_the_area_recomputed_after_each_candidate(
    found: list[tuple[float, int, str, int]], order: Any
) -> None:
    rows = []
    for number, (error, n_params, outcome, passes) in enumerate(found):
        rows.append({"stage": "rung", "slot": number, "passes": float(passes), "val_error": 0.0, "n_params": 1})
        values = {"val_error": error, "n_params": n_params, "passes": 1.0, "slot": number, "outcome": outcome}
        rows.append(values)
    order.shuffle(rows)
    design = one_arm(reference=(0.9, 1e5))
    curve = curves_of(ledger(*rows), design)["random", 0]
    spent, seen = 0.0, []
    for error, n_params, outcome, passes in found:
        spent += passes + 1.0
        if outcome == "completed":
            seen.append((error / 0.9, math.log10(n_params) / 5))
        assert float(curve.at(spent)) == pytest.approx(area(seen), abs=1e-12)
    assert curve.total_cost == pytest.approx(spent)
    assert np.all(np.diff(curve.value) >= 0)
    assert np.all(np.diff(curve.cost) >= 0)


def test_rows_count_in_the_order_of_numbers_whenever_they_were_committed() -> None:
    design = make_search_design(replicates=2, candidates=40)
    table = make_search_table(design)
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    one, other = curves_of(table, design), curves_of(shuffled.to_batches(max_chunksize=17), design)
    assert one.keys() == other.keys()
    for key, curve in one.items():
        np.testing.assert_array_equal(curve.value, other[key].value)
        np.testing.assert_allclose(curve.cost, other[key].cost)


def test_stopped_failed_and_infeasible_candidates_cost_and_attain_nothing() -> None:
    good = {"val_error": 0.1, "n_params": 10}
    table = ledger(
        {"slot": 0, "stage": "rung", "rung": 0, "passes": 5.0} | good,
        {"slot": 0, "outcome": "stopped", "rung": 0} | good,
        {"slot": 1, "outcome": "diverged", "passes": 7.0} | good,
        {"slot": 2, "outcome": "infeasible"} | good,
        {"slot": 3, "stage": "rung", "rung": 0, "passes": 11.0} | good,
        {"slot": 4, "passes": 13.0, "val_error": 0.5, "n_params": 100},
        {"slot": 5, "reused": True, "val_error": 0.5, "n_params": 100},
    )
    found = attain(table, one_arm(reference=(0.9, 1e4)))
    curve = found.curves["random", 0]
    assert curve.cost.tolist() == [36.0]
    assert curve.total_cost == 36.0
    assert curve.front_size == 1
    assert curve.value.tolist() == [pytest.approx((1 - 0.5 / 0.9) * 0.5)]
    assert found.runs[0].outcome.tolist() == [*("stopped", "diverged", "infeasible", PENDING, "completed", "completed")]
    (arm,) = arm_outcomes(found, one_arm())
    assert (arm.n_candidates, arm.n_pending, arm.n_duplicates, arm.n_infeasible) == (3, 1, 1, 1)
    assert arm.stopped == {0: 1 / 3}
    assert arm.shares == {"stopped": 1 / 3, "diverged": 1 / 3, "completed": 1 / 3}


def test_whoever_waits_at_a_rung_is_pending_whatever_the_run_is() -> None:
    """Rows of a driver that was stopped: 16 candidates at rung 0, of which three were told to stop."""
    design = make_search_design(arms={"asha": {"rungs": make_search_design().arms[1].rungs}}, replicates=1)
    rows = [{"arm": "asha", "slot": i, "stage": "rung", "rung": 0, "passes": 1.0, "val_error": 0.5} for i in range(16)]
    rows += [{"arm": "asha", "slot": i, "outcome": "stopped", "rung": 0} for i in range(3)]
    found = attain(ledger(*rows), design)
    (arm,) = arm_outcomes(found, design)
    assert (arm.n_candidates, arm.n_pending) == (3, 13)
    assert arm.shares == {"stopped": 1.0}
    assert not found.curves["asha", 0].front_size


def test_a_study_has_ended_when_all_its_candidates_have() -> None:
    design = make_search_design(replicates=2, candidates=20)
    table = make_search_table(design, outcomes={("random", 0, 3): "diverged"})
    assert has_ended(attain(table, design), design)
    last = (pc.field("arm") == "asha") & (pc.field("replicate") == 1) & (pc.field("slot") == 19)
    for missing in (last, last & (pc.field("stage") == "trained"), pc.field("replicate") == 1):
        assert not has_ended(attain(table.filter(~missing), design), design)
    few = attain(table.filter(~((pc.field("arm") == "asha") & (pc.field("slot") > 15))), design)
    assert not has_ended(few, design, exhausted={("asha", 0)})
    assert has_ended(few, design, exhausted={("asha", 0), ("asha", 1)})


def test_a_run_that_saw_all_of_a_finite_space_has_ended() -> None:
    space = Space.from_table({"training": {"lr": {"choices": [0.1, 0.2, 0.3]}}})
    design = make_search_design(arms={"random": {"space": space}}, replicates=1, candidates=10)
    seen = [{"slot": 0}, {"slot": 1, "reused": True}, {"slot": 2, "outcome": "infeasible"}, {"slot": 3}]
    assert has_ended(attain(ledger(*seen), design), design)
    for n in (1, 3):
        assert not has_ended(attain(ledger(*seen[:n]), design), design)
    assert not has_ended(attain(ledger(*seen[:1], *seen[2:]), design), design), "number 1 is still to come"


def test_a_candidate_that_breaks_a_measured_constraint_attains_nothing() -> None:
    space = Space.from_table({**TABLE, "constraints": ["n_params <= 50"]})
    rows = [{"slot": i, "passes": 1.0, "val_error": 0.1, "n_params": n} for i, n in enumerate((51, 50))]
    design = make_search_design(arms={"random": {"space": space}}, replicates=1, reference=(0.9, 1e4))
    assert curves_of(ledger(*rows), design)["random", 0].cost.tolist() == [2.0]


def test_a_cost_as_objective_is_the_sum_over_all_rows_and_no_copy_is_free() -> None:
    design = one_arm(objectives=("val_error", "passes"), reference=(1.0, 1e4))
    table = ledger(
        {"slot": 0, "stage": "rung", "passes": 60.0},
        {"slot": 0, "passes": 40.0, "val_error": 0.0},
        {"slot": 1, "reused": True, "val_error": 0.0},
    )
    found = attain(table, design)
    np.testing.assert_array_equal(found.runs[0].losses, [[0.0, 100.0], [np.nan, np.nan]])
    assert found.curves["random", 0].final == pytest.approx(0.5)


def test_test_results_are_never_read() -> None:
    design = make_search_design(replicates=1, candidates=8)
    assert not [name for name in attainment_columns(design) if name.startswith("test_")]
    table = make_search_table(design)
    attain(table.select(attainment_columns(design)), design)


@pytest.mark.parametrize(
    ("objective", "values", "shown", "start"),
    [
        ("val_error", [0.5, 0.7, 0.3], [0.5, 0.3], 0.9),
        ("val_accuracy", [0.5, 0.7, 0.3], [0.5, 0.7], 0.1),
        ("val_loss", [2.0, 1.0, 1.5], [2.0, 1.0], math.log(10)),
    ],
)
def test_with_one_objective_the_curve_is_its_best_value(
    objective: str, values: list[float], shown: list[float], start: float
) -> None:
    column = "val_loss" if objective == "val_loss" else "val_error"
    design = one_arm(objectives=(objective,))
    table = ledger(*({"slot": i, "passes": 1.0, column: v} for i, v in enumerate(values)))
    found = attain(table, design)
    curve = found.curves["random", 0]
    assert found.box.metric == objective
    assert found.box.is_settled
    np.testing.assert_allclose(found.box.shown(curve.value), shown)
    assert found.box.shown(curve.start) == pytest.approx(start)


def test_the_box_reaches_from_guessing_and_a_tenth_beyond_the_largest_network() -> None:
    rows = [{"slot": i, "passes": 1.0, "val_error": 0.4, "n_params": n} for i, n in enumerate((100, 1000))]
    rows.append({"slot": 2, "outcome": "diverged", "n_params": 10**7, "passes": 1.0})
    box = attain(ledger(*rows), one_arm(n_classes=4)).box
    assert box.reference.tolist() == pytest.approx([0.75, 1100])
    assert box.ideal.tolist() == [0.0, 1.0]
    assert not box.is_settled
    given_box = attain(ledger(*rows), one_arm(reference=(0.5, 2000.0))).box
    assert given_box.reference.tolist() == [0.5, 2000.0]
    assert given_box.is_settled


def test_a_given_reference_is_in_the_objectives_own_direction() -> None:
    design = one_arm(objectives=("val_accuracy", "n_params"), reference=(0.2, 1000.0))
    table = ledger({"slot": 0, "passes": 1.0, "val_error": 0.4, "n_params": 10})
    assert curves_of(table, design)["random", 0].final == pytest.approx((0.6 - 0.2) / 0.8 * 2 / 3)


def test_many_improvements_are_thinned_but_the_last_value_is_exact() -> None:
    n = 3000
    errors = np.linspace(0.5, 0.1, n)
    table = ledger(*({"slot": i, "passes": 1.0, "val_error": e} for i, e in enumerate(errors.tolist())))
    curve = curves_of(table, one_arm(objectives=("val_error",)))["random", 0]
    assert len(curve.cost) == 1000
    assert curve.final == pytest.approx(-0.1)
    exact = -errors[(curve.cost - 1).astype(int)]
    np.testing.assert_allclose(curve.value, exact)


def test_mean_curves_are_means_with_students_interval_on_one_grid() -> None:
    design = make_search_design(replicates=5, candidates=30)
    found = attain(make_search_table(design), design)
    curves = {curve.arm: curve for curve in mean_curves(found, design)}
    assert list(curves) == ["random", "asha", "nsga2"]
    for arm, curve in curves.items():
        values = np.array([c.at(curve.cost) for c in found.of(arm)])
        np.testing.assert_allclose(curve.mean, values.mean(axis=0))
        low, high = stats.t.interval(0.95, 4, values[:, -1].mean(), stats.sem(values[:, -1]))
        assert (curve.low[-1], curve.high[-1]) == (pytest.approx(low), pytest.approx(high))
        assert curve.cost[-1] == pytest.approx(max(c.total_cost for c in found.of(arm)))
        assert set(curve.cost) <= set(curves["random"].cost)


def test_intervals_of_a_minimised_objective_stand_the_right_way_up() -> None:
    design = make_search_design(replicates=3, candidates=20, objectives=("val_error",))
    for curve in mean_curves(attain(make_search_table(design), design), design):
        assert np.all(curve.low <= curve.mean + 1e-12)
        assert np.all(curve.mean <= curve.high + 1e-12)
        assert np.all(np.diff(curve.mean) <= 1e-12)


def test_one_replicate_has_no_interval() -> None:
    design = make_search_design(replicates=1, candidates=20)
    for curve in mean_curves(attain(make_search_table(design), design), design):
        assert np.isnan(curve.low).all()
        assert curve.n_replicates == 1


@pytest.mark.parametrize("table", [SCHEMA.empty_table(), ledger({"slot": 0, "stage": "scored"})])
def test_nothing_trained_gives_no_curves(table: pa.Table) -> None:
    found = attain(table, one_arm())
    assert not found.curves
    assert mean_curves(found, one_arm()) == []
    assert arm_outcomes(found, one_arm()) == ()


def test_a_run_that_found_nothing_stays_where_it_began() -> None:
    curve = curves_of(ledger({"slot": 0, "outcome": "diverged", "passes": 3.0}), one_arm())["random", 0]
    assert (curve.final, curve.total_cost, curve.front_size) == (0.0, 3.0, 0)


def test_non_finite_objectives_of_completed_candidates_count_for_nothing() -> None:
    table = ledger({"slot": 0, "passes": 3.0, "val_error": math.nan, "n_params": 4})
    assert curves_of(table, one_arm())["random", 0].final == 0.0


def test_a_missing_column_is_named() -> None:
    design = one_arm()
    table = ledger({"slot": 0}).drop_columns(["passes"])
    with pytest.raises(ConfigError, match="column 'passes' is missing"):
        attain(table, design)


def test_arms_that_the_design_does_not_know_are_left_out() -> None:
    design = make_search_design(replicates=1, candidates=8)
    table = make_search_table(design)
    fewer = dataclasses.replace(design, arms=design.arms[:1])
    assert list(curves_of(table, fewer)) == [("random", 0)]


def test_a_curve_is_read_between_its_steps() -> None:
    curve = Curve("a", 0, np.array([2.0]), np.array([0.5]), 0.1, 3.0, 1)
    assert curve.at([0, 1.9, 2.0, 5.0]).tolist() == [0.1, 0.1, 0.5, 0.5]
