"""The section on what became of the trained networks: densities, dead units, collapse, overlap of masks, stability.

Not here: the numbers (``diagnosed``), and the chart, which ``page.js`` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sparsefront.search.report.diagnosed import STABLE_BELOW
from sparsefront.search.report.markup import (
    UNKNOWN,
    Markup,
    bullets,
    chart,
    details,
    paragraph,
    percent,
    section,
    table,
    whole,
)
from sparsefront.search.report.numbers import Record
from sparsefront.search.report.sections import arm_name, level_name, note_of


def diagnostics_section(numbers: Record) -> Markup:
    """Show densities, dead units, collapse, stability and overlap of every arm and level."""
    title = "7. Diagnostics"
    found = numbers["diagnostics"]
    measured = (_fresh_table(numbers), _qualities_table(numbers), _stability_table(numbers))
    if not found["rows"]:
        return section("diagnostics", title, note_of("No network was diagnosed."), *measured)
    words = (
        "Shares are of the parent's weights, of all its trained parameters, and of its multiply-accumulates (MACs). "
        "A weight is effective if it lies on a path from an input to an output. A unit is dead if it lies on none; it "
        "is silent for an example if its activation is zero there (close to zero, if it is no ReLU). Silent by the "
        "mask are units that nothing varying enters; silence is measured on validation examples. A network has "
        "collapsed if a layer has no weight left or no path leads through it. Means over networks, then replicates."
    )
    is_dynamic = any(row["exploration_rate"] is not None for row in found["rows"])
    listed = _table_by_level(
        numbers,
        "What masks and training left",
        [
            *("#weights kept", "#of all parameters", "#of MACs", "#effective", "#effective parameters"),
            *("#collapsed", "#dead units"),
            *("#silent by the mask", "#silent activations"),
            *(("#overlap with first mask", "#ever active") if is_dynamic else ()),
        ],
        found["rows"],
        lambda row: (
            percent(row["density_prunable"], digits=2),
            percent(row["density_total"], digits=2),
            percent(row["density_macs"], digits=2),
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
        ),
    )
    several = len({row["sparsity"] for row in found["rows"] if row["sparsity"] > 0}) > 1
    described = "Share of silent activations of each arm against sparsity; the table has the same numbers."
    drawn = chart("silence", described) if several else ""
    return section("diagnostics", title, paragraph(words), drawn, listed, *measured, _overlap_table(numbers))


def _table_by_level(
    numbers: Record,
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Record],
    cells: Callable[[Record], Sequence[str]],
) -> Markup:
    """A table with one row for each arm and level."""
    listed = [[arm_name(numbers, row["arm"]), level_name(numbers, row["sparsity"]), *cells(row)] for row in rows]
    return table(caption, ["arm", "level", *columns], listed, grouped=True)


def _fresh_table(numbers: Record) -> str:
    """Show errors on a sample that was drawn anew; nothing if there is none."""
    rows = numbers["fresh_sample"]
    if not rows:
        return ""
    words = (
        "All networks of a study are tested on the same examples. A fresh sample is as large, and the same generator "
        "draws it under another seed: what a result loses there was of these examples. Means over networks, then "
        "replicates."
    )
    listed = _table_by_level(
        numbers,
        "Test errors, and those on a fresh sample",
        ["#networks", "#test error", "#on the fresh sample", "#increase"],
        rows,
        lambda row: (
            whole(row["n_networks"]),
            percent(row["test_error"], digits=2),
            percent(row["fresh_error"], digits=2),
            percent(row["fresh_error_increase"], digits=2),
        ),
    )
    return f"<h3>Fresh sample</h3>\n{paragraph(words)}{listed}"


def _qualities_table(numbers: Record) -> str:
    """Show what the study's qualities came to; nothing if it has none."""
    columns, rows = numbers["qualities"]["columns"], numbers["qualities"]["rows"]
    if not columns:
        return ""
    words = (
        "What the study measured of its trained networks besides their error. Changes and losses are against the "
        "trained parent. Means over networks, then replicates; ± gives Student's 95% "
        "interval over replicates, and is left out of a single one."
    )
    listed = _table_by_level(
        numbers,
        "Qualities of the trained networks",
        [f"#{column['text']}" for column in columns],
        rows,
        lambda row: [_quality(column, row["means"][column["name"]]) for column in columns],
    )
    return f"<h3>Qualities</h3>\n{paragraph(words)}{details('Qualities as a table', listed)}"


def _quality(column: Record, found: tuple[float, float | None, float | None] | None) -> str:
    """A mean with half the width of its interval."""
    if found is None:
        return UNKNOWN
    mean, low, _ = found
    scale, unit = (100, "%") if column["is_fraction"] else (1, "")
    half = "" if low is None else f" ± {scale * (mean - low):{'.2f' if unit else '.2g'}}"
    return f"{scale * mean:{'.2f' if unit else '.4g'}}{unit}{half}".replace("-", "−")


def _stability_table(numbers: Record) -> str:
    """Show how far apart siblings end; nothing if there are none."""
    rows, families = numbers["stability"]["rows"], numbers["stability"]["smallest_stable"]
    if not rows:
        return ""
    words = (
        "A sibling has the same start and the same mask, and another order of the data. Instability is by how much the "
        "validation error (loss) at the worst point on the straight line between the two exceeds the mean of its ends; "
        f"below {100 * STABLE_BELOW:g}% of error a network is stable. Means over networks, then replicates."
    )
    listed = _table_by_level(
        numbers,
        "Instability of networks with siblings",
        ["#rewound to step", "#instability", "#of the loss", "#stable"],
        rows,
        lambda row: (
            UNKNOWN if row["rewind_step"] is None else whole(row["rewind_step"]),
            percent(row["instability_error"], digits=2),
            UNKNOWN if row["instability_loss"] is None else f"{row['instability_loss']:.4g}",
            f"{row['n_stable']:,} of {row['n_networks']:,}",
        ),
    )
    found = bullets(
        (
            f"Smallest stable rewind at {100 * family['sparsity']:.4g}%: "
            + ("none of those tried" if family["rewind_step"] is None else f"step {family['rewind_step']:,}")
            + f" ({', '.join(family['arms'])}; from it on all that were tried are stable on average)"
            for family in families
        ),
        css="sentences",
    )
    return f"<h3>Stability</h3>\n{paragraph(words)}{listed}{found}"


def _overlap_table(numbers: Record) -> str:
    rows = numbers["diagnostics"]["overlaps"]
    if not rows:
        return ""
    words = (
        "Masks of one arm in different replicates: the share of their entries that two of them have in common, what "
        "chance alone would give masks with the same count in each layer, and where it stands between chance (0) and "
        "the most that these counts allow (100%). Units of networks that began with unlike weights are not the same "
        "units; what such masks share is which inputs they look at. Drawn masks share what chance gives them, and are "
        "not listed."
    )
    listed = _table_by_level(
        numbers,
        "Overlap of masks between replicates",
        ["#masks", "#in common", "#by chance", "#beyond chance"],
        rows,
        lambda row: (
            whole(row["n_masks"]),
            percent(row["shared"], digits=2),
            percent(row["expected"], digits=2),
            percent(row["beyond_chance"], digits=2),
        ),
    )
    return f"<h3>Overlap of masks</h3>\n{paragraph(words)}{listed}"
