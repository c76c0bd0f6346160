"""One entry of a space's table: what it lets vary or fixes, and a domain written as such an entry again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparsefront.errors import SpaceError, nearest
from sparsefront.spaces.domains import Bits, Choice, Domain, Float, Integer, shown
from sparsefront.spaces.patterns import Pattern, parse_pattern

_MAX_CHOICES = 1000
#: Characters of a pattern, beyond which its numbers are no sizes of anything.
_MAX_NAME = 40
_RANGE, _CHOICES, _FLAG = ("low", "high", "log", "int", "step"), ("choices",), ("flag",)
#: Bounds that a key has wherever it is used: lowest, highest, whether each is included, whether it is whole.
_LIMITS: Mapping[str, tuple[float, float, str, bool]] = {
    "masks.sparsity": (0.0, 1.0, "[)", False),
    "masks.draw": (0.0, 2.0**31, "[)", True),
    "masks.rate": (0.001, 0.999, "[]", False),
    "masks.ap_fraction": (0.0, 0.999, "[]", False),
    "masks.rewind_fraction": (0.0, 1.0, "[)", False),
    "training.lr": (0.0, math.inf, "()", False),
    "training.weight_decay": (0.0, math.inf, "[)", False),
    "training.beta1": (0.0, 1.0, "[)", False),
    "training.beta2": (0.0, 1.0, "[)", False),
    "training.momentum": (0.0, 1.0, "[)", False),
    "training.label_smoothing": (0.0, 1.0, "[)", False),
    "training.batch_size": (1.0, 1e8, "[]", True),
    "training.steps": (1.0, 1e8, "[]", True),
    "training.data_fraction": (0.0, 1.0, "(]", False),
    "training.warmup_fraction": (0.0, 1.0, "[)", False),
}
_KINDS = ("node", "weight")


def domain_of(where: str, entry: Mapping[str, Any], *, also: Iterable[str] = ()) -> Float | Integer | Choice:
    """The domain that one entry describes."""
    known = (*_RANGE, *_CHOICES, *_FLAG, *also)
    for name in entry:
        if name not in known:
            raise SpaceError(f"{where}.{shown_key(name)}={shown(entry[name])}: {nearest(str(name), known)}")
    given = set(entry)
    forms = [form for form in (_RANGE, _CHOICES, _FLAG) if given & set(form)]
    if len(forms) != 1:
        raise SpaceError(
            f"{where}={shown(dict(entry))}: must be one of {{low, high}}, {{choices}}, {{flag = true}} and a bare value"
        )
    try:
        if forms[0] is _FLAG:
            if entry["flag"] is not True:
                raise SpaceError(
                    f"flag={shown(entry['flag'])}: must be true; write a value that does not vary as it is"
                )
            return Choice((False, True))
        if forms[0] is _CHOICES:
            choices = entry["choices"]
            if not isinstance(choices, list | tuple) or not 1 <= len(choices) <= _MAX_CHOICES:
                raise SpaceError(f"choices={shown(choices)}: must be a list of 1 to {_MAX_CHOICES:,} values")
            return Choice(tuple(choices))
        for name in ("low", "high"):
            if name not in entry:
                raise SpaceError(f"{name} is missing; a range needs low and high")
        return _range(entry)
    except SpaceError as error:
        raise SpaceError(f"{where}.{error}") from error


def _range(entry: Mapping[str, Any]) -> Float | Integer:
    """An Integer if both bounds are written as integers, unless `int` says otherwise."""
    low, high, log, step = entry["low"], entry["high"], entry.get("log", False), entry.get("step")
    is_whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (low, high))
    as_integer = entry.get("int", is_whole)
    if not isinstance(as_integer, bool):
        raise SpaceError(f"int={shown(as_integer)}: must be true or false")
    if not as_integer:
        if step is not None:
            raise SpaceError(f"step={shown(step)}: only ranges of integers have a step")
        return Float(low, high, log)
    whole = []
    for name in ("low", "high"):
        value = entry[name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        whole.append(value)
    return Integer(whole[0], whole[1], log, 1 if step is None else step)


def check_limits(where: str, key: str, ends: Sequence[tuple[str, Any]]) -> None:
    """Refuse values, given with their place in the entry, that the key can have nowhere."""
    for name, value in ends:
        if key == "masks.kind" and value not in _KINDS:
            raise SpaceError(f"{where}{name}={shown(value)}: {nearest(str(value), _KINDS)}")
        if key == "masks.pattern":
            checked_pattern(f"{where}{name}", value)
    if key not in _LIMITS:
        return
    lowest, highest, included, is_whole = _LIMITS[key]
    for name, value in ends:
        if not isinstance(value, int | float) or isinstance(value, bool) or (is_whole and not isinstance(value, int)):
            raise SpaceError(f"{where}{name}={shown(value)}: must be {'an integer' if is_whole else 'a number'}")
        if (
            not lowest <= value <= highest
            or (included[0] == "(" and value == lowest)
            or (included[1] == ")" and value == highest)
        ):
            raise SpaceError(f"{where}{name}={value!r}: must lie in {included[0]}{lowest:g}, {highest:g}{included[1]}")


def checked_pattern(where: str, value: object) -> Pattern:
    """The pattern of weight masks that `value` names.

    Raises:
        SpaceError: it names none.
    """
    if not isinstance(value, str) or len(value) > _MAX_NAME:
        raise SpaceError(f"{where}={shown(value)}: must be a name in quotes, as in '2:4'")
    try:
        pattern = parse_pattern(value)
    except SpaceError as error:
        raise SpaceError(f"{where}={shown(value)}: {str(error).partition(': ')[2]}") from error
    if pattern.kind != "weight":
        raise SpaceError(f"{where}={shown(value)}: is no pattern of weight masks; write masks.kind = 'node' instead")
    return pattern


def one_value(values: Sequence[object]) -> str:
    """What to do about a list of values where there can be one.

    >>> one_value(["adam", "sgd"])
    'is one value of all candidates; to search these, write { choices = ["adam", "sgd"] }'
    """
    return f"is one value of all candidates; to search these, write {{ choices = {toml(list(values))} }}"


def constant_of(where: str, value: object) -> Any:
    """A bare value: a scalar, or a list of scalars as a tuple."""
    if isinstance(value, list | tuple):
        if not value or any(isinstance(v, list | tuple | Mapping) for v in value):
            raise SpaceError(f"{where}={shown(value)}: must be a value, a list of values, or a table of what to search")
        return tuple(constant_of(where, v) for v in value)
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise SpaceError(f"{where}={shown(value)}: must be a finite number, text, a flag, or a table of what to search")
    return value


def entry_of(domain: Domain) -> dict[str, Any]:
    """The entry that `domain_of` reads as this domain."""
    if isinstance(domain, Choice):
        return (
            {"flag": True}
            if domain.values == (False, True) and domain.values[0] is False
            else {"choices": list(domain.values)}
        )
    assert not isinstance(domain, Bits)
    entry: dict[str, Any] = {"low": domain.low, "high": domain.high}
    if domain.log:
        entry["log"] = True
    if isinstance(domain, Integer) and domain.step != 1:
        entry["step"] = domain.step
    return entry


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    return repr(value)


def shown_key(name: object) -> str:
    """A key as a path shows it: bare if it can be, else quoted."""
    return name if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) else shown(name)
