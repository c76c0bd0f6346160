"""Means over replicates, with their intervals."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats


def mean_interval(values: npt.ArrayLike, *, level: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean of independent values with Student's t interval.

    Args:
        values: (n,) float, n >= 1, finite: one value for each replicate.
        level: confidence of the interval.

    Returns:
        The mean and both ends of its interval, which are None for a single value.

    >>> mean_interval([0.5])
    (0.5, None, None)
    >>> [round(x, 4) for x in mean_interval([0.4, 0.5, 0.6])]
    [0.5, 0.2516, 0.7484]
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return mean, None, None
    half = float(stats.t.ppf((1 + level) / 2, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return mean, mean - half, mean + half


def replicate_means(rows: pa.Table, column: str) -> dict[tuple[str, float], list[float]]:
    """Means over each replicate's networks that have a finite value of a column, by arm and level.

    >>> rows = pa.table({"arm": ["a", "a", "a"], "target_sparsity": [0.5, 0.5, 0.5], "replicate": [0, 0, 1],
    ...                  "test_error": [0.1, 0.3, None]})
    >>> replicate_means(rows, "test_error")
    {('a', 0.5): [0.2]}
    """
    known = rows.filter(pc.is_finite(pc.field(column)))
    of_replicates = known.group_by(["arm", "target_sparsity", "replicate"], use_threads=False)
    means: dict[tuple[str, float], list[float]] = {}
    for row in of_replicates.aggregate([(column, "mean")]).to_pylist():
        means.setdefault((row["arm"], row["target_sparsity"]), []).append(row[f"{column}_mean"])
    return means
