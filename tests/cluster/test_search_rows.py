"""Rows of searches: a segment's results, decisions and losses under the keys and columns of the ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparsefront.cluster.rows import decided_rows, lane_name, lost_rows, point_columns, segment_rows
from sparsefront.search.schema import SCHEMA, schema_of
from sparsefront.search.work import Decision, SearchLane, SegmentWork
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.spaces.domains import Bits
from sparsefront.spaces.masks import mask_digest, pack_bits
from sparsefront.spaces.space import Space
from sparsefront.study import SearchStudy, Study
from sparsefront.trainables.data import Dataset, load_dataset
from sparsefront.trainables.segments import LaneSpec, SegmentResult, SegmentShop

SPACE: dict[str, Any] = {
    "training": {"lr": {"choices": [0.01, 1e30]}, "optimizer": "sgd", "batch_size": {"choices": [20, 50]}},
    "model": {"widths": {"low": 2, "high": 8, "depth": {"low": 1, "high": 2}}},
    "masks": {"sparsity": {"low": 0.0, "high": 0.8}},
}
COSTS = ("passes", "flops", "seconds")


def made(**changes: Any) -> SearchStudy:
    table = {"name": "tiny", "seed": 7, "replicates": 1, "data": {"name": "digits"}, "arms": {"random": {}}}
    study = Study(**table | {"space": SPACE, "training": {"steps": 4, "eval_every": 2, "lr": 0.5}} | changes)
    assert isinstance(study, SearchStudy)
    return study


STUDY = made()
NAMES = CandidateNames(STUDY.base())


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits", STUDY.data.options)


@pytest.fixture(scope="module")
def schema(dataset: Dataset) -> pa.Schema:
    return schema_of(STUDY.recorded(dataset))


@pytest.fixture(scope="module")
def space() -> Space:
    return STUDY.design().arms[0].space


def lane_of(space: Space, slot: int, point: dict[str, Any], *, arm: str = "random") -> SearchLane:
    described = STUDY._describer(load_dataset("digits", STUDY.data.options))(0, point, space)
    return SearchLane(described.id, arm, slot, point, space.settings(point), 0, None)


@pytest.fixture(scope="module")
def lanes(space: Space) -> list[SearchLane]:
    """One of each depth, a dense one, and one that diverges; the first again for another arm."""
    points: list[dict[str, Any]] = [
        {"depth": 1, "width_1": 5, "sparsity": 0.5, "lr": 0.01, "batch_size": 20},
        {"depth": 2, "width_1": 4, "width_2": 3, "sparsity": 0.25, "lr": 0.01, "batch_size": 20},
        {"depth": 1, "width_1": 5, "sparsity": 0.0, "lr": 0.01, "batch_size": 20},
        {"depth": 1, "width_1": 5, "sparsity": 0.5, "lr": 1e30, "batch_size": 20},
    ]
    return [*(lane_of(space, i, p) for i, p in enumerate(points)), lane_of(space, 9, points[0], arm="other")]


def segment(lanes: list[SearchLane], *, stop: int, rung: int | None) -> SegmentWork:
    n = len(lanes)
    return SegmentWork(0, tuple(lanes), (stop,) * n, (rung,) * n, (), 5.0, attempt=1)


def results_of(work: SegmentWork, dataset: Dataset, folder: Path) -> list[SegmentResult]:
    shop = SegmentShop(STUDY.recipe(), dataset, torch.device("cpu"), folder)
    specs = [
        LaneSpec(lane_name(lane), lane.settings, lane.start_step, stop, lane.checkpoint)
        for lane, stop in zip(work.lanes, work.stops, strict=True)
    ]
    return [one for ended in shop.train(specs, 0) for one in ended]


def by_place(rows: pa.RecordBatch) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["arm"], row["slot"]): row for row in rows.to_pylist()}


def test_candidates_at_a_rung_and_at_the_end(
    lanes: list[SearchLane], dataset: Dataset, schema: pa.Schema, tmp_path: Path
) -> None:
    recipe = STUDY.recipe()
    work = segment(lanes, stop=2, rung=0)
    batch = segment_rows(work, results_of(work, dataset, tmp_path), recipe, device="cpu", schema=schema)
    assert batch.schema.equals(schema)
    found = by_place(batch)
    assert sorted(found) == [("other", 9), *(("random", i) for i in range(4))]
    for row in found.values():
        assert (row["replicate"], row["reused"], row["attempt"], row["pack"]) == (0, False, 1, work.key)
        assert row["predicted_s"] == 1.0
        assert row["steps"] == 2
        assert row["flops"] == pytest.approx(6 * row["macs"] * row["passes"])
        assert (row["optimizer"], row["batch_size"], row["data_fraction"]) == ("sgd", 20, 1.0)  # not the study's own
    diverged = found.pop(("random", 3))
    assert (diverged["stage"], diverged["target_sparsity"], diverged["outcome"]) == ("trained", 0.0, "diverged")
    assert (diverged["lr"], diverged["rung"], diverged["val_loss"], diverged["checkpoint"]) == (1e30, None, None, None)
    for row in found.values():
        assert (row["stage"], row["target_sparsity"], row["rung"], row["outcome"]) == ("rung", 0.0, 0, None)
        assert row["passes"] == pytest.approx(2 * 20 + 288 / 3)
        assert (row["test_loss"], row["test_error"]) == (None, None)
        assert (tmp_path / f"{row['checkpoint']}.safetensors").exists()
    first, second, dense = (found["random", i] for i in range(3))
    assert [first[n] for n in ("depth", "width_1", "width_2", "sparsity", "lr")] == [1, 5, None, 0.5, 0.01]
    assert [second[n] for n in ("depth", "width_1", "width_2")] == [2, 4, 3]
    assert (first["mask_kind"], first["weight_sparsity"]) == ("weight", pytest.approx(0.5, abs=0.01))
    assert (dense["mask_kind"], dense["mask_digest"], dense["weight_sparsity"]) == ("none", None, 0.0)
    other = found["other", 9]
    differing = {"arm", "slot", "seconds"}
    assert {k: v for k, v in other.items() if k not in differing} == {
        k: v for k, v in first.items() if k not in differing
    }

    going_on = [
        replace(lane, start_step=2, checkpoint=found[lane.arm, lane.slot]["checkpoint"])
        for lane in lanes
        if (lane.arm, lane.slot) in found
    ]
    work = segment(going_on, stop=4, rung=None)
    ended = by_place(segment_rows(work, results_of(work, dataset, tmp_path), recipe, device="cpu", schema=schema))
    assert ended.keys() == found.keys()
    for place, row in ended.items():
        before = found[place]
        assert (row["stage"], row["outcome"], row["rung"], row["checkpoint"]) == ("trained", "completed", None, None)
        assert (row["candidate"], row["mask_digest"]) == (before["candidate"], before["mask_digest"])
        assert row["steps"] == 4
        assert row["curve_step"] == [2, 4]
        assert row["curve_val_loss"][0] == before["curve_val_loss"][0]
        assert row["passes"] == pytest.approx(2 * 20 + 288 / 3 + 359 / 3)  # of this segment alone, with the test
        assert np.isfinite(row["test_error"])


def test_the_rung_is_the_level_of_its_key(lanes: list[SearchLane], schema: pa.Schema) -> None:
    work = segment(lanes[:1], stop=2, rung=3)
    one = SegmentResult(lane_name(lanes[0]), None, 2, 40.0, 1e5, 0.1, val_loss=1.0, val_error=0.5)
    (row,) = segment_rows(work, [one], STUDY.recipe(), device="cpu", schema=schema).to_pylist()
    assert (row["stage"], row["target_sparsity"], row["rung"]) == ("rung", 3.0, 3)


def test_the_predicted_time_of_a_candidate_that_passes_rungs_is_shared_by_steps(
    lanes: list[SearchLane], schema: pa.Schema
) -> None:
    alone = replace(lanes[0], start_step=10)
    work = replace(segment([alone], stop=100, rung=None), passing=((1, 30), (2, 60)))
    name = lane_name(alone)

    def predicted(*ended: tuple[str | None, int]) -> list[float]:
        found = []
        for rung, (outcome, steps) in zip((1, 2, None), ended, strict=False):
            one = SegmentResult(name, outcome, steps, 40.0, 1e5, 0.1)
            rows = segment_rows(replace(work, rung=(rung,)), [one], STUDY.recipe(), device="cpu", schema=schema)
            found += rows.column("predicted_s").to_pylist()
        return [9 * predicted_s / work.predicted_s for predicted_s in found]

    assert predicted((None, 30), (None, 60), ("completed", 100)) == pytest.approx([2.0, 3.0, 4.0])
    assert predicted((None, 30), ("diverged", 60)) == pytest.approx([2.0, 3.0])
    assert predicted((None, 30), ("diverged", 45)) == pytest.approx([2.0, 3.0])
    assert predicted(("failed", 0)) == pytest.approx([2.0])


def test_what_could_not_be_built_has_a_row_with_its_reason(lanes: list[SearchLane], schema: pa.Schema) -> None:
    work = segment(lanes[:1], stop=2, rung=0)
    one = SegmentResult(lane_name(lanes[0]), "failed", 0, 30.0, 7e4, 0.1, error="ZeroDivisionError")
    (row,) = segment_rows(work, [one], STUDY.recipe(), device="cpu", schema=schema).to_pylist()
    assert (row["stage"], row["outcome"], row["error"]) == ("trained", "failed", "ZeroDivisionError")
    assert (row["candidate"], row["n_params"], row["val_loss"]) == (lanes[0].id, None, None)
    assert (row["width_1"], row["passes"], row["flops"]) == (5, 30.0, 7e4)  # what broke off is paid for


def test_lost_work_ends_its_candidates(lanes: list[SearchLane], schema: pa.Schema) -> None:
    work = segment(lanes[:2], stop=2, rung=1)
    rows = lost_rows(work, "timeout", "hung", NAMES, STUDY.recipe(), seconds_each=3.0, schema=schema)
    assert rows.schema.equals(schema)
    for i, row in enumerate(rows.to_pylist()):
        assert (row["stage"], row["arm"], row["slot"], row["target_sparsity"]) == ("trained", "random", i, 0.0)
        assert (row["outcome"], row["error"], row["candidate"]) == ("timeout", "hung", lanes[i].id)
        assert (row["seconds"], row["passes"], row["attempt"], row["val_loss"]) == (3.0, 0.0, 1, None)
        assert (row["depth"], row["lr"], row["reused"], row["predicted_s"]) == (1 + i, 0.01, False, 2.5)


def test_decisions_cost_nothing(lanes: list[SearchLane], space: Space, schema: pa.Schema, dataset: Dataset) -> None:
    point = lanes[1].point
    described = STUDY._describer(dataset)(0, point, space)
    settings = space.settings(point)
    stopped = Decision(
        "random",
        0,
        4,
        "stopped",
        point,
        settings,
        described,
        rung=1,
        steps=2,
        values={"val_loss": 1.5, "val_error": 0.5},
    )
    repeated = Decision(
        "random", 0, 5, "completed", point, settings, described, steps=4, reused_from=1, values={"val_error": 0.25}
    )
    broken = Decision("random", 0, 6, "failed", None, {}, None, error="ZeroDivisionError: no more ideas")
    rows = decided_rows([stopped, repeated, broken], NAMES, STUDY.recipe(), schema)
    assert rows.schema.equals(schema)
    found = rows.to_pylist()
    for row in found:
        assert [row[cost] for cost in COSTS] == [0.0, 0.0, 0.0]
        assert (row["stage"], row["target_sparsity"], row["pack"], row["curve_step"]) == ("trained", 0.0, None, None)
    assert [row["outcome"] for row in found] == ["stopped", "completed", "failed"]
    assert [row["reused"] for row in found] == [False, True, False]
    assert [row["rung"] for row in found] == [1, None, None]
    assert [row["steps"] for row in found] == [2, 4, 0]
    assert [row["val_error"] for row in found] == [0.5, 0.25, None]
    assert [row["width_2"] for row in found] == [3, 3, None]
    assert [row["candidate"] for row in found] == [lanes[1].id, lanes[1].id, None]
    for row in found[:2]:
        assert (row["n_params"], row["macs"]) == (described.n_params, described.macs)
        assert row["weight_sparsity"] == described.weight_sparsity
        assert row["node_sparsity"] is None  # of a weight mask that is not drawn
    assert found[2]["error"] == "ZeroDivisionError: no more ideas"


def test_points_are_columns_and_searched_bits_their_digest() -> None:
    bits = pack_bits(np.array([1, 0, 1, 0, 0], dtype=bool)).tobytes()
    table = {"masks": {"bits": True}, "training": {"lr": 0.25, "steps": {"low": 1, "high": 9}}}
    space = Space.from_table(table, bits=Bits((5,), (2,)))
    point = {"mask_bits": bits, "training_steps": 7}
    recipe = made(masks={"kind": "node", "sparsity": 0.5}).recipe()
    found = point_columns(point, space.settings(point), recipe)
    assert (found["mask_bits"], found["training_steps"]) == (mask_digest(bits), 7)
    assert (found["lr"], found["mask_kind"], found["optimizer"]) == (0.25, "node", "adam")
    assert set(found) - set(SCHEMA.names) == {"mask_bits", "training_steps"}
