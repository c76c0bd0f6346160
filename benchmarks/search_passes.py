"""Passes that ASHA in packs saves, and how busy it keeps the workers.

One study of random search without rungs, with them, and of evolution with them.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.machine import table
from benchmarks.search import ABOUT, RUNGS, WORKERS
from benchmarks.search_asha import ASHA, CANDIDATES, busy_fraction, prepare, run_study
from sparsefront.search.comparison import ratio_text

REPLICATES = 5
#: Candidates that ASHA may begin for each of random search's, beside an arm with as many, to see with how many passes
#: it gets as far: all of them cost it about two fifths of random search's passes.
MORE = 2
RANDOM: dict[str, Any] = {"strategy": "random"}
#: The same rungs over candidates that come of those before them: as many as random search has.
EVOLVING: dict[str, Any] = {"strategy": "evolution", "rungs": RUNGS}


def passes_and_use(n: int) -> list[list[str]]:
    """The study of all arms: passes that ASHA needs, and how busy the workers are."""
    arms = {
        "random": RANDOM,
        "asha": ASHA,
        "asha_more": {**ASHA, "candidates": MORE * n},
        "asha_evolution": EVOLVING,
    }
    clock, ready, rows, verdict = run_study(arms, REPLICATES, n)
    wall_s = clock.ended_s - ready
    print(*verdict.sentences, sep="\n", file=sys.stderr)
    measured: list[list[str]] = []
    for found in verdict.comparisons:
        stopped = next(arm.stopped for arm in verdict.arms if arm.arm == found.arm)
        proposed = "evolution" if found.arm == "asha_evolution" else "random search"
        n_own = arms[found.arm].get("candidates", n)
        what = f"{REPLICATES} replicates x {n:,} candidates in `random`, {n_own:,} in `{found.arm}`"
        hypervolumes = f"{100 * found.arm_mean:.1f}% against {100 * found.against_mean:.1f}% of the box"
        measured += [
            [
                f"{what} (proposed by {proposed}): passes until it has the hypervolume with which `random` ends",
                " to ".join(map(ratio_text, (found.cost_ratio_low, found.cost_ratio_high)))
                + f", estimate {ratio_text(found.cost_ratio)} of those of `random`",
                "<= 25%",
            ],
            [
                f"the same: hypervolume at equal budget ({found.budget_passes:.3g} passes), against random",
                f"{hypervolumes}: {found.label} (p = {found.p_adjusted:.2g})",
                "",
            ],
            [
                f"the same: passes of the whole arm `{found.arm}`; candidates stopped",
                f"{found.arm_passes / found.against_passes:.1%} of those of `random`; "
                + ", ".join(f"{share:.0%} at rung {rung}" for rung, share in sorted(stopped.items())),
                "",
            ],
        ]
    return [
        *measured,
        [
            f"the study of all arms: share of wall time in which {WORKERS} workers have a pack, from the first pack",
            f"{busy_fraction(rows, wall_s):.1%} of {wall_s:.0f} s; Ray's start before it {ready - clock.asked_s:.1f} s",
            ">= 85%",
        ],
    ]


def main(n: int = CANDIDATES) -> str:
    """Measure and return the table."""
    prepare()
    return table(
        "Passes of ASHA in packs",
        ["what", "figure", "goal"],
        passes_and_use(n),
        f"{ABOUT}. A worker with a pack builds, trains, "
        "validates and checkpoints. Start of Ray: until a worker is ready.",
    )


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
