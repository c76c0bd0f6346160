import dataclasses
import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import stats

from sparsefront.errors import ConfigError
from sparsefront.search.findings import LABELS
from sparsefront.search.methods import METHODS, arm_names
from sparsefront.search.schema import SCHEMA
from sparsefront.search.statistics import equivalence_test, holm, paired_t_test
from sparsefront.search.verdict import VERDICT_COLUMNS, judge, label_of
from sparsefront.search.wording import control_rows, headline, needed_of, shown_needed, verdict_rows, what_matters


def of(verdict, arm, sparsity, metric="accuracy"):
    (found,) = [c for c in verdict.comparisons if (c.arm, c.sparsity, c.metric) == (arm, sparsity, metric)]
    return found


def changed(table, change, **where):
    """Change the rows (as dicts) that match."""
    rows = table.to_pylist()
    for row in rows:
        if all(row[name] == value for name, value in where.items()):
            row |= change(row) if callable(change) else change
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def slow_policy(selector, values, draws):
    """Average over every subset, its tied best and, for broken numbers, both neighbours."""
    low, part = int(draws), draws - int(draws)

    def whole(m):
        results = []
        for subset in itertools.combinations(range(len(selector)), m):
            best = min(selector[i] for i in subset)
            tied = [values[i] for i in subset if selector[i] == best]
            results.append(sum(tied) / len(tied))
        return sum(results) / len(results)

    return whole(low) if part == 0 else (1 - part) * whole(low) + part * whole(low + 1)


def slow_pairs(table, design, arm, level, metric):
    """Do by hand, row by row, what the module's docstring says, for studies in which everything completed."""
    rows = table.to_pylist()
    trained = [r for r in rows if r["stage"] == "trained"]
    cost = {r["candidate"]: r["passes"] for r in trained if not r["reused"]}
    pairs = []
    for replicate in range(design.replicates):
        here = [r for r in trained if r["replicate"] == replicate]
        parent = next((r for r in here if r["arm"] == "dense"), None)

        def measure(row, parent=parent):
            if metric == "accuracy":
                return 1 - row["test_error"]
            target = design.convergence_target_fraction * (1 - parent["val_error"])
            points = zip(row["curve_step"], row["curve_val_error"], strict=True)
            return min([s for s, e in points if 1 - e >= target - 1e-6], default=design.steps)

        draws = [r for r in here if r["arm"] == "random" and r["target_sparsity"] == level]
        mine = next(r for r in here if r["arm"] == arm and r["target_sparsity"] == (0.0 if arm == "dense" else level))
        spent = cost[mine["candidate"]]
        if arm in ("searched", "searched_scalefree", "worst"):
            pool = [r for r in rows if r["stage"] == "scored" and r["replicate"] == replicate]
            spent += sum(r["passes"] for r in pool if r["target_sparsity"] == level)
        if arm == "magnitude":
            spent += cost[parent["candidate"]]
        m = spent / np.mean([cost[r["candidate"]] for r in draws])
        random = slow_policy([r["val_error"] for r in draws], [measure(r) for r in draws], min(max(m, 1), len(draws)))
        pairs.append((measure(mine), random, np.mean([measure(r) for r in draws]), m))
    return np.array(pairs, dtype=float).T


@pytest.fixture(scope="module")
def study(make_design, make_table):
    design = make_design(replicates=8, random_draws=5, draws=20, probe_size=3000, steps=300)
    effect = {"magnitude": 0.06, "small_dense": {0.5: -0.08, 0.9: 0.0}}
    return design, make_table(design, effect=effect, convergence={"dense": 0.5, "searched": 0.5}, noise=0.012, seed=3)


@pytest.fixture(scope="module")
def found(study):
    design, table = study
    return judge(table, design)


@pytest.mark.parametrize("metric", ["accuracy", "convergence"])
@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("arm", ["searched", "searched_scalefree", "worst", "dense", "small_dense", "magnitude"])
def test_numbers_agree_with_the_slow_way(study, found, arm, level, metric):
    design, table = study
    arm_values, random_values, single_values, draws = slow_pairs(table, design, arm, level, metric)
    sign = 1 if metric == "accuracy" else -1
    c = of(found, arm, level, metric)
    assert (c.n, c.n_missing) == (8, 0)
    assert c.arm_mean == pytest.approx(arm_values.mean())
    assert c.random_mean == pytest.approx(random_values.mean())
    assert c.difference == pytest.approx(sign * (arm_values - random_values).mean(), abs=1e-12)
    assert c.single_draw_difference == pytest.approx(sign * (arm_values - single_values).mean(), abs=1e-12)
    assert c.random_draws_at_equal_budget == pytest.approx(np.clip(draws, 1, 5).mean())
    assert c.random_passes == pytest.approx(c.arm_passes)
    differences = sign * (arm_values - random_values)
    if np.ptp(differences) > 0:
        assert c.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert math.isnan(c.low) or c.low <= c.difference <= c.high


def test_the_budget_of_each_arm(study, found):
    training = 300 * 100
    scoring = 20 * 3000 / 3
    budgets = {arm: of(found, arm, 0.9).arm_passes for arm in study[0].arms if arm != "random"}
    assert budgets == {
        "searched": training + scoring,
        "searched_scalefree": training + scoring,
        "worst": training + scoring,
        "dense": training,
        "small_dense": training,
        "magnitude": 2 * training,
    }


def test_the_family_of_a_metric_is_corrected_together(found):
    for metric in ("accuracy", "convergence"):
        family = [c for c in found.comparisons if c.metric == metric]
        assert len(family) == 12
        assert np.allclose([c.p_adjusted for c in family], holm([c.p_value for c in family]), equal_nan=True)
        expected = holm([c.p_equivalence for c in family])
        assert np.allclose([c.p_equivalence_adjusted for c in family], expected, equal_nan=True)
        for c in family:
            assert c.label == label_of(c.difference, c.p_adjusted, c.p_equivalence_adjusted, alpha=0.05)


def test_a_planted_effect_is_found(found):
    assert of(found, "magnitude", 0.5).label == of(found, "magnitude", 0.9).label == "better"
    assert of(found, "small_dense", 0.5).label == "worse"
    assert of(found, "dense", 0.5, "convergence").label == "better"


def test_rows_in_any_order_and_batches_give_the_same(study, found):
    design, table = study
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    again = judge(iter(shuffled.to_batches(max_chunksize=7)), design)
    numbers = [f.name for f in dataclasses.fields(found.comparisons[0])]
    for one, two in zip(found.comparisons, again.comparisons, strict=True):
        for name in numbers:
            a, b = getattr(one, name), getattr(two, name)
            assert a == (pytest.approx(b, nan_ok=True, rel=1e-9, abs=1e-12) if isinstance(b, float) else b), name
    assert [s.outcomes for s in found.spent] == [s.outcomes for s in again.spent]


def test_only_the_columns_it_says_are_read(study, found):
    design, table = study
    few = judge(table.select(VERDICT_COLUMNS), design)
    assert json.dumps(few.to_dict()) == json.dumps(found.to_dict())
    with pytest.raises(ConfigError, match="column 'outcome' is missing from this table: read it with the columns"):
        judge(table.drop_columns(["outcome"]), design)


def test_an_arm_is_judged_alike_whatever_else_is_judged(study, found):
    design, table = study
    alone = judge(table, dataclasses.replace(design, arms=("random", "searched")))
    one, two = of(alone, "searched", 0.9), of(found, "searched", 0.9)
    assert (one.difference, one.low, one.high, one.p_value) == (two.difference, two.low, two.high, two.p_value)
    assert one.p_adjusted <= two.p_adjusted


def test_the_verdict_is_plain_data(found):
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(plain) == {
        *("comparisons", "controls", "layer_ratios", "correlations", "spent", "headline", "matters", "sentences")
    }
    assert plain["controls"] == plain["layer_ratios"] == plain["matters"] == []
    assert len(plain["comparisons"]) == 24
    rows = verdict_rows(found)
    assert len({tuple(row) for row in rows}) == 1
    assert all(isinstance(value, str) and "nan" not in value for row in rows for value in row.values())
    assert rows[0]["verdict"] in LABELS


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "p", "p_equivalence", "label"),
    [
        (0.02, 0.01, 0.9, "better"),
        (-0.02, 0.01, 0.9, "worse"),
        (0.002, 0.01, 0.01, "equivalent"),
        (0.002, 0.9, 0.01, "equivalent"),
        (0.002, 0.9, 0.06, "undecided"),
        (0.02, 0.05, 0.9, "better"),
        (0.02, math.nan, math.nan, "undecided"),
    ],
)
def test_labels(difference, p, p_equivalence, label):
    assert label_of(difference, p, p_equivalence, alpha=0.05) == label


def simulated_labels(truth, *, spread, margin, repeats, seed):
    """Label a family of 4 levels x 6 arms with n = 10, all compared with the same random arm: (repeats, 24)."""
    rng = np.random.default_rng(seed)
    arms = rng.normal(truth, spread, (repeats, 6, 4, 10))
    random = rng.normal(0.0, spread, (repeats, 1, 4, 10))
    differences = (arms - random).reshape(repeats, 24, 10)
    p_values = paired_t_test(differences)
    p_equivalences = equivalence_test(differences, margin=margin)
    return [
        [
            label_of(d, p, e, alpha=0.05)
            for d, p, e in zip(family.mean(axis=1), holm(p_values[i]), holm(p_equivalences[i]), strict=True)
        ]
        for i, family in enumerate(differences)
    ]


@pytest.mark.parametrize("spread", [0.005, 0.02])
def test_no_arm_is_called_better_or_worse_by_chance(spread):
    """4,000 studies without any difference, n = 10, seed 41: at most alpha = 5% have a false alarm anywhere.

    The bound fails a true rate of 5% one time in 10,000.
    """
    families = simulated_labels(0.0, spread=spread, margin=0.01, repeats=4000, seed=41)
    alarms = sum("better" in family or "worse" in family for family in families)
    assert alarms <= stats.binom.ppf(1 - 1e-4, 4000, 0.05)


def test_no_arm_at_the_margin_is_called_equivalent_by_chance():
    """4,000 studies in which every arm differs by exactly the margin, n = 10, seed 43."""
    families = simulated_labels(0.01, spread=0.004, margin=0.01, repeats=4000, seed=43)
    assert sum("equivalent" in family for family in families) <= stats.binom.ppf(1 - 1e-4, 4000, 0.05)


@pytest.mark.slow
def test_whole_verdicts_raise_no_false_alarm(make_design, make_table):
    """120 studies of 6 replicates without any difference between arms: at most 5% call an arm better or worse.

    Selection by a score that means nothing must not count as an effect, and neither must equal budget.
    """
    design = make_design(replicates=6, arms=("random", "searched", "worst", "small_dense"), draws=12, random_draws=4)
    design = dataclasses.replace(design, steps=100, probe_size=5000)
    alarms = 0
    for seed in range(120):
        verdict = judge(make_table(design, seed=seed, selection_noise=0.01, n_points=2), design)
        alarms += any(c.label in ("better", "worse") for c in verdict.comparisons)
    assert alarms <= stats.binom.ppf(1 - 1e-4, 120, 0.05)


def test_quiet_studies_show_equivalence_and_noisy_ones_say_what_they_need(make_design, make_table):
    design = make_design(arms=("random", "searched", "worst"), draws=8, random_draws=4)
    quiet = judge(make_table(design, noise=0.003, selection_noise=0.0), design)
    assert {c.label for c in quiet.comparisons} == {"equivalent"}
    assert {(c.replicates_needed_low, c.replicates_needed_high) for c in quiet.comparisons} == {(None, None)}
    assert quiet.headline == (
        "Does searching beat drawing at random at equal budget? "
        "No: equivalent to within 1 accuracy point in all 2 comparisons"
    )
    noisy = judge(make_table(design, noise=0.05), design)
    assert {c.label for c in noisy.comparisons} == {"undecided"}
    assert all(10 < c.replicates_needed_low < c.replicates_needed_high for c in noisy.comparisons)
    searched = [c for c in noisy.comparisons if c.arm == "searched"]  # what the headline is about
    lows, highs = [c.replicates_needed_low for c in searched], [c.replicates_needed_high for c in searched]
    needed = shown_needed(min(lows), max(highs))
    assert noisy.headline.endswith(
        f"? Undecided in all 2 comparisons (there are 10 replicates; {needed} would be enough, depending on the "
        "comparison)"
    )
    one = dataclasses.replace(design, sparsities=(0.9,))
    verdict = judge(make_table(one, noise=0.05), one)
    c = of(verdict, "searched", 0.9)
    needed = shown_needed(c.replicates_needed_low, c.replicates_needed_high)
    assert verdict.headline.endswith(f"? Undecided at sparsity 0.9 (there are 10 replicates; {needed} would be enough)")


def test_how_many_would_decide_some_is_said_where_it_is_known_of_all(make_design, make_table):
    design = make_design(arms=("random", "searched"))
    known = judge(make_table(design, noise=0.05), design).comparisons[0]
    many = dataclasses.replace(known, replicates_needed_low=200, replicates_needed_high=None)
    unknown = dataclasses.replace(known, replicates_needed_low=None, replicates_needed_high=None)
    few = dataclasses.replace(known, replicates_needed_low=12, replicates_needed_high=80)
    assert needed_of([few, few]) == "12 to 80"
    assert needed_of([few, many]) == "12 or more"
    assert needed_of([few, unknown]) == ""


@pytest.mark.parametrize(
    ("effect", "answer"),
    [
        ({"searched": 0.1}, "Yes: more accurate in all 2 comparisons"),
        (
            {"searched": {0.5: 0.1}},
            "Sometimes: more accurate at sparsity 0.5; equivalent to within 1 .* at sparsity 0.9",
        ),
        (
            {"searched": {0.5: -0.1}},
            "No: equivalent to within 1 accuracy point at sparsity 0.9; less accurate at sparsity",
        ),
        ({"searched": -0.1}, "No: less accurate in all 2 comparisons"),
    ],
)
def test_headlines(make_design, make_table, effect, answer):
    design = make_design(arms=("random", "searched"), draws=8, random_draws=4)
    verdict = judge(make_table(design, effect=effect, noise=0.003, selection_noise=0.0, reuse=False), design)
    assert pc.match_substring_regex(verdict.headline, answer).as_py(), verdict.headline


def test_headlines_without_a_searched_arm(make_design, make_table):
    design = make_design(arms=("random", "dense", "magnitude"), replicates=5)
    verdict = judge(make_table(design, effect={"magnitude": 0.1}), design)
    assert verdict.headline.startswith(
        "Does any arm beat drawing at random at equal budget? Yes: more accurate in all 4"
    )


# --- failures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(make_design, make_table):
    design = make_design(arms=("random", "dense", "searched"), replicates=4, random_draws=3, draws=6, sparsities=(0.9,))

    def build(**options):
        # Scores of no cost: equal budget is one draw, and means are easy to write down.
        table = make_table(design, **options)
        return changed(table, {"passes": 0.0}, stage="scored")

    return design, build


def test_an_arm_that_diverged_counts_as_guessing(small):
    design, build = small
    whole = of(judge(build(reuse=False), design), "searched", 0.9)
    table = build(outcomes={("searched", 0, 0.9, 0): "diverged"}, reuse=False)
    mine = pc.and_(pc.equal(table["arm"], "searched"), pc.equal(table["outcome"], "diverged"))
    assert table.filter(mine).num_rows == 1
    verdict = judge(table, dataclasses.replace(design, n_classes=8))
    c = of(verdict, "searched", 0.9)
    kept = table.filter(pc.and_(pc.equal(table["arm"], "searched"), pc.equal(table["outcome"], "completed")))
    assert (c.n, c.n_missing, c.note) == (4, 0, "")
    assert c.arm_mean == pytest.approx((0.125 + sum(1 - e for e in kept["test_error"].to_pylist())) / 4)
    assert c.arm_mean < whole.arm_mean
    converging = of(verdict, "searched", 0.9, "convergence")
    assert converging.arm_mean <= design.steps
    assert "Not every candidate completed: 1 diverged (searched)" in verdict.sentences


@pytest.mark.parametrize("outcome", ["failed", "timeout", "out_of_memory", "lost", "stopped"])
def test_an_arm_that_was_cut_off_leaves_its_replicate_without_a_pair(small, outcome):
    design, build = small
    c = of(judge(build(outcomes={("searched", 2, 0.9, 0): outcome}, reuse=False), design), "searched", 0.9)
    assert (c.n, c.n_missing) == (3, 1)
    assert c.note == "1 of 4 replicates have no pair"
    d = of(judge(build(without=[("searched", 2, 0.9, 0)], reuse=False), design), "searched", 0.9)
    assert (d.difference, d.n, d.n_missing) == (c.difference, 3, 1)


def test_random_draws_that_were_cut_off_are_left_out_and_reported(small):
    design, build = small
    table = build(outcomes={("random", 0, 0.9, 1): "lost"})
    c = of(judge(table, design), "dense", 0.9)
    random = table.filter(pc.and_(pc.equal(table["arm"], "random"), pc.equal(table["outcome"], "completed")))
    means = random.group_by("replicate").aggregate([("test_error", "mean")])["test_error_mean"].to_pylist()
    assert c.random_mean == pytest.approx(1 - np.mean(means))
    assert (c.n, c.note) == (4, "random draws without a result, left out: 1")


def test_random_draws_that_diverged_count_as_guessing(small):
    design, build = small
    table = build(outcomes={("random", 0, 0.9, 1): "diverged"})
    c = of(judge(table, design), "dense", 0.9)
    random = table.filter(pc.equal(table["arm"], "random"))
    means = {}
    for row in random.to_pylist():
        accuracy = 0.1 if row["outcome"] == "diverged" else 1 - row["test_error"]
        means.setdefault(row["replicate"], []).append(accuracy)
    assert c.single_draw_difference == pytest.approx(c.arm_mean - np.mean([np.mean(m) for m in means.values()]))


def test_a_replicate_without_any_random_draw_has_no_pair(small):
    design, build = small
    c = of(judge(build(outcomes={("random", 1, 0.9, i): "failed" for i in range(3)}), design), "dense", 0.9)
    assert (c.n, c.n_missing) == (3, 1)


def test_a_budget_beyond_the_draws_at_hand_is_said(small):
    design, build = small
    table = changed(build(), {"passes": 1e6}, stage="scored")
    c = of(judge(table, design), "searched", 0.9)
    assert c.random_draws_at_equal_budget == 3
    assert c.note == "the budget pays for more random draws than were trained in 4 of 4 replicates"
    assert c.random_passes < c.arm_passes


@pytest.mark.parametrize(("excess", "n_short"), [(1e-13, 0), (1e-6, 4)])
def test_a_budget_that_is_rounded_up_pays_for_no_further_draw(small, excess, n_short):
    design, build = small
    n_scored = 6  # at a level: what they cost and the arm's own training are three trainings
    each = 2 / n_scored * (1 + excess)
    table = changed(changed(build(), {"passes": 1.0}, stage="trained"), {"passes": each}, stage="scored")
    c = of(judge(table, design), "searched", 0.9)
    assert c.arm_passes == pytest.approx(3.0)
    assert c.n_short == n_short


def test_the_headline_says_where_random_search_had_less_than_its_budget(small):
    design, build = small
    plain = judge(build(), design)
    short = judge(changed(build(), {"passes": 1e6}, stage="scored"), design)
    reservation = "replicates the budget would have paid for more random masks than were trained"
    assert reservation not in plain.headline
    (found,) = (c for c in short.comparisons if (c.arm, c.metric) == ("searched", "accuracy"))
    cases = [
        ([("better", 4)], f"Yes: more accurate at sparsity 0.9, though in 4 of 4 {reservation}"),
        ([("undecided", 3)], f", though in 3 of 4 {reservation}"),
        ([("better", 2), ("better", 2)], f"Yes: more accurate in all 2 comparisons, though in 2 of 4 {reservation}"),
        ([("better", 0), ("equivalent", 3)], f", though in up to 3 of 4 {reservation}"),
        ([("worse", 4)], "No: less accurate at sparsity 0.9"),  # more masks would not change that
        ([("better", 0)], "Yes: more accurate at sparsity 0.9"),
    ]
    for each, ending in cases:
        comparisons = [dataclasses.replace(found, label=label, n_short=n_short) for label, n_short in each]
        assert headline(comparisons, design).endswith(ending)


def test_what_was_trained_for_another_slot_costs_its_arm_as_much(small):
    design, build = small
    table = build(seed=1)
    searched = table.filter(pc.and_(pc.equal(table["arm"], "searched"), pc.equal(table["stage"], "trained")))
    assert sum(searched["reused"].to_pylist()) > 0, "the seed must make the searched mask one of the random ones"
    assert of(judge(table, design), "searched", 0.9).arm_passes == design.steps * 100


@pytest.fixture
def chains(make_design, make_table):
    """Two chains of one network each, trained once for both: `again` has the rows and `imp` the cost."""
    arms = {"random": {}, "dense": {}, "imp": {}, "again": {"method": "imp"}, "ap": {}}
    design = make_design(arms=tuple(arms), methods=arms, replicates=2, sparsities=(0.36, 0.5), random_draws=2, draws=2)
    rows = make_table(design, reuse=False).to_pylist()
    levels = METHODS["imp"].levels((0.36, 0.5))
    assert [round(s, 3) for s in levels] == [0.2, 0.36, 0.434, 0.5]
    like = {
        level: next(r for r in rows if (r["stage"], r["target_sparsity"]) == ("trained", level))
        for level in (0.36, 0.5)
    }
    for row in rows:
        if row["arm"] in ("imp", "again") and row["stage"] == "trained":
            row["candidate"] = f"chain-{row['replicate']}-{row['target_sparsity']}"
            row |= {"reused": row["arm"] == "again", "passes": 1000.0 if row["arm"] == "imp" else 0.0}
    for r, arm, (i, level) in itertools.product(range(2), ("imp", "again", "ap"), enumerate(levels)):
        cut = {"stage": "pruned", "passes": 10.0 ** (i - 2), "candidate": "a network", "slot": 0}
        rows.append({**like[0.36], "arm": arm, "replicate": r, "target_sparsity": level, **cut})
        if level not in (0.36, 0.5):
            trained = {"stage": "level", "candidate": f"{'ap' if arm == 'ap' else 'chain'}-{r}-{level}", "slot": 0}
            cost = {"passes": 0.0 if arm == "again" else 3.0 * (i + 1), "reused": arm == "again"}
            rows.append({**like[0.36], "arm": arm, "replicate": r, "target_sparsity": level, **trained, **cost})
    return design, pa.Table.from_pylist(rows, schema=SCHEMA)


def test_a_chain_pays_for_its_parent_and_for_all_levels_and_cuts_on_its_way(chains):
    design, table = chains
    parent, own = design.steps * 100, 1000
    found = judge(table, design)
    for arm in ("imp", "again"):
        # At 0.36: the parent, level 0.2 (3 passes), two cuts (0.01 + 0.1), and its own training.
        assert of(found, arm, 0.36).arm_passes == pytest.approx(parent + 3 + 0.11 + own)
        # At 0.5 also the network at 0.36, level 0.434 (9), and two more cuts.
        assert of(found, arm, 0.5).arm_passes == pytest.approx(parent + 3 + own + 9 + 11.11 + own)
    assert of(found, "ap", 0.5).arm_passes == pytest.approx(
        parent + 3 + design.steps * 100 + 9 + 11.11 + design.steps * 100
    )
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    assert of(judge(shuffled, design), "again", 0.5).arm_passes == of(found, "again", 0.5).arm_passes
    # What was spent is what the rows say: each network once.
    spent = {one.arm: one.passes for one in found.spent}
    assert spent["imp"] - spent["again"] == pytest.approx(2 * (2 * own + 3 + 9))


def test_a_network_that_trains_longer_is_given_no_more_time_to_converge(make_design, make_table):
    arms = {"random": {}, "dense": {}, "magnitude_oneshot": {"retrain_fraction": 2.0}}
    design = make_design(arms=tuple(arms), methods=arms, replicates=3, sparsities=(0.5,))
    table = changed(
        make_table(design),
        lambda row: {"curve_step": [s + design.steps for s in row["curve_step"]]},
        stage="trained",
        arm="magnitude_oneshot",
    )
    assert of(judge(table, design), "magnitude_oneshot", 0.5, "convergence").arm_mean == design.steps


# --- controls ----------------------------------------------------------------------------------------------------


CONTROLLED = {
    "random": {},
    "dense": {},
    "snip": {"controls": ["shuffled_layers", "fresh_weights", "small_dense"]},
    "late": {"method": "imp", "controls": ["dense_budget"]},
}
EFFECTS = {"snip": 0.06, "snip_fresh_weights": 0.06, "snip_small_dense": {0.5: 0.12, 0.9: 0.06}}


@pytest.fixture(scope="module")
def controlled(make_design, make_table):
    design = make_design(arms=arm_names(CONTROLLED), methods=CONTROLLED, random_draws=3, draws=3)
    return design, make_table(design, effect=EFFECTS, noise=0.004, reuse=False)


def controls_of(verdict, arm, control):
    return {c.sparsity: c for c in verdict.controls if (c.arm, c.control) == (arm, control)}


def test_controls_are_compared_with_their_arms_and_with_nothing_else(controlled):
    design, table = controlled
    verdict = judge(table, design)
    assert {c.arm for c in verdict.comparisons} == {"dense", "snip", "late"}
    compared = [(c.arm, c.control, c.sparsity) for c in verdict.controls]
    kinds = [("snip", "shuffled_layers"), ("snip", "fresh_weights"), ("snip", "small_dense"), ("late", "dense_budget")]
    assert compared == [(*kind, level) for kind in kinds for level in (0.5, 0.9)]
    accuracy = {
        (row["arm"], row["target_sparsity"], row["replicate"]): 1 - row["test_error"]
        for row in table.to_pylist()
        if row["stage"] == "trained"
    }
    for c in verdict.controls:
        differences = [
            accuracy[c.arm, c.sparsity, r] - accuracy[f"{c.arm}_{c.control}", c.sparsity, r] for r in range(10)
        ]
        assert (c.n, c.n_missing, c.metric, c.margin, c.note) == (10, 0, "accuracy", design.equivalence_margin, "")
        assert c.difference == pytest.approx(np.mean(differences), abs=1e-12)
        assert c.difference == pytest.approx(c.arm_mean - c.control_mean, abs=1e-12)
        assert c.p_value == pytest.approx(float(paired_t_test(differences)))
        assert c.p_equivalence == pytest.approx(float(equivalence_test(differences, margin=c.margin)))
        assert c.low < c.difference < c.high
        assert c.label == label_of(c.difference, c.p_adjusted, c.p_equivalence_adjusted, alpha=0.05)
    for raw, adjusted in (("p_value", "p_adjusted"), ("p_equivalence", "p_equivalence_adjusted")):
        assert [getattr(c, adjusted) for c in verdict.controls] == list(
            holm([getattr(c, raw) for c in verdict.controls])
        )
    assert {c.label for c in controls_of(verdict, "snip", "shuffled_layers").values()} == {"better"}
    assert {c.label for c in controls_of(verdict, "snip", "fresh_weights").values()} == {"equivalent"}
    small = controls_of(verdict, "snip", "small_dense")
    assert (small[0.5].label, small[0.9].label) == ("worse", "equivalent")


def test_controls_take_nothing_from_the_verdict_on_their_arms(controlled):
    design, table = controlled
    plain = {arm: {k: v for k, v in options.items() if k != "controls"} for arm, options in CONTROLLED.items()}
    alone = dataclasses.replace(design, arms=tuple(plain), methods=plain)
    rows = table.filter(pc.is_in(table["arm"], pa.array(["pool", *plain])))
    with_controls, without = judge(table, design), judge(rows, alone)
    assert with_controls.to_dict()["comparisons"] == without.to_dict()["comparisons"]  # NaN equals nothing
    assert with_controls.headline == without.headline
    assert without.controls == ()


def test_controls_in_words(controlled):
    design, table = controlled
    verdict = judge(table, design)
    rows = control_rows(verdict.controls)
    assert len({tuple(row) for row in rows}) == 1
    assert all(isinstance(value, str) for row in rows for value in row.values())
    (said,) = (s for s in verdict.sentences if "against its control shuffled_layers" in s)
    assert said.startswith("Test accuracy of snip against its control shuffled_layers: better at sparsity 0.5 (+")
    assert len(json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["controls"]) == 8


SHUFFLED = {"random": {}, "snip": {"controls": ["shuffled_layers", "shuffled", "small_dense"]}}


@pytest.mark.parametrize(
    ("layers", "anywhere", "lead", "positions", "ratios"),
    [
        (0.0, 0.0, "it is the mask that matters, not its layer ratios", "better", "equivalent"),
        (0.06, 0.0, "it is the layer ratios that matter, not which entries they leave", "equivalent", "better"),
        (0.03, 0.0, "both the mask and its layer ratios matter", "better", "better"),
        (
            *(0.06, 0.06, "neither the mask nor its layer ratios matter, to within 1 accuracy point"),
            *("equivalent", "equivalent"),
        ),
        (0.12, 0.06, None, "worse", "better"),
    ],
)
def test_whether_the_mask_or_its_layer_ratios_matter(
    make_design, make_table, layers, anywhere, lead, positions, ratios
):
    design = make_design(arms=arm_names(SHUFFLED), methods=SHUFFLED, sparsities=(0.9,))
    effect = {"snip": 0.06, "snip_shuffled_layers": layers, "snip_shuffled": anywhere, "snip_small_dense": 0.12}
    table = make_table(design, effect=effect, noise=0.002, reuse=False)
    verdict = judge(table, design)
    (own,), (said,) = verdict.layer_ratios, verdict.matters
    (within,) = controls_of(verdict, "snip", "shuffled_layers").values()
    assert (own.arm, own.control, own.sparsity, own.n) == ("snip", "layer_ratios", 0.9, 10)
    assert own.difference == pytest.approx(layers - anywhere, abs=0.005)
    assert own.p_adjusted == own.p_value, "a family of its own"
    assert (within.label, own.label) == (positions, ratios)
    assert said in verdict.sentences
    assert said.startswith(
        f"snip at sparsity 0.9: {lead}; " if lead else "snip at sparsity 0.9: random positions within"
    )
    assert said.count("; ") == 2 + (lead is not None)
    assert "a small dense network beats it (-" in said
    assert "95% interval" in said
    without = {"random": {}, "snip": {"controls": ["shuffled_layers", "small_dense"]}}
    alone = dataclasses.replace(design, arms=arm_names(without), methods=without)
    fewer = judge(table.filter(pc.not_equal(table["arm"], "snip_shuffled")), alone)
    assert fewer.layer_ratios == ()
    assert "layer ratios" not in fewer.matters[0]


def test_what_was_not_shown_to_differ_is_not_called_the_same(make_design, make_table):
    design = make_design(arms=arm_names(SHUFFLED), methods=SHUFFLED, sparsities=(0.9,), replicates=3)
    (said,) = judge(make_table(design, noise=0.05, reuse=False), design).matters
    assert "positions within layers: no difference shown, nor equivalence (" in said
    assert "layer ratios: no difference shown, nor equivalence (" in said
    assert not any(word in said for word in (" matter", "equivalent to"))
    one = dataclasses.replace(design, replicates=1)
    (said,) = judge(make_table(one, reuse=False), one).matters
    assert said == (
        "snip at sparsity 0.9: positions within layers: not judged (one pair); layer ratios: not judged (one pair); "
        "it against a small dense network: not judged (one pair)"
    )


def test_no_difference_beside_an_interval_without_zero_names_the_correction(controlled):
    design, table = controlled
    (one, *others) = judge(table, design).controls
    apart = {"label": "undecided", "low": 0.001, "high": 0.02}
    corrected = dataclasses.replace(one, **apart, p_value=0.03, p_adjusted=0.2)
    (said, _, *_) = what_matters([corrected, *others], (), design)
    assert said.startswith(
        "snip at sparsity 0.5: positions within layers: no difference shown after correction for 8 comparisons, nor "
        "equivalence (+"
    )
    by_test = dataclasses.replace(one, **{**apart, "low": -0.02, "high": -0.001}, p_value=0.06, p_adjusted=0.2)
    assert "no difference shown by the paired test, nor" in what_matters([by_test, *others], (), design)[0]
    around = dataclasses.replace(one, **{**apart, "low": -0.001}, p_value=0.06, p_adjusted=0.2)
    assert "no difference shown, nor" in what_matters([around, *others], (), design)[0]


def test_a_control_is_told_of_where_its_part_was_not_judged(make_design, make_table):
    design = make_design(arms=arm_names(SHUFFLED), methods=SHUFFLED, sparsities=(0.9,))
    table = make_table(design, effect={"snip": 0.06}, noise=0.002, reuse=False)
    (said,) = judge(table.filter(pc.not_equal(table["arm"], "snip_shuffled_layers")), design).matters
    assert "layer ratios: not judged (no replicate has both networks)" in said
    assert "its mask matters, positions and layer ratios together (+" in said


def test_what_is_written_of_an_effect_and_in_which_order(controlled):
    design, table = controlled
    verdict = judge(table, design)
    written = verdict.to_dict()
    effect = ["difference", "low", "high", "p_value", "p_adjusted", "p_equivalence", "p_equivalence_adjusted"]
    label = ["margin", "label", "replicates_needed_low", "replicates_needed_high"]
    budget = ["arm_passes", "random_passes", "random_draws_at_equal_budget", "n_short"]
    single = ["single_draw_difference", "single_draw_low", "single_draw_high"]
    assert list(written["comparisons"][0]) == [
        *("arm", "sparsity", "metric", "n", "n_missing", "arm_mean", "random_mean"),
        *(*effect, *label, *budget, *single, "note"),
    ]
    assert list(written["controls"][0]) == [
        *("arm", "control", "sparsity", "metric", "n", "n_missing", "arm_mean", "control_mean"),
        *(*effect, *label, "note"),
    ]
    found = [*verdict.comparisons, *verdict.controls]
    for row, one in zip([*written["comparisons"], *written["controls"]], found, strict=True):
        assert row == {name: None if value != value else value for name, value in vars(one).items()}  # NaN is null


def test_networks_of_a_replicate_count_with_their_mean(controlled):
    design, table = controlled
    rows = table.to_pylist()
    mine = [r for r in rows if (r["stage"], r["arm"]) == ("trained", "snip")]
    extra = [dict(r, slot=1, candidate=f"second {r['candidate']}", test_error=r["test_error"] - 0.02) for r in mine]
    before = judge(table, design)
    after = judge(pa.Table.from_pylist(rows + extra, schema=SCHEMA), design)
    for one, two in zip(before.controls, after.controls, strict=True):
        assert two.difference == pytest.approx(one.difference + (0.01 if one.arm == "snip" else 0.0), abs=1e-12)


def test_what_has_no_control_has_no_pair(make_design, make_table):
    arms = {"random": {}, "snip": {"controls": ["shuffled_layers"]}}
    design = make_design(arms=arm_names(arms), methods=arms, replicates=4, sparsities=(0.5, 0.9), n_classes=8)
    control = "snip_shuffled_layers"
    outcomes = {
        ("snip", 0, 0.5, 0): "diverged",
        (control, 0, 0.5, 0): "failed",
        (control, 1, 0.5, 0): "lost",
        (control, 2, 0.9, 0): "diverged",
    }
    found = controls_of(judge(make_table(design, outcomes=outcomes), design), "snip", "shuffled_layers")
    assert (found[0.5].n, found[0.5].n_missing) == (2, 2)
    assert found[0.5].note == (
        "2 of 4 replicates have no pair; the arm diverged in 1 of them and left nothing to control"
    )
    assert (found[0.9].n, found[0.9].note) == (4, "")
    whole = controls_of(judge(make_table(design), design), "snip", "shuffled_layers")
    assert found[0.9].control_mean < whole[0.9].control_mean
    nothing = judge(make_table(design).slice(0, 0), design)
    assert {(c.n, c.label, c.note) for c in nothing.controls} == {(0, "undecided", "no replicate has both networks")}
    assert any("not judged at sparsity 0.5 (no replicate has both networks)" in s for s in nothing.sentences)


def test_levels_at_which_an_arm_does_not_exist_are_left_out(make_design, make_table):
    arms = {"random": {}, "dense": {}, "nm_2_4": {"controls": ["shuffled_layers"]}, "snip": {}}
    design = make_design(arms=arm_names(arms), methods=arms, replicates=3, mask_kind="weight")
    table = make_table(design)
    absent = pc.and_(pc.match_substring(table["arm"], "nm_2_4"), pc.equal(table["target_sparsity"], 0.9))
    verdict = judge(table.filter(pc.invert(absent)), design)
    places = {(c.arm, c.sparsity) for c in verdict.comparisons}
    assert places == {("dense", 0.5), ("dense", 0.9), ("nm_2_4", 0.5), ("snip", 0.5), ("snip", 0.9)}
    assert [(c.control, c.sparsity, c.n) for c in verdict.controls] == [("shuffled_layers", 0.5, 3)]
    assert not any("nm_2_4" in sentence and "0.9" in sentence for sentence in verdict.sentences)


@pytest.mark.parametrize("replicates", [1, 2])
def test_few_replicates_decide_nothing(make_design, make_table, replicates):
    design = make_design(replicates=replicates)
    verdict = judge(make_table(design, effect={"magnitude": 0.3}), design)
    assert {c.label for c in verdict.comparisons} <= {"undecided"} if replicates == 1 else set(LABELS)
    json.dumps(verdict.to_dict(), allow_nan=False)
    if replicates == 1:
        assert all(c.n == 1 and math.isnan(c.p_value) for c in verdict.comparisons)
        assert any("not judged at sparsity 0.5 (one pair)" in sentence for sentence in verdict.sentences)


def test_a_rank_correlation_of_few_networks_has_no_interval(make_design, make_table):
    design = make_design(replicates=1, arms=("random", "dense"), random_draws=3)
    (ranked,) = (s for s in judge(make_table(design), design).sentences if s.startswith("Rank correlation"))
    assert "at sparsity 0.5 (95% interval unknown)" in ranked
    assert "nan" not in ranked


@pytest.mark.parametrize("stage", ["none", "scored", "random"])
def test_studies_that_have_hardly_begun(make_design, make_table, stage):
    design = make_design(replicates=2)
    table = make_table(design)
    if stage == "none":
        table = table.slice(0, 0)
    elif stage == "scored":
        table = table.filter(pc.equal(table["stage"], "scored"))
    else:
        table = table.filter(pc.equal(table["arm"], "random"))
    verdict = judge(table, design)
    assert verdict.headline.endswith("Not judged: no arm has a trained network beside trained random ones")
    assert {(c.n, c.n_missing, c.label, c.note) for c in verdict.comparisons} == {
        (0, 2, "undecided", "no replicate has both networks")
    }
    assert [row["pairs"] for row in verdict_rows(verdict)] == ["0 (2 missing)"] * 12
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_an_arm_of_several_candidates_is_its_best_by_validation(small):
    design, build = small
    rows = build().to_pylist()
    extra = [dict(r, slot=1, candidate="x" * 31 + str(r["replicate"]), reused=False, passes=50_000.0) for r in rows]
    extra = [r | {"val_error": 0.0, "test_error": 0.25} for r in extra if r["arm"] == "searched"]
    c = of(judge(pa.Table.from_pylist(rows + extra, schema=SCHEMA), design), "searched", 0.9)
    assert c.arm_mean == pytest.approx(0.75)
    assert c.arm_passes == design.steps * 100 + 50_000.0


# --- convergence -------------------------------------------------------------------------------------------------


def test_without_a_parent_there_is_no_convergence(make_design, make_table):
    design = make_design(arms=("random", "searched"), replicates=3)
    assert {c.metric for c in judge(make_table(design), design).comparisons} == {"accuracy"}


def test_what_never_converges_is_neither_equivalent_nor_different(make_design, make_table):
    design = make_design(arms=("random", "dense", "searched"), replicates=6)
    verdict = judge(make_table(design, reach=False), design)
    c = of(verdict, "searched", 0.5, "convergence")
    assert (c.arm_mean, c.random_mean, c.difference) == (1000, 1000, 0)
    assert (c.label, c.replicates_needed_low, c.replicates_needed_high) == ("undecided", None, None)
    assert math.isnan(c.p_value)
    assert math.isnan(c.p_equivalence)
    assert c.note == "never reached: no network of either side came to the target"


def test_what_was_measured_at_the_end_alone_converges_at_no_known_step(make_design, make_table):
    design = make_design(arms=("random", "dense", "searched"), replicates=6)
    rows = make_table(design).to_pylist()
    for row in rows:
        for name in ("curve_step", "curve_val_loss", "curve_val_error"):
            row[name] = row[name] and row[name][-1:]
    verdict = judge(pa.Table.from_pylist(rows, schema=SCHEMA), design)
    c = of(verdict, "searched", 0.5, "convergence")
    assert c.label == "undecided"
    assert math.isnan(c.p_value)
    assert math.isnan(c.p_equivalence)
    assert c.note == "validation was measured at the end alone: nobody knows when the target was reached"
    assert not math.isnan(of(verdict, "searched", 0.5, "accuracy").p_value)


def test_censored_pairs_do_not_make_arms_equivalent(make_design, make_table):
    """Six of ten replicates converge on neither side; all others at the same step."""
    design = make_design(
        arms=("random", "dense", "searched"), replicates=10, sparsities=(0.5,), draws=4, random_draws=2
    )

    def flat(row):
        if row["stage"] != "trained":
            return {}
        converges = row["arm"] == "dense" or row["replicate"] >= n_censored
        errors = [0.9, 0.4 if converges else 0.9]
        return {"curve_step": [500, 1000], "curve_val_error": errors, "val_error": errors[-1]}

    labels = {}
    for n_censored in (5, 6, 8, 9):
        table = changed(make_table(design), flat)
        labels[n_censored] = of(judge(table, design), "searched", 0.5, "convergence")
    assert labels[5].label == "equivalent"
    assert labels[5].note == "in 5 of 10 replicates no network of either side came to the target"
    assert labels[6].label == "undecided"
    assert math.isnan(labels[6].p_equivalence)
    assert not math.isnan(labels[8].p_value)
    # One pair in which somebody came to the target is no more than one pair.
    assert (labels[9].label, labels[9].replicates_needed_low) == ("undecided", None)
    assert math.isnan(labels[9].p_value)
    assert labels[9].note == "too few pairs: in 9 of 10 replicates no network of either side came to the target"


def test_a_replicate_whose_parent_failed_has_no_target(make_design, make_table):
    design = make_design(arms=("random", "dense", "searched"), replicates=4)
    verdict = judge(make_table(design, outcomes={("dense", 1, 0.0, 0): "diverged"}), design)
    assert of(verdict, "searched", 0.5, "convergence").n == 3
    assert of(verdict, "searched", 0.5).n == 4


def test_curves_of_unequal_length_are_refused(small):
    design, build = small
    broken = changed(build(), {"curve_step": [1, 2]}, arm="dense", replicate=0)
    with pytest.raises(ConfigError, match=r"curve_step and curve_val_error hold .* points: must be of equal length"):
        judge(broken, design)


# --- correlations and spending -----------------------------------------------------------------------------------


def test_a_score_that_matters_correlates(make_design, make_table):
    design = make_design(arms=("random", "searched", "worst"), random_draws=12)
    verdict = judge(make_table(design, slope=-0.02), design)
    initial = [c for c in verdict.correlations if c.predictor == "initial_loss"]
    assert [c.sparsity for c in initial] == [0.5, 0.9]
    for c in initial:
        assert c.n_replicates == 10
        assert 0.5 < c.low < c.spearman < c.high
        assert c.p_adjusted < 0.01
    nothing = judge(make_table(design, slope=0.0), design)
    assert all(c.low < 0.25 and c.high > -0.25 for c in nothing.correlations)


def test_correlations_count_each_candidate_once(small):
    design, build = small
    table = build(seed=1)
    verdict = judge(table, design)
    masks = table.filter(pc.and_(pc.equal(table["stage"], "trained"), pc.is_valid(table["mask_draw"])))
    distinct = len(set(zip(masks["candidate"].to_pylist(), masks["replicate"].to_pylist(), strict=True)))
    assert [c.n for c in verdict.correlations] == [distinct] * 3
    assert distinct < masks.num_rows


def test_all_that_was_spent_is_counted(study, found):
    _, table = study
    assert [s.arm for s in found.spent] == ["pool", *study[0].arms]
    for what in ("passes", "flops", "seconds"):
        assert sum(getattr(s, what) for s in found.spent) == pytest.approx(pc.sum(table[what]).as_py())
    counted = sum(s.n_candidates for s in found.spent)
    assert counted == table.filter(pc.not_equal(table["stage"], "pruned")).num_rows
    assert dict(found.spent[0].outcomes) == {"completed": 8 * 2 * 20}


def test_steps_before_rewinding_count_and_trained_weights_are_no_speed(make_design, make_table):
    """The same curves, once from initial weights, once from those of step 700, and twice from trained ones."""
    written = {
        "random": {},
        "dense": {},
        "begin": {"method": "imp"},
        "late": {"method": "imp", "rewind_fraction": 0.7},
        "tuned": {"method": "magnitude_oneshot", "retrain_fraction": 2.0},
        "walk": {"method": "lr_rewind"},
    }
    design = make_design(arms=tuple(written), methods=written, replicates=8, sparsities=(0.5,))
    at_once = {"curve_step": [100, 300], "curve_val_error": [0.9, 0.0], "val_error": 0.0}
    later = {"curve_step": [100, 900], "curve_val_error": [0.9, 0.0], "val_error": 0.0}

    def curved(row):
        return {} if row["stage"] != "trained" else later if row["arm"] in ("random", "dense") else at_once

    verdict = judge(changed(make_table(design), curved), design)
    found = {arm: of(verdict, arm, 0.5, "convergence") for arm in written if arm not in ("random", "dense")}
    assert {arm: c.arm_mean for arm, c in found.items()} == {"begin": 300, "late": 1000, "tuned": 300, "walk": 300}
    assert (found["begin"].label, found["late"].label) == ("better", "worse")
    for arm in ("tuned", "walk"):
        c = found[arm]
        assert (c.label, c.n, c.replicates_needed_low) == ("undecided", 8, None)
        assert math.isnan(c.p_value)
        assert math.isnan(c.p_equivalence)
        assert c.note == "its networks go on from weights that were trained to the end: their first steps are no speed"
        assert not math.isnan(of(verdict, arm, 0.5, "accuracy").p_value)
    (row,) = [r for r in verdict_rows(verdict) if (r["arm"], r["metric"]) == ("walk", "convergence")]
    assert (row["verdict"], row["difference"]) == ("not judged", "")
