"""How columns of a ledger's rows are read: that they are there, as numbers, and where they hold a text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import ConfigError


def check_columns(rows: pa.Table | pa.RecordBatch, needed: Iterable[str], *, listed_by: str) -> None:
    """Refuse rows that were read without a column.

    Args:
        rows: what was read.
        needed: columns that somebody looks at.
        listed_by: dotted name in `sparsefront.search` of what lists them.

    Raises:
        ConfigError: a column is missing; the first one is named.

    >>> check_columns(pa.table({"arm": ["random"]}), ["arm"], listed_by="front.front_columns")
    """
    lacking = next((name for name in needed if name not in rows.schema.names), None)
    if lacking is not None:
        raise ConfigError(
            f"column {lacking!r} is missing from this table: read it with the columns that "
            f"sparsefront.search.{listed_by} lists"
        )


def numbers_in(rows: pa.Table | pa.RecordBatch, column: str) -> npt.NDArray[np.float64]:
    """A column as numbers, (n,); NaN where it is null.

    >>> numbers_in(pa.table({"slot": pa.array([1, None], pa.int64())}), "slot")
    array([ 1., nan])
    """
    return np.asarray(rows.column(column).to_numpy(zero_copy_only=False), dtype=np.float64)


def equals(rows: pa.Table | pa.RecordBatch, column: str, value: str) -> npt.NDArray[np.bool_]:
    """Where a column holds a text, (n,); nowhere where it is null.

    >>> equals(pa.table({"arm": ["random", None]}), "arm", "random")
    array([ True, False])
    """
    return np.asarray(pc.fill_null(pc.equal(rows.column(column), value), False), dtype=np.bool_)
