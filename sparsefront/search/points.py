"""Points as columns of a table, and back: one column for each dimension of the space, null where it is inactive.

Searched mask bits are a column of digests (`masks.mask_digest`); the bits themselves are blobs by that digest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from sparsefront.errors import LedgerError, SpaceError
from sparsefront.spaces.domains import Bits, Float, Point, Value
from sparsefront.spaces.masks import mask_digest
from sparsefront.spaces.space import Space


def points_to_columns(points: Sequence[Point], space: Space) -> dict[str, list[bool | int | float | str | None]]:
    """Values by dimension, None where it is inactive; mask bits by their digest.

    >>> space = Space.from_table({"training": {"lr": {"low": 0.1, "high": 1.0}, "nesterov": {"flag": True}}})
    >>> points_to_columns([{"lr": 0.5, "nesterov": True}], space)
    {'lr': [0.5], 'nesterov': [True]}
    """
    return {d.name: [_written(point.get(d.name)) for point in points] for d in space.dimensions}


def _written(value: Value | None) -> bool | int | float | str | None:
    return mask_digest(value) if isinstance(value, bytes) else value


def points_from_rows(
    rows: pa.Table | pa.RecordBatch | Mapping[str, Sequence[object]], space: Space, blobs: Callable[[str], bytes]
) -> list[Point]:
    """Points of the rows of a table that has the space's columns, whatever other columns it has.

    Args:
        rows: a table, or values by column.
        space: the space that the points belong to.
        blobs: packed mask bits of a digest.

    Raises:
        LedgerError: a column is missing, a row is no point of the space, or a blob is not what its digest says.
    """
    columns: dict[str, Sequence[object]] = {}
    for d in space.dimensions:
        try:
            column = rows[d.name]
        except KeyError as error:
            raise LedgerError(f"column {d.name!r} is missing: the rows are not those of this space") from error
        columns[d.name] = column if isinstance(column, Sequence) else column.to_pylist()
    if not columns:
        n_rows = (
            rows.num_rows if isinstance(rows, pa.Table | pa.RecordBatch) else max(map(len, rows.values()), default=0)
        )
        return [{} for _ in range(n_rows)]
    points: list[Point] = []
    for row in zip(*columns.values(), strict=True):
        point = {
            d.name: _read(value, d.domain, blobs)
            for d, value in zip(space.dimensions, row, strict=True)
            if value is not None
        }
        try:
            space.check(point)
        except SpaceError as error:
            raise LedgerError(f"row {len(points)}: {error}; the rows are not those of this space") from error
        points.append(point)
    return points


def _read(value: object, domain: object, blobs: Callable[[str], bytes]) -> Value:
    if isinstance(domain, Bits):
        packed = blobs(str(value))
        if mask_digest(packed) != value:
            raise LedgerError(f"mask {value}: the blob's content has another digest; it is damaged")
        return packed
    if isinstance(domain, Float) and isinstance(value, int):
        return float(value)
    assert isinstance(value, bool | int | float | str)
    return value
