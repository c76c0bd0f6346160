"""What became of the trained networks: their densities, dead units and collapse, and what masks have in common.

The numbers and the section about them; the chart is drawn by ``page.js``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import LedgerError
from sparsefront.search.design import Design
from sparsefront.search.report.markup import Markup, chart, paragraph, percent, section, table, whole
from sparsefront.search.report.numbers import Record, Scannable, ledger_batches, mean_interval
from sparsefront.search.report.sections import arm_name, level_name, note_of
from sparsefront.search.schema import SCHEMA
from sparsefront.spaces.masks import unpack_bits
from sparsefront.spaces.overlap import pairwise_overlap

#: Bytes of a mask, by its digest.
Masks = Callable[[str], bytes]

#: Replicates whose masks are compared at most: the first ones.
MAX_COMPARED = 50
_AVERAGED = (
    "density_prunable",
    "density_total",
    "effective_density",
    "effective_params",
    "n_dead_units",
    "static_dead_fraction",
    "dynamic_dead_fraction",
    "mask_overlap",
    "exploration_rate",
)
_COLUMNS = (
    "arm", "target_sparsity", "replicate", "slot", "mask_kind", "mask_draw", "mask_digest", "is_collapsed", *_AVERAGED
)  # fmt: skip


def diagnostics_numbers(rows: Scannable | pa.Table, arms: Sequence[str], design: Design, masks: Masks | None) -> Record:
    """Averages of every arm and level, and how much its masks share between replicates.

    Args:
        rows: the ledger, or a table with its columns.
        arms: in the order of the tables.
        design: what was asked.
        masks: gives the packed bits of masks that were stored; None if there are none to be had.
    """
    where = (pc.field("stage") == "trained") & pc.field("is_collapsed").is_valid()
    schema = pa.schema([SCHEMA.field(name) for name in _COLUMNS])
    cells: dict[tuple[str, float], list[Record]] = {}
    for row in pa.Table.from_batches(ledger_batches(rows, columns=_COLUMNS, where=where), schema=schema).to_pylist():
        cells.setdefault((row["arm"], row["target_sparsity"]), []).append(row)
    ordered = sorted(cells.items(), key=lambda item: (arms.index(item[0][0]), item[0][1]))
    found = [{"arm": arm, "sparsity": sparsity, **_averages(members)} for (arm, sparsity), members in ordered]
    overlaps = []
    for (arm, sparsity), members in ordered if masks is not None and design.mask_sections else ():
        shared = _overlap(members, design.mask_sections, masks)
        overlaps += [{"arm": arm, "sparsity": sparsity, **shared}] if shared else []
    return {"rows": found, "overlaps": overlaps}


def _averages(members: Sequence[Record]) -> Record:
    """Means over replicates of the means over a replicate's networks; of the dead fraction with its interval."""
    replicates: dict[int, list[Record]] = {}
    for row in members:
        replicates.setdefault(row["replicate"], []).append(row)
    means: Record = {}
    for name in _AVERAGED:
        values = [_mean(row[name] for row in own) for _, own in sorted(replicates.items())]
        known = [value for value in values if value is not None]
        means[name] = _mean(known)
        if name == "dynamic_dead_fraction":
            means["low"], means["high"] = mean_interval(known)[1:] if known else (None, None)
    n_collapsed = sum(row["is_collapsed"] for row in members)
    return {"n_networks": len(members), "n_replicates": len(replicates), "n_collapsed": n_collapsed, **means}


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
    return {
        "n_masks": len(kept),
        "shared": _mean(pairs.n_shared / np.maximum(1, np.mean([mask.sum() for mask in kept]))),
        "expected": _mean(pairs.n_expected / np.maximum(1, np.mean([mask.sum() for mask in kept]))),
        "jaccard": _mean(pairs.jaccard),
        "beyond_chance": _mean(pairs.beyond_chance),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def diagnostics_section(numbers: Record) -> Markup:
    """Show densities, dead units, collapse and overlap of every arm and level."""
    title = "7. Diagnostics"
    found = numbers["diagnostics"]
    if not found["rows"]:
        return section("diagnostics", title, note_of("No network was diagnosed."))
    words = (
        "A weight is effective if it lies on a path from an input to an output. A unit is dead if it lies on none; it is "
        "silent for an example if its activation is zero there (close to zero, if it is no ReLU). Silent by the mask are "
        "units that nothing varying enters; all silence is measured on validation examples. A network has collapsed if a "
        "layer has no weight left or no path leads through it. Means over networks, then over replicates."
    )
    is_dynamic = any(row["exploration_rate"] is not None for row in found["rows"])
    listed = table(
        "What masks and training left",
        [
            *("arm", "level", "#weights kept", "#effective", "#effective parameters", "#collapsed", "#dead units"),
            *("#silent by the mask", "#silent activations"),
            *(("#first mask kept", "#ever active") if is_dynamic else ()),
        ],
        [
            [
                arm_name(numbers, row["arm"]),
                level_name(numbers, row["sparsity"]),
                percent(row["density_prunable"], digits=2),
                percent(row["effective_density"], digits=2),
                whole(row["effective_params"]),
                f"{row['n_collapsed']:,} of {row['n_networks']:,}",
                whole(row["n_dead_units"]),
                percent(row["static_dead_fraction"], digits=1),
                percent(row["dynamic_dead_fraction"], digits=1),
                *(
                    (percent(row["mask_overlap"], digits=1), percent(row["exploration_rate"], digits=1))
                    if is_dynamic
                    else ()
                ),
            ]
            for row in found["rows"]
        ],
        grouped=True,
    )
    several = len({row["sparsity"] for row in found["rows"] if row["sparsity"] > 0}) > 1
    described = "Share of silent activations of each arm against sparsity; the table has the same numbers."
    drawn = chart("silence", described) if several else ""
    return section("diagnostics", title, paragraph(words), drawn, listed, _overlap_table(numbers))


def _overlap_table(numbers: Record) -> str:
    rows = numbers["diagnostics"]["overlaps"]
    if not rows:
        return ""
    words = (
        "Masks of one arm in different replicates: the share of its entries that two of them have in common, what chance "
        "alone would give masks with the same count in each layer, and where it stands between chance (0) and the most "
        "that these counts allow (100%). Units of networks that began with unlike weights are not the same units; what "
        "such masks share is the shape of the layers and the inputs."
    )
    listed = table(
        "Overlap of masks between replicates",
        ["arm", "level", "#masks", "#in common", "#by chance", "#beyond chance"],
        [
            [
                arm_name(numbers, row["arm"]),
                level_name(numbers, row["sparsity"]),
                whole(row["n_masks"]),
                percent(row["shared"], digits=2),
                percent(row["expected"], digits=2),
                percent(row["beyond_chance"], digits=2),
            ]
            for row in rows
        ],
        grouped=True,
    )
    return f"<h3>Overlap of masks</h3>\n{paragraph(words)}{listed}"
