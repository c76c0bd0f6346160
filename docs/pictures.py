"""Take the README's picture from the report that `make baseline` wrote: `python docs/pictures.py` (needs Chromium)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.chromium import DRAWN, Browser

REPORT = Path("runs/baseline/report.html").resolve()

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        browser.open(REPORT, until=DRAWN)
        browser.run("document.querySelectorAll('.modebar').forEach((bar) => bar.remove())")
        Path(__file__).with_name("baseline-accuracy.png").write_bytes(browser.picture("#chart-accuracy"))
