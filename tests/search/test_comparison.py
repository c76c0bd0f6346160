"""The verdict of a search study: equal budgets, known truths, and numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sparsefront.search.attainment import attain, mean_curves
from sparsefront.search.comparison import (
    SearchVerdict,
    compare_arms,
    judge_runs,
    search_record,
    verdict_rows,
)
from sparsefront.search.controlled import Controlled
from sparsefront.search.design import SearchDesign
from sparsefront.search.findings import LABELS
from sparsefront.search.importance import arm_importances
from sparsefront.search.schema import SCHEMA
from sparsefront.search.statistics import holm
from tests.synthetic_search import make_search_design, make_search_table


def relabelled(table: pa.Table, name: str, *, below: int = 1_000_000) -> pa.Table:
    """The rows of the random arm once more under another name, as far as a number."""
    rows = table.filter((pc.field("arm") == "random") & (pc.field("slot") < below))
    return rows.set_column(rows.schema.get_field_index("arm"), "arm", pa.array([name] * rows.num_rows))


def two_arms(**changes: Any) -> SearchDesign:
    return make_search_design(arms={"random": {}, "other": {}}, **changes)


def by_hand(runs: dict[tuple[str, int], list[tuple[float, float]]]) -> pa.Table:
    """A ledger of runs {(arm, replicate): [(passes, validation error), ...]}."""
    rows = [
        dict.fromkeys(SCHEMA.names)
        | {"stage": "trained", "arm": arm, "replicate": replicate, "target_sparsity": 0.0, "slot": number}
        | {"outcome": "completed", "reused": False, "passes": passes, "val_error": error}
        for (arm, replicate), found in runs.items()
        for number, (passes, error) in enumerate(found)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.fixture(scope="module")
def design() -> SearchDesign:
    return make_search_design(candidates=48, equivalence_margin=0.004)


@pytest.fixture(scope="module")
def table(design: SearchDesign) -> pa.Table:
    return make_search_table(design, skill={"nsga2": 0.95})


@pytest.fixture(scope="module")
def verdict(design: SearchDesign, table: pa.Table) -> SearchVerdict:
    return compare_arms(table, design)


def test_an_arm_that_is_better_is_called_better(verdict: SearchVerdict) -> None:
    found = {c.arm: c for c in verdict.comparisons}
    assert list(found) == ["asha", "nsga2"]
    assert found["nsga2"].label == "better"
    assert found["nsga2"].low > 0
    assert found["nsga2"].cost_ratio < 1
    assert verdict.headline.startswith(
        "Does any arm beat random at equal budget? Sometimes: better hypervolume for nsga2"
    )


def test_the_same_runs_under_another_name_are_equivalent() -> None:
    design = two_arms(candidates=32)
    table = make_search_table(design)
    twice = pa.concat_tables([table.filter(pc.field("arm") == "random"), relabelled(table, "other")])
    (found,) = compare_arms(twice, design).comparisons
    assert (found.difference, found.low, found.high, found.label) == (0.0, 0.0, 0.0, "equivalent")
    assert (found.p_value, found.p_equivalence) == (1.0, 2.0**-10)


def test_budgets_are_equal_whoever_was_given_more() -> None:
    """The other arm is the first half of the random one: at its budget, there is no difference."""
    design = two_arms(candidates=32)
    table = make_search_table(design)
    half = pa.concat_tables([table.filter(pc.field("arm") == "random"), relabelled(table, "other", below=16)])
    found = compare_arms(half, design)
    (comparison,) = found.comparisons
    assert comparison.difference == 0.0
    assert comparison.budget_passes == comparison.arm_passes == comparison.against_passes / 2
    assert [s.n_candidates for s in found.spent] == [320, 160]


def test_the_share_of_the_others_budget_is_worked_out() -> None:
    design = two_arms(objectives=("val_error",), replicates=4)
    slow = [(100.0, 0.6), (100.0, 0.5), (100.0, 0.4), (100.0, 0.3)]
    fast = [(50.0, 0.5), (50.0, 0.3), (300.0, 0.2)]
    runs = {("random", r): slow for r in range(4)} | {("other", r): fast for r in range(4)}
    (found,) = compare_arms(by_hand(runs), design).comparisons
    assert found.metric == "val_error"
    assert found.cost_ratio == found.cost_ratio_low == found.cost_ratio_high == 0.25
    assert (found.arm_mean, found.against_mean) == (pytest.approx(0.2), pytest.approx(0.3))
    assert found.difference == pytest.approx(0.1)

    swapped = {("other" if arm == "random" else "random", r): run for (arm, r), run in runs.items()}
    verdict = compare_arms(by_hand(swapped), design)
    assert math.isinf(verdict.comparisons[0].cost_ratio)
    assert "never comes to where the other ended" in verdict.comparisons[0].note
    assert "other never comes to where random ended, even with 100% of random's passes" in verdict.sentences
    few = {key: run[:2] if key[0] == "other" else run for key, run in swapped.items()}
    sentences = compare_arms(by_hand(few), design).sentences
    assert "other never comes to where random ended, with 50% of random's passes" in sentences


@pytest.mark.parametrize(("replicates", "ends"), [(3, "unknown"), (4, "25% to 25%")])
def test_of_few_pairs_it_is_unknown_how_far_the_share_may_be_off(replicates: int, ends: str) -> None:
    design = two_arms(objectives=("val_error",), replicates=replicates)
    runs = {("random", r): [(200.0, 0.6), (200.0, 0.3)] for r in range(replicates)}
    runs |= {("other", r): [(50.0, 0.5), (50.0, 0.3)] for r in range(replicates)}
    verdict = compare_arms(by_hand(runs), design)
    assert verdict.comparisons[0].cost_ratio == 0.25
    assert f"other comes to where random ended with 25% of random's passes (95% interval {ends})" in verdict.sentences


def test_the_share_of_the_budget_is_of_mean_curves() -> None:
    """Replicate 0 never comes to its partner's end; the mean of the curves does, at 300 of 400 passes."""
    design = two_arms(objectives=("val_error",), replicates=4)
    runs = {
        ("random", 0): [(200.0, 0.5), (200.0, 0.2)],
        ("random", 1): [(200.0, 0.5), (200.0, 0.4)],
        ("random", 2): [(200.0, 0.5), (200.0, 0.2)],
        ("random", 3): [(200.0, 0.5), (200.0, 0.4)],
        **{("other", r): [(100.0, 0.4), (200.0, 0.3), (100.0, 0.3)] for r in range(4)},
    }
    (found,) = compare_arms(by_hand(runs), design).comparisons
    assert found.cost_ratio == pytest.approx(0.75)
    assert math.isinf(found.cost_ratio_high)


def test_a_run_is_read_at_the_smaller_of_both_costs() -> None:
    design = two_arms(objectives=("val_error",), replicates=1)
    runs = {("random", 0): [(100.0, 0.6), (100.0, 0.1)], ("other", 0): [(150.0, 0.5)]}
    (found,) = compare_arms(by_hand(runs), design).comparisons
    assert (found.arm_mean, found.against_mean, found.budget_passes) == (0.5, 0.6, 150.0)
    assert found.label == "undecided"
    assert math.isnan(found.p_value)


def test_the_headline_gives_one_range_where_many_are_undecided() -> None:
    arms = {"random": {}, **{name: {} for name in ("a", "b", "c")}}
    kept = {"replicates": 4, "equivalence_margin": 1e-3}
    few = make_search_design(arms={name: arms[name] for name in ("random", "a", "b")}, **kept)
    many = make_search_design(arms=arms, **kept)
    each, all_of_them = (compare_arms(make_search_table(design), design) for design in (few, many))
    assert {c.label for c in (*each.comparisons, *all_of_them.comparisons)} == {"undecided"}
    assert each.headline.count("would be enough") == 2
    assert re.search(
        r"undecided for a, b, c \(there are 4 replicates; .+ would be enough, depending on the comparison\)$",
        all_of_them.headline,
    )


def test_no_number_of_replicates_is_named_where_there_is_no_difference_at_all() -> None:
    """A strategy that draws what random search drew is not undecided for want of replicates."""
    design = two_arms(candidates=32, replicates=4)
    table = make_search_table(design)
    twice = pa.concat_tables([table.filter(pc.field("arm") == "random"), relabelled(table, "other")])
    found = compare_arms(twice, design)
    (row,) = verdict_rows(found)
    assert (row["verdict"], row["replicates needed"]) == ("undecided", "")
    assert row["note"] == "all differences are exactly zero, as of arms that trained the same candidates"
    assert found.headline.endswith(": undecided for other (no difference at all)")
    (other,) = compare_arms(table, design).comparisons
    assert "zero" not in other.note
    assert other.replicates_needed_low

    # Nor does it hide the number of those that have a difference.
    names = {"random": {}, **{name: {} for name in ("a", "b", "c")}}
    several = make_search_design(arms=names, replicates=4, equivalence_margin=1e-3)
    rows = make_search_table(several)
    same = pa.concat_tables([rows.filter(pc.field("arm") != "c"), relabelled(rows, "c")])
    assert re.search(
        r"undecided for a, b, c \(no difference at all\) \(there are 4 replicates; .+ would be enough",
        compare_arms(same, several).headline,
    )


def test_arms_are_held_against_the_arm_that_they_name() -> None:
    design = make_search_design(
        arms={
            "random": {},
            "tpe": {},
            "tuned": {"against": ("tpe",)},
            "lost": {"against": ("nobody",)},
            "both": {"against": ("random", "tpe")},
        },
        replicates=4,
    )
    found = compare_arms(make_search_table(design), design)
    assert [(c.arm, c.against) for c in found.comparisons] == [
        *(("tpe", "random"), ("tuned", "tpe"), ("both", "random"), ("both", "tpe"))
    ]
    assert [c.p_adjusted for c in found.comparisons] == list(holm([c.p_value for c in found.comparisons]))
    assert found.headline.startswith("Does any arm beat its opponent at equal budget? ")
    record = search_record(attain(make_search_table(design), design), design, found, is_complete=True)["arms"]
    assert record["tuned"]["tags"]["against"] == "tpe"
    assert "verdict_difference" in record["tuned"]["metrics"]
    assert record["both"]["tags"]["against"] == "random, tpe"
    assert record["both"]["tags"]["verdict"].count(", ") == 1
    assert {"verdict/random_difference", "verdict/tpe_difference"} <= record["both"]["metrics"].keys()


def test_an_arm_that_is_held_against_nobody_is_said() -> None:
    """Not so the one that others are held against, which is held against itself where nothing is said."""
    arms: dict[str, Any] = {"random": {}, "tpe": {}, "alone": {"against": ()}}
    design = make_search_design(arms=arms, replicates=4)
    found = compare_arms(make_search_table(design), design)
    assert [(c.arm, c.against) for c in found.comparisons] == [("tpe", "random")]
    assert [said for said in found.sentences if "nobody" in said] == ["Judged against nobody: alone"]
    for only in ({"alone": {"against": ()}}, {"random": {}}):
        design = make_search_design(arms=only, replicates=4)
        found = compare_arms(make_search_table(design), design)
        assert found.comparisons == ()
        assert found.headline.endswith("Not judged: no arm is held against another one")
        assert f"Judged against nobody: {next(iter(only))}" in found.sentences


def test_p_values_are_corrected_over_all_comparisons(verdict: SearchVerdict) -> None:
    p, adjusted = ([getattr(c, name) for c in verdict.comparisons] for name in ("p_value", "p_adjusted"))
    assert min(adjusted) == pytest.approx(2 * min(p))


def test_missing_replicates_are_said(design: SearchDesign, table: pa.Table) -> None:
    part = table.filter((pc.field("arm") != "nsga2") | (pc.field("replicate") < 4))
    found = {c.arm: c for c in compare_arms(part, design).comparisons}["nsga2"]
    assert (found.n, found.n_missing) == (4, 6)
    assert found.note == "6 of 10 replicates have no pair"


def test_an_arm_that_only_fails_is_worse_and_said_to_fail() -> None:
    design = two_arms(replicates=6, candidates=40)
    failing = {("other", r, i): "diverged" for r in range(6) for i in range(40)}
    found = compare_arms(make_search_table(design, outcomes=failing), design)
    (comparison,) = found.comparisons
    assert (comparison.label, comparison.arm_mean) == ("worse", 0.0)
    assert comparison.note.startswith("the arm completed nothing that counts in 6 of 6 replicates")
    assert found.sentences[-1] == "Not every candidate completed: 240 diverged (other)"


def test_where_neither_had_found_anything_nothing_is_judged() -> None:
    """All that diverge do so early: at their budget random search has not completed its first candidate."""
    design = two_arms(replicates=6, candidates=4)
    failing = {("other", r, i): "diverged" for r in range(6) for i in range(4)}
    found = compare_arms(make_search_table(design, outcomes=failing), design)
    (comparison,) = found.comparisons
    assert (comparison.label, comparison.difference) == ("undecided", 0.0)
    assert math.isnan(comparison.p_value)
    assert comparison.note.startswith("at equal budget neither had found anything in 6 of 6 replicates")
    assert "not judged (at equal budget neither had found anything" in found.sentences[0]


def test_nothing_to_compare_is_said() -> None:
    found = compare_arms(SCHEMA.empty_table(), two_arms())
    assert found.comparisons[0].n == 0
    assert found.comparisons[0].note == "no replicate has both runs"
    assert "Not judged" in found.headline
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_verdict_is_a_function_of_rows_and_design(
    design: SearchDesign, table: pa.Table, verdict: SearchVerdict
) -> None:
    shuffled = table.take(np.random.default_rng(1).permutation(table.num_rows))
    for one, other in zip(verdict.comparisons, compare_arms(shuffled, design).comparisons, strict=True):
        assert dataclasses.asdict(one) == pytest.approx(dataclasses.asdict(other), nan_ok=True)


def test_rows_of_the_table_are_strings_with_the_same_columns(verdict: SearchVerdict) -> None:
    rows = verdict_rows(verdict)
    assert len({tuple(row) for row in rows}) == 1
    assert all(isinstance(value, str) for row in rows for value in row.values())
    assert all(row["verdict"] in LABELS for row in rows)
    assert rows[1]["difference"].startswith("+")
    assert rows[1]["unit"] == "% of the box"


def test_the_verdict_is_plain_json(verdict: SearchVerdict) -> None:
    found = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert [c["arm"] for c in found["comparisons"]] == ["asha", "nsga2"]
    assert found["arms"][1]["stopped"].keys() == {"0", "1"}


def test_the_first_sentences_say_what_the_table_does(verdict: SearchVerdict) -> None:
    for sentence, comparison in zip(verdict.sentences, verdict.comparisons, strict=False):
        assert sentence.startswith(
            f"Hypervolume of {comparison.arm} against random at equal budget: {comparison.label}"
        )
    assert any(s.startswith("Stopped early of asha's candidates: ") for s in verdict.sentences)


def test_the_record_has_finite_metrics_of_the_study_and_of_each_arm(
    design: SearchDesign, table: pa.Table, verdict: SearchVerdict
) -> None:
    found = attain(table, design)
    record = search_record(found, design, verdict, is_complete=True)
    assert list(record["arms"]) == ["random", "asha", "nsga2"]
    for arm in record["arms"].values():
        assert all(isinstance(v, float) and math.isfinite(v) for v in arm["metrics"].values())
        assert all(isinstance(v, str) for v in [*arm["tags"].values(), *arm["params"].values()])
        assert set(arm["series"]) == {f"hypervolume_at_passes{end}" for end in ("", "_low", "_high")}
        assert len(arm["series"]["hypervolume_at_passes"]) >= 5
    for curve in mean_curves(found, design, costs=[316_228]):
        ends = {"": curve.mean, "_low": curve.low, "_high": curve.high}
        shown = {end: dict(record["arms"][curve.arm]["series"][f"hypervolume_at_passes{end}"]) for end in ends}
        expected = {end: values[0] for end, values in ends.items()}
        assert {end: points[316_228] for end, points in shown.items()} == pytest.approx(expected, rel=1e-12)
    nsga2 = record["arms"]["nsga2"]
    assert nsga2["tags"]["verdict"] == "better"
    assert nsga2["metrics"]["verdict_difference"] == pytest.approx(verdict.comparisons[1].difference, rel=1e-12)
    assert record["study"]["metrics"]["candidates"] == 3 * 480
    assert json.loads(json.dumps(record, allow_nan=False))


def test_the_record_has_the_importance_of_every_dimension(
    design: SearchDesign, table: pa.Table, verdict: SearchVerdict
) -> None:
    importances = arm_importances(table, design)
    record = search_record(attain(table, design), design, verdict, importances=importances, is_complete=True)
    assert [found.arm for found in importances if found.importances] == ["random", "nsga2"]
    for found in importances:
        shown = {name: v for name, v in record["arms"][found.arm]["metrics"].items() if name.startswith("importance/")}
        assert shown == {f"importance/{name}": share for name, share in (found.importances or {}).items()}
    both = [dataclasses.replace(found, objective=name) for found in importances for name in ("val_error", "val_loss")]
    record = search_record(attain(table, design), design, verdict, importances=both, is_complete=True)
    metrics = record["arms"]["random"]["metrics"]
    assert {"importance/val_error/lr", "importance/val_loss/lr"} <= metrics.keys()
    assert "importance/lr" not in metrics


def test_who_waits_at_a_rung_has_no_outcome_in_the_record(design: SearchDesign, table: pa.Table) -> None:
    begun = table.filter((pc.field("stage") == "rung") | (pc.field("slot") < 24))
    found = attain(begun, design)
    metrics = search_record(found, design, judge_runs(found, design, Controlled()), is_complete=False)["arms"]["asha"][
        "metrics"
    ]
    assert {name for name in metrics if name.endswith("_share")} == {"completed_share", "stopped_share"}
    assert metrics["candidates"] == 10 * 24


def test_points_of_a_series_never_change_while_a_study_grows() -> None:
    design = make_search_design(replicates=3, candidates=40, reference=(0.9, 1e5))
    table = make_search_table(design)
    # Not in the order of numbers: 13 still trains, and so do those at a rung from 17 on.
    has_rows = (pc.field("slot") < 17) | (pc.field("stage") == "rung") | (pc.field("slot") == 19)
    part = table.filter((pc.field("slot") < 20) & (pc.field("slot") != 13) & has_rows)
    series = []
    for rows in (part, table):
        found = attain(rows, design)
        record = search_record(found, design, judge_runs(found, design, Controlled()), is_complete=False)
        series.append({name: arm["series"] for name, arm in record["arms"].items()})
    assert len(series[0]["random"]["hypervolume_at_passes_low"]) > 3
    for name, early in series[0].items():
        for of_end, points in early.items():
            later = series[1][name][of_end][: len(points)]
            assert np.array(later) == pytest.approx(np.array(points), rel=1e-12)


def test_no_series_is_shown_while_the_box_can_move(
    design: SearchDesign, table: pa.Table, verdict: SearchVerdict
) -> None:
    record = search_record(attain(table, design), design, verdict, is_complete=False)
    assert all(arm["series"] == {} for arm in record["arms"].values())
