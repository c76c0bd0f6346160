from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparsefront.cluster.rows import batch, decided_rows, lost_rows, scored_rows, stamped, trained_rows
from sparsefront.search.methods import Cut
from sparsefront.search.plan import Lane, ScoreWork, Slot, TrainWork, Unavailable
from sparsefront.search.schema import SCHEMA
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.candidate import Candidate, CandidateNames
from sparsefront.spaces.masks import mask_digest
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.schedules import cubic
from sparsefront.study import Study
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.workshop import CutOrder, LaneOrder, Workshop

STUDY = Study.from_dict(
    {
        "name": "tiny",
        "seed": 7,
        "replicates": 1,
        "sparsities": [0.5],
        "data": {"name": "digits"},
        "model": {"name": "mlp", "widths": [8, 6]},
        "search": {"draws": 8, "probe_size": 30, "random_draws": 3},
        "training": {"batch_size": 50, "steps": 4, "eval_every": 2},
    }
)
NAMES = CandidateNames(STUDY.base())
COSTS = ("passes", "flops", "seconds")
PARENT_MACS = 64 * 8 + 8 * 6 + 6 * 10


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return STUDY.recipe()


@pytest.fixture(scope="module")
def workshop(recipe: Recipe) -> Workshop:
    return Workshop(recipe, load_dataset("digits", STUDY.data.options), torch.device("cpu"))


def lane(candidate: Candidate, *slots: Slot) -> Lane:
    return Lane(candidate, NAMES.of(candidate), slots)


def test_a_batch_has_all_columns_in_order() -> None:
    rows = batch({"slot": np.arange(2), "arm": "random", "lr": None, "error": ["a", None]}, 2)
    assert rows.schema.equals(SCHEMA)
    assert rows.select(["slot", "arm", "lr", "error"]).to_pylist() == [
        {"slot": 0, "arm": "random", "lr": None, "error": "a"},
        {"slot": 1, "arm": "random", "lr": None, "error": None},
    ]


def test_scored_masks_cost_a_third_of_a_pass_an_example(workshop: Workshop, recipe: Recipe) -> None:
    work = ScoreWork(0, 0.5, 2, 6, attempt=1)
    rows = scored_rows(work, workshop.score(0, 0.5, 2, 6), NAMES, recipe, device="cpu").to_pylist()
    assert [row["slot"] for row in rows] == [row["mask_draw"] for row in rows] == [2, 3, 4, 5]
    for row in rows:
        assert row["candidate"] == NAMES.of(Candidate(0, 0.5, "masked", draw=row["slot"]))
        assert row["node_sparsity"] == 0.5
        assert row["passes"] == pytest.approx(30 / 3)
        assert row["flops"] == pytest.approx(6 * row["macs"] * 10)
        assert (row["attempt"], row["pack"], row["steps"], row["lr"]) == (1, work.key, 0, None)


def test_scores_that_are_not_finite_are_null_and_diverged(workshop: Workshop, recipe: Recipe) -> None:
    scored = workshop.score(0, 0.5, 0, 3)
    scored.scores.initial_loss[1] = np.nan
    scored.scores.scalefree_loss[1] = np.inf
    rows = scored_rows(ScoreWork(0, 0.5, 0, 3), scored, NAMES, recipe, device="cpu").to_pylist()
    assert [row["outcome"] for row in rows] == ["completed", "diverged", "completed"]
    assert rows[1]["initial_loss"] is None
    assert rows[1]["scalefree_loss"] is None
    assert rows[0]["initial_loss"] is not None


def test_a_candidate_in_several_slots_costs_once(workshop: Workshop, recipe: Recipe) -> None:
    shared = lane(Candidate(0, 0.5, "masked", draw=1), Slot("random", 1), Slot("searched", 0))
    work = TrainWork((shared,))
    ended = [one for part in workshop.train([LaneOrder(shared.candidate)]) for one in part]
    rows, blobs = trained_rows(work, ended, recipe, parent_macs=PARENT_MACS, device="cpu")
    first, second = rows.to_pylist()
    assert blobs == {}
    assert (first["arm"], first["slot"], first["reused"]) == ("random", 1, False)
    assert (second["arm"], second["slot"], second["reused"]) == ("searched", 0, True)
    assert first["passes"] > 4 * 50
    assert first["flops"] == pytest.approx(6 * first["macs"] * first["passes"])
    assert [second[cost] for cost in (*COSTS, "quality_passes")] == [0, 0, 0, 0]
    described = set(first) - {"arm", "slot", "reused", "quality_passes", *COSTS}
    assert {k: first[k] for k in described} == {k: second[k] for k in described}
    assert first["curve_step"] == [2, 4]
    assert first["val_error"] == pytest.approx(first["curve_val_error"][-1], abs=1e-6)
    assert first["lr"] == STUDY.training.lr


def test_masks_cut_from_a_network_travel_with_its_row(workshop: Workshop, recipe: Recipe) -> None:
    cuts = (Cut("magnitude", 0.5, Pruning("trained")), Cut("late", 0.9, Pruning("levels", score="snip")))
    parent = replace(lane(Candidate(0, 0.0, "parent"), Slot("dense", 0)), cuts=cuts)
    orders = [LaneOrder(parent.candidate, cuts=tuple(CutOrder(c.arm, c.sparsity, c.method) for c in cuts))]
    ended = [one for part in workshop.train(orders) for one in part]
    rows, blobs = trained_rows(TrainWork((parent,)), ended, recipe, parent_macs=PARENT_MACS, device="cpu")
    trained, *pruned = rows.to_pylist()
    assert (trained["stage"], trained["mask_kind"], trained["mask_digest"]) == ("trained", "none", None)
    found = [(row["stage"], row["arm"], row["target_sparsity"], row["slot"]) for row in pruned]
    assert found == [("pruned", "magnitude", 0.5, 0), ("pruned", "late", 0.9, 0)]
    assert {row["candidate"] for row in pruned} == {parent.id}
    assert {row["mask_digest"] for row in pruned} == set(blobs)
    assert [pruned[0][cost] for cost in COSTS] == [0, 0, 0]
    # SNIP looks at the gradient of 30 examples, of a network of the parent's size.
    assert (pruned[1]["passes"], pruned[1]["flops"]) == (30, pytest.approx(6 * trained["macs"] * 30))


def test_operations_are_those_of_the_network_as_it_was(recipe: Recipe) -> None:
    """A scored mask's of the parent while it was scored; a gradual rise's of what was left at every step."""
    kind, sparsity, steps = "weight", 0.9, recipe.schedule.steps
    data = load_dataset("digits", STUDY.data.options)
    shop = Workshop(replace(recipe, mask_kind=kind, allocation="uniform"), data, torch.device("cpu"))
    scored = Candidate(0, sparsity, "masked", method=Pruning("init", score="snip"))
    gradual = Candidate(0, sparsity, "masked", method=Pruning("during", update="gradual", every=1, end_fraction=0.6))
    work = TrainWork((lane(scored, Slot("snip", 0)), lane(gradual, Slot("gmp", 0))))
    ended = [t for part in shop.train([LaneOrder(scored), LaneOrder(gradual)]) for t in part]
    rows, _ = trained_rows(work, ended, shop.recipe, parent_macs=PARENT_MACS, device="cpu")
    by_arm = {row["arm"]: row for row in rows.to_pylist()}
    row = by_arm["snip"]
    assert row["flops"] == pytest.approx(6 * (30 * PARENT_MACS + (row["passes"] - 30) * row["macs"]))
    row = by_arm["gmp"]
    end = round(0.6 * steps)
    after = [cubic(step, begin=0, end=end, every=1, final=sparsity) for step in range(steps - 1)]
    each = [shop.structure.n_weights, *(sum(kept_counts(shop.structure, kind, s, "uniform")) for s in after)]
    # Every weight of a perceptron is one multiply-accumulate; counts are rounded in every layer.
    assert row["flops"] == pytest.approx(6 * row["passes"] * np.mean(each), rel=0.01)
    assert row["flops"] > 6 * row["passes"] * 1.5 * row["macs"]


@pytest.mark.parametrize("kind", ["weight", "node"])
def test_operations_of_scores_in_training_are_of_the_network_that_was_scored(kind: str, recipe: Recipe) -> None:
    """At an update every weight counts that was left before it; nodes count as the whole parent."""
    sparsity, schedule = 0.9, replace(recipe.schedule, steps=20)
    data = load_dataset("digits", STUDY.data.options)
    shop = Workshop(replace(recipe, mask_kind=kind, schedule=schedule), data, torch.device("cpu"))
    rule = Pruning("during", update="gradual", score="grasp", begin_fraction=0.1, end_fraction=0.5, every=4)
    scored, plain = (Candidate(0, sparsity, "masked", method=m) for m in (rule, replace(rule, score="magnitude")))
    work = TrainWork((lane(scored, Slot("grasp", 0)), lane(plain, Slot("gmp", 0))))
    ended = [t for part in shop.train([LaneOrder(scored), LaneOrder(plain)]) for t in part]
    rows, _ = trained_rows(work, ended, shop.recipe, parent_macs=PARENT_MACS, device="cpu")
    by_arm = {row["arm"]: row for row in rows.to_pylist()}
    # After the steps numbered 2, 6 and 10; 30 examples, three passes each.
    assert by_arm["grasp"]["passes"] == pytest.approx(by_arm["gmp"]["passes"] + 3 * 90)
    left = [1 - cubic(step - 1, begin=2, end=10, every=4, final=sparsity) for step in (2, 6, 10)]
    each = [PARENT_MACS * (density if kind == "weight" else 1) for density in left]
    # Small differences of masks aside: of weights the counts are rounded in every layer.
    assert by_arm["grasp"]["flops"] == pytest.approx(by_arm["gmp"]["flops"] + 6 * 90 * sum(each), rel=0.002)


def test_rows_on_the_way_to_a_level_are_of_a_stage_of_their_own(workshop: Workshop, recipe: Recipe) -> None:
    one = lane(Candidate(0, 0.2, "masked", draw=0), Slot("imp", 0))
    ended = [t for part in workshop.train([LaneOrder(one.candidate)]) for t in part]
    for stage in ("level", "trained"):
        work = TrainWork((replace(one, stage=stage),))
        (row,) = trained_rows(work, ended, recipe, parent_macs=PARENT_MACS, device="cpu")[0].to_pylist()
        (lost,) = lost_rows(work, "lost", "gone", NAMES, recipe, seconds_each=1.0).to_pylist()
        (never,) = decided_rows(
            [Unavailable(0, 0.2, (Slot("imp", 0),), "why", stage)], NAMES, recipe, SCHEMA
        ).to_pylist()
        assert row["stage"] == lost["stage"] == never["stage"] == stage


def test_masks_that_a_training_made_are_stored_with_its_row(workshop: Workshop, recipe: Recipe) -> None:
    weights = Workshop(replace(recipe, mask_kind="weight"), load_dataset("digits", STUDY.data.options), workshop.device)
    made = [
        Candidate(0, 0.5, "masked", method=Pruning("init", score="random", allocation="erk")),
        Candidate(0, 0.5, "masked", method=Pruning("during", update="set")),
        Candidate(0, 0.5, "masked", draw=0),
    ]
    work = TrainWork(tuple(lane(c, Slot(f"arm{i}", 0)) for i, c in enumerate(made)))
    ended = [t for part in weights.train([LaneOrder(c) for c in made]) for t in part]
    rows, blobs = trained_rows(work, ended, weights.recipe, parent_macs=PARENT_MACS, device="cpu")
    digests = {row["arm"]: row["mask_digest"] for row in rows.to_pylist()}
    assert set(blobs) == {digests["arm0"], digests["arm1"]}  # that of a draw follows from its number
    assert all(mask_digest(bits) == digest for digest, bits in blobs.items())
    # A control's mask is stored too, under a digest of its own; one that is stored already is not.
    source = digests["arm0"]
    shuffled = [Candidate(0, 0.5, "masked", mask=source, control=c) for c in ("shuffled_layers", "fresh_weights")]
    work = TrainWork(tuple(lane(c, Slot(c.control, 0)) for c in shuffled))
    ended = [t for part in weights.train([LaneOrder(c, blobs[source]) for c in shuffled]) for t in part]
    rows, again = trained_rows(work, ended, weights.recipe, parent_macs=PARENT_MACS, device="cpu")
    digests = {row["arm"]: row["mask_digest"] for row in rows.to_pylist()}
    assert digests["fresh_weights"] == source
    assert set(again) == {digests["shuffled_layers"]} != {source}


@pytest.mark.parametrize("update", ["gradual", "set", "rigl", "edge_popup"])
def test_nodes_that_come_and_go_are_trained_at_the_size_of_the_parent(update: Any, recipe: Recipe) -> None:
    data, device = load_dataset("digits", STUDY.data.options), torch.device("cpu")
    changing = Candidate(0, 0.5, "masked", method=Pruning("during", update=update))
    fixed = Candidate(0, 0.5, "masked", draw=0)
    small = Candidate(0, 0.5, "small_dense", method=changing.method)
    work = TrainWork(tuple(lane(c, Slot(f"arm{i}", 0)) for i, c in enumerate((changing, fixed, small))))
    for kind in ("node", "weight"):
        shop = Workshop(replace(recipe, mask_kind=kind), data, device)
        assert shop.structure.macs == PARENT_MACS
        ended = [t for part in shop.train([LaneOrder(one.candidate) for one in work.lanes]) for t in part]
        rows, _ = trained_rows(work, ended, shop.recipe, parent_macs=shop.structure.macs, device="cpu")
        for row in rows.to_pylist():
            assert row["macs"] < PARENT_MACS
            if (kind, update, row["arm"]) == ("weight", "gradual", "arm0"):  # see the test above
                continue
            # A weight mask, and that of a control, counts by what it leaves.
            size = PARENT_MACS if kind == "node" and row["arm"] == "arm0" else row["macs"]
            assert row["flops"] == pytest.approx(6 * size * row["passes"])


def test_work_that_came_to_nothing_has_the_keys_it_would_have_had(recipe: Recipe) -> None:
    scored = lost_rows(ScoreWork(0, 0.5, 3, 5), "lost", "gone", NAMES, recipe, seconds_each=2.0).to_pylist()
    assert [(r["stage"], r["arm"], r["slot"], r["seconds"]) for r in scored] == [
        ("scored", "pool", 3, 2.0),
        ("scored", "pool", 4, 2.0),
    ]
    both = lane(Candidate(0, 0.5, "masked", draw=1), Slot("random", 1), Slot("worst", 0))
    work = TrainWork((both,), attempt=2)
    trained = lost_rows(work, "timeout", "hung", NAMES, recipe, seconds_each=3.0).to_pylist()
    assert [(r["arm"], r["slot"], r["reused"], r["seconds"], r["attempt"]) for r in trained] == [
        ("random", 1, False, 3.0, 2),
        ("worst", 0, True, 0.0, 2),
    ]
    for row in trained:
        assert (row["outcome"], row["error"], row["candidate"]) == ("timeout", "hung", both.id)
        assert (row["val_error"], row["passes"], row["lr"]) == (None, 0, STUDY.training.lr)


def test_slots_that_cannot_be_filled_say_why(recipe: Recipe) -> None:
    found = [Unavailable(0, 0.5, (Slot("magnitude", 0), Slot("magnitude", 1)), "the parent did not complete")]
    rows: list[dict[str, Any]] = decided_rows(found, NAMES, recipe, SCHEMA).to_pylist()
    assert [(r["arm"], r["slot"], r["outcome"], r["error"]) for r in rows] == [
        ("magnitude", i, "failed", "the parent did not complete") for i in range(2)
    ]
    assert len({r["candidate"] for r in rows}) == 2


def test_the_time_of_the_commit_is_stamped_in() -> None:
    before = datetime.now(UTC)
    rows = stamped(batch({"arm": "random"}, 3))
    assert rows.schema.equals(SCHEMA)
    assert rows["arm"].to_pylist() == ["random"] * 3
    assert all(before <= at <= datetime.now(UTC) for at in rows["committed_at"].to_pylist())
    assert isinstance(rows, pa.RecordBatch)
