"""The trained networks that a verdict compares, as arrays: what each is worth, how fast it was and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import ConfigError
from sparsefront.search.columns import equals, numbers_in
from sparsefront.search.design import Design
from sparsefront.search.methods.pruned import Pruned
from sparsefront.search.metrics import METRICS
from sparsefront.search.verdict.record import Floats, Record

Integers = npt.NDArray[np.int64]

#: An arm, a replicate and a level.
Cell = tuple[str, int, float]
_NOTHING: Integers = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Networks:
    """Trained candidates as aligned arrays (n,), and the rows of each (arm, replicate, level)."""

    cells: Mapping[Cell, Integers]
    counted: npt.NDArray[np.bool_]  # completed or diverged: says something about its method
    selector: Floats  # validation error, inf where it diverged
    value: Floats  # test accuracy, or PSNR
    steps_to_target: Floats  # at most design.steps; NaN without a parent
    reached: npt.NDArray[np.bool_]  # whether it came to the target at all
    is_timed: npt.NDArray[np.bool_]  # whether validation was measured on the way, and not at the end alone
    passes: Floats  # of its training, wherever that was recorded

    def at(self, arm: str, replicate: int, level: float) -> Integers:
        """The networks there, by index."""
        return self.cells.get((arm, replicate, level), _NOTHING)


@dataclass(frozen=True)
class Pair:
    """What an arm and the one that it is held against have in one replicate: networks by index, kept if they count."""

    replicate: int
    arm: Integers
    against: Integers
    arm_kept: Integers
    against_kept: Integers

    @property
    def is_whole(self) -> bool:
        """Whether either side has a network that counts."""
        return len(self.arm_kept) > 0 and len(self.against_kept) > 0


def pairs_of(networks: Networks, arm: tuple[str, float], against: tuple[str, float]) -> list[Pair]:
    """Pair an arm at a level with another one at a level, in every replicate that has networks of any, ascending."""
    found, kept = [], networks.counted
    for replicate in sorted({number for _, number, _ in networks.cells}):
        mine, theirs = (networks.at(name, replicate, level) for name, level in (arm, against))
        found.append(Pair(replicate, mine, theirs, mine[kept[mine]], theirs[kept[theirs]]))
    return found


def without_rounding(value: float, other: float) -> float:
    """The other value, or this one where they differ by rounding: the mean of equal values need not equal them.

    >>> without_rounding(0.3, 0.1 + 0.2), without_rounding(0.3, 0.31)
    (0.3, 0.31)
    """
    return value if math.isclose(value, other, rel_tol=1e-12) else other


def networks_of(record: Record, design: Design) -> Networks:
    """Arrange the trained rows of a ledger."""
    rows = record.trained
    if rows.num_rows == 0:
        nothing, never = np.zeros(0), np.zeros(0, dtype=np.bool_)
        return Networks({}, never, nothing, nothing, nothing, never, never, nothing)
    places = zip(
        rows["arm"].to_pylist(), rows["replicate"].to_pylist(), rows["target_sparsity"].to_pylist(), strict=True
    )
    gathered: dict[Cell, list[int]] = {}
    for i, place in enumerate(places):
        gathered.setdefault(place, []).append(i)
    cells = {place: np.array(indices, dtype=np.int64) for place, indices in gathered.items()}
    val_error, test_error = numbers_in(rows, "val_error"), numbers_in(rows, "test_error")
    completed = equals(rows, "outcome", "completed") & np.isfinite(val_error) & np.isfinite(test_error)
    diverged = equals(rows, "outcome", "diverged")
    # A candidate in several slots was trained once: each slot's arm would have had to pay for it alone.
    codes = np.asarray(rows["candidate"].combine_chunks().dictionary_encode().indices).astype(np.int64)
    cost = np.zeros(codes.max() + 1)
    np.maximum.at(cost, codes, np.nan_to_num(numbers_in(rows, "passes")))
    behind = _steps_behind(rows, record, design)
    steps_to_target, reached = _steps_to_target(
        rows, cells, design, behind=behind, val_error=val_error, completed=completed
    )
    return Networks(
        cells=cells,
        counted=completed | diverged,
        selector=np.where(completed, val_error, np.inf),
        value=np.where(completed, METRICS[design.metric].from_error(test_error), design.value_of_guessing),
        steps_to_target=steps_to_target,
        reached=reached,
        is_timed=np.asarray(pc.fill_null(pc.list_value_length(rows["curve_step"]), 0)) > 1,
        passes=cost[codes],
    )


def _steps_behind(rows: pa.Table, record: Record, design: Design) -> Floats:
    """Count the steps that the weights of each network had behind them when its training began, by rewinding."""
    steps = {
        arm: method.method.rewind_step(design.steps)
        for arm, method in record.methods.items()
        if isinstance(method, Pruned) and method.method.reads("rewind_fraction")
    }
    return np.array([steps.get(arm, 0) for arm in rows["arm"].to_pylist()], dtype=np.float64)


def _steps_to_target(
    rows: pa.Table,
    cells: Mapping[Cell, Integers],
    design: Design,
    *,
    behind: Floats,
    val_error: Floats,
    completed: npt.NDArray[np.bool_],
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Find the first step at which each network is accurate enough, counted from its initial weights.

    ``design.steps`` if there is none; NaN without a parent.
    """
    metric = METRICS[design.metric]
    replicate = np.asarray(rows["replicate"])
    allowed_error = np.full(rows.num_rows, np.nan)
    for (arm, number, _), indices in cells.items():
        if arm == "dense" and completed[indices].any():
            value = metric.from_error(val_error[indices][completed[indices]].min())
            allowed_error[replicate == number] = metric.error_at(design.convergence_target_fraction * value)
    # Curves are stored in single precision, final errors in double: 1e-6 is a rounding, not an example.
    first = np.full(rows.num_rows, np.inf)
    of_row = np.asarray(pc.list_parent_indices(rows["curve_val_error"])).astype(np.int64)
    errors = np.asarray(pc.list_flatten(rows["curve_val_error"]), dtype=np.float64)
    steps = np.asarray(pc.list_flatten(rows["curve_step"]), dtype=np.float64)
    if len(steps) != len(errors):
        raise ConfigError(
            f"curve_step and curve_val_error hold {len(steps)} and {len(errors)} points: must be of equal length"
        )
    accurate = errors <= allowed_error[of_row] + 1e-6
    np.minimum.at(first, of_row[accurate], steps[accurate])
    first += behind
    # What trains longer (a retrain_fraction above 1) came to the target only if the others had the time for it.
    reached = completed & (first <= design.steps)
    return np.where(np.isnan(allowed_error), np.nan, np.where(reached, first, float(design.steps))), reached
