"""Tables of a study that become spaces; every refusal names its place.

Not here: what one entry of them says (``entries``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsefront.errors import SpaceError, nearest
from sparsefront.spaces.constraints import Constraint
from sparsefront.spaces.dimensions import MAX_DIMENSIONS, NAME, SEARCHED, SECTIONS, Condition, Dimension, singular
from sparsefront.spaces.domains import Bits, Choice, Float, Integer, shown
from sparsefront.spaces.entries import check_limits, constant_of, domain_of, one_value, shown_key
from sparsefront.spaces.ready import with_ready
from sparsefront.spaces.structure import Structure

#: Study keys that a point sets -> what of them changes the network or its training, in one form for all that are equal.
Effect = Callable[[Mapping[str, Any]], Mapping[str, Any]]
#: What a table says: dimensions, constraints, and study keys that are fixed.
Contents = tuple[tuple[Dimension, ...], tuple[Constraint, ...], tuple[tuple[str, Any], ...]]

_MAX_DEPTH = 64
#: Smallest share of a section, relative to the largest.
_MIN_SHARE = 0.01


@dataclass(frozen=True)
class Context:
    """What a table needs besides itself to become a space."""

    bits: Bits | None = None
    n_sections: int | None = None
    known_keys: tuple[str, ...] | None = None
    structure: Structure | None = None
    mask_kind: str = "weight"
    effect: Effect | None = None

    @property
    def sections(self) -> tuple[str, ...]:
        """Sections of which something may be searched."""
        known = self.known_keys
        return tuple(s for s in SECTIONS if known is None or any(key.startswith(f"{s}.") for key in known))


def merged_tables(below: Mapping[str, Any], above: object, context: Context) -> dict[str, Any]:
    """Tables of sections, the entries of `above` in place of those of `below`."""
    if not isinstance(above, Mapping):
        raise SpaceError(f"space={shown(above)}: must be a table of the sections {', '.join(context.sections)}")
    merged = dict(below)
    for name, entries in with_ready(above).items():
        both = isinstance(entries, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = {**merged[name], **entries} if both else entries
    return merged


class TableReader:
    """Reads one table, section by section; what it has read stays in it, so each table needs a reader of its own."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.dimensions: list[Dimension] = []
        self.fixed: list[tuple[str, Any]] = []

    def read(self, table: Mapping[str, Any]) -> Contents:
        """What the section ``[space]`` of a study says.

        Raises:
            SpaceError: one line that names ``space.<section>.<key>``, its value and what is accepted.
        """
        if not isinstance(table, Mapping):
            raise SpaceError(
                f"space={shown(table)}: must be a table of the sections {', '.join(self.context.sections)}"
            )
        table = with_ready(table)
        for name in table:
            if name not in (*self.context.sections, "constraints"):
                known = (*self.context.sections, "constraints", "ready")
                raise SpaceError(f"space.{shown_key(name)}: {nearest(str(name), known)}")
        for section in SECTIONS:
            entries = table.get(section, {})
            if not isinstance(entries, Mapping):
                raise SpaceError(f"space.{section}={shown(entries)}: must be a table of keys to search")
            for name in entries:
                if not isinstance(name, str) or not NAME.fullmatch(name):
                    raise SpaceError(
                        f"space.{section}.{shown_key(name)}: a key must be at most 64 letters, digits and '_', and no "
                        "digit first"
                    )
            for name in sorted(entries):
                self._read_entry(section, name, entries[name])
                if len(self.dimensions) > MAX_DIMENSIONS:
                    raise SpaceError(
                        f"space.{section}.{name}: makes more than {MAX_DIMENSIONS:,} dimensions; search fewer keys"
                    )
        return self._renamed(), self._constraints(table), tuple(self.fixed)

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
            inside = [k for k in inside if f"{section}.{k}" != "masks.shares"]  # written as an allocation
            raise SpaceError(f"{where}={shown(entry)}: no such key can be searched; it {nearest(name, inside)}")
        if key == "masks.bits":
            self._read_bits(where, entry)
        elif isinstance(entry, Mapping):
            if "depth" in entry:
                self._read_list(section, name, entry)
            else:
                domain = domain_of(where, entry, also=("depth",) if section == "model" else ())
                ends = (
                    [(".choices", v) for v in domain.values]
                    if isinstance(domain, Choice)
                    else [(".low", domain.low), (".high", domain.high)]
                )
                check_limits(where, key, ends)
                named = "mask_draw" if key == "masks.draw" else name
                self.dimensions.append(Dimension(named, key, domain, self._condition_of(key)))
        else:
            constant = constant_of(where, entry)
            if isinstance(constant, tuple) and section in ("masks", "training"):  # which have no lists
                raise SpaceError(f"{where}={shown(entry)}: {one_value(constant)}")
            self.fixed.append((key, constant))
            check_limits(where, key, [("", self.fixed[-1][1])])
        if key == "masks.allocation":
            self._read_shares(where)

    def _condition_of(self, key: str) -> Condition | None:
        """Where a mask may be of nodes, a pattern is one of the others (kinds are read before patterns)."""
        is_of_kinds = any(d.key == "masks.kind" and d.domain.n_values > 1 for d in self.dimensions)
        return Condition("kind", equals="weight") if key == "masks.pattern" and is_of_kinds else None

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
        if section != "model" or singular(key) == name:
            raise SpaceError(f"{where}.depth: only lists of the model (widths, channels) have a depth")
        domain = domain_of(where, {k: v for k, v in entry.items() if k != "depth"}, also=("depth",))
        if isinstance(domain, Integer) and domain.low < 1:
            raise SpaceError(f"{where}.low={domain.low}: must be at least 1")
        depth = entry["depth"]
        longest, shortest = depth, depth
        if isinstance(depth, Mapping):
            lengths = domain_of(f"{where}.depth", depth)
            if not isinstance(lengths, Integer) or lengths.log or lengths.step != 1:
                raise SpaceError(f"{where}.depth={shown(depth)}: must be an integer or {{low, high}} of integers")
            shortest, longest = lengths.low, lengths.high
            self.dimensions.append(Dimension("depth", key, lengths))
        if isinstance(longest, bool) or not isinstance(longest, int) or not 1 <= shortest <= longest <= _MAX_DEPTH:
            raise SpaceError(f"{where}.depth={shown(depth)}: must lie in 1..{_MAX_DEPTH}")
        self.dimensions += [
            Dimension(f"{singular(key)}_{i}", key, domain, Condition("depth", at_least=i) if i > shortest else None)
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
