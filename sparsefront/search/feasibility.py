"""Constraints that little or nothing meets: why a search may end without a front, or before its time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import SparsefrontError
from sparsefront.search.design import SearchArm, SearchDesign
from sparsefront.search.work import Describe
from sparsefront.spaces.constraints import Constraint
from sparsefront.spaces.seeds import philox_key

#: Points that are drawn to see how many keep the constraints.
N_DRAWN = 500


def scarcity(arm: SearchArm, seed: int, describe: Describe, *, proposals_each: int) -> tuple[int, int] | None:
    """Find out whether what is known before training leaves so little that a run may end before its time.

    Args:
        arm: whose space is asked about.
        seed: of the study; random search in replicate 0 begins with the points that are drawn.
        describe: what follows from a point.
        proposals_each: how many proposals a run may make for each candidate that it trains.

    Returns:
        How many of how many points drawn keep the constraints, if fewer than one of `proposals_each` do; else None.
    """
    bounds = [c for c in arm.space.constraints if c.is_known_before_training]
    n = min(N_DRAWN, proposals_each * arm.candidates)
    enough, n_kept = -(-n // proposals_each), 0
    if not bounds:
        return None
    for point in arm.space.draw(philox_key(seed, "propose", 0), 0, n):
        try:
            costs = describe(0, point, arm.space).costs
        except SparsefrontError:  # there is no such network: whoever trains it will say so
            return None
        n_kept += all(c.violation(costs[c.quantity]) <= 0 for c in bounds)
        if n_kept >= enough:
            return None
    return n_kept, n


def feasibility_columns(design: SearchDesign) -> list[str]:
    """List the ledger's columns that `unmet_constraints` reads."""
    quantities = (c.quantity for arm in design.arms for c in _measured(arm))
    return list(dict.fromkeys(["stage", "arm", "outcome", "reused", *quantities]))


def unmet_constraints(batches: Iterable[pa.RecordBatch], design: SearchDesign) -> tuple[str, ...]:
    """Say which constraints on what is measured no completed candidate meets, one by one or all together.

    Args:
        batches: rows of the ledger with `feasibility_columns`.
        design: what was asked.

    Returns:
        A clause for each, such as "no candidate meets val_error <= 0.01 (64 completed, best 0.21)"; arms that completed
        nothing are passed over.
    """
    bounded = [arm for arm in design.arms if _measured(arm)]
    if not bounded:
        return ()
    where = (pc.field("stage") == "trained") & (pc.field("outcome") == "completed")
    where &= ~pc.coalesce(pc.field("reused"), pc.scalar(False))
    parts = list(batches)
    if not parts:
        return ()
    table = pa.Table.from_batches(parts).filter(where)
    #: By arm, what was measured where nothing meets a constraint, and how many keep each of several but not all.
    alone: dict[Constraint, list[tuple[str, npt.NDArray[np.float64]]]] = {}
    together: dict[tuple[Constraint, ...], list[tuple[str, int]]] = {}
    n_arms = pc.count_distinct(table["arm"]).as_py()
    for arm in bounded:
        constraints = _measured(arm)
        own = table.filter(pc.field("arm") == arm.name)
        met = np.ones(own.num_rows, dtype=np.bool_)
        is_explained = False
        for constraint in constraints:
            values = np.asarray(pc.fill_null(pc.cast(own[constraint.quantity], pa.float64()), np.nan))
            meets = np.array([constraint.violation(value) <= 0 for value in values.tolist()], dtype=np.bool_)
            met &= meets
            if own.num_rows and not meets.any():
                alone.setdefault(constraint, []).append((arm.name, values))
                is_explained = True
        if own.num_rows and not met.any() and not is_explained:
            together.setdefault(constraints, []).append((arm.name, own.num_rows))
    found = []
    for constraint, of_arms in alone.items():
        values = np.concatenate([v for _, v in of_arms])
        known = values[np.isfinite(values)]
        best = f", best {(known.min() if constraint.operator == '<=' else known.max()):.4g}" if len(known) else ""
        who = _who([name for name, _ in of_arms], n_arms)
        found.append(f"{who} meets {constraint} ({len(values):,} completed{best})")
    for constraints, counts in together.items():
        who = _who([name for name, _ in counts], n_arms)
        n = sum(n for _, n in counts)
        found.append(f"{who} meets {' and '.join(map(str, constraints))} together ({n:,} completed)")
    return tuple(found)


def _measured(arm: SearchArm) -> tuple[Constraint, ...]:
    return tuple(c for c in arm.space.constraints if not c.is_known_before_training)


def _who(arms: list[str], n_arms: int) -> str:
    return "no candidate" if len(arms) == n_arms else f"no candidate of {' or '.join(arms)}"
