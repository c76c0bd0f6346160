"""Pareto fronts over a ledger: the non-dominated candidates, their hypervolume, and fronts over means of replicates.

Candidates stream through in batches; only the current front is kept, so that memory does not grow with the study.
Non-domination and hypervolume come from ``moocore``; everything is minimised (``objective`` flips what is not).

References: Zitzler and Thiele, Multiobjective optimization using evolutionary algorithms, PPSN 1998 (hypervolume);
Guerreiro, Fonseca and Paquete, The hypervolume indicator: computational problems and algorithms, ACM CSUR 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import moocore
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import ConfigError
from sparsefront.search.columns import check_columns, equals
from sparsefront.search.objective import OBJECTIVES, losses, natural, objectives_named, worst_bounds
from sparsefront.search.schema import KEY, SCHEMA

Floats = npt.NDArray[np.float64]
Batches: TypeAlias = pa.Table | Iterable[pa.RecordBatch]

#: Columns that a front needs beside those of its objectives.
ROW_COLUMNS = (*KEY, "candidate", "outcome", "reused")

#: Rows handled at a time: small batches are joined and large ones cut, so that neither overhead nor memory grows.
_CHUNK_ROWS = 65_536


def front_columns(objectives: Sequence[str]) -> list[str]:
    """List the ledger's columns that a front over these objectives cannot do without.

    >>> front_columns(["val_error"])
    ['stage', 'arm', 'replicate', 'target_sparsity', 'slot', 'candidate', 'outcome', 'reused', 'val_error']
    """
    needed = [*ROW_COLUMNS, *(o.column for o in objectives_named(objectives))]
    return list(dict.fromkeys(needed))


def chunks(batches: Batches) -> Iterator[pa.Table]:
    """Give the same rows in order, as non-empty tables of about 65,536: a ledger's batches may be tiny or huge.

    Args:
        batches: a table, or record batches of one schema.

    Yields:
        Tables that share the memory of the batches.

    >>> [part.num_rows for part in chunks(pa.record_batch({"slot": [i, i]}) for i in range(3))]
    [6]
    """
    if isinstance(batches, pa.Table):
        batches = batches.to_batches(max_chunksize=_CHUNK_ROWS)
    gathered: list[pa.RecordBatch] = []
    n_rows = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _CHUNK_ROWS):
            gathered.append(batch.slice(start, _CHUNK_ROWS))
            n_rows += gathered[-1].num_rows
            if n_rows >= _CHUNK_ROWS:
                yield pa.Table.from_batches(gathered)
                gathered, n_rows = [], 0
    if gathered:
        yield pa.Table.from_batches(gathered)


def is_nondominated(points: Floats, *, keep_duplicates: bool = False) -> npt.NDArray[np.bool_]:
    """Tell which points no other point dominates.

    Args:
        points: (n, m) float, finite, minimised.
        keep_duplicates: keep all of several equal points rather than the first.

    Returns:
        (n,) bool. Of an empty input: (0,).

    Cost: O(n log n) for m <= 3.

    >>> is_nondominated(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]]))
    array([ True,  True, False, False])
    """
    if len(points) == 0:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(points, keep_weakly=keep_duplicates), dtype=np.bool_)


def front(
    batches: Batches,
    objectives: Sequence[str],
    *,
    arms: Sequence[str] = (),
    keep_duplicates: bool = False,
    schema: pa.Schema = SCHEMA,
) -> pa.Table:
    """Find the non-dominated candidates of a ledger.

    Rows take part whose outcome is completed, whose objectives are all finite, and which are of a stage that has
    them (only trained rows, unless all objectives are known before training). A candidate that was recorded in several
    slots counts once, with the lowest key. The result does not depend on how rows are ordered or batched.

    Args:
        batches: a table, or its record batches, with at least ``front_columns(objectives)``.
        objectives: m names of ``objective.OBJECTIVES``.
        arms: which come first where candidates are equal; others follow by name (see :func:`key_ranks`).
        keep_duplicates: keep all candidates with the same objectives, rather than the one with the lowest key.
        schema: columns of record batches, if there are none to tell them.

    Returns:
        The rows of the front with all columns of the input, sorted by the first objective (best first), then by the
        others, then by candidate.

    Raises:
        ConfigError: for unknown objectives, or input without a column that is needed.

    Cost: O(n log f) for n rows and a front of f (m <= 3), in memory for f rows and one batch.
    """
    objectives_named(objectives)
    kept = (batches.schema if isinstance(batches, pa.Table) else schema).empty_table()
    points = np.empty((0, len(objectives)))
    for chunk in chunks(batches):
        fresh, fresh_points = _eligible(chunk, objectives)
        if len(points):
            possible = ~_dominated(fresh_points, by=points)
            fresh, fresh_points = fresh.filter(pa.array(possible)), fresh_points[possible]
            fresh, fresh_points = pa.concat_tables([kept, fresh]), np.vstack([points, fresh_points])
        kept, points = _front_of(fresh, fresh_points, arms, keep_duplicates=keep_duplicates)
    by_key = np.argsort(key_ranks(kept, arms))
    _, first_rows = np.unique(_ranks(kept, ("candidate",), ties=True)[by_key], return_index=True)
    one_each = np.sort(by_key[first_rows])
    kept, points = kept.take(pa.array(one_each)), points[one_each]
    order = np.lexsort((_ranks(kept, ("candidate",)), *points.T[::-1]))
    return kept.take(pa.array(order)).combine_chunks()


def hypervolume(points: Floats, *, reference: Floats, ideal: Floats | None = None) -> float:
    """Measure the volume that a set of points dominates, up to a reference.

    Args:
        points: (n, m) float, finite, minimised; dominated points and copies add nothing.
        reference: (m,) float; a point counts for what it is strictly below this in every objective.
        ideal: (m,) float below the reference; if given, the volume is divided by that of the box between the two.

    Returns:
        The volume in the product of the objectives' units, or a fraction (0..1) with ``ideal``; 0 without points.

    Raises:
        ConfigError: if the ideal is not below the reference.

    >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), reference=np.array([3.0, 3.0]))
    3.0
    >>> hypervolume(np.array([[1.0, 2.0]]), reference=np.array([2.0, 4.0]), ideal=np.array([0.0, 0.0]))
    0.25
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, len(reference))
    reference = np.asarray(reference, dtype=np.float64)
    inside = points[np.all(points < reference, axis=1)]
    if ideal is not None:
        extent = reference - np.asarray(ideal, dtype=np.float64)
        if np.any(extent <= 0):
            raise ConfigError(
                f"reference={reference.tolist()}: must be worse than the ideal {np.asarray(ideal).tolist()}"
            )
        # Scaling first keeps products of very different units (errors, millions of parameters) well conditioned.
        inside, reference = (inside - ideal) / extent, np.ones_like(reference)
        inside = np.maximum(inside, 0.0)
    if len(inside) == 0:
        return 0.0
    return float(moocore.hypervolume(inside, ref=reference))


def reference_point(batches: Batches, objectives: Sequence[str]) -> Floats:
    """Fix the point that hypervolumes are measured from, by a rule that does not depend on what the search found.

    For each objective: its own worst bound where it has one (an error of 1, a sparsity of 0); else the largest value
    among the parents (completed rows of the ``dense`` arm), so that a network no smaller than its parent adds nothing;
    else, in a study without parents, the largest value of any completed row (which can grow with the study).

    Args:
        batches: a table, or its record batches, with at least ``front_columns(objectives)``.
        objectives: m names of ``objective.OBJECTIVES``.

    Returns:
        (m,) float, minimised; NaN for an objective without bound of which there is no value.
    """
    bounds = worst_bounds(objectives)
    if not np.isnan(bounds).any():
        return bounds
    of_parents = np.full(len(objectives), -np.inf)
    of_all = np.full(len(objectives), -np.inf)
    for chunk in chunks(batches):
        rows = chunk.filter(_mask_of_stage(chunk, objectives, copies=False))
        points = losses(rows, objectives)
        points = np.where(np.isfinite(points), points, -np.inf)
        # What a parent weighs is known even when its training failed.
        of_parents = np.vstack([of_parents, points[equals(rows, "arm", "dense")]]).max(axis=0)
        of_all = np.vstack([of_all, points[equals(rows, "outcome", "completed")]]).max(axis=0)
    found = np.where(np.isfinite(of_parents), of_parents, of_all)
    reference: Floats = np.where(np.isnan(bounds), np.where(np.isfinite(found), found, np.nan), bounds)
    return reference


def hypervolume_curve(
    batches: Batches,
    objectives: Sequence[str],
    *,
    reference: Floats,
    ideal: Floats | None = None,
    checkpoints_per_decade: int = 8,
) -> pa.Table:
    """Follow the hypervolume over the candidates that were evaluated, in the order of the rows.

    Measured at 1, 2, 3, ... candidates on a geometric grid and at the last one. The grid does not depend on the size
    of the study, so that a curve which is exported again later passes through its earlier points. Failed candidates
    were evaluated too; rows that reuse an earlier result were not.

    Args:
        batches: rows in commit order, with at least ``front_columns(objectives)``.
        objectives: m names of ``objective.OBJECTIVES``.
        reference: (m,) float, as from :func:`reference_point`.
        ideal: (m,) float, as from ``objective.ideal_point``; makes the hypervolume a fraction.
        checkpoints_per_decade: density of the grid; 8 are 49 checkpoints for 1,000,000 candidates.

    Returns:
        A table with ``n_candidates`` (int64), ``hypervolume`` (float64), ``front_size`` (int64) and ``committed_at``
        (null unless the input has it) of the last candidate counted; no rows without candidates.
    """
    objectives_named(objectives)
    n = 0
    points = np.empty((0, len(objectives)))
    stamp: Any = None
    found: list[tuple[int, float, int, Any]] = []

    def measure() -> None:
        found.append((n, hypervolume(points, reference=reference, ideal=ideal), len(points), stamp))

    for rows in chunks(batches):
        evaluated = rows.filter(_mask_of_stage(rows, objectives, copies=False))
        matrix = losses(evaluated, objectives)
        usable = equals(evaluated, "outcome", "completed") & np.isfinite(matrix).all(axis=1)
        stamps = evaluated["committed_at"] if "committed_at" in evaluated.schema.names else None
        start = 0
        while start < len(matrix):
            stop = min(len(matrix), start + _next_checkpoint(n, checkpoints_per_decade) - n)
            chunk = matrix[start:stop][usable[start:stop]]
            chunk = chunk[~_dominated(chunk, by=points)] if len(points) else chunk
            points = np.vstack([points, chunk])
            points = points[is_nondominated(points)]
            n += stop - start
            stamp = stamps[stop - 1].as_py() if stamps is not None else None
            start = stop
            if n == _next_checkpoint(n - 1, checkpoints_per_decade):
                measure()
    if n and (not found or found[-1][0] != n):
        measure()
    columns = {
        "n_candidates": pa.array([row[0] for row in found], pa.int64()),
        "hypervolume": pa.array([row[1] for row in found], pa.float64()),
        "front_size": pa.array([row[2] for row in found], pa.int64()),
        "committed_at": pa.array([row[3] for row in found], SCHEMA.field("committed_at").type),
    }
    return pa.table(columns)


def mean_front(
    batches: Batches,
    objectives: Sequence[str],
    *,
    rng: np.random.Generator,
    by: Sequence[str] = ("arm", "target_sparsity", "slot"),
    resamples: int = 1000,
) -> pa.Table:
    """Find the front over means of replicates, and how sure each member is of its place.

    Rows that agree in ``by`` are the same contender in different replicates. Replicates are resampled with
    replacement, the same for all contenders (they are paired); a contender's ``front_probability`` is the share of
    resamples in which no other contender's mean dominates its own.

    Args:
        batches: a table, or its record batches, with ``front_columns(objectives)`` and the columns of ``by``.
        objectives: m names of ``objective.OBJECTIVES``.
        rng: of the resampling.
        by: columns that say which rows belong together; hyperparameters may be among them.
        resamples: number of bootstrap resamples.

    Returns:
        One row a contender: the columns of ``by``, ``n_replicates``, each objective's mean under its name (natural
        direction), ``on_front`` (bool, for the means over all replicates) and ``front_probability`` (0..1); sorted
        by the objectives, best first, then by ``by``.
    """
    objectives_named(objectives)
    unknown = [name for name in by if name not in SCHEMA.names]
    if unknown or not by:
        raise ConfigError(f"by={list(by)!r}: must name columns of the ledger ({', '.join(SCHEMA.names)})")
    groups: dict[tuple[Any, ...], dict[int, Floats]] = {}
    for chunk in chunks(batches):
        rows, points = _eligible(chunk, objectives)
        columns = {name: rows[name] for name in dict.fromkeys((*by, "replicate"))}
        columns |= {f"loss {j}": pa.array(points[:, j]) for j in range(len(objectives))}
        aggregates = [("replicate", "count"), *((f"loss {j}", "sum") for j in range(len(objectives)))]
        grouped = pa.table(columns).group_by(list(dict.fromkeys((*by, "replicate")))).aggregate(aggregates)
        totals = np.column_stack([np.asarray(grouped[f"{column}_{how}"]) for column, how in aggregates])
        keys = zip(*(grouped[name].to_pylist() for name in by), strict=True)
        for key, replicate, total in zip(keys, grouped["replicate"].to_pylist(), totals, strict=True):
            found = groups.setdefault(key, {})
            found[replicate] = found.get(replicate, 0.0) + total
    contenders = sorted(groups, key=lambda key: tuple((part is None, str(type(part)), part or 0) for part in key))
    if not contenders:
        empty: dict[str, Any] = {name: pa.array([], SCHEMA.field(name).type) for name in by}
        empty |= {"n_replicates": pa.array([], pa.int64())} | {name: pa.array([], pa.float64()) for name in objectives}
        return pa.table(empty | {"on_front": pa.array([], pa.bool_()), "front_probability": pa.array([], pa.float64())})
    replicate_ids = sorted({replicate for found in groups.values() for replicate in found})
    values = np.zeros((len(contenders), len(replicate_ids), len(objectives)))
    present = np.zeros((len(contenders), len(replicate_ids)))
    for g, key in enumerate(contenders):
        for replicate, (count, *sums) in groups[key].items():
            r = replicate_ids.index(replicate)
            values[g, r] = np.array(sums) / count
            present[g, r] = 1.0
    means = values.sum(axis=1) / present.sum(axis=1)[:, None]
    on_front = is_nondominated(means, keep_duplicates=True)
    wins, chances = np.zeros(len(contenders)), np.zeros(len(contenders))
    for _ in range(resamples):
        weights = np.bincount(
            rng.integers(0, len(replicate_ids), len(replicate_ids)), minlength=len(replicate_ids)
        ).astype(np.float64)
        counted = present @ weights
        drawn = counted > 0
        resampled = np.einsum("grm,r->gm", values[drawn], weights) / counted[drawn, None]
        wins[drawn] += is_nondominated(resampled, keep_duplicates=True)
        chances[drawn] += 1
    # Contenders of one replicate may never be drawn in a few resamples: then nothing is known about them.
    probability = np.divide(wins, chances, out=np.full(len(wins), np.nan), where=chances > 0)
    order = np.lexsort((np.arange(len(contenders)), *means.T[::-1]))
    shown = natural(means, objectives)[order]
    table: dict[str, Any] = {
        name: pa.array([contenders[g][j] for g in order], SCHEMA.field(name).type) for j, name in enumerate(by)
    }
    table["n_replicates"] = pa.array(present.sum(axis=1).astype(np.int64)[order])
    table |= {name: pa.array(shown[:, j]) for j, name in enumerate(objectives)}
    table |= {"on_front": pa.array(on_front[order]), "front_probability": pa.array(probability[order])}
    return pa.table(table)


def _mask_of_stage(table: pa.Table, objectives: Sequence[str], *, copies: bool) -> pa.Array:
    """Mark the rows of the stages that have these objectives; copies of an earlier result only if asked for.

    A copy's costs are zero: it is never marked where a cost is an objective.
    """
    check_columns(table, ROW_COLUMNS, listed_by="front.front_columns")
    trained = any(OBJECTIVES[name].trained for name in objectives)
    mask = pc.is_in(table["stage"], pa.array(["trained"] if trained else ["scored", "trained"]))
    if not copies or any(OBJECTIVES[name].cost for name in objectives):
        mask = pc.and_(mask, pc.invert(pc.fill_null(table["reused"], False)))
    return mask


def _eligible(table: pa.Table, objectives: Sequence[str]) -> tuple[pa.Table, Floats]:
    """Take the rows that may be on a front, and their points."""
    rows = table.filter(
        pc.and_(_mask_of_stage(table, objectives, copies=True), pc.equal(table["outcome"], "completed"))
    )
    points = losses(rows, objectives)
    finite = np.isfinite(points).all(axis=1)
    return rows.filter(pa.array(finite)), points[finite]


def _dominated(points: Floats, *, by: Floats) -> npt.NDArray[np.bool_]:
    """Mark the points that a row of ``by``, or one of themselves, dominates; equal points stay: keys decide later."""
    return ~is_nondominated(np.vstack([by, points]), keep_duplicates=True)[len(by) :]


def key_ranks(table: pa.Table, arms: Sequence[str] = ()) -> npt.NDArray[np.int64]:
    """Rank rows by their key, which decides who of equal candidates stands for all on a front: the lowest.

    Args:
        table: n rows with the columns of ``schema.KEY`` and ``candidate``.
        arms: the order of arms; others follow by name. Of a search, that of its design, so that whom the others are
            held against comes first.

    Returns:
        (n,) ranks from 0.
    """
    columns = [*KEY, "candidate"]
    place = pc.fill_null(pc.index_in(pc.cast(table["arm"], pa.string()), pa.array(arms, pa.string())), len(arms))
    keyed = table.select(columns).append_column("place", place)
    columns.insert(columns.index("arm"), "place")
    return _ranks(keyed, columns)


def _front_of(
    table: pa.Table, points: Floats, arms: Sequence[str], *, keep_duplicates: bool
) -> tuple[pa.Table, Floats]:
    """Keep the non-dominated rows; of equal points the one with the lowest key, or all."""
    keep = np.flatnonzero(is_nondominated(points, keep_duplicates=True))
    if not keep_duplicates and len(keep) > 1:
        by_key = keep[np.argsort(key_ranks(table.take(pa.array(keep)), arms))]
        _, first_rows = np.unique(points[by_key], axis=0, return_index=True)
        keep = np.sort(by_key[first_rows])
    return table.take(pa.array(keep)), points[keep]


def _ranks(table: pa.Table, columns: Sequence[str], *, ties: bool = False) -> npt.NDArray[np.int64]:
    """Rank rows by columns (text by code point); equal rows rank in their order, or alike with ``ties``."""
    if ties:
        return np.asarray(pc.rank(table[columns[0]], tiebreaker="dense")).astype(np.int64)
    order = np.asarray(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in columns])).astype(np.int64)
    ranks = np.empty(table.num_rows, dtype=np.int64)
    ranks[order] = np.arange(table.num_rows)
    return ranks


def _next_checkpoint(n: int, per_decade: int) -> int:
    """Give the first count above n on the grid round(10 ** (k / per_decade)).

    >>> [_next_checkpoint(n, 8) for n in (0, 1, 2, 10, 13, 999)]
    [1, 2, 3, 13, 18, 1000]
    """
    k = 0 if n < 1 else max(0, int(np.floor(per_decade * np.log10(n))) - 1)
    while round(10 ** (k / per_decade)) <= n:
        k += 1
    return round(10 ** (k / per_decade))
