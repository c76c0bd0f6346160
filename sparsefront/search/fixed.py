"""What an arm trains with where other arms search: their columns hold it too, so that filters see all candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sparsefront.spaces.allocations import ALLOCATIONS
from sparsefront.spaces.describing import column_type
from sparsefront.spaces.dimensions import Listed, parts_of
from sparsefront.spaces.domains import Bits, Value
from sparsefront.spaces.patterns import parse_pattern
from sparsefront.spaces.space import Space

#: The method of a mask that is drawn.
_DRAWN = "random"
_SECTIONS = ("model", "masks", "training", "resolved")
_PYTHON: Mapping[str, tuple[type, ...]] = {"float64": (int, float), "int64": (int,), "bool": (bool,), "string": (str,)}


class _Column(NamedTuple):
    """A dimension of another arm: the study key that it sets, its type, and of a list its place, 0 for the length."""

    key: str
    kind: str
    place: int | None = None


@dataclass(frozen=True)
class Fixed:
    """Dimensions that an arm does not search and others do, and the study, which says what spaces do not."""

    columns: Mapping[str, _Column] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, space: Space, spaces: Mapping[str, Space], study: Mapping[str, Any]) -> Fixed:
        """What `space` leaves to the others of `spaces`, in a resolved study."""
        columns: dict[str, _Column] = {}
        for other in spaces.values():
            for key, part in parts_of(other.dimensions):
                if isinstance(part, Listed):
                    named = [*([] if part.depth is None else [(0, part.depth)]), *enumerate(part.places, start=1)]
                    columns |= {d.name: _Column(key, column_type(d.domain), place) for place, d in named}
                elif not isinstance(part.domain, Bits):
                    columns[part.name] = _Column(key, column_type(part.domain))
        own = {name: column for name, column in columns.items() if name not in space.by_name}
        return cls(own, {name: study[name] for name in _SECTIONS if name in study})

    def values(self, settings: Mapping[str, Any]) -> dict[str, Value]:
        """What the columns hold of a candidate that sets these study keys; no entry where it has no such thing.

        >>> space, other = (Space.from_table({"model": {"widths": w}, "training": {"lr": lr}})
        ...                 for w, lr in ([[8, 4], {"low": 0.1, "high": 1.0}],
        ...                               [{"low": 2, "high": 8, "depth": {"low": 1, "high": 3}}, 0.5]))
        >>> study = {"model": {"widths": [16]}, "masks": {"kind": "weight"}, "training": {"lr": 0.1}}
        >>> Fixed.of(space, {"a": space, "b": other}, study).values({"model.widths": [8, 4], "training.lr": 0.3})
        {'depth': 2, 'width_1': 8, 'width_2': 4}
        """
        found: dict[str, Value] = {}
        for name, (key, kind, place) in self.columns.items():
            section, _, option = key.partition(".")
            value: Any = self._of_masks(option, settings) if section == "masks" else self._said(key, settings)
            if place is not None:
                listed = value if isinstance(value, list | tuple) else ()
                value = len(listed) if not place else listed[place - 1] if place <= len(listed) else None
            # What another arm searches among numbers, this one may have as a name, or not at all.
            if _is_of(kind, value):
                found[name] = value
        return found

    def _said(self, key: str, settings: Mapping[str, Any]) -> Any:
        """The value of a key: the candidate's, or that of the study."""
        section, _, option = key.partition(".")
        return settings.get(key, self.study.get(section, {}).get(option))

    def _of_masks(self, name: str, settings: Mapping[str, Any]) -> Any:
        """A key of masks: what of it takes effect may be said by another one."""
        method = self._said("masks.method", settings) or _DRAWN
        is_drawn = method == _DRAWN and "masks.bits" not in settings
        of_method = {} if method == _DRAWN else self._of_method(method)
        pattern, kind = None, self._said("masks.kind", settings)
        if kind == "weight":
            said = None if "masks.bits" in settings else self._said("masks.pattern", settings)
            pattern = said if said not in (None, "unstructured") else of_method.get("pattern", "unstructured")
        density = None if pattern is None else parse_pattern(pattern).density  # of N:M, whatever sparsity is asked for
        value = self._said(f"masks.{name}", settings)
        if name == "method":
            return method if is_drawn or of_method else None
        if name == "pattern":
            return pattern
        if name == "sparsity":
            return value if density is None else 1 - density
        if name == "allocation":
            if density is not None or "counts_of" in of_method:
                return None
            own = of_method.get("allocation")
            is_fit = own is not None and kind in ALLOCATIONS[own].kinds  # else it gives way to the study's
            return own if is_fit and "masks.allocation" not in settings else value
        if name == "draw":
            is_random = of_method.get("score") == "random" or of_method.get("update") in ("set", "rigl")
            return (value or 0) if is_drawn or is_random else None
        return of_method.get(name) if value is None else value

    def _of_method(self, name: str) -> Mapping[str, Any]:
        """What a method is, as the study was resolved."""
        resolved = self.study.get("resolved", {})
        found: Mapping[str, Any] = resolved.get("methods", {}).get(name) or resolved.get("method", {})
        return found


def _is_of(kind: str, value: object) -> bool:
    """Whether a column of a kind can hold a value."""
    return isinstance(value, _PYTHON[kind]) and isinstance(value, bool) == (kind == "bool")
