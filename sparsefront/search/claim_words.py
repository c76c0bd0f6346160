"""Judged claims in words: rows of a table on a terminal, a table of the documentation, and plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from sparsefront.search.claims import ClaimEffect, ClaimFinding
from sparsefront.search.findings import as_written, plain_data
from sparsefront.search.metrics import METRIC_OF_TASK, METRICS
from sparsefront.search.wording import shown_p, shown_pairs

#: Lines between which a page holds the table.
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"

_HEADS = (
    "study", "claim", "scale of the original", "scale here", "what is tested", "effect and interval", "verdict"
)  # fmt: skip


def claim_rows(findings: Sequence[ClaimFinding]) -> list[dict[str, str]]:
    """Format what was found for a table, one row for each test at each sparsity; empty where nothing is known."""
    return [
        {
            "study": finding.study,
            "tested": difference_of(effect),
            "sparsity": f"{effect.sparsity:g}",
            "metric": effect.metric,
            "expected": effect.expect,
            "arm mean": _shown(effect.arm_mean, effect.metric),
            "against mean": _shown(effect.against_mean, effect.metric),
            "difference": _signed(effect.difference, effect.metric),
            "interval": _range(effect),
            "unit": _unit(effect.metric),
            "p": shown_p(effect.p_adjusted),
            "p equivalence": shown_p(effect.p_equivalence_adjusted),
            "pairs": shown_pairs(effect.n, effect.n_missing),
            "verdict": effect.verdict,
            "note": effect.note,
        }
        for finding in findings
        for effect in finding.tests
    ]


def claim_dict(finding: ClaimFinding) -> dict[str, object]:
    """Give a finding as plain data for JSON; NaN becomes null."""
    values = dataclasses.asdict(finding)
    values["tests"] = [as_written(effect) for effect in values["tests"]]
    return plain_data({**values, "is_finished": finding.is_finished})


def difference_of(effect: ClaimEffect) -> str:
    """Say which difference it is."""
    return f"{effect.arm} - {effect.against}" + (f", less that of {effect.than}" if effect.than else "")


def whole(finding: ClaimFinding) -> str:
    """The verdict on a claim, and whether it may still change."""
    if finding.is_finished:
        return finding.verdict
    return f"{finding.verdict} (not finished: {finding.n_trained:,} of {finding.n_planned:,} networks trained)"


def claims_markdown(findings: Sequence[ClaimFinding]) -> str:
    """One table, a row for each claim: what is claimed, at which scale, what was tested here, and what came of it."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + " --- |" * len(_HEADS)]
    for finding in findings:
        claim = finding.claim
        cells = (
            f"`{finding.study}`",
            f"{_cell(claim.claim)} ({_cell(claim.paper)})",
            _cell(claim.original_scale),
            _cell(claim.our_scale),
            "<br>".join(_tested_cell(effect) for effect in finding.tests),
            "<br>".join(_effect_cell(effect, alpha=finding.alpha) for effect in finding.tests),
            f"**{whole(finding)}**",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def replaced(page: str, table: str) -> str:
    r"""A page with the table between its two marks; the table alone where it has none.

    >>> print(replaced("\n".join(["# Title", BEGIN, "old", END, "rest"]), "new\n"))
    # Title
    <!-- claims: begin -->
    new
    <!-- claims: end -->
    rest
    """
    before, begin, rest = page.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    return f"{before}{begin}{table}{end}{after}" if begin and end else table


def _tested_cell(effect: ClaimEffect) -> str:
    metric = "" if effect.metric in METRIC_OF_TASK.values() else f", `{effect.metric}`"
    return f"{difference_of(effect)}{metric} at {effect.sparsity:g}: {effect.expect}"


def _effect_cell(effect: ClaimEffect, *, alpha: float) -> str:
    if not effect.n:
        return f"not known ({_cell(effect.note)})"
    unit = _unit(effect.metric)
    interval = f"{100 * (1 - alpha):g}% {_range(effect)}" if _range(effect) else "one pair"
    return (
        f"{_signed(effect.difference, effect.metric)}{f' {unit}' if unit else ''} ({interval}; n = {effect.n}): "
        f"{effect.verdict}"
    )


def _cell(text: str) -> str:
    """Text that stays in one cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _unit(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""


def _signed(value: float, metric: str) -> str:
    if not math.isfinite(value):
        return ""
    if metric not in METRICS:
        return f"{value:+.3g}"
    return f"{METRICS[metric].scale * value:+.{METRICS[metric].digits}f}"


def _shown(value: float, metric: str) -> str:
    if not math.isfinite(value):
        return ""
    return METRICS[metric].shown(value) if metric in METRICS else f"{value:.4g}"


def _range(effect: ClaimEffect) -> str:
    if not math.isfinite(effect.low):
        return ""
    return f"{_signed(effect.low, effect.metric)} to {_signed(effect.high, effect.metric)}"
