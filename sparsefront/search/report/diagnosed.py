"""Numbers on what became of the trained networks: densities, dead units, collapse, overlap of masks, stability.

Not here: how they look (``diagnostics``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from sparsefront.errors import LedgerError
from sparsefront.search.design import Design
from sparsefront.search.means import mean_interval, replicate_means
from sparsefront.search.methods import known_methods
from sparsefront.search.methods.pruned import Pruned
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.schema import SCHEMA, is_test_result
from sparsefront.spaces.masks import unpack_bits
from sparsefront.spaces.overlap import pairwise_overlap
from sparsefront.spaces.pruning import Pruning

#: Bytes of a mask, by its digest.
Masks = Callable[[str], bytes]
Record = dict[str, Any]

#: Replicates whose masks are compared at most: the first ones.
MAX_COMPARED = 50
#: A network is stable if the error on the line to its sibling rises by less (Frankle et al. 2020: two points).
STABLE_BELOW = 0.02
_AVERAGED = (
    "density_prunable",
    "density_total",
    "density_macs",
    "effective_density",
    "effective_params",
    "n_dead_units",
    "static_dead_fraction",
    "dynamic_dead_fraction",
    "mask_overlap",
    "exploration_rate",
)
#: Columns of the ledger that are read, of trained rows.
DIAGNOSED = (
    *("arm", "target_sparsity", "replicate", "slot", "mask_draw", "mask_digest", "is_collapsed", *_AVERAGED),
    *("instability_error", "instability_loss"),
)
#: The same, where the study tested on a sample that was drawn anew.
FRESH = ("arm", "target_sparsity", "replicate", "test_error", "fresh_error", "fresh_error_increase")
_PLACE = FRESH[:3]


def diagnosed(trained: pa.Table, arms: Sequence[str], sections: Sequence[int], masks: Masks | None) -> Record:
    """Averages of every arm and level, and how much its masks share between replicates.

    Args:
        trained: trained rows with the columns `DIAGNOSED`; those that were not diagnosed are left out.
        arms: in the order of the tables.
        sections: entries of each section of a mask; empty if they are unknown.
        masks: gives the packed bits of masks that were stored; None if there are none to be had.

    Returns:
        ``rows``, and ``overlaps`` of arms with two stored masks or more.
    """
    cells: dict[tuple[str, float], list[Record]] = {}
    for row in trained.to_pylist():
        if row["is_collapsed"] is not None:
            cells.setdefault((row["arm"], row["target_sparsity"]), []).append(row)
    ordered = sorted(cells.items(), key=lambda item: (arms.index(item[0][0]), item[0][1]))
    found = [{"arm": arm, "sparsity": sparsity, **_averages(members)} for (arm, sparsity), members in ordered]
    overlaps: list[Record] = []
    if masks is not None and sections:
        for (arm, sparsity), members in ordered:
            shared = _overlap(members, sections, masks)
            overlaps += [{"arm": arm, "sparsity": sparsity, **shared}] if shared else []
    return {"rows": found, "overlaps": overlaps}


def _averages(members: Sequence[Record]) -> Record:
    """Means over replicates of the means over a replicate's networks."""
    replicates: dict[int, list[Record]] = {}
    for row in members:
        replicates.setdefault(row["replicate"], []).append(row)
    means: Record = {}
    for name in _AVERAGED:
        values = [_mean(row[name] for row in own) for _, own in sorted(replicates.items())]
        means[name] = _mean(values)
    n_collapsed = sum(row["is_collapsed"] for row in members)
    return {"n_networks": len(members), "n_replicates": len(replicates), "n_collapsed": n_collapsed, **means}


def stability(trained: pa.Table, arms: Sequence[str], design: Design) -> Record:
    """How far apart the siblings of every arm and level end, and from which rewind on all of them end together.

    Arms that differ in their rewinding alone are tried against each other, where there are two or more of them.

    Args:
        trained: trained rows with the columns `DIAGNOSED`; those without a sibling are left out.
        arms: in the order of the tables.
        design: what was asked.

    Returns:
        ``rows`` (means over replicates; ``rewind_step`` is None of arms that do not rewind), and ``smallest_stable``:
        of each family of arms and level the step, or None if the longest rewind is not stable.
    """
    methods = {
        arm: method.method
        for arm, method in known_methods(design.methods or {arm: {} for arm in design.arms}).items()
        if isinstance(method, Pruned) and method.method.reads("rewind_fraction")
    }
    cells: dict[tuple[str, float], list[Record]] = {}
    for row in trained.to_pylist():
        if row["instability_error"] is not None:
            cells.setdefault((row["arm"], row["target_sparsity"]), []).append(row)
    rows: list[Record] = []
    families: dict[tuple[Pruning, float], list[Record]] = {}
    for (arm, sparsity), members in sorted(cells.items(), key=lambda item: (arms.index(item[0][0]), item[0][1])):
        row = {
            "arm": arm,
            "sparsity": sparsity,
            "rewind_step": methods[arm].rewind_step(design.steps) if arm in methods else None,
            "instability_error": _mean_of_replicates(members, "instability_error"),
            "instability_loss": _mean_of_replicates(members, "instability_loss"),
            "n_stable": sum(member["instability_error"] < STABLE_BELOW for member in members),
            "n_networks": len(members),
        }
        rows.append(row)
        if arm in methods:
            families.setdefault((replace(methods[arm], rewind_fraction=0.0), sparsity), []).append(row)
    found = [
        {
            "arms": [row["arm"] for row in tried],
            "sparsity": sparsity,
            "rewind_step": smallest_stable([(row["rewind_step"], row["instability_error"]) for row in tried]),
        }
        for (_, sparsity), tried in families.items()
        if len({row["rewind_step"] for row in tried}) > 1
    ]
    return {"rows": rows, "smallest_stable": found}


def fresh_sample(trained: pa.Table, arms: Sequence[str]) -> list[Record]:
    """Errors of every arm and level on the test part and on one that was drawn anew, as means over replicates.

    Args:
        trained: trained rows with the columns `FRESH`; those that were not tested on either are left out.
        arms: in the order of the tables.
    """
    cells: dict[tuple[str, float], list[Record]] = {}
    for row in trained.to_pylist():
        if row["fresh_error"] is not None and row["test_error"] is not None:
            cells.setdefault((row["arm"], row["target_sparsity"]), []).append(row)
    return [
        {
            "arm": arm,
            "sparsity": sparsity,
            "n_networks": len(members),
            **{name: _mean_of_replicates(members, name) for name in FRESH[3:]},
        }
        for (arm, sparsity), members in sorted(cells.items(), key=lambda item: (arms.index(item[0][0]), item[0][1]))
    ]


def quality_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Columns that `qualities` reads: a row's place, and what a study of masks has besides ``SCHEMA``.

    Left out are lists, and what `fresh_sample` has.
    """
    known = {*SCHEMA.names, *FRESH}
    return (
        *_PLACE,
        *(field.name for field in schema if field.name not in known and pa.types.is_floating(field.type)),
    )


def qualities(trained: pa.Table, arms: Sequence[str]) -> Record:
    """What the study's qualities came to at every arm and level, as means over replicates with 95% intervals.

    Args:
        trained: trained rows with the columns `quality_columns`; those without any value are left out.
        arms: in the order of the tables.

    Returns:
        ``columns`` (those with a value; ``text`` is a heading, ``is_fraction`` tells fractions from other units), and
        ``rows``, whose ``means`` has mean, low and high of each column: None of one that the arm has no value of,
        and no ends of a single replicate.
    """
    names = [name for name in trained.column_names if name not in _PLACE]
    found = {name: means for name in names if (means := replicate_means(trained, name))}
    cells = {cell for means in found.values() for cell in means}
    return {
        "columns": [
            {"name": name, "text": _heading(trained.schema.field(name)), "is_fraction": _is_fraction(name)}
            for name in found
        ],
        "rows": [
            {
                "arm": arm,
                "sparsity": sparsity,
                "means": {
                    name: mean_interval(means[arm, sparsity]) if (arm, sparsity) in means else None
                    for name, means in found.items()
                },
            }
            for arm, sparsity in sorted(cells, key=lambda cell: (arms.index(cell[0]), cell[1]))
        ],
    }


def _heading(field: pa.Field) -> str:
    """A quality's column in words: as fronts call it, or else its name, also where fronts take its size alone."""
    objective = OBJECTIVES.get(field.name)
    if objective is not None and not objective.absolute:
        return objective.label
    return f"{field.name.replace('_', ' ')} ({'test' if is_test_result(field) else 'validation'})"


def _is_fraction(name: str) -> bool:
    """Whether people read it in percent: a share of the examples, and not an area or a sum of squares.

    >>> [name for name in ("ece", "brier", "ood_auroc_noise", "corrupted_error_blur") if _is_fraction(name)]
    ['ece', 'corrupted_error_blur']
    """
    return OBJECTIVES[name].worst == 1.0 if name in OBJECTIVES else "_error" in name


def smallest_stable(tried: Iterable[tuple[int, float]]) -> int | None:
    """The smallest rewind step from which on every one that was tried is stable; None if the largest is not.

    Args:
        tried: steps and instabilities, in any order; one that is not a number is not stable.

    >>> smallest_stable([(0, 0.01), (20, 0.3), (100, 0.015), (500, 0.0)])
    100
    """
    is_stable: dict[int, bool] = {}
    for step, instability in tried:
        is_stable[step] = is_stable.get(step, True) and instability < STABLE_BELOW
    stable: int | None = None
    for step in sorted(is_stable, reverse=True):
        if not is_stable[step]:
            break
        stable = step
    return stable


def _mean_of_replicates(members: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean over replicates of the means over a replicate's networks; not a number where one of them is not."""
    replicates: dict[int, list[float]] = {}
    for row in members:
        replicates.setdefault(row["replicate"], []).append(math.nan if row[name] is None else row[name])
    return float(np.mean([np.mean(values) for _, values in sorted(replicates.items())]))


def _overlap(members: Sequence[Record], sections: Sequence[int], masks: Masks) -> Record | None:
    """What the masks of the first networks of an arm share, over pairs of replicates; None if fewer than two are kept.

    Drawn masks are not stored: they share what chance gives them.
    """
    kept: list[Any] = []
    for row in sorted(members, key=lambda row: row["replicate"]):
        if row["slot"] or row["mask_digest"] is None or row["mask_draw"] is not None or len(kept) == MAX_COMPARED:
            continue
        try:
            kept.append(unpack_bits(masks(row["mask_digest"]), sum(sections)))
        except LedgerError:
            continue
    if len(kept) < 2:
        return None
    pairs = pairwise_overlap(np.stack(kept), sections)
    n_kept = max(1.0, float(np.mean([mask.sum() for mask in kept])))
    return {
        "n_masks": len(kept),
        "shared": _mean(pairs.n_shared / n_kept),
        "expected": _mean(pairs.n_expected / n_kept),
        "beyond_chance": _mean(pairs.beyond_chance),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
