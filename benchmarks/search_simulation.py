"""Searches with a simulated clock at scale: time for each candidate and memory, up to a million candidates."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.machine import spread, table

#: Candidates, and how often they are simulated.
SIZES = ((10_000, 3), (100_000, 1), (1_000_000, 1))

#: In a process of its own, whose peak of memory is that of the driver.
SIMULATION = """
import resource, sys, time
from benchmarks.search import RUNGS, search_study
def simulated(n, rungs):
    arms = {"random": {"strategy": "random", "rungs": rungs}}
    return search_study(arms, candidates=n, batch=256).simulate(objective="tradeoff", workers=4)
rungs = {**RUNGS, "kind": sys.argv[2]}
simulated(256, rungs)
began = time.perf_counter()
found = simulated(int(sys.argv[1]), rungs).simulated
seconds = time.perf_counter() - began
assert found.totals.finished == int(sys.argv[1]), found.totals
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(seconds, peak_mib, found.totals.stopped, found.n_packs)
"""


def simulated(n: int, kind: str) -> tuple[float, float]:
    """Seconds and peak memory in MiB of `n` simulated candidates of random search with these rungs."""
    done = subprocess.run([sys.executable, "-c", SIMULATION, str(n), kind], check=True, capture_output=True, text=True)
    seconds, peak_mib, *counts = done.stdout.split()
    print(kind, n, seconds, peak_mib, *counts, file=sys.stderr, flush=True)
    return float(seconds), float(peak_mib)


def main() -> str:
    """Measure and return the table."""
    rows = []
    for kind in ("asha", "mo_asha"):
        each_us: dict[int, float] = {}
        for n, repeats in SIZES if kind == "asha" else SIZES[:2]:
            found = [simulated(n, kind) for _ in range(repeats)]
            each_us[n] = statistics.median(1e6 * seconds / n for seconds, _ in found)
            goal = {100_000: "< 60 s", 1_000_000: "< 2,048 MiB; within 20% of 10,000"}
            rows.append(
                [
                    f"{n:,} candidates, rungs `{kind}`",
                    f"{spread([seconds for seconds, _ in found])} s",
                    f"{spread([1e6 * seconds / n for seconds, _ in found])} us",
                    f"{each_us[n] / each_us[SIZES[0][0]] - 1:+.0%}",
                    f"{max(peak_mib for _, peak_mib in found):,.0f} MiB",
                    goal.get(n, ""),
                ]
            )
    return table(
        "Searches with a simulated clock",
        ["what", "wall time", "each candidate", "against 10,000", "peak memory", "goal"],
        rows,
        f"One arm of random search in one replicate, 4 imaginary workers, one core; median (lowest-highest) of "
        f"{', '.join(f'{repeats} at {n:,}' for n, repeats in SIZES)}. Candidates are described as in a real study "
        "(widths, depth, sparsity, learning rate of a perceptron); the curves of hypervolume at the end are included.",
    )


if __name__ == "__main__":
    print(main())
