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
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError, nearest
from sparsefront.spaces.candidate import canonical_json
from sparsefront.spaces.canonical import canonical_bits
from sparsefront.spaces.constraints import Constraint
from sparsefront.spaces.domains import Bits, Choice, Domain, Float, Integer, Point, Value, shown
from sparsefront.spaces.masks import draw as draw_masks
from sparsefront.spaces.masks import mask_digest, pack_bits
from sparsefront.spaces.ready import with_ready
from sparsefront.spaces.seeds import philox_key, raw_rows
from sparsefront.spaces.structure import Structure

Unit = npt.NDArray[np.float64]
Key = npt.NDArray[np.uint64]
#: Study keys that a point sets -> what of them changes the network or its training, in one form for all that are equal.
Effect = Callable[[Mapping[str, Any]], Mapping[str, Any]]

#: Sections of a study whose keys may be searched, in the order of the dimensions.
SECTIONS = ("model", "masks", "training", "data")
#: The allocation whose shares are dimensions of the space.
SEARCHED = "searched"

_MAX_DEPTH = 64
_MAX_DIMENSIONS = 1000
_MAX_CHOICES = 1000
#: Smallest share of a section, relative to the largest.
_MIN_SHARE = 0.01
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
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
}


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
class _Context:
    """What a table needs besides itself to become a space."""

    bits: Bits | None = None
    n_sections: int | None = None
    known_keys: tuple[str, ...] | None = None
    structure: Structure | None = None
    mask_kind: str = "weight"
    effect: Effect | None = None


@dataclass(frozen=True)
class Space:
    """Dimensions, constraints, and keys that are fixed; read from a table by `from_table`.

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
    _context: _Context = field(default=_Context(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.dimensions) > _MAX_DIMENSIONS:
            raise SpaceError(f"space of {len(self.dimensions)} dimensions: at most {_MAX_DIMENSIONS:,} are searched")
        before: dict[str, Dimension] = {}
        for dimension in self.dimensions:
            name, condition = dimension.name, dimension.condition
            if not _NAME.fullmatch(name):
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
        return _Reader(_Context(bits, n_sections, known, structure, mask_kind, effect)).read(table)

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
            if isinstance(part, _Listed):
                if key == "masks.shares":
                    continue
                depth = part.depth
                entries[name] = {
                    **_entry_of(part.places[0].domain),
                    "depth": len(part.places) if depth is None else _entry_of(depth.domain),
                }
            else:
                entries[name] = True if isinstance(part.domain, Bits) else _entry_of(part.domain)
        ordered: dict[str, Any] = {s: dict(sorted(table[s].items())) for s in SECTIONS if s in table}
        if self.constraints:
            ordered["constraints"] = [str(c) for c in self.constraints]
        if _Reader(self._context).read(ordered) != self:
            raise SpaceError("space: its dimensions are not what any [space] table yields")
        return ordered

    def to_toml(self) -> str:
        """The sections ``[space]`` and ``[space.*]`` of a study file."""
        table = self.to_table()
        lines = ["[space]"]
        if "constraints" in table:
            lines.append(f"constraints = {_toml(table['constraints'])}")
        for section in SECTIONS:
            if section in table:
                lines += ["", f"[space.{section}]", *(f"{k} = {_toml(v)}" for k, v in table[section].items())]
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
        return _Reader(self._context).read(_merged(self.to_table(), table))

    # What it is ------------------------------------------------------------------------------------------------------

    @property
    def constants(self) -> dict[str, Any]:
        """Study keys that the space fixes."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.fixed}

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
        return tuple(d for d in self.dimensions if not isinstance(d.domain, Bits))

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
        size: int | float = 1
        for root in self.dimensions:
            if root.condition is not None:
                continue
            children = [d for d in self.dimensions if d.condition and d.condition.dimension == root.name]
            if children and root.domain.n_values != math.inf:
                size *= sum(
                    math.prod(d.domain.n_values for d in children if d.condition and d.condition.allows(value))
                    for value in _values(root.domain)
                )
            else:
                size *= root.domain.n_values
        return size

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each dimension's column: float64, int64, bool or string (bits by their digest)."""
        return tuple((d.name, _column(d.domain)) for d in self.dimensions)

    def describe(self) -> str:
        """The space in a few lines: size, dimensions, fixed keys, constraints."""
        size = self.size
        many = "infinitely many points" if size == math.inf else f"{_count(int(size))} points"
        lines = [f"{len(self.dimensions)} dimension{'s' * (len(self.dimensions) != 1)}, {many}"]
        width = max((len(n) for n in self.names), default=0)
        for d in self.dimensions:
            c = d.condition
            when = (
                ""
                if c is None
                else f" where {c.dimension} " + (f">= {c.at_least}" if c.at_least is not None else f"= {c.equals!s}")
            )
            lines.append(f"  {d.name:<{width}}  {_describe(d.domain)}{when}  [{d.key}]")
        lines += [f"  {key} = {_toml(list(v) if isinstance(v, tuple) else v)} (fixed)" for key, v in self.fixed]
        lines += [f"  {c}" for c in self.constraints]
        return "\n".join(lines)

    # Points ----------------------------------------------------------------------------------------------------------

    def draw_unit(self, key: Key, start: int, stop: int) -> Unit:
        """Coordinates of draws `start`..`stop` under `key`: (stop - start, n_cube) float64, uniform in [0, 1).

        A column depends on the key, its dimension's name and the draw's number only.
        """
        unit = np.empty((stop - start, self.n_cube), dtype=np.float64)
        for column, dimension in enumerate(self.cube):
            words = raw_rows(_named_key(key, dimension.name), start=start, stop=stop, width=2)
            unit[:, column] = ((words[:, 0] >> 5) * float(1 << 26) + (words[:, 1] >> 6)) / float(1 << 53)
        return unit

    def draw(self, key: Key, start: int, stop: int) -> list[Point]:
        """Points number `start`..`stop` under `key`, each independent of the range it is drawn in."""
        bits: list[bytes] | None = None
        if self.bits is not None:
            domain = self.bits.domain
            assert isinstance(domain, Bits)
            masks = draw_masks(domain.sections, domain.kept, _named_key(key, self.bits.name), start=start, stop=stop)
            bits = [row.tobytes() for row in pack_bits(masks)]
        return self.decode(self.draw_unit(key, start, stop), bits)

    def encode(self, points: Sequence[Point]) -> Unit:
        """Coordinates of points: (n, n_cube) float64 in [0, 1], NaN where a dimension is inactive."""
        unit = np.empty((len(points), self.n_cube), dtype=np.float64)
        for column, dimension in enumerate(self.cube):
            name, encode = dimension.name, dimension.domain.encode  # type: ignore[union-attr]
            unit[:, column] = [encode(p[name]) if name in p else math.nan for p in points]
        return unit

    def decode(self, unit: npt.ArrayLike, bits: Sequence[bytes] | None = None) -> list[Point]:
        """Points at coordinates.

        Args:
            unit: (n, n_cube) in [0, 1] (clipped); coordinates of inactive dimensions are ignored.
            bits: n packed masks, where the space has mask bits.

        Raises:
            SpaceError: another shape, NaN in an active dimension, or bits missing.
        """
        array = np.asarray(unit, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] != self.n_cube:
            raise SpaceError(f"coordinates of shape {array.shape}: (n, {self.n_cube}) is needed")
        if (self.bits is None) != (bits is None) or (bits is not None and len(bits) != len(array)):
            raise SpaceError(
                f"bits={None if bits is None else len(bits)}: must be given for each point, if the space has mask bits"
            )
        missing = np.isnan(array)
        whole = np.where(missing, 0.0, array) if missing.any() else array
        values: dict[str, Sequence[Value]] = {}
        active: dict[str, list[bool]] = {}
        column = 0
        for d in self.dimensions:
            on = None
            if d.condition is not None:
                on = [d.condition.allows(v) for v in values[d.condition.dimension]]
                active[d.name] = on
            if isinstance(d.domain, Bits):
                assert bits is not None
                values[d.name] = [d.domain.clip(b) for b in bits]
                continue
            values[d.name] = d.domain.decode_all(whole[:, column])
            if missing[:, column].any() and (missing[:, column] & (True if on is None else np.array(on))).any():
                raise SpaceError(f"coordinates: NaN in dimension {d.name!r}, which is active")
            column += 1
        names = self.names
        if not active:
            return (
                [dict(zip(names, row, strict=True)) for row in zip(*values.values(), strict=True)]
                if names
                else [{} for _ in array]
            )
        always = [True] * len(array)
        rows = zip(
            zip(*values.values(), strict=True), zip(*(active.get(n, always) for n in names), strict=True), strict=True
        )
        return [{n: v for n, v, a in zip(names, row, on, strict=True) if a} for row, on in rows]

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
                raise SpaceError(f"point: {d.name}={shown(point[d.name])}: must be {_describe(d.domain)}")
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
        for key, part in self._parts:
            if isinstance(part, Dimension):
                if part.name in point:
                    settings[key] = point[part.name]
            else:
                listed = [point[d.name] for d in part.places if d.name in point]
                if listed:
                    settings[key] = listed
        return settings

    @cached_property
    def _share_names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.dimensions if d.key == "masks.shares")

    @cached_property
    def _parts(self) -> tuple[tuple[str, Dimension | _Listed], ...]:
        """What sets each key: one dimension, or the places of a list with its length."""
        grouped: dict[str, list[Dimension]] = {}
        for d in self.dimensions:
            grouped.setdefault(d.key, []).append(d)
        parts: list[tuple[str, Dimension | _Listed]] = []
        for key, members in grouped.items():
            places = tuple(d for d in members if re.fullmatch(rf"(\w+_)?{_singular(key)}_\d+", d.name))
            if places:
                parts.append((key, _Listed(places, next((d for d in members if d not in places), None))))
            else:
                parts += [(key, d) for d in members]
        return tuple(parts)


@dataclass(frozen=True)
class _Listed:
    """Dimensions that together set a list, and the one that sets its length."""

    places: tuple[Dimension, ...]
    depth: Dimension | None


class _Reader:
    """Turns tables into spaces; every refusal names its place."""

    def __init__(self, context: _Context) -> None:
        self.context = context
        self.dimensions: list[Dimension] = []
        self.fixed: list[tuple[str, Any]] = []

    def read(self, table: Mapping[str, Any]) -> Space:
        """The space that `table` describes."""
        if not isinstance(table, Mapping):
            raise SpaceError(f"space={shown(table)}: must be a table of the sections {', '.join(SECTIONS)}")
        table = with_ready(table)
        for name in table:
            if name not in (*SECTIONS, "constraints"):
                raise SpaceError(f"space.{_key(name)}: {nearest(str(name), (*SECTIONS, 'constraints', 'ready'))}")
        for section in SECTIONS:
            entries = table.get(section, {})
            if not isinstance(entries, Mapping):
                raise SpaceError(f"space.{section}={shown(entries)}: must be a table of keys to search")
            for name in entries:
                if not isinstance(name, str) or not _NAME.fullmatch(name):
                    raise SpaceError(
                        f"space.{section}.{_key(name)}: a key must be at most 64 letters, digits and '_', and no "
                        "digit first"
                    )
            for name in sorted(entries):
                self._read_entry(section, name, entries[name])
                if len(self.dimensions) > _MAX_DIMENSIONS:
                    raise SpaceError(
                        f"space.{section}.{name}: makes more than {_MAX_DIMENSIONS:,} dimensions; search fewer keys"
                    )
        return Space(self._renamed(), self._constraints(table), tuple(self.fixed), self.context)

    def _constraints(self, table: Mapping[str, Any]) -> tuple[Constraint, ...]:
        texts = table.get("constraints", [])
        if not isinstance(texts, list | tuple):
            raise SpaceError(f"space.constraints={shown(texts)}: must be a list, as in ['n_params <= 20_000']")
        try:
            return tuple(Constraint.parse(text) for text in texts)
        except SpaceError as error:
            raise SpaceError(f"space.constraints: {error}") from error

    def _read_entry(self, section: str, name: str, entry: object) -> None:
        key = f"{section}.{name}"
        where = f"space.{key}"
        if key == "masks.shares":
            raise SpaceError(f"{where}: is searched where masks.allocation may be {SEARCHED!r}; write that instead")
        if self.context.known_keys is not None and key not in self.context.known_keys:
            inside = [k.split(".", 1)[1] for k in self.context.known_keys if k.startswith(f"{section}.")]
            raise SpaceError(f"{where}={shown(entry)}: no such key can be searched; it {nearest(name, inside)}")
        if key == "masks.bits":
            self._read_bits(where, entry)
        elif isinstance(entry, Mapping):
            if "depth" in entry:
                self._read_list(section, name, entry)
            else:
                domain = _domain(where, entry, also=("depth",) if section == "model" else ())
                ends = (
                    [(".choices", v) for v in domain.values]
                    if isinstance(domain, Choice)
                    else [(".low", domain.low), (".high", domain.high)]
                )
                _check_limits(where, key, ends)
                self.dimensions.append(Dimension("mask_draw" if key == "masks.draw" else name, key, domain))
        else:
            self.fixed.append((key, _constant(where, entry)))
            _check_limits(where, key, [("", self.fixed[-1][1])])
        if key == "masks.allocation":
            self._read_shares(where)

    def _read_bits(self, where: str, entry: object) -> None:
        if not isinstance(entry, bool):
            raise SpaceError(f"{where}={shown(entry)}: must be true or false")
        if entry and self.context.bits is None:
            raise SpaceError(
                f"{where}=true: the bits of a mask are searched only where the architecture and the sparsity are fixed"
            )
        if entry:
            assert self.context.bits is not None
            self.dimensions.append(Dimension("mask_bits", "masks.bits", self.context.bits))

    def _read_shares(self, where: str) -> None:
        """Shares of the sections, where the allocation just read may be searched."""
        condition: Condition | None = None
        if self.fixed and self.fixed[-1][0] == "masks.allocation":
            if self.fixed[-1][1] != SEARCHED:
                return
        else:
            domain = self.dimensions[-1].domain
            if not isinstance(domain, Choice) or not domain.contains(SEARCHED):
                return
            condition = Condition("allocation", equals=SEARCHED)
        n = self.context.n_sections
        if n is None:
            raise SpaceError(f"{where}={SEARCHED!r}: needs the number of sections of a mask, which is not known here")
        self.dimensions += [
            Dimension(f"share_{i}", "masks.shares", Float(_MIN_SHARE, 1.0), condition) for i in range(1, n + 1)
        ]

    def _read_list(self, section: str, name: str, entry: Mapping[str, Any]) -> None:
        """A list of the model: its length, and one dimension for each place."""
        key, where = f"{section}.{name}", f"space.{section}.{name}"
        if section != "model" or _singular(key) == name:
            raise SpaceError(f"{where}.depth: only lists of the model (widths, channels) have a depth")
        domain = _domain(where, {k: v for k, v in entry.items() if k != "depth"}, also=("depth",))
        if isinstance(domain, Integer) and domain.low < 1:
            raise SpaceError(f"{where}.low={domain.low}: must be at least 1")
        depth = entry["depth"]
        longest, shortest = depth, depth
        if isinstance(depth, Mapping):
            lengths = _domain(f"{where}.depth", depth)
            if not isinstance(lengths, Integer) or lengths.log or lengths.step != 1:
                raise SpaceError(f"{where}.depth={shown(depth)}: must be an integer or {{low, high}} of integers")
            shortest, longest = lengths.low, lengths.high
            self.dimensions.append(Dimension("depth", key, lengths))
        if isinstance(longest, bool) or not isinstance(longest, int) or not 1 <= shortest <= longest <= _MAX_DEPTH:
            raise SpaceError(f"{where}.depth={shown(depth)}: must lie in 1..{_MAX_DEPTH}")
        self.dimensions += [
            Dimension(f"{_singular(key)}_{i}", key, domain, Condition("depth", at_least=i) if i > shortest else None)
            for i in range(1, longest + 1)
        ]

    def _renamed(self) -> tuple[Dimension, ...]:
        """Dimensions whose names are unique: those that two sections share are prefixed by their section.

        So is 'steps': as a column of the ledger it says how many were done, and not how many were chosen.
        """
        owners = {(d.name, d.key.split(".")[0]) for d in self.dimensions}
        names = Counter(name for name, _ in owners)
        shared = {name for name, n in names.items() if n > 1 or name == "steps"}
        if not shared:
            return tuple(self.dimensions)

        def new(name: str, key: str) -> str:
            return f"{key.split('.')[0]}_{name}" if name in shared else name

        return tuple(
            Dimension(
                new(d.name, d.key),
                d.key,
                d.domain,
                d.condition and Condition(new(d.condition.dimension, d.key), d.condition.at_least, d.condition.equals),
            )
            for d in self.dimensions
        )


def _domain(where: str, entry: Mapping[str, Any], *, also: Iterable[str] = ()) -> Float | Integer | Choice:
    """The domain that one entry describes."""
    known = (*_RANGE, *_CHOICES, *_FLAG, *also)
    for name in entry:
        if name not in known:
            raise SpaceError(f"{where}.{_key(name)}={shown(entry[name])}: {nearest(str(name), known)}")
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


def _check_limits(where: str, key: str, ends: Iterable[tuple[str, Any]]) -> None:
    """Refuse values, given with their place in the entry, that the key can have nowhere."""
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


def _constant(where: str, value: object) -> Any:
    """A bare value: a scalar, or a list of scalars as a tuple."""
    if isinstance(value, list | tuple):
        if not value or any(isinstance(v, list | tuple | Mapping) for v in value):
            raise SpaceError(f"{where}={shown(value)}: must be a value, a list of values, or a table of what to search")
        return tuple(_constant(where, v) for v in value)
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise SpaceError(f"{where}={shown(value)}: must be a finite number, text, a flag, or a table of what to search")
    return value


def _merged(below: Mapping[str, Any], above: object) -> dict[str, Any]:
    """Tables of sections, the entries of `above` in place of those of `below`."""
    if not isinstance(above, Mapping):
        raise SpaceError(f"space={shown(above)}: must be a table of the sections {', '.join(SECTIONS)}")
    merged = dict(below)
    for name, entries in with_ready(above).items():
        both = isinstance(entries, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = {**merged[name], **entries} if both else entries
    return merged


def _named_key(key: Key, name: str) -> Key:
    """Key of one dimension's draws under the key of a space's."""
    return philox_key(int(key[0]), f"space/{name}", int(key[1]))


def _singular(key: str) -> str:
    """What one place of a list is called: 'model.widths' -> 'width'."""
    name = key.rsplit(".", 1)[-1]
    return name[:-1] if len(name) > 1 and name.endswith("s") else name


def _key(name: object) -> str:
    """A key as a path shows it: bare if it can be, else quoted."""
    return name if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) else shown(name)


def _values(domain: Domain) -> Iterator[Value]:
    """All values of a domain that conditions refer to."""
    if isinstance(domain, Choice):
        yield from domain.values
    elif isinstance(domain, Integer):
        yield from range(domain.low, domain.high + 1, domain.step)


def _column(domain: Domain) -> str:
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


def _entry_of(domain: Domain) -> dict[str, Any]:
    """The entry that `_domain` reads as this domain."""
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


def _describe(domain: Domain) -> str:
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


def _count(n: int) -> str:
    return f"{n:,}" if n < 10**15 else f"about 10^{math.log10(n):.0f}"


def _toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return repr(value)
