"""Constraints that nothing meets are named, with how close anything came."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pytest

from sparsefront.errors import SpaceError
from sparsefront.search.design import SearchDesign
from sparsefront.search.feasibility import N_DRAWN, feasibility_columns, scarcity, unmet_constraints
from sparsefront.search.work import Described
from sparsefront.spaces.constraints import Constraint
from sparsefront.spaces.domains import Point
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space
from tests.synthetic_exploration import SPACE, arm_of, describe
from tests.synthetic_search import TABLE, make_search_design


def designed(*constraints: str, other: tuple[str, ...] | None = None) -> SearchDesign:
    arms: dict[str, dict[str, Any]] = {"random": {}, "own": {}}
    if other is not None:
        arms["own"] = {"space": Space.from_table(TABLE | {"constraints": list(other)})}
    return make_search_design(arms=arms, space=TABLE | {"constraints": list(constraints)})


def rows(*changes: dict[str, Any]) -> list[pa.RecordBatch]:
    row = {"stage": "trained", "arm": "random", "outcome": "completed", "reused": False, "val_error": 0.5, "flops": 1e6}
    return pa.Table.from_pylist([row | change for change in changes]).to_batches()


CASES = [
    # What is known beforehand is recorded as infeasible, and explained there.
    (designed("n_params <= 10"), rows({}), ()),
    (designed("val_error <= 0.1"), [], ()),
    (designed("val_error <= 0.1"), rows({"outcome": "stopped", "val_error": None}), ()),
    (designed("val_error <= 0.1"), rows({}, {"val_error": 0.1}), ()),
    (
        designed("val_error <= 0.1"),
        rows({}, {"arm": "own", "val_error": 0.25}, {"reused": True, "val_error": 0.05}, {"stage": "rung"}),
        ("no candidate meets val_error <= 0.1 (2 completed, best 0.25)",),
    ),
    (
        designed("val_error <= 0.1"),
        rows({}, {"arm": "own", "val_error": 0.01}),
        ("no candidate of random meets val_error <= 0.1 (1 completed, best 0.5)",),
    ),
    (
        designed("val_error <= 0.1", other=("val_error <= 0.6", "flops >= 10_000_000")),
        rows({}, {"arm": "own"}),
        (
            "no candidate of random meets val_error <= 0.1 (1 completed, best 0.5)",
            "no candidate of own meets flops >= 10000000 (1 completed, best 1e+06)",
        ),
    ),
    (
        designed("val_error <= 0.3", "flops <= 500_000"),
        rows({"flops": 1e5}, {"val_error": 0.2}),
        ("no candidate meets val_error <= 0.3 and flops <= 500000 together (2 completed)",),
    ),
    (designed("val_error <= 0.3"), rows({"val_error": None}), ("no candidate meets val_error <= 0.3 (1 completed)",)),
]


@pytest.mark.parametrize(("design", "batches", "clauses"), CASES)
def test_what_nothing_meets_is_named(
    design: SearchDesign, batches: list[pa.RecordBatch], clauses: tuple[str, ...]
) -> None:
    assert unmet_constraints(batches, design) == clauses


def test_only_columns_of_measured_constraints_are_read() -> None:
    design = designed("val_error <= 0.1", "n_params <= 10")
    assert feasibility_columns(design) == ["stage", "arm", "outcome", "reused", "val_error"]


@pytest.mark.parametrize("bound", [15.0, 22.0, 60.0, 200.0, 1e9])
@pytest.mark.parametrize("candidates", [4, 24])
def test_spaces_of_which_too_little_is_left_are_told_beforehand(bound: float, candidates: int) -> None:
    """Against the definition: the share of the points that random search would draw."""
    space = dataclasses.replace(Space.from_table(SPACE), constraints=(Constraint("n_params", "<=", bound),))
    n = min(N_DRAWN, 50 * candidates)
    points = space.draw(philox_key(7, "propose", 0), 0, n)
    n_kept = sum(describe(0, point, space).n_params <= bound for point in points)
    arm = arm_of("own", space=space, candidates=candidates)
    expected = (n_kept, n) if n_kept / n < 1 / 50 else None
    assert scarcity(arm, 7, describe, proposals_each=50) == expected


def test_what_is_measured_or_cannot_be_leaves_nothing_to_tell_beforehand() -> None:
    def never(replicate: int, point: Point, space: Space) -> Described:
        raise SpaceError("there is no such network")

    space = Space.from_table(SPACE)
    measured = dataclasses.replace(space, constraints=(Constraint("val_error", "<=", 1e-9),))
    assert scarcity(arm_of("own", space=measured), 7, describe, proposals_each=50) is None
    assert scarcity(arm_of("own", space=space), 7, describe, proposals_each=50) is None
    known = dataclasses.replace(space, constraints=(Constraint("n_params", "<=", 10.0),))
    assert scarcity(arm_of("own", space=known), 7, never, proposals_each=50) is None
