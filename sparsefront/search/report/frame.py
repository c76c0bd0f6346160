"""The frame that all reports share: one HTML page that needs nothing but a browser to be read.

Charts are drawn in the browser with plotly.js, which is inlined once, by ``charts.js`` and the report's own file in one
script; tables and their small graphics are static, so that they print and work without scripts. Whatever a user or a
failed training could have put into a name or a message is escaped, and the page's Content-Security-Policy allows its
own two scripts and no network at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import string
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from plotly.offline import get_plotlyjs

from sparsefront.search.report.markup import text
from sparsefront.search.report.numbers import Record


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
