"""Write the documentation's tables from the registries: `python docs/tables.py` (a test compares them)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsefront.listing import listing
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.schema import COLUMNS
from sparsefront.spaces.allocations import ALLOCATIONS
from sparsefront.trainables.pruning import CRITERIA

FOLDER = Path(__file__).parent
_LISTED = {
    "methods": "Arms of a study",
    "strategies": "Strategies",
    "models": "Parents",
    "datasets": "Data sets",
}


def columns() -> str:
    """docs/columns.md: the ledger's columns."""
    rows = [
        [f"`{c.name}`", str(c.type).replace("|", ""), "yes" if c.hyperparameter else "", c.meaning] for c in COLUMNS
    ]
    return (
        "# Columns of the ledger\n\nOne row is one thing that happened to one candidate. Losses are in nats, errors "
        "are fractions; `--where` filters on any column but those named `test_*`.\n\n"
        + _table(["column", "type", "hyperparameter", "meaning"], rows)
    )


def choices() -> str:
    """docs/choices.md: everything that is chosen by name."""
    parts = ["# What there is to choose from\n"]
    for what, title in _LISTED.items():
        found = listing(what)
        heads = ["name", *next(iter(found.values()))]
        parts.append(f"## {title}\n\n" + _table(heads, [[name, *facts.values()] for name, facts in found.items()]))
    allocations = [[n, a.summary, " and ".join(a.kinds)] for n, a in ALLOCATIONS.items()]
    parts.append("## Allocations\n\n" + _table(["name", "what", "divides masks of"], allocations))
    criteria = [[n, c.summary, c.source] for n, c in CRITERIA.items()]
    parts.append("## Pruning criteria\n\n" + _table(["name", "what", "source"], criteria))
    objectives = [[n, o.label, o.unit, "higher" if o.higher_is_better else "lower"] for n, o in OBJECTIVES.items()]
    parts.append("## Objectives\n\n" + _table(["name", "what", "unit", "better"], objectives))
    return "\n".join(parts)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


PAGES = {"columns.md": columns, "choices.md": choices}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
