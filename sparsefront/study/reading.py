"""Reading a study from TOML, and saying in one line what is wrong with it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sparsefront.errors import ConfigError, did_you_mean, nearest

#: No study is as large as this; a file that is was named by mistake.
_MAX_STUDY_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; a `ConfigError` names the file."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_STUDY_BYTES + 1)
        if len(content) > _MAX_STUDY_BYTES:
            raise ConfigError(f"{path}: is larger than {_MAX_STUDY_BYTES:,} bytes, which no study is; name a TOML file")
        return tomllib.loads(content.decode())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; see examples/ for studies to start from") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML ({error})") from error


def override_key(table: dict[str, Any], override: str) -> None:
    """Apply one ``key=value`` with a dotted key to nested tables."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: must be key=value with a dotted key, e.g. training.steps=500")
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text.strip()
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text.strip()  # a bare word is a string
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    table[parts[-1]] = value


#: What may be forgotten in place of a key that is missing.
_INSTEAD = {"sparsities": ", or add [space] if it is a search"}

#: What is accepted, by the type of pydantic's error; its own words speak of Python.
_ACCEPTED = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text in quotes",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a section of keys and values",
    "model_type": "must be a section of keys and values",
    "literal_error": "must be {expected}",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have {max_length} or fewer values, not {actual_length}",
}


def first_error(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, as key, value and what is accepted."""
    first, *others = error.errors(include_url=False)
    if first["type"] == "missing":  # a key that is misspelt is missing, too
        beside = (e for e in others if e["type"] == "extra_forbidden" and e["loc"][:-1] == first["loc"][:-1])
        first = next(beside, first)
    key = ".".join(str(part) for part in first["loc"])
    context = first.get("ctx", {})
    reason = context.get("error")
    if isinstance(reason, ConfigError):
        text = str(reason)
        return f"{key}.{text}" if key and not text.startswith((f"{key}.", f"{key}=")) else text
    if first["type"] == "extra_forbidden":
        known = keys_beside(model, first["loc"])
        elsewhere = [place for place in _places_of(key, model) if key not in known]
        if elsewhere and "." not in key:
            return (
                f"{key}={shown(first['input'])}: unknown key; must be one of {', '.join(known)}; did you mean "
                f"{' or '.join(map(repr, elsewhere))}?"
            )
        return unknown_key(key, first["input"], known)
    if first["type"] == "missing":
        return f"{key}: is missing and has no default; write it{_INSTEAD.get(key, '')}"
    accepted = _ACCEPTED.get(first["type"], "{message}").format(message=reason or first["msg"], **context)
    if first["type"] == "literal_error":
        accepted += did_you_mean(str(first["input"]), re.findall(r"'([^']*)'", context["expected"]))
    return f"{key}={shown(first['input'])}: {accepted}"


def keys_beside(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Keys that may stand in the section in which the key at `place` stands; none where there is no such section."""
    section: Any = model
    try:
        for part in place[:-1]:
            section = _held(section, part)
        return list(section.model_fields)
    except (AttributeError, KeyError):
        return []


def _places_of(key: str, model: type[BaseModel]) -> list[str]:
    """Where sections of a study have a key: whoever leaves out the section means one of these."""
    sections = {name: field.annotation for name, field in model.model_fields.items()}
    return [f"{name}.{key}" for name, kind in sections.items() if key in getattr(kind, "model_fields", ())]


def _held(kind: Any, part: int | str) -> Any:
    """What a section has under a key, a table under a name (arms), or a list at a place (tests of a claim)."""
    if get_origin(kind) in (dict, tuple):
        found = get_args(kind)[0 if get_origin(kind) is tuple else -1]
    else:
        found = kind.model_fields[part].annotation
    # A section that may be left out is a union with None.
    return get_args(found)[0] if get_origin(found) is UnionType else found


def unknown_key(key: str, value: object, known: Iterable[str]) -> str:
    """Message for a key that does not exist; `key` may be dotted, `known` are the last parts."""
    return f"{key}={shown(value)}: unknown key; {nearest(key.rpartition('.')[2], known)}"


def shown(value: object) -> str:
    """A value as a message quotes it: never more than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
