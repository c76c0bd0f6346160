"""How much each dimension of a space mattered, arm by arm: PED-ANOVA over the candidates that completed.

PED-ANOVA compares where the best tenth of an arm's candidates lie in one dimension with where all of them lie; an
importance is that divergence, as a share of the sum over dimensions. It is about what the arm has visited: a dimension
that a strategy settled early varies no longer, and seems unimportant. Candidates are ranked within their replicate,
so that an easy replicate does not fill the best tenth.

Only completed candidates take part: of stopped ones the final loss is unknown.

References: Watanabe, Bansal and Hutter, PED-ANOVA, IJCAI 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from sparsefront.search.design import SearchDesign
from sparsefront.search.front import Batches, chunks
from sparsefront.search.objective import OBJECTIVES, losses
from sparsefront.spaces.domains import Bits
from sparsefront.spaces.space import Space

Floats = npt.NDArray[np.float64]

#: The best tenth should hold at least five candidates (Optuna's documentation of PED-ANOVA).
MIN_CANDIDATES = 50
#: More do not change an importance that anybody could read off, but cost 0.1 ms each.
_MAX_CANDIDATES = 5_000

_COLUMNS = ("stage", "arm", "replicate", "slot", "outcome", "reused")


@dataclass(frozen=True)
class ArmImportance:
    """Importance of each dimension of an arm's space for one objective: shares of 1, the greatest first.

    ``importances`` is None with fewer than 50 candidates, or where nothing varied.
    """

    arm: str
    objective: str
    n: int
    importances: Mapping[str, float] | None


def importance_columns(design: SearchDesign) -> list[str]:
    """List the ledger's columns that :func:`arm_importances` reads."""
    dimensions = [name for arm in design.arms for name, _ in arm.space.columns]
    return list(dict.fromkeys([*_COLUMNS, *(OBJECTIVES[name].column for name in _measured(design)), *dimensions]))


def arm_importances(batches: Batches, design: SearchDesign) -> tuple[ArmImportance, ...]:
    """Find the importance of each dimension, for each arm and each objective that only training tells.

    Args:
        batches: a ledger's table or record batches, with at least ``importance_columns(design)``; in any order.
        design: what was asked.

    Returns:
        By arm, then by objective.
    """
    from sparsefront.search.optuna_bridge import importances  # brings optuna, which no other part of a verdict needs

    columns = importance_columns(design)
    completed = (
        (pc.field("stage") == "trained")
        & (pc.field("outcome") == "completed")
        & ~pc.coalesce(pc.field("reused"), pc.scalar(False))
    )
    parts = [chunk.select(columns).filter(completed) for chunk in chunks(batches)]
    found = []
    for arm in design.arms:
        own = [part.filter(pc.field("arm") == arm.name) for part in parts]
        if not sum(part.num_rows for part in own):
            continue
        rows = pa.concat_tables(own).sort_by([("replicate", "ascending"), ("slot", "ascending")])
        for objective in _measured(design):
            values = losses(rows, [objective])[:, 0]
            usable = np.flatnonzero(np.isfinite(values))
            n = len(usable)
            if n > _MAX_CANDIDATES:
                usable = usable[np.linspace(0, n - 1, _MAX_CANDIDATES).astype(np.int64)]
            shares = None
            if n >= MIN_CANDIDATES:
                chosen = rows.take(pa.array(usable))
                ranks = _ranks_within(values[usable], np.asarray(chosen["replicate"]))
                shares = importances(arm.space, _points(active_values(chosen, arm.space), len(usable)), ranks.tolist())
            known = sorted((shares or {}).items(), key=lambda item: (-item[1], item[0]))
            found.append(ArmImportance(arm.name, objective, n, dict(known) if known else None))
    return tuple(found)


def active_values(rows: pa.Table, space: Space) -> dict[str, list[Any]]:
    """Read the dimensions of a space off a ledger's rows.

    Args:
        rows: n rows with the columns of the space.
        space: of the arm that they belong to.

    Returns:
        For each dimension but mask bits its n values; None where it was not active.
    """
    values: dict[str, list[Any]] = {}
    for dimension in space.dimensions:
        if isinstance(dimension.domain, Bits):
            continue
        column = rows[dimension.name].to_pylist()
        condition = dimension.condition
        if condition is not None:
            # Columns that all candidates have (momentum, ...) hold a default where the dimension is not active.
            parents = values[condition.dimension]  # a condition looks at a dimension before its own
            column = [
                value if parent is not None and condition.allows(parent) else None
                for value, parent in zip(column, parents, strict=True)
            ]
        values[dimension.name] = column
    return values


def _points(values: Mapping[str, list[Any]], n: int) -> list[dict[str, Any]]:
    return [{name: column[i] for name, column in values.items() if column[i] is not None} for i in range(n)]


def _ranks_within(values: Floats, replicate: npt.NDArray[np.int64]) -> Floats:
    """Rank values within their replicate, as fractions (0..1] of its size.

    >>> _ranks_within(np.array([3.0, 1.0, 10.0]), np.array([0, 0, 1]))
    array([1. , 0.5, 1. ])
    """
    ranks = np.empty(len(values))
    for number in np.unique(replicate):
        inside = replicate == number
        ranks[inside] = stats.rankdata(values[inside]) / np.count_nonzero(inside)
    return ranks


def _measured(design: SearchDesign) -> list[str]:
    """Objectives that training alone tells; what a network weighs is known without an analysis."""
    return [name for name in design.objectives if OBJECTIVES[name].trained and not OBJECTIVES[name].cost]
