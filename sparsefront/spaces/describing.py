"""A space in words and numbers: its domains, its columns, and how many points it has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from sparsefront.spaces.constraints import Constraint
from sparsefront.spaces.dimensions import Dimension
from sparsefront.spaces.domains import Bits, Choice, Domain, Float, Integer, Value
from sparsefront.spaces.entries import toml


def describe(
    dimensions: Sequence[Dimension], fixed: Sequence[tuple[str, Any]], constraints: Sequence[Constraint]
) -> str:
    """A space in a few lines: size, dimensions, fixed keys, constraints."""
    size = size_of(dimensions)
    many = "infinitely many points" if size == math.inf else f"{_count(int(size))} points"
    lines = [f"{len(dimensions)} dimension{'s' * (len(dimensions) != 1)}, {many}"]
    width = max((len(d.name) for d in dimensions), default=0)
    for d in dimensions:
        c = d.condition
        when = (
            ""
            if c is None
            else f" where {c.dimension} " + (f">= {c.at_least}" if c.at_least is not None else f"= {c.equals!s}")
        )
        lines.append(f"  {d.name:<{width}}  {described(d.domain)}{when}  [{d.key}]")
    lines += [f"  {key} = {toml(list(v) if isinstance(v, tuple) else v)} (fixed)" for key, v in fixed]
    lines += [f"  {c}" for c in constraints]
    return "\n".join(lines)


def size_of(dimensions: Sequence[Dimension]) -> int | float:
    """How many points dimensions span; infinity if one of them is continuous."""
    size: int | float = 1
    for root in dimensions:
        if root.condition is not None:
            continue
        children = [d for d in dimensions if d.condition and d.condition.dimension == root.name]
        if children and root.domain.n_values != math.inf:
            size *= sum(
                math.prod(d.domain.n_values for d in children if d.condition and d.condition.allows(value))
                for value in _values(root.domain)
            )
        else:
            size *= root.domain.n_values
    return size


def described(domain: Domain) -> str:
    """A domain in words."""
    if isinstance(domain, Bits):
        kept = (
            f"{domain.kept[0]} of {domain.size}"
            if domain.is_global
            else ", ".join(f"{k} of {n}" for k, n in zip(domain.kept, domain.sections, strict=True))
        )
        return f"a mask that keeps {kept}"
    if isinstance(domain, Choice):
        return f"one of {', '.join(map(str, domain.values))}"
    kind = "an integer" if isinstance(domain, Integer) else "a number"
    step = f" in steps of {domain.step}" if isinstance(domain, Integer) and domain.step != 1 else ""
    return f"{kind} in {domain.low!r}..{domain.high!r}{step}{' (log)' if domain.log else ''}"


def column_type(domain: Domain) -> str:
    """Type of a dimension's column: float64, int64, bool or string (bits by their digest)."""
    if isinstance(domain, Float):
        return "float64"
    if isinstance(domain, Integer):
        return "int64"
    if isinstance(domain, Bits):
        return "string"
    value = domain.values[0]
    if isinstance(value, bool):
        return "bool"
    return "string" if isinstance(value, str) else "int64" if isinstance(value, int) else "float64"


def _count(n: int) -> str:
    return f"{n:,}" if n < 10**15 else f"about 10^{math.log10(n):.0f}"


def _values(domain: Domain) -> Iterator[Value]:
    """All values of a domain that conditions refer to."""
    if isinstance(domain, Choice):
        yield from domain.values
    elif isinstance(domain, Integer):
        yield from range(domain.low, domain.high + 1, domain.step)
