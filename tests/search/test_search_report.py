"""The report of a search study: its numbers are those of the ledger, and its page is complete and safe."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sparsefront.search.attainment import attainment_columns
from sparsefront.search.comparison import compare_arms
from sparsefront.search.design import SearchDesign
from sparsefront.search.front import front
from sparsefront.search.ledger import Ledger
from sparsefront.search.report.markup import UNKNOWN
from sparsefront.search.report.search_numbers import search_report_numbers
from sparsefront.search.report.search_page import render_search_page, write_search_report
from sparsefront.search.report.search_sections import budget_to_catch_up
from sparsefront.search.schema import SCHEMA
from sparsefront.spaces.space import Space
from tests.synthetic_search import TABLE, make_search_design, make_search_table, with_pack_times

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'single' ${x} $title"


class Page(HTMLParser):
    """Elements, scripts, policy and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self.data: Any = None
        self.policy = ""
        self.text = ""
        self._open = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.ids.append(attributes.get("id") or "")
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"] or ""
        self._open = (attributes.get("id") or "code") if tag == "script" else tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "sparsefront-data":
            self.data = json.loads(data)
        elif self._open == "code" and "function" in data:
            self.scripts.append(data)
        else:
            self.text += data


def numbers_of(table: pa.Table, design: SearchDesign, **options: Any) -> dict[str, Any]:
    return search_report_numbers(table, design, compare_arms(table, design), **options)


def page_of(table: pa.Table, design: SearchDesign) -> Page:
    return Page(render_search_page(numbers_of(table, design), provenance={"Hardware": HOSTILE}))


@pytest.fixture(scope="module")
def design() -> SearchDesign:
    return make_search_design(replicates=3, candidates=60)


@pytest.fixture(scope="module")
def table(design: SearchDesign) -> pa.Table:
    return make_search_table(
        design, skill={"nsga2": 0.9}, outcomes={("random", 0, 3): "diverged", ("nsga2", 1, 2): "infeasible"}
    )


@pytest.fixture(scope="module")
def numbers(design: SearchDesign, table: pa.Table) -> dict[str, Any]:
    return numbers_of(table, design)


def test_points_are_the_completed_candidates(numbers: dict[str, Any], table: pa.Table) -> None:
    done = table.filter((pc.field("stage") == "trained") & (pc.field("outcome") == "completed"))
    points = numbers["points"]
    assert sorted(points["candidate"]) == sorted(done["candidate"].to_pylist())
    by_id = {row["candidate"]: row for row in done.to_pylist()}
    for i, candidate in enumerate(points["candidate"]):
        row = by_id[candidate]
        assert points["number"][i] == row["slot"]
        assert points["values"]["n_params"][i] == row["n_params"]
        assert points["val_error"][i] == pytest.approx(row["val_error"], rel=1e-7)
        assert points["dims"]["width_3"][i] == row["width_3"]
        assert points["dims"]["lr"][i] == pytest.approx(row["lr"], rel=1e-7)


def test_the_front_is_that_of_all_arms(numbers: dict[str, Any]) -> None:
    points = numbers["points"]
    matrix = np.array([points["values"]["val_error"], points["values"]["n_params"]]).T
    dominated = [bool(np.any((matrix <= p).all(axis=1) & (matrix < p).any(axis=1))) for p in matrix]
    assert points["on_front"] == [not d for d in dominated]
    assert [m["candidate"] for m in numbers["front"]] == [
        points["candidate"][i] for i in np.lexsort((points["candidate"], matrix[:, 0])) if points["on_front"][i]
    ]


def test_candidates_of_several_arms_are_shown_under_the_arm_that_the_front_names(
    table: pa.Table, design: SearchDesign
) -> None:
    names = [arm.name for arm in design.arms]
    assert names != sorted(names)
    rows = table.to_pylist()
    best: dict[tuple[int, int], dict[str, Any]] = {
        (row["replicate"], row["slot"]): row
        for row in rows
        if row["arm"] == names[0] and row["stage"] == "trained" and row["outcome"] == "completed" and not row["reused"]
    }
    shared = ("candidate", "val_error", "n_params", "test_error", "outcome", "reused", "rung")
    for row in rows:
        first = best.get((row["replicate"], row["slot"]))
        if first is not None and row["stage"] == "trained":
            row |= {name: first[name] for name in shared}
    mixed = pa.Table.from_pylist(rows[::-1], schema=table.schema)
    numbers = numbers_of(mixed, design)
    members = front(mixed, design.objectives, arms=names, schema=table.schema)
    shown = {m["candidate"]: (m["arm"], m["replicate"], m["number"]) for m in numbers["front"]}
    expected = {m["candidate"]: (m["arm"], m["replicate"], m["slot"]) for m in members.to_pylist()}
    assert shown == expected
    assert {arm for arm, _, _ in shown.values()} >= {names[0]}


def test_a_large_study_is_sampled_but_keeps_its_front(table: pa.Table, design: SearchDesign) -> None:
    whole, part = numbers_of(table, design), numbers_of(table, design, max_points=60)
    assert part["points"]["n_shown"] == 60
    assert sum(part["points"]["on_front"]) == len(part["front"]) == len(whole["front"])
    assert numbers_of(table, design, max_points=60) == part
    text = Page(render_search_page(part, provenance={})).text
    assert f"60 of {whole['points']['n_completed']:,} candidates" in text


def test_outcomes_add_up(numbers: dict[str, Any]) -> None:
    found = {row["arm"]: row for row in numbers["outcomes"]}
    for row in found.values():
        assert sum(part["share"] for part in row["parts"]) == pytest.approx(1)
    assert [part["text"] for part in found["asha"]["parts"]] == ["stopped at rung 0", "stopped at rung 1", "completed"]
    assert found["nsga2"]["n_infeasible"] == 1


def test_what_could_not_be_tested_is_not_judged() -> None:
    """All that diverge do so early: at their budget random search has not completed its first candidate."""
    design = make_search_design(arms={"random": {}, "other": {}}, replicates=3, candidates=4)
    failing = {("other", r, i): "diverged" for r in range(3) for i in range(4)}
    numbers = numbers_of(make_search_table(design, outcomes=failing), design)
    assert numbers["verdict"]["comparisons"][0]["difference"] == 0.0
    assert "? Not judged: at equal budget neither had found anything in 3 of 3" in numbers["verdict"]["headline"]
    page = Page(render_search_page(numbers, provenance={}))
    verdict = page.text.partition("1. Verdict")[2].partition("2. Hypervolume")[0]
    assert "○ not judged" in verdict
    assert "undecided" not in verdict
    assert "[0.00, 0.00]" not in verdict
    assert "other: at equal budget neither had found anything in 3 of 3 replicates" in verdict


def test_versions_are_folded_and_nothing_is_where_none_are_known(numbers: dict[str, Any]) -> None:
    run = render_search_page(numbers, provenance={"torch": "2.0"}).partition('<section id="run">')[2]
    run = run.partition("</section>")[0]
    shown, folded = run.split("<details><summary>Devices, versions and digests</summary>")
    assert "<dt>Seed</dt>" in shown
    assert "torch" not in shown
    assert "<dt>torch</dt><dd>2.0</dd>" in folded
    assert "Devices, versions" not in render_search_page(numbers, provenance={})


def test_the_page_embeds_the_numbers_and_has_every_section(numbers: dict[str, Any]) -> None:
    page = Page(render_search_page(numbers, provenance={"Hardware": "a laptop"}))
    assert page.data == json.loads(json.dumps(numbers))
    charts = [name for name in page.ids if name.startswith("chart-")]
    assert charts == [f"chart-{name}" for name in ("attainment", "front", "outcomes", "importance", "dimensions")]
    for word in (
        "a laptop",
        "Hypervolume against cost",
        "mo_asha (eta 4",
        "stopped at rung 1",
        "diverged",
        "where depth >= 2",
    ):
        assert word in page.text, word


def test_the_policy_allows_the_pages_own_scripts_only(numbers: dict[str, Any]) -> None:
    page = Page(render_search_page(numbers, provenance={}))
    allowed = set(re.findall(r"'sha256-([^']+)'", page.policy))
    assert {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts} == allowed
    assert len(page.scripts) == 2
    assert "default-src 'none'" in page.policy


def test_whatever_a_name_or_message_says_is_shown_as_text() -> None:
    space = Space.from_table(
        {
            "training": {"lr": TABLE["training"]["lr"], "optimizer": {"choices": ["adam", HOSTILE]}},
            "model": TABLE["model"],
        }
    )
    arms = {"random": {"space": space}, HOSTILE: {"space": space, "options": {HOSTILE: HOSTILE}}}
    design = make_search_design(arms=arms, name=HOSTILE, model=HOSTILE, dataset=HOSTILE, replicates=2, candidates=40)
    page = page_of(make_search_table(design, outcomes={(HOSTILE, 0, 1): "failed"}), design)
    assert page.tags.count("script") == 3
    assert "img" not in page.tags
    assert page.text.count("<script>alert(1)</script>") > 5
    assert page.data["study"]["name"] == HOSTILE


@pytest.mark.parametrize(
    "changes",
    [
        {"objectives": ("val_error",)},
        {"objectives": ("val_loss", "macs", "n_params")},
        {"objectives": ("val_accuracy", "weight_sparsity")},
        {"objectives": ("n_params", "passes")},
        {"arms": {"random": {}}},
        {"replicates": 1},
        {"candidates": 2},
        {"reference": (0.9, 1e5)},
    ],
    ids=["one", "three", "more is better", "sizes only", "random only", "one replicate", "few candidates", "reference"],
)
def test_other_studies_give_a_page(changes: dict[str, Any]) -> None:
    design = make_search_design(**({"replicates": 2, "candidates": 30} | changes))
    page = page_of(make_search_table(design), design)
    assert page.data["points"]["n_completed"] > 0


def test_an_empty_study_gives_a_page_that_says_so(design: SearchDesign, table: pa.Table) -> None:
    page = page_of(table.schema.empty_table(), design)
    for words in ("Nothing was trained yet", "Nothing to compare yet", "Nothing was spent yet", "Too few candidates"):
        assert words in page.text
    failed = table.filter(pc.field("outcome") == "diverged")
    assert "diverged: synthetic" in page_of(failed, design).text


def test_packs_are_shown_beside_what_was_predicted_of_them(table: pa.Table, design: SearchDesign) -> None:
    timed = with_pack_times(table, ratio=1.25)
    (shown,) = numbers_of(timed, design)["packs"]
    assert (shown["device"], shown["n_packs"], shown["median"]) == ("a CPU", table.num_rows, 1.25)
    text = page_of(timed, design).text
    assert "Measured against predicted time of packs" in text
    assert "1.25 to 1.25" in text
    assert numbers_of(table, design)["packs"] == []
    assert "Measured against predicted" not in page_of(table, design).text


def test_an_infeasible_proposal_is_no_failure(numbers: dict[str, Any]) -> None:
    assert [row["outcome"] for row in numbers["failures"]["listed"]] == ["diverged"]


def test_the_file_replaces_an_earlier_one_and_leaves_nothing_else(
    tmp_path: Path, table: pa.Table, design: SearchDesign
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_search_report(table, design, compare_arms(table, design), path, provenance={})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_ledger_gives_the_same_report_as_its_table(tmp_path: Path, table: pa.Table, design: SearchDesign) -> None:
    columns = {name: kind for name, kind in design.arms[0].space.columns if name not in SCHEMA.names}
    study = {"name": "x", "resolved": {"columns": columns}}
    with Ledger.create(tmp_path / "s", study, digest="0" * 32, versions={}) as ledger:
        ledger.commit(table)
        verdict = compare_arms(ledger.scan(columns=attainment_columns(design)), design)
        assert verdict.to_dict() == compare_arms(table, design).to_dict()
        assert search_report_numbers(ledger, design, verdict) == numbers_of(table, design)


def test_the_columns_of_the_schema_are_enough_where_a_space_adds_none() -> None:
    """A ledger without dimension columns of its own: they are all among the fixed ones."""
    design = make_search_design(space={"training": TABLE["training"]}, replicates=2, candidates=30)
    table = make_search_table(design)
    assert table.schema.names == SCHEMA.names
    assert numbers_of(table, design)["dimensions"][0]["name"] == "lr"


@pytest.mark.parametrize(
    ("estimate", "low", "high", "shown"),
    [
        ("64%", "59%", "72%", "64% [59%, 72%]"),
        ("64%", "64%", "64%", "64%"),
        ("never", "never", "never", "never"),
        ("never", "82%", "never", "never [82% or more]"),
        ("95%", "82%", "never", "95% [82% or more]"),
        ("64%", None, None, "64% [unknown]"),
        (None, None, None, UNKNOWN),
    ],
)
def test_what_it_takes_to_catch_up_is_never_an_interval_that_says_nothing(
    estimate: str | None, low: str | None, high: str | None, shown: str
) -> None:
    row = {"cost_ratio_text": estimate, "cost_ratio_low_text": low, "cost_ratio_high_text": high}
    assert budget_to_catch_up(row) == shown


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, "Errors run from 0 to that of guessing", "can move"),
        ({"reference": (0.9, 1e5)}, "Its far corner is the reference that the study gives", "guessing"),
        (
            {"candidates": 4},
            "on a log scale, to a tenth beyond the largest that completed, so that its far corner",
            "-",
        ),
    ],
)
def test_words_say_of_the_box_and_of_runs_what_is_so(changes: dict[str, Any], said: str, unsaid: str) -> None:
    design = make_search_design(**({"candidates": 16} | changes))
    numbers = numbers_of(make_search_table(design), design)
    meaning = re.search(r"<dt>hypervolume</dt><dd>(.*?)</dd>", render_search_page(numbers, provenance={}))
    assert meaning is not None
    assert said in meaning[1]
    assert ("can move" in meaning[1]) == (not numbers["study"]["is_settled"])
    if unsaid != "can move":
        assert unsaid not in meaning[1]
    assert "independent search" not in render_search_page(numbers, provenance={})


def test_a_page_says_whom_an_arm_is_held_against() -> None:
    design = make_search_design(arms={"alone": {"against": ()}}, replicates=2)
    page = page_of(make_search_table(design), design)
    assert "No arm is held against another one: there is nothing to judge." in page.text
    assert "nobody" in page.text
