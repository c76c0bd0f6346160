"""Rows of the ledger from what the workshop returns: the one place where both are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparsefront.search.plan import POOL, Lane, ScoreWork, TrainWork, Unavailable, Work
from sparsefront.search.schema import COLUMNS, SCHEMA
from sparsefront.spaces.candidate import Candidate, CandidateNames
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.workshop import ScoredMasks, Trained

_TYPES = {column.name: column.type for column in COLUMNS}


def batch(columns: Mapping[str, Any], n_rows: int) -> pa.RecordBatch:
    """A record batch of `n_rows`: each column a sequence, one value for all rows, or absent (null)."""
    arrays = []
    for name, kind in _TYPES.items():
        value = columns.get(name)
        if isinstance(value, np.ndarray):
            arrays.append(pa.array(value, type=kind, from_pandas=False))
        elif isinstance(value, list):
            arrays.append(pa.array(value, type=kind))
        elif value is None:
            arrays.append(pa.nulls(n_rows, type=kind))
        else:
            arrays.append(pa.repeat(pa.scalar(value, type=kind), n_rows))
    return pa.record_batch(arrays, schema=SCHEMA)


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
        "precision": recipe.precision,
    }


def scored_rows(
    work: ScoreWork, scored: ScoredMasks, names: CandidateNames, recipe: Recipe, *, device: str
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
    )


def trained_rows(
    work: TrainWork, trained: Sequence[Trained], recipe: Recipe, *, device: str
) -> tuple[pa.RecordBatch, dict[str, bytes]]:
    """Rows of trained candidates and of masks cut from them, and the bits of those masks by digest.

    A candidate that fills several slots has a row for each; the first bears the cost, the others are `reused`.
    """
    lanes = {lane.candidate: lane for lane in work.lanes}
    rows: list[dict[str, Any]] = []
    blobs: dict[str, bytes] = {}
    for one in trained:
        lane = lanes[one.candidate]
        shared = _trained_columns(work, lane, one, recipe, device)
        for i, slot in enumerate(lane.slots):
            cost = {"passes": 0.0, "flops": 0.0, "seconds": 0.0} if i else {}
            rows.append({**shared, "arm": slot.arm, "slot": slot.slot, "reused": i > 0, **cost})
        for mask in one.derived:
            blobs[mask.digest] = mask.bits
            rows.append(
                {
                    "candidate": lane.id,
                    "stage": "pruned",
                    "arm": mask.criterion,
                    "replicate": work.replicate,
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
                    "passes": 0.0,
                    "flops": 0.0,
                    "seconds": 0.0,
                    "attempt": work.attempt,
                    "pack": work.key,
                    "device": device,
                }
            )
    return _from_rows(rows), blobs


def lost_rows(
    work: Work, outcome: str, reason: str, names: CandidateNames, recipe: Recipe, *, seconds_each: float
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
    """
    common = {
        "replicate": work.replicate,
        "target_sparsity": work.sparsity,
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
    if isinstance(work, ScoreWork):
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
        return _from_rows(rows)
    for lane in work.lanes:
        for i, slot in enumerate(lane.slots):
            described = {**_candidate_columns(lane, recipe), **hyperparameters(recipe)}
            cost = {"seconds": 0.0} if i else {}
            rows.append({**common, **described, "arm": slot.arm, "slot": slot.slot, "reused": i > 0, **cost})
    return _from_rows(rows)


def unavailable_rows(found: Sequence[Unavailable], names: CandidateNames, recipe: Recipe) -> pa.RecordBatch:
    """Rows of slots that can never be filled: failed, with the reason."""
    rows = [
        {
            "candidate": names.of(
                Candidate(one.replicate, one.sparsity, "masked", mask=f"missing-{slot.arm}-{slot.slot}")
            ),
            "stage": "trained",
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
        for one in found
        for slot in one.slots
    ]
    return _from_rows(rows)


def stamped(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with the time of their commit."""
    at = SCHEMA.get_field_index("committed_at")
    now = pa.scalar(datetime.now(UTC), type=_TYPES["committed_at"])
    return rows.set_column(at, SCHEMA.field(at), pa.repeat(now, rows.num_rows))


def _candidate_columns(lane: Lane, recipe: Recipe) -> dict[str, Any]:
    c = lane.candidate
    return {
        "candidate": lane.id,
        "stage": "trained",
        "mask_kind": recipe.mask_kind if c.network == "masked" else "none",
        "mask_draw": c.draw,
        "mask_digest": c.mask,
    }


def _trained_columns(work: TrainWork, lane: Lane, one: Trained, recipe: Recipe, device: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        **_candidate_columns(lane, recipe),
        **hyperparameters(recipe),
        "replicate": work.replicate,
        "target_sparsity": work.sparsity,
        "outcome": one.outcome,
        "mask_digest": one.mask_digest,
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
    }
    if one.remains is not None:
        row |= {
            "node_sparsity": one.remains.node_sparsity,
            "weight_sparsity": one.remains.weight_sparsity,
            "n_params": one.remains.n_params,
            "macs": one.remains.macs,
            "flops": 6.0 * one.remains.macs * one.passes,
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


def _from_rows(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    return batch({name: [row.get(name) for row in rows] for name in _TYPES}, len(rows))


def _finite(values: npt.NDArray[np.floating[Any]]) -> list[float | None]:
    """Non-finite scores are null: they never reach a strategy or a front."""
    return [v if ok else None for v, ok in zip(values.tolist(), np.isfinite(values).tolist(), strict=True)]
