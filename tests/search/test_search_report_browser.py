"""The report of a search study in a real browser: every chart is drawn, from the right numbers, without an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsefront.search.comparison import compare_arms
from sparsefront.search.report.search_page import write_search_report
from sparsefront.spaces.space import Space
from tests.chromium import CHROMIUM, DRAWN, Browser
from tests.synthetic_search import TABLE, make_search_design, make_search_table

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian package: chromium)"),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as opened:
        yield opened


def report(folder: Path, **changes: Any) -> Path:
    design = make_search_design(**({"replicates": 3, "candidates": 60} | changes))
    outcomes = {("random", 0, 3): "diverged", ("random", 1, 2): "infeasible"}
    table = make_search_table(design, outcomes=outcomes)
    write_search_report(table, design, compare_arms(table, design), folder / "r.html", provenance={})
    return folder / "r.html"


def charted(chart: str, expression: str) -> str:
    return (
        "(() => { const chart = document.getElementById('chart-" + chart + "'); const { data, layout } = chart; "
        "const numbers = JSON.parse(document.getElementById('sparsefront-data').textContent); "
        f"const drawn = (css) => chart.querySelectorAll(css).length; return {expression}; }})()"
    )


def test_each_chart_shows_its_numbers_without_errors_and_without_the_network(browser: Browser, tmp_path: Path) -> None:
    browser.open(report(tmp_path, name="A <i>study</i>"), until=DRAWN)
    assert browser.errors == []
    assert [u.split("/")[-1] for u in browser.requests if not u.startswith(("data:", "blob:"))] == ["r.html"]
    assert browser.run("document.documentElement.dataset.rendered") == "attainment front outcomes importance dimensions"
    assert browser.run("document.querySelector('h1').textContent") == "A <i>study</i>"

    means = browser.run(charted("attainment", "data.filter((t) => t.showlegend !== false).map((t) => [...t.y])"))
    assert means == browser.run(charted("attainment", "numbers.curves.map((c) => c.mean)"))
    n_points = browser.run(charted("front", "numbers.points.candidate.length"))
    assert browser.run(charted("front", "drawn('.scatterlayer path.point')")) == n_points
    hovers = browser.run(charted("front", "data.flatMap((t) => t.text || []).join()"))
    for i, name in enumerate(browser.run(charted("front", "numbers.points.candidate"))):
        assert name in hovers, i
    assert "optimizer adam" in hovers
    total = browser.run(charted("outcomes", "data.map((t) => t.x).reduce((a, b) => a.map((v, i) => v + b[i]))"))
    assert total == pytest.approx([1, 1, 1])
    assert browser.run(charted("importance", "data.length")) >= 1
    panels = browser.run(charted("dimensions", "Object.keys(layout).filter((k) => k.startsWith('xaxis')).length"))
    assert panels == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"objectives": ("val_error", "n_params", "macs")},
        {"objectives": ("val_loss",)},
        {"objectives": ("val_accuracy", "weight_sparsity")},
        {"arms": {"random": {}, "an <b>arm</b> <a href='javascript:alert(1)'>of mine</a>": {}}},
        {"replicates": 1, "candidates": 4},
        {
            "space": {
                "training": TABLE["training"] | {"weight_decay": {"low": 1e-6, "high": 1e-2, "log": True}},
                "model": {"widths": {"low": 4, "high": 128, "depth": 8}},
            }
        },
    ],
    ids=["three", "one", "more is better", "a name with tags", "few", "many dimensions"],
)
def test_other_studies_are_drawn_without_errors(browser: Browser, tmp_path: Path, changes: dict[str, Any]) -> None:
    browser.open(report(tmp_path, **changes), until=DRAWN)
    assert browser.errors == []
    assert "attainment front outcomes" in browser.run("document.documentElement.dataset.rendered")
    assert browser.run("document.querySelectorAll('.chart a[href^=javascript], .legend a').length") == 0


def test_an_empty_study_is_shown_and_printed_without_errors(browser: Browser, tmp_path: Path) -> None:
    design = make_search_design()
    table = make_search_table(make_search_design(replicates=1, candidates=1)).slice(0, 0)
    write_search_report(table, design, compare_arms(table, design), tmp_path / "r.html", provenance={})
    browser.prefer(scheme="dark")
    browser.open(tmp_path / "r.html", until=DRAWN)
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.errors == []
    assert browser.run("document.documentElement.dataset.rendered") == ""


def test_spaces_of_the_arms_are_told_apart(browser: Browser, tmp_path: Path) -> None:
    """An arm may fix what another one varies: the columns of both are shown."""
    fixed = Space.from_table(TABLE).with_overrides({"training": {"optimizer": "adam"}})
    browser.open(report(tmp_path, arms={"random": {}, "adam": {"space": fixed}}), until=DRAWN)
    assert browser.errors == []
    assert browser.run("[...document.querySelectorAll('#run h3')].map((h) => h.textContent)") == ["random", "adam"]


@pytest.mark.parametrize("most", [9, 60], ids=["narrow", "wide"])
def test_ticks_of_a_log_axis_are_all_written_alike(browser: Browser, tmp_path: Path, most: int) -> None:
    browser.open(report(tmp_path, candidates=most), until=DRAWN)
    ticks = browser.run(charted("attainment", "[...chart.querySelectorAll('.xtick text')].map((t) => t.textContent)"))
    assert len(ticks) >= 2
    assert all(re.fullmatch(r"[125]0{0,2}[kMGTP]?", tick) for tick in ticks), ticks
    values = [float(t.rstrip("kMGTP")) * 1000 ** " kMGTP".index(t[-1] if t[-1].isalpha() else " ") for t in ticks]
    assert values == sorted(set(values))
    texts = browser.run(
        "[[1, -4, 1e-4], [5, -4, 1e-4], [1, -3, 0.002], [2, -1, 0.002], [5, 2, 1], [1, 3, 1], [2, 4, 1], [5, 17, 1]]"
        ".map((tick) => sparsefront.tickText(...tick))"
    )
    assert texts == ["10<sup>-4</sup>", "5·10<sup>-4</sup>", "0.001", "0.2", "500", "1k", "20k", "500P"]


def test_a_narrow_page_is_not_wider_than_its_window_when_everything_is_unfolded(
    browser: Browser, tmp_path: Path
) -> None:
    browser._call("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=False)
    browser.open(report(tmp_path), until=DRAWN)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= 420
