"""What one dimension of a space may be: numbers of an interval, one of several values, or the bits of a mask.

Every domain but `Bits` has a coordinate in [0, 1], in which equal lengths are equally likely: a Float's place between
its bounds, the middle of an Integer's or a Choice's cell. Decoded floats keep ten significant digits of the domain's
length (of the value, on a log scale): a decoded value survives encoding and decoding, and the last bits of a machine's
logarithm do not change a candidate's name.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import pack_bits, top_k, unpack_bits

Value = bool | int | float | str | bytes
#: The active dimensions of a candidate, by name.
Point = Mapping[str, Value]
Unit = npt.NDArray[np.float64]

#: Digits of a decoded float that count.
_DIGITS = 10
#: Widest logarithmic range of floats.
_MAX_DECADES = 200
#: Integers beyond this have no exact float, and so no exact coordinate.
_LARGEST_INTEGER = 1 << 53
#: Sections of a mask whose shared count is still enumerated (inclusion and exclusion visits every subset).
_MAX_ENUMERATED_SECTIONS = 12


@dataclass(frozen=True)
class Float:
    """Real numbers low..high, both included, uniform or log-uniform.

    >>> lr = Float(1e-4, 1e-1, log=True)
    >>> lr.decode(0.5), round(lr.encode(1e-3), 4)
    (0.00316227766, 0.3333)

    Raises:
        SpaceError: bounds that are not finite, not ascending, or not positive on a log scale.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
        _check_bounds(self.low, self.high, log=self.log)
        if not math.isfinite(self.high - self.low):
            raise SpaceError(f"high={self.high!r} with low={self.low!r}: their distance must be a finite float")
        if self.log and math.log10(self.high) - math.log10(self.low) > _MAX_DECADES:
            raise SpaceError(f"high={self.high!r}: must be at most {_MAX_DECADES} powers of ten above low={self.low!r}")

    @property
    def n_values(self) -> float:
        """Infinitely many."""
        return math.inf

    @cached_property
    def _scale(self) -> tuple[float, int]:
        """Length of the axis, and digits that count on it (on a log scale never so many that arithmetic fills them)."""
        if self.log:
            length = math.log(self.high) - math.log(self.low) or math.ulp(1.0)
            return length, min(14, _DIGITS + max(0, -math.floor(math.log10(length))))
        return self.high - self.low, _DIGITS - math.floor(math.log10(self.high - self.low))

    def contains(self, value: object) -> bool:
        """Whether it is a number within the bounds."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def clip(self, value: object) -> float:
        """The nearest value; SpaceError for what is no finite number."""
        return min(self.high, max(self.low, _finite("value", value))) + 0.0  # -0.0 and 0.0 are one value

    def encode(self, value: object) -> float:
        """Coordinate of a value, 0..1."""
        length, _ = self._scale
        at = self.clip(value)
        return min(1.0, (math.log(at / self.low) if self.log else at - self.low) / length)

    def decode(self, u: float) -> float:
        """Value at a coordinate; beyond 0..1 the bound."""
        return self.decode_all(np.array([u], dtype=np.float64))[0]

    def decode_all(self, unit: Unit) -> list[float]:
        """Values at (n,) coordinates."""
        length, digits = self._scale
        low, high = self.low, self.high
        if self.log:
            text = f"%.{digits}g"
            inner = [float(text % v) for v in (low * np.exp(np.clip(unit, 0, 1) * length)).tolist()]
        else:
            inner = [round(v, digits) for v in (low + unit * length).tolist()]
        return [
            low if u <= 0 or v <= low else high if u >= 1 or v >= high else v + 0.0
            for u, v in zip(unit.tolist(), inner, strict=True)
        ]


@dataclass(frozen=True)
class Integer:
    """Whole numbers low, low + step, ..., high; equally likely, or their cells as long as on a log scale.

    >>> Integer(8, 128, log=True).decode(0.5), Integer(0, 10, step=5).decode(0.99)
    (31, 10)

    Raises:
        SpaceError: bounds that are not integers, not ascending, not positive on a log scale, or no step apart.
    """

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST_INTEGER:
                raise SpaceError(f"{name}={shown(value)}: must be an integer of at most 2^53")
        _check_bounds(self.low, self.high, log=self.log)
        if self.step < 1:
            raise SpaceError(f"step={self.step}: must be at least 1")
        if self.log and self.step != 1:
            raise SpaceError(f"step={self.step}: must be 1 where log=true")
        if (self.high - self.low) % self.step:
            raise SpaceError(f"step={self.step}: must divide high - low = {self.high - self.low}")

    @property
    def n_values(self) -> int:
        """How many."""
        return (self.high - self.low) // self.step + 1

    @cached_property
    def _scale(self) -> tuple[float, float]:
        """Origin and length of the logarithmic axis."""
        return math.log(self.low - 0.5), math.log(self.high + 0.5) - math.log(self.low - 0.5)

    def contains(self, value: object) -> bool:
        """Whether it is an integer of the sequence."""
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
            and (value - self.low) % self.step == 0
        )

    def clip(self, value: object) -> int:
        """The nearest value, halves up; SpaceError for what is no finite number."""
        at = min(float(self.high), max(float(self.low), _finite("value", value)))
        return min(self.high, self.low + self.step * math.floor((at - self.low) / self.step + 0.5))

    def encode(self, value: object) -> float:
        """Coordinate of a value, 0..1: the middle of its cell."""
        at = self.clip(value)
        if not self.log:
            return ((at - self.low) // self.step + 0.5) / self.n_values
        origin, length = self._scale
        return (math.log(at) - origin) / length

    def decode(self, u: float) -> int:
        """Value at a coordinate; beyond 0..1 the bound."""
        return self.decode_all(np.array([u], dtype=np.float64))[0]

    def decode_all(self, unit: Unit) -> list[int]:
        """Values at (n,) coordinates."""
        if self.log:
            origin, length = self._scale
            exact = np.floor(np.exp(origin + np.clip(unit, 0, 1) * length) + 0.5)
            return [int(v) for v in np.clip(exact, self.low, self.high).tolist()]
        cells = np.clip(np.floor(unit * self.n_values), 0, self.n_values - 1)
        return [self.low + self.step * int(cell) for cell in cells.tolist()]


@dataclass(frozen=True)
class Choice:
    """One of several values without an order: all flags, all text, or all numbers (among floats, all are floats).

    >>> Choice(("adam", "sgd")).decode(0.5), Choice((False, True)).encode(True)
    ('sgd', 0.75)

    Raises:
        SpaceError: no values, equal ones, a number that is not finite, or kinds that no column could hold together.
    """

    values: tuple[bool | int | float | str, ...]

    def __post_init__(self) -> None:
        values = tuple(self.values)
        if not values:
            raise SpaceError("choices=[]: at least one value is needed")
        kinds = {_kind(v) for v in values}
        if len(kinds) > 1 or None in kinds:
            raise SpaceError(f"choices={shown(list(values))}: must be all text, all numbers or all flags")
        if "number" in kinds:
            for value in values:
                _finite("choices", value)
            if any(isinstance(v, int) and abs(v) > _LARGEST_INTEGER for v in values):
                raise SpaceError(f"choices={shown(list(values))}: integers must be of at most 2^53")
            if any(isinstance(v, float) for v in values):
                values = tuple(float(v) + 0.0 for v in values)
        twice = [v for v, n in Counter(values).items() if n > 1]
        if twice:
            raise SpaceError(f"choices={shown(list(values))}: {shown(twice[0])} may appear once")
        object.__setattr__(self, "values", values)

    @property
    def n_values(self) -> int:
        """How many."""
        return len(self.values)

    @cached_property
    def _index(self) -> dict[bool | int | float | str, int]:
        return {v: i for i, v in enumerate(self.values)}

    def contains(self, value: object) -> bool:
        """Whether it is one of the values; True is not 1."""
        return (
            isinstance(value, bool | int | float | str)
            and _kind(value) == _kind(self.values[0])
            and value in self._index
        )

    def clip(self, value: object) -> bool | int | float | str:
        """The value itself, as it was written, or the nearest number.

        Raises:
            SpaceError: text or a flag that is not among the values.
        """
        if self.contains(value):
            return self.values[self._index[value]]  # type: ignore[index]
        if _kind(self.values[0]) == _kind(value) == "number":
            at = _finite("value", value)
            return min(self.values, key=lambda v: abs(float(v) - at))
        raise SpaceError(f"value={shown(value)}: must be one of {shown(list(self.values))}")

    def encode(self, value: object) -> float:
        """Coordinate of a value, 0..1: the middle of its cell."""
        return (self._index[self.clip(value)] + 0.5) / len(self.values)

    def decode(self, u: float) -> bool | int | float | str:
        """Value at a coordinate; beyond 0..1 the first or last."""
        return self.decode_all(np.array([u], dtype=np.float64))[0]

    def decode_all(self, unit: Unit) -> list[bool | int | float | str]:
        """Values at (n,) coordinates."""
        cells = np.clip(np.floor(unit * len(self.values)), 0, len(self.values) - 1).astype(np.int64)
        return [self.values[i] for i in cells.tolist()]


@dataclass(frozen=True)
class Bits:
    """Masks that keep exactly `kept[i]` entries of section i, as `masks.pack_bits` packs them (values are bytes).

    One count over several sections is a total over all of them, of which each keeps at least one entry.

    >>> mask = Bits((4, 3), (2, 1))
    >>> mask.n_values, mask.contains(bytes([0b0010011])), mask.contains(bytes([0b0000111]))
    (18, True, False)

    Raises:
        SpaceError: counts that no mask can have.
    """

    sections: tuple[int, ...]
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        limits = [sum(self.sections)] if self.is_global else list(self.sections)
        least = len(self.sections) if self.is_global else 1
        if len(self.kept) != len(limits) or not limits or min(self.sections) < 1:
            raise SpaceError(
                f"kept={shown(list(self.kept))}: one count for each section of {shown(self.sections)} is needed"
            )
        for k, n in zip(self.kept, limits, strict=True):
            if not least <= k <= n:
                raise SpaceError(f"kept={shown(list(self.kept))}: {k} must lie in {least}..{n}")

    @property
    def is_global(self) -> bool:
        """Whether all sections share one count."""
        return len(self.kept) == 1 and len(self.sections) > 1

    @property
    def size(self) -> int:
        """Entries of the mask."""
        return sum(self.sections)

    @cached_property
    def n_values(self) -> int | float:
        """How many masks; infinity beyond 10^300, and for a total over more than 12 sections."""
        limits = [self.size] if self.is_global else list(self.sections)
        if sum(_log_comb(n, k) for n, k in zip(limits, self.kept, strict=True)) > 300 * math.log(10):
            return math.inf
        if not self.is_global:
            return math.prod(math.comb(n, k) for n, k in zip(limits, self.kept, strict=True))
        if len(self.sections) > _MAX_ENUMERATED_SECTIONS:
            return math.inf
        return sum(
            (1 - n % 2 * 2) * math.comb(self.size - sum(empty), self.kept[0])
            for n in range(len(self.sections))
            for empty in itertools.combinations(self.sections, n)
        )

    def first(self) -> bytes:
        """The mask that keeps the first entries: of each section, or of all after the first of each.

        >>> Bits((4, 3), (2, 1)).first().hex(), Bits((4, 3), (3,)).first().hex()
        ('13', '13')
        """
        scores = -np.arange(self.size, dtype=np.float64)
        return pack_bits(top_k(scores, self.sections, self.kept)).tobytes()

    def contains(self, value: object) -> bool:
        """Whether it is a packed mask with these counts."""
        if not isinstance(value, bytes):
            return False
        try:
            mask = unpack_bits(value, self.size)
        except SpaceError:
            return False
        counts = np.add.reduceat(mask, np.cumsum([0, *self.sections])[:-1], dtype=np.int64)
        if self.is_global:
            return int(counts.sum()) == self.kept[0] and int(counts.min()) >= 1
        return tuple(counts.tolist()) == self.kept

    def clip(self, value: object) -> bytes:
        """The value itself.

        Raises:
            SpaceError: another count; there is no nearest mask.
        """
        if not self.contains(value):
            raise SpaceError(
                f"value={shown(value)}: must be the packed bits of a mask that keeps {shown(list(self.kept))} "
                f"of sections of {shown(list(self.sections))}"
            )
        assert isinstance(value, bytes)
        return value


Domain = Float | Integer | Choice | Bits


def _kind(value: object) -> str | None:
    """Which column of a ledger could hold a value."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else None


def _finite(name: str, value: object) -> float:
    """A number as a finite float."""
    # By far the most, in a fraction of the time that the checks below take.
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is int and abs(value) <= _LARGEST_INTEGER:
        return float(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise SpaceError(f"{name}={shown(value)}: must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise SpaceError(f"{name}={shown(value)}: must be a finite number")
    return number


def _check_bounds(low: float, high: float, *, log: bool) -> None:
    if not isinstance(log, bool):
        raise SpaceError(f"log={shown(log)}: must be true or false")
    if not low < high:
        raise SpaceError(f"high={high!r}: must be greater than low={low!r}; write a value that does not vary as it is")
    if log and low <= 0:
        raise SpaceError(f"low={low!r}: must be greater than 0 where log=true")


def _log_comb(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def shown(value: object) -> str:
    """A value as an error message shows it: in one line of at most 100 characters.

    >>> len(shown("x" * 1000))
    100
    """
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "an integer of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."
