"""Constraints that nothing meets are named, with how close anything came."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from sparsefront.search.design import SearchDesign
from sparsefront.search.feasibility import feasibility_columns, unmet_constraints
from sparsefront.spaces.space import Space
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
