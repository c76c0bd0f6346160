"""What runs packs, one after the other: `PackRunner`, and the Ray Tune trainable around it, in a reused actor.

Tune's own record of a trial holds a pack's key and nothing else: the work is taken from the driver's order book by
that key, and results travel to the driver as Arrow bytes inside the trial's report.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import torch
from ray import tune
from ray.exceptions import RayError

from sparsefront.cluster.orders import OrderBook
from sparsefront.cluster.rows import Work, kept_masks, lane_name, lost_rows, scored_rows, segment_rows, trained_rows
from sparsefront.errors import CandidateFailed
from sparsefront.search.plan import ScoreWork, TrainWork
from sparsefront.search.schema import schema_of
from sparsefront.search.work import SegmentWork
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.trainables.data import Dataset
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.segments import LaneSpec, SegmentShop
from sparsefront.trainables.workshop import CutOrder, LaneOrder, Trained, Workshop

#: A report at least this often, so that the driver knows that the pack is alive and the terminal moves.
_REPORT_EVERY_S = 2.0
_STDERR = 2
#: Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker is told once.

    Attributes:
        recipe: how candidates are made.
        base: what candidate ids hash besides the candidate.
        device: 'cpu' or 'cuda'.
        timeout_s: longest time without a validation point before the worker ends itself.
        memory_bytes: most memory that the process may take on top of what it starts with; None for no limit.
        columns: the ledger's columns besides those that all have, by name (`sparsefront.search.schema.schema_of`).
        checkpoints: folder that all workers and the driver share.
        is_search: whether its work is that of a search.
        threads: of one worker.
        checkpoint_every_s: time after which a candidate of a search that trains alone leaves a checkpoint on its way.
        import_paths: folders that a user's own modules may be in; where they are missing, they are passed over.
    """

    recipe: Recipe
    base: dict[str, object]
    device: str
    timeout_s: float
    memory_bytes: int | None
    columns: Mapping[str, str] = field(default_factory=dict)
    checkpoints: str = ""
    is_search: bool = False
    threads: int = 1
    checkpoint_every_s: float = math.inf
    import_paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.is_search and not Path(self.checkpoints).is_absolute():
            raise ValueError(f"checkpoints={self.checkpoints!r}: a search needs an absolute folder of its own for them")

    @property
    def schema(self) -> pa.Schema:
        """Of the study's ledger."""
        return schema_of({"resolved": {"columns": self.columns}})


class Report(TypedDict):
    """What a worker tells the driver every now and then.

    `rows` is an Arrow stream or None; `blobs` are masks by digest; `problem` says why this worker can run no pack at
    all (its device or the user's module is missing there), None if it can. A candidate that trains alone reports at
    every rung, in a report of its own: `run` says which arm and replicate it is of, `steps` and `loss` where it stands.
    """

    rows: bytes | None
    blobs: dict[str, bytes]
    done: bool
    problem: str | None
    run: str | None
    steps: int
    loss: float | None


class PackRunner:
    """Runs packs on one core or one GPU of this process, a report at a time; knows nothing of Ray."""

    def __init__(self, settings: WorkerSettings, dataset: Dataset) -> None:
        self._settings, self._dataset = settings, dataset
        self._names = CandidateNames(settings.base)
        self._workshop: Workshop | SegmentShop | None = None
        self._schema = settings.schema
        self._passed: tuple[str, int, float | None] | None = None
        self._device_name = ""
        self._steps: Iterator[tuple[pa.RecordBatch | None, dict[str, bytes]]] = iter(())

    def start(self, work: Work, masks: dict[str, bytes]) -> None:
        """Take a pack; `masks` are the bits of stored masks by digest."""
        self._steps = self._run(work, masks)
        self._passed = None

    def step(self) -> Report:
        """Work on the pack for about two seconds, or until it is done, and say what ended."""
        rows: list[pa.RecordBatch] = []
        blobs: dict[str, bytes] = {}
        deadline = time.monotonic() + _REPORT_EVERY_S
        done = False
        while not done and time.monotonic() < deadline:
            # Ends the process from a C thread, which a hang that holds the interpreter's lock cannot stop.
            faulthandler.dump_traceback_later(self._settings.timeout_s, exit=True, file=_STDERR)
            try:
                if self._workshop is None:
                    try:
                        self._prepare()
                    except Exception as error:
                        return problem(f"{type(error).__name__}: {error}")
                batch, found = next(self._steps)
                blobs |= found
                if batch is not None and batch.num_rows:
                    rows.append(batch)
            except StopIteration:
                done = True
            finally:
                faulthandler.cancel_dump_traceback_later()
            if self._passed is not None:
                break
        run, steps, loss = self._passed or (None, 0, None)
        self._passed = None
        return {
            "rows": _encode(rows),
            "blobs": blobs,
            "done": done,
            "problem": None,
            "run": run,
            "steps": steps,
            "loss": loss,
        }

    def _prepare(self) -> None:
        """Build what all packs need; once, and under the watchdog, for it imports and runs the user's module."""
        settings = self._settings
        device = torch.device(settings.device)
        self._device_name = torch.cuda.get_device_name() if settings.device == "cuda" else "cpu"
        if settings.is_search:
            self._workshop = SegmentShop(
                settings.recipe,
                self._dataset,
                device,
                Path(settings.checkpoints),
                checkpoint_every_s=settings.checkpoint_every_s,
            )
        else:
            folder = Path(settings.checkpoints) if settings.checkpoints else None
            self._workshop = Workshop(settings.recipe, self._dataset, device, folder)

    def _run(self, work: Work, masks: dict[str, bytes]) -> Iterator[tuple[pa.RecordBatch | None, dict[str, bytes]]]:
        if isinstance(work, SegmentWork):
            yield from self._train_segment(work)
            return
        assert isinstance(self._workshop, Workshop)
        if isinstance(work, ScoreWork):
            yield from ((rows, {}) for rows in self._score(self._workshop, work))
            return
        orders = [
            LaneOrder(
                lane.candidate,
                masks.get(lane.candidate.mask or ""),
                lane.id,
                tuple(CutOrder(cut.arm, cut.sparsity, cut.method, cut.later) for cut in lane.cuts),
                lane.checkpoint,
                lane.keeps_weights,
                lane.parent,
                lane.siblings,
            )
            for lane in work.lanes
        ]
        for ended in self._workshop.train(orders):
            yield self._rows(work, ended)

    def _train_segment(self, work: SegmentWork) -> Iterator[tuple[pa.RecordBatch | None, dict[str, bytes]]]:
        """Train candidates of a search to their next rung or to the end; one that trains alone past all its rungs."""
        assert isinstance(self._workshop, SegmentShop)
        starts = [(lane.start_step, lane.checkpoint, lane.behind) for lane in work.lanes]
        ends = [*((step, (rung,)) for rung, step in work.passing), (work.stops[0], work.rung)]
        for stop, rungs in ends:
            specs = [
                LaneSpec(lane_name(lane), lane.settings, start, stop, checkpoint, behind, lane.keeps_mask)
                for lane, (start, checkpoint, behind) in zip(work.lanes, starts, strict=True)
            ]
            part = replace(work, rung=rungs)
            for ended in self._workshop.train(specs, work.replicate, work.padded):
                if not ended:
                    yield None, {}
                    continue
                if work.passing:
                    (one,) = ended
                    starts = [(one.steps, one.checkpoint, (*starts[0][2], (one.steps, one.checkpoint, None)))]
                    if one.outcome is None:
                        lane = work.lanes[0]
                        self._passed = (f"{lane.arm}/{work.replicate}", one.steps, one.val_loss)
                recipe, device = self._settings.recipe, self._device_name
                yield segment_rows(part, ended, recipe, device=device, schema=self._schema), kept_masks(ended)
                if work.passing and ended[0].outcome is not None:
                    return

    def _score(self, workshop: Workshop, work: ScoreWork) -> Iterator[pa.RecordBatch]:
        """Score masks; if that breaks, by halves until the culprit is alone."""
        recipe = self._settings.recipe
        began = time.perf_counter()
        try:
            scored = workshop.score(work.replicate, work.sparsity, work.start, work.stop)
            yield scored_rows(work, scored, self._names, recipe, device=self._device_name, schema=self._schema)
        except Exception as error:  # the candidate boundary: user code or the device failed, which is data
            halves = work.halves()
            if len(halves) > 1:
                for half in halves:
                    yield from self._score(workshop, half)
                return
            seconds = time.perf_counter() - began
            reason = outcome_of(error), _text(error)
            yield lost_rows(work, *reason, self._names, recipe, seconds_each=seconds, schema=self._schema)

    def _rows(self, work: TrainWork, ended: list[Trained]) -> tuple[pa.RecordBatch | None, dict[str, bytes]]:
        if not ended:
            return None, {}
        assert isinstance(self._workshop, Workshop)
        macs = self._workshop.structure.macs
        recipe, device = self._settings.recipe, self._device_name
        return trained_rows(work, ended, recipe, parent_macs=macs, device=device, schema=self._schema)


class PackTrial(tune.Trainable):  # type: ignore[misc]
    """One pack after another on one core or one GPU."""

    def setup(self, config: dict[str, Any], *, settings: Any = None, dataset: Any = None) -> None:
        """Prepare the process once; `reset_config` brings the next pack. Nothing here can fail or hang for long."""
        # At the end: nothing that lies beside a study may hide a module of Ray's, torch's or Python's.
        sys.path += [path for path in settings.import_paths if path not in sys.path]
        round_alike()
        torch.set_num_threads(settings.threads)
        # Moments of silent units decay into subnormal numbers, which cost a hundred times as much on a CPU.
        torch.set_flush_denormal(True)
        keep_freed_memory()
        if settings.memory_bytes is not None:
            limit = _data_bytes() + settings.memory_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        self._runner = PackRunner(settings, dataset)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next pack."""
        self._key: str | None = new_config["pack"]
        return True

    def step(self) -> dict[str, Any]:
        """Work on the pack for a while and report."""
        if self._key is not None:
            try:
                work, masks = OrderBook().take(self._key)
            except (RayError, KeyError) as error:
                return {**problem(f"its order {self._key} could not be fetched ({error})")}
            self._key = None
            self._runner.start(work, masks)
        return {**self._runner.step()}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the ledger is the only record."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the ledger is the only record."""


def problem(text: str) -> Report:
    """The report of a worker that can run no pack at all."""
    return {"rows": None, "blobs": {}, "done": True, "problem": text, "run": None, "steps": 0, "loss": None}


def outcome_of(error: BaseException) -> str:
    """What an exception of user code or the device means for its candidate.

    >>> outcome_of(MemoryError()), outcome_of(ValueError())
    ('out_of_memory', 'failed')
    """
    # The CPU allocator of torch raises a plain RuntimeError.
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
    return "out_of_memory" if is_memory else "failed"


def decode_rows(payload: bytes | None) -> list[pa.RecordBatch]:
    """Record batches of one report."""
    if not payload:
        return []
    # Not as a context manager: in PyArrow 25 a closed reader never lets go of the bytes it read.
    return list(pa.ipc.open_stream(payload))


def _encode(rows: list[pa.RecordBatch]) -> bytes | None:
    """One batch, since one report is one commit."""
    if not rows:
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows[0].schema) as writer:
        writer.write_table(pa.Table.from_batches(rows).combine_chunks())
    return bytes(sink.getvalue())


def _text(error: Exception) -> str:
    if isinstance(error, CandidateFailed):
        return str(error)
    return "".join(traceback.format_exception(error))[-8000:]


def round_alike() -> None:
    """Let matrix products on a CPU round alike whatever packs they are in; to be called before the first of a process.

    MKL, which torch multiplies by, otherwise chooses its way by where operands lie in memory, too: lanes of perceptrons
    then differ in their last bits from the same ones alone (seen on an AMD EPYC with AVX-512; no time is lost by it).

    Reference: Intel oneAPI MKL developer guide, Conditional numerical reproducibility.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def keep_freed_memory() -> None:
    """Let the C library keep up to 512 MiB that were freed, in blocks up to 32 MiB, instead of giving them back.

    Every step frees and takes tensors of megabytes, and the kernel clears each page anew (measured, one lane of
    40-500-500-10 on one core: 11% of the time). Another C library has no such call and is left as it is.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def _data_bytes() -> int:
    """Private writable memory that the process has now (what RLIMIT_DATA counts)."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
