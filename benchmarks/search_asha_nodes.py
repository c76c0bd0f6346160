"""ASHA in packs against Ray Tune's own ASHA, one candidate a trial: candidates with node masks, at their real size."""

from __future__ import annotations

import sys

from benchmarks.machine import table
from benchmarks.search_asha import CANDIDATES, REPEATS, against_tune, prepare


def main(n: int = CANDIDATES) -> str:
    """Measure and return the table."""
    prepare()
    return table(
        "ASHA in packs: node masks",
        ["what", "figure", "goal"],
        against_tune(n, "node"),
        f"As above, but masks remove nodes, so that both contenders train networks of the compact size. Median "
        f"(lowest-highest) of {REPEATS} runs, in turn.",
    )


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
