"""Importance of dimensions: a known truth, and which candidates take part."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sparsefront.search.importance import MIN_CANDIDATES, active_values, arm_importances, importance_columns
from sparsefront.search.schema import SCHEMA
from sparsefront.spaces.space import Space
from tests.synthetic_search import TABLE, make_search_design, make_search_table

ONLY_TRAINING = {"training": TABLE["training"]}


def test_the_dimension_that_decides_is_the_important_one() -> None:
    design = make_search_design(arms={"random": {}}, space=ONLY_TRAINING, replicates=4, candidates=100)
    (found,) = arm_importances(make_search_table(design), design)
    assert (found.arm, found.objective, found.n) == ("random", "val_error", 400)
    assert found.importances is not None
    assert list(found.importances) == ["lr", "optimizer"]
    assert found.importances["lr"] > 0.95
    assert sum(found.importances.values()) == pytest.approx(1)


def test_conditional_dimensions_take_part() -> None:
    design = make_search_design(arms={"random": {}}, replicates=4, candidates=100)
    (found,) = arm_importances(make_search_table(design), design)
    assert found.importances is not None
    assert set(found.importances) == {"depth", "width_1", "width_2", "width_3", "lr", "optimizer"}
    assert found.importances["width_1"] > found.importances["optimizer"]


def test_it_does_not_depend_on_the_order_of_rows() -> None:
    design = make_search_design(arms={"random": {}}, replicates=2, candidates=40)
    table = make_search_table(design)
    assert arm_importances(table, design) == arm_importances(table.take(pa.array(range(80))[::-1]), design)


def test_only_completed_candidates_take_part_each_once() -> None:
    design = make_search_design(arms={"asha": {"rungs": make_search_design().arms[1].rungs}}, replicates=2)
    outcomes: dict[Any, str] = {("asha", 0, 0): "diverged", ("asha", 0, 1): "reused"}
    table = make_search_table(design, outcomes=outcomes)
    n = table.filter(
        (pc.field("stage") == "trained") & (pc.field("outcome") == "completed") & ~pc.field("reused")
    ).num_rows
    (found,) = arm_importances(table, design)
    assert found.n == n < MIN_CANDIDATES
    assert found.importances is None


def test_an_easy_replicate_does_not_fill_the_best_tenth() -> None:
    """Without ranking within replicates, the easy one would make its own, narrower draws seem important."""
    design = make_search_design(arms={"random": {}}, space=ONLY_TRAINING, replicates=2, candidates=100)
    table = make_search_table(design, noise=0.0)
    shifted = pc.if_else(pc.equal(table["replicate"], 0), pc.multiply(table["val_error"], 0.1), table["val_error"])
    place = table.schema.get_field_index("val_error")
    assert arm_importances(table.set_column(place, "val_error", shifted), design) == arm_importances(table, design)


def test_what_never_varied_has_no_importance() -> None:
    design = make_search_design(arms={"random": {}}, space=ONLY_TRAINING, replicates=1, candidates=60)
    table = make_search_table(design)
    same = pa.array([0.5] * table.num_rows)
    table = table.set_column(table.schema.get_field_index("val_error"), "val_error", same)
    assert arm_importances(table, design)[0].importances is None


def test_sizes_are_no_objectives_of_an_analysis_and_arms_without_rows_are_left_out() -> None:
    design = make_search_design(replicates=1, candidates=8, objectives=("val_error", "val_loss", "macs"))
    table = make_search_table(design).filter(pc.field("arm") != "nsga2")
    found = arm_importances(table, design)
    assert {(f.arm, f.objective) for f in found} <= {
        (a, o) for a in ("random", "asha") for o in ("val_error", "val_loss")
    }
    assert arm_importances(SCHEMA.empty_table(), design) == ()
    assert "macs" not in importance_columns(design)


def test_columns_of_inactive_dimensions_count_as_missing() -> None:
    space = Space.from_table(TABLE)
    rows = pa.table(
        {
            "depth": [1, 2],
            **{f"width_{i}": [10 * i, 10 * i + 1] for i in (1, 2, 3)},
            "lr": [0.1, 0.2],
            "optimizer": ["adam", "sgd"],
        }
    )
    found = active_values(rows, space)
    assert found["width_1"] == [10, 11]
    assert found["width_2"] == [None, 21]
    assert found["width_3"] == [None, None]
