"""What a verdict reads of a ledger: its trained rows, and sums over all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.search.columns import check_columns
from sparsefront.search.design import Design
from sparsefront.search.findings import PREDICTORS, Spent
from sparsefront.search.front import Batches, chunks
from sparsefront.search.methods import Method, known_methods

Floats = npt.NDArray[np.float64]

#: The ledger's columns that a verdict reads.
VERDICT_COLUMNS = (
    *("candidate", "stage", "arm", "replicate", "target_sparsity", "outcome", "reused", *PREDICTORS),
    *("val_loss", "val_error", "test_error", "curve_step", "curve_val_error", "passes", "flops", "seconds"),
)


@dataclass
class Record:
    """What a verdict needs of a ledger: trained rows, and sums over all others."""

    trained: pa.Table
    methods: Mapping[str, Method]
    scoring_passes: dict[tuple[int, float], float] = field(default_factory=dict)
    pruning_passes: dict[tuple[str, int, float], float] = field(default_factory=dict)
    on_the_way: dict[tuple[str, int, float], str] = field(default_factory=dict)  # network of a chain's level, by its id
    passes_of: dict[str, float] = field(default_factory=dict)  # of such a network's training, wherever recorded
    sums: dict[str, Floats] = field(default_factory=dict)  # by arm: passes, flops, seconds
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)  # by arm


def read_record(batches: Batches, design: Design) -> Record:
    """Read a ledger's rows once, in any order.

    Raises:
        ConfigError: if a column is missing.
    """
    trained: list[pa.Table] = []
    record = Record(pa.table({}), known_methods(design.methods or {arm: {} for arm in design.arms}))
    for chunk in chunks(batches):
        check_columns(chunk, VERDICT_COLUMNS, listed_by="verdict.VERDICT_COLUMNS")
        rows = chunk.select(VERDICT_COLUMNS)
        _add_up(record, rows)
        _add_levels(record, rows)
        trained.append(rows.filter(pc.equal(rows["stage"], "trained")))
    if trained:
        record.trained = pa.concat_tables(trained).combine_chunks()
    return record


def _add_up(record: Record, rows: pa.Table) -> None:
    keys = ["stage", "arm", "replicate", "target_sparsity", "outcome"]
    costs = ["passes", "flops", "seconds"]
    grouped = rows.group_by(keys, use_threads=False).aggregate([("stage", "count"), *((cost, "sum") for cost in costs)])
    for row in grouped.to_pylist():
        arm, place = row["arm"], (row["replicate"], row["target_sparsity"])
        spent = np.array([row[f"{cost}_sum"] or 0.0 for cost in costs])
        record.sums[arm] = record.sums.get(arm, np.zeros(3)) + spent
        if row["stage"] == "pruned":
            record.pruning_passes[arm, *place] = record.pruning_passes.get((arm, *place), 0.0) + spent[0]
            continue
        if row["stage"] == "scored":
            record.scoring_passes[place] = record.scoring_passes.get(place, 0.0) + spent[0]
        counts = record.outcomes.setdefault(arm, {})
        counts[row["outcome"]] = counts.get(row["outcome"], 0) + row["stage_count"]


def _add_levels(record: Record, rows: pa.Table) -> None:
    """Note networks on the way to a level; one that several arms share has its cost with the first."""
    levels = rows.filter(pc.equal(rows["stage"], "level"))
    for row in levels.select(["arm", "replicate", "target_sparsity", "candidate", "passes"]).to_pylist():
        candidate = row["candidate"]
        record.on_the_way[row["arm"], row["replicate"], row["target_sparsity"]] = candidate
        record.passes_of[candidate] = max(record.passes_of.get(candidate, 0.0), row["passes"] or 0.0)


def levels_of(record: Record, design: Design, arm: str) -> tuple[float, ...]:
    """The study's levels at which an arm exists."""
    method = record.methods.get(arm)
    if method is None or method.is_dense:
        return design.sparsities
    own = set(method.levels(design.sparsities))
    return tuple(level for level in design.sparsities if level in own)


def spent_of(record: Record, design: Design) -> tuple[Spent, ...]:
    """What each arm spent, in the order of the design; the scoring of masks first."""
    order = ["pool", *design.arms]
    arms = sorted(record.sums, key=lambda arm: (order.index(arm) if arm in order else len(order), arm))
    found = []
    for arm in arms:
        passes, flops, seconds = record.sums[arm].tolist()
        outcomes = dict(sorted(record.outcomes.get(arm, {}).items()))
        found.append(Spent(arm, passes, flops, seconds, n_candidates=sum(outcomes.values()), outcomes=outcomes))
    return tuple(found)
