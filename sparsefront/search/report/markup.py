"""Pieces of HTML: escaped text, tables and small graphics, and numbers with sensible digits.

Every string is escaped on its way into a piece, unless it is :class:`Markup`.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Sequence

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
#: What is too long for the unit before it: (seconds, name).
_TIME_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


#: What stands for a number that is not known.
UNKNOWN = "–"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Escape anything for use as text or in a quoted attribute, unless it is HTML already.

    >>> text('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def section(name: str, title: str, *parts: str) -> Markup:
    """Wrap HTML parts in a section with a heading; empty parts are left out."""
    inner = "\n".join(part for part in parts if part)
    return Markup(f'<section id="{text(name)}">\n<h2>{text(title)}</h2>\n{inner}\n</section>')


def paragraph(words: str, *, css: str = "") -> Markup:
    """Give one paragraph."""
    return Markup(f"<p{_css(css)}>{text(words)}</p>")


def bullets(items: Iterable[str], *, css: str) -> Markup:
    """Give a list of items; nothing if there are none."""
    inner = "".join(f"<li>{text(item)}</li>" for item in items)
    return Markup(f"<ul{_css(css)}>{inner}</ul>" if inner else "")


def details(summary: str, inner: str) -> Markup:
    """Fold HTML under a line that opens it."""
    return Markup(f"<details><summary>{text(summary)}</summary>\n{inner}\n</details>")


def chart(name: str, description: str) -> Markup:
    """Give the place that the page's script draws a chart into."""
    return Markup(
        f'<div class="chart" id="chart-{text(name)}" role="img" aria-label="{text(description)}">'
        f"<noscript>{text(description)}</noscript></div>"
    )


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], *, grouped: bool = False) -> Markup:
    """Render a table.

    Args:
        caption: what it shows.
        headers: one for each column; a leading '#' marks a column of numbers, '~' one of running text.
        rows: cells, as many as headers.
        grouped: the first cell is no column but the heading of the rows that follow each other with it.
    """
    css = ["number" if h.startswith("#") else "wide" if h.startswith("~") else "" for h in headers]
    n_headings = 1 if grouped else 0

    def cells(tag: str, values: Sequence[str], attributes: str = "") -> str:
        columns = list(zip(css, values, strict=True))[n_headings:]
        return "".join(f"<{tag}{_css(name)}{attributes}>{text(value)}</{tag}>" for name, value in columns)

    head = cells("th", [h.lstrip("#~") for h in headers], ' scope="col"')
    body = []
    for i, row in enumerate(rows):
        if grouped and (i == 0 or row[0] != rows[i - 1][0]):
            heading = f'<th colspan="{len(headers) - 1}" scope="rowgroup">{text(row[0])}</th>'
            body.append(f'<tr class="group">{heading}</tr>\n')
        body.append(f"<tr>{cells('td', row)}</tr>\n")
    return Markup(
        f'<div class="scroll"><table>\n<caption>{text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(body)}</tbody></table></div>"
    )


def interval_graphic(
    mean: float | None, low: float | None, high: float | None, *, margin: float | None, reach: float
) -> Markup:
    """Draw an interval on a scale from -reach to +reach, with the zone from -margin to +margin behind it.

    A mean beyond the scale becomes a triangle at its end.
    """
    if mean is None or not reach > 0:
        return Markup("")

    def x(value: float) -> float:
        return round(100 * (1 + max(-reach, min(reach, value)) / reach), 2)

    parts = []
    label = f"{mean:.4g}"
    if margin:
        parts.append(f'<rect class="margin" x="{x(-margin)}" y="1" width="{x(margin) - x(-margin):.2f}" height="22"/>')
    parts.append('<line class="zero" x1="100" x2="100" y1="1" y2="23"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="range" x1="{x(low)}" x2="{x(high)}" y1="12" y2="12"/>')
        label += f", from {low:.4g} to {high:.4g}"
    if abs(mean) > reach:
        tip, back = (199, 191) if mean > 0 else (1, 9)
        parts.append(f'<path class="mean" d="M{tip} 12 L{back} 6 L{back} 18 Z"/>')
    else:
        parts.append(f'<circle class="mean" cx="{x(mean)}" cy="12" r="4.5"/>')
    return Markup(f'<svg class="interval" viewBox="0 0 200 24" role="img" aria-label="{label}">{"".join(parts)}</svg>')


def percent(fraction: float | None, *, digits: int) -> str:
    """Write a fraction in percent.

    >>> percent(0.12345, digits=2), percent(None, digits=2)
    ('12.35%', '–')
    """
    return UNKNOWN if fraction is None else f"{100 * fraction:.{digits}f}%"


def signed(value: float, *, digits: int) -> str:
    """Write a number with its sign, but a zero without.

    >>> signed(1.234, digits=2), signed(-0.001, digits=2), signed(-5, digits=0)
    ('+1.23', '0.00', '−5')
    """
    shown = f"{value:+.{digits}f}"
    return shown[1:] if float(shown) == 0 else shown.replace("-", "−")


def signed_interval(low: float | None, high: float | None, *, digits: int) -> str:
    """Write an interval; nothing if it is unknown.

    >>> signed_interval(-0.5, 1.25, digits=2)
    '[−0.50, +1.25]'
    """
    return "" if low is None or high is None else f"[{signed(low, digits=digits)}, {signed(high, digits=digits)}]"


def p_value(p: float | None) -> str:
    """Write a p-value with no more digits than it deserves.

    >>> p_value(0.00012), p_value(0.0321), p_value(0.5), p_value(None)
    ('< 0.001', '0.032', '0.50', '–')
    """
    if p is None:
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def whole(n: float | None) -> str:
    """Write a count, or the mean of counts, as a whole number.

    >>> whole(12345.0)
    '12,345'
    """
    return UNKNOWN if n is None else f"{n:,.0f}"


def engineering(value: float | None, *, unit: str = "") -> str:
    """Write a large number with an SI prefix and three digits.

    >>> engineering(12_345_678, unit="FLOP"), engineering(999_999), engineering(0), engineering(950.0)
    ('12.3 MFLOP', '1 M', '0', '950')
    """
    if value is None:
        return UNKNOWN
    value = float(f"{value:.3g}")
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Write a duration in its largest unit and the next one.

    >>> duration(0.0123), duration(59.9), duration(75), duration(7384), duration(200_000)
    ('0.012 s', '1 min 0 s', '1 min 15 s', '2 h 3 min', '2 d 7 h')
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    rest = round(seconds)
    for (size, name), (next_size, next_name) in itertools.pairwise(_TIME_UNITS):
        if rest >= size:
            return f"{rest // size} {name} {rest % size // next_size} {next_name}"
    return f"{rest} s"


def _css(name: str) -> str:
    return f' class="{name}"' if name else ""
