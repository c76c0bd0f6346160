"""Runs that ended because nothing was left to propose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from sparsefront.search.exhaustion import Exhausted, exhausted_runs, exhaustion_clauses, exhaustion_columns
from sparsefront.spaces.space import Space
from tests.synthetic_exploration import arm_of, batch_of, design_of

SPACE = Space.from_table({"training": {"optimizer": {"choices": ["adam", "sgd"]}, "nesterov": {"choices": [True]}}})
WIDE = Space.from_table({"training": {"lr": {"low": 1e-3, "high": 1e-1}}})


def rows_of(points: list[dict[str, Any]], **more: Any) -> pa.RecordBatch:
    shared = {"stage": "trained", "arm": "a", "replicate": 0, "outcome": "completed", "reused": False}
    return batch_of(
        {**shared, "slot": i, "candidate": f"{i}", "nesterov": True, **point, **more} for i, point in enumerate(points)
    )


@pytest.mark.parametrize("last", [{}, {"outcome": "infeasible"}, {"outcome": "failed"}, {"reused": True}])
def test_a_finite_space_is_exhausted_when_every_point_has_an_outcome(last: dict[str, Any]) -> None:
    design = design_of(arm_of("a", space=SPACE, candidates=5), replicates=1)
    rows = rows_of([{"optimizer": "adam"}, {"optimizer": "sgd", **last}])
    n_trained = 2 if last.get("outcome") != "infeasible" and not last.get("reused") else 1
    assert exhausted_runs([rows], design) == [Exhausted("a", 0, n_trained, 5, "the space is exhausted")]
    assert exhausted_runs([rows.slice(0, 1)], design) == []
    assert exhausted_runs([rows.slice(0, 1), rows.slice(1)], design) == exhausted_runs([rows], design)
    # A third one, which repeats the first, waits for its outcome at a rung.
    assert exhausted_runs([rows.slice(0, 1), rows_of([{"optimizer": "sgd"}] * 3).slice(2)], design) == []


def test_a_run_that_trained_all_it_might_is_not_exhausted() -> None:
    rows = rows_of([{"optimizer": "adam"}, {"optimizer": "sgd"}])
    assert exhausted_runs([rows], design_of(arm_of("a", space=SPACE, candidates=2), replicates=1)) == []
    assert exhausted_runs([], design_of(arm_of("a", space=SPACE, candidates=5), replicates=1)) == []


def test_a_grid_is_exhausted_when_it_was_walked_through() -> None:
    arm = arm_of("a", "grid", space=WIDE, candidates=9, options={"levels": 3})
    points = [{"lr": value} for value in (0.1, 0.001, 0.0505)]
    assert [run.why for run in exhausted_runs([rows_of(points)], design_of(arm, replicates=1))] == [
        "the space is exhausted"
    ]
    assert exhausted_runs([rows_of(points[:2])], design_of(arm, replicates=1)) == []
    assert exhausted_runs([rows_of(points)], design_of(arm_of("a", space=WIDE, candidates=9), replicates=1)) == []


def test_proposals_that_only_repeat_end_a_run() -> None:
    design = design_of(arm_of("a", space=WIDE, candidates=2), replicates=2)
    repeated = [{"lr": 0.01}, *[{"lr": 0.01, "reused": True}] * 99]
    found = exhausted_runs([rows_of(repeated), rows_of(repeated[:99], replicate=1)], design)
    assert found == [Exhausted("a", 0, 1, 2, "proposals only repeat each other")]
    assert exhaustion_clauses(found) == ["a: proposals only repeat each other: 1 of 2 candidates, in 1 replicate"]


def test_only_the_columns_that_are_named_are_needed() -> None:
    design = design_of(arm_of("a", space=SPACE, candidates=5), replicates=1)
    rows = rows_of([{"optimizer": "adam"}, {"optimizer": "sgd"}])
    assert len(exhausted_runs([rows.select(exhaustion_columns(design))], design)) == 1


def test_a_run_that_failed_has_ended_once_its_candidates_have() -> None:
    arm = arm_of("a", space=WIDE, candidates=9)
    design = design_of(replace(arm, space=Space.from_table({"model": {"width": {"low": 1, "high": 9}}})), replicates=1)
    table = pa.Table.from_batches([rows_of([{}] * 3)])
    table = table.append_column("width", pa.array([4, 5, None], pa.int64()))
    end = pa.array(["0", None, None]), pa.array(["completed", "failed", "failed"])  # of no network, and of no point
    for name, column in zip(("candidate", "outcome"), end, strict=True):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), [column])
    assert exhausted_runs(table.to_batches(), design) == [Exhausted("a", 0, 2, 9, "the run failed")]
    assert exhausted_runs(table.slice(1).to_batches(), design) == []  # candidate 0 is in training still
    assert exhausted_runs(table.slice(0, 2).to_batches(), design) == []
