"""The Ray Tune trainable that runs packs, one after the other, in a reused actor.

Tune's own record of a trial holds a pack's key and nothing else: the work is fetched from the driver's order book by
that key, and results travel to the driver as Arrow bytes inside the trial's report.
"""

from __future__ import annotations

import faulthandler
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import torch
from ray import tune

from sparsefront.cluster.rows import scored_rows, trained_rows
from sparsefront.search.plan import TrainWork, Work
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.workshop import LaneOrder, Trained, Workshop

#: A report at least this often, so that the driver knows that the pack is alive and the terminal moves.
_REPORT_EVERY_S = 2.0


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker is told once.

    Attributes:
        recipe: how candidates are made.
        base: what candidate ids hash besides the candidate.
        device: 'cpu' or 'cuda'.
        timeout_s: longest time without a validation point before the worker ends itself.
        memory_bytes: most memory that the process may take on top of what it starts with; None for no limit.
    """

    recipe: Recipe
    base: dict[str, object]
    device: str
    timeout_s: float
    memory_bytes: int | None


@ray.remote(num_cpus=0)
class OrderBook:
    """Work by pack key, so that a trial's configuration holds the key alone."""

    def __init__(self) -> None:
        self._orders: dict[str, tuple[Work, dict[str, bytes]]] = {}

    def put(self, key: str, work: Work, blobs: dict[str, bytes]) -> None:
        """Store work and the mask bits it needs."""
        self._orders[key] = (work, blobs)

    def get(self, key: str) -> tuple[Work, dict[str, bytes]]:
        """The work called `key`."""
        return self._orders[key]

    def drop(self, key: str) -> None:
        """Forget it."""
        self._orders.pop(key, None)


class PackTrial(tune.Trainable):  # type: ignore[misc]
    """One pack after another on one core or one GPU."""

    def setup(self, config: dict[str, Any], *, settings: Any = None, dataset: Any = None, orders: Any = None) -> None:
        """Prepare the process once; `reset_config` brings the next pack."""
        self._settings: WorkerSettings = settings
        self._orders = orders
        torch.set_num_threads(1)
        # Moments of silent units decay into subnormal numbers, which cost a hundred times as much on a CPU.
        torch.set_flush_denormal(True)
        if settings.memory_bytes is not None:
            limit = _data_bytes() + settings.memory_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        self._device = torch.device(settings.device)
        self._device_name = torch.cuda.get_device_name() if settings.device == "cuda" else "cpu"
        self._names = CandidateNames(settings.base)
        self._workshop = Workshop(settings.recipe, dataset, self._device)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next pack."""
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        self._key = config["pack"]
        self._steps: Iterator[tuple[pa.RecordBatch | None, dict[str, bytes]]] | None = None

    def step(self) -> dict[str, Any]:
        """Work on the pack for about two seconds, or until it is done, and report what ended."""
        rows: list[pa.RecordBatch] = []
        blobs: dict[str, bytes] = {}
        deadline = time.monotonic() + _REPORT_EVERY_S
        is_done = False
        while not is_done and time.monotonic() < deadline:
            # Ends the process from a C thread, which a hang that holds the interpreter's lock cannot stop.
            faulthandler.dump_traceback_later(self._settings.timeout_s, exit=True, file=sys.__stderr__)
            try:
                if self._steps is None:
                    self._steps = self._run(*ray.get(self._orders.get.remote(self._key)))
                batch, found = next(self._steps)
                blobs |= found
                if batch is not None and batch.num_rows:
                    rows.append(batch)
            except StopIteration:
                is_done = True
            finally:
                faulthandler.cancel_dump_traceback_later()
        return {"rows": _encode(rows), "blobs": blobs, "done": is_done}

    def _run(self, work: Work, masks: dict[str, bytes]) -> Iterator[tuple[pa.RecordBatch | None, dict[str, bytes]]]:
        recipe = self._settings.recipe
        if not isinstance(work, TrainWork):
            scored = self._workshop.score(work.replicate, work.sparsity, work.start, work.stop)
            yield scored_rows(work, scored, self._names, recipe, device=self._device_name), {}
            return
        orders = [LaneOrder(lane.candidate, masks.get(lane.candidate.mask or "")) for lane in work.lanes]
        for ended in self._workshop.train(orders, derive=work.derive):
            yield self._rows(work, ended)

    def _rows(self, work: TrainWork, ended: list[Trained]) -> tuple[pa.RecordBatch | None, dict[str, bytes]]:
        if not ended:
            return None, {}
        return trained_rows(work, ended, self._settings.recipe, device=self._device_name)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the ledger is the only record."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the ledger is the only record."""


def decode_rows(payload: bytes | None) -> list[pa.RecordBatch]:
    """Record batches of one report."""
    if not payload:
        return []
    with pa.ipc.open_stream(payload) as reader:
        return list(reader)


def _encode(rows: list[pa.RecordBatch]) -> bytes | None:
    if not rows:
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows[0].schema) as writer:
        for batch in rows:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _data_bytes() -> int:
    """Private writable memory that the process has now (what RLIMIT_DATA counts)."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
