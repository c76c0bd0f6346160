"""Run the benchmarks one after the other, each in a process of its own, and write benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import describe

NAMES = (
    *("baseline", "tune", "scoring", "lanes", "ledger"),
    *(
        "search_passes",
        "search_asha",
        "search_asha_nodes",
        "search_strategies",
        "search_proposals",
        "search_simulation",
    ),
    *("scores", "dynamic", "tickets"),
)
RESULTS = Path(__file__).with_name("RESULTS.md")
PARTS = Path(".benchmarks")


def main() -> int:
    """Run the named benchmarks (all by default); what is not run keeps its last table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NAMES)} (default: all)")
    names = parser.parse_args().names or list(NAMES)
    if unknown := set(names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: must be among {', '.join(NAMES)}")
    PARTS.mkdir(exist_ok=True)
    failed = False
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            print(f"{name}: failed with exit code {done.returncode}", file=sys.stderr)
            failed = True
            continue
        stamp = f"Measured {datetime.now(UTC):%Y-%m-%d} on {describe()}.\n"
        (PARTS / f"{name}.md").write_text(f"{done.stdout.strip()}\n\n{stamp}", encoding="utf-8")
        print(done.stdout, flush=True)
    parts = [(PARTS / f"{n}.md").read_text(encoding="utf-8") for n in NAMES if (PARTS / f"{n}.md").exists()]
    head = (
        "# Benchmarks\n\nWritten by `make bench`. Comparisons are side by side in one run; ratios are worth more than "
        "seconds.\n"
    )
    RESULTS.write_text("\n".join([head, *parts]), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
