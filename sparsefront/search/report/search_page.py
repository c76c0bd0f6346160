"""One HTML page that shows the numbers of a search study.

Not here: the frame that it fills (``frame``), where the numbers come from (``search_numbers``), and what is said about
them (``search_sections``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from sparsefront.search.comparison import SearchVerdict
from sparsefront.search.design import SearchDesign
from sparsefront.search.report.frame import fill_page, write_page
from sparsefront.search.report.numbers import Record, Scannable
from sparsefront.search.report.search_numbers import search_report_numbers
from sparsefront.search.report.search_sections import (
    attainment_section,
    comparison_section,
    dimension_section,
    importance_section,
    outcome_section,
    search_answer,
    search_front_section,
    search_run_section,
    search_spent_section,
    search_words_section,
)


def write_search_report(
    rows: Scannable | pa.Table,
    design: SearchDesign,
    verdict: SearchVerdict,
    path: Path,
    *,
    provenance: Mapping[str, str],
) -> None:
    """Write the report of a search study as one self-contained HTML file.

    The file is written beside its place and renamed, so that nobody reads half a page.

    Args:
        rows: the ledger (anything with ``scan``), or a table with its columns; may be empty or unfinished.
        design: what was asked.
        verdict: what was concluded from the same rows.
        path: the file to write; an earlier report there is replaced.
        provenance: further facts to print, such as hardware and versions: {name: value}.

    Raises:
        OSError: if the file can't be written.
    """
    write_page(render_search_page(search_report_numbers(rows, design, verdict), provenance=provenance), path)


def render_search_page(numbers: Record, *, provenance: Mapping[str, str]) -> str:
    """Render the numbers of :func:`search_report_numbers` as one HTML page.

    Args:
        numbers: the study, its arms, charts and verdict, as plain data.
        provenance: further facts to print: {name: value}.

    Returns:
        The page; sections whose numbers are missing say so.
    """
    sections = (
        search_run_section(numbers, provenance),
        comparison_section(numbers),
        attainment_section(numbers),
        search_front_section(numbers),
        outcome_section(numbers),
        importance_section(numbers),
        dimension_section(numbers),
        search_spent_section(numbers),
        search_words_section(numbers),
    )
    return fill_page(numbers, answer=search_answer(numbers), sections=sections, script="search_page.js")
