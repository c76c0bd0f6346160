"""Run the benchmarks one after the other, each in a process of its own, and write their tables to RESULTS.md."""

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
HEAD = (
    "# Benchmarks\n\nWritten by `make bench`. Comparisons are side by side in one run; ratios are worth more than "
    "seconds.\n"
)
#: Behind it stands what somebody wrote about a table; it stays there when the table is measured anew.
COMMENTS = "<!-- in words, by hand -->"
_STAMP = "Measured "


def sections(page: str) -> dict[str, str]:
    r"""What is below each title of a page of results, the title included.

    >>> sections("# Benchmarks\n\n## One\n\ntable\n\n## Two\n\nother\n")
    {'## One': '## One\n\ntable\n', '## Two': '## Two\n\nother\n'}
    """
    parts = [f"## {part.rstrip()}\n" for part in page.split("\n## ")[1:]]
    return {part.split("\n", 1)[0]: part for part in parts}


def renewed(old: str, measured: str, stamp: str) -> str:
    r"""A section with another table, and what was written about the old one.

    >>> old = "\n\n".join(["## One", "old", COMMENTS, "Met.", "Measured then.\n"])
    >>> renewed(old, "## One\n\nnew\n", "Measured now.").split("\n\n")
    ['## One', 'new', '<!-- in words, by hand -->', 'Met.', 'Measured now.\n']
    """
    _, marker, words = old.partition(COMMENTS)
    comments = [marker + words.rpartition(f"\n\n{_STAMP}")[0]] if marker else []
    return "\n\n".join([measured.strip(), *comments, stamp]) + "\n"


def main() -> int:
    """Run the named benchmarks (all by default); what is not run keeps its last table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NAMES)} (default: all)")
    names = parser.parse_args().names or list(NAMES)
    if unknown := set(names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: must be among {', '.join(NAMES)}")
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
        print(done.stdout, flush=True)
        # After each: whoever stops in the middle keeps what was measured.
        found = sections(RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "")
        for title, measured in sections(f"\n{done.stdout}").items():
            stamp = f"{_STAMP}{datetime.now(UTC):%Y-%m-%d} on {describe()}."
            found[title] = renewed(found.get(title, ""), measured, stamp)
        RESULTS.write_text("\n".join([HEAD, *found.values()]), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
