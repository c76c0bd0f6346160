"""The report in a real browser: charts are drawn, from the right numbers, without an error and without the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparsefront.search.design import Design
from sparsefront.search.report import write_report
from sparsefront.search.schema import SCHEMA
from sparsefront.search.verdict import judge
from tests.chromium import CHROMIUM, DRAWN, Browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian package: chromium)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def design(make_design: Callable[..., Design]) -> Design:
    return make_design(
        name="A <i>study</i>", sparsities=(0.5, 0.75, 0.9), replicates=4, draws=8, random_draws=4, steps=200
    )


@pytest.fixture(scope="module")
def report(folder: Path, design: Design, make_table: Callable[..., pa.Table]) -> Path:
    rows = make_table(design, n_points=8, outcomes={("searched", 0, 0.5, 0): "failed"})
    write_report(rows, design, judge(rows, design), folder / "report.html", provenance={"Hardware": "a laptop"})
    return folder / "report.html"


def charted(chart: str, expression: str) -> str:
    """Give an expression over what Plotly drew: ``data`` and ``layout`` of a chart, and the numbers of the page."""
    return (
        "(() => { const chart = document.getElementById('chart-" + chart + "'); const { data, layout } = chart; "
        "const numbers = JSON.parse(document.getElementById('sparsefront-data').textContent); "
        f"const drawn = (css) => chart.querySelectorAll(css).length; return {expression}; }})()"
    )


def test_charts_are_drawn_without_errors_and_without_the_network(browser: Browser, report: Path) -> None:
    browser.open(report, until=DRAWN)
    assert browser.run("document.documentElement.dataset.rendered") == "accuracy front losses curves"
    assert browser.errors == []
    assert [url.split("/")[-1] for url in browser.requests if not url.startswith(("data:", "blob:"))] == ["report.html"]
    assert browser.run("document.querySelectorAll('h1 *').length") == 0
    assert browser.run("document.querySelector('h1').textContent") == "A <i>study</i>"


def test_each_chart_shows_its_numbers(browser: Browser, report: Path) -> None:
    browser.open(report, until=DRAWN)
    pruned = browser.run(charted("accuracy", "numbers.accuracy.filter((row) => row.sparsity > 0).length"))
    assert pruned == 6 * 3
    assert browser.run(charted("accuracy", "drawn('.scatterlayer path.point')")) == pruned
    shown = browser.run(charted("accuracy", "data.filter((t) => t.name === 'magnitude').map((t) => [...t.y])"))
    wanted = browser.run(
        charted("accuracy", "[numbers.accuracy.filter((r) => r.arm === 'magnitude').map((r) => r.mean)]")
    )
    assert shown == wanted
    ticks = browser.run(charted("accuracy", "[...chart.querySelectorAll('.xtick text')].map((t) => t.textContent)"))
    assert ticks == ["nodes 50.0%weights 66.7%", "nodes 75.0%weights 87.5%", "nodes 90.0%weights 96.0%"]

    n_points = browser.run(charted("front", "numbers.points.candidate.length"))
    assert browser.run(charted("front", "drawn('.scatterlayer path.point')")) == 2 * n_points
    hovers = browser.run(charted("front", "data.flatMap((t) => t.text || []).join()"))
    for name in browser.run(charted("front", "numbers.points.candidate")):
        assert name in hovers
    n_drawn = browser.run(charted("losses", "numbers.points.drawn.filter((d) => d).length"))
    assert browser.run(charted("losses", "drawn('.scatterlayer path.point')")) == n_drawn > 0
    assert browser.run(charted("losses", "layout.annotations.map((a) => a.text).join()")).count("Spearman") == 3
    assert browser.run(charted("curves", "data.filter((t) => t.showlegend !== false).map((t) => t.name)")) == [
        "random",
        "searched",
        "searched_scalefree",
        "worst",
        "dense",
        "small_dense",
        "magnitude",
    ]


def after(chart: str, action: str) -> str:
    """Give a promise that an action has made a chart be drawn anew."""
    place = f"document.getElementById('chart-{chart}')"
    return f"new Promise((done) => {{ {place}.once('plotly_afterplot', () => done(true)); {action}; }})"


def test_the_controls_change_the_charts(browser: Browser, report: Path) -> None:
    browser.open(report, until=DRAWN)
    values = charted("losses", "[...data.find((t) => t.name === 'random').x]")
    initial = browser.run(values)
    browser.run(after("losses", "document.querySelector('input[value=scalefree_loss]').click()"))
    assert browser.run(values) == browser.run(
        charted(
            "losses",
            "numbers.points.scalefree_loss.filter((_, i) => "
            "numbers.points.arm[i] === 'random' && numbers.points.sparsity[i] === 0.5)",
        )
    )
    assert browser.run(values) != initial

    level = charted("curves", "[...data.find((t) => t.name === 'random' && t.showlegend !== false).y]")
    select = (
        "const s = document.getElementById('curve-level'); s.selectedIndex = 0; s.dispatchEvent(new Event('change'))"
    )
    assert browser.run("document.getElementById('curve-level').value") == "90% of nodes removed"
    browser.run(after("curves", select))
    wanted = "numbers.curves.find((c) => c.arm === 'random' && c.sparsity === 0.5).val_error"
    assert browser.run(level) == browser.run(charted("curves", wanted))
    assert browser.errors == []


def test_charts_follow_the_colour_scheme_and_print_in_black_on_white(browser: Browser, report: Path) -> None:
    colour = charted("accuracy", "layout.font.color")
    browser.prefer(scheme="light")
    browser.open(report, until=DRAWN)
    assert browser.run(colour) == "#1b1f24"
    browser.prefer(scheme="dark")
    browser.run(
        "new Promise((done) => { const look = () => "
        "document.getElementById('chart-accuracy').layout.font.color === '#e6e9ed' "
        "? done(true) : setTimeout(look, 20); look(); })"
    )
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    browser.run(after("accuracy", "window.dispatchEvent(new Event('beforeprint'))"))
    assert browser.run(colour) == "#000000"
    browser.prefer(media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.errors == []


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": ("random",)},
        {"arms": ("dense",)},
        {"replicates": 1},
        {"mask_kind": "weight", "sparsities": (0.98,)},
        {"arms": ("random", "searched", "an <b>arm</b> <a href='javascript:alert(1)'>of mine</a>")},
    ],
    ids=["random only", "dense only", "one replicate", "weight masks", "a name with tags"],
)
def test_incomplete_studies_are_drawn_without_errors(
    browser: Browser,
    tmp_path: Path,
    make_design: Callable[..., Design],
    make_table: Callable[..., pa.Table],
    changes: Any,
) -> None:
    design = make_design(**({"replicates": 2, "draws": 4, "random_draws": 2, "steps": 100} | changes))
    rows = make_table(design, n_points=3)
    write_report(rows, design, judge(rows, design), tmp_path / "r.html", provenance={})
    browser.open(tmp_path / "r.html", until=DRAWN)
    assert browser.errors == []
    assert "accuracy" in browser.run("document.documentElement.dataset.rendered")
    assert browser.run("document.querySelectorAll('.chart a[href^=javascript], .legend a').length") == 0


def test_an_empty_study_is_shown_without_errors(
    browser: Browser, tmp_path: Path, make_design: Callable[..., Design]
) -> None:
    design, rows = make_design(), SCHEMA.empty_table()
    write_report(rows, design, judge(rows, design), tmp_path / "r.html", provenance={})
    browser.open(tmp_path / "r.html", until=DRAWN)
    assert browser.errors == []
    assert browser.run("document.documentElement.dataset.rendered") == ""


def test_the_policy_stops_what_the_page_does_not_bring_along(browser: Browser, report: Path) -> None:
    """Proves that the checks above can fail: errors and requests of a page are noticed, and refused by its policy."""
    browser.open(report, until=DRAWN)
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x.png\">')")
    browser.run("fetch('http://127.0.0.1:9/').then(() => false, () => true)")
    browser.run(
        "{ const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s); }"
    )
    assert browser.run("window.broken === undefined")
    assert any("Content Security Policy" in error and "img-src" in error for error in browser.errors)
    assert any("Content Security Policy" in error and "script-src" in error for error in browser.errors)
