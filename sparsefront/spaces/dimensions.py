"""Dimensions of a space: their names, study keys, domains and conditions, and which of them set a list together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparsefront.errors import SpaceError
from sparsefront.spaces.domains import Domain, Point, Value, shown

#: Sections of a study whose keys may be searched, in the order of the dimensions.
SECTIONS = ("model", "masks", "training", "data")
#: The allocation whose shares are dimensions of the space.
SEARCHED = "searched"
MAX_DIMENSIONS = 1000
#: What a key of a study, and the name of a dimension, looks like.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Condition:
    """When a dimension is active: another one is at least, or equal to, a value."""

    dimension: str
    at_least: int | None = None
    equals: Value | None = None

    def allows(self, value: object) -> bool:
        """Whether the other dimension's value makes this one active."""
        if self.at_least is not None:
            return isinstance(value, int | float) and value >= self.at_least
        return isinstance(value, bool) == isinstance(self.equals, bool) and value == self.equals

    def holds(self, point: Point) -> bool:
        """Whether the dimension is active in a point."""
        return self.dimension in point and self.allows(point[self.dimension])


@dataclass(frozen=True)
class Dimension:
    """One coordinate of a space.

    Attributes:
        name: column of the ledger and of points: 'lr', 'depth', 'width_2', 'share_1', 'mask_bits'.
        key: study key that it sets, alone or with others: 'training.lr', 'model.widths', 'masks.shares', 'masks.bits'.
        domain: its values.
        condition: when it is active; None: always.
    """

    name: str
    key: str
    domain: Domain
    condition: Condition | None = None

    def is_active(self, point: Point) -> bool:
        """Whether a point has a value here; conditions look at dimensions before this one."""
        return self.condition is None or self.condition.holds(point)


@dataclass(frozen=True)
class Listed:
    """Dimensions that together set a list, and the one that sets its length."""

    places: tuple[Dimension, ...]
    depth: Dimension | None


def check_dimensions(dimensions: Sequence[Dimension]) -> None:
    """Refuse dimensions that make no space.

    Raises:
        SpaceError: names that repeat or are no identifiers, conditions on what does not come before.
    """
    if len(dimensions) > MAX_DIMENSIONS:
        raise SpaceError(f"space of {len(dimensions)} dimensions: at most {MAX_DIMENSIONS:,} are searched")
    before: dict[str, Dimension] = {}
    for dimension in dimensions:
        name, condition = dimension.name, dimension.condition
        if not NAME.fullmatch(name):
            raise SpaceError(f"space: dimension {shown(name)}: its name must be at most 64 letters, digits and '_'")
        if name in before:
            raise SpaceError(
                f"space.{dimension.key}: would be dimension {name!r}, which space.{before[name].key} is; search "
                "one of them"
            )
        if condition is not None and (condition.dimension not in before or before[condition.dimension].condition):
            raise SpaceError(
                f"space: dimension {name!r} depends on {condition.dimension!r}: that must be an unconditional "
                "dimension before it"
            )
        before[name] = dimension


def parts_of(dimensions: Sequence[Dimension]) -> tuple[tuple[str, Dimension | Listed], ...]:
    """What sets each key: one dimension, or the places of a list with its length."""
    grouped: dict[str, list[Dimension]] = {}
    for d in dimensions:
        grouped.setdefault(d.key, []).append(d)
    parts: list[tuple[str, Dimension | Listed]] = []
    for key, members in grouped.items():
        places = tuple(d for d in members if re.fullmatch(rf"(\w+_)?{singular(key)}_\d+", d.name))
        if places:
            parts.append((key, Listed(places, next((d for d in members if d not in places), None))))
        else:
            parts += [(key, d) for d in members]
    return tuple(parts)


def singular(key: str) -> str:
    """What one place of a list is called: 'model.widths' -> 'width'."""
    name = key.rsplit(".", 1)[-1]
    return name[:-1] if len(name) > 1 and name.endswith("s") else name
