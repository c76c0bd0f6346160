"""What a study searches: named dimensions with their domains and conditions, and the points of the space they span.

A space is written as tables, one for each section of a study (model, masks, training, data)::

    [space.training] lr = { low = 1e-4, high = 1e-1, log = true }
                     optimizer = { choices = ["adam", "sgd"] }
                     nesterov = { flag = true }
    [space.model]    widths = { low = 8, high = 128, log = true, depth = { low = 1, high = 3 } }
    [space.masks]    allocation = { choices = ["uniform", "erk", "searched"] }

A list that has a `depth` becomes one dimension for each place (width_1, width_2, ...), active where the list is that
long; an allocation that may be 'searched' brings one share for each section of the mask; ``bits = true`` searches the
mask itself. A bare value fixes a key. The order of dimensions does not depend on the order of writing.

A *point* holds the values of the active dimensions and nothing else. Points are drawn by number: the draw of a
dimension depends on the key, its name and the candidate's number alone, so that two spaces that share a dimension draw
the same values in it.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError, nearest
from sparsefront.spaces.candidate import canonical_json
from sparsefront.spaces.canonical import canonical_bits
from sparsefront.spaces.constraints import Constraint
from sparsefront.spaces.coordinates import Key, Unit, cube_of, decode, draw_bits, draw_unit, encode
from sparsefront.spaces.describing import column_type, describe, described, size_of
from sparsefront.spaces.dimensions import (
    SEARCHED,
    SECTIONS,
    Condition,
    Dimension,
    Listed,
    check_dimensions,
    parts_of,
)
from sparsefront.spaces.domains import Bits, Choice, Float, Integer, Point, Value, shown
from sparsefront.spaces.entries import entry_of, toml
from sparsefront.spaces.masks import mask_digest
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.structure import Structure
from sparsefront.spaces.tables import Context, Effect, TableReader, merged_tables

__all__ = ["SEARCHED", "SECTIONS", "Condition", "Dimension", "Effect", "Space"]


@dataclass(frozen=True)
class Space:
    """Dimensions, constraints, and keys that are fixed; read from a table by `from_table`.

    >>> import numpy as np
    >>> space = Space.from_table({"training": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}, "optimizer": "sgd"},
    ...                           "model": {"widths": {"low": 8, "high": 64, "depth": {"low": 1, "high": 2}}}})
    >>> [d.name for d in space.dimensions]
    ['depth', 'width_1', 'width_2', 'lr']
    >>> point = space.decode(np.array([[0.2, 0.5, np.nan, 0.5]]))[0]
    >>> point, space.settings(point)
    ({'depth': 1, 'width_1': 36, 'lr': 0.01},
     {'training.optimizer': 'sgd', 'model.widths': [36], 'training.lr': 0.01})

    Raises:
        SpaceError: names that repeat or are no identifiers, conditions on what does not come before.
    """

    dimensions: tuple[Dimension, ...]
    constraints: tuple[Constraint, ...] = ()
    fixed: tuple[tuple[str, Any], ...] = ()
    _context: Context = field(default=Context(), repr=False, compare=False)

    def __post_init__(self) -> None:
        check_dimensions(self.dimensions)

    # Making one ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_table(
        cls,
        table: Mapping[str, Any],
        *,
        bits: Bits | None = None,
        n_sections: int | None = None,
        known_keys: Collection[str] | None = None,
        structure: Structure | None = None,
        mask_kind: str = "weight",
        effect: Effect | None = None,
    ) -> Space:
        """Read a space.

        Args:
            table: the section ``[space]`` of a study: tables by section, 'constraints', 'ready'.
            bits: domain of the mask's bits, for ``masks.bits = true``.
            n_sections: into how many sections a mask is divided, for a searched allocation.
            known_keys: study keys that may be searched or fixed; None: all.
            structure: the parent that searched bits belong to; if given, masks that differ by a permutation of hidden
                units have one digest.
            mask_kind: kind of those masks, 'weight' or 'node'.
            effect: if given, points that differ only in what it leaves out have one digest.

        Raises:
            SpaceError: one line that names ``space.<section>.<key>``, its value and what is accepted.
        """
        known = None if known_keys is None else tuple(sorted(known_keys))
        context = Context(bits, n_sections, known, structure, mask_kind, effect)
        return cls(*TableReader(context).read(table), context)

    def to_table(self) -> dict[str, Any]:
        """The table that `from_table` reads back as this space.

        Raises:
            SpaceError: a space made of dimensions that no table yields.
        """
        table: dict[str, Any] = {}
        for key, value in self.fixed:
            section, name = key.split(".", 1)
            table.setdefault(section, {})[name] = list(value) if isinstance(value, tuple) else value
        for key, part in self._parts:
            section, name = key.split(".", 1)
            entries = table.setdefault(section, {})
            if isinstance(part, Listed):
                if key == "masks.shares":
                    continue
                depth = part.depth
                entries[name] = {
                    **entry_of(part.places[0].domain),
                    "depth": len(part.places) if depth is None else entry_of(depth.domain),
                }
            else:
                entries[name] = True if isinstance(part.domain, Bits) else entry_of(part.domain)
        ordered: dict[str, Any] = {s: dict(sorted(table[s].items())) for s in SECTIONS if s in table}
        if self.constraints:
            ordered["constraints"] = [str(c) for c in self.constraints]
        if Space(*TableReader(self._complete_context).read(ordered)) != self:
            raise SpaceError("space: its dimensions are not what any [space] table yields")
        return ordered

    def to_toml(self) -> str:
        """The sections ``[space]`` and ``[space.*]`` of a study file."""
        table = self.to_table()
        lines = ["[space]"]
        if "constraints" in table:
            lines.append(f"constraints = {toml(table['constraints'])}")
        for section in SECTIONS:
            if section in table:
                lines += ["", f"[space.{section}]", *(f"{k} = {toml(v)}" for k, v in table[section].items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, **context: Any) -> Space:
        """Read what `to_toml` writes; for `context` see `from_table`.

        Raises:
            SpaceError: no TOML, or what `from_table` refuses.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SpaceError(f"space: no valid TOML: {error}") from error
        return cls.from_table(table.get("space", {}), **context)

    def with_overrides(self, table: Mapping[str, Any]) -> Space:
        """This space with entries replaced or added as `table` says; a bare value fixes its key.

        Raises:
            SpaceError: as `from_table`.
        """
        context = self._complete_context
        return Space(*TableReader(context).read(merged_tables(self.to_table(), table, context)), context)

    # What it is ------------------------------------------------------------------------------------------------------

    @property
    def constants(self) -> dict[str, Any]:
        """Study keys that the space fixes."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.fixed}

    @cached_property
    def keys(self) -> frozenset[str]:
        """Study keys that the space searches or fixes."""
        return frozenset(key for key, _ in self.fixed) | {d.key for d in self.dimensions}

    def given(self, key: str) -> list[object]:
        """What is said of a study key: its choices, the ends of its range, its one value, or nothing.

        >>> space = Space.from_table({"training": {"lr": {"low": 0.1, "high": 1.0}, "steps": 5}})
        >>> space.given("training.lr"), space.given("training.steps"), space.given("masks.kind")
        ([0.1, 1.0], [5], [])
        """
        for dimension in self.dimensions:
            if dimension.key == key:
                domain = dimension.domain
                if isinstance(domain, Choice):
                    return list(domain.values)
                return [domain.low, domain.high] if isinstance(domain, Integer | Float) else []
        return [value for fixed, value in self.constants.items() if fixed == key]

    def choices_of(self, key: str, usual: object) -> list[object]:
        """Choices that there are for a study key, or its one value; `usual` where neither is said."""
        for dimension in self.dimensions:
            if dimension.key == key and isinstance(dimension.domain, Choice):
                return list(dimension.domain.values)
        return [self.constants.get(key, usual)]

    def ends_of(self, key: str, usual: float) -> tuple[float, float]:
        """Smallest and largest number that a study key is set to; `usual` where nothing is said."""
        numbers = [value for value in self.given(key) if isinstance(value, int | float)] or [usual]
        return min(numbers), max(numbers)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all dimensions, in order."""
        return tuple(d.name for d in self.dimensions)

    @cached_property
    def by_name(self) -> dict[str, Dimension]:
        """Dimensions by name."""
        return {d.name: d for d in self.dimensions}

    @cached_property
    def cube(self) -> tuple[Dimension, ...]:
        """Dimensions that have a coordinate in the unit cube: all but bits."""
        return cube_of(self.dimensions)

    @property
    def n_cube(self) -> int:
        """How many those are."""
        return len(self.cube)

    @cached_property
    def bits(self) -> Dimension | None:
        """The dimension of searched mask bits, if there is one."""
        return next((d for d in self.dimensions if isinstance(d.domain, Bits)), None)

    @cached_property
    def size(self) -> int | float:
        """How many points it has; infinity if a dimension is continuous."""
        return size_of(self.dimensions)

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each dimension's column: float64, int64, bool or string (bits by their digest)."""
        return tuple((d.name, column_type(d.domain)) for d in self.dimensions)

    def describe(self) -> str:
        """The space in a few lines: size, dimensions, fixed keys, constraints."""
        return describe(self.dimensions, self.fixed, self.constraints)

    # Points ----------------------------------------------------------------------------------------------------------

    def draw_unit(self, key: Key, start: int, stop: int) -> Unit:
        """Coordinates of draws `start`..`stop` under `key`: (stop - start, n_cube) float64, uniform in [0, 1).

        A column depends on the key, its dimension's name and the draw's number only.
        """
        return draw_unit(self.cube, key, start, stop)

    def draw(self, key: Key, start: int, stop: int) -> list[Point]:
        """Points number `start`..`stop` under `key`, each independent of the range it is drawn in."""
        bits = None if self.bits is None else draw_bits(self.bits, key, start, stop)
        return self.decode(self.draw_unit(key, start, stop), bits)

    def corners(self) -> list[Point]:
        """Points that show whether a space fits: all at their lowest, all at their highest, and every choice once."""
        rows = [np.zeros(self.n_cube), np.ones(self.n_cube)]
        for column, dimension in enumerate(self.cube):
            if isinstance(dimension.domain, Choice):
                for value in dimension.domain.values[:-1]:  # the last is the highest
                    rows.append(np.ones(self.n_cube))
                    rows[-1][column] = dimension.domain.encode(value)
        masks = None
        if self.bits is not None:
            drawn = self.draw(philox_key(0, "corner"), 0, 1)[0][self.bits.name]
            assert isinstance(drawn, bytes)
            masks = [drawn] * len(rows)
        return self.decode(np.stack(rows), masks)

    def encode(self, points: Sequence[Point]) -> Unit:
        """Coordinates of points: (n, n_cube) float64 in [0, 1], NaN where a dimension is inactive."""
        return encode(self.cube, points)

    def decode(self, unit: npt.ArrayLike, bits: Sequence[bytes] | None = None) -> list[Point]:
        """Points at coordinates.

        Args:
            unit: (n, n_cube) in [0, 1] (clipped); coordinates of inactive dimensions are ignored.
            bits: n packed masks, where the space has mask bits.

        Raises:
            SpaceError: another shape, NaN in an active dimension, or bits missing.
        """
        return decode(self.dimensions, unit, bits)

    def clip(self, point: Point) -> Point:
        """The nearest point: values clipped to their domains, inactive dimensions left out.

        Raises:
            SpaceError: an active dimension is missing, or a value has no nearest one.
        """
        clipped: dict[str, Value] = {}
        for d in self.dimensions:
            if not d.is_active(clipped):
                continue
            if d.name not in point:
                raise SpaceError(f"point: {d.name} is missing; every active dimension needs a value")
            try:
                clipped[d.name] = d.domain.clip(point[d.name])
            except SpaceError as error:
                raise SpaceError(f"point: {d.name}: {error}") from error
        return clipped

    def check(self, point: Point) -> None:
        """Refuse what is no point of this space.

        Raises:
            SpaceError: a value outside its domain, an active dimension missing, an inactive or unknown one given.
        """
        n_active = 0
        for d in self.dimensions:
            is_active = d.is_active(point)
            n_active += is_active
            if is_active and d.name not in point:
                raise SpaceError(f"point: {d.name} is missing; every active dimension needs a value")
            if not is_active and d.name in point:
                raise SpaceError(f"point: {d.name}={shown(point[d.name])}: this dimension is inactive here")
            if is_active and not d.domain.contains(point[d.name]):
                raise SpaceError(f"point: {d.name}={shown(point[d.name])}: must be {described(d.domain)}")
        if n_active != len(point):
            unknown = next(n for n in point if n not in self.by_name)
            raise SpaceError(f"point: {shown(unknown)} {nearest(str(unknown), self.names)}")

    def contains(self, point: Point) -> bool:
        """Whether it is a point of this space: all active dimensions, no others, values of their domains."""
        try:
            self.check(point)
        except SpaceError:
            return False
        return True

    def canonical(self, point: Point) -> Point:
        """The one form of all points that are the same candidate.

        Dimensions in order, numbers of their domain's type; shares relative to the largest; mask bits as
        `canonical.canonical_bits` arranges them, if the space knows the mask's structure.
        """
        same = dict(self.clip(point))
        shares = [n for n in self._share_names if n in same]
        if shares:
            largest = max(float(same[n]) for n in shares)
            same.update({n: float(same[n]) / largest for n in shares})
        structure = self._context.structure
        if self.bits is not None and structure is not None and self.bits.name in same:
            packed = same[self.bits.name]
            assert isinstance(packed, bytes)
            same[self.bits.name] = canonical_bits(structure, self._context.mask_kind, packed)
        return same

    def digest(self, point: Point, *, exact: bool = False) -> str:
        """Hash of what the point sets, in its canonical form: 32 hex digits.

        It recognises candidates that need no second training. The id of a candidate names the exact network instead.

        Args:
            point: of this space.
            exact: tell all points apart, those too that come to the same candidate.
        """
        settings: Mapping[str, Any] = self.settings(self.clip(point) if exact else self.canonical(point))
        if self._context.effect is not None and not exact:
            settings = self._context.effect(settings)
        named = {k: mask_digest(v) if isinstance(v, bytes) else v for k, v in settings.items()}
        return hashlib.blake2b(canonical_json(named).encode(), digest_size=16).hexdigest()

    def settings(self, point: Point) -> dict[str, Any]:
        """Study keys that a point sets, with the space's constants.

        Lists hold the values of their active places: ``{"training.lr": 0.01, "model.widths": [64, 32]}``.
        """
        settings = self.constants
        for key, names in self._names_of_keys:
            if isinstance(names, str):
                if names in point:
                    settings[key] = point[names]
            else:
                listed = [point[name] for name in names if name in point]
                if listed:
                    settings[key] = listed
        return settings

    @property
    def _complete_context(self) -> Context:
        """What its table needs; of a space made by hand, the dimensions themselves say what a mask has."""
        bits = None if self.bits is None else self.bits.domain
        assert bits is None or isinstance(bits, Bits)
        return replace(
            self._context,
            bits=self._context.bits or bits,
            n_sections=self._context.n_sections or len(self._share_names) or None,
        )

    @cached_property
    def _share_names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.dimensions if d.key == "masks.shares")

    @cached_property
    def _names_of_keys(self) -> tuple[tuple[str, str | tuple[str, ...]], ...]:
        """What sets each key: the name of one dimension, or those of a list's places."""
        return tuple(
            (key, part.name if isinstance(part, Dimension) else tuple(d.name for d in part.places))
            for key, part in self._parts
        )

    @cached_property
    def _parts(self) -> tuple[tuple[str, Dimension | Listed], ...]:
        return parts_of(self.dimensions)
