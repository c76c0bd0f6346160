"""Synthetic ledgers of search studies: what such a study would have left, with a known truth.

The truth of a candidate: its validation error is

    0.1 + 0.6 exp(-n_params / 3000) + 0.08 (log10 lr + 2)^2 + replicate's shift + noise,

so a learning rate of 0.01 is best and a larger network better. ``skill`` moves an arm's draws of the learning rate
towards that optimum as its run proceeds (0 is random search, and two arms without skill are a true null).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from sparsefront.search.design import RungSettings, SearchArm, SearchDesign
from sparsefront.search.schema import SCHEMA, schema_of
from sparsefront.spaces.space import Space

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
BATCH = 100

TABLE: dict[str, Any] = {
    "training": {"lr": {"low": 1e-4, "high": 1.0, "log": True}, "optimizer": {"choices": ["adam", "sgd"]}},
    "model": {"widths": {"low": 4, "high": 128, "log": True, "depth": {"low": 1, "high": 3}}},
}


def make_search_design(
    *,
    arms: Mapping[str, Mapping[str, Any]] | None = None,
    space: Mapping[str, Any] | None = None,
    candidates: int = 64,
    **changes: Any,
) -> SearchDesign:
    """Build the design of a small search study.

    Args:
        arms: further settings of each arm by name; default: random, asha (with rungs) and nsga2.
        space: table of the space that all arms share.
        candidates: of each run.
        changes: fields of the design.
    """
    shared = Space.from_table(TABLE if space is None else space)
    asha = {"rungs": RungSettings(kind="mo_asha", eta=4, min_steps=75, objectives=("val_error", "n_params"))}
    chosen = {"random": {}, "asha": asha, "nsga2": {"strategy": "nsga2"}} if arms is None else arms
    fields: dict[str, Any] = {
        "name": "synthetic",
        "seed": 3,
        "replicates": 10,
        "steps": 1200,
        "eval_every": 100,
        "model": "mlp",
        "dataset": "mnist1d",
        "mask_kind": "weight",
        "objectives": ("val_error", "n_params"),
        "arms": tuple(
            SearchArm(
                **({"name": name, "strategy": "random", "space": shared, "candidates": candidates, "batch": 16} | own)
            )
            for name, own in chosen.items()
        ),
    }
    return SearchDesign(**(fields | changes))


def make_search_table(
    design: SearchDesign,
    *,
    skill: Mapping[str, float] | None = None,
    noise: float = 0.01,
    seed: int = 0,
    outcomes: Mapping[tuple[str, int, int], str] | None = None,
    stop_share: float = 0.75,
) -> pa.Table:
    """Build the ledger that a finished search study of this design could have left.

    Args:
        design: what was asked; its spaces have the dimensions of ``TABLE``, or some of them.
        skill: 0..1 by arm: how far its last candidates' learning rates are drawn to the optimum.
        noise: standard deviation of a validation error around its truth.
        seed: of every draw of this table.
        outcomes: {(arm, replicate, number): outcome} of candidates that did not complete; 'reused' is a duplicate.
        stop_share: of the candidates that reach a rung of an arm with rungs, the share stopped there: those whose
            learning rate is furthest from the optimum.

    Returns:
        A table of the study's schema in commit order; arms with rungs have two, at 75 and 300 steps.
    """
    columns: dict[str, str] = {}
    for arm in design.arms:
        columns |= {name: kind for name, kind in arm.space.columns if name not in SCHEMA.names}
    schema = schema_of({"resolved": {"columns": columns}})
    rows: list[dict[str, Any]] = []
    shifts = np.random.default_rng([seed, 1]).normal(0.0, 0.01, design.replicates)
    for replicate in range(design.replicates):
        for position, arm in enumerate(design.arms):
            rng = np.random.default_rng([seed, 2, replicate, position])
            for number in range(arm.candidates):
                point = _point(arm, rng, pull=(skill or {}).get(arm.name, 0.0) * number / arm.candidates)
                n_params = _n_params(point)
                error = 0.1 + 0.6 * np.exp(-n_params / 3000) + 0.08 * (np.log10(point["lr"]) + 2) ** 2
                error = float(np.clip(error + shifts[replicate] + rng.normal(0, noise), 0.0, 0.9))
                outcome = (outcomes or {}).get((arm.name, replicate, number), "completed")
                stops = [s for s in (75, 300) if arm.rungs.kind != "none" and s < design.steps]
                # The logarithm of a drawn rate is uniform within 2 of the optimum: this is what ideal rungs would do.
                distance = abs(np.log10(point["lr"]) + 2) / 2
                stopped_at = next((i for i, _ in enumerate(stops) if distance > (1 - stop_share) ** (i + 1)), None)
                if outcome == "completed" and stopped_at is not None:
                    outcome = "stopped"
                _candidate_rows(
                    rows,
                    design,
                    stops,
                    stopped_at,
                    dict(
                        arm=arm.name,
                        replicate=replicate,
                        slot=number,
                        candidate=hashlib.blake2b(
                            repr((arm.name, replicate, number)).encode(), digest_size=16
                        ).hexdigest(),
                        n_params=n_params,
                        macs=2 * n_params,
                        weight_sparsity=0.0,
                        node_sparsity=0.0,
                        **{name: value for name, value in point.items() if name in schema.names},
                    ),
                    outcome=outcome,
                    error=error,
                )
    return pa.Table.from_pylist(rows, schema=schema)


def _candidate_rows(
    rows: list[dict[str, Any]],
    design: SearchDesign,
    stops: list[int],
    stopped_at: int | None,
    shared: dict[str, Any],
    *,
    outcome: str,
    error: float,
) -> None:
    def add(stage: str, level: float, n_steps: int, **values: Any) -> None:
        passes = float(BATCH * n_steps)
        costs = {"passes": passes, "flops": 6 * passes * shared["macs"], "seconds": passes * shared["macs"] / 1e8}
        stamp = START + dt.timedelta(milliseconds=10 * len(rows))
        rows.append(
            dict.fromkeys(SCHEMA.names)
            | shared
            | {"stage": stage, "target_sparsity": level, "reused": False, "attempt": 0, "committed_at": stamp}
            | costs
            | values
        )

    measured = {"val_error": error, "val_loss": 2 * error, "test_error": min(1.0, error + 0.01), "test_loss": 2 * error}
    if outcome == "infeasible":
        add("trained", 0.0, 0, outcome=outcome)
    elif outcome == "reused":
        add("trained", 0.0, 0, outcome="completed", **measured | {"reused": True})
    elif outcome not in ("completed", "stopped"):
        add("trained", 0.0, 50, outcome=outcome, error=f"{outcome}: synthetic <b>{shared['arm']}</b>")
    else:
        done = 0
        for rung, stop in enumerate(stops):
            add("rung", float(rung), stop - done, outcome=None, rung=rung, val_error=min(0.9, error + 0.1))
            done = stop
            if rung == stopped_at:
                add("trained", 0.0, 0, outcome="stopped", rung=rung)
                return
        add("trained", 0.0, design.steps - done, outcome="completed", steps=design.steps, **measured)


def _point(arm: SearchArm, rng: np.random.Generator, *, pull: float) -> dict[str, Any]:
    unit = rng.random((1, arm.space.n_cube))
    point = dict(arm.space.decode(unit)[0])
    # Drawn even where nothing pulls: so that the draws of two arms correspond.
    lr = 10 ** ((1 - pull) * np.log10(float(point["lr"])) + pull * (-2 + 0.1 * rng.normal()))
    return point | {"lr": float(np.clip(lr, 1e-4, 1.0))}


def _n_params(point: Mapping[str, Any]) -> int:
    widths = [40, *(int(point[f"width_{i}"]) for i in (1, 2, 3) if f"width_{i}" in point), 10]
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def with_pack_times(table: pa.Table, *, ratio: float, device: str = "a CPU") -> pa.Table:
    """The same rows, each of a pack of its own that took `ratio` times what was predicted."""
    packs = [f"segment-{i}" for i in range(table.num_rows)]
    new = {"device": [device] * table.num_rows, "pack": packs, "predicted_s": [0.5] * table.num_rows}
    for name, values in {**new, "seconds": [0.5 * ratio] * table.num_rows}.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), [values])
    return table
