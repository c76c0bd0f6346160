"""Take the documents' pictures from the reports of the examples: `python docs/pictures.py [RUNS]` (needs Chromium).

RUNS is the folder that holds the studies' folders (default: runs); what was not run there keeps its picture.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.chromium import DRAWN, Browser

#: Study -> the charts of its report that the documents show.
CHARTS = {
    "baseline": ("accuracy",),
    "sweep": ("attainment", "front", "dimensions"),
    "pareto": ("attainment", "front"),
    "allocation": ("attainment",),
    "hourglass": ("front",),
}

if __name__ == "__main__":
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs").resolve()
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        for study, charts in CHARTS.items():
            report = runs / study / "report.html"
            if not report.exists():
                continue
            browser.open(report, until=DRAWN)
            browser.run("document.querySelectorAll('.modebar').forEach((bar) => bar.remove())")
            for chart in charts:
                picture = Path(__file__).with_name(f"{study}-{chart}.png")
                picture.write_bytes(browser.picture(f"#chart-{chart}"))
                print(picture)
