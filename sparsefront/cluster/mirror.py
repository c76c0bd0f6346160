"""What MLflow shows of a study, as a function of its ledger: the study itself, each arm at each level, the front.

Steps are numbers of candidates evaluated and timestamps those of commits, never the clock's, so that the same ledger
always gives the same mirror. Everything is in natural directions and units, as the ledger's columns are.

Not here: how it gets into MLflow (``record``).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from sparsefront.errors import LedgerError
from sparsefront.search.comparison import SearchVerdict
from sparsefront.search.design import Design, SearchDesign
from sparsefront.search.findings import Comparison, Verdict
from sparsefront.search.front import front, front_columns, hypervolume_curve, reference_point
from sparsefront.search.ledger import Ledger, write_table
from sparsefront.search.means import replicate_means
from sparsefront.search.metrics import METRICS
from sparsefront.search.objective import ideal_point, objectives_named
from sparsefront.search.schema import COLUMNS, SCHEMA
from sparsefront.search.verdict import VERDICT_COLUMNS, judge
from sparsefront.search.wording import shown_label

STUDY_KEY = "study"

#: Members of the front with a run of their own; ``front.parquet`` has all of them. A run costs an MLflow server about
#: a quarter of a second, and its tables compare a hundred.
MAX_MEMBERS = 500

#: Fields of a design that follow from the others and from the data: not all who export it have those.
_FOLLOWING = ("keeps_parents", "mask_sections", "making_steps")
#: MLflow's limits on the values of params and tags.
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000

_HYPERPARAMETERS = tuple(column.name for column in COLUMNS if column.hyperparameter)
_MEASURED = (
    *("val_error", "val_loss", "test_error", "test_loss", "initial_loss", "scalefree_loss", "temperature", "logit_std"),
    *("node_sparsity", "weight_sparsity", "n_params", "macs", "passes", "flops", "seconds"),
)
_DESCRIPTION = ("arm", "replicate", "target_sparsity", "slot", "mask_kind", "mask_draw", "mask_digest", "device")


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    timestamp_ms: int
    step: int


@dataclass(frozen=True)
class Page:
    """One run in MLflow: params never change, tags may, points only ever come in addition."""

    key: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Mirror:
    """Everything MLflow shows of one ledger.

    ``ledger_id`` tells the ledgers of two runs of the same study apart: it is made of the study's digest and of the
    moment of the first commit, and stays the same for the life of a ledger. ``is_complete`` says whether the study has
    ended; None where the rows are not asked.
    """

    experiment: str
    ledger_id: str
    started_ms: int
    ended_ms: int
    study: Page
    nested: tuple[Page, ...]
    n_members: int
    artifacts: Mapping[str, bytes]
    is_complete: bool | None = None


@dataclass(frozen=True)
class LedgerSpan:
    """What tells a ledger from others, and when its first and last commits were."""

    ledger_id: str
    started_ms: int
    ended_ms: int

    @classmethod
    def of(cls, ledger: Ledger) -> LedgerSpan:
        """Of an open ledger.

        Raises:
            LedgerError: if the ledger has no rows yet.
        """
        stamps = [batch.column(0) for batch in ledger.scan(columns=["committed_at"])]
        if not stamps:
            raise LedgerError(
                f"{ledger.folder} has no rows yet: there is nothing to show in MLflow before the first commit"
            )
        first = stamps[0][0].as_py()
        digest = hashlib.sha256(f"{ledger.study_digest} {first.isoformat()}".encode()).hexdigest()[:32]
        return cls(digest, _ms(first), max(_ms(pc.max(stamp).as_py()) for stamp in stamps))


def build_mirror(ledger: Ledger, design: Design, *, n_planned: int | None = None) -> Mirror:
    """Compute what MLflow shall show of a ledger.

    Args:
        ledger: open for reading; of a running study as well.
        design: the design of its study.
        n_planned: trainings that the study will have done at its end, for the progress tag.

    Returns:
        The mirror; the same for the same rows.

    Raises:
        LedgerError: if the ledger has no rows yet.
    """
    span = LedgerSpan.of(ledger)
    verdict = judge(ledger.scan(columns=list(VERDICT_COLUMNS)), design)
    completed = ledger.scan(where=pc.field("outcome") == "completed")
    members = front(completed, design.objectives, schema=ledger.schema)
    measured = _measured_at_end(ledger.schema, design)
    curve = _curve(ledger, design)
    n_candidates = curve["n_candidates"][-1].as_py() if curve.num_rows else 0
    trained = ledger.table(
        columns=[
            *("arm", "target_sparsity", "replicate", "outcome", "passes", "seconds"),
            METRICS[design.metric].test_column,
            *measured,
        ],
        where=pc.field("stage") == "trained",
    )
    now = Moment(span.ended_ms, n_candidates)
    study = study_page(
        ledger,
        design,
        verdict,
        n_trained=trained.num_rows,
        n_planned=n_planned,
        params={name: value for name, value in dataclasses.asdict(design).items() if name not in _FOLLOWING},
        points=_study_points(verdict, curve, now),
    )
    arms = _arm_pages(trained, verdict, design, now, measured)
    return mirror_of(span, design, verdict, study, arms, members, measured=measured)


def study_page(
    ledger: Ledger,
    design: Design | SearchDesign,
    verdict: Verdict | SearchVerdict,
    *,
    n_trained: int,
    n_planned: int | None,
    params: Mapping[str, object],
    points: tuple[Point, ...],
) -> Page:
    """The page of a study itself, with its verdict and how far it is."""
    texts = {name: _text_of(value) for name, value in params.items()} | {"study_digest": ledger.study_digest}
    return Page(
        key=STUDY_KEY,
        name=design.name,
        tags={
            **{f"sparsefront.version.{name}": version for name, version in ledger.versions.items()},
            "sparsefront.study_digest": ledger.study_digest,
            "sparsefront.progress": f"{n_trained}" + ("" if n_planned is None else f"/{n_planned}") + " trained",
            # MLflow's own description is left to people: it would be overwritten at every export.
            "sparsefront.verdict": cut("\n".join((verdict.headline, *verdict.sentences)), MAX_TAG_CHARS),
        },
        params={name: cut(text, MAX_PARAM_CHARS) for name, text in texts.items()},
        points=points,
    )


def mirror_of(
    span: LedgerSpan,
    design: Design | SearchDesign,
    verdict: Verdict | SearchVerdict,
    study: Page,
    arms: Sequence[Page],
    members: pa.Table,
    *,
    dimensions: Sequence[str] = (),
    measured: Sequence[str] = (),
    is_complete: bool | None = None,
) -> Mirror:
    """The mirror of a study of these pages, whose front has these members.

    `dimensions` are columns of a search's space, `measured` those that a study of masks measures besides all others.
    """
    page_of = (
        functools.partial(_search_member_page, dimensions)
        if isinstance(design, SearchDesign)
        else functools.partial(_member_page, measured=measured)
    )
    shown = [page_of(row) for row in _shown_members(members, design.objectives)]
    return Mirror(
        experiment=f"sparsefront/{design.name}",
        ledger_id=span.ledger_id,
        started_ms=span.started_ms,
        ended_ms=span.ended_ms,
        study=study,
        nested=(*arms, *shown),
        n_members=len(shown),
        is_complete=is_complete,
        artifacts={
            "front.parquet": _parquet_bytes(members),
            "verdict.json": (json.dumps(_rounded_json(verdict.to_dict()), indent=1, sort_keys=True) + "\n").encode(),
        },
    )


@dataclass(frozen=True)
class Moment:
    """When, on both of MLflow's axes."""

    timestamp_ms: int
    step: int

    def points(self, values: Mapping[str, float | int | None]) -> tuple[Point, ...]:
        """Points of the values that are known and finite."""
        return tuple(
            Point(name, _rounded(float(value)), self.timestamp_ms, self.step)
            for name, value in values.items()
            if value is not None and math.isfinite(value)
        )


def _curve(ledger: Ledger, design: Design) -> pa.Table:
    """Follow the hypervolume; NaN where its reference can still move, since points in MLflow cannot be taken back."""
    columns = front_columns(design.objectives)
    reference = reference_point(ledger.scan(columns=columns), design.objectives)
    curve = hypervolume_curve(
        ledger.scan(columns=[*columns, "committed_at"]),
        design.objectives,
        reference=reference,
        ideal=ideal_point(design.objectives) if _settled(ledger, design, reference) else None,
    )
    if _settled(ledger, design, reference):
        return curve
    unknown = pa.nulls(curve.num_rows, pa.float64())
    return curve.set_column(curve.schema.get_field_index("hypervolume"), "hypervolume", unknown)


def _settled(ledger: Ledger, design: Design, reference: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Whether later rows cannot move the reference (see ``front.reference_point``)."""
    if not np.isfinite(reference).all():
        return False
    if any(o.needs_parent and math.isnan(o.worst) for o in objectives_named(design.objectives)):
        return False  # a parent has none of them: the reference is the largest of the others
    free = {o.column for o in objectives_named(design.objectives) if math.isnan(o.worst)}
    if not free:
        return True
    parents = ledger.table(columns=["replicate"], where=(pc.field("stage") == "trained") & (pc.field("arm") == "dense"))
    # All parents are of one size, so one of them is enough to know it.
    n_parents: int = parents.num_rows
    return n_parents >= (1 if free <= {"n_params", "macs"} else design.replicates)


def _study_points(verdict: Verdict, curve: pa.Table, now: Moment) -> tuple[Point, ...]:
    values: dict[str, float | int | None] = {}
    for spent in verdict.spent:
        values[f"passes/{spent.arm}"] = spent.passes
        values[f"flops/{spent.arm}"] = spent.flops
        values[f"seconds/{spent.arm}"] = spent.seconds
        values[f"candidates/{spent.arm}"] = spent.n_candidates
        for outcome, n in spent.outcomes.items():
            values[f"outcomes/{outcome}"] = (values.get(f"outcomes/{outcome}") or 0) + n
    for comparison in verdict.comparisons:
        place = f"verdict/{comparison.arm}/{comparison.sparsity}"
        for name in ("difference", "low", "high", "p_adjusted"):
            values[f"{place}/{comparison.metric}_{name}"] = getattr(comparison, name)
    for correlation in verdict.correlations:
        values[f"spearman/{correlation.predictor}/{correlation.sparsity}"] = correlation.spearman
    points = list(now.points(values))
    for row in curve.to_pylist():
        then = Moment(_ms(row["committed_at"]), row["n_candidates"])
        points += then.points({"hypervolume": row["hypervolume"], "front_size": row["front_size"]})
    return tuple(points)


def _measured_at_end(schema: pa.Schema, design: Design) -> tuple[str, ...]:
    """Columns of numbers of trained networks that not every study is about: qualities, and objectives of their kind."""
    qualities = (f.name for f in schema if f.name not in SCHEMA.names and pa.types.is_floating(f.type))
    objectives = (o.column for o in objectives_named(design.objectives) if o.at_end)
    return tuple(dict.fromkeys(("effective_density", *objectives, *qualities)))


def _arm_pages(trained: pa.Table, verdict: Verdict, design: Design, now: Moment, measured: Sequence[str]) -> list[Page]:
    metric = METRICS[design.metric]
    values: dict[tuple[str, float], dict[str, float | int | None]] = {}
    spent = trained.group_by(["arm", "target_sparsity", "outcome"], use_threads=False).aggregate(
        [("passes", "sum"), ("seconds", "sum"), ([], "count_all")]
    )
    for row in spent.to_pylist():
        place = values.setdefault((row["arm"], row["target_sparsity"]), {})
        for name, amount in (("passes", row["passes_sum"]), ("seconds", row["seconds_sum"])):
            place[name] = (place.get(name) or 0.0) + (amount or 0.0)
        place[f"outcomes/{row['outcome']}"] = row["count_all"]
    # Draws of one replicate share its data and initial weights: replicates, not draws, are independent.
    completed = trained.filter(pc.field("outcome") == "completed")
    for key, means in replicate_means(completed, metric.test_column).items():
        found = [metric.of_column(mean) for mean in means]
        mean, low, high = _interval(found, design.alpha)
        name = f"test_{design.metric}"
        values[key] |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        values[key]["replicates"] = len(found)
    for column in measured:
        for key, means in replicate_means(completed, column).items():
            values[key][column] = _interval(means, design.alpha)[0]
    tags: dict[tuple[str, float], dict[str, str]] = {key: {} for key in values}
    for comparison in verdict.comparisons:
        key = (comparison.arm, comparison.sparsity)
        values.setdefault(key, {}).update(_numbers(comparison))
        tags.setdefault(key, {})[f"sparsefront.verdict.{comparison.metric}"] = shown_label(
            comparison.label, comparison.p_value
        )
    return [
        Page(
            key=f"arm/{arm}/{sparsity}",
            name=f"{arm} at sparsity {sparsity}",
            tags={"sparsefront.arm": arm, "sparsefront.target_sparsity": str(sparsity), **tags[arm, sparsity]},
            params={},
            points=now.points(dict(sorted(values[arm, sparsity].items()))),
        )
        for arm, sparsity in sorted(values)
    ]


def _shown_members(members: pa.Table, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """Give the front's members with a page: all, or the best of each objective and an arbitrary but stable choice."""
    rows: list[dict[str, Any]] = members.to_pylist()
    if len(rows) > MAX_MEMBERS:
        columns = [o.column for o in objectives_named(objectives)]
        extremes = {
            extreme(range(len(rows)), key=lambda i: rows[i][column]) for column in columns for extreme in (min, max)
        }
        # By id, a hash: as the front grows, members are displaced one by one and not all at once.
        order = sorted(range(len(rows)), key=lambda i: (i not in extremes, rows[i]["candidate"]))
        rows = [rows[i] for i in sorted(order[:MAX_MEMBERS])]
    return rows


def _search_member_page(dimensions: Sequence[str], row: Mapping[str, Any]) -> Page:
    """As `_member_page`: of a search, whose candidates have a point in a space and no level of sparsity."""
    page = _member_page(row)
    return dataclasses.replace(
        page,
        name=f"{row['arm']} r{row['replicate']} {row['candidate'][:8]}",
        tags={name: text for name, text in page.tags.items() if name != "sparsefront.target_sparsity"},
        params={**page.params, **{name: _text_of(row[name]) for name in dimensions if row[name] is not None}},
    )


def _member_page(row: Mapping[str, Any], *, measured: Sequence[str] = ()) -> Page:
    now = Moment(_ms(row["committed_at"]), row["steps"] or 0)
    points = list(now.points({name: row[name] for name in (*_MEASURED, *measured)}))
    for name in ("val_loss", "val_error"):
        for step, value in zip(row["curve_step"] or (), row[f"curve_{name}"] or (), strict=False):
            points += Moment(now.timestamp_ms, step).points({f"curve/{name}": value})
    tags = {f"sparsefront.{name}": _text_of(row[name]) for name in _DESCRIPTION if row[name] is not None}
    tags |= {"sparsefront.candidate": row["candidate"], "sparsefront.front": "member"}
    return Page(
        key=f"front/{row['candidate']}",
        name=f"{row['arm']} {row['target_sparsity']} {row['candidate'][:8]}",
        tags={name: cut(value, MAX_TAG_CHARS) for name, value in tags.items()},
        params={name: _text_of(row[name]) for name in _HYPERPARAMETERS if row[name] is not None},
        points=tuple(points),
    )


def _numbers(comparison: Comparison) -> dict[str, float | int | None]:
    prefix = comparison.metric
    names = (
        *("n", "arm_mean", "random_mean", "difference", "low", "high", "p_value", "p_adjusted"),
        *("p_equivalence_adjusted", "replicates_needed_low", "replicates_needed_high"),
    )
    return {f"{prefix}_{name}": getattr(comparison, name) for name in names}


def _interval(values: Iterable[float], alpha: float) -> tuple[float, float | None, float | None]:
    """Mean and t interval of level 1 - alpha; no interval of fewer than two values.

    >>> _interval([0.5], 0.05)
    (0.5, None, None)
    >>> [round(x, 4) for x in _interval([0.4, 0.6], 0.05)]
    [0.5, -0.7706, 1.7706]
    """
    found = np.sort(np.fromiter(values, dtype=np.float64))  # sorted: the same sum whatever the order of groups
    mean = float(found.mean())
    if len(found) < 2:
        return mean, None, None
    half = float(stats.t.ppf(1 - alpha / 2, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return mean, mean - half, mean + half


def _parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    with tempfile.TemporaryDirectory(prefix="sparsefront-") as scratch:
        path = Path(scratch, "front.parquet")
        write_table(table, path)
        return path.read_bytes()


def _rounded(value: float) -> float:
    """To 12 significant digits: a sum depends on its order by some 1e-16 of it, and compaction changes the order.

    >>> _rounded(6143.999999999999)
    6144.0
    """
    return float(f"{value:.12g}")


def _rounded_json(value: object) -> object:
    """Plain data whose numbers are rounded, see `_rounded`."""
    if isinstance(value, Mapping):
        return {key: _rounded_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded_json(inner) for inner in value]
    return _rounded(value) if isinstance(value, float) else value


def _ms(stamp: dt.datetime | None) -> int:
    """Milliseconds since 1970; 0 for none."""
    return 0 if stamp is None else int(stamp.timestamp() * 1000)


def _text_of(value: object) -> str:
    """A value as a param or a tag."""
    return json.dumps(value) if isinstance(value, list | tuple) else str(value)


def cut(text: str, n_chars: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= n_chars else text[: n_chars - 1] + "…"
