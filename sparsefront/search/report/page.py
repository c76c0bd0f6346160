"""One HTML page that shows the numbers of a study, and needs nothing but a browser to be read.

Charts are drawn in the browser with plotly.js, which is inlined once, by ``charts.js`` and ``page.js`` in one script;
tables and their small graphics are static, so that they print and work without scripts. Whatever a user or a failed
training could have put into a name or a message is escaped, and the page's Content-Security-Policy allows its own two
scripts and no network at all.

Not here: where the numbers come from (``numbers``), and what is said about them (``sections``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import pyarrow as pa
from plotly.offline import get_plotlyjs

from sparsefront.search.design import Design
from sparsefront.search.findings import Verdict
from sparsefront.search.report.diagnosed import Masks
from sparsefront.search.report.diagnostics import diagnostics_section
from sparsefront.search.report.markup import text
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


def fill_page(numbers: Record, *, answer: str, sections: Sequence[str], script: str) -> str:
    """Fill the frame that all reports share.

    Args:
        numbers: embedded as JSON for the script; has the study's name and the verdict's headline.
        answer: HTML below the headline.
        sections: HTML.
        script: file of this package that draws the charts, with what ``charts.js`` defines before it.

    Returns:
        The page.
    """
    # A browser reads \r\n as \n before it compares a script with its hash, and ends a script at the first </script.
    plotly = get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script")
    drawing = f"\n{_resource('charts.js')}\n{_resource(script)}"
    return string.Template(_resource("page.html")).substitute(
        title=text(numbers["study"]["name"]),
        policy=_policy(plotly, drawing),
        style=_resource("page.css"),
        headline=text(numbers["verdict"]["headline"]),
        answer=answer,
        sections="\n".join(sections),
        data=script_json(numbers),
        plotly=plotly,
        script=drawing,
    )


def write_page(page: str, path: Path) -> None:
    """Write a page beside its place and rename it, so that nobody reads half a page.

    Raises:
        OSError: if the file can't be written.
    """
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _resource(name: str) -> str:
    """A file of this package, as text."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Give the Content-Security-Policy that allows these scripts, inline styles and nothing else.

    Plotly sets styles while it draws, and saves a chart as an image through blob: and data: addresses.
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def script_json(value: object) -> str:
    r"""Write JSON that can stand inside a script element, whatever its strings are.

    >>> script_json("</script>")
    '"\\u003c/script\\u003e"'
    """
    plain = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
