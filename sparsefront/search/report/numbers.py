"""Every number that the report shows, computed from the ledger and the verdict as plain data for JSON.

Not here: how they look (``page``), and what is concluded from them (``sparsefront.search.verdict``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.search.design import Design
from sparsefront.search.findings import Correlation, Verdict
from sparsefront.search.front import front, front_columns, mean_front
from sparsefront.search.means import mean_interval
from sparsefront.search.methods import known_methods
from sparsefront.search.metrics import METRICS, Metric
from sparsefront.search.objective import objectives_named
from sparsefront.search.report.diagnosed import (
    DIAGNOSED,
    FRESH,
    Masks,
    diagnosed,
    fresh_sample,
    qualities,
    quality_columns,
    stability,
)
from sparsefront.search.schema import SCHEMA

#: Plain data, ready for JSON.
Record: TypeAlias = dict[str, Any]

#: A browser draws this many SVG markers within seconds; more are sampled, and the page says so.
MAX_POINTS = 20_000
#: Distinct failures listed; a study whose every candidate fails in its own words must still give a page.
MAX_FAILURES = 50
MAX_ERROR_LENGTH = 300

_POINT_COLUMNS = (
    "candidate",
    "arm",
    "replicate",
    "target_sparsity",
    "outcome",
    "node_sparsity",
    "weight_sparsity",
    "n_params",
    "macs",
    "initial_loss",
    "scalefree_loss",
    "val_loss",
    "val_error",
    "test_error",
    "test_psnr_worst",
)

#: Measured before training: recorded when a mask was scored, and not again when it was trained.
_SCORES = ("initial_loss", "scalefree_loss")
#: A contender of the front over means: all of an arm's candidates at one level.
_BY = ("arm", "target_sparsity")


class Scannable(Protocol):
    """Anything that gives its rows batch by batch, as the ledger does."""

    @property
    def schema(self) -> pa.Schema:
        """Columns that there are: ``SCHEMA``, and what the study has besides."""

    def scan(self, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> Iterator[Any]:
        """Yield the record batches of the rows that pass ``where``, in commit order."""


@dataclasses.dataclass(frozen=True)
class ArmStyle:
    """How an arm looks in every chart: colour, marker and dash of its lines."""

    colour: str
    symbol: str
    dash: str


#: After Paul Tol's schemes "vibrant" and "muted": the colour-blind can tell them apart, on white and on near-black, and
#: markers differ as well.
ARM_STYLES: Mapping[str, ArmStyle] = {
    "random": ArmStyle("#0077bb", "circle", "solid"),
    "searched": ArmStyle("#ee7733", "diamond", "solid"),
    "searched_scalefree": ArmStyle("#aa4499", "square", "dot"),
    "worst": ArmStyle("#cc3311", "triangle-down", "dash"),
    "magnitude": ArmStyle("#009988", "triangle-up", "solid"),
    "small_dense": ArmStyle("#33bbee", "cross", "dashdot"),
    "dense": ArmStyle("#80868b", "x", "longdash"),
}
_OTHER_STYLES = (
    ArmStyle("#999933", "star", "solid"),
    ArmStyle("#ee3377", "hexagon", "dot"),
    ArmStyle("#5566cc", "pentagon", "dash"),
    ArmStyle("#b07c3a", "bowtie", "dashdot"),
    ArmStyle("#669944", "hourglass", "longdash"),
    ArmStyle("#882255", "diamond-tall", "longdashdot"),
    ArmStyle("#44aa99", "star-square", "solid"),
    ArmStyle("#cc6677", "triangle-left", "dot"),
    ArmStyle("#777777", "star-diamond", "dash"),
    ArmStyle("#aa7700", "octagon", "dashdot"),
)


def _scores_masks(design: Design) -> bool:
    """Whether an arm chooses among masks by a score taken before training."""
    arms = known_methods(design.methods or {arm: {} for arm in design.arms})
    return any(method.needs_scores for method in arms.values())


def report_numbers(
    rows: Scannable | pa.Table,
    design: Design,
    verdict: Verdict,
    *,
    max_points: int = MAX_POINTS,
    masks: Masks | None = None,
) -> Record:
    """Compute what the report shows.

    Args:
        rows: the ledger, or a table of ``SCHEMA``.
        design: what was asked.
        verdict: what was concluded from the same rows.
        max_points: scatter charts show this many candidates at most: the front, and a sample of the rest.
        masks: gives the packed bits of stored masks, to compare them; None leaves that out.

    Returns:
        Plain data without NaN: ``study``, ``arms`` (with their looks), ``levels``, ``metric`` (of ``METRICS``),
        ``accuracy`` (test accuracy of each arm and level, fractions, or what the metric has in its place),
        ``verdict``, ``points`` (columns, one entry for each candidate shown), ``front``,
        ``mean_front``, ``curves``, ``correlation_texts``, ``diagnostics``, ``stability``, ``fresh_sample``,
        ``qualities`` and ``failures``.
    """
    trained = _trained(rows)
    columns = list(dict.fromkeys([*front_columns(design.objectives), *_POINT_COLUMNS]))
    is_trained = pc.field("stage") == "trained"
    # The page is a function of the ledger: the same rows give the same resamples and the same sample of points.
    sample_rng, resample_rng = np.random.default_rng([design.seed, trained.num_rows]).spawn(2)
    members = front(ledger_batches(rows, columns=columns, where=is_trained), design.objectives)
    arms = _arm_order(design, trained)
    networks = _read(rows, DIAGNOSED, is_trained)
    numbers: Record = plain(
        {
            "format": 1,
            "study": {**dataclasses.asdict(design), "scores_masks": _scores_masks(design)},
            "arms": [{"name": arm, **dataclasses.asdict(style)} for arm, style in arm_styles(arms).items()],
            "levels": _levels(trained, design),
            "metric": design.metric,
            "accuracy": _accuracy(trained, arms, METRICS[design.metric]),
            "verdict": verdict.to_dict(),
            "points": _points(trained, members, rng=sample_rng, max_points=max_points),
            "front": _members(members, [o.column for o in objectives_named(design.objectives)]),
            "mean_front": mean_front(
                ledger_batches(rows, columns=columns, where=is_trained), design.objectives, rng=resample_rng, by=_BY
            ).to_pylist(),
            "curves": _curves(rows, arms),
            "correlation_texts": _correlation_texts(verdict),
            "diagnostics": diagnosed(networks, arms, design.mask_sections, masks),
            "stability": stability(networks, arms, design),
            "fresh_sample": (
                fresh_sample(_read(rows, FRESH, is_trained), arms) if set(FRESH) <= set(rows.schema.names) else []
            ),
            "qualities": qualities(_read(rows, quality_columns(rows.schema), is_trained), arms),
            "failures": failures(rows),
        }
    )
    return numbers


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """Give each arm its fixed look; arms that are not built in take the remaining ones in order.

    >>> arm_styles(["random", "mine"])["random"].colour
    '#0077bb'
    """
    others = iter(_OTHER_STYLES * 100)
    return {arm: ARM_STYLES.get(arm) or next(others) for arm in arms}


def level_text(sparsity: float, mask_kind: str) -> str:
    """Name a level of sparsity in words.

    >>> level_text(0.975, "node"), level_text(0.0, "node")
    ('97.5% of nodes removed', 'unpruned')
    """
    if sparsity == 0:
        return "unpruned"
    what = {"node": "nodes", "weight": "weights"}.get(mask_kind, mask_kind)
    return f"{100 * sparsity:.4g}% of {what} removed"


def range_text(low: float | None, high: float | None) -> str:
    """Write a range of sparsities in percent; as one number where both ends read the same.

    >>> range_text(0.9, 0.9), range_text(0.9, 0.957), range_text(None, None)
    ('90.0%', '90.0–95.7%', 'unknown')
    """
    if low is None or high is None:
        return "unknown"
    ends = (f"{100 * low:.1f}", f"{100 * high:.1f}")
    return f"{ends[0]}%" if ends[0] == ends[1] else f"{ends[0]}–{ends[1]}%"


def plain(value: Any) -> Any:
    """Turn nested data into what JSON can say: NaN and infinities become None, NumPy scalars Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def first_line(error: str | None) -> str:
    r"""Give the line of an error that says what happened: of a traceback its last, otherwise the first.

    >>> first_line("Traceback (most recent call last):\n  File x\nValueError: lr is negative\n")
    'ValueError: lr is negative'
    >>> first_line("diverged at step 3\nTraceback ...")
    'diverged at step 3'
    """
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    if not lines:
        return "(no message)"
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return line if len(line) <= MAX_ERROR_LENGTH else line[: MAX_ERROR_LENGTH - 1] + "…"


def ledger_batches(
    rows: Scannable | pa.Table, *, columns: Sequence[str], where: pc.Expression | None = None
) -> Iterator[Any]:
    """Rows of a ledger, or of a table with its columns, as record batches."""
    if isinstance(rows, pa.Table):
        chosen = rows if where is None else rows.filter(where)
        yield from chosen.select(list(columns)).to_batches()
    else:
        yield from rows.scan(columns=columns, where=where)


def _read(rows: Scannable | pa.Table, columns: Sequence[str], where: pc.Expression) -> pa.Table:
    """Some columns of some rows as a table."""
    schema = pa.schema([rows.schema.field(name) for name in columns])
    return pa.Table.from_batches(ledger_batches(rows, columns=columns, where=where), schema=schema)


def _trained(rows: Scannable | pa.Table) -> Any:
    """Give the trained rows of all outcomes as a table, without curves, with the scores that their masks were given."""
    schema = pa.schema([SCHEMA.field(name) for name in _POINT_COLUMNS])
    found = ledger_batches(rows, columns=_POINT_COLUMNS, where=pc.field("stage") == "trained")
    trained = pa.Table.from_batches(found, schema=schema)
    unscored = pc.unique(trained.filter(pc.field("initial_loss").is_null())["candidate"])
    if not len(unscored):
        return trained
    columns = ["candidate", *_SCORES]
    scored = pa.Table.from_batches(
        (
            batch.filter(pc.is_in(batch["candidate"], value_set=unscored))
            for batch in ledger_batches(rows, columns=columns, where=pc.field("stage") == "scored")
        ),
        schema=pa.schema([SCHEMA.field(name) for name in columns]),
    )
    places = pc.index_in(trained["candidate"], value_set=scored["candidate"].combine_chunks())
    for name in _SCORES:
        known = pc.coalesce(trained[name], scored[name].take(places))
        trained = trained.set_column(trained.schema.get_field_index(name), name, known)
    return trained


def _completed(trained: Any, *columns: str) -> Any:
    """Give the completed rows that have finite values in these columns."""
    where = pc.field("outcome") == "completed"
    for column in columns:
        where = where & pc.is_finite(pc.field(column))
    return trained.filter(where)


def _arm_order(design: Design, trained: Any) -> list[str]:
    present = set(pc.unique(trained["arm"]).to_pylist()) - {None}
    return [*design.arms, *sorted(present - set(design.arms))]


def _levels(trained: Any, design: Design) -> list[Record]:
    """Describe the pruned levels in order, with the range of realised sparsities over all candidates of the level."""
    pruned = trained.filter(pc.field("target_sparsity") > 0)
    sizes = ("node_sparsity", "weight_sparsity")
    ends = pruned.group_by("target_sparsity", use_threads=False).aggregate(
        [(size, end) for size in sizes for end in ("min", "max")]
    )
    found = {row["target_sparsity"]: row for row in ends.to_pylist()}
    levels = sorted({float(s) for s in design.sparsities if s > 0} | set(found))
    described = []
    for level in levels:
        row = found.get(level, {})
        node = (row.get("node_sparsity_min"), row.get("node_sparsity_max"))
        weight = (row.get("weight_sparsity_min"), row.get("weight_sparsity_max"))
        described.append(
            {
                "sparsity": level,
                "text": level_text(level, design.mask_kind),
                "tick": f"nodes {range_text(*node)}<br>weights {range_text(*weight)}",
                "node_sparsity": node,
                "weight_sparsity": weight,
            }
        )
    return described


def _accuracy(trained: Any, arms: Sequence[str], metric: Metric) -> list[Record]:
    """Average test accuracy over an arm's candidates in each replicate, then over replicates."""
    column = metric.test_column
    done = _completed(trained, column)
    sizes = ("node_sparsity", "weight_sparsity", "n_params", "macs")
    groups = done.group_by(["arm", "target_sparsity", "replicate"], use_threads=False).aggregate(
        [(column, "mean"), (column, "count"), *((size, "mean") for size in sizes)]
    )
    cells: dict[tuple[str, float], list[Record]] = {}
    for group in groups.sort_by("replicate").to_pylist():
        cells.setdefault((group["arm"], group["target_sparsity"]), []).append(group)
    rows = []
    for (arm, level), members in sorted(cells.items(), key=lambda item: (arms.index(item[0][0]), item[0][1])):
        values = [metric.of_column(member[f"{column}_mean"]) for member in members]
        mean, low, high = mean_interval(values)
        rows.append(
            {
                "arm": arm,
                "sparsity": level,
                "n_replicates": len(values),
                "n_candidates": sum(member[f"{column}_count"] for member in members),
                "mean": mean,
                "low": low,
                "high": high,
                "replicates": [member["replicate"] for member in members],
                "replicate_means": values,
                **{size: _mean(member[f"{size}_mean"] for member in members) for size in sizes},
            }
        )
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _points(trained: Any, members: Any, *, rng: np.random.Generator, max_points: int) -> Record:
    """Choose the candidates that the scatter charts show, as columns."""
    done = _completed(trained, "val_error")
    is_member = pc.is_in(done["candidate"], value_set=members["candidate"].combine_chunks())
    on_front = np.asarray(is_member.to_numpy(), dtype=bool)
    n_done = done.num_rows
    if n_done > max_points:
        rest = np.flatnonzero(~on_front)
        n_rest = min(rest.size, max(0, max_points - int(on_front.sum())))
        sampled = rng.choice(rest, size=n_rest, replace=False)
        shown = np.sort(np.concatenate([np.flatnonzero(on_front), sampled]))
        done, on_front = done.take(pa.array(shown)), on_front[shown]
    columns = {name: done[name].to_pylist() for name in _POINT_COLUMNS if name != "outcome"}
    columns["sparsity"] = columns.pop("target_sparsity")
    columns["drawn"] = [_is_drawn(arm) for arm in columns["arm"]]
    # Losses and errors at float32 precision: nobody reads more digits off a chart, and the page stays small.
    for name in ("node_sparsity", "weight_sparsity", "initial_loss", "scalefree_loss", "val_loss", "val_error"):
        columns[name] = [_rounded(value) for value in columns[name]]
    columns["test_error"] = [_rounded(value) for value in columns["test_error"]]
    return {**columns, "on_front": on_front.tolist(), "n_completed": n_done, "n_shown": done.num_rows}


def _is_drawn(arm: str) -> bool:
    """Tell the arms that take masks from the random draws: those that the rank correlations are about."""
    return arm in ("random", "worst") or arm.startswith("searched")


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.8g}")


def _members(members: Any, objectives: Sequence[str]) -> list[Record]:
    columns = list(dict.fromkeys(name for name in (*_POINT_COLUMNS, *objectives) if name != "outcome"))
    return [
        {("sparsity" if key == "target_sparsity" else key): value for key, value in row.items()}
        for row in members.select(columns).to_pylist()
    ]


def _curves(rows: Scannable | pa.Table, arms: Sequence[str]) -> list[Record]:
    """Average the validation error of completed candidates: within each replicate, then over replicates."""
    keys = ["arm", "target_sparsity", "replicate", "step"]
    where = (pc.field("stage") == "trained") & (pc.field("outcome") == "completed")
    partial = []
    columns = ["arm", "target_sparsity", "replicate", "curve_step", "curve_val_error"]
    for batch in ledger_batches(rows, columns=columns, where=where):
        table = pa.Table.from_batches([batch])
        lengths = [pc.list_value_length(table[column]) for column in ("curve_step", "curve_val_error")]
        table = table.filter(pc.equal(*lengths)).combine_chunks()
        if not table.num_rows:
            continue
        owner = pc.list_parent_indices(table["curve_step"])
        flat = table.select(keys[:3]).take(owner)
        flat = flat.append_column("step", pc.list_flatten(table["curve_step"]))
        flat = flat.append_column("error", pc.cast(pc.list_flatten(table["curve_val_error"]), pa.float64()))
        flat = flat.filter(pc.is_finite(pc.field("error")))
        partial.append(flat.group_by(keys, use_threads=False).aggregate([("error", "sum"), ("error", "count")]))
    if not partial:
        return []
    sums = (
        pa.concat_tables(partial)
        .group_by(keys, use_threads=False)
        .aggregate([("error_sum", "sum"), ("error_count", "sum")])
    )
    cells: dict[tuple[str, float], dict[int, list[float]]] = {}
    for row in sums.sort_by([(key, "ascending") for key in keys]).to_pylist():
        at_steps = cells.setdefault((row["arm"], row["target_sparsity"]), {})
        at_steps.setdefault(row["step"], []).append(row["error_sum_sum"] / row["error_count_sum"])
    curves = []
    for (arm, level), at_steps in sorted(cells.items(), key=lambda item: (arms.index(item[0][0]), item[0][1])):
        steps = sorted(at_steps)
        intervals = [mean_interval(at_steps[step]) for step in steps]
        has_interval = all(low is not None for _, low, _ in intervals)
        curves.append(
            {
                "arm": arm,
                "sparsity": level,
                "step": steps,
                "val_error": [_rounded(mean) for mean, _, _ in intervals],
                "low": [_rounded(low) for _, low, _ in intervals] if has_interval else None,
                "high": [_rounded(high) for _, _, high in intervals] if has_interval else None,
                "n_replicates": [len(at_steps[step]) for step in steps],
            }
        )
    return curves


def _correlation_texts(verdict: Verdict) -> list[Record]:
    return [
        {"sparsity": found.sparsity, "loss": found.predictor, "text": correlation_text(found)}
        for found in verdict.correlations
    ]


def correlation_text(found: Correlation) -> str:
    """Say a rank correlation in one line, with its interval.

    >>> correlation_text(Correlation(0.9, "initial_loss", 96, 10, -0.05, -0.25, 0.15, 0.6, 1.0))
    'Spearman ρ = −0.05 [−0.25, +0.15], n = 96'
    """
    if not math.isfinite(found.spearman):
        return f"Spearman ρ unknown (n = {found.n})"
    interval = ""
    if math.isfinite(found.low) and math.isfinite(found.high):
        interval = f" [{found.low:+.2f}, {found.high:+.2f}]"
    return f"Spearman ρ = {found.spearman:+.2f}{interval}, n = {found.n}".replace("-", "−")


def failures(rows: Scannable | pa.Table) -> Record:
    """Count what failed by outcome, arm and message; a candidate that fills several slots once."""
    ended_well = pc.field("outcome").isin(["completed", "stopped", "infeasible"])
    where = pc.field("outcome").is_valid() & ~ended_well
    columns = ["outcome", "stage", "arm", "error", "candidate", "reused"]
    counts: dict[tuple[str, str, str, str], Record] = {}
    n_failed = n_unlisted = 0
    for batch in ledger_batches(rows, columns=columns, where=where):
        for row in batch.to_pylist():
            if row["reused"]:
                continue
            n_failed += 1
            key = (row["outcome"], row["stage"], row["arm"], first_line(row["error"]))
            if key not in counts and len(counts) >= MAX_FAILURES:
                n_unlisted += 1
                continue
            counts.setdefault(key, {"n": 0, "candidate": row["candidate"]})["n"] += 1
    listed = [
        {"outcome": outcome, "stage": stage, "arm": arm, "error": error, **found}
        for (outcome, stage, arm, error), found in counts.items()
    ]
    return {"n": n_failed, "n_unlisted": n_unlisted, "listed": sorted(listed, key=lambda f: (f["outcome"], -f["n"]))}
