"""Search studies made of nothing: a small space, candidates described without a network, and what they would reach."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from random import Random
from typing import Any

import pyarrow as pa

from sparsefront.search.design import RungSettings, SearchArm, SearchDesign
from sparsefront.search.exploration import Exploration
from sparsefront.search.packing import CPU_COST
from sparsefront.search.schema import SCHEMA
from sparsefront.search.work import Decision, Described, SegmentWork, Sets
from sparsefront.spaces.candidate import canonical_json
from sparsefront.spaces.domains import Point
from sparsefront.spaces.shape import Shape
from sparsefront.spaces.space import Space

STEPS = 27
SPACE = {
    "model": {"widths": {"low": 8, "high": 64, "log": True, "depth": {"low": 1, "high": 2}}},
    "masks": {"sparsity": {"low": 0.5, "high": 0.95}},
    "training": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}, "optimizer": {"choices": ["adam", "sgd"]}},
}


def describe(replicate: int, point: Point, space: Sets) -> Described:
    """A multilayer perceptron 40-widths-10, masked; as cheap as can be."""
    settings = {key: value.hex() if isinstance(value, bytes) else value for key, value in space.settings(point).items()}
    widths = settings.get("model.widths", [8])
    n = 40 * widths[0] + sum(a * b for a, b in pairwise(widths)) + 10 * widths[-1]
    kept = max(1, round(n * (1 - settings.get("masks.sparsity", 0.0))))
    first, second = [*widths, 0][:2]
    return Described(
        id=hashlib.blake2b(canonical_json([replicate, settings]).encode(), digest_size=16).hexdigest(),
        n_params=kept,
        macs=kept,
        weight_sparsity=1 - kept / n,
        node_sparsity=0.0,
        shape=Shape(
            settings.get("training.optimizer", "adam"),
            ((first, 40), (second, first), (10, widths[-1])),
            (1, 1, 1),
            settings.get("training.batch_size", 10),
        ),
        steps=settings.get("training.steps", STEPS),
    )


NO_RUNGS = RungSettings()


def arm_of(name: str, strategy: str = "random", rungs: RungSettings = NO_RUNGS, **changes: Any) -> SearchArm:
    given = {"candidates": 24, "batch": 8, "space": Space.from_table(SPACE), **changes}
    return SearchArm(name=name, strategy=strategy, rungs=rungs, **given)


def design_of(*arms: SearchArm, **changes: Any) -> SearchDesign:
    given = {"name": "made", "seed": 1, "replicates": 2, "steps": STEPS, "eval_every": 1, "model": "mlp"}
    given |= {"dataset": "digits", "mask_kind": "weight", "objectives": ("val_error", "n_params")}
    return SearchDesign(arms=arms, **(given | changes))


def explore(design: SearchDesign, **changes: Any) -> Exploration:
    given = {"describe": describe, "pack_cost": CPU_COST, "workers": 2, "max_lanes": 8, "stored": bytes.fromhex}
    return Exploration(design, **(given | changes))


def loss_of(identity: str, step: int) -> float | None:
    """What a candidate reaches by a step; None if it has diverged by then. The same whoever asks, and whenever."""
    chance = Random(f"{identity}{step}")
    if Random(identity).random() < 0.25 and step >= 3:
        return None
    return round(2.0 / (1 + step) + chance.random(), 2)  # with ties


def batch_of(rows: Iterable[Mapping[str, Any]]) -> pa.RecordBatch:
    known = [{name: value for name, value in row.items() if name in SCHEMA.names} for row in rows]
    return pa.RecordBatch.from_pylist(known, schema=SCHEMA)


def reported(work: SegmentWork, **changes: Any) -> list[dict[str, Any]]:
    """Rows that a worker reports of a pack, one for each lane."""
    rows = []
    for lane, stop, rung in zip(work.lanes, work.stops, work.rung, strict=True):
        loss = loss_of(lane.id, stop)
        is_between = rung is not None and loss is not None
        rows.append(
            {
                "stage": "rung" if is_between else "trained",
                "arm": lane.arm,
                "replicate": work.replicate,
                "target_sparsity": float(rung or 0) if is_between else 0.0,
                "slot": lane.slot,
                "reused": False,
                "candidate": lane.id,
                "outcome": "diverged" if loss is None else "completed",
                "val_loss": loss,
                "val_error": None if loss is None else loss / 4,
                "mask_kind": "weight",
                "weight_sparsity": 0.5,
                "mask_digest": lane.id,  # whatever has 32 hex digits
                "checkpoint": f"{lane.id}@{stop}" if is_between else None,
                "passes": float(stop - lane.start_step),
                "seconds": 0.5,
                **changes,
            }
        )
    return rows


def decided(decision: Decision) -> dict[str, Any]:
    """The row that a driver commits for a decision."""
    return {
        **(decision.values or {}),
        "stage": "trained",
        "arm": decision.arm,
        "replicate": decision.replicate,
        "target_sparsity": 0.0,
        "slot": decision.slot,
        "candidate": decision.described and decision.described.id,
        "outcome": decision.outcome,
        "rung": decision.rung,
        "reused": decision.reused_from is not None,
        "passes": 0.0,
        "seconds": 0.0,
        "error": decision.error,
    }
