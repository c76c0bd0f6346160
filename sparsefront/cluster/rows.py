"""Rows of the ledger from what the workshop returns: the one place where both are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparsefront.search.plan import POOL, Lane, ScoreWork, TrainWork, Unavailable
from sparsefront.search.plan import Work as MaskWork
from sparsefront.search.schema import COLUMNS, SCHEMA
from sparsefront.search.work import Decision, SearchLane, SegmentWork
from sparsefront.spaces.candidate import Candidate, CandidateNames
from sparsefront.spaces.domains import Value
from sparsefront.spaces.masks import mask_digest
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.segments import SegmentResult
from sparsefront.trainables.workshop import ScoredMasks, Trained

Work = MaskWork | SegmentWork

#: Columns that a space may set, beside those of its own.
_HYPERPARAMETERS = tuple(column.name for column in COLUMNS if column.hyperparameter)


def batch(columns: Mapping[str, Any], n_rows: int, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """A record batch of `n_rows`: each column a sequence, one value for all rows, or absent (null)."""
    arrays = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        value = columns.get(name)
        if isinstance(value, np.ndarray):
            arrays.append(pa.array(value, type=kind, from_pandas=False))
        elif isinstance(value, list):
            arrays.append(pa.array(value, type=kind))
        elif value is None:
            arrays.append(pa.nulls(n_rows, type=kind))
        else:
            arrays.append(pa.repeat(pa.scalar(value, type=kind), n_rows))
    return pa.record_batch(arrays, schema=schema)


def hyperparameters(recipe: Recipe) -> dict[str, Any]:
    """The columns that say how a candidate was trained."""
    return {
        "optimizer": recipe.schedule.optimizer,
        "lr": recipe.hyper.lr,
        "weight_decay": recipe.hyper.weight_decay,
        "beta1": recipe.hyper.beta1,
        "beta2": recipe.hyper.beta2,
        "momentum": recipe.hyper.momentum,
        "nesterov": recipe.hyper.nesterov,
        "label_smoothing": recipe.hyper.label_smoothing,
        "batch_size": recipe.schedule.batch_size,
        "data_fraction": recipe.data_fraction,
        "precision": recipe.precision,
    }


def scored_rows(
    work: ScoreWork,
    scored: ScoredMasks,
    names: CandidateNames,
    recipe: Recipe,
    *,
    device: str,
    schema: pa.Schema = SCHEMA,
) -> pa.RecordBatch:
    """Rows of one pack of scored masks."""
    n = work.stop - work.start
    draws = range(work.start, work.stop)
    left = scored.remains
    passes = scored.passes_each
    return batch(
        {
            "candidate": [names.of(Candidate(work.replicate, work.sparsity, "masked", draw=i)) for i in draws],
            "stage": "scored",
            "arm": POOL,
            "replicate": work.replicate,
            "target_sparsity": work.sparsity,
            "slot": np.arange(work.start, work.stop, dtype=np.int32),
            "outcome": ["completed" if ok else "diverged" for ok in np.isfinite(scored.scores.initial_loss).tolist()],
            "reused": False,
            "mask_kind": recipe.mask_kind,
            "mask_draw": np.arange(work.start, work.stop, dtype=np.int64),
            "mask_digest": scored.digests,
            "node_sparsity": [r.node_sparsity for r in left],
            "weight_sparsity": [r.weight_sparsity for r in left],
            "n_params": [r.n_params for r in left],
            "macs": [r.macs for r in left],
            "initial_loss": _finite(scored.scores.initial_loss),
            "scalefree_loss": _finite(scored.scores.scalefree_loss),
            "temperature": _finite(scored.scores.temperature),
            "logit_std": _finite(scored.scores.logit_std),
            "steps": 0,
            "passes": passes,
            "flops": [6.0 * r.macs * passes for r in left],
            "seconds": scored.seconds_each,
            "attempt": work.attempt,
            "pack": work.key,
            "device": device,
        },
        n,
        schema,
    )


def trained_rows(
    work: TrainWork,
    trained: Sequence[Trained],
    recipe: Recipe,
    *,
    parent_macs: int,
    device: str,
    schema: pa.Schema = SCHEMA,
) -> tuple[pa.RecordBatch, dict[str, bytes]]:
    """Rows of trained candidates and of masks cut from them, and the bits of those masks by digest.

    A candidate that fills several slots has a row for each; the first bears the cost, the others are `reused`.

    Args:
        work: what was to be trained.
        trained: what became of it.
        recipe: how it was made.
        parent_macs: of the parent, which masks are cut from, and at whose size networks train whose nodes come and go.
        device: where it ran.
        schema: of the study's ledger.
    """
    lanes = {lane.candidate: lane for lane in work.lanes}
    rows: list[dict[str, Any]] = []
    blobs: dict[str, bytes] = {}
    for one in trained:
        lane = lanes[one.candidate]
        shared = _trained_columns(work, lane, one, recipe, parent_macs, device)
        for i, slot in enumerate(lane.slots):
            cost = {"passes": 0.0, "flops": 0.0, "seconds": 0.0, "quality_passes": 0.0} if i else {}
            rows.append({**shared, "arm": slot.arm, "slot": slot.slot, "reused": i > 0, **cost})
        if one.mask_bits is not None and one.mask_digest is not None:
            blobs[one.mask_digest] = one.mask_bits
        for mask in one.derived:
            blobs[mask.digest] = mask.bits
            rows.append(
                {
                    "candidate": lane.id,
                    "stage": "pruned",
                    "arm": mask.arm,
                    "replicate": one.candidate.replicate,
                    "target_sparsity": mask.target_sparsity,
                    "slot": 0,
                    "outcome": "completed",
                    "reused": False,
                    "mask_kind": recipe.mask_kind,
                    "mask_digest": mask.digest,
                    "node_sparsity": mask.remains.node_sparsity,
                    "weight_sparsity": mask.remains.weight_sparsity,
                    "n_params": mask.remains.n_params,
                    "macs": mask.remains.macs,
                    "steps": 0,
                    "passes": mask.passes,
                    "flops": 0.0 if one.remains is None else 6.0 * one.remains.macs * mask.passes,
                    "seconds": 0.0,
                    "attempt": work.attempt,
                    "pack": work.key,
                    "device": device,
                }
            )
    return _from_rows(rows, schema), blobs


def lost_rows(
    work: Work,
    outcome: str,
    reason: str,
    names: CandidateNames,
    recipe: Recipe,
    *,
    seconds_each: float,
    schema: pa.Schema = SCHEMA,
) -> pa.RecordBatch:
    """Rows of work that came to nothing: it raised, or its worker died or hung with it.

    Args:
        work: what was to be done.
        outcome: one of `OUTCOMES`.
        reason: for the column `error`.
        names: ids of candidates.
        recipe: how they were to be made.
        seconds_each: wall time of the last attempt divided over its candidates; what it got done in passes is unknown
            and counted as 0.
        schema: of the study's ledger.
    """
    common: dict[str, Any] = {
        "outcome": outcome,
        "steps": 0,
        "passes": 0.0,
        "flops": 0.0,
        "seconds": seconds_each,
        "attempt": work.attempt,
        "pack": work.key,
        "error": reason,
    }
    rows: list[dict[str, Any]] = []
    if isinstance(work, SegmentWork):
        each_s = work.predicted_s / len(work.lanes)
        shared = {**common, "replicate": work.replicate, "stage": "trained", "target_sparsity": 0.0, "reused": False}
        shared["predicted_s"] = each_s
        return _from_rows([{**lane_columns(lane, recipe), **shared} for lane in work.lanes], schema)
    if isinstance(work, ScoreWork):
        common |= {"replicate": work.replicate, "target_sparsity": work.sparsity}
        for i in range(work.start, work.stop):
            name = names.of(Candidate(work.replicate, work.sparsity, "masked", draw=i))
            rows.append(
                {
                    **common,
                    "candidate": name,
                    "stage": "scored",
                    "arm": POOL,
                    "slot": i,
                    "mask_draw": i,
                    "mask_kind": recipe.mask_kind,
                    "reused": False,
                }
            )
        return _from_rows(rows, schema)
    for lane in work.lanes:
        for i, slot in enumerate(lane.slots):
            described = {**_candidate_columns(lane, recipe), **hyperparameters(recipe)}
            cost = {"seconds": 0.0} if i else {}
            rows.append({**common, **described, "arm": slot.arm, "slot": slot.slot, "reused": i > 0, **cost})
    return _from_rows(rows, schema)


def segment_rows(
    work: SegmentWork, ended: Sequence[SegmentResult], recipe: Recipe, *, device: str, schema: pa.Schema
) -> pa.RecordBatch:
    """Rows of candidates that came to the end of a segment: to a rung, or to the end of their training."""
    lanes = {lane_name(lane): (lane, rung) for lane, rung in zip(work.lanes, work.rung, strict=True)}
    rows: list[dict[str, Any]] = []
    for one in ended:
        lane, rung = lanes[one.id]
        row = {
            **lane_columns(lane, recipe),
            "stage": "trained",
            "target_sparsity": 0.0,
            "replicate": work.replicate,
            "outcome": one.outcome,
            "reused": False,
            "steps": one.steps,
            "passes": one.passes,
            "flops": one.flops,
            "seconds": one.seconds,
            "predicted_s": _predicted_s(work, one.steps),
            "checkpoint": one.checkpoint,
            "attempt": work.attempt,
            "pack": work.key,
            "device": device,
            "error": one.error,
            "curve_step": one.curve_step,
            "curve_val_loss": one.curve_val_loss,
            "curve_val_error": one.curve_val_error,
            "test_loss": one.test_loss,
            "test_error": one.test_error,
        }
        if one.outcome is None:
            assert rung is not None
            row |= {"stage": "rung", "target_sparsity": float(rung), "rung": rung}
        if one.remains is not None:
            row |= {
                "mask_kind": one.mask_kind,
                "mask_digest": one.mask_digest,
                "node_sparsity": one.remains.node_sparsity,
                "weight_sparsity": one.remains.weight_sparsity,
                "n_params": one.remains.n_params,
                "macs": one.remains.macs,
            }
        if one.outcome != "diverged":
            row |= {"val_loss": one.val_loss, "val_error": one.val_error}
        rows.append({**row, **one.columns})
    return _from_rows(rows, schema)


def kept_masks(ended: Sequence[SegmentResult]) -> dict[str, bytes]:
    """Packed bits of the masks that controls will need, by digest."""
    return {one.mask_digest: one.mask_bits for one in ended if one.mask_digest and one.mask_bits is not None}


def _predicted_s(work: SegmentWork, steps: int) -> float:
    """A lane's share of what its pack is expected to take, up to the row that it leaves at so many steps.

    A candidate that trains alone leaves one at every rung that it passes: each has the share of its own steps.
    """
    each_s = work.predicted_s / len(work.lanes)
    if not work.passing:
        return each_s
    edges = [work.lanes[0].start_step, *(step for _, step in work.passing), work.stops[0]]
    # What broke off or was stopped on the way counts to the rung that it was on its way to.
    place = next((i for i in range(1, len(edges)) if steps <= edges[i]), len(edges) - 1)
    return each_s * (edges[place] - edges[place - 1]) / (edges[-1] - edges[0])


def decided_rows(
    found: Sequence[Unavailable] | Sequence[Decision], names: CandidateNames, recipe: Recipe, schema: pa.Schema
) -> pa.RecordBatch:
    """Rows that the driver itself commits: what can never be trained, was stopped, or repeats another candidate."""
    rows: list[dict[str, Any]] = []
    for one in found:
        rows += _unavailable_rows(one, names, recipe) if isinstance(one, Unavailable) else [_decision_row(one, recipe)]
    return _from_rows(rows, schema)


def _decision_row(one: Decision, recipe: Recipe) -> dict[str, Any]:
    row: dict[str, Any] = {
        **one.fixed,
        **point_columns(one.point or {}, one.settings, recipe),
        "stage": "trained",
        "arm": one.arm,
        "replicate": one.replicate,
        "target_sparsity": 0.0,
        "slot": one.slot,
        "outcome": one.outcome,
        "rung": one.rung,
        "reused": one.reused_from is not None,
        "steps": one.steps,
        "passes": 0.0,
        "flops": 0.0,
        "seconds": 0.0,
        "attempt": 0,
        "error": one.error,
        **(one.values or {}),
    }
    if one.described is not None:
        described = one.described
        row |= {"candidate": described.id, "n_params": described.n_params, "macs": described.macs}
        row |= {"weight_sparsity": described.weight_sparsity, "node_sparsity": _known(described.node_sparsity)}
    return {**row, **one.network}


def lane_name(lane: SearchLane) -> str:
    """What a lane is called in its pack and in checkpoints."""
    return name_in_pack(lane.id, lane.arm, lane.slot)


def name_in_pack(candidate: str, arm: str, slot: int) -> str:
    """What number `slot` of an arm is called there: two arms may have one candidate."""
    return f"{candidate}:{arm}:{slot}"


def lane_columns(lane: SearchLane, recipe: Recipe) -> dict[str, Any]:
    """The columns that say which candidate a lane carries."""
    return {
        **lane.fixed,
        **point_columns(lane.point, lane.settings, recipe),
        "candidate": lane.id,
        "arm": lane.arm,
        "slot": lane.slot,
    }


def point_columns(point: Mapping[str, Value], settings: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A point of a space by dimension, and how it is trained; masks by their digest."""
    chosen = {name: settings[f"training.{name}"] for name in _HYPERPARAMETERS if f"training.{name}" in settings}
    digests = {name: mask_digest(value) if isinstance(value, bytes) else value for name, value in point.items()}
    return {**hyperparameters(recipe), **chosen, "mask_kind": settings.get("masks.kind", recipe.mask_kind), **digests}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _unavailable_rows(one: Unavailable, names: CandidateNames, recipe: Recipe) -> list[dict[str, Any]]:
    """Rows of slots that can never be filled: failed, with the reason."""
    return [
        {
            "candidate": names.of(
                Candidate(one.replicate, one.sparsity, "masked", mask=f"missing-{slot.arm}-{slot.slot}")
            ),
            "stage": one.stage,
            "arm": slot.arm,
            "replicate": one.replicate,
            "target_sparsity": one.sparsity,
            "slot": slot.slot,
            "outcome": "failed",
            "reused": False,
            "mask_kind": recipe.mask_kind,
            **hyperparameters(recipe),
            "steps": 0,
            "passes": 0.0,
            "flops": 0.0,
            "seconds": 0.0,
            "attempt": 0,
            "error": one.reason,
        }
        for slot in one.slots
    ]


def stamped(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with the time of their commit."""
    at = rows.schema.get_field_index("committed_at")
    now = pa.scalar(datetime.now(UTC), type=rows.schema.field(at).type)
    return rows.set_column(at, rows.schema.field(at), pa.repeat(now, rows.num_rows))


def _candidate_columns(lane: Lane, recipe: Recipe) -> dict[str, Any]:
    c = lane.candidate
    replicate, sparsity = lane.level
    return {
        "candidate": lane.id,
        "replicate": replicate,
        "target_sparsity": sparsity,
        "stage": lane.stage,
        "mask_kind": recipe.mask_kind if c.network == "masked" else "none",
        "mask_draw": None if c.control else c.draw,
        "mask_digest": c.mask if c.network == "masked" else None,
    }


def _trained_columns(
    work: TrainWork, lane: Lane, one: Trained, recipe: Recipe, parent_macs: int, device: str
) -> dict[str, Any]:
    c = lane.candidate
    row: dict[str, Any] = {
        **_candidate_columns(lane, recipe),
        **hyperparameters(recipe),
        "outcome": one.outcome,
        "mask_digest": one.mask_digest,
        "checkpoint": one.checkpoint,
        "test_loss": one.test_loss,
        "test_error": one.test_error,
        "steps": 0,
        "passes": one.passes,
        "flops": 0.0,
        "seconds": one.seconds,
        "attempt": work.attempt,
        "pack": work.key,
        "device": device,
        "error": one.error,
        **one.columns,
    }
    if one.remains is not None:
        row |= {
            "node_sparsity": one.remains.node_sparsity,
            "weight_sparsity": one.remains.weight_sparsity,
            "n_params": one.remains.n_params,
            "macs": one.remains.macs,
            "flops": _flops(c, one, recipe, parent_macs),
        }
    if one.scores is not None:
        values = [None if not np.isfinite(v) else v for v in one.scores]
        row |= dict(zip(("initial_loss", "scalefree_loss", "temperature", "logit_std"), values, strict=True))
    if one.result is not None:
        result = one.result
        row |= {
            "rung": result.rung,
            "steps": result.steps,
            "curve_step": result.curve_step,
            "curve_val_loss": result.curve_val_loss,
            "curve_val_error": result.curve_val_error,
        }
        if one.outcome != "diverged":
            row |= {"val_loss": result.val_loss, "val_error": result.val_error}
    return row


def _flops(c: Candidate, one: Trained, recipe: Recipe, parent_macs: int) -> float:
    """Floating-point operations of all passes of a candidate, each at the size that the network had then."""
    taken = 0 if one.result is None else one.result.steps
    steps = c.steps or recipe.schedule.steps
    macs = partial(_macs_in_training, c, one, recipe, parent_macs, steps=steps)
    total = parent_macs * one.making_passes
    total += macs(taken=taken) * (one.passes - one.making_passes - one.ranking_passes)
    if one.ranking_passes and c.method is not None:
        ranked = c.method.rankings(steps, taken=taken)
        total += one.ranking_passes * sum(macs(taken=at + 1, since=at) for at in ranked) / len(ranked)
    return 6.0 * total


def _macs_in_training(
    c: Candidate, one: Trained, recipe: Recipe, parent_macs: int, *, steps: int, taken: int, since: int = 0
) -> float:
    """Multiply-accumulates of an example that a candidate trained with, as the mean over steps `since` to `taken`.

    Between the parent's and those that its last mask leaves they are taken to fall with the number of weights.
    """
    assert one.remains is not None
    macs = float(one.remains.macs)
    if not c.mask_changes or c.method is None:
        return macs
    if recipe.mask_kind == "node":  # the nodes that are gone come out at the end
        return float(parent_macs)
    density = c.method.mean_density(c.target_sparsity, steps=steps, taken=taken, since=since)
    return macs + (parent_macs - macs) * (density - (1 - c.target_sparsity)) / c.target_sparsity


def _from_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return batch({name: [row.get(name) for row in rows] for name in schema.names}, len(rows), schema)


def _finite(values: npt.NDArray[np.floating[Any]]) -> list[float | None]:
    """Non-finite scores are null: they never reach a strategy or a front."""
    return [v if ok else None for v, ok in zip(values.tolist(), np.isfinite(values).tolist(), strict=True)]
