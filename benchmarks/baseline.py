"""`make baseline` from start to end, set-up left out: a fresh folder each time, the report and MLflow included."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import spread, table

REPEATS = 3


def main() -> str:
    """Measure and return the table."""
    seconds = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            command = [
                sys.executable,
                "-m",
                "sparsefront.cli",
                "run",
                "examples/baseline.toml",
                "--dir",
                str(Path(folder) / "baseline"),
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
    return table(
        "The baseline study",
        ["what", "wall time", "goal"],
        [
            [
                "`make baseline` after set-up: 10 replicates x 4 levels, 10,240 masks scored, 530 networks trained",
                f"{spread(seconds)} s",
                "<= 240 s",
            ]
        ],
        f"Median (lowest-highest) of {REPEATS} runs, on all cores, Ray's start, report and MLflow included.",
    )


if __name__ == "__main__":
    print(main())
