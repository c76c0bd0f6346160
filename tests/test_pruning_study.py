"""Whole studies of pruning arms, without Ray: what their ledgers hold, and what they cost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsefront.errors import ConfigError
from sparsefront.search.design import Design
from sparsefront.search.ledger import Ledger
from sparsefront.search.methods import METHODS, PRUNERS, methods_of
from sparsefront.search.plan import Plan
from sparsefront.search.verdict import judge
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.candidate import CandidateNames, level_key
from sparsefront.spaces.controls import CONTROLS
from sparsefront.spaces.masks import Mask, draw, remains, split_sections, unpack_bits
from sparsefront.spaces.patterns import parse_pattern, pattern_counts
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.structure import Structure
from sparsefront.study import Study
from sparsefront.trainables import workshop as workshop_module
from sparsefront.trainables.checkpoints import checkpoint_path
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.models import build_model
from sparsefront.trainables.pruning import SCORES
from tests.faults.inline_study import run_inline
from tests.oracles.spaces import is_of_pattern

STEPS, BATCH, PROBE = 6, 40, 40
SPARSITIES = (0.5, 0.7)
Row = Mapping[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def study_of(arms: Mapping[str, Mapping[str, Any]], kind: str = "weight", **changes: Any) -> Study:
    return Study.from_dict(
        {
            "name": "pruning",
            "seed": 3,
            "replicates": 1,
            "sparsities": list(SPARSITIES),
            "arms": {"dense": {}, "random": {}, **arms},
            "data": {"name": "digits"},
            "model": {"name": "mlp", "widths": [16, 12]},
            "masks": {"kind": kind, "allocation": "uniform"},
            "search": {"draws": 2, "probe_size": PROBE, "random_draws": 2},
            "training": {"batch_size": BATCH, "steps": STEPS, "eval_every": 3, "lr": 0.01},
            **changes,
        }
    )


#: Optimiser steps that scores at the four updates of `gmp` (numbered 1 to 4) take, of those that take any: 3, 2 and 1/3
#: passes of 40 examples for 40 in a step, or one pass, which is counted as a step at least.
STEPS_OF_SCORES = {"grasp": 12, "synflow": 1, "fisher": 8, "apoz": 1, "mean_activation": 1}


def scored_in_training(kind: str) -> dict[str, dict[str, Any]]:
    return {
        f"gmp_{score}": {"method": "gmp", "score": score, "controls": ["dense_budget"]}
        for score in STEPS_OF_SCORES
        if kind in SCORES[score].kinds
    }


ALL = {
    kind: {
        **{name: {} for name, row in PRUNERS.items() if kind in row.kinds},
        "synflow": {"rounds": 5},
        "snip_iterative": {"rounds": 5},
        "imp": {"controls": list(CONTROLS)},
        "imp_rewind": {"rewind_fraction": 0.2},  # 2% of so few steps are none
        "linear": {"method": "gmp", "allocation": "global", "power": 1},
        "lamp": {"method": "gmp", "allocation": "global", "power": 1, "score": "lamp"},
        "cubic": {"method": "gmp", "allocation": "global"},
        **scored_in_training(kind),
        "snip": {"controls": ["shuffled_layers", "fresh_weights"]},
        "late": {"method": "imp", "rewind_fraction": 0.5, "controls": ["shuffled", "dense_budget"]},
        "tuned": {"method": "magnitude_oneshot", "retrain_fraction": 0.0, "controls": ["dense_budget"]},
        "half": {"method": "magnitude_oneshot", "retrain_fraction": 0.5, "controls": ["fresh_weights", "small_dense"]},
        "searched": {"controls": list(CONTROLS)},
        "random": {"controls": ["shuffled", "small_dense", "dense_budget"]},
        "edge_popup": {"controls": ["shuffled_layers", "fresh_weights"]},
        "fresh": {"method": "imp", "survivors": "fresh", "rate": 0.5},
        "walk": {"method": "imp", "survivors": "trained", "retrain_fraction": 0.5, "rate": 0.4},
        **(
            {
                "none": {"method": "ap", "ap_fraction": 0.0},
                "positive": {"method": "ap", "ap_sign": 1},
                "late_set": {"method": "set", "begin_fraction": 0.5, "every": 1, "decay": "linear"},
                "blocks": {"method": "snip", "pattern": "2x2"},
                "nm_2_4": {"controls": ["shuffled_layers"]},
                "set": {"controls": ["fresh_weights", "shuffled_layers"]},
            }
            if kind == "weight"
            else {
                "gmp": {"controls": list(CONTROLS)},
                "eager_set": {"method": "set", "every": 1, "controls": ["fresh_weights", "shuffled_layers"]},
                "eager_rigl": {"method": "rigl", "every": 1, "allocation": "global", "pattern": "node"},
            }
        ),
    }
    for kind in ("node", "weight")
}


class Done:
    """A finished study: its rows and its masks."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        with Ledger.read(folder) as ledger:
            self.table = ledger.table()
            self.rows = self.table.to_pylist()
            self.blobs = {d: ledger.get_blob(d) for d in {self._stored(row) for row in self.rows} if d is not None}
        options = study.model.options
        self.structure: Structure = build_model(
            "mlp", options, input_shape=(8, 8), n_classes=10, prune_biases=study.masks.prune_biases
        ).structure
        self.kind = study.recipe().mask_kind
        design = study.design()
        self.methods = methods_of(design.methods)  # type: ignore[union-attr, arg-type]

    @staticmethod
    def _stored(row: Row) -> str | None:
        return row["mask_digest"] if row["mask_draw"] is None else None

    def of(self, arm: str, *stages: str) -> dict[float, Row]:
        """Rows of an arm by level."""
        return {
            row["target_sparsity"]: row
            for row in self.rows
            if row["arm"] == arm and row["stage"] in (stages or ("trained", "level"))
        }

    def mask(self, row: Row) -> Mask:
        if row["mask_draw"] is not None:
            sizes, sparsity = self.structure.section_sizes(self.kind), row["target_sparsity"]
            counts = kept_counts(self.structure, self.kind, sparsity, "uniform")
            key = philox_key(self.study.seed, "mask", row["replicate"], level_key(sparsity))
            drawn: Mask = draw(sizes, counts, key, start=row["mask_draw"], stop=row["mask_draw"] + 1)[0]
            return drawn
        return unpack_bits(self.blobs[row["mask_digest"]], sum(self.structure.section_sizes(self.kind)))

    def survivors(self, mask: Mask) -> list[int]:
        return [int(part.sum()) for part in split_sections(self.structure, self.kind, mask)]


@pytest.fixture(scope="module", params=["node", "weight"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    study, folder = study_of(ALL[request.param], request.param), tmp_path_factory.mktemp("pruning") / "study"
    run_inline(study, folder, masks_per_pack=8, lanes_per_pack=64)
    return Done(study, folder)


def pruning_of(done: Done, arm: str) -> Pruning:
    return done.methods[arm].method  # type: ignore[attr-defined, no-any-return]


def pruners(done: Done) -> list[str]:
    return [arm for arm in ALL[done.kind] if arm not in ("random", "searched")]


def test_every_arm_trains_at_its_levels_and_completes(done: Done) -> None:
    assert {row["error"] for row in done.rows} == {None}
    assert {row["outcome"] for row in done.rows} == {"completed"}
    for arm, method in done.methods.items():
        levels = method.levels(SPARSITIES)
        assert set(done.of(arm)) == set(levels), arm
        assert set(done.of(arm, "trained")) == {s for s in levels if s in (0.0, *SPARSITIES)}
        assert set(done.of(arm, "pruned")) == (set(levels) if method.needs_parent else set())
    if done.kind == "weight":
        assert set(done.of("nm_2_4")) == set(done.of("nm_2_4_shuffled_layers")) == {0.5}


#: Controls that a method refuses, of masks of a kind; `test_study.py` has the messages.
REFUSED = {
    "lr_rewind": {"shuffled_layers", "shuffled"},
    "nm_2_4": {"shuffled"},
    "random": {"shuffled_layers", "fresh_weights"},
    "dense": set(CONTROLS),
    "small_dense": set(CONTROLS),
}


@pytest.mark.parametrize("kind", ["node", "weight"])
def test_every_method_completes_with_every_control_that_it_takes(kind: str, tmp_path: Path) -> None:
    few = {"imp_rewind": {"rewind_fraction": 0.5}, "synflow": {"rounds": 2}, "snip_iterative": {"rounds": 2}}
    names = [name for name, row in PRUNERS.items() if kind in row.kinds]
    names += [name for name in METHODS if name not in PRUNERS]
    for name, control in ((n, c) for n in names for c in REFUSED.get(n, ())):
        with pytest.raises(ConfigError, match=f"arms.{name}.controls: '"):
            study_of({name: {"controls": [control]}}, kind)
    taken = {name: [c for c in CONTROLS if c not in REFUSED.get(name, ())] for name in names}
    study = study_of(
        {name: {**few.get(name, {}), "controls": taken[name]} for name in names},
        kind,
        sparsities=[0.5],
        search={"draws": 3, "probe_size": PROBE, "random_draws": 2},
        training={"batch_size": BATCH, "steps": 2, "eval_every": 2, "lr": 0.01},
    )
    run_inline(study, tmp_path / "study", masks_per_pack=8, lanes_per_pack=64)
    done = Done(study, tmp_path / "study")
    assert {row["arm"]: row["error"] for row in done.rows if row["outcome"] != "completed"} == {}
    for name, control in ((n, c) for n, controls in taken.items() for c in controls):
        (found,), (source,) = done.of(f"{name}_{control}", "trained").values(), done.of(name, "trained").values()
        if CONTROLS[control].shuffle is not None:
            assert done.mask(found).sum() == done.mask(source).sum()


@pytest.mark.parametrize("allocation", ["er", "erk", "erk_plus", "uniform_plus"])
def test_a_chain_completes_where_counts_of_an_allocation_rise(allocation: str, tmp_path: Path) -> None:
    """Under both of the last the classifier is spared at 0.5 and not at 0.9, where other layers have more again."""
    arms = {name: {"allocation": allocation, "rate": 0.4} for name in ("imp", "lr_rewind")}
    sparsities = [0.5, 0.8, 0.9]
    study = study_of(arms, sparsities=sparsities)
    run_inline(study, tmp_path / "study", masks_per_pack=8, lanes_per_pack=64)
    done = Done(study, tmp_path / "study")
    assert {row["error"] for row in done.rows} == {None}
    for arm in arms:
        for sparsity, row in done.of(arm).items():
            wanted, found = kept_counts(done.structure, "weight", sparsity, allocation), done.survivors(done.mask(row))
            assert sum(found) == sum(wanted), (arm, sparsity)
            if sparsity == max(sparsities):
                assert found == list(wanted)


def test_masks_have_exact_counts_at_every_level(done: Done) -> None:
    for arm in pruners(done):
        method = pruning_of(done, arm)
        for sparsity, row in done.of(arm).items():
            found = done.survivors(done.mask(row))
            wanted = kept_counts(done.structure, done.kind, sparsity, method.allocation or "uniform")
            if method.counts_of is not None:
                wanted = (round((1 - sparsity) * sum(done.structure.section_sizes(done.kind))),)
            if method.pattern in ("unstructured", "node"):
                assert (found if len(wanted) == len(found) else [sum(found)]) == list(wanted), (arm, sparsity)
            assert min(found) > 0


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_biases_are_pruned_where_a_study_says_so_and_counted_exactly(allocation: str, tmp_path: Path) -> None:
    arms: dict[str, dict[str, Any]] = {
        "imp": {"allocation": allocation, "controls": list(CONTROLS)},
        "lr_rewind": {"allocation": allocation, "score": "lamp"},
        "searched": {"controls": ["small_dense", "fresh_weights"]},
        "snip": {"controls": ["shuffled_layers"]},
        "ratio": {"method": "random_snip_ratio"},
        "mine": {"method": "grasp", "allocation": "uniform"},
    }
    masks = {"kind": "weight", "allocation": allocation, "prune_biases": True}
    study = study_of(arms, masks=masks, model={"name": "mlp", "widths": [16, 12], "init": "torch"})
    run_inline(study, tmp_path / "study", masks_per_pack=8, lanes_per_pack=64)
    done = Done(study, tmp_path / "study")
    assert {row["error"] for row in done.rows} == {None}
    assert done.structure.section_sizes("weight") == (16 * 65, 12 * 17, 10 * 13)
    for arm in ("imp", "lr_rewind", "snip", "mine", "imp_shuffled_layers", "imp_fresh_weights", "snip_shuffled_layers"):
        mine = {"mine": "uniform", "snip": "global", "snip_shuffled_layers": "global"}.get(arm, allocation)
        for sparsity, row in done.of(arm).items():
            wanted, found = kept_counts(done.structure, "weight", sparsity, mine), done.survivors(done.mask(row))
            assert (found if len(wanted) > 1 else [sum(found)]) == list(wanted), (arm, sparsity)
    for row in done.rows:
        if row["stage"] == "trained" and row["mask_digest"] is not None:
            n_kept = int(done.mask(row).sum()) if row["mask_draw"] is None or allocation == "uniform" else None
            # All parameters of an mlp are weights and biases.
            assert n_kept in (None, row["n_params"])
            assert row["density_total"] == row["density_prunable"] == pytest.approx(row["n_params"] / 1374)
            assert row["weight_sparsity"] == pytest.approx(1 - row["n_params"] / 1374)
    weights_and_biases = np.split(done.mask(done.of("imp")[0.7]), np.cumsum(done.structure.tensor_sizes)[:-1])
    assert not all(part.all() for part in weights_and_biases[1::2])
    one, small = (done.of(arm)[0.5] for arm in ("imp", "imp_small_dense"))
    assert small["n_params"] == pytest.approx(one["n_params"], rel=0.05)


def test_a_study_that_prunes_no_biases_is_what_it_was_before_it_could() -> None:
    kept = {"kind": "weight", "allocation": "uniform", "prune_biases": False}
    assert study_of({}, masks=kept).digest == study_of({}).digest
    assert study_of({}, masks={**kept, "prune_biases": True}).digest != study_of({}).digest
    assert study_of({}).identity()["masks"] == {"kind": "weight", "allocation": "uniform"}


def test_chains_bring_nothing_back_and_are_cut_from_their_own_networks(done: Done) -> None:
    for arm in pruners(done):
        if not done.methods[arm].needs_parent:
            continue
        (parent,) = done.of("dense").values()
        trained, cut = done.of(arm), done.of(arm, "pruned")
        before = parent
        for sparsity in sorted(trained):
            origin = before if pruning_of(done, arm).when == "levels" else parent
            assert cut[sparsity]["candidate"] == origin["candidate"]
            assert cut[sparsity]["mask_digest"] == trained[sparsity]["mask_digest"]
            if origin is not parent:
                assert not (done.mask(trained[sparsity]) & ~done.mask(origin)).any(), arm
            before = trained[sparsity]


def test_arms_that_are_the_same_method_are_the_same_networks(done: Done) -> None:
    """Activating-while-pruning with share zero is its base; every level that two arms share is trained once."""
    same = [("imp", "none"), ("imp", "mirl")] if done.kind == "weight" else []
    for arm, other in same:
        ours, theirs = done.of(arm), done.of(other)
        for sparsity, row in ours.items():
            for name in ("candidate", "mask_digest", "val_loss", "test_loss"):
                assert row[name] == theirs[sparsity][name]
            assert (row["reused"], theirs[sparsity]["reused"]) == (False, True)
    if done.kind == "weight":
        masks = {arm: done.of(arm)[0.7]["mask_digest"] for arm in ("imp", "ap", "positive")}
        assert len(set(masks.values())) == 3
    assert len({done.of(arm)[0.7]["candidate"] for arm in ("imp", "late", "fresh", "walk", "magnitude")}) == 5


def test_fields_of_masks_that_change_in_training_reach_it(done: Done) -> None:
    # In so few steps `set` itself has no update, and is random_erk.
    others = {
        "weight": (("linear", "lamp", "cubic"), ("late_set", "random_erk")),
        "node": (("linear", "gmp"), ("eager_set", "set"), ("eager_rigl", "rigl")),
    }
    for arms in others[done.kind]:
        assert len({done.of(arm)[0.7]["mask_digest"] for arm in arms}) == len(arms)


def test_masks_that_change_in_training_are_told_as_others_are(done: Done) -> None:
    during = [arm for arm in pruners(done) if pruning_of(done, arm).when == "during"]
    assert len(during) >= 6
    for arm in during:
        for row in done.of(arm).values():
            left = remains(done.structure, done.kind, done.mask(row))
            assert (row["n_params"], row["macs"]) == (left.n_params, left.macs)
            assert (row["weight_sparsity"], row["node_sparsity"]) == (left.weight_sparsity, left.node_sparsity)
            assert row["density_prunable"] == pytest.approx(1 - left.weight_sparsity)
            assert 0 < row["mask_overlap"] <= 1
            assert 0 < row["exploration_rate"] <= 1


def test_controls_are_matched(done: Done) -> None:
    for arm, control in ((a, c) for a, table in ALL[done.kind].items() for c in table.get("controls", ())):
        for sparsity, row in done.of(f"{arm}_{control}").items():
            source = done.of(arm)[sparsity]
            if CONTROLS[control].network != "masked":
                assert row["mask_digest"] is None
                continue
            mask, theirs = done.mask(row), done.mask(source)
            if control == "fresh_weights":
                assert (mask == theirs).all()
                assert row["initial_loss"] != source["initial_loss"]
                continue
            assert (mask != theirs).any(), arm
            assert mask.sum() == theirs.sum()
            if control == "shuffled_layers":
                assert done.survivors(mask) == done.survivors(theirs)
    # No control is an arm, or another control of its arm; those of different arms may be drawn alike.
    shuffled = {row["mask_digest"] for row in done.rows if "_shuffled" in row["arm"]}
    assert not shuffled & {row["mask_digest"] for row in done.rows if "_shuffled" not in row["arm"]}
    for sparsity in SPARSITIES:
        pair = (done.of(f"imp_{control}")[sparsity]["mask_digest"] for control in ("shuffled", "shuffled_layers"))
        assert len(set(pair)) == 2


def test_dense_budget_takes_the_steps_of_the_arm_in_all(done: Done) -> None:
    for arm in ("imp", "late", "tuned"):
        trained = done.of(arm)
        for sparsity, row in done.of(f"{arm}_dense_budget").items():
            chain = [s for s in trained if s <= sparsity] if arm != "tuned" else [sparsity]
            assert row["steps"] == STEPS + sum(trained[s]["steps"] for s in chain)
            assert (row["weight_sparsity"], row["mask_kind"]) == (0.0, "none")


def test_scores_in_training_are_paid_for_by_the_arm_and_in_its_budget(done: Done) -> None:
    assert STEPS_OF_SCORES.keys() == {name for name, row in SCORES.items() if row.reads_examples_in_training}
    for arm, table in scored_in_training(done.kind).items():
        score = SCORES[table["score"]]
        for sparsity, row in done.of(arm).items():
            scoring = 4 * score.passes_each * (1 if score.is_data_free else PROBE)
            plain = done.of("random")[sparsity]
            assert row["passes"] == pytest.approx(plain["passes"] + scoring)
            assert done.of(f"{arm}_dense_budget")[sparsity]["steps"] == STEPS + STEPS_OF_SCORES[table["score"]]
    if done.kind == "weight":  # of few nodes, two scores may keep the same
        digests = {done.of(arm)[0.7]["mask_digest"] for arm in ("gmp", *scored_in_training(done.kind))}
        assert len(digests) == 1 + len(scored_in_training(done.kind))


def test_controls_of_fine_tuned_survivors_train_as_long_as_those_did(done: Done) -> None:
    for sparsity, row in done.of("half").items():
        controls = [done.of(f"half_{control}")[sparsity] for control in ("fresh_weights", "small_dense")]
        assert [one["steps"] for one in (row, *controls)] == [STEPS // 2] * 3
        assert [one["passes"] for one in controls] == [pytest.approx(row["passes"])] * 2


def test_controls_of_a_mask_that_was_drawn(done: Done) -> None:
    for arm in ("searched", "random"):
        for sparsity, row in done.of(arm).items():
            small, budget = (done.of(f"{arm}_{control}")[sparsity] for control in ("small_dense", "dense_budget"))
            n_each = done.structure.n_params / sum(group.size for group in done.structure.groups)
            assert small["n_params"] == pytest.approx(row["n_params"], abs=n_each)
            making = 2 * PROBE / 3 / BATCH if arm == "searched" else 0  # of both draws
            assert budget["steps"] == STEPS + round(making)


def test_controls_of_frozen_weights_are_as_frozen(done: Done) -> None:
    for control in ("shuffled_layers", "fresh_weights"):
        row = done.of(f"edge_popup_{control}")[0.5]
        assert (row["steps"], row["curve_step"]) == (0, [0])
        assert row["val_error"] > done.of("edge_popup")[0.5]["val_error"] - 0.05


def test_survivors_that_are_not_retrained_are_the_parent_under_a_mask(done: Done) -> None:
    row = done.of("tuned")[0.5]
    assert (row["steps"], row["curve_step"]) == (0, [0])
    n_val, n_test = round(0.2 * 1438), 359
    assert row["passes"] == pytest.approx((PROBE + n_val + n_test) / 3, rel=0.01)


def test_verdicts_count_the_parent_and_every_level_and_cut(done: Done) -> None:
    verdict = judge(done.table, done.study.design())  # type: ignore[arg-type]
    cost: dict[str, float] = {}
    for row in done.rows:
        if row["stage"] in ("trained", "level"):
            cost[row["candidate"]] = max(cost.get(row["candidate"], 0.0), row["passes"])
    (parent,) = done.of("dense").values()
    told = {(c.arm, c.sparsity): c.arm_passes for c in verdict.comparisons if c.metric == "accuracy"}
    for arm in pruners(done):
        trained, cut, method = done.of(arm), done.of(arm, "pruned"), done.methods[arm]
        for sparsity in SPARSITIES:
            if sparsity not in trained:
                continue
            passes = cost[trained[sparsity]["candidate"]]
            if method.needs_parent:
                passes += cost[parent["candidate"]]
                chain = [s for s in trained if s < sparsity] if method.goes_alone else []
                passes += sum(cost[trained[s]["candidate"]] for s in chain)
                passes += sum(cut[s]["passes"] for s in (*chain, sparsity))
            assert told[arm, sparsity] == pytest.approx(passes, rel=1e-12), arm


def test_a_finished_study_is_not_done_again(done: Done) -> None:
    run_inline(done.study, done.folder, masks_per_pack=1, lanes_per_pack=1)
    with Ledger.read(done.folder) as ledger:
        assert ledger.table().equals(done.table)
        plan = Plan(done.study.design(), CandidateNames(done.study.base()), masks_per_pack=1, lanes_per_pack=1)  # type: ignore[arg-type]
        for batch in ledger.scan(columns=plan.columns):
            plan.absorb(batch)
    assert plan.is_complete
    assert plan.next_work() is None
    assert not (done.folder / "checkpoints").exists()


PATTERNED = {
    "rigl_2_4": {"method": "rigl", "pattern": "2:4", "every": 1, "controls": ["shuffled_layers", "fresh_weights"]},
    "set_2_4": {"method": "set", "pattern": "2:4", "every": 1},
    "gmp_2_4": {"method": "gmp", "pattern": "2:4"},
    "popup_2_4": {"method": "edge_popup", "pattern": "2:4"},
    "rigl_blocks": {"method": "rigl", "pattern": "4x2", "every": 1, "controls": ["shuffled_layers"]},
    "set_blocks": {"method": "set", "pattern": "4x2", "every": 1, "allocation": "global"},
    "gmp_blocks": {"method": "gmp", "pattern": "4x2", "score": "lamp"},
    "popup_blocks": {"method": "edge_popup", "pattern": "4x2"},
    "imp_2_4": {"method": "imp", "pattern": "2:4", "controls": ["shuffled_layers"]},
    "imp_blocks": {"method": "imp", "pattern": "4x2", "rate": 0.4},
    "walk_blocks": {"method": "lr_rewind", "pattern": "4x2", "rate": 0.4, "allocation": "uniform"},
    "synflow_blocks": {"method": "synflow", "pattern": "4x2", "rounds": 4},
    "snip_2_4": {"method": "snip", "pattern": "2:4", "rounds": 3},
}


def test_masks_of_a_pattern_made_little_by_little(tmp_path: Path) -> None:
    study = study_of(PATTERNED)
    run_inline(study, tmp_path / "study", masks_per_pack=8, lanes_per_pack=64)
    found = Done(study, tmp_path / "study")
    assert {row["error"] for row in found.rows} == {None}
    assert {row["outcome"] for row in found.rows} == {"completed"}
    for arm, table in PATTERNED.items():
        pattern, method = parse_pattern(table["pattern"]), pruning_of(found, arm)
        rows = found.of(arm, "trained")
        assert set(rows) == ({0.5} if pattern.density else set(SPARSITIES))
        chain = {**found.of(arm, "level"), **rows}
        for before, after in itertools.pairwise(sorted(chain) if method.when == "levels" else ()):
            assert not (found.mask(chain[after]) & ~found.mask(chain[before])).any()
        for sparsity, row in chain.items():
            mask = found.mask(row)
            pattern = parse_pattern(table["pattern"]).on_the_way(1 - sparsity)
            assert is_of_pattern(pattern, found.structure, mask)
            wanted = kept_counts(found.structure, "weight", sparsity, method.allocation or "uniform")
            if pattern.density or len(wanted) > 1:
                assert found.survivors(mask) == list(pattern_counts(pattern, found.structure, wanted)), arm
            assert row["mask_overlap"] is None or row["mask_overlap"] < 1, arm
        for control in table.get("controls", ()):
            for sparsity, row in found.of(f"{arm}_{control}").items():
                mask, theirs = found.mask(row), found.mask(rows[sparsity])
                assert is_of_pattern(pattern, found.structure, mask)  # type: ignore[no-untyped-call]
                assert (mask == theirs).all() == (control == "fresh_weights")
    again = study_of({arm: PATTERNED[arm] for arm in ("rigl_2_4", "set_blocks")})
    run_inline(again, tmp_path / "again", masks_per_pack=1, lanes_per_pack=1)
    other = Done(again, tmp_path / "again")
    for arm in ("rigl_2_4", "set_blocks"):
        for sparsity, row in other.of(arm).items():
            assert row["candidate"] == found.of(arm)[sparsity]["candidate"]
            assert row["mask_digest"] == found.of(arm)[sparsity]["mask_digest"]


CHAIN = {"walk": {"method": "lr_rewind", "controls": ["small_dense", "dense_budget"]}, "magnitude_oneshot": {}}


@pytest.mark.parametrize("lanes_per_pack", [1, 5])
def test_packs_of_any_size_come_to_the_same(lanes_per_pack: int, tmp_path: Path) -> None:
    controls = {"controls": ["shuffled"]}
    study = study_of({**CHAIN, "set": {}, "random_erk": controls, "magnitude_oneshot": controls})
    runs = []
    for name, lanes in (("one", 64), ("other", lanes_per_pack)):
        run_inline(study, tmp_path / name, masks_per_pack=2, lanes_per_pack=lanes)
        runs.append(Done(study, tmp_path / name))
    key = ("stage", "arm", "target_sparsity", "slot")
    one, other = ({tuple(row[k] for k in key): row for row in run.rows} for run in runs)
    assert one.keys() == other.keys()
    for place, row in one.items():
        for name in ("candidate", "mask_digest", "outcome", "steps"):
            assert row[name] == other[place][name], place
        if row["val_loss"] is not None:
            assert row["val_loss"] == pytest.approx(other[place]["val_loss"], abs=1e-4)
            assert row["passes"] == pytest.approx(other[place]["passes"], rel=1e-9)


def test_a_chain_whose_weights_are_lost_ends_there_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(CHAIN)
    levels = METHODS["lr_rewind"].levels(SPARSITIES)
    read = workshop_module.read_checkpoint
    parents: list[str] = []

    def lose(folder: Path, name: str, ids: Any) -> Any:
        # The parent's is the first to be read; the next is that of the chain's first level.
        parents.append(name)
        if name != parents[0]:
            checkpoint_path(folder, name).unlink()
        return read(folder, name, ids)

    monkeypatch.setattr(workshop_module, "read_checkpoint", lose)
    run_inline(study, tmp_path / "study", masks_per_pack=8, lanes_per_pack=1)
    found = Done(study, tmp_path / "study")
    walk = found.of("walk")
    assert [walk[s]["outcome"] for s in levels] == ["completed", *["failed"] * (len(levels) - 1)]
    assert "start the study in another folder to train them again" in walk[levels[1]]["error"]
    assert "Traceback" not in walk[levels[1]]["error"]
    for before, level in itertools.pairwise(levels[1:]):
        assert walk[level]["error"] == f"its network at {before:g} did not complete (failed)"
    for sparsity in SPARSITIES:
        assert found.of("walk_small_dense")[sparsity]["outcome"] == "failed"
        assert found.of("walk_dense_budget")[sparsity]["outcome"] == "completed"
        assert found.of("magnitude_oneshot")[sparsity]["outcome"] == "completed"
    verdict = judge(found.table, study.design())  # type: ignore[arg-type]
    (lost,) = (c for c in verdict.comparisons if (c.arm, c.sparsity, c.metric) == ("walk", 0.7, "accuracy"))
    assert lost.note.startswith("no replicate has both networks")


def test_a_chain_that_diverges_fails_at_all_levels_after_it(tmp_path: Path) -> None:
    study = study_of(
        {"imp": {"controls": ["small_dense"]}},
        training={"batch_size": BATCH, "steps": STEPS, "eval_every": 3, "optimizer": "sgd", "lr": 1e30},
    )
    run_inline(study, tmp_path / "study", masks_per_pack=8, lanes_per_pack=8)
    found = Done(study, tmp_path / "study")
    (parent,) = found.of("dense").values()
    assert parent["outcome"] == "diverged"
    assert {row["outcome"] for row in found.of("imp").values()} == {"failed"}
    first, *later = (found.of("imp")[s]["error"] for s in sorted(found.of("imp")))
    assert first == "the parent of replicate 0 did not complete (diverged)"
    assert all(error.startswith("its network at ") for error in later)
    assert {row["outcome"] for row in found.of("imp_small_dense").values()} == {"failed"}


def test_replicates_and_levels_have_masks_of_their_own(tmp_path: Path) -> None:
    # SET begins with the mask of random_erk, so that both differ in what becomes of it alone.
    study = study_of({"random_erk": {"controls": ["shuffled_layers"]}, "snip": {}}, replicates=2)
    run_inline(study, tmp_path / "study", masks_per_pack=8, lanes_per_pack=64)
    rows = [row for row in Done(study, tmp_path / "study").rows if row["stage"] == "trained" and row["mask_digest"]]
    digests = [row["mask_digest"] for row in rows]
    assert len(digests) == 2 * 2 * (2 + 3)
    assert len(set(digests)) == len(digests)
    assert np.isfinite([row["val_loss"] for row in rows]).all()


@pytest.mark.parametrize(
    ("arms", "search", "draws"),
    [
        ({"snip": {}}, {}, (8, 8, 8)),
        ({"imp": {}}, {}, (8, 1 + 4 + 5, 1 + 13)),
        ({"imp": {"rate": 0.1}}, {}, (1 + 7, 1 + 16, 1 + 23)),
        ({"late": {"method": "imp", "score": "fisher"}}, {}, (8, 1 + 9 + 1, 1 + 13 + 1)),
        ({"imp": {}, "long": {"method": "magnitude_oneshot", "retrain_fraction": 20.0}}, {}, (1 + 20,) * 3),
        ({"imp": {}, "searched": {}}, {"draws": 9}, (8, 9, 9)),
        # A training, and scores at 976 updates: 3 x 512 passes each, of which 100 are a step.
        ({"gmp": {"score": "grasp", "every": 1}}, {}, (11,) * 3),
        ({"imp": {}}, {"random_draws": 3}, (3, 3, 3)),
        ({"imp": {}}, {"random_draws_by_level": [2, 5, 4]}, (2, 5, 4)),
    ],
)
def test_random_search_has_the_budget_of_the_longest_arm_unless_told_otherwise(
    arms: Mapping[str, Mapping[str, Any]], search: Mapping[str, Any], draws: tuple[int, ...]
) -> None:
    """To 50% it takes four levels of 20%, from there to 80% five, to 90% four more."""
    study = study_of(arms, search=search, sparsities=[0.5, 0.8, 0.9], training={"steps": 1500})
    written = study.identity()["search"]
    assert (written["random_draws"], tuple(written.get("random_draws_by_level", draws))) == (max(draws), draws)
    assert ("random_draws_by_level" in written) == (len(set(draws)) > 1)
    design = study.design()
    assert isinstance(design, Design)
    assert tuple(design.random_draws_at(s) for s in (0.5, 0.8, 0.9)) == draws
    if "random_draws_by_level" not in search:  # numbers belong to levels, in whatever order these are written
        turned = study_of(arms, search=search, sparsities=[0.9, 0.5, 0.8], training={"steps": 1500}).design()
        assert isinstance(turned, Design)
        assert tuple(turned.random_draws_at(s) for s in (0.5, 0.8, 0.9)) == draws
    assert Study.from_dict(study.identity()).digest == study.digest


def test_it_is_said_beforehand_what_share_of_a_study_random_search_is() -> None:
    dataset = load_dataset("digits")
    changes: dict[str, Any] = {"sparsities": [0.5, 0.8, 0.99], "replicates": 2}
    study = study_of({"imp": {"rate": 0.05}}, search={}, **changes)
    draws = (1 + 14, 1 + 32, 1 + 91)  # the parent, and the levels to each
    (said,) = study._remarks(dataset)
    assert said == (
        "search.random_draws_by_level=[15, 33, 92]: what the longest arm takes to each sparsity, in each of 2 "
        f"replicates; {2 * sum(draws)} of {2 * (sum(draws) + 92)} networks (60%) are of the random arm; write "
        "search.random_draws, a smaller number, to train fewer"
    )
    assert study_of({"imp": {"rate": 0.05}}, search={"random_draws": 4}, **changes)._remarks(dataset) == []
    assert study_of({"snip": {}}, search={}, **changes)._remarks(dataset) == []


def test_blocks_that_are_larger_than_layers_are_refused_or_told() -> None:
    """Of a perceptron of digits, with 10 outputs."""
    model = {"model": {"name": "mlp", "widths": [16]}, "sparsities": [0.5]}
    study = study_of({"blocks": {"method": "snip", "pattern": "65x65"}}, search={"random_draws": 4}, **model)
    with pytest.raises(
        ConfigError, match=r"^arms\.blocks\.pattern='65x65': must fit into a layer, and the largest is 16x64"
    ):
        study._checked_data()
    study = study_of({"blocks": {"method": "snip", "pattern": "16x16"}}, search={"random_draws": 4}, **model)
    (remark,) = study._remarks(study._checked_data())
    assert remark.startswith("arms.blocks.pattern='16x16': removes nothing of ")
    assert "(10x16), for no more than one block fits there" in remark


def test_sparsities_that_a_pattern_does_not_have_are_told() -> None:
    dataset = load_dataset("digits")
    arms: dict[str, dict[str, Any]] = {"nm_2_4": {"controls": ["shuffled_layers"]}, "snip": {}}
    study = study_of(arms, search={"random_draws": 4}, sparsities=[0.9, 0.5, 0.8])
    (remark,) = study._remarks(dataset)
    assert remark == (
        "arms.nm_2_4: its pattern '2:4' has sparsity 0.5 alone; it has no network at 0.8, 0.9 and is compared with "
        "nothing there"
    )
    assert study_of(arms, search={"random_draws": 4}, sparsities=[0.5])._remarks(dataset) == []


def test_with_the_default_no_budget_is_short(tmp_path: Path) -> None:
    study = study_of({"imp": {}}, search={"probe_size": PROBE}, sparsities=[0.9, 0.95], replicates=2)
    run_inline(study, tmp_path / "tiny", masks_per_pack=8, lanes_per_pack=16)
    with Ledger.read(tmp_path / "tiny") as ledger:
        verdict = judge(ledger.table(), study.design())
        trained = [(row["arm"], row["target_sparsity"]) for row in ledger.table().to_pylist()]
    found = {c.sparsity: c for c in verdict.comparisons if (c.arm, c.metric) == ("imp", "accuracy")}
    # Eleven levels of 20% to 90%, and four more: what is granted at a level is what is trained there.
    for sparsity, draws in ((0.9, 1 + 11), (0.95, 1 + 15)):
        assert trained.count(("random", sparsity)) == 2 * draws
        assert found[sparsity].random_draws_at_equal_budget == pytest.approx(draws)
    assert {c.n_short for c in verdict.comparisons} == {0}
