"""Coordinates of points in the unit cube: drawn by number, computed from points, and turned into points again.

Dimensions that are mask bits have no coordinate: bits are drawn and handed over beside the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.dimensions import Dimension
from sparsefront.spaces.domains import Bits, Point, Value
from sparsefront.spaces.masks import draw as draw_masks
from sparsefront.spaces.masks import pack_bits
from sparsefront.spaces.seeds import philox_key, raw_rows

Unit = npt.NDArray[np.float64]
Key = npt.NDArray[np.uint64]


def cube_of(dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Dimensions that have a coordinate: all but bits."""
    return tuple(d for d in dimensions if not isinstance(d.domain, Bits))


def draw_unit(cube: Sequence[Dimension], key: Key, start: int, stop: int) -> Unit:
    """Coordinates of draws `start`..`stop` under `key`: (stop - start, n_cube) float64, uniform in [0, 1)."""
    unit = np.empty((stop - start, len(cube)), dtype=np.float64)
    for column, dimension in enumerate(cube):
        words = raw_rows(_named_key(key, dimension.name), start=start, stop=stop, width=2)
        unit[:, column] = ((words[:, 0] >> 5) * float(1 << 26) + (words[:, 1] >> 6)) / float(1 << 53)
    return unit


def draw_bits(dimension: Dimension, key: Key, start: int, stop: int) -> list[bytes]:
    """Packed masks number `start`..`stop` under `key`, of a dimension of mask bits."""
    domain = dimension.domain
    assert isinstance(domain, Bits)
    masks = draw_masks(domain.sections, domain.kept, _named_key(key, dimension.name), start=start, stop=stop)
    return [row.tobytes() for row in pack_bits(masks)]


def encode(cube: Sequence[Dimension], points: Sequence[Point]) -> Unit:
    """Coordinates of points: (n, n_cube) float64 in [0, 1], NaN where a dimension is inactive."""
    encoders = []
    for dimension in cube:
        assert not isinstance(dimension.domain, Bits)
        encoders.append((dimension.name, dimension.domain.encode))
    rows = [[encode(p[name]) if name in p else math.nan for name, encode in encoders] for p in points]
    return np.array(rows, dtype=np.float64).reshape(len(points), len(cube))


def decode(dimensions: Sequence[Dimension], unit: npt.ArrayLike, bits: Sequence[bytes] | None) -> list[Point]:
    """Points at coordinates (n, n_cube), clipped to [0, 1], and with packed bits where a dimension is mask bits.

    Raises:
        SpaceError: another shape, NaN in an active dimension, or bits missing.
    """
    array = np.asarray(unit, dtype=np.float64)
    n_cube = len(cube_of(dimensions))
    if array.ndim != 2 or array.shape[1] != n_cube:
        raise SpaceError(f"coordinates of shape {array.shape}: (n, {n_cube}) is needed")
    if (n_cube == len(dimensions)) != (bits is None) or (bits is not None and len(bits) != len(array)):
        raise SpaceError(
            f"bits={None if bits is None else len(bits)}: must be given for each point, if the space has mask bits"
        )
    missing = np.isnan(array)
    whole = np.where(missing, 0.0, array) if missing.any() else array
    values: dict[str, Sequence[Value]] = {}
    active: dict[str, list[bool]] = {}
    column = 0
    for d in dimensions:
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
    names = [d.name for d in dimensions]
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


def _named_key(key: Key, name: str) -> Key:
    """Key of one dimension's draws under the key of a space's."""
    return philox_key(int(key[0]), f"space/{name}", int(key[1]))
