"""Which checkpoints are still needed: the others are removed while a study runs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.cluster.rows import name_in_pack
from sparsefront.trainables.checkpoints import OnTheWay, checkpoint_path, list_checkpoints

_Key = tuple[str, int, int]
#: Of a candidate at rungs: the last one, and what it goes on from should that be lost.
_KEPT_AT_RUNGS = 2
_COLUMNS = ["stage", "candidate", "arm", "replicate", "slot", "steps", "checkpoint"]


class CheckpointKeeper:
    """Removes a checkpoint once every candidate in it has gone on from it and from the next one, or has ended.

    The weights that a chain of a study of masks goes on from are removed once it has. What was left on the way to the
    end of a segment goes with that end.

    What a driver that was killed left behind goes when the study is done.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of: dict[_Key, tuple[str, ...]] = {}
        self._n_waiting: Counter[str] = Counter()

    def learn(self, rows: pa.RecordBatch) -> None:
        """Look at committed rows; never raises for a file that cannot be removed."""
        own = rows.select(_COLUMNS)
        of_search = own.filter(pc.is_in(own.column("stage"), pa.array(["rung", "level", "trained"])))
        any_on_the_way = OnTheWay.exist(self._folder)
        for row in of_search.to_pylist():
            key = row["arm"], row["replicate"], row["slot"]
            before, now = self._of.pop(key, ()), row["checkpoint"]
            if now is not None:
                self._of[key] = (*before, now)[-_KEPT_AT_RUNGS if row["stage"] == "rung" else -1 :]
                self._n_waiting[now] += 1
            for name in before:
                if name not in self._of.get(key, ()):
                    self._release(name)
            if any_on_the_way:
                self._forget_on_the_way(row)

    def _release(self, name: str) -> None:
        self._n_waiting[name] -= 1
        if not self._n_waiting[name]:
            del self._n_waiting[name]
            with contextlib.suppress(OSError):
                checkpoint_path(self._folder, name).unlink()

    def _forget_on_the_way(self, row: Mapping[str, Any]) -> None:
        lane = name_in_pack(row["candidate"], row["arm"], row["slot"])
        OnTheWay.remove(self._folder, lane, row["steps"] if row["stage"] == "rung" else None)

    def clear(self) -> None:
        """Remove all checkpoints, and their folder if nothing else lies there: nothing is left to train."""
        OnTheWay.clear(self._folder)
        for name in list_checkpoints(self._folder):
            with contextlib.suppress(OSError):
                checkpoint_path(self._folder, name).unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()
