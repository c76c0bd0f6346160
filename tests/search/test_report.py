"""The report's numbers equal those of the table, and its page is complete, safe and self-contained."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsefront.search.design import Design
from sparsefront.search.findings import LABELS
from sparsefront.search.front import front
from sparsefront.search.ledger import Ledger
from sparsefront.search.means import mean_interval
from sparsefront.search.methods import arm_names
from sparsefront.search.report import render_page, report_numbers, write_report
from sparsefront.search.report.diagnosed import smallest_stable
from sparsefront.search.report.frame import script_json
from sparsefront.search.report.markup import duration, engineering, interval_graphic, table, text
from sparsefront.search.report.numbers import MAX_FAILURES, arm_styles, first_line, plain
from sparsefront.search.schema import SCHEMA, schema_of
from sparsefront.search.verdict import judge
from sparsefront.search.wording import NOT_JUDGED, shown_label

PROVENANCE = {"Hardware": "a laptop", "Versions": "sparsefront 0.0"}
#: What must never arrive in a page as anything but text.
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'single' \u2028 ${x} $title"


class Page(HTMLParser):
    """What a browser would see of a page: elements, scripts, policy, text and tables."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.data: dict[str, Any] = {}
        self.policy = ""
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._open_script: str | None = None
        self._in_style = self._in_cell = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"] or ""
        if tag == "script":
            self._open_script = attributes.get("id") or "code"
        self._in_style = tag == "style"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._open_script = None
        if tag in ("td", "th"):
            self._in_cell = False
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._open_script == "sparsefront-data":
            self.data = json.loads(data)
        elif self._open_script:
            self.scripts.append(data)
        elif not self._in_style:
            self.texts.append(data)
            if self._in_cell:
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@dataclasses.dataclass(frozen=True)
class Study:
    design: Design
    table: pa.Table
    numbers: dict[str, Any]
    page: Page


@pytest.fixture(scope="module")
def build(make_design: Callable[..., Design], make_table: Callable[..., pa.Table]) -> Callable[..., Study]:
    def build_study(*, table: dict[str, Any] | pa.Table | None = None, **changes: Any) -> Study:
        design = make_design(**({"replicates": 3, "draws": 8, "random_draws": 4, "steps": 200} | changes))
        rows = table if isinstance(table, pa.Table) else make_table(design, **({"n_points": 5} | (table or {})))
        numbers = report_numbers(rows, design, judge(rows, design))
        return Study(design, rows, numbers, Page(render_page(numbers, provenance=PROVENANCE)))

    return build_study


@pytest.fixture(scope="module")
def study(build: Callable[..., Study]) -> Study:
    """One complete study, with a few failures."""
    return build(
        sparsities=(0.5, 0.9),
        table={"outcomes": {("random", 0, 0.9, 1): "diverged", ("magnitude", 1, 0.5, 0): "failed"}},
    )


def completed(rows: pa.Table) -> list[dict[str, Any]]:
    return [row for row in rows.to_pylist() if row["stage"] == "trained" and row["outcome"] == "completed"]


def test_the_page_embeds_the_numbers(study: Study) -> None:
    assert study.page.data == json.loads(json.dumps(study.numbers))


def test_accuracy_equals_that_of_the_table(study: Study) -> None:
    by_replicate: dict[tuple[str, float], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in completed(study.table):
        by_replicate[row["arm"], row["target_sparsity"]][row["replicate"]].append(1 - row["test_error"])
    shown = {(row["arm"], row["sparsity"]): row for row in study.page.data["accuracy"]}
    assert shown.keys() == by_replicate.keys()
    for key, replicates in by_replicate.items():
        means = [float(np.mean(values)) for _, values in sorted(replicates.items())]
        row = shown[key]
        assert row["replicate_means"] == pytest.approx(means, abs=1e-12)
        assert row["mean"] == pytest.approx(np.mean(means), abs=1e-12)
        low, high = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
        if len(means) > 1:
            assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-12)
        assert row["n_candidates"] == sum(map(len, replicates.values()))


def test_accuracy_is_printed_with_both_sparsities(study: Study) -> None:
    row = next(r for r in study.numbers["accuracy"] if r["arm"] == "searched" and r["sparsity"] == 0.9)
    expected = f"nodes {100 * row['node_sparsity']:.1f}%, weights {100 * row['weight_sparsity']:.1f}%"
    printed = [cells for cells in study.page.rows if f"{100 * row['mean']:.2f}%" in cells and expected in cells]
    assert printed, f"no row of a table shows {expected}"
    assert study.numbers["levels"][1]["tick"] == "nodes 90.0%<br>weights 96.0%"


def test_the_verdict_is_printed_in_full(study: Study) -> None:
    verdict = judge(study.table, study.design)
    assert study.page.data["verdict"] == json.loads(json.dumps(verdict.to_dict()))
    assert verdict.headline in study.page.text
    for sentence in verdict.sentences:
        assert " ".join(sentence.split()) in study.page.text
    labels = [
        cell
        for cells in study.page.rows
        for cell in cells
        if cell[2:] in ("better", "worse", "equivalent", "undecided", "not judged")
    ]
    assert [label[2:] for label in labels] == [shown_label(c.label, c.p_value) for c in verdict.comparisons]
    for comparison in verdict.comparisons:
        if comparison.metric == "accuracy" and math.isfinite(comparison.difference):
            points = f"{100 * comparison.difference:+.2f}".replace("-", "−")
            assert any(cell.startswith((points, "0.00")) for cells in study.page.rows for cell in cells), points


def test_every_verdict_has_a_word_and_a_symbol_beside_its_colour(study: Study) -> None:
    labels = {
        attributes["class"]
        for tag, attributes in study.page.elements
        if (attributes.get("class") or "").startswith("label")
    }
    assert labels
    for cells in study.page.rows:
        for cell in cells:
            word = cell[2:]
            if word in LABELS or word == NOT_JUDGED:
                symbols = {"better": "▲", "worse": "▼", "equivalent": "≈", "undecided": "?", "not judged": "○"}
                assert cell[0] == symbols[word]


def test_what_never_converged_is_not_judged_and_has_no_numbers(build: Callable[..., Study]) -> None:
    study = build(table={"reach": False}, sparsities=(0.5, 0.9), arms=("dense", "random", "searched"))
    section = study.page.text.partition("Speed of convergence")[2].partition("3. The front")[0]
    assert "○ not judged" in section
    assert "undecided" not in section
    assert "[0, 0]" not in section
    assert "searched at 50%, 90%: never reached: no network of either side came to the target" in section
    never = [cells for cells in study.page.rows if cells[1:2] == ["○ not judged"]]
    assert [cells[2:6] for cells in never] == 4 * [["–", "", "–", "–"]]  # both arms at both levels
    # What was tested, of accuracy, is as it was.
    assert "not judged" not in study.page.text.partition("2. Verdict")[2].partition("Speed of convergence")[0]


def test_one_pair_is_not_judged_but_shown(build: Callable[..., Study]) -> None:
    study = build(replicates=1, sparsities=(0.5,), arms=("random", "searched"))
    assert study.page.data["verdict"]["headline"].endswith("Not judged: there is one pair, and a test needs two")
    (found,) = study.page.data["verdict"]["comparisons"]
    points = f"{100 * found['difference']:+.2f}".replace("-", "−")
    assert any(cells[1:3] == ["○ not judged", points] for cells in study.page.rows)
    assert any(cells[1] == f"○ not judged {points}" for cells in study.page.rows if len(cells) == 2)
    assert "searched at 50%: one pair" in study.page.text


def test_nothing_to_pair_is_not_judged(build: Callable[..., Study]) -> None:
    lost = {("magnitude", replicate, 0.9, 0): "failed" for replicate in range(3)}
    study = build(sparsities=(0.5, 0.9), arms=("random", "magnitude"), table={"outcomes": lost})
    assert any(cells[1:3] == ["○ not judged", "–"] for cells in study.page.rows)
    assert any(cells[2:] == ["○ not judged"] for cells in study.page.rows)
    assert "magnitude at 90%: no replicate has both networks" in study.page.text


def test_points_and_front_equal_those_of_the_table(study: Study) -> None:
    points = study.page.data["points"]
    rows = completed(study.table)
    assert points["candidate"] == [row["candidate"] for row in rows]
    for name in ("arm", "replicate", "n_params", "macs"):
        assert points[name] == [row[name] for row in rows]
    for name in ("val_error", "test_error", "val_loss", "initial_loss", "scalefree_loss", "weight_sparsity"):
        assert points[name] == pytest.approx([row[name] for row in rows], rel=1e-7)
    members = front(study.table, study.design.objectives)["candidate"].to_pylist()
    assert [member["candidate"] for member in study.page.data["front"]] == members
    flagged = {name for name, is_member in zip(points["candidate"], points["on_front"], strict=True) if is_member}
    assert flagged == set(members)
    for member in members:
        assert any(member in cells for cells in study.page.rows)


@pytest.mark.parametrize(
    ("objectives", "is_drawn"),
    [
        (("val_error", "n_params", "macs"), True),
        (("macs", "val_accuracy", "n_params"), True),  # the same columns
        (("val_error", "n_params"), False),
        (("val_loss", "weight_sparsity"), False),
    ],
)
def test_the_front_says_whether_its_charts_show_the_objectives(
    build: Callable[..., Study], objectives: tuple[str, ...], is_drawn: bool
) -> None:
    page = build(objectives=objectives).page.text
    section = page.partition("3. The front, as validation error against parameters and MACs")[2].partition("4. ")[0]
    assert ("this study's objectives are others" in section) is not is_drawn
    assert all(name in section for name in objectives)


def test_curves_equal_those_of_the_table(study: Study) -> None:
    at: dict[tuple[str, float, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in completed(study.table):
        for step, error in zip(row["curve_step"], row["curve_val_error"], strict=True):
            at[row["arm"], row["target_sparsity"], step][row["replicate"]].append(error)
    n_compared = 0
    for curve in study.page.data["curves"]:
        for step, shown in zip(curve["step"], curve["val_error"], strict=True):
            replicates = at.pop((curve["arm"], curve["sparsity"], step))
            assert shown == pytest.approx(np.mean([np.mean(errors) for errors in replicates.values()]), rel=1e-6)
            n_compared += 1
    assert n_compared > 0
    assert not at, "steps of the table that no curve shows"


def test_failures_are_listed_by_outcome_with_their_message(study: Study) -> None:
    assert study.page.data["failures"]["n"] == 2
    shown = [cells for cells in study.page.rows if cells and cells[0] in ("diverged", "failed")]
    assert [(cells[0], cells[1], cells[3], cells[4]) for cells in shown] == [
        ("diverged", "random", "1", "diverged: synthetic <random>"),
        ("failed", "magnitude", "1", "failed: synthetic <magnitude>"),
    ]


def test_many_different_failures_are_counted_but_not_all_listed(build: Callable[..., Study]) -> None:
    good = build(arms=("random",), replicates=1, sparsities=(0.5,)).table
    row = next(row for row in good.to_pylist() if row["stage"] == "trained")
    failures = [row | {"slot": i, "outcome": "failed", "error": f"message {i}", "val_error": None} for i in range(80)]
    rows = pa.concat_tables([good, pa.Table.from_pylist(failures, schema=SCHEMA)])
    found = build(table=rows, arms=("random",), replicates=1, sparsities=(0.5,))
    assert found.numbers["failures"]["n"] == 80
    assert len(found.numbers["failures"]["listed"]) == MAX_FAILURES
    assert f"{80 - MAX_FAILURES} further failures" in found.page.text


def test_the_budget_of_every_arm_is_printed(study: Study) -> None:
    spent = {row["arm"]: row for row in study.numbers["verdict"]["spent"]}
    assert set(study.design.arms) <= set(spent)
    for arm, row in spent.items():
        name = "pool (scoring)" if arm == "pool" else arm
        cells = next(c for c in study.page.rows if c[0] == name and len(c) > 4 and c[4] == duration(row["seconds"]))
        assert cells[2] == engineering(row["passes"])
        assert cells[3] == engineering(row["flops"], unit="FLOP")
    total = sum(value for value in study.table["passes"].to_pylist() if value is not None)
    assert sum(row["passes"] for row in spent.values()) == pytest.approx(total)


# --- studies that lack things ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arms": ("random", "searched", "magnitude")}, "This study has no unpruned parent"),
        ({"arms": ("random", "dense")}, "The dashed line with its band is the unpruned parent"),
        ({"arms": ("random",)}, "Nothing to compare yet"),
        ({"arms": ("dense",), "sparsities": ()}, "No network with a drawn mask"),
        ({"replicates": 1}, "one replicate"),
        ({"mask_kind": "weight"}, "weight masks"),
        ({"arms": ("random", "searched", "mine", "yours")}, "yours"),
        ({"random_draws": 0, "arms": ("dense", "magnitude")}, "Nothing to compare yet"),
        ({"objectives": ("val_loss", "n_params")}, "val_loss"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_a_study_that_lacks_something_still_gives_a_page(
    build: Callable[..., Study], changes: dict[str, Any], sentence: str
) -> None:
    found = build(**changes)
    assert sentence in found.page.text
    assert "nan" not in found.page.text.lower().replace("finance", "")
    assert "None" not in found.page.text
    headings = [attributes.get("id") for tag, attributes in found.page.elements if tag == "section"]
    assert headings == ["run", "accuracy", "verdict", "front", "losses", "curves", "spent", "diagnostics", "words"]


def test_an_empty_study_gives_a_page_that_says_so(build: Callable[..., Study]) -> None:
    found = build(table=SCHEMA.empty_table())
    for sentence in (
        "No network has a test accuracy yet.",
        "Nothing to compare yet",
        "No learning curve was recorded.",
    ):
        assert sentence in found.page.text
    assert found.page.data["points"]["n_completed"] == 0
    assert not [a for _, a in found.page.elements if a.get("class") == "chart"]


@pytest.mark.parametrize("outcome", ["diverged", "failed", "lost"])
def test_a_study_in_which_everything_failed_gives_a_page(build: Callable[..., Study], outcome: str) -> None:
    arms = ("random", "searched")
    keys = {(arm, r, s, slot): outcome for arm in arms for r in range(3) for s in (0.5, 0.9) for slot in range(4)}
    found = build(arms=arms, table={"outcomes": keys})
    assert found.page.data["points"]["n_completed"] == 0
    assert found.page.data["failures"]["n"] > 0
    assert "Failures (" in found.page.text


def test_rows_without_results_or_curves_are_left_out(build: Callable[..., Study], study: Study) -> None:
    rows = study.table.to_pylist()
    first, second, third = [
        i for i, row in enumerate(rows) if row["stage"] == "trained" and row["outcome"] == "completed"
    ][:3]
    rows[first] |= {"val_error": math.nan}
    rows[second] |= {"test_error": None, "curve_step": None, "curve_val_error": None}
    rows[third] |= {"curve_step": [1, 2], "curve_val_error": [0.5, math.nan]}
    found = build(table=pa.Table.from_pylist(rows, schema=SCHEMA), sparsities=(0.5, 0.9))
    assert found.page.data["points"]["n_completed"] == study.page.data["points"]["n_completed"] - 1
    json.dumps(found.numbers, allow_nan=False)


def test_scores_are_found_where_the_mask_was_scored(build: Callable[..., Study], study: Study) -> None:
    rows = [
        row | ({"initial_loss": None, "scalefree_loss": None} if row["stage"] == "trained" else {})
        for row in study.table.to_pylist()
    ]
    found = build(table=pa.Table.from_pylist(rows, schema=SCHEMA), sparsities=(0.5, 0.9)).numbers["points"]
    whole = study.numbers["points"]
    for name in ("initial_loss", "scalefree_loss"):
        drawn = [value for value, is_drawn in zip(whole[name], whole["drawn"], strict=True) if is_drawn]
        assert [value for value, is_drawn in zip(found[name], found["drawn"], strict=True) if is_drawn] == drawn
        assert {v for v, is_drawn in zip(found[name], found["drawn"], strict=True) if not is_drawn} == {None}


def test_versions_are_folded(study: Study) -> None:
    run = (
        render_page(study.numbers, provenance=PROVENANCE).partition('<section id="run">')[2].partition("</section>")[0]
    )
    shown, folded = run.split("<details><summary>Devices, versions and digests</summary>")
    assert "<dt>Seed</dt>" in shown
    assert "a laptop" not in shown
    assert "<dt>Hardware</dt><dd>a laptop</dd>" in folded


# --- many candidates ---


def test_more_points_than_fit_are_sampled_around_the_whole_front(study: Study) -> None:
    verdict = judge(study.table, study.design)
    numbers = report_numbers(study.table, study.design, verdict, max_points=20)
    points = numbers["points"]
    assert points["n_shown"] == 20 == len(points["candidate"]) == len(points["on_front"])
    assert points["n_completed"] == study.numbers["points"]["n_completed"] > 20
    shown = {c for c, is_member in zip(points["candidate"], points["on_front"], strict=True) if is_member}
    assert shown == {member["candidate"] for member in study.numbers["front"]}
    page = Page(render_page(numbers, provenance={}))
    assert f"Charts 3 and 4 show 20 of {points['n_completed']} networks" in page.text
    assert "Charts 3 and 4 show" not in study.page.text
    assert numbers["mean_front"] == study.numbers["mean_front"]


class Batched:
    """Rows in small batches, as a ledger gives them."""

    def __init__(self, rows: pa.Table, size: int) -> None:
        self._rows = rows
        self._size = size
        self.schema = rows.schema

    def scan(self, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> Iterator[Any]:
        for batch in self._rows.to_batches(max_chunksize=self._size):
            found = pa.Table.from_batches([batch])
            found = found if where is None else found.filter(where)
            yield from (found if columns is None else found.select(list(columns))).to_batches()


@pytest.mark.parametrize("size", [13, 1000])
def test_batches_give_the_same_page_as_a_table(study: Study, size: int) -> None:
    numbers = report_numbers(Batched(study.table, size), study.design, judge(study.table, study.design))
    assert numbers["failures"] == study.numbers["failures"]
    assert numbers["points"] == study.numbers["points"]
    assert numbers["front"] == study.numbers["front"]
    for mine, other in zip(numbers["curves"], study.numbers["curves"], strict=True):
        assert mine["val_error"] == pytest.approx(other["val_error"], rel=1e-12)


def test_a_ledger_gives_the_same_page_as_its_table(study: Study, tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "study", {"name": "x"}, digest="0" * 32, versions={}) as ledger:
        for start in range(0, study.table.num_rows, 100):
            ledger.commit(study.table.slice(start, 100))
        verdict = judge(ledger.table(), study.design)
        assert report_numbers(ledger, study.design, verdict) == report_numbers(ledger.table(), study.design, verdict)
        assert report_numbers(ledger, study.design, verdict)["points"] == study.numbers["points"]


def test_the_same_rows_give_the_same_page(study: Study) -> None:
    pages = {
        render_page(report_numbers(study.table, study.design, judge(study.table, study.design)), provenance={})
        for _ in range(2)
    }
    assert len(pages) == 1


# --- safety ---


@pytest.fixture(scope="module")
def hostile(make_design: Callable[..., Design], make_table: Callable[..., pa.Table]) -> str:
    """A page in which everything that a user can name is an attack."""
    arms = ("random", "searched", HOSTILE)
    design = make_design(
        name=HOSTILE,
        arms=arms,
        dataset=HOSTILE,
        model=HOSTILE,
        allocation=HOSTILE,
        replicates=2,
        draws=4,
        random_draws=2,
    )
    rows = make_table(design, outcomes={(HOSTILE, 0, 0.5, 0): "failed"}, n_points=3).to_pylist()
    for row in rows:
        row |= {"error": HOSTILE if row["error"] else None, "candidate": f"{row['candidate']}{HOSTILE}"}
    table_ = pa.Table.from_pylist(rows, schema=SCHEMA)
    numbers = report_numbers(table_, design, judge(table_, design))
    return render_page(numbers, provenance={HOSTILE: HOSTILE})


def test_what_users_write_stays_text(hostile: str) -> None:
    page = Page(hostile)
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert not {"img", "iframe", "link", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "alert(1)" not in "".join(page.scripts)
    assert page.data["study"]["name"] == HOSTILE
    assert " ".join(HOSTILE.split()) in page.text


def test_the_policy_allows_the_two_scripts_of_the_page_and_no_network(hostile: str) -> None:
    page = Page(hostile)
    directives = dict(directive.strip().split(" ", 1) for directive in page.policy.split(";"))
    assert directives["default-src"] == "'none'"
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    assert directives["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert len(digests) == 2
    assert directives.keys() == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert directives["img-src"] == "data: blob:"


def test_the_page_refers_to_nothing_outside_itself(study: Study) -> None:
    for _, attributes in study.page.elements:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")


@given(st.text())
def test_embedded_json_cannot_leave_its_script(value: str) -> None:
    written = script_json({value: value})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {value: value}


@given(st.text())
def test_text_is_escaped_once_and_survives(value: str) -> None:
    cleaned = value.replace("\x00", "").replace("\r", "")
    page = Page(f'<p title="{text(cleaned)}">{text(text(cleaned))}</p>')
    assert page.elements == [("p", {"title": cleaned})]
    assert "".join(page.texts) == cleaned


# --- writing ---


def test_writing_replaces_the_file_and_leaves_nothing_beside_it(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("an earlier report")
    write_report(study.table, study.design, judge(study.table, study.design), path, provenance=PROVENANCE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert Page(path.read_text(encoding="utf-8")).data == study.page.data


def test_a_missing_folder_is_an_os_error(study: Study, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        write_report(
            study.table, study.design, judge(study.table, study.design), tmp_path / "absent" / "r.html", provenance={}
        )


# --- pieces ---


def test_arms_look_different() -> None:
    styles = arm_styles(
        ["random", "searched", "searched_scalefree", "worst", "magnitude", "small_dense", "dense", "a", "b"]
    )
    assert len({style.colour for style in styles.values()}) == len(styles)
    assert len({style.symbol for style in styles.values()}) == len(styles)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    mean, low, high = mean_interval(values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert (mean, low, high) == pytest.approx(
        (np.mean(values), np.mean(values) - half, np.mean(values) + half), abs=1e-6
    )


@settings(max_examples=40)
@given(
    st.recursive(
        st.floats() | st.integers() | st.text() | st.none(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_plain_data_is_json(value: object) -> None:
    json.dumps(plain(value), allow_nan=False)


def test_plain_data_knows_numpy() -> None:
    assert plain({"a": (np.float64("nan"), np.int32(3), np.bool_(True))}) == {"a": [None, 3, True]}


def test_a_long_message_is_cut() -> None:
    assert len(first_line("x" * 10_000)) == 300
    assert first_line(None) == first_line("  \n ") == "(no message)"


def test_rows_of_a_group_stand_under_its_name() -> None:
    made = Page(table("c", ["arm", "#n"], [["a", "1"], ["a", "2"], ["b", "3"]], grouped=True))
    assert made.rows == [["n"], ["a"], ["1"], ["2"], ["b"], ["3"]]


def test_an_interval_is_drawn_to_scale() -> None:
    graphic = Page(interval_graphic(0.5, 0.25, 0.75, margin=0.5, reach=1.0))
    shapes = {attributes.get("class"): attributes for _, attributes in graphic.elements}
    assert shapes["mean"]["cx"] == "150.0"
    assert (shapes["range"]["x1"], shapes["range"]["x2"]) == ("125.0", "175.0")
    assert (shapes["margin"]["x"], shapes["margin"]["width"]) == ("50.0", "100.00")
    assert interval_graphic(None, None, None, margin=0.5, reach=1.0) == ""


@given(st.floats(0, 1e9))
def test_a_duration_is_right_to_its_last_unit(seconds: float) -> None:
    units = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    words = duration(seconds).split()
    written = sum(float(n) * units[unit] for n, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(written - seconds) <= max(units[words[-1]], 0.05 * seconds)


CONTROLLED = {"random": {}, "imp": {"controls": ["shuffled_layers"]}, "late": {"method": "imp", "rewind_fraction": 0.1}}


def test_arms_stand_beside_their_controls(build: Callable[..., Study], study: Study) -> None:
    assert "Arms against their controls" not in study.page.text
    found = build(
        arms=arm_names(CONTROLLED), methods=CONTROLLED, table={"effect": {"imp": 0.1, "late": 0.1}, "noise": 0.003}
    )
    first_section = found.page.text.split("Arms against their controls")[1].split("2. Verdict")[0]
    assert "Pairs in every row: 3" in first_section
    rows = [row for row in found.page.rows if "imp_shuffled_layers" in row and any("better" in cell for cell in row)]
    assert len(rows) == len(found.design.sparsities)
    for row, compared in zip(rows, found.numbers["verdict"]["controls"], strict=True):
        assert any(cell.startswith(f"+{100 * compared['difference']:.2f}") for cell in row)
    assert "imp_shuffled_layers" not in {row["arm"] for row in found.numbers["verdict"]["comparisons"]}


def with_siblings(design: Design, table: pa.Table, instability: dict[str, list[float]]) -> pa.Table:
    """Give networks of some arms the instabilities of their replicates."""
    rows = table.to_pylist()
    for row in rows:
        if row["stage"] == "trained" and row["arm"] in instability:
            row["instability_error"] = instability[row["arm"]][row["replicate"]]
            row["instability_loss"] = 2 * row["instability_error"]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_stability_and_the_smallest_stable_rewind(
    build: Callable[..., Study], study: Study, make_design: Callable[..., Design], make_table: Callable[..., pa.Table]
) -> None:
    assert "Stability" not in study.page.text
    arms = {**CONTROLLED, "dense": {}, "later": {"method": "imp", "rewind_fraction": 0.25}}
    measured = {
        "dense": [0.3, 0.1, 0.2],
        "imp": [0.1, 0.05, 0.03],
        "late": [0.0, 0.03, 0.015],
        "later": [0.001, 0.002, 0.0],
    }
    options = {"arms": arm_names(arms), "methods": arms, "replicates": 3, "steps": 200, "sparsities": (0.5, 0.9)}
    design = make_design(**options)
    found = build(**options, table=with_siblings(design, make_table(design, n_points=2), measured))
    rows = {(row["arm"], row["sparsity"]): row for row in found.numbers["stability"]["rows"]}
    assert set(rows) == {("dense", 0.0), *((arm, s) for arm in ("imp", "late", "later") for s in (0.5, 0.9))}
    late = rows["late", 0.9]
    assert (late["rewind_step"], late["n_stable"], late["n_networks"]) == (20, 2, 3)
    assert late["instability_error"] == pytest.approx(0.015)
    assert late["instability_loss"] == pytest.approx(0.03)
    assert rows["dense", 0.0]["rewind_step"] is None
    expected = {"arms": ["imp", "late", "later"], "rewind_step": 20}
    assert found.numbers["stability"]["smallest_stable"] == [{**expected, "sparsity": s} for s in (0.5, 0.9)]
    assert "Smallest stable rewind at 90%: step 20 (imp, late, later;" in found.page.text
    assert any("2 of 3" in row and "1.50%" in row for row in found.page.rows)
    measured["later"][1] = math.nan
    broken = build(**options, table=with_siblings(design, make_table(design, n_points=2), measured))
    assert "Smallest stable rewind at 50%: none of those tried" in broken.page.text


def with_qualities(
    table: pa.Table, columns: dict[str, str], value_of: Callable[[dict[str, Any], str], Any]
) -> pa.Table:
    """Give trained rows the columns of qualities, as the schema of such a study has them."""
    schema = schema_of({"resolved": {"columns": columns}})
    rows = table.to_pylist()
    for row in rows:
        trained = row["stage"] == "trained"
        row.update({name: value_of(row, name) if trained else None for name in columns})
    return pa.Table.from_pylist(rows, schema=schema)


def test_qualities_stand_in_one_table(
    build: Callable[..., Study], study: Study, make_design: Callable[..., Design], make_table: Callable[..., pa.Table]
) -> None:
    assert study.numbers["qualities"] == {"columns": [], "rows": []}
    assert "Qualities" not in study.page.text
    columns = {"ece": "test_float64", "val_ece": "float64", "corrupted_error_stripe": "test_float64"}
    columns |= {"nll": "test_float64", "brier": "test_float64"}
    columns |= {
        "fragile_indices": "test_indices",
        "fresh_error": "test_float64",
        "fresh_error_increase": "test_float64",
    }

    def value_of(row: dict[str, Any], name: str) -> Any:
        if name == "ece":  # of one replicate's networks the mean counts once, however many there are
            return None if row["arm"] == "dense" else 0.1 * (1 + row["replicate"]) + 0.01 * (row["slot"] % 2)
        fixed = {"nll": -1.25, "brier": None, "fragile_indices": [1, 2], "corrupted_error_stripe": math.nan}
        return fixed.get(name, 0.5) if row["arm"] != "dense" or name == "nll" else None

    options = {"replicates": 3, "random_draws": 2, "sparsities": (0.5, 0.9)}
    design = make_design(**options)
    found = build(**options, table=with_qualities(make_table(design, n_points=2), columns, value_of))
    shown = {column["name"]: column["text"] for column in found.numbers["qualities"]["columns"]}
    assert shown == {  # neither what has no value or is a list, nor what the table of fresh samples has
        "ece": "expected calibration error (test)",
        "nll": "negative log-likelihood (test)",
        "val_ece": "expected calibration error (validation)",
    }
    rows = {(row["arm"], row["sparsity"]): row["means"] for row in found.numbers["qualities"]["rows"]}
    mean, low, high = rows["random", 0.9]["ece"]
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert (mean, high - mean, mean - low) == pytest.approx((0.205, half, half))
    assert rows["dense", 0.0] == {"ece": None, "nll": [-1.25] * 3, "val_ece": None}
    assert found.page.text.count("Qualities as a table") == 1
    assert any(row[1:] == [f"20.50% ± {100 * half:.2f}", "−1.25 ± 0", "50.00% ± 0.00"] for row in found.page.rows)
    assert any(row[1:] == ["–", "−1.25 ± 0", "–"] for row in found.page.rows)


def test_a_quality_of_one_replicate_has_no_interval(
    build: Callable[..., Study], make_design: Callable[..., Design], make_table: Callable[..., pa.Table]
) -> None:
    design = make_design(replicates=1, arms=("random", "dense"), sparsities=(0.5,))
    table = with_qualities(make_table(design, n_points=2), {"corrupted_error_stripe": "test_float64"}, lambda *_: 0.25)
    found = build(replicates=1, arms=("random", "dense"), sparsities=(0.5,), table=table)
    assert found.numbers["qualities"]["columns"][0]["text"] == "corrupted error stripe (test)"
    assert any(row[1:] == ["25.00%"] for row in found.page.rows)


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ([(0, 0.3), (10, 0.01), (100, 0.0)], 10),
        ([(100, 0.0), (0, 0.3), (10, 0.01)], 10),
        ([(0, 0.0), (10, 0.1), (100, 0.0)], 100),  # a lucky k = 0 does not count
        ([(0, 0.0), (10, 0.02)], None),  # the threshold itself is not stable
        ([(0, 0.0), (10, math.nan)], None),
        ([(0, 0.0), (10, 0.0), (10, 0.3)], None),  # all that were tried
        ([(0, 0.0)], 0),
        ([], None),
    ],
)
def test_the_smallest_stable_rewind(tried: list[tuple[int, float]], expected: int | None) -> None:
    assert smallest_stable(tried) == expected
