"""What each arm wants trained (the contract that all of them keep: tests/contracts)."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from sparsefront.errors import SpaceError
from sparsefront.search.methods import (
    BASELINE,
    METHODS,
    PRUNERS,
    Best,
    Context,
    Cut,
    Method,
    Missing,
    Trained,
    methods_of,
    tables_for,
)
from sparsefront.spaces.candidate import Candidate, CandidateNames
from sparsefront.spaces.controls import CONTROLS
from sparsefront.spaces.pruning import Pruning

DIGEST, ORIGIN = "cd" * 16, "ef" * 16
CUT = Trained(DIGEST, ORIGIN)
SPARSITIES = (0.5, 0.9)


def known(**changes: Any) -> Context:
    given: dict[str, Any] = {"steps": 200, "sparsities": SPARSITIES, "best": Best(5, 6, 7), **changes}
    return Context(2, given.pop("sparsity", 0.9), 3, **given)


def arm_of(name: str, **options: Any) -> Method:
    return methods_of({name: options})[name]


def test_random_takes_the_first_draws_whatever_their_scores() -> None:
    wanted = [Candidate(2, 0.9, "masked", draw=i) for i in range(3)]
    assert METHODS["random"].candidates(known()) == wanted
    assert METHODS["random"].candidates(Context(2, 0.9, 3)) == wanted


def test_the_selected_arms_take_the_draw_that_stands_out() -> None:
    drawn = {
        arm: [c.draw for c in METHODS[arm].candidates(known()) or () if isinstance(c, Candidate)]  # type: ignore[union-attr]
        for arm in ("searched", "searched_scalefree", "worst")
    }
    assert drawn == {"searched": [5], "searched_scalefree": [6], "worst": [7]}


def test_the_dense_arms_need_no_mask() -> None:
    assert METHODS["dense"].candidates(Context(2, 0.0, 3)) == [Candidate(2, 0.0, "parent")]
    assert METHODS["small_dense"].candidates(known()) == [Candidate(2, 0.9, "small_dense")]


def test_random_comes_with_every_default_study() -> None:
    assert BASELINE == ("dense", "random", "searched", "searched_scalefree", "worst", "small_dense", "magnitude")
    assert list(METHODS) == [*BASELINE[:-1], *PRUNERS]


@pytest.mark.parametrize(
    ("arm", "options", "wanted"),
    [
        ("magnitude", {}, {}),
        ("imp", {}, {}),
        ("imp_rewind", {}, {"start": "rewound", "rewind_step": 4}),
        ("imp", {"rewind_fraction": 0.001}, {}),  # rounds to no step at all
        ("imp", {"survivors": "fresh"}, {"start": "fresh"}),
        (
            "magnitude_oneshot",
            {},
            {"start": "trained", "origin": ORIGIN, "method": Pruning("trained", survivors="trained")},
        ),
        ("lr_rewind", {}, {"start": "trained", "origin": ORIGIN, "method": PRUNERS["lr_rewind"].method}),
    ],
)
def test_survivors_begin_with_what_their_method_says(arm: str, options: dict[str, Any], wanted: dict[str, Any]) -> None:
    method = arm_of(arm, **options)
    (found,) = method.candidates(known(derived={arm: CUT}))  # type: ignore[misc]
    assert found == Candidate(2, 0.9, "masked", mask=DIGEST, **wanted)
    assert method.candidates(known(derived={"another": CUT})) is None


def test_what_makes_its_own_mask_asks_for_nothing() -> None:
    for arm in ("snip", "synflow", "random_erk", "gmp", "rigl", "edge_popup"):
        (found,) = METHODS[arm].candidates(Context(2, 0.9, 3))  # type: ignore[misc]
        assert found == Candidate(2, 0.9, "masked", method=PRUNERS[arm].method)


def test_a_method_of_node_masks_leaves_an_allocation_of_weights_alone_to_the_study() -> None:
    assert PRUNERS["set"].for_masks("weight") is PRUNERS["set"].method
    assert PRUNERS["set"].for_masks("node") == dataclasses.replace(PRUNERS["set"].method, allocation=None)
    assert PRUNERS["imp"].for_masks("node").allocation == "global"
    tables = {"random": {}, "mine": {"method": "rigl", "every": 3}, "set": {"allocation": "global"}, "imp": {}}
    found = tables_for(tables, "node")
    assert found == {**tables, "mine": {"allocation": None, "method": "rigl", "every": 3}}
    methods = methods_of(found)
    allocations = [method.allocation for arm in ("mine", "set", "imp") if (method := methods[arm].method) is not None]
    assert allocations == [None, "global", "global"]
    assert tables_for(tables, "weight") == tables
    assert tables_for({"of another version": {}}, "node") == {"of another version": {}}


def test_a_chain_passes_levels_that_each_remove_a_fifth_at_most_and_cuts_one_from_the_other() -> None:
    chain = METHODS["imp"].levels(SPARSITIES)
    assert len(chain) == 4 + 8
    assert set(SPARSITIES) <= set(chain)
    assert list(chain) == sorted(chain)
    densities = [1.0, *(1 - s for s in chain)]
    assert all(after >= 0.8 * before * (1 - 1e-9) for before, after in itertools.pairwise(densities))
    cuts = [METHODS["imp"].cuts(s, SPARSITIES) for s in (0.0, *chain)]
    method = PRUNERS["imp"].method
    assert cuts == [*((Cut("imp", s, method, chain[i + 1 :]),) for i, s in enumerate(chain)), ()]
    assert METHODS["imp"].levels(SPARSITIES[::-1]) == chain


def test_one_shot_cuts_every_level_from_the_parent() -> None:
    method = PRUNERS["magnitude"].method
    assert METHODS["magnitude"].cuts(0.0, SPARSITIES) == tuple(Cut("magnitude", s, method) for s in SPARSITIES)
    assert METHODS["magnitude"].cuts(0.5, SPARSITIES) == ()
    assert METHODS["snip"].cuts(0.0, SPARSITIES) == ()


def test_a_pattern_of_one_density_has_one_level() -> None:
    assert METHODS["nm_2_4"].levels((0.3, 0.5, 0.9)) == (0.5,)
    assert METHODS["nm_2_4"].levels((0.3, 0.9)) == ()
    assert arm_of("nm_1_4", method="nm_2_4", pattern="1:4").levels((0.5, 0.75)) == (0.75,)
    # On its way every group loses a weight at a time, or as many as the rate takes.
    assert arm_of("walk", method="imp", pattern="1:4").levels((0.5, 0.75)) == (0.25, 0.5, 0.75)
    assert arm_of("stride", method="imp", pattern="1:4", rate=0.6).levels((0.5, 0.75)) == (0.5, 0.75)
    # A study writes a third with as many digits as it likes, and its level goes by that name.
    assert arm_of("third", method="imp", pattern="1:3").levels((0.6666666667,))[-1] == 0.6666666667
    assert arm_of("gmp", pattern="1:4").levels((0.5, 0.75)) == (0.75,)
    controls = methods_of({"nm_2_4": {"controls": ["shuffled_layers", "dense_budget"]}})
    assert {arm: m.levels((0.3, 0.5)) for arm, m in controls.items()} == dict.fromkeys(controls, (0.5,))


# Controls.


def control_of(control: str, context: Context, arm: str = "imp", **options: Any) -> list[Candidate] | Missing | None:
    return methods_of({arm: {**options, "controls": [control]}})[f"{arm}_{control}"].candidates(context)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_waits_for_its_arm_and_for_no_other(control: str) -> None:
    needs_arm = CONTROLS[control].network != "parent"
    assert (control_of(control, known(trained={"magnitude": CUT})) is None) == needs_arm
    assert isinstance(control_of(control, known(trained={"imp": CUT})), list)
    missing = Missing("its network at 0.9 did not complete (failed)")
    assert (control_of(control, known(trained={"imp": missing})) is missing) == needs_arm


def test_controls_change_one_thing() -> None:
    context = known(trained={"imp": CUT})
    same = Candidate(2, 0.9, "masked", mask=DIGEST, control="shuffled")
    assert control_of("shuffled", context) == [same]
    late = Candidate(2, 0.9, "masked", mask=DIGEST, control="shuffled", start="rewound", rewind_step=20)
    assert control_of("shuffled", context, rewind_fraction=0.1) == [late]
    fresh = Candidate(2, 0.9, "masked", mask=DIGEST, control="shuffled", start="fresh")
    assert control_of("shuffled", context, survivors="fresh") == [fresh]
    other = Candidate(2, 0.9, "masked", mask=DIGEST, control="fresh_weights")
    assert control_of("fresh_weights", context, rewind_fraction=0.1) == [other]
    small = Candidate(2, 0.9, "small_dense", mask=DIGEST, control="small_dense")
    assert control_of("small_dense", context) == [small]


def test_controls_of_a_drawn_mask_name_the_draw() -> None:
    best = Best(lowest_initial_loss=7, lowest_scalefree_loss=8, highest_initial_loss=None)
    for control in CONTROLS:
        waiting = known(trained={"searched": CUT}, best=None)
        found = control_of(control, dataclasses.replace(waiting, best=best, making_steps={"searched": 5}), "searched")
        if control == "dense_budget":
            assert found == [Candidate(2, 0.9, "parent", steps=205)]
            continue
        assert control_of(control, waiting, "searched") is None
        network = "small_dense" if control == "small_dense" else "masked"
        assert found == [Candidate(2, 0.9, network, draw=7, mask=DIGEST, control=control)]
    # Of the masks of the random arm the first.
    found = control_of("small_dense", known(trained={"random": CUT}), "random")
    assert found == [Candidate(2, 0.9, "small_dense", draw=0, mask=DIGEST, control="small_dense")]


def test_controls_of_frozen_weights_train_none() -> None:
    for control in ("shuffled", "shuffled_layers", "fresh_weights"):
        (found,) = control_of(control, known(trained={"edge_popup": CUT}), "edge_popup")
        assert found == Candidate(2, 0.9, "masked", mask=DIGEST, control=control, start="frozen")
    (small,) = control_of("small_dense", known(trained={"edge_popup": CUT}), "edge_popup")
    assert small.start == "init"


@pytest.mark.parametrize(
    ("arm", "options", "steps"),
    [
        ("magnitude_oneshot", {"retrain_fraction": 0.25}, 50),
        ("lr_rewind", {"retrain_fraction": 1.5}, 300),
        ("magnitude_oneshot", {}, 0),  # those of the study
        ("imp", {"rewind_fraction": 0.25}, 0),  # what begins anew has no steps behind it
    ],
)
def test_new_weights_train_as_long_as_the_last_training_of_their_arm(
    arm: str, options: dict[str, Any], steps: int
) -> None:
    for control in ("fresh_weights", "small_dense"):
        (found,) = control_of(control, known(trained={arm: CUT}), arm, **options)
        assert (found.steps, found.start) == (steps, "init")


def test_shuffled_controls_of_a_fine_tuned_arm_go_on_from_the_same_weights() -> None:
    for arm, pattern in (("magnitude_oneshot", "unstructured"), ("nm_2_4", "2:4")):
        context = known(trained={arm: CUT}, derived={arm: CUT})
        (found,) = control_of("shuffled_layers", context, arm)
        assert isinstance(found, Candidate)
        assert (found.start, found.origin, found.mask) == ("trained", CUT.id, CUT.mask)
        assert found.method is not None
        assert found.method.pattern == pattern


def test_the_dense_budget_pays_for_the_making_of_masks() -> None:
    context = dataclasses.replace(known(), making_steps={"snip": 7, "imp": 3})
    (once,) = control_of("dense_budget", context, "snip")
    assert once.steps == 200 + 7
    (chain,) = control_of("dense_budget", dataclasses.replace(context, sparsity=0.5))
    assert chain.steps == 200 + 4 * (200 + 3)


@pytest.mark.parametrize(
    ("arm", "options", "sparsity", "steps"),
    [
        ("snip", {}, 0.9, 200),
        ("gmp", {}, 0.9, 200),
        ("magnitude", {}, 0.9, 200 + 200),
        ("magnitude_oneshot", {}, 0.5, 200 + 200),
        ("magnitude_oneshot", {"retrain_fraction": 0.25}, 0.5, 200 + 50),
        ("magnitude_oneshot", {"retrain_fraction": 0.0}, 0.5, 200),
        ("imp", {}, 0.5, 200 + 4 * 200),
        ("imp", {}, 0.9, 200 + 12 * 200),
        ("imp", {"rewind_fraction": 0.1}, 0.5, 200 + 4 * 180),
        ("lr_rewind", {"retrain_fraction": 0.5}, 0.5, 200 + 4 * 100),
    ],
)
def test_dense_budget_trains_as_long_as_the_arm_in_all(
    arm: str, options: dict[str, Any], sparsity: float, steps: int
) -> None:
    found = control_of("dense_budget", known(sparsity=sparsity), arm, **options)
    assert found == [Candidate(2, sparsity, "parent", steps=steps)]


# Methods as data.


EXPLICIT = {"when": "init", "allocation": "explicit", "densities": [0.5, 1]}


def test_densities_are_plain_data_and_one_method_however_they_were_written() -> None:
    method = Pruning.of_data(EXPLICIT)
    assert method.densities == (0.5, 1.0)
    assert method.as_data() == {**EXPLICIT, "densities": [0.5, 1.0]}
    assert Pruning.of_data(method.as_data()) == method
    names = CandidateNames({})
    ids = {
        names.of(Candidate(0, 0.5, "masked", method=Pruning.of_data(EXPLICIT | {"densities": densities})))
        for densities in ([0.5, 1], [0.5, 1.0], [1, 0.5])
    }
    assert len(ids) == 2


@pytest.mark.parametrize("name", PRUNERS)
def test_a_method_is_what_its_data_say(name: str) -> None:
    method = PRUNERS[name].method
    assert Pruning.of_data(method.as_data()) == method


def test_ids_know_the_method_but_not_how_its_numbers_were_written() -> None:
    names = CandidateNames({})
    ids = {
        names.of(Candidate(0, 0.5, "masked", method=Pruning(**data)))
        for data in (
            {"when": "init"},
            {"when": "init", "score": "snip"},
            {"when": "init", "score": "snip", "rounds": 2},
            {"when": "during", "update": "set"},
            {"when": "during", "update": "set", "drop_fraction": 0.1},
        )
    }
    assert len(ids) == 5
    one, other = (Candidate(0, 0.5, "masked", method=Pruning("levels", retrain_fraction=x)) for x in (2, 2.0))
    assert names.of(one) == names.of(other)
    plain = Candidate(0, 0.5, "masked", draw=1)
    assert set(plain.as_data()) == {"replicate", "target_sparsity", "network", "draw", "mask"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"when": "later"}, "when='later': must be one of 'init', 'trained', 'levels', 'during'"),
        ({"when": "levels", "rate": True}, "rate=True: must be a number"),
        ({"when": "levels", "rate": float("nan")}, r"rate=nan: must lie in \[0.001, 0.999\]"),
        ({"when": "levels", "ap_fraction": 0.2}, "ap_fraction=0.2: must be less than rate=0.2"),
        ({"when": "init", "update": "set"}, "update='set': belongs to when='during'"),
        ({"when": "levels", "ap_fraction": 0.1, "pattern": "2:4"}, "single weights, and not by pattern='2:4'"),
        ({"when": "init", "score": None}, "score=None: must be text in quotes"),
        (
            {"when": "init", "allocation": "explicit"},
            r"densities=\[\]: allocation=.explicit. needs the fraction of weights",
        ),
        ({"when": "init", "densities": [0.5]}, r"densities=\[0.5\]: belong to allocation='explicit'.*is None"),
        (EXPLICIT | {"densities": [0.5, 0]}, r"densities=\(0.5, 0\): must be a list of numbers in \(0, 1\]"),
        (EXPLICIT | {"densities": 0.5}, r"densities=0.5: must be a list of numbers"),
        (EXPLICIT | {"when": "levels"}, r"densities=\[0.5, 1.0\]: are those of one sparsity, and when='levels'"),
        (EXPLICIT | {"rounds": 2}, "are those of one sparsity, and when='init' with rounds=2"),
        (EXPLICIT | {"when": "during", "update": "gradual"}, "update='gradual'.*choose another allocation"),
        ({"when": "during", "update": "set", "decay": "slow"}, "decay='slow': must be one of 'constant'"),
        ({"when": "during", "update": "gradual", "power": 0}, r"power=0.0: must lie in \[0.1, 100\]"),
    ],
)
def test_what_is_no_method(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        Pruning.of_data(data)
