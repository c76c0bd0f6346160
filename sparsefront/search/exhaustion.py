"""Which runs of a search ended before they had trained what they might: a function of the ledger's rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.search.design import SearchArm, SearchDesign
from sparsefront.search.run import MAX_PROPOSALS_EACH
from sparsefront.search.schema import SCHEMA
from sparsefront.search.strategies import STRATEGIES

_COLUMNS = ("stage", "arm", "replicate", "slot", "candidate", "outcome", "reused")


@dataclass(frozen=True)
class Exhausted:
    """A run whose candidates came to an end before its budget did.

    Attributes:
        arm: of the run.
        replicate: of the run.
        n_trained: candidates that it trained, those that were stopped or failed included.
        n_asked: candidates that it might have trained.
        why: 'the space is exhausted', 'proposals only repeat each other' or 'the run failed'.
    """

    arm: str
    replicate: int
    n_trained: int
    n_asked: int
    why: str


def exhaustion_columns(design: SearchDesign) -> list[str]:
    """Columns that `exhausted_runs` reads."""
    return list(dict.fromkeys([*_COLUMNS, *(name for arm in design.arms for name, _ in arm.space.columns)]))


def exhausted_runs(rows: Iterable[pa.RecordBatch], design: SearchDesign) -> list[Exhausted]:
    """Runs that are over, although they trained fewer candidates than they might have.

    Every point of a finite space (or of the strategy's grid) has come to an outcome; or proposals repeated what was
    there until nobody asked for more; or the run failed: its strategy raised, or had no more points, or constraints
    left too little. The last is on record in a row of no point.

    Args:
        rows: with `exhaustion_columns`, of any stages.
        design: what was asked.
    """
    batches = [batch.select(exhaustion_columns(design)) for batch in rows]
    if not batches:
        return []
    table = pa.Table.from_batches(batches).filter(pc.field("stage") == "trained")
    found = []
    for arm in design.arms:
        of_arm = table.filter(pc.field("arm") == arm.name)
        for replicate in range(design.replicates):
            run = of_arm.filter(pc.field("replicate") == replicate)
            is_trained = pc.and_(pc.not_equal(run["outcome"], "infeasible"), pc.invert(run["reused"]))
            has_failed = _has_failed(run, arm)
            n_trained = (pc.sum(is_trained).as_py() or 0) - has_failed
            why = None
            # Of one that was proposed the outcome may be still to come.
            if n_trained < arm.candidates and run.num_rows > (pc.max(run["slot"]).as_py() or 0):
                why = "the run failed" if has_failed else _why(run, arm)
            if why is not None:
                found.append(Exhausted(arm.name, replicate, n_trained, arm.candidates, why))
    return found


def exhaustion_clauses(found: Iterable[Exhausted]) -> list[str]:
    """Say so in words, arm by arm, over all replicates that it happened in.

    >>> exhaustion_clauses([Exhausted("grid", replicate, 4, 16, "the space is exhausted") for replicate in range(2)])
    ['grid: the space is exhausted: 8 of 32 candidates, in 2 replicates']
    """
    by_arm: dict[tuple[str, str], list[Exhausted]] = {}
    for run in found:
        by_arm.setdefault((run.arm, run.why), []).append(run)
    return [
        f"{arm}: {why}: {sum(run.n_trained for run in runs):,} of {sum(run.n_asked for run in runs):,} candidates, in "
        f"{len(runs):,} replicate{'s' * (len(runs) != 1)}"
        for (arm, why), runs in by_arm.items()
    ]


def _has_failed(run: pa.Table, arm: SearchArm) -> bool:
    """Whether a row says that the run could not go on: it failed and is of no point; one of no network has a point.

    Columns that all ledgers have are no help: they say how it would have been trained.
    """
    of_none = run.filter((pc.field("outcome") == "failed") & pc.is_null(pc.field("candidate")))
    for name in (name for name, _ in arm.space.columns if name not in SCHEMA.names):
        of_none = of_none.filter(pc.is_null(pc.field(name)))
    return bool(of_none.num_rows)


def _why(run: pa.Table, arm: SearchArm) -> str | None:
    """Why nothing more is proposed in a run whose candidates have all ended in these rows; None if it may go on."""
    n_points = getattr(STRATEGIES.get(arm.strategy), "n_points", None)
    if n_points is not None:
        options = STRATEGIES[arm.strategy].options(**arm.options)
        if run.num_rows >= n_points(arm.space, options):
            return "the space is exhausted"
    if run.num_rows >= arm.space.size:
        names = [name for name, _ in arm.space.columns]
        if not names or run.group_by(names).aggregate([]).num_rows >= arm.space.size:
            return "the space is exhausted"
    if run.num_rows >= MAX_PROPOSALS_EACH * arm.candidates:
        return "proposals only repeat each other"
    return None
