"""Every pruning method is an arm of a search: with rungs, cut off and resumed, in any packs, at exact counts."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sparsefront.errors import ConfigError
from sparsefront.search.methods import PRUNERS
from sparsefront.study import SearchStudy
from sparsefront.trainables.data import load_dataset
from tests.faults.inline_search import rows_of, run_search
from tests.faults.test_search_crash import LR, assert_same_study, run_with_deaths, study_of, trained

pytestmark = pytest.mark.usefixtures("_one_thread")

#: Of which 2%, to which one method rewinds, are a step.
STEPS = 26
ARMS = [(name, kind) for name, row in PRUNERS.items() for kind in row.kinds]
#: Of these the counts of nodes are found by scores, and a search has to know how large a network is before it trains.
REFUSED = {("random_snip_ratio", "node"), ("random_grasp_ratio", "node")}
AT_ONCE = [name for name, row in PRUNERS.items() if not row.method.needs_parent and "weight" in row.kinds]
CHAINS = [name for name, row in PRUNERS.items() if row.method.needs_parent and "weight" in row.kinds]


def rungs_of(*names: str) -> dict[str, Any]:
    """Rungs that candidates of these methods can be compared at."""
    if any(PRUNERS[name].method.needs_parent for name in names):
        return {"kind": "asha", "eta": 2, "bracket": 6, "fidelity": "level", "min_steps": 1}
    return {"kind": "asha", "eta": 2, "bracket": 6, "min_steps": 4}


def search_of(masks: dict[str, Any], *, rungs: dict[str, Any], is_grid: bool = False) -> SearchStudy:
    """A small search of candidates that a method prunes; a grid has every point of these masks once."""
    space = {"training": {"lr": LR}, "model": {"widths": {"low": 5, "high": 8, "depth": 2}}, "masks": masks}
    study = study_of(
        {"random": {"strategy": "grid"} if is_grid else {}},
        space={"masks": masks} if is_grid else space,
        search={"candidates": 60 if is_grid else 6, "batch": 60 if is_grid else 6},
        model={"name": "mlp", "widths": [8, 6]},
        training={"steps": STEPS, "eval_every": 10, "batch_size": 32},
        rungs=rungs,
    )
    assert isinstance(study, SearchStudy)
    return study


def masks_of(name: str, kind: str) -> dict[str, Any]:
    """What a space says of candidates that this method prunes; N:M is a sparsity of its own."""
    masks: dict[str, Any] = {"method": name, "kind": kind}
    if PRUNERS[name].method.pattern == "unstructured":
        masks["sparsity"] = {"choices": [0.4, 0.7]}
    if kind == "node":
        masks["allocation"] = "uniform"
    return masks


def assert_exact(study: SearchStudy, rows: dict[Any, dict[str, Any]]) -> int:
    """Completed candidates have the sizes that were known before; how many there are."""
    (arm,) = study.design().arms
    describe, n_completed = study._describer(load_dataset("digits", {})), 0
    for row in trained(rows).values():
        if row["outcome"] != "completed":
            continue
        n_completed += 1
        point = {name: row[name] for name in arm.space.names if row.get(name) is not None}
        described = describe(0, point, arm.space)
        assert (row["candidate"], row["n_params"], row["macs"]) == (described.id, described.n_params, described.macs)
        assert row["weight_sparsity"] == described.weight_sparsity
        assert row["steps"] == described.steps
        assert row["mask_digest"] is not None
        if not math.isnan(described.node_sparsity):
            assert row["node_sparsity"] == described.node_sparsity
    return n_completed


@pytest.mark.parametrize(("name", "kind"), ARMS)
def test_it_is_an_arm_of_a_search(name: str, kind: str, tmp_path: Path) -> None:
    """Rungs stop some; who is cut off, or in other packs and another order, comes to the same, paid for once."""
    masks = masks_of(name, kind)
    if (name, kind) in REFUSED:
        with pytest.raises(
            ConfigError, match=r"^masks\.kind='node': .* makes no masks of nodes whose counts are known"
        ):
            search_of(masks, rungs=rungs_of(name))
        return
    study = search_of(masks, rungs=rungs_of(name))
    run_search(study, tmp_path / "whole")
    expected = rows_of(tmp_path / "whole")
    assert {row["outcome"] for row in trained(expected).values()} == {"completed", "stopped"}
    assert assert_exact(study, expected) >= 1
    run_search(study, tmp_path / "otherwise", slots=3, max_lanes=2, order=1)
    assert_same_study(rows_of(tmp_path / "otherwise"), expected)
    assert run_with_deaths(study, tmp_path / "deaths", Random(name), lives=20) >= 1
    assert_same_study(rows_of(tmp_path / "deaths"), expected)


@pytest.mark.parametrize("names", [AT_ONCE, CHAINS], ids=["at once", "chains"])
def test_methods_are_searched_and_compared_at_rungs(names: list[str], tmp_path: Path) -> None:
    """All that are trained at once, drawn masks beside them; and all chains, those of one cut beside those of many."""
    drawn = [] if names is CHAINS else ["random"]
    study = search_of(
        {"method": {"choices": [*drawn, *names]}, "sparsity": {"choices": [0.4, 0.7]}},
        rungs={**rungs_of(*names), "bracket": 40},
        is_grid=True,
    )
    run_search(study, tmp_path / "whole", max_lanes=40)
    rows = rows_of(tmp_path / "whole")
    assert {row["method"] for row in rows.values()} == {*drawn, *names}
    assert {row["outcome"] for row in trained(rows).values()} == {"completed", "stopped"}
    assert assert_exact(study, rows) >= 1
    # N:M is what it is at any sparsity.
    assert sum(row["reused"] for row in rows.values()) == ("nm_2_4" in names)


def test_chains_and_others_are_searched_without_rungs(tmp_path: Path) -> None:
    names = {"random": 1, "snip": 1, "gmp": 1, "magnitude": 2, "imp": 3}
    study = search_of(
        {"method": {"choices": list(names)}, "rate": 0.5, "sparsity": 0.7}, rungs={"kind": "none"}, is_grid=True
    )
    run_search(study, tmp_path / "whole")
    rows = rows_of(tmp_path / "whole")
    assert assert_exact(study, rows) == len(names)
    assert {row["method"]: row["steps"] for row in rows.values()} == {name: STEPS * n for name, n in names.items()}
    assert len({row["n_params"] for row in rows.values()}) == 1
