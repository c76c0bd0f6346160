"""Write the documentation's tables from the registries: `python docs/tables.py` (a test compares them)."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from sparsefront.listing import listing
from sparsefront.search.methods import PRUNERS
from sparsefront.search.schema import COLUMNS
from sparsefront.search.strategies import STRATEGIES
from sparsefront.spaces.patterns import PATTERNS
from sparsefront.spaces.pruning import RANGES, Pruning
from sparsefront.spaces.ready import READY_SPACES
from sparsefront.spaces.space import Space
from sparsefront.study import MaskStudy, SearchStudy, Section, Study
from sparsefront.study.sections import ArmSection
from sparsefront.trainables.quality import QUALITIES

FOLDER = Path(__file__).parent
#: What the command `list` knows -> its title here.
_LISTED = {
    "methods": "Arms of a study of masks",
    "scores": "Scores of pruning methods",
    "patterns": "Patterns of masks",
    "updates": "Masks that change while a network trains",
    "controls": "Matched controls of an arm",
    "strategies": "Strategies of a search",
    "rungs": "Rungs",
    "spaces": "Ready spaces",
    "models": "Parents",
    "datasets": "Data sets",
    "allocations": "Allocations",
}


def columns() -> str:
    """docs/columns.md: the ledger's columns."""
    rows = [
        [f"`{c.name}`", str(c.type).replace("|", ""), "yes" if c.hyperparameter else "", c.meaning] for c in COLUMNS
    ]
    return (
        "# Columns of the ledger\n\nOne row is one thing that happened to one candidate. Losses are in nats, errors "
        "are fractions; `--where` filters on any column but those that are measured on test examples: `test_*`, and "
        "those of qualities.\n\n"
        + _table(["column", "type", "hyperparameter", "meaning"], rows)
        + "\n## Columns of qualities\n\nA ledger has those of the qualities that the study's key `quality` names "
        "([diagnostics.md](diagnostics.md#qualities)), all measured on test examples. Those that `verdict.objectives` "
        "names, with the prefix `val_`, are measured on validation examples besides, and are columns under that name."
        "\n\n" + _table(["column", "quality", "better", "meaning"], _quality_columns())
    )


def _quality_columns() -> list[list[str]]:
    return [
        [f"`{column}`", name, "" if c.better == "neither" else c.better, c.meaning]
        for name, quality in QUALITIES.items()
        for column, c in quality.columns.items()
    ]


def study() -> str:
    """docs/study.md: every key of both kinds of study with its default."""
    head = (
        "# Keys of a study\n\nA study is a TOML file. With a `[space]` it is a search, without one a study of masks. "
        "Keys without a default must be written. `[data]` and `[model]` also take the options of the data set and the "
        "parent they name ([choices.md](choices.md)). `[compute]`, `[record]` and `[claim]` are no part of a study's "
        "identity and may change when it is resumed.\n"
    )
    parts = [
        head,
        *_keys_of(Study, "Keys of every study", {}),
        *_keys_of(MaskStudy, "Keys of a study of masks", Study.model_fields),
        *_keys_of(SearchStudy, "Keys of a search", Study.model_fields),
    ]
    return "\n".join(parts)


def _keys_of(kind: type[Study], title: str, known: Mapping[str, FieldInfo]) -> list[str]:
    """One kind of study: its keys, then its sections; without what is the same in `known`."""
    own = {name: field for name, field in kind.model_fields.items() if _is_news(field, known.get(name))}
    top = {name: field for name, field in own.items() if _section_of(field) is None and name not in _EXPLAINED}
    parts = [f"## {title}\n"]
    if top:
        parts += ["At the top of the file:\n", _table(_HEADS, _rows(top))]
    for name, field in own.items():
        section = _section_of(field)
        if section is None:
            if name in _EXPLAINED:
                parts.append(f"### [{name}]\n\n{_EXPLAINED[name]}\n")
            elif name == "arms":
                parts.append(_arms_of_masks())
            continue
        heading = f"{name}.NAME" if get_origin(field.annotation) is dict else name
        general = _section_of(known[name]) if name in known else None
        inherited = general.model_fields if general is not None and issubclass(section, general) else {}
        news = {key: f for key, f in section.model_fields.items() if key not in inherited}
        about = (section.__doc__ or "").strip() + (" The keys above, and:" if inherited else "")
        about = "\n".join(line.strip() for line in about.splitlines())
        parts.append(f"### [{heading}]\n\n{about}\n\n" + _table(_HEADS, _rows(news)))
        for key, inner in news.items():
            if get_origin(inner.annotation) is tuple and (listed := _section_of(inner)) is not None:
                about = " ".join((listed.__doc__ or "").split())
                parts.append(f"### [[{name}.{key}]]\n\n{about}\n\n" + _table(_HEADS, _rows(listed.model_fields)))
    return parts


def _arms_of_masks() -> str:
    """The keys of an arm of a study of masks: its own, and the fields of its pruning method."""
    own = [
        [f"`{key}`", _NAMED.get(key, _accepted(f)), _DEFAULTS.get(key, f"`{_default(f.default)}`"), f.description or ""]
        for key, f in ArmSection.model_fields.items()
    ]
    meanings = dict(re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(Pruning) or "", re.MULTILINE))
    bounds = {name: f">= {low:,.10g} <= {high:,.10g}" for name, low, high in RANGES}
    hints = get_type_hints(Pruning)
    rows = []
    for field in dataclasses.fields(Pruning):
        accepted = _NAMED.get(field.name, f"{_plain(hints[field.name])} {bounds.get(field.name, '')}".rstrip())
        default = _DEFAULTS[field.name] if field.name in _DEFAULTS else f"`{_default(field.default)}`"
        meaning = " ".join(meanings[field.name].split()).removesuffix(".").replace("None for", "left out:")
        rows.append([f"`{field.name}`", accepted, default, meaning])
    about = (
        "In place of a list of names: one section for each arm, empty for a method as it is. A method with keys of its "
        "own (any but `dense`, `random`, `searched`, `searched_scalefree`, `worst` and `small_dense`) takes those "
        "below; what a method is made of if they are left out is in [choices.md]"
        "(choices.md#what-the-pruning-methods-are-made-of), and the defaults here are what holds of a method that "
        "says nothing else. A key that has no effect on an arm is refused. See [pruning.md](pruning.md)."
    )
    return f"### [arms.NAME]\n\n{about}\n\n" + _table((*_HEADS, "meaning"), [*own, *rows])


_HEADS = ("key", "accepted", "default")
#: Keys of an arm that hold names: where these are listed.
_NAMED = {
    "method": "a [method](choices.md#arms-of-a-study-of-masks)",
    "controls": "list of [controls](choices.md#matched-controls-of-an-arm)",
    "score": "a [score](choices.md#scores-of-pruning-methods)",
    "counts_of": "a [score](choices.md#scores-of-pruning-methods)",
    "pattern": "a [pattern](choices.md#patterns-of-masks): "
    + ", ".join(f"`{row.form.rpartition('such as ')[2]}`" for row in PATTERNS.values()),
    "allocation": "an [allocation](choices.md#allocations), or `explicit`",
    "densities": "list of numbers > 0 <= 1",
    "ap_sign": "`-1` or `1`",
}
_DEFAULTS = {
    "method": "the arm's name",
    "when": "that of the method",
    "allocation": "that of `[masks]`",
    "counts_of": "left out",
    "update": "left out",
    "decay": "that of the update",
}
#: Sections that are no list of keys.
_EXPLAINED = {"space": "What is searched: see [searching.md](searching.md#the-space)."}
#: Defaults that no field shows, because another part of the study fills them in.
_TAKEN_OVER = {"candidates": "that of `[search]`", "batch": "that of `[search]`", "rungs": "those of `[rungs]`"}


def _is_news(field: FieldInfo, known: FieldInfo | None) -> bool:
    return known is None or known.annotation is not field.annotation


def _section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, alone or under names."""
    inner = get_args(field.annotation)[1] if get_origin(field.annotation) is dict else field.annotation
    if get_origin(inner) in (UnionType, tuple):  # one that may be left out, or a list of them
        inner = get_args(inner)[0]
    return inner if _is_section(inner) else None


def _rows(fields: Mapping[str, FieldInfo]) -> list[list[str]]:
    rows = []
    for key, field in fields.items():
        default = (
            _TAKEN_OVER.get(key, "")
            if field.is_required()
            else f"`{_default(field.get_default(call_default_factory=True))}`"
        )
        rows.append([f"`{key}`", _accepted(field), default])
    return rows


def _is_section(annotation: object) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _accepted(field: FieldInfo) -> str:
    """Type and bounds of a key."""
    return _plain(field.annotation, field.metadata)


def _plain(kind: Any, metadata: Iterable[Any] = (), *, plural: bool = False) -> str:
    """A type and its bounds in words that a user of TOML knows.

    Raises:
        KeyError: a type that there are no words for yet.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        return _plain(inner[0], [b for one in inner[1:] for b in getattr(one, "metadata", [one])], plural=plural)
    if origin in (Union, UnionType):  # TOML has no word for None: the key is left out
        return " or ".join(_plain(one, metadata, plural=plural) for one in inner if one is not NoneType)
    if origin is tuple:
        lengths = {key: getattr(m, key) for m in metadata for key in ("min_length", "max_length") if hasattr(m, key)}
        return f"list of {_how_many(**lengths)}{_plain(inner[0], plural=True)}"
    if origin is dict or _is_section(kind):
        return "tables" if plural else "table"
    if origin is Mapping:
        return "a table for each"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {getattr(m, key):,}" for m in metadata for key, sign in signs.items() if hasattr(m, key)]
    words = {int: "whole number", float: "number", str: "name" if plural else "text", bool: "`true` or `false`"}
    return " ".join([words[kind] + "s" * plural, *bounds])


def _how_many(*, min_length: int = 0, max_length: int | None = None) -> str:
    """How long a list may be, with a blank behind; nothing if as long as one likes."""
    if max_length is None:
        return f"{min_length:,} or more " if min_length else ""
    return f"{min_length:,} to {max_length:,} "


def _default(value: object) -> str:
    return "none" if value is None else json.dumps(list(value) if isinstance(value, tuple) else value)


def choices() -> str:
    """docs/choices.md: everything that is chosen by name."""
    parts = ["# What there is to choose from\n"]
    for what, title in _LISTED.items():
        found = listing(what)
        if what == "strategies":  # their options have a table of their own
            found = {name: {k: v for k, v in facts.items() if k != "options"} for name, facts in found.items()}
        heads = ["name", *next(iter(found.values()))]
        parts.append(f"## {title}\n\n" + _table(heads, [[name, *facts.values()] for name, facts in found.items()]))
        if what == "methods":
            parts.append(_made_of())
        elif what == "strategies":
            parts.append(_strategy_options())
        elif what == "spaces":
            parts.append(_ready_spaces())
    objectives = listing("objectives")
    heads = ["name", *next(iter(objectives.values()))]
    parts.append("## Objectives\n\n" + _table(heads, [[name, *facts.values()] for name, facts in objectives.items()]))
    return "\n".join(parts)


#: An allocation that a method leaves to the study.
_THE_STUDYS = "that of `[masks]`"


def _made_of() -> str:
    """What each pruning method is made of: the keys of `docs/pruning.md` that are not at their defaults."""
    rows = []
    for name, row in PRUNERS.items():
        fields = {"allocation": _THE_STUDYS, **row.method.as_data()}
        if any(row.for_masks(kind) != row.method for kind in row.kinds):
            fields["allocation"] += f"; of nodes {_THE_STUDYS}"
        when, score = fields.pop("when"), fields.pop("score", row.method.score)
        rest = ", ".join(f"{key} = {value}" for key, value in fields.items() if key != "allocation")
        rows.append([name, " and ".join(row.kinds), when, score, fields["allocation"], rest])
    heads = ["name", "masks", "when", "score", "allocation", "other keys"]
    return "### What the pruning methods are made of\n\nSee [pruning.md](pruning.md).\n\n" + _table(heads, rows)


def _strategy_options() -> str:
    rows = [
        [
            name,
            f"`{key}`",
            _accepted(field),
            f"`{_default(field.get_default(call_default_factory=True))}`",
            field.description or "",
        ]
        for name, family in STRATEGIES.items()
        for key, field in family.options.model_fields.items()
    ]
    return "Their options (`options = { ... }` of an arm):\n\n" + _table(
        ["strategy", "option", "accepted", "default", "meaning"], rows
    )


def _ready_spaces() -> str:
    """What each stands for, as a study would write it."""
    blocks = []
    for ready in READY_SPACES.values():
        sections = {"model": ready.model, "masks": ready.masks}
        head = [
            line
            for name, table in sections.items()
            if table
            for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), "")
        ]
        space = Space.from_table(ready.space, n_sections=1).to_toml().removeprefix("[space]\n\n")
        blocks.append("```toml\n" + "\n".join([*head, space.rstrip()]) + "\n```\n")
    named = [
        f'`[space] ready = "{name}"` stands for\n\n{block}' for name, block in zip(READY_SPACES, blocks, strict=True)
    ]
    return "\n".join(named)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]) + "\n"


PAGES = {"columns.md": columns, "choices.md": choices, "study.md": study}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
