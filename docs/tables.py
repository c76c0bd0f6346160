"""Write the documentation's tables from the registries: `python docs/tables.py` (a test compares them)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from sparsefront.listing import listing
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.schema import COLUMNS
from sparsefront.spaces.allocations import ALLOCATIONS
from sparsefront.study import Section, Study
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


def study() -> str:
    """docs/study.md: every key of a study with its default."""
    head = (
        "# Keys of a study\n\nA study is a TOML file. Keys without a default must be written. `[data]` and `[model]` "
        "also take the options of the data set and the parent they name ([choices.md](choices.md)). `[compute]` and "
        "`[record]` are no part of a study's identity and may change when it is resumed.\n"
    )
    parts = [head]
    sections = {"": Study, **{n: f.annotation for n, f in Study.model_fields.items() if _is_section(f.annotation)}}
    for name, model in sections.items():
        assert model is not None
        rows = [
            [f"`{key}`", _accepted(field), "" if field.is_required() else f"`{_default(field.get_default())}`"]
            for key, field in model.model_fields.items()
            if not _is_section(field.annotation)
        ]
        about = "" if model is Study else f"{(model.__doc__ or '').strip()}\n\n"
        parts.append(
            f"## {f'[{name}]' if name else 'Top level'}\n\n{about}" + _table(["key", "accepted", "default"], rows)
        )
    return "\n".join(parts)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _accepted(field: FieldInfo) -> str:
    """Type and bounds of a key."""
    origin = get_origin(field.annotation)
    if origin is Literal:
        return " or ".join(f"`{v}`" for v in get_args(field.annotation))
    inner, metadata, prefix = field.annotation, field.metadata, ""
    if origin is tuple:
        inner, prefix = get_args(field.annotation)[0], "list of "
        if get_origin(inner) is Annotated:
            inner, *metadata = get_args(inner)
            metadata = [bound for one in metadata for bound in getattr(one, "metadata", [one])]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {getattr(m, key):,}" for m in metadata for key, sign in signs.items() if hasattr(m, key)]
    names = {int: "whole number", float: "number", str: "string", bool: "`true` or `false`"}
    return " ".join([prefix + names.get(inner, str(inner)), *bounds])


def _default(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


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


PAGES = {"columns.md": columns, "choices.md": choices, "study.md": study}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
