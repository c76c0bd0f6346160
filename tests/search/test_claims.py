"""Claims: hand-computed verdicts, the slow way beside the fast one, and tests that a study cannot answer."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsefront.errors import ConfigError
from sparsefront.search.claim_words import BEGIN, END, claim_dict, claim_rows, claims_markdown, replaced, whole
from sparsefront.search.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    ClaimTest,
    Evidence,
    claim_columns,
    judge_claim,
    verdict_of,
    whole_verdict,
)
from sparsefront.search.design import Design
from sparsefront.search.methods import tables_for
from sparsefront.search.schema import SCHEMA
from tests.synthetic import build_design, build_table

ARMS = ("dense", "random", "imp", "ap")


def design_of(**changes: Any) -> Design:
    return build_design(**{"arms": ARMS, "sparsities": (0.8, 0.9), "replicates": 4, **changes})


def claim_of(*tests: ClaimTest) -> Claim:
    return Claim("a | claim\nof two lines", "Somebody, 2020", "large", "small", tests)


def rows_of(values: dict[tuple[str, float], list[list[float] | float]], **columns: Any) -> pa.Table:
    """Trained rows: accuracies by (arm, level), one list of slots (or a number) for each replicate."""
    rows = []
    for (arm, level), replicates in values.items():
        for replicate, slots in enumerate(replicates):
            for slot, accuracy in enumerate(slots if isinstance(slots, list) else [slots]):
                row = dict.fromkeys(SCHEMA.names) | {
                    "stage": "trained", "arm": arm, "replicate": replicate, "target_sparsity": level, "slot": slot,
                    "outcome": "completed", "test_error": 1 - accuracy,
                }  # fmt: skip
                rows.append(row | columns)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def judged(table: pa.Table, *tests: ClaimTest, **changes: Any):
    return judge_claim(claim_of(*tests), Evidence(design_of(**changes), table))


def changed(table: pa.Table, where: dict[str, Any], values: dict[str, Any]) -> pa.Table:
    rows = table.to_pylist()
    for row in rows:
        if all(row[key] == value for key, value in where.items()):
            row |= values
    return pa.Table.from_pylist(rows, schema=SCHEMA)


# What a test comes to ------------------------------------------------------------------------------------------------

# alpha 0.05, margin 0.01: (expected, difference, p, p of equivalence) -> verdict.
CASES = [
    ("higher", 0.03, 0.05, 0.9, REPRODUCED),
    ("higher", 0.03, 0.051, 0.9, INCONCLUSIVE),
    ("higher", -0.03, 0.05, 0.9, NOT_REPRODUCED),
    ("higher", 0.001, 0.4, 0.05, NOT_REPRODUCED),  # equivalent: there is no such effect
    ("higher", 0.001, 0.01, 0.01, REPRODUCED),  # small, but there
    ("higher", 0.03, math.nan, math.nan, INCONCLUSIVE),
    ("lower", -0.03, 0.01, 0.9, REPRODUCED),
    ("lower", 0.03, 0.01, 0.9, NOT_REPRODUCED),
    ("lower", -0.001, 0.4, 0.01, NOT_REPRODUCED),
    ("lower", -0.03, 0.06, 0.06, INCONCLUSIVE),
    ("equivalent", 0.001, 0.4, 0.05, REPRODUCED),
    ("equivalent", 0.001, 0.001, 0.001, REPRODUCED),  # not zero, but within the margin
    ("equivalent", 0.001, 0.9, 0.051, INCONCLUSIVE),  # no difference found is no equivalence
    ("equivalent", -0.01, 0.05, 0.9, NOT_REPRODUCED),
    ("equivalent", 0.009, 0.01, 0.9, INCONCLUSIVE),  # different, but perhaps by less than the margin
    ("equivalent", 0.03, 0.06, 0.9, INCONCLUSIVE),
    ("equivalent", math.nan, math.nan, math.nan, INCONCLUSIVE),
]


@pytest.mark.parametrize(("expect", "difference", "p", "p_equivalence", "verdict"), CASES)
def test_verdict_of_one_test(expect, difference, p, p_equivalence, verdict):
    assert verdict_of(expect, difference, p, p_equivalence, margin=0.01, alpha=0.05) == verdict


@given(
    st.floats(-1, 1),
    st.floats(0, 1) | st.just(math.nan),
    st.floats(0, 1) | st.just(math.nan),
)
def test_what_is_expected_higher_of_one_arm_is_expected_lower_of_the_other(difference, p, p_equivalence):
    there = verdict_of("higher", difference, p, p_equivalence, margin=0.01, alpha=0.05)
    back = verdict_of("lower", -difference, p, p_equivalence, margin=0.01, alpha=0.05)
    if difference:
        assert there == back


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([REPRODUCED, REPRODUCED], REPRODUCED),
        ([REPRODUCED, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, NOT_REPRODUCED], NOT_REPRODUCED),
        ([REPRODUCED, NOT_REPRODUCED], NOT_REPRODUCED),
        ([], INCONCLUSIVE),
    ],
)
def test_verdict_of_a_claim(verdicts, expected):
    assert whole_verdict(verdicts) == expected


def test_an_example_by_hand():
    # Means of the random arm's two networks: .50 .52 .54 .56; differences .04 .06 .04 .06: mean .05, sd .011547,
    # standard error .0057735, t = 5 sqrt(3) with 3 degrees of freedom: p = 1 - 2/pi (arctan 5 + 5/26) = .003239.
    table = rows_of(
        {
            ("imp", 0.9): [0.54, 0.58, 0.58, 0.62],
            ("random", 0.9): [[0.49, 0.51], [0.5, 0.54], [0.54, 0.54], [0.52, 0.60]],
        }
    )
    (effect,) = judged(table, ClaimTest("imp", "higher", sparsity=(0.9,))).tests
    assert (effect.n, effect.n_missing, effect.note) == (4, 0, "")
    assert (effect.arm_mean, effect.against_mean) == pytest.approx((0.58, 0.53))
    assert effect.difference == pytest.approx(0.05)
    assert effect.p_value == effect.p_adjusted == pytest.approx(1 - 2 / math.pi * (math.atan(5) + 5 / 26))
    assert (effect.low, effect.high) == pytest.approx((0.05 - 3.18245 * 0.0057735, 0.05 + 3.18245 * 0.0057735))
    assert effect.verdict == REPRODUCED
    assert effect.margin == 0.01
    for expect, verdict in (("lower", NOT_REPRODUCED), ("equivalent", NOT_REPRODUCED)):
        found = judged(table, ClaimTest("imp", expect, sparsity=(0.9,)))  # type: ignore[arg-type]
        assert found.verdict == found.tests[0].verdict == verdict


def test_equivalence_by_hand():
    # Differences .001 -.002 .003 .0: mean .0005, standard error .00104083; to the margin of .01 t = 9.127: p = .001393.
    table = rows_of({("imp", 0.9): [0.501, 0.498, 0.503, 0.5], ("random", 0.9): [0.5] * 4})
    (effect,) = judged(table, ClaimTest("imp", "equivalent", sparsity=(0.9,))).tests
    assert effect.p_equivalence == pytest.approx(0.001393, abs=1e-5)
    assert effect.verdict == REPRODUCED
    assert judged(table, ClaimTest("imp", "higher", sparsity=(0.9,))).verdict == NOT_REPRODUCED
    narrow = judged(table, ClaimTest("imp", "equivalent", sparsity=(0.9,), margin=0.001))
    assert narrow.verdict == INCONCLUSIVE


def test_all_tests_of_a_claim_are_corrected_together():
    rng = np.random.default_rng(0)
    values = {(arm, s): list(rng.normal(0.5, 0.02, 4)) for arm in ("random", "imp", "ap") for s in (0.8, 0.9)}
    found = judged(rows_of(values), ClaimTest("imp", "higher"), ClaimTest("ap", "lower", "imp", sparsity=(0.9,)))
    assert [(e.arm, e.against, e.sparsity) for e in found.tests] == [
        ("imp", "random", 0.8),
        ("imp", "random", 0.9),
        ("ap", "imp", 0.9),
    ]
    alone = [e.p_value for e in found.tests]
    order = np.argsort(alone)
    expected = np.minimum(1, np.maximum.accumulate(np.array([3, 2, 1]) * np.array(alone)[order]))
    assert [found.tests[i].p_adjusted for i in order] == pytest.approx(list(expected))


def test_the_dense_parent_is_compared_at_every_sparsity():
    table = rows_of({("dense", 0.0): [0.6, 0.62, 0.61, 0.63], ("random", 0.9): [0.5, 0.53, 0.5, 0.54]})
    (effect,) = judged(table, ClaimTest("random", "lower", "dense", sparsity=(0.9,))).tests
    assert effect.difference == pytest.approx(-0.0975)
    (effect,) = judged(table, ClaimTest("dense", "higher", sparsity=(0.9,))).tests
    assert effect.verdict == REPRODUCED


@pytest.mark.parametrize("seed", range(20))
def test_numbers_agree_with_the_slow_way(seed):
    design = build_design(replicates=9, arms=("random", "dense", "magnitude", "searched"), random_draws=3, draws=8)
    table = build_table(design, effect={"magnitude": 0.02}, noise=0.02, seed=seed)
    claim = claim_of(
        ClaimTest("magnitude", "higher"),
        ClaimTest("searched", "equivalent", "magnitude"),
        ClaimTest("dense", "higher", "random", metric="val_loss"),
    )
    found = judge_claim(claim, Evidence(design, table))
    rows = [row for row in table.to_pylist() if row["stage"] == "trained"]
    slow = []
    for effect in found.tests:

        def mean(arm, replicate, effect=effect):
            level = 0.0 if arm == "dense" else effect.sparsity
            mine = [r for r in rows if (r["arm"], r["replicate"], r["target_sparsity"]) == (arm, replicate, level)]
            return np.mean([1 - r["test_error"] if effect.metric == "accuracy" else r["val_loss"] for r in mine])

        ours, theirs = (np.array([mean(arm, r) for r in range(9)]) for arm in (effect.arm, effect.against))
        assert effect.difference == pytest.approx((ours - theirs).mean())
        p = stats.ttest_rel(ours, theirs).pvalue
        assert effect.p_value == pytest.approx(p)
        slow.append(p)
        if effect.metric == "accuracy":
            sides = [
                stats.ttest_1samp(ours - theirs, -0.01, alternative="greater").pvalue,
                stats.ttest_1samp(ours - theirs, 0.01, alternative="less").pvalue,
            ]
            assert effect.p_equivalence == pytest.approx(max(sides))
        else:
            assert effect.margin is None
            assert math.isnan(effect.p_equivalence)
    assert [e.p_adjusted for e in found.tests] == pytest.approx(list(stats_holm(slow)))


def stats_holm(p_values):
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, highest)
    return adjusted


# What is missing -----------------------------------------------------------------------------------------------------


def test_a_diverged_network_counts_as_guessing_by_accuracy_alone():
    table = rows_of(
        {("imp", 0.9): [0.5, 0.5, 0.5, 0.5], ("random", 0.9): [[0.4, 0.4]] * 4}, val_loss=1.0, dynamic_dead_fraction=0.3
    )
    none = {"outcome": "diverged", "test_error": None, "val_loss": None, "dynamic_dead_fraction": None}
    table = changed(table, {"arm": "imp", "replicate": 0}, none)
    table = changed(table, {"arm": "random", "replicate": 1, "slot": 0}, none)
    accuracy, loss = judged(
        table,
        ClaimTest("imp", "higher", sparsity=(0.9,)),
        ClaimTest("imp", "lower", sparsity=(0.9,), metric="val_loss"),
    ).tests
    assert (accuracy.n, accuracy.arm_mean) == (4, pytest.approx((0.1 + 1.5) / 4))
    assert accuracy.against_mean == pytest.approx((0.4 * 3 + 0.25) / 4)
    assert (loss.n, loss.n_missing, loss.note) == (3, 1, "1 of 4 replicates have no pair")


@pytest.mark.parametrize("outcome", ["failed", "timeout", "out_of_memory", "lost", "stopped"])
def test_a_network_without_a_result_leaves_its_replicate_without_a_pair(outcome):
    table = rows_of({("imp", 0.9): [0.5, 0.6, 0.7, 0.8], ("random", 0.9): [0.4, 0.51, 0.6, 0.72]})
    table = changed(table, {"arm": "imp", "replicate": 3}, {"outcome": outcome, "test_error": None})
    (effect,) = judged(table, ClaimTest("imp", "higher", sparsity=(0.9,))).tests
    assert (effect.n, effect.n_missing) == (3, 1)
    assert effect.difference == pytest.approx((0.1 + 0.09 + 0.1) / 3)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_pairs_are_inconclusive(n):
    table = rows_of({("imp", 0.9): [0.9] * n, ("random", 0.9): [0.1] * 4})
    found = judged(table, ClaimTest("imp", "higher", sparsity=(0.9,)))
    assert (found.verdict, found.tests[0].n) == (INCONCLUSIVE, n)
    assert f"{4 - n} of 4 replicates have no pair" in claim_rows([found])[0]["note"]
    assert json.loads(json.dumps(claim_dict(found), allow_nan=False))["tests"][0]["p_value"] is None
    assert "inconclusive" in claims_markdown([found])


def test_rows_of_other_stages_do_not_count():
    table = rows_of({("imp", 0.9): [0.5, 0.6, 0.55, 0.7], ("random", 0.9): [0.4, 0.51, 0.4, 0.7]})
    level = changed(rows_of({("imp", 0.9): [0.0] * 4}), {"arm": "imp"}, {"stage": "level"})
    tests = [ClaimTest("imp", "higher", sparsity=(0.9,))]
    assert judged(pa.concat_tables([table, level]), *tests) == judged(table, *tests)


def test_a_finding_is_a_function_of_rows_and_design_alone():
    design = build_design(arms=("random", "magnitude"), random_draws=2, draws=4)
    table = build_table(design, noise=0.02)
    claim = claim_of(ClaimTest("magnitude", "higher"))
    shuffled = table.take(np.random.default_rng(1).permutation(table.num_rows))
    found = judge_claim(claim, Evidence(design, table))
    assert judge_claim(claim, Evidence(design, shuffled)) == found
    more = claim_of(*claim.tests, ClaimTest("random", "lower", "magnitude"))
    assert [e.low for e in judge_claim(more, Evidence(design, table)).tests[:2]] == [e.low for e in found.tests]
    only = table.select(claim_columns(claim))
    assert judge_claim(claim, Evidence(design, only)) == found


# Between studies -----------------------------------------------------------------------------------------------------


def test_a_difference_of_differences_by_hand():
    ours = rows_of({("dense", 0.0): [0.7, 0.7, 0.7, 0.7], ("random", 0.9): [0.69, 0.67, 0.68, 0.68]})
    theirs = rows_of({("dense", 0.0): [0.6, 0.6, 0.6, 0.6], ("random", 0.9): [0.5, 0.5, 0.49, 0.51]})
    test = ClaimTest("random", "higher", "dense", sparsity=(0.9,), than="narrow")
    wide, narrow = design_of(name="wide"), design_of(name="narrow", sparsities=(0.9,))
    found = judge_claim(claim_of(test), Evidence(wide, ours), {"narrow": Evidence(narrow, theirs)})
    (effect,) = found.tests
    # -.01 -.03 -.02 -.02 less -.10 -.10 -.11 -.09
    assert effect.difference == pytest.approx((0.09 + 0.07 + 0.09 + 0.07) / 4)
    assert (effect.arm_mean, effect.against_mean) == pytest.approx((0.68, 0.7))
    assert (effect.n, found.verdict) == (4, REPRODUCED)
    assert "random - dense, less that of narrow" in claims_markdown([found])
    fewer = Evidence(narrow, theirs.filter(pa.compute.field("replicate") < 3))
    assert judge_claim(claim_of(test), Evidence(wide, ours), {"narrow": fewer}).tests[0].n == 3
    alone = judge_claim(claim_of(test), Evidence(wide, ours))
    assert (alone.verdict, alone.tests[0].n) == (INCONCLUSIVE, 0)
    assert alone.tests[0].note == "study 'narrow' is not among those given"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 8}, "has seed=8, and this study 7; replicates are paired by it"),
        ({"arms": ("random", "imp")}, "cannot answer the same test (it.against='dense': must be one of random, imp)"),
        ({"sparsities": (0.5,)}, "cannot answer the same test (it.sparsity=0.9: must be one of the study's"),
    ],
)
def test_studies_that_cannot_be_compared(changes, message):
    table = rows_of({("dense", 0.0): [0.7] * 4, ("random", 0.9): [0.6] * 4})
    test = ClaimTest("random", "higher", "dense", sparsity=(0.9,), than="narrow")
    other = Evidence(design_of(name="narrow", **changes), table)
    with pytest.raises(ConfigError, match=re.escape(f"claim.tests of 'wide': than='narrow': {message}")):
        judge_claim(claim_of(test), Evidence(design_of(name="wide"), table), {"narrow": other})


# Convergence ---------------------------------------------------------------------------------------------------------


def timed(arms: dict[str, list[float | list[float]]], **columns: Any) -> pa.Table:
    """Networks at 0.9 that come to the dense parent's accuracy at the steps given of 100, or never (inf)."""
    steps = [10.0 * n for n in range(1, 11)]
    rows = []
    for arm, level, replicates in [("dense", 0.0, [10.0] * 4), *((arm, 0.9, values) for arm, values in arms.items())]:
        for replicate, slots in enumerate(replicates):
            for slot, first in enumerate(slots if isinstance(slots, list) else [slots]):
                errors = [0.05 if step >= first else 0.5 for step in steps]
                row = dict.fromkeys(SCHEMA.names) | {
                    "stage": "trained", "arm": arm, "replicate": replicate, "target_sparsity": level, "slot": slot,
                    "outcome": "completed", "candidate": f"{arm}{replicate}{slot}", "passes": 1.0, "reused": False,
                    "test_error": 0.1, "val_error": errors[-1], "curve_step": steps, "curve_val_error": errors,
                }  # fmt: skip
                rows.append(row | columns)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


FASTER = ClaimTest("imp", "lower", sparsity=(0.9,), metric="convergence")


def test_convergence_by_hand():
    # A network that never comes to the target takes all 100 steps. Means of random's two: 45 55 75 85; differences
    # -15 -25 -25 -15: mean -20, sd 5.7735, standard error 2.88675, t = -4 sqrt(3), 3 degrees of freedom.
    table = timed(
        {"imp": [30.0, 30.0, 50.0, 70.0], "random": [[40.0, 50.0], [50.0, 60.0], [50.0, math.inf], [80.0, 90.0]]}
    )
    (effect,) = judged(table, FASTER, steps=100).tests
    assert (effect.n, effect.n_missing, effect.note, effect.margin) == (4, 0, "", 5.0)
    assert (effect.arm_mean, effect.against_mean, effect.difference) == pytest.approx((45, 65, -20))
    t = 4 * math.sqrt(3)
    assert effect.p_value == pytest.approx(2 * stats.t.sf(t, 3))
    assert effect.verdict == REPRODUCED
    assert "imp - random, `convergence` at 0.9: lower" in claims_markdown([judged(table, FASTER, steps=100)])
    assert "-20 steps" in claims_markdown([judged(table, FASTER, steps=100)])


def test_where_nobody_converged_nothing_is_known_of_speed():
    values = {"imp": [30.0, 50.0, math.inf, math.inf], "random": [50.0, math.inf, math.inf, math.inf]}
    (effect,) = judged(timed(values), FASTER, steps=100).tests
    assert (effect.n, effect.n_missing) == (2, 2)
    assert effect.note == "nobody came to the target in 2 of 4 replicates"
    assert (effect.arm_mean, effect.against_mean) == pytest.approx((40, 75))
    # Nor where validation was measured at the end alone, or weights were trained to the end before.
    late = [{**row, "curve_step": [100.0], "curve_val_error": [0.05]} for row in timed(values).to_pylist()]
    assert judged(pa.Table.from_pylist(late, schema=SCHEMA), FASTER, steps=100).tests[0].n == 0
    tuned = {"imp": {"method": "magnitude_oneshot"}, "random": {}, "dense": {}, "ap": {}}
    (effect,) = judged(timed(values), FASTER, steps=100, methods=tables_for(tuned, "weight")).tests
    assert (effect.n, effect.verdict) == (0, INCONCLUSIVE)


def test_a_diverged_network_never_converges():
    table = changed(timed({"imp": [30.0] * 4, "random": [50.0] * 4}), {"arm": "random"}, {"outcome": "diverged"})
    (effect,) = judged(table, FASTER, steps=100).tests
    assert (effect.arm_mean, effect.against_mean) == (30, 100)


# Tests that a study cannot answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (ClaimTest("imo", "higher"), "claim.tests.0.arm='imo': must be one of dense, random, imp, ap; did you mean"),
        (ClaimTest("imp", "higher", "no"), "claim.tests.0.against='no': must be one of"),
        (ClaimTest("imp", "higher", "imp"), "claim.tests.0.against='imp': must be another arm"),
        (ClaimTest("imp", "higher", sparsity=(0.85,)), "claim.tests.0.sparsity=0.85: must be one of the study's spars"),
        (ClaimTest("imp", "higher", sparsity=(0.8, 0.8)), "claim.tests.0.sparsity=[0.8, 0.8]: every value may appear"),
        (
            ClaimTest("imp", "higher", metric="val_los"),
            "must be 'accuracy', 'convergence' or a column of numbers in the",
        ),
        (
            ClaimTest("imp", "higher", metric="psnr"),
            "claim.tests.0.metric='psnr': must be 'accuracy', 'convergence' or",
        ),
        (ClaimTest("imp", "higher", metric="arm"), "claim.tests.0.metric='arm': must be"),
        (ClaimTest("imp", "higher", metric="candidate"), "claim.tests.0.metric='candidate': must be"),
        (ClaimTest("imp", "higher", metric="curve_step"), "claim.tests.0.metric='curve_step': must be"),
        (ClaimTest("imp", "equivalent", metric="val_loss"), "claim.tests.0.margin: is missing, and the study's is one"),
        (ClaimTest("imp", "higher", than="synthetic"), "claim.tests.0.than='synthetic': must be the name of another"),
    ],
)
def test_a_test_that_the_study_cannot_answer(test, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        judged(rows_of({("imp", 0.9): [0.5] * 4}), test)


def test_convergence_needs_a_parent():
    message = "claim.tests.0.metric='convergence': needs the arm 'dense', whose accuracy is what the others come to"
    with pytest.raises(ConfigError, match=message):
        judged(rows_of({("imp", 0.9): [0.5] * 4}), FASTER, arms=("random", "imp"))


# Words ---------------------------------------------------------------------------------------------------------------


def test_markdown_is_one_row_for_each_claim():
    table = rows_of(
        {("imp", 0.9): [0.54, 0.58, 0.58, 0.62], ("random", 0.9): [0.5, 0.52, 0.54, 0.56]}, dynamic_dead_fraction=0.25
    )
    found = judged(
        table,
        ClaimTest("imp", "higher", sparsity=(0.9,)),
        ClaimTest("imp", "lower", sparsity=(0.9,), metric="dynamic_dead_fraction"),
    )
    lines = claims_markdown([found, found]).splitlines()
    assert len(lines) == 4
    cells = re.split(r" (?<!\\)\| ", lines[2].strip("| "))
    assert cells == [
        "`synthetic`",
        r"a \| claim of two lines (Somebody, 2020)",
        "large",
        "small",
        "imp - random at 0.9: higher<br>imp - random, `dynamic_dead_fraction` at 0.9: lower",
        "+5.00 points (95% +3.16 to +6.84; n = 4): reproduced<br>+0 (95% +0 to +0; n = 4): inconclusive",
        "**inconclusive**",
    ]


def test_an_unfinished_study_is_said_to_be_unfinished():
    table = rows_of({("imp", 0.9): [0.54, 0.58], ("random", 0.9): [0.5, 0.52]})
    claim = claim_of(ClaimTest("imp", "higher", sparsity=(0.9,)))
    found = judge_claim(claim, Evidence(design_of(), table), n_trained=4, n_planned=1200)
    assert whole(found) == "inconclusive (not finished: 4 of 1,200 networks trained)"
    assert whole(found) in claims_markdown([found])
    assert claim_dict(found)["is_finished"] is False


def test_what_is_written_of_a_test_and_in_which_order():
    table = rows_of({("imp", 0.9): [0.54, 0.58, 0.6], ("random", 0.9): [0.5, 0.52, 0.5]})
    found = judged(table, ClaimTest("imp", "higher", sparsity=(0.9,)))
    (written,) = claim_dict(found)["tests"]
    assert list(written) == [
        *("arm", "against", "than", "sparsity", "metric", "expect", "n", "n_missing", "arm_mean", "against_mean"),
        *("difference", "low", "high", "p_value", "p_adjusted", "p_equivalence", "p_equivalence_adjusted"),
        *("margin", "verdict", "note"),
    ]
    assert written == vars(found.tests[0])


def test_a_page_keeps_all_but_its_table():
    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n"
    assert replaced(page, "| new |\n") == f"# Title\n\n{BEGIN}\n| new |\n{END}\n\nrest\n"
    assert replaced(replaced(page, "x\n"), "| new |\n") == replaced(page, "| new |\n")
    for other in ("nothing", f"{END}\n{BEGIN}\n", f"{BEGIN}\nno end"):
        assert replaced(other, "| new |\n") == "| new |\n"


def test_claims_survive_json():
    claim = claim_of(ClaimTest("imp", "higher", sparsity=(0.9,), margin=0.1), ClaimTest("ap", "lower", than="x"))
    assert Claim.of_data(json.loads(json.dumps(dataclasses.asdict(claim)))) == claim
