"""Time the ledger: commits, opening, replay and scans of a study of a million rows, as a Markdown table.

Run as ``python benchmarks/ledger.py [--rows N] [--folder DIR]``; DIR must be on the disk that is to be measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.search.ledger import Ledger
from sparsefront.search.schema import KEY, SCHEMA

CURVE_POINTS = 20
COMMIT_ROWS = 1_000
#: Share of rows that were trained; the others are masks that were only scored.
TRAINED_FRACTION = 0.2


def random_rows(first_slot: int, n: int, generator: np.random.Generator) -> pa.Table:
    """Rows of a study: one in five trained, with a curve of 20 points; the others scored only."""
    trained = generator.random(n) < TRAINED_FRACTION

    def measured(values: np.ndarray, kind: pa.DataType, *, where: np.ndarray = trained) -> pa.Array:
        return pa.array(values, kind, mask=~where)

    def curves(values: np.ndarray, kind: pa.DataType) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum(np.where(trained, CURVE_POINTS, 0))]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(values, kind.value_type), mask=pa.array(~trained)).cast(kind)

    n_points = int(trained.sum()) * CURVE_POINTS
    every = np.full(n, True)
    digits = generator.bytes(16 * n).hex()
    ids = [digits[32 * i : 32 * i + 32] for i in range(n)]
    sparsity = generator.choice([0.5, 0.7, 0.8, 0.9, 0.95, 0.98], n)
    given = {
        "candidate": ids,
        "stage": np.where(trained, "trained", "scored"),
        "arm": np.where(trained, generator.choice(["random", "searched", "worst"], n), "pool"),
        "replicate": np.full(n, first_slot // 100_000 % 10),
        "target_sparsity": sparsity,
        "slot": np.arange(first_slot, first_slot + n),
        "outcome": np.where(generator.random(n) < 0.01, "diverged", "completed"),
        "reused": np.full(n, fill_value=False),
        "mask_kind": np.full(n, "node"),
        "mask_draw": np.arange(first_slot, first_slot + n),
        "mask_digest": ids[::-1],
        "node_sparsity": sparsity,
        "weight_sparsity": 1 - (1 - sparsity) ** 1.3,
        "n_params": np.round(15_000 * (1 - sparsity)),
        "macs": np.round(14_000 * (1 - sparsity)),
        "optimizer": np.full(n, "adam"),
        "passes": np.where(trained, 1e5, 300.0),
        "flops": np.where(trained, 1e5, 300.0) * 28_000 * (1 - sparsity),
        "seconds": np.full(n, generator.random()),
        "attempt": np.zeros(n),
        "pack": np.full(n, f"p{first_slot // 250:06d}"),
        "device": np.full(n, "cpu"),
        "committed_at": np.full(n, 1_750_000_000_000_000 + first_slot),
    }
    measurements = {"val_loss", "val_error", "test_loss", "test_error", "lr", "weight_decay", "label_smoothing"}
    scores = {"initial_loss", "scalefree_loss", "temperature", "logit_std"}
    columns = []
    for field in SCHEMA:
        if field.name in given:
            column = pa.array(given[field.name]).cast(field.type)
        elif field.name == "curve_step":
            column = curves(np.tile(np.arange(CURVE_POINTS) * 50, n_points // CURVE_POINTS), field.type)
        elif field.name.startswith("curve_"):
            column = curves(generator.random(n_points).astype(np.float32), field.type)
        elif field.name in measurements | scores:
            column = measured(generator.random(n), field.type, where=trained if field.name in measurements else every)
        elif field.name in ("steps", "batch_size"):
            column = measured(np.full(n, 1000 if field.name == "steps" else 100), field.type)
        else:
            column = pa.nulls(n, field.type)
        columns.append(column)
    return pa.table(columns, schema=SCHEMA)


def seconds_of(act: Callable[[], object]) -> float:
    """Wall time of one call, in seconds."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def shown(values: list[float], unit: str, digits: int = 1) -> str:
    """Median and range of repeats."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} {unit} ({low:,.{digits}f} to {high:,.{digits}f}, n={len(values)})"


def measure(folder: Path, n_rows: int) -> Iterator[tuple[str, str]]:
    """Rows of the table: what was measured, and the figure."""
    generator = np.random.default_rng(0)
    n_commits, repeats = n_rows // COMMIT_ROWS, 5
    distinct = [random_rows(COMMIT_ROWS * i, COMMIT_ROWS, generator) for i in range(min(50, n_commits))]
    waits: list[float] = []
    rates: list[float] = []
    with Ledger.create(folder, {"name": "benchmark"}, digest="benchmark", versions={}) as ledger:
        for chunk in np.array_split(np.arange(n_commits), repeats):
            times = [seconds_of(lambda i=i: ledger.commit(distinct[i % len(distinct)])) for i in chunk]
            waits += times
            rates.append(len(chunk) * COMMIT_ROWS / sum(times))
        yield f"commits of {COMMIT_ROWS:,} rows, merges included", shown(rates, "rows/s", 0)
        yield (
            "one such commit",
            f"median {1e3 * statistics.median(waits):.1f} ms, longest (it merges) {max(waits):.2f} s",
        )
        yield "rows, parts, bytes", f"{ledger.n_rows:,}, {ledger.n_parts}, {ledger.n_bytes:,}"
        yield "bytes a row", f"{ledger.n_bytes / ledger.n_rows:.0f}"

    def opened_and_read(columns: tuple[str, ...] | None, where: pc.Expression | None = None) -> None:
        with Ledger.open(folder) as ledger:
            for _ in ledger.scan(columns=columns, where=where):
                pass

    yield (
        "open (verify every digest)",
        shown([seconds_of(lambda: opened_and_read((), pc.scalar(False))) for _ in range(repeats)], "s", 2),
    )
    yield (
        "open and scan the key columns",
        shown([seconds_of(lambda: opened_and_read(KEY)) for _ in range(repeats)], "s", 2),
    )
    yield (
        "open and scan all columns",
        shown([seconds_of(lambda: opened_and_read(None)) for _ in range(repeats)], "s", 2),
    )

    def replayed() -> None:
        done = set()
        with Ledger.open(folder) as ledger:
            for batch in ledger.scan(columns=KEY):
                done.update(zip(*(column.to_pylist() for column in batch.columns), strict=True))

    yield "open and replay into a Python set of keys", shown([seconds_of(replayed) for _ in range(3)], "s", 1)

    few = random_rows(0, 13, generator)
    with Ledger.create(folder.with_name("tiny"), {"name": "tiny"}, digest="tiny", versions={}) as ledger:
        waits = [seconds_of(lambda: ledger.commit(few)) for _ in range(1_100)]
        yield (
            "a commit of 13 rows",
            (
                f"median {1e3 * statistics.median(waits):.1f} ms, "
                f"mean with merges {1e3 * statistics.mean(waits):.1f} ms, "
                f"longest {1e3 * max(waits):.0f} ms (n={len(waits)}, {ledger.n_parts} parts)"
            ),
        )
    yield "peak memory of this process", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time the ledger.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the study (default: 1000000)")
    parser.add_argument("--folder", type=Path, help="where to write it (default: the temporary folder)")
    arguments = parser.parse_args()
    if arguments.rows < 10 * COMMIT_ROWS:
        parser.error(f"--rows={arguments.rows}: at least {10 * COMMIT_ROWS} are needed")
    folder = Path(tempfile.mkdtemp(prefix="ledger-", dir=arguments.folder))
    try:
        print(
            "## The ledger\n\n"
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"PyArrow {pa.__version__}\n"
        )
        print("| measured | figure |\n| --- | --- |")
        for name, figure in measure(folder / "study", arguments.rows):
            print(f"| {name} | {figure} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
