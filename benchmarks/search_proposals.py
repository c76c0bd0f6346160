"""What a driver spends on each candidate of a search: strategy, packing, ledger, progress; nothing is trained."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.machine import spread, table
from benchmarks.search import WORKERS, search_study
from sparsefront.cluster.driver import Driver
from sparsefront.cluster.rows import Work, lane_name, segment_rows
from sparsefront.cluster.worker import WorkerSettings
from sparsefront.progress import Progress
from sparsefront.search.garbage import rare_collections
from sparsefront.search.ledger import Ledger
from sparsefront.search.simulator import SYNTHETIC, Query
from sparsefront.search.work import SegmentWork
from sparsefront.spaces.masks import Remains
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.segments import SegmentResult

#: Candidates, and how often they are handed out and taken in.
SIZES = ((1_000, 3), (10_000, 3), (100_000, 1))
ARMS: dict[str, dict[str, Any]] = {
    "random": {"strategy": "random"},
    "nsga2": {"strategy": "nsga2", "options": {"population": 50}},
}
BATCH = 64


def driver_seconds(strategy: str, n: int, place: Path) -> tuple[float, int, int]:
    """Seconds in the driver of one run of `n` candidates; its packs and its rows.

    The driver, its plan, the ledger and the progress are those of a real study, in the calls in which Ray Tune would
    make them; what workers would report is made up and takes no time.

    Args:
        strategy: one of `ARMS`.
        n: candidates.
        place: an empty folder: the driver removes the checkpoints of its study from one in it.
    """
    # One arm must be random search: another run of it is as small as can be.
    arms = {"random": {"strategy": "random", "candidates": 1}, "judged": ARMS[strategy]}
    study = search_study(arms, candidates=n, batch=BATCH)
    dataset = load_dataset("mnist1d")
    recipe, design = study.recipe(), study.design(dataset)
    settings = WorkerSettings(
        recipe=recipe,
        base=study.base(),
        device="cpu",
        timeout_s=600.0,
        memory_bytes=None,
        checkpoints=str(place.absolute() / "checkpoints"),
        **study._worker_options(dataset),
    )
    plan, describe = study._plan(dataset, WORKERS, "cpu"), study._describer(dataset)
    by_name = {arm.name: arm for arm in design.arms}
    objective = SYNTHETIC["tradeoff"].objective

    def imagined(work: SegmentWork) -> bytes:
        ended = []
        for lane, stop in zip(work.lanes, work.stops, strict=True):
            arm = by_name[lane.arm]
            known = describe(work.replicate, lane.point, arm.space)
            loss, error = objective(Query(arm, work.replicate, lane.point, known, stop))
            ended.append(
                SegmentResult(
                    id=lane_name(lane),
                    outcome="completed",
                    steps=stop,
                    flops=0.0,
                    val_loss=loss,
                    val_error=error,
                    curve_step=[stop],
                    curve_val_loss=[loss],
                    curve_val_error=[error],
                    passes=100.0 * stop,
                    seconds=0.01,
                    remains=Remains(0.0, known.weight_sparsity, known.n_params, known.macs),
                    mask_kind="weight",
                )
            )
        rows = segment_rows(work, ended, recipe, device="cpu", schema=settings.schema)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        return bytes(sink.getvalue())

    seconds, n_packs = 0.0, 0
    posted: dict[str, Work] = {}
    with Ledger.create(place / "study", study.recorded(dataset), digest="benchmark", versions={}) as ledger:
        progress = Progress(design, lambda: study._counts(plan))
        driver = Driver(
            plan,
            ledger,
            settings,
            max_retries=0,
            slots=WORKERS,
            post=lambda key, work, masks: posted.update({key: work}),
            on_commit=progress.absorb,
        )
        running: deque[tuple[str, SegmentWork]] = deque()
        while not driver.is_over:
            # One more than runs at once, as with Tune.
            while len(running) <= WORKERS:
                trial = f"trial-{n_packs}"
                began = time.perf_counter()
                key = driver.next_pack(trial)
                seconds += time.perf_counter() - began
                if key is None:
                    break
                work = posted.pop(key)
                assert isinstance(work, SegmentWork)
                running.append((trial, work))
                n_packs += 1
            if running:
                trial, work = running.popleft()
                report = {"rows": imagined(work), "blobs": {}, "done": True, "problem": None}
                began = time.perf_counter()
                driver.heard(trial, report)
                driver.ended(trial)
                seconds += time.perf_counter() - began
        assert driver.failure is None, driver.failure
        return seconds, n_packs, ledger.n_rows


def main() -> str:
    """Measure and return the table."""
    rows = []
    for strategy in ARMS:
        for n, repeats in SIZES:
            found = []
            for _ in range(repeats):
                command = [sys.executable, "-m", "benchmarks.search_proposals", strategy, str(n)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found.append([float(v) for v in done.stdout.split()])
                print(strategy, n, *found[-1], file=sys.stderr, flush=True)
            rows.append(
                [
                    f"`{strategy}`, {n:,} candidates",
                    f"{spread([1e3 * seconds / n for seconds, *_ in found])} ms",
                    f"{n / statistics.median(n_packs for _, n_packs, _ in found):.0f}",
                    f"{statistics.median(n_rows for *_, n_rows in found):,.0f}",
                    "< 1 ms" if n == SIZES[-1][0] else "",
                ]
            )
    return table(
        "What a driver spends on each candidate",
        ["what", "strategy and driver", "candidates a pack", "rows", "goal"],
        rows,
        f"One run in batches of {BATCH}, {WORKERS} workers that answer at once, one core: proposing, describing, "
        "packing, decoding reports, committing to a ledger on disk, following the progress; no Ray. Rows count "
        "repeated proposals too, which are recorded but not trained. Median (lowest-highest) of "
        f"{', '.join(f'{repeats} at {n:,}' for n, repeats in SIZES)}.",
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as place, rare_collections():  # as where Tune runs
            print(*driver_seconds(sys.argv[1], int(sys.argv[2]), Path(place)))
    else:
        print(main())
