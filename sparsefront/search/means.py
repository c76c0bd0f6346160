"""Means over replicates, with their intervals."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
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
