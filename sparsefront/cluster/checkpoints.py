"""Which checkpoints are still needed: the others are removed while a study runs."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.trainables.checkpoints import checkpoint_path, list_checkpoints

_Key = tuple[str, int, int]


class CheckpointKeeper:
    """Removes a checkpoint once every candidate in it has gone on from it, or has ended.

    What a driver that was killed left behind goes when the study is done.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of: dict[_Key, str] = {}
        self._n_waiting: Counter[str] = Counter()

    def learn(self, rows: pa.RecordBatch) -> None:
        """Look at committed rows; never raises for a file that cannot be removed."""
        of_search = rows.filter(pc.is_in(rows.column("stage"), pa.array(["rung", "level", "trained"])))
        for row in of_search.select(["arm", "replicate", "slot", "checkpoint"]).to_pylist():
            key = row["arm"], row["replicate"], row["slot"]
            before, now = self._of.pop(key, None), row["checkpoint"]
            if now is not None:
                self._of[key] = now
                self._n_waiting[now] += 1
            if before is not None:
                self._n_waiting[before] -= 1
                if not self._n_waiting[before]:
                    del self._n_waiting[before]
                    with contextlib.suppress(OSError):
                        checkpoint_path(self._folder, before).unlink()

    def clear(self) -> None:
        """Remove all checkpoints, and their folder if nothing else lies there: nothing is left to train."""
        for name in list_checkpoints(self._folder):
            with contextlib.suppress(OSError):
                checkpoint_path(self._folder, name).unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()
