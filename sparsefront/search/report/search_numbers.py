"""Every number that the report of a search study shows, as plain data for JSON.

Not here: how they look (``search_page``), and what is concluded from them (``sparsefront.search.comparison``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.search.attainment import Attainment, attain, attainment_columns, breaks_constraints, mean_curves
from sparsefront.search.comparison import SearchVerdict, ratio_text
from sparsefront.search.design import RungSettings, SearchDesign
from sparsefront.search.exhaustion import exhausted_runs, exhaustion_clauses, exhaustion_columns
from sparsefront.search.feasibility import feasibility_columns, unmet_constraints
from sparsefront.search.front import is_nondominated, key_ranks
from sparsefront.search.importance import ArmImportance, active_values, arm_importances, importance_columns
from sparsefront.search.objective import OBJECTIVES, losses, natural
from sparsefront.search.pack_times import PACK_TIME_COLUMNS, pack_times
from sparsefront.search.report.numbers import (
    MAX_POINTS,
    Record,
    Scannable,
    arm_styles,
    failures,
    ledger_batches,
    plain,
)
from sparsefront.search.rungs import RUNGS
from sparsefront.spaces.domains import Bits, Choice

#: Panels of dimensions against validation error: those that matter most.
MAX_PANELS = 8
#: Axes of the front beside the one of the error.
_MAX_SIZES = 2


def search_report_numbers(
    rows: Scannable | pa.Table, design: SearchDesign, verdict: SearchVerdict, *, max_points: int = MAX_POINTS
) -> Record:
    """Compute what the report of a search study shows.

    Args:
        rows: the ledger, or a table with its columns.
        design: what was asked.
        verdict: what was concluded from the same rows.
        max_points: scatter charts show this many candidates at most: the front, and a sample of the rest.

    Returns:
        Plain data without NaN: ``study``, ``arms`` (with their looks), ``verdict``, ``curves``, ``axes``, ``points``
        (columns, one entry for each candidate shown), ``front``, ``outcomes``, ``importances``, ``dimensions``,
        ``unmet``, ``exhausted``, ``packs`` (measured against predicted times, by device) and ``failures``.
    """
    attainment = attain(ledger_batches(rows, columns=attainment_columns(design)), design)
    importances = arm_importances(ledger_batches(rows, columns=importance_columns(design), where=_TRAINED), design)
    dimensions = _dimensions(design, importances)
    axes = _axes(design.objectives)
    trained = _trained(rows, design, [axis["name"] for axis in axes])
    numbers: Record = plain(
        {
            "format": 1,
            "study": _study(design, attainment),
            "arms": _arms(design),
            "verdict": _verdict(verdict),
            "curves": [
                {
                    "arm": curve.arm,
                    "cost": _short(curve.cost.tolist()),
                    "mean": _short(curve.mean.tolist()),
                    "low": _short(curve.low.tolist()) if curve.n_replicates > 1 else None,
                    "high": _short(curve.high.tolist()) if curve.n_replicates > 1 else None,
                    "n_replicates": curve.n_replicates,
                }
                for curve in mean_curves(attainment, design)
            ],
            "axes": axes,
            **_points(trained, design, axes, dimensions, max_points=max_points),
            "outcomes": [_outcomes(dataclasses.asdict(arm)) for arm in verdict.arms],
            "importances": [dataclasses.asdict(found) for found in importances],
            "dimensions": dimensions,
            "n_panels": min(len(dimensions), MAX_PANELS),
            "unmet": unmet_constraints(ledger_batches(rows, columns=feasibility_columns(design)), design),
            "exhausted": exhaustion_clauses(
                exhausted_runs(ledger_batches(rows, columns=exhaustion_columns(design)), design)
            ),
            "packs": [dataclasses.asdict(one) for one in pack_times(ledger_batches(rows, columns=PACK_TIME_COLUMNS))],
            "failures": failures(rows),
        }
    )
    return numbers


_TRAINED = pc.field("stage") == "trained"


def _study(design: SearchDesign, attainment: Attainment) -> Record:
    box = attainment.box
    chosen = ("name", "seed", "replicates", "steps", "model", "dataset", "mask_kind", "objectives", "alpha", "task")
    reference = natural(box.reference[None], design.objectives)[0].tolist()
    return {
        **{name: getattr(design, name) for name in chosen},
        "metric": box.metric,
        "margin": design.equivalence_margin,
        "reference": reference,
        "is_settled": box.is_settled,
        "is_given": design.reference is not None,
    }


def _arms(design: SearchDesign) -> list[Record]:
    styles = arm_styles([arm.name for arm in design.arms])
    return [
        {
            "name": arm.name,
            **dataclasses.asdict(styles[arm.name]),
            "strategy": _with_options(arm.strategy, arm.options),
            "rungs": _rungs_text(arm.rungs),
            "candidates": arm.candidates,
            "batch": arm.batch,
            "against": list(arm.opponents),
            "controls": [control.kind for control in design.controls if control.arm == arm.name],
            "space": arm.space.describe(),
        }
        for arm in design.arms
    ]


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    """A strategy as a study would write its options.

    >>> _with_options("tpe", {"startup": 10, "multivariate": True}), _with_options("random", {})
    ('tpe (multivariate=true, startup=10)', 'random')
    """
    texts = [f"{k}={str(v).lower() if isinstance(v, bool | None) else v}" for k, v in sorted(options.items())]
    return f"{name} ({', '.join(texts)})" if texts else name


def _rungs_text(rungs: RungSettings) -> str:
    """Say in a few words how candidates are stopped.

    >>> _rungs_text(RungSettings()), _rungs_text(RungSettings("asha", eta=4, bracket=32))
    ('none', 'asha (eta 4, val_loss, bracket of 32)')
    >>> _rungs_text(RungSettings("hyperband"))  # it has sizes of its own
    'hyperband (eta 3, val_loss)'
    """
    if rungs.kind == "none":
        return "none"
    parts = [f"eta {rungs.eta}", " and ".join(rungs.objectives)]
    if rungs.asynchronous:
        parts.append("asynchronous")
    elif RUNGS[rungs.kind].has_bracket_size:
        parts.append(f"bracket of {rungs.bracket}")
    if rungs.bands:
        parts.append(f"{len(rungs.bands) + 1} bands of sparsity")
    return f"{rungs.kind} ({', '.join(parts)})"


def _verdict(verdict: SearchVerdict) -> Record:
    found = verdict.to_dict()
    rows = found["comparisons"]
    assert isinstance(rows, list)
    for row, comparison in zip(rows, verdict.comparisons, strict=True):
        # Infinity has no place in JSON: 'never' has.
        for name in ("cost_ratio", "cost_ratio_low", "cost_ratio_high"):
            value = getattr(comparison, name)
            row[f"{name}_text"] = None if math.isnan(value) else ratio_text(value)
    return found


def _axes(objectives: Sequence[str]) -> list[Record]:
    """Axes of the front: the measured quantity first, then the sizes it is traded against."""
    measured = [name for name in objectives if OBJECTIVES[name].trained and not OBJECTIVES[name].cost]
    first = (measured or list(objectives))[0]
    others = [name for name in objectives if name != first][:_MAX_SIZES] or ["n_params"]
    return [
        {
            "name": name,
            "label": OBJECTIVES[name].label,
            "unit": OBJECTIVES[name].unit,
            "is_share": OBJECTIVES[name].unit == "fraction",
            "is_log": OBJECTIVES[name].cost or name in ("n_params", "macs"),
            "is_objective": name in objectives,
        }
        for name in (first, *others)
    ]


def _dimensions(design: SearchDesign, importances: Sequence[ArmImportance]) -> list[Record]:
    """Describe the dimensions of all arms, those that matter most first."""
    found: dict[str, Record] = {}
    weight: dict[str, float] = {}
    for arm in design.arms:
        for dimension in arm.space.dimensions:
            domain = dimension.domain
            if isinstance(domain, Bits):
                continue
            kind = "choice" if isinstance(domain, Choice) else "number"
            is_log = kind == "number" and bool(getattr(domain, "log", False))
            found.setdefault(dimension.name, {"name": dimension.name, "kind": kind, "is_log": is_log})
    for importance in importances:
        for name, share in (importance.importances or {}).items():
            weight[name] = max(weight.get(name, 0.0), share)
    return sorted(found.values(), key=lambda row: -weight.get(row["name"], 0.0))


def _trained(rows: Scannable | pa.Table, design: SearchDesign, names: Sequence[str]) -> list[tuple[int, pa.Table]]:
    """Give the completed candidates of each arm (by position) that keep its constraints, without duplicates."""
    extra = ["candidate", "test_error", "val_error", "weight_sparsity", "node_sparsity", "n_params"]
    columns = list(
        dict.fromkeys(
            [*importance_columns(design), *attainment_columns(design), *extra, *(OBJECTIVES[n].column for n in names)]
        )
    )
    where = _TRAINED & (pc.field("outcome") == "completed") & ~pc.coalesce(pc.field("reused"), pc.scalar(False))
    found = list(ledger_batches(rows, columns=columns, where=where))
    if not found:
        return []
    table = pa.Table.from_batches(found)
    # Of equal candidates the first stands for all, as in every other list of the front.
    table = table.take(pa.array(np.argsort(key_ranks(table, [arm.name for arm in design.arms]))))
    of_arms = []
    for position, arm in enumerate(design.arms):
        own = table.filter(pc.field("arm") == arm.name)
        own = own.filter(pa.array(~breaks_constraints(own, arm)))
        own = own.filter(pa.array(np.isfinite(losses(own, design.objectives)).all(axis=1)))
        if own.num_rows:
            of_arms.append((position, own))
    return of_arms


def _points(
    trained: Sequence[tuple[int, pa.Table]],
    design: SearchDesign,
    axes: Sequence[Record],
    dimensions: Sequence[Record],
    *,
    max_points: int,
) -> Record:
    """Choose the candidates that the scatter charts show, as columns; and list the front over all arms."""
    matrix = np.concatenate(
        [np.empty((0, len(design.objectives))), *(losses(table, design.objectives) for _, table in trained)]
    )
    on_front = is_nondominated(matrix)
    ids = np.array([name for _, table in trained for name in table["candidate"].to_pylist()], dtype=np.object_)
    members = np.flatnonzero(on_front)
    _, firsts = np.unique(ids[members].astype(str), return_index=True)
    on_front[np.delete(members, firsts)] = False  # one candidate of several arms, measured to the last digit
    n = len(on_front)
    chosen = np.arange(n)
    if n > max_points:
        # The page is a function of the ledger: the same rows give the same sample.
        rng = np.random.default_rng([design.seed, n])
        rest = rng.choice(np.flatnonzero(~on_front), size=max(0, max_points - int(on_front.sum())), replace=False)
        chosen = np.sort(np.concatenate([np.flatnonzero(on_front), rest]))
    columns: Record = {name: [] for name in ("candidate", "arm", "replicate", "number", "test_error", "val_error")}
    values: Record = {axis["name"]: [] for axis in axes}
    dims: Record = {row["name"]: [] for row in dimensions}
    start = 0
    for position, table in trained:
        inside = chosen[(chosen >= start) & (chosen < start + table.num_rows)] - start
        start += table.num_rows
        rows = table.take(pa.array(inside))
        for name in columns:
            columns[name] += _short(rows["slot" if name == "number" else name].to_pylist())
        for name in values:
            values[name] += _short(natural(losses(rows, [name]), [name])[:, 0].tolist())
        arm = design.arms[position]
        active = active_values(rows, arm.space)
        for name in dims:
            known = active[name] if name in active else rows[name].to_pylist() if name in arm.fixed.columns else None
            dims[name] += _short(known or [None] * rows.num_rows)
    shown_on_front = on_front[chosen]
    points: Record = {**columns, "values": values, "dims": dims, "on_front": shown_on_front.tolist()}
    first = natural(matrix, design.objectives)[chosen, 0]
    ordered = np.lexsort((columns["candidate"], first))
    front = [
        {
            **{name: columns[name][i] for name in columns},
            "values": {name: values[name][i] for name in values},
            "dims": {name: dims[name][i] for name in dims if dims[name][i] is not None},
        }
        for i in ordered[shown_on_front[ordered]].tolist()
    ]
    return {"points": {**points, "n_completed": n, "n_shown": len(chosen)}, "front": front}


def _outcomes(arm: Record) -> Record:
    """Order what became of an arm's candidates as a bar shows it: stopped rung by rung, completed, failed."""
    parts = [(f"stopped at rung {rung}", "stopped", share) for rung, share in sorted(arm["stopped"].items())]
    order = sorted(arm["shares"].items(), key=lambda item: (item[0] != "completed", item[0]))
    parts += [(name.replace("_", " "), name, share) for name, share in order if name != "stopped"]
    return {
        **{name: arm[name] for name in ("arm", "n_candidates", "n_duplicates", "n_infeasible", "front_size")},
        "parts": [{"text": text, "kind": kind, "share": share} for text, kind, share in parts],
    }


def _short(values: Sequence[Any]) -> list[Any]:
    """Float32 precision: nobody reads more digits off a chart, and the page stays small."""
    return [float(f"{v:.8g}") if isinstance(v, float) and math.isfinite(v) else v for v in values]
