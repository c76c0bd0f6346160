"""One HTML page that shows the numbers of a study.

Not here: the frame that it fills (``frame``), where the numbers come from (``numbers``), and what is said about them
(``sections``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from sparsefront.search.design import Design
from sparsefront.search.findings import Verdict
from sparsefront.search.report.diagnosed import Masks
from sparsefront.search.report.diagnostics import diagnostics_section
from sparsefront.search.report.frame import fill_page, write_page
from sparsefront.search.report.numbers import Record, Scannable, report_numbers
from sparsefront.search.report.sections import (
    accuracy_section,
    answer,
    curve_section,
    front_section,
    loss_section,
    run_section,
    spent_section,
    verdict_section,
    words_section,
)


def write_report(
    rows: Scannable | pa.Table,
    design: Design,
    verdict: Verdict,
    path: Path,
    *,
    provenance: Mapping[str, str],
    masks: Masks | None = None,
) -> None:
    """Write the report of a study as one self-contained HTML file.

    The file is written beside its place and renamed, so that nobody reads half a page.

    Args:
        rows: the ledger (anything with ``scan``), or a table of ``SCHEMA``; may be empty or unfinished.
        design: what was asked.
        verdict: what was concluded from the same rows.
        path: the file to write; an earlier report there is replaced.
        provenance: further facts to print, such as hardware and versions: {name: value}.
        masks: gives the packed bits of stored masks, to compare them; None leaves that out.

    Raises:
        OSError: if the file can't be written.
    """
    write_page(render_page(report_numbers(rows, design, verdict, masks=masks), provenance=provenance), path)


def render_page(numbers: Record, *, provenance: Mapping[str, str]) -> str:
    """Render the numbers of :func:`report_numbers` as one HTML page.

    Args:
        numbers: the study, its arms, charts and verdict, as plain data.
        provenance: further facts to print: {name: value}.

    Returns:
        The page; sections whose numbers are missing say so.
    """
    sections = (
        run_section(numbers, provenance),
        accuracy_section(numbers),
        verdict_section(numbers),
        front_section(numbers),
        loss_section(numbers),
        curve_section(numbers),
        spent_section(numbers),
        diagnostics_section(numbers),
        words_section(numbers),
    )
    return fill_page(numbers, answer=answer(numbers), sections=sections, script="page.js")
