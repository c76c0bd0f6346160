"""Diagnostics and qualities as part of a study: columns, the parent that is waited for, fronts and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparsefront import load
from sparsefront.errors import ConfigError
from sparsefront.results import Results
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.plan import Plan, TrainWork
from sparsefront.search.schema import SCHEMA, is_test_result, schema_of
from sparsefront.spaces.candidate import Candidate, CandidateNames
from sparsefront.study import Study
from sparsefront.trainables import quality
from tests.chromium import CHROMIUM, DRAWN, Browser
from tests.faults.inline_search import run_search
from tests.faults.inline_study import run_inline

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 7,
    "replicates": 2,
    "sparsities": [0.5, 0.9],
    "arms": ["random", "small_dense", "rigl"],
    "quality": ["calibration", "corruption", "shift"],
    "data": {"name": "digits"},
    "model": {"name": "mlp", "widths": [16, 12]},
    "masks": {"kind": "weight"},
    "search": {"draws": 4, "probe_size": 64, "random_draws": 2},
    "training": {"lr": 0.003, "batch_size": 50, "steps": 12, "eval_every": 6},
    "verdict": {"objectives": ["val_error", "effective_params", "val_corrupted_error", "val_angle_shift"]},
}
VALIDATED = ("val_angle_shift", "val_corrupted_error")


def study_of(**changes: Any) -> Study:
    return Study.from_dict({**TINY, **changes})


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    torch.set_num_threads(1)
    run_inline(study_of(), folder, masks_per_pack=8, lanes_per_pack=8)
    return load(folder)


def trained(results: Results) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = results.to_arrow(where="stage == 'trained'").to_pylist()
    return rows


def test_a_study_that_names_no_quality_has_no_column_of_one() -> None:
    without = study_of(quality=[], verdict={})
    assert without.identity()["quality"] == []
    assert "columns" not in without.recorded()["resolved"]
    assert schema_of(without.recorded()) == SCHEMA
    measured = schema_of(study_of().recorded())
    expected = [name for q in TINY["quality"] for name in quality.QUALITIES[q].columns]
    assert set(measured.names) - set(SCHEMA.names) == {*expected, *VALIDATED}
    assert not any(is_test_result(measured.field(name)) for name in VALIDATED)
    assert all(is_test_result(measured.field(name)) for name in expected)
    assert measured.field("fragile_indices").type == pa.list_(pa.int32())


def test_candidates_keep_their_ids_whatever_is_measured_of_them() -> None:
    assert study_of(quality=[], verdict={}).base() == study_of().base()


def test_every_candidate_is_compared_with_the_trained_parent_of_its_replicate(results: Results) -> None:
    rows = trained(results)
    parents = [row for row in rows if row["arm"] == "dense"]
    assert [row["replicate"] for row in parents] == [0, 1], "no arm asked for them"
    assert all(row["checkpoint"] and row["angle_shift"] is None for row in parents)
    others = [row for row in rows if row["arm"] != "dense"]
    assert len(others) == 2 * 2 * (2 + 1 + 1)
    for row in others:
        assert row["error"] is None
        for name in (
            "ece",
            "corrupted_error",
            "angle_shift",
            "margin_distance",
            "lost_fraction",
            *VALIDATED,
            "density_macs",
        ):
            assert row[name] is not None, name
        assert len(row["fragile_indices"]) == 16
        assert row["quality_passes"] > 30 * 300 / 3
        assert abs(row["val_corrupted_error"] - row["corrupted_error"]) < 0.2
        assert row["val_angle_shift"] != row["angle_shift"]
    assert any(row["relative_corrupted_error"] is not None for row in others)
    changing = [row for row in others if row["arm"] == "rigl"]
    assert all(0 < row["mask_overlap"] <= 1 and 0 < row["exploration_rate"] <= 1 for row in changing)
    assert all(row["mask_overlap"] is None for row in others if row["arm"] == "random")


def test_a_plan_trains_parents_first_where_they_are_compared_with() -> None:
    study = study_of()
    plan = Plan(study.design(), CandidateNames(study.base()), masks_per_pack=8, lanes_per_pack=8)
    work, none = plan.next_work(), plan.next_work()
    assert none is None
    assert isinstance(work, TrainWork)
    assert [lane.candidate for lane in work.lanes] == [Candidate(replicate, 0.0, "parent") for replicate in (0, 1)]
    assert all(lane.keeps_weights for lane in work.lanes)


def test_a_parent_that_fails_keeps_nobody_waiting(tmp_path: Path) -> None:
    study = study_of(arms=["random"], quality=["shift"], verdict={}, training={**TINY["training"], "lr": 1e30})
    torch.set_num_threads(1)
    run_inline(study, tmp_path / "tiny", masks_per_pack=8, lanes_per_pack=8)
    rows = trained(load(tmp_path / "tiny"))
    assert {row["outcome"] for row in rows if row["arm"] == "dense"} == {"diverged"}
    assert len(rows) == 2 * (1 + 2 * 2)
    assert {row["angle_shift"] for row in rows} == {None}


def test_fronts_over_what_is_measured(results: Results) -> None:
    own = results.front()
    assert own.schema.field("ece").type == pa.float64()
    sizes = results.front(objectives=["effective_density", "ece"])
    assert 1 <= sizes.num_rows <= 18
    assert sizes["ece"].to_pylist() == sorted(sizes["ece"].to_pylist(), reverse=True)


def test_what_objectives_measure_on_validation_examples_may_select(results: Results) -> None:
    own = results.front()
    assert own.column_names.count("val_corrupted_error") == 1
    assert results.front(where="val_corrupted_error < 0.99", objectives=["val_corrupted_error"]).num_rows == 1
    page = results.report().read_text(encoding="utf-8")
    assert "error on corrupted examples (validation)" in page[page.index("The front as a table") :]
    assert "Measured on test examples" not in page
    with pytest.raises(ConfigError, match=r"'val_ece': was not measured .* 'calibration', and its verdict.objectives"):
        results.front(objectives=["val_ece"])


def test_test_results_select_nothing(results: Results) -> None:
    with pytest.raises(
        ConfigError, match=r"where='ece < 0.5': ece is a test result, which is reported and never decides"
    ):
        results.front(where="ece < 0.5")
    assert results.to_arrow(where="ece <= 1").num_rows == 18


def test_what_was_not_measured_is_no_objective(results: Results) -> None:
    with pytest.raises(ConfigError, match=r"objective='pgd_error': was not measured .* must name 'adversarial'"):
        results.front(objectives=["pgd_error"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": ["calibrated"]}, r"quality=\['calibrated'\]: 'calibrated' is none, .*calibration"),
        (
            {"quality": ["ood", "fresh"], "verdict": {}},
            r"quality=\['ood', 'fresh'\]: 'fresh' needs data that are drawn anew \('digits' is the same under every",
        ),
        (
            {"data": {"name": "mnist1d"}, "quality": ["fresh"], "verdict": {"objectives": ["val_fresh_error"]}},
            "verdict.objectives: 'val_fresh_error' must be one of",
        ),
        ({"quality": ["ood", "ood"]}, r"quality=\['ood', 'ood'\]: every name must be there once"),
        ({"quality": "ood"}, "quality='ood'"),
        (
            {"quality": [], "verdict": {"objectives": ["val_error", "val_ece"]}},
            "verdict.objectives: 'val_ece' is measured only where quality names 'calibration'; add it there",
        ),
        (
            {"verdict": {"objectives": ["val_error", "ece"]}},
            "verdict.objectives: 'ece' is a test result; validation decides, test reports; use 'val_ece'",
        ),
        (
            {"verdict": {"objectives": ["val_error", "instability_error"]}},
            "verdict.objectives: 'instability_error' is measured of arms with siblings = true, and there is none; set",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_of(**changes)


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_own_cache")
def test_networks_are_tested_on_a_sample_that_is_drawn_anew(tmp_path: Path) -> None:
    changes = {"data": {"name": "mnist1d", "num_samples": 400}, "quality": ["fresh"], "verdict": {}}
    study = study_of(**changes)
    run_inline(study, tmp_path / "fresh", masks_per_pack=8, lanes_per_pack=8)
    results = load(tmp_path / "fresh")
    rows = trained(results)
    assert rows
    assert {row["error"] for row in rows} == {None}
    for row in rows:
        assert row["fresh_error"] - row["fresh_error_increase"] == pytest.approx(row["test_error"], abs=1e-12)
        assert 80 * row["fresh_error"] == pytest.approx(round(80 * row["fresh_error"]))  # as many as in the test part
        assert row["quality_passes"] == pytest.approx((64 + 2 * 80) / 3)  # 64 validation examples are watched
    assert any(row["fresh_error_increase"] for row in rows)
    # Of another sample, other errors of the same networks.
    run_inline(study_of(**changes, seed=8), tmp_path / "other", masks_per_pack=8, lanes_per_pack=8)
    assert [row["fresh_error"] for row in trained(load(tmp_path / "other"))] != [row["fresh_error"] for row in rows]
    page = results.report().read_text(encoding="utf-8")
    assert "<h3>Fresh sample</h3>" in page
    numbers = json.loads(page.partition('id="sparsefront-data">')[2].partition("</script>")[0])["fresh_sample"]
    assert sum(cell["n_networks"] for cell in numbers) == len(rows)
    for cell in numbers:
        own = [r for r in rows if (r["arm"], r["target_sparsity"]) == (cell["arm"], cell["sparsity"])]
        for name in ("test_error", "fresh_error", "fresh_error_increase"):
            assert cell[name] == pytest.approx(np.mean([row[name] for row in own]))


def test_the_report_has_a_section_about_them(results: Results) -> None:
    page = results.report().read_text(encoding="utf-8")
    assert "Fresh sample" not in page
    section = page[page.index('<section id="diagnostics">') : page.index('<section id="words">')]
    assert 'id="chart-silence"' in section
    assert "What masks and training left" in section
    assert [h in section for h in ("weights kept", "of all parameters", "of MACs", "effective")] == [True] * 4
    assert "Overlap of masks between replicates" in section
    numbers = json.loads(page.partition('id="sparsefront-data">')[2].partition("</script>")[0])["diagnostics"]
    rows = trained(results)
    assert {(row["arm"], row["sparsity"]) for row in numbers["rows"]} == {
        (row["arm"], row["target_sparsity"]) for row in rows
    }
    for shown in numbers["rows"]:
        own = [r for r in rows if (r["arm"], r["target_sparsity"]) == (shown["arm"], shown["sparsity"])]
        assert shown["n_networks"] == len(own)
        assert shown["n_collapsed"] == sum(row["is_collapsed"] for row in own)
        for name in ("density_total", "density_macs", "effective_density", "n_dead_units", "dynamic_dead_fraction"):
            assert shown[name] == pytest.approx(np.mean([row[name] for row in own]))
    assert [(row["arm"], row["sparsity"], row["n_masks"]) for row in numbers["overlaps"]] == [
        ("rigl", 0.5, 2),
        ("rigl", 0.9, 2),
    ]
    for row in numbers["overlaps"]:
        assert 0 < row["shared"] < 1
        assert row["expected"] == pytest.approx(1 - row["sparsity"], abs=0.3)


def test_arms_may_train_siblings(tmp_path: Path) -> None:
    rewind = {"rewind_fraction": 0.25, "siblings": True, "controls": ["shuffled"]}
    arms = {"random": {}, "dense": {"siblings": True}, "imp_rewind": rewind}
    study = study_of(
        arms=arms, quality=[], verdict={"objectives": ["instability_error"]}, replicates=1, sparsities=[0.36]
    )
    run_inline(study, tmp_path / "tiny", masks_per_pack=8, lanes_per_pack=8)
    rows = load(tmp_path / "tiny").to_arrow(where="stage in ('trained', 'level')").to_pylist()
    measured = {(row["arm"], row["stage"]) for row in rows if row["instability_error"] is not None}
    assert measured == {("dense", "trained"), ("imp_rewind", "level"), ("imp_rewind", "trained")}
    assert load(tmp_path / "tiny").front().num_rows == 1
    assert all((row["instability_loss"] is None) == (row["instability_error"] is None) for row in rows)


def test_siblings_of_changing_masks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"arms.rigl.siblings=true: siblings share a mask"):
        study_of(arms={"random": {}, "rigl": {"siblings": True}})


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian package: chromium)")
def test_the_chart_of_silence_shows_its_numbers(results: Results, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(results.report(), until=DRAWN)
        assert browser.errors == []
        assert "silence" in browser.run("document.documentElement.dataset.rendered").split()
        chart = "document.getElementById('chart-silence').data"
        shown = browser.run(f"Object.fromEntries({chart}.map((t) => [t.name, [...t.y]]))")
    rows = trained(results)
    assert set(shown) == {"dense", "random", "small_dense", "rigl"}
    for arm, values in shown.items():
        levels = [0.0, 0.0] if arm == "dense" else [0.5, 0.9]
        for level, value in zip(levels, values, strict=True):
            own = [r["dynamic_dead_fraction"] for r in rows if (r["arm"], r["target_sparsity"]) == (arm, level)]
            assert value == pytest.approx(np.mean(own))


SEARCH: dict[str, Any] = {
    "name": "sweep",
    "seed": 1,
    "replicates": 1,
    "data": {"name": "digits"},
    "model": {"name": "mlp", "widths": [8]},
    "training": {"steps": 4, "batch_size": 50},
    "space": {"training": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}}},
    "search": {"candidates": 4, "batch": 2},
    "arms": {"random": {}},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": ["shift"]}, "'shift' compares candidates with their trained parent, and there is none"),
        (
            {"quality": ["calibration"], "verdict": {"objectives": ["val_error", "ece"]}},
            "verdict.objectives: 'ece' is a test result; validation decides, test reports; use 'val_ece'",
        ),
        (
            {"verdict": {"objectives": ["val_ece"]}},
            "verdict.objectives: 'val_ece' is measured only where quality names",
        ),
        (
            {"quality": ["corruption"], "verdict": {"objectives": ["val_relative_corrupted_error"]}},
            "'val_relative_corrupted_error' compares a candidate with its trained parent, and in a search there is",
        ),
        (
            {"verdict": {"objectives": ["instability_error"]}},
            "'instability_error' compares a candidate with a second training, and in a search there is none",
        ),
        (
            {"rungs": {"kind": "asha", "objectives": ["effective_params"]}},
            "rungs.objectives: 'effective_params' is measured once a candidate has ended, and rungs compare before",
        ),
        (
            {"rungs": {"kind": "mo_asha"}, "verdict": {"objectives": ["val_error", "dynamic_dead_fraction"]}},
            "rungs.kind='mo_asha': compares by verdict.objectives: 'dynamic_dead_fraction' is measured once",
        ),
    ],
)
def test_searches_are_not_led_by_what_they_do_not_know(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study.from_dict({**SEARCH, **changes})


def test_a_search_has_columns_of_its_qualities() -> None:
    recorded = Study.from_dict({**SEARCH, "quality": ["calibration"]}).recorded()
    assert recorded["resolved"]["columns"] == {"brier": "test_float64", "ece": "test_float64", "nll": "test_float64"}


def test_objectives_of_qualities_are_columns_with_their_direction() -> None:
    of_quality = {name: o for name, o in OBJECTIVES.items() if o.on_test}
    assert len(of_quality) == 17
    for name, objective in of_quality.items():
        measured_by = quality.QUALITIES[objective.quality]
        column = measured_by.columns[objective.column]
        expected = "neither" if objective.absolute else "higher" if objective.higher_is_better else "lower"
        assert column.better == expected, name
        assert objective.needs_parent or not measured_by.needs_parent


def test_a_search_is_led_by_what_it_measures_on_validation_examples(tmp_path: Path) -> None:
    """With rungs before, and without; its candidates are charged for it, and the referee's measuring is not."""
    table = {
        **SEARCH,
        "quality": ["calibration"],
        "rungs": {"kind": "successive_halving", "min_steps": 1, "eta": 2, "bracket": 4},
        "arms": {"random": {}, "evolution": {"strategy": "evolution", "rungs": {"kind": "none"}}},
        "verdict": {"objectives": ["val_ece", "dynamic_dead_fraction"]},
    }
    torch.set_num_threads(1)
    run_search(Study.from_dict(table), tmp_path / "led")
    results = load(tmp_path / "led")
    rows = results.to_arrow(where="stage == 'trained'").to_pylist()
    assert {row["outcome"] for row in rows} == {"completed", "stopped"}
    assert all((row["val_ece"] is None) == (row["outcome"] == "stopped") for row in rows)
    ended = {(r["arm"], r["slot"]): r for r in rows if r["outcome"] == "completed"}
    assert all(row["val_ece"] != row["ece"] for row in ended.values())
    assert results.front().num_rows >= 1
    run_search(Study.from_dict({**table, "verdict": {"objectives": ["val_error"]}}), tmp_path / "unled")
    unled = load(tmp_path / "unled").to_arrow(where="stage == 'trained' and outcome == 'completed'").to_pylist()
    drawn = [row for row in unled if row["arm"] == "random"]
    assert drawn
    n_validation = round(0.2 * 1440)
    for row in drawn:
        same = ended["random", row["slot"]]
        assert same["val_loss"] == row["val_loss"]
        assert same["passes"] - row["passes"] == pytest.approx(quality.passes(["calibration"], n_validation))
        assert same["quality_passes"] == row["quality_passes"]


def test_a_simulation_does_not_know_what_is_measured_of_trained_networks() -> None:
    study = Study.from_dict({**SEARCH, "verdict": {"objectives": ["val_error", "density_macs"]}})
    with pytest.raises(ConfigError, match=r"'density_macs' is measured of trained networks, and a simulation trains"):
        study.simulate()
