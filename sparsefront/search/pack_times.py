"""How long packs took beside what the packing had expected (`sparsefront.search.packing`), from the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

#: Columns that `pack_times` reads.
PACK_TIME_COLUMNS = ("device", "pack", "attempt", "outcome", "seconds", "predicted_s")
#: Outcomes of packs that broke off with their worker: what they took says nothing about training.
_BROKE_OFF = ("lost", "timeout", "out_of_memory")


@dataclass(frozen=True)
class PackTimes:
    """Packs of one device, measured and predicted.

    Attributes:
        device: that they ran on.
        n_packs: how many.
        seconds: that they took, all together.
        predicted_s: that they were expected to take.
        median: of measured over predicted, pack by pack.
        low: lower quartile of it.
        high: upper quartile of it.
    """

    device: str
    n_packs: int
    seconds: float
    predicted_s: float
    median: float
    low: float
    high: float


def pack_times(rows: Iterable[pa.RecordBatch]) -> list[PackTimes]:
    """Measure packs against their prediction, device by device; nothing where no time was predicted.

    Args:
        rows: with `PACK_TIME_COLUMNS`, of any stages; those that no worker reported are left out.

    >>> pack_times([])
    []
    """
    batches = [batch.select(PACK_TIME_COLUMNS) for batch in rows]
    if not batches:
        return []
    table = pa.Table.from_batches(batches).combine_chunks()
    broke_off = np.isin(table["outcome"].to_numpy(zero_copy_only=False).astype(str), _BROKE_OFF)
    predicted = table["predicted_s"].to_numpy(zero_copy_only=False).astype(float)
    is_known = ~broke_off & (predicted > 0) & table["device"].is_valid().to_numpy(zero_copy_only=False)
    # In one thread, so that the same rows give the same last digit.
    packs = table.filter(pa.array(is_known)).group_by(["device", "pack", "attempt"], use_threads=False)
    sums = packs.aggregate([("seconds", "sum"), ("predicted_s", "sum")])
    devices = sums["device"].to_numpy(zero_copy_only=False).astype(str)
    measured, expected = (sums[f"{name}_sum"].to_numpy() for name in ("seconds", "predicted_s"))
    found = []
    for device in sorted(set(devices.tolist())):
        mine = devices == device
        low, median, high = np.quantile(measured[mine] / expected[mine], [0.25, 0.5, 0.75]).tolist()
        totals = float(measured[mine].sum()), float(expected[mine].sum())
        found.append(PackTimes(device, int(mine.sum()), *totals, median, low, high))
    return found
