"""Workshop: a candidate's result is its own, whatever it is trained with and whatever becomes of the others."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsefront.errors import CheckpointError
from sparsefront.search.methods import PRUNERS
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.masks import (
    draw,
    mask_digest,
    pack_bits,
    remains,
    remains_of,
    split_sections,
    unpack_bits,
)
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables import workshop as workshop_module
from sparsefront.trainables.checkpoints import read_checkpoint
from sparsefront.trainables.data import split
from sparsefront.trainables.lanes import Layout, dense_lanes
from sparsefront.trainables.mask_updates import Nodes
from sparsefront.trainables.models import build_model, initial_weights
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Examples, Schedule, batch_order
from sparsefront.trainables.pruning import SCORES
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.scoring import Scorer
from sparsefront.trainables.workshop import CutOrder, LaneOrder, Workshop, _Job
from tests.oracles import networks as oracle
from tests.oracles import spaces as slow
from tests.oracles.pruning import pruned_mask

STEPS, BATCH, EVERY = 30, 16, 12
N_POINTS = 3  # after 12, 24 and 30 steps
RECIPE = Recipe(
    seed=9,
    model="mlp",
    model_options=oracle.SMALL["mlp"],
    validation_fraction=0.25,
    mask_kind="node",
    allocation="uniform",
    probe_size=50,
    schedule=Schedule("adam", steps=STEPS, batch_size=BATCH, eval_every=EVERY),
    hyper=Hyperparameters(lr=0.01, weight_decay=1e-3),
)
N_TRAIN, N_VALIDATION, N_TEST, N_PROBE = 180, 60, 80, 50
CPU = torch.device("cpu")
PARENT = Candidate(0, 0.0, "parent")


def cut_at(*sparsities, arm="magnitude", **method):
    """The parent, and masks to be cut from it."""
    pruning = Pruning(**{"when": "trained", **method})
    return LaneOrder(PARENT, cuts=tuple(CutOrder(arm, s, pruning) for s in sparsities))


@pytest.fixture(scope="module", autouse=True)
def _shared_models():
    """Workshops of one model share its module, and with it the recordings of gradients: half a second each."""
    built = {}

    def build_once(name, options, **data):
        key = (name, repr(options), *data.values())
        if key not in built:
            built[key] = build_model(name, options, **data)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workshop_module, "build_model", build_once)
        yield


def workshop_of(blobs, **changes):
    return Workshop(replace(RECIPE, **changes), blobs, CPU)


def drawn(number, sparsity=0.5, replicate=0):
    return LaneOrder(Candidate(replicate, sparsity, "masked", draw=number))


def stored(mask, sparsity=0.5):
    bits = pack_bits(mask).tobytes()
    return LaneOrder(Candidate(0, sparsity, "masked", mask=mask_digest(bits)), bits)


def mixed_orders(workshop):
    """Parent, drawn masks of two levels, a stored mask, and small dense networks."""
    magnitude = pruned_mask(
        "magnitude",
        workshop.structure,
        initial_weights(workshop.structure, "kaiming", generator(1, "elsewhere")),
        kind=workshop.recipe.mask_kind,
        sparsity=0.5,
        allocation=workshop.recipe.allocation,
    )
    return [
        cut_at(0.5, 0.75),
        *(drawn(i) for i in range(3)),
        drawn(0, 0.75),
        LaneOrder(Candidate(0, 0.5, "small_dense")),
        LaneOrder(Candidate(0, 0.75, "small_dense")),
        stored(magnitude),
    ]


def train(workshop, orders):
    """Trained by candidate; every candidate exactly once."""
    ended = [trained for batch in workshop.train(orders) for trained in batch]
    assert sorted(map(repr, (t.candidate for t in ended))) == sorted(repr(o.candidate) for o in orders)
    return {t.candidate: t for t in ended}


def assert_same(a, b):
    """Two results of one candidate: losses to the contract's 1e-4, counts exactly."""
    for field in ("candidate", "outcome", "mask_digest", "remains", "error"):
        assert getattr(a, field) == getattr(b, field), field
    assert a.passes == pytest.approx(b.passes, rel=1e-12)
    assert a.scores == pytest.approx(b.scores, rel=5e-3)
    assert a.scores[:2] == pytest.approx(b.scores[:2], abs=1e-5)
    assert a.test_loss == pytest.approx(b.test_loss, abs=1e-4)
    assert a.test_error == pytest.approx(b.test_error, abs=1 / N_TEST)
    assert a.result.curve_step == b.result.curve_step
    assert a.result.curve_val_loss == pytest.approx(b.result.curve_val_loss, abs=1e-4)
    assert a.result.curve_val_error == pytest.approx(b.result.curve_val_error, abs=1 / N_VALIDATION)
    assert [d.digest for d in a.derived] == [d.digest for d in b.derived]


KINDS = [("node", "uniform"), ("node", "global"), ("weight", "uniform"), ("weight", "erk")]


@pytest.mark.parametrize(
    ("kind", "allocation"),
    [("node", "uniform"), pytest.param("node", "global", marks=pytest.mark.slow), ("weight", "erk")],
)
def test_results_do_not_depend_on_order_or_grouping(kind, allocation, blobs):
    together = workshop_of(blobs, mask_kind=kind, allocation=allocation)
    orders = mixed_orders(together)
    expected = train(together, orders)
    assert len(expected[PARENT].derived) == 2
    assert {t.outcome for t in expected.values()} == {"completed"}
    for at_once, shuffled in ((1, orders[::-1]), (3, orders[5:] + orders[:5])):
        other = workshop_of(blobs, mask_kind=kind, allocation=allocation, lanes_at_once=at_once)
        found = train(other, shuffled)
        for candidate, trained in expected.items():
            assert_same(found[candidate], trained)


MIXED = [
    ("mlp", "node", "uniform"),
    ("mlp", "node", "global"),
    ("mlp", "weight", "erk"),
    ("conv1d", "weight", "erk"),
    pytest.param("residual_mlp", "node", "global", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "kind", "allocation"), MIXED)
def test_candidates_of_several_replicates_and_levels_share_packs(family, kind, allocation, blobs, monkeypatch):
    """Static masks, those that change in training, dense networks: as few packs as there are ways to train."""
    # Convolutions are rounded otherwise in other packs, and of two nearly equal weights one or the other may stay.
    updates = () if family == "conv1d" else ("set", "rigl", "gradual", "edge_popup")
    dynamic = [Pruning("during", update=update, every=2) for update in updates]
    orders = [
        order
        for replicate in (2, 0, 1)
        for order in (
            LaneOrder(Candidate(replicate, 0.0, "parent"), siblings=replicate != 1),
            drawn(3, 0.5, replicate),
            drawn(4, 0.75, replicate),
            LaneOrder(Candidate(replicate, 0.5, "masked", method=Pruning("init", score="magnitude"))),
            LaneOrder(Candidate(replicate, 0.5, "masked", draw=5, start="fresh")),
            *(LaneOrder(Candidate(replicate, 0.5, "masked", method=method)) for method in dynamic),
        )
    ]

    def workshop():
        options = oracle.SMALL[family]
        return workshop_of(blobs, model=family, model_options=options, mask_kind=kind, allocation=allocation)

    sizes = []

    class Counted(workshop_module.Pack):
        def __init__(self, model, lanes, *args, **more):
            sizes.append(len(lanes))
            super().__init__(model, lanes, *args, **more)

    monkeypatch.setattr(workshop_module, "Pack", Counted)
    found = train(workshop(), orders)
    # Parents, two of them with siblings, every way of changing masks, and those that stay: of nodes those of a level,
    # and by themselves those whose layers are all as wide as the level says.
    static = [12] if kind == "weight" else [6, 3, 3] if allocation == "uniform" else [9, 3]
    assert sorted(sizes) == sorted([3, 2, *[3] * len(updates), *static])
    alone = workshop()
    for order in orders:
        ((candidate, expected),) = train(alone, [order]).items()
        assert_same(found[candidate], expected)
        same = (found[candidate].columns["mask_overlap"], found[candidate].columns["exploration_rate"])
        assert same == (expected.columns["mask_overlap"], expected.columns["exploration_rate"])
        connected = found[candidate].columns.get("instability_loss"), expected.columns.get("instability_loss")
        assert (connected[0] is None) == (connected[1] is None) == (not order.siblings)
        assert connected[0] is None or connected[0] == pytest.approx(connected[1], abs=1e-4)


@pytest.mark.parametrize("kind", ["node", "weight", "biases"])
@pytest.mark.parametrize("family", oracle.SMALL)
def test_a_candidate_is_what_plain_torch_makes_of_it(family, kind, blobs):
    """From the recipe's seeds to the test loss, with nothing of the product but its draws."""
    are_biases_pruned, kind = kind == "biases", kind.replace("biases", "weight")
    changes = {"model": family, "model_options": oracle.SMALL[family], "prune_biases": are_biases_pruned}
    workshop = workshop_of(blobs, mask_kind=kind, **changes)
    structure = workshop.structure
    parts = split(blobs, validation_fraction=0.25, generator=generator(9, "split", 2))
    training = Examples.of(blobs.x_train[parts.train_indices], blobs.y_train[parts.train_indices], 4, CPU)
    validation = Examples.of(blobs.x_train[parts.validation_indices], blobs.y_train[parts.validation_indices], 4, CPU)
    order = torch.from_numpy(batch_order(N_TRAIN, BATCH, STEPS, generator(9, "order", 2)))
    init = oracle.small_model(family).init
    parent = {n: torch.from_numpy(w) for n, w in initial_weights(structure, init, generator(9, "parent", 2)).items()}
    orders = [drawn(5, 0.5, 2), LaneOrder(Candidate(2, 0.0, "parent")), LaneOrder(Candidate(2, 0.5, "small_dense"))]
    results = train(workshop, orders)

    mask = workshop.draw_masks(2, 0.5, 5, 6)[0]
    if kind == "node":
        kept = kept_counts(structure, "node", 0.5, "uniform")
        small = structure.compact(kept)
        masked, keep = oracle.compact_weights(structure, parent, mask), None
    else:
        small = structure.scaled_to(remains(structure, "weight", mask).n_params)
        bits = slow.weight_parts(structure, mask.tolist())
        keep = {n: torch.from_numpy(bits[n]).float() if n in bits else torch.ones_like(w) for n, w in parent.items()}
        assert any(n.endswith("bias") for n in bits) == are_biases_pruned
        masked = parent
    fresh = initial_weights(small, init, generator(9, "small_dense", 2, 500_000_000))
    for each, weights, kept_weights in (
        (orders[0], masked, keep),
        (orders[1], parent, None),
        (orders[2], {n: torch.from_numpy(w) for n, w in fresh.items()}, None),
    ):
        found = results[each.candidate]
        trained = oracle.train(
            family, weights, training, order, optimizer_name="adam", hyper=RECIPE.hyper, keep=kept_weights
        )
        loss, error = oracle.measure(family, trained, validation)
        assert found.result.val_loss == pytest.approx(loss, abs=1e-4)
        assert found.result.val_error == pytest.approx(error, abs=1e-6)
        test = Examples.of(blobs.x_test, blobs.y_test, 4, CPU)
        loss, error = oracle.measure(family, trained, test)
        assert found.test_loss == pytest.approx(loss, abs=1e-4)
        assert found.test_error == pytest.approx(error, abs=1e-6)
    assert results[orders[0].candidate].remains == remains(structure, kind, mask)
    assert results[orders[0].candidate].mask_digest == mask_digest(pack_bits(mask))
    assert results[orders[1].candidate].remains == remains_of(structure, structure)
    assert results[orders[2].candidate].remains == remains_of(structure, small)


@pytest.mark.parametrize("kind", ["node", "weight"])
def test_derived_masks_are_cut_from_the_trained_parent(kind, blobs):
    workshop = workshop_of(blobs, mask_kind=kind)
    orders = [drawn(0), cut_at(0.5, 0.9), drawn(1)]
    results = train(workshop, orders)
    assert [results[o.candidate].derived for o in (orders[0], orders[2])] == [(), ()]
    parts = split(blobs, validation_fraction=0.25, generator=generator(9, "split", 0))
    training = Examples.of(blobs.x_train[parts.train_indices], blobs.y_train[parts.train_indices], 4, CPU)
    order = torch.from_numpy(batch_order(N_TRAIN, BATCH, STEPS, generator(9, "order", 0)))
    initial = initial_weights(workshop.structure, "kaiming", generator(9, "parent", 0))
    weights = oracle.train(
        "mlp",
        {n: torch.from_numpy(w) for n, w in initial.items()},
        training,
        order,
        optimizer_name="adam",
        hyper=RECIPE.hyper,
    )
    for derived, sparsity in zip(results[PARENT].derived, (0.5, 0.9), strict=True):
        mask = pruned_mask(
            "magnitude",
            workshop.structure,
            {n: w.numpy() for n, w in weights.items()},
            kind=kind,
            sparsity=sparsity,
            allocation="uniform",
        )
        assert (derived.arm, derived.target_sparsity, derived.passes) == ("magnitude", sparsity, 0)
        assert derived.bits == pack_bits(mask).tobytes()
        assert derived.digest == mask_digest(derived.bits)
        assert derived.remains == remains(workshop.structure, kind, mask)
        # The mask can be ordered as it is.
        again = train(workshop, [LaneOrder(Candidate(0, sparsity, "masked", mask=derived.digest), derived.bits)])
        (trained,) = again.values()
        assert trained.outcome == "completed"
        assert trained.mask_digest == derived.digest


def test_passes_add_up_by_hand(blobs):
    """Every step's batch, and a third of a pass for each example that was only looked at."""
    trained = train(workshop_of(blobs), [LaneOrder(PARENT), drawn(0)])
    for each in trained.values():
        assert each.passes == pytest.approx(STEPS * BATCH + (N_PROBE + N_POINTS * N_VALIDATION + N_TEST) / 3, rel=1e-12)
        assert each.seconds > 0
    scored = workshop_of(blobs).score(0, 0.5, 0, 5)
    assert scored.passes_each == pytest.approx(N_PROBE / 3)


def test_a_diverged_candidate_pays_for_the_steps_it_made(blobs):
    hyper = replace(RECIPE.hyper, lr=1e30)
    results = train(workshop_of(blobs, hyper=hyper), [drawn(0), drawn(1), cut_at(0.5)])
    for each in results.values():
        assert each.outcome == "diverged"
        assert (each.test_loss, each.test_error, each.derived, each.error) == (None, None, (), None)
        assert each.result.steps == EVERY
        assert each.passes == pytest.approx(EVERY * BATCH + (N_PROBE + N_VALIDATION) / 3, rel=1e-12)
        assert np.isfinite(each.scores).all()  # of the network before it was trained


def test_small_dense_networks_share_their_weights_with_nobody(blobs):
    """A fresh draw of its own, the same in any workshop, another for each level and replicate."""
    workshop = workshop_of(blobs)
    losses = set()
    for replicate, sparsity in ((0, 0.5), (0, 0.75), (1, 0.5)):
        order = LaneOrder(Candidate(replicate, sparsity, "small_dense"))
        (found,) = train(workshop, [order]).values()
        (again,) = train(workshop_of(blobs), [order]).values()
        assert_same(found, again)
        assert found.mask_digest is None
        losses.add(found.test_loss)
    assert len(losses) == 3


# Failures.


@pytest.fixture
def fragile(blobs, monkeypatch):
    """Make a workshop whose model raises for some drawn masks, by their number."""
    monkeypatch.syspath_prepend(Path(__file__).parent)

    def make(*, refused=(), too_large=(), **changes):
        plain = workshop_of(blobs, **changes)

        def digests(draws):
            return [mask_digest(pack_bits(plain.draw_masks(0, 0.5, i, i + 1)[0])) for i in draws]

        options = {**oracle.SMALL["mlp"], "refused": tuple(digests(refused)), "too_large": tuple(digests(too_large))}
        return workshop_of(blobs, model="fragile_family:FAMILY", model_options=options, **changes)

    return make


def test_a_users_own_family_is_trained_like_ours(fragile, blobs):
    orders = [drawn(0), drawn(1), LaneOrder(PARENT)]
    expected = train(workshop_of(blobs), orders)
    for candidate, trained in train(fragile(), orders).items():
        assert_same(trained, expected[candidate])


@pytest.mark.parametrize("kind", ["node", "weight"])
@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_a_candidate_that_raises_fails_alone(at_once, kind, fragile, blobs):
    orders = [*(drawn(i) for i in range(5)), LaneOrder(PARENT)]
    healthy = [o for o in orders if o.candidate.draw not in (1, 4)]
    expected = train(workshop_of(blobs, mask_kind=kind), healthy)
    found = train(fragile(refused=(1, 4), mask_kind=kind, lanes_at_once=at_once), orders)
    for candidate, trained in expected.items():
        assert_same(found[candidate], trained)
    for number in (1, 4):
        failed = found[drawn(number).candidate]
        assert failed.outcome == "failed"
        assert (failed.result, failed.test_loss, failed.scores, failed.derived) == (None, None, None, ())
        assert failed.passes == 0
        assert failed.error.startswith("Traceback")
        assert "fragile_family.py" in failed.error
        assert "ArithmeticError: mask " in failed.error
        assert failed.error.rstrip().endswith("has no inverse")


def test_a_candidate_that_does_not_fit_into_memory_leaves_alone(fragile, blobs):
    orders = [drawn(i) for i in range(5)]
    expected = train(workshop_of(blobs), orders[1:4])
    found = train(fragile(too_large=(0, 4)), orders)
    for candidate, trained in expected.items():
        assert_same(found[candidate], trained)
    for number in (0, 4):
        assert found[drawn(number).candidate].outcome == "out_of_memory"
        assert "MemoryError" in found[drawn(number).candidate].error


def test_all_candidates_may_fail(fragile):
    found = train(fragile(refused=(0, 2), too_large=(1,)), [drawn(i) for i in range(3)])
    assert [found[drawn(i).candidate].outcome for i in range(3)] == ["failed", "out_of_memory", "failed"]


def test_lanes_that_ended_before_their_pack_broke_are_not_trained_again(blobs, monkeypatch):
    """Some lanes diverge at the first validation point, the others raise at their test; what was spent counts."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    options = {**oracle.SMALL["mlp"], "refused_batch": N_TEST}
    workshop = workshop_of(blobs, model="fragile_family:BRITTLE", model_options=options)
    first = initial_weights(workshop.structure, "kaiming", generator(9, "parent", 0))["layers.0.weight"][:, 0]
    # Twelve steps move a weight by about 12 x lr = 0.12 at most: only signs that training does not turn.
    kept = [first[np.flatnonzero(mask[: len(first)])[0]] for mask in workshop.draw_masks(0, 0.5, 0, 500)]
    diverging = [i for i, weight in enumerate(kept) if weight > 0.2][:2]
    raising = [i for i, weight in enumerate(kept) if weight < -0.15][:2]
    found = train(workshop, [drawn(i) for i in (diverging[0], raising[0], diverging[1], raising[1])])
    until_first_point = EVERY * BATCH + (N_PROBE + N_VALIDATION) / 3
    until_test = STEPS * BATCH + (N_PROBE + N_POINTS * N_VALIDATION) / 3
    for number in diverging:
        assert found[drawn(number).candidate].outcome == "diverged"
        assert found[drawn(number).candidate].passes == pytest.approx(until_first_point, rel=1e-12)
    for number in raising:
        failed = found[drawn(number).candidate]
        assert failed.outcome == "failed"
        assert "OverflowError: a batch of 80 examples is one too many" in failed.error
        assert failed.passes == pytest.approx(2 * until_test, rel=1e-12)  # together, then alone


def test_a_stored_mask_that_is_not_what_its_digest_says_fails_alone(blobs):
    workshop = workshop_of(blobs)
    good = stored(workshop.draw_masks(0, 0.5, 7, 8)[0])
    flipped = bytes([good.mask_bits[0] ^ 1]) + good.mask_bits[1:]
    other = Candidate(0, 0.5, "masked", mask="ab" * 16)
    missing = Candidate(0, 0.5, "masked", mask="cd" * 16)
    orders = [good, LaneOrder(other, flipped), drawn(0), LaneOrder(missing)]
    found = train(workshop, orders)
    expected = train(workshop, [drawn(7), drawn(0)])
    assert found[good.candidate].test_loss == pytest.approx(expected[drawn(7).candidate].test_loss, abs=1e-4)
    assert_same(found[drawn(0).candidate], expected[drawn(0).candidate])
    for candidate in (other, missing):
        assert found[candidate].outcome == "failed"
        assert found[candidate].error == (
            f"mask={candidate.mask!r}: its stored bits are missing or do not match the digest"
        )


@pytest.mark.parametrize("damage", ["short", "padding", "empty layer"])
def test_a_stored_mask_that_fits_no_network_fails_alone(damage, blobs):
    """Bits with the right digest, of another parent or of none."""
    workshop = workshop_of(blobs)
    mask = workshop.draw_masks(0, 0.5, 3, 4)[0]
    bits = pack_bits(mask).tobytes()
    if damage == "short":
        bits = bits[:-1]
    elif damage == "padding":
        bits = bits[:-1] + bytes([bits[-1] | 0x80])
    else:
        empty = mask.copy()
        empty[: workshop.structure.groups[0].size] = False
        bits = pack_bits(empty).tobytes()
    bad = LaneOrder(Candidate(0, 0.5, "masked", mask=mask_digest(bits)), bits)
    found = train(workshop, [drawn(0), bad, drawn(1)])
    expected = train(workshop, [drawn(0), drawn(1)])
    for candidate, trained in expected.items():
        assert_same(found[candidate], trained)
    assert found[bad.candidate].outcome == "failed"
    wanted = {"short": "packed mask of 2 bytes", "padding": "bits beyond its end are set", "empty layer": "kept=0"}
    assert wanted[damage] in found[bad.candidate].error


def test_the_same_candidate_may_be_ordered_twice(blobs):
    ended = [t for batch in workshop_of(blobs).train([drawn(0), drawn(1), drawn(0)]) for t in batch]
    assert [t.outcome for t in ended] == ["completed"] * 3
    losses = sorted(t.test_loss for t in ended if t.candidate == drawn(0).candidate)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_nothing_ordered_is_nothing_trained(blobs):
    assert list(workshop_of(blobs).train([])) == []


# Pruning methods.


PARENT_ID = "ab" * 16


def survivors_of(derived, **candidate):
    """The order of a network under a mask that was cut."""
    return LaneOrder(Candidate(0, derived.target_sparsity, "masked", mask=derived.digest, **candidate), derived.bits)


def weights_of(workshop, trained):
    """Tensors of a trained network that has the parent's shape."""
    views = Layout.of(workshop.structure).views(trained.result.parameters[None])
    return {name: view[0] for name, view in views.items()}


def mask_of(workshop, bits):
    return unpack_bits(bits, sum(workshop.structure.section_sizes(workshop.recipe.mask_kind)))


def keep_of(workshop, mask):
    """0/1 tensors of the weights that a weight mask keeps."""
    bits = slow.weight_parts(workshop.structure, mask.tolist())
    return {
        t.name: torch.from_numpy(bits[t.name]).float() if t.name in bits else torch.ones(t.shape)
        for t in workshop.structure.tensors
    }


def by_plain_torch(workshop, blobs, weights, keep, steps, *, start=0):
    """Weights after the steps `start`..`steps` in the order of replicate 0, and validation and test results."""
    parts = split(blobs, validation_fraction=0.25, generator=generator(9, "split", 0))
    training = Examples.of(blobs.x_train[parts.train_indices], blobs.y_train[parts.train_indices], 4, CPU)
    validation = Examples.of(blobs.x_train[parts.validation_indices], blobs.y_train[parts.validation_indices], 4, CPU)
    order = torch.from_numpy(batch_order(N_TRAIN, BATCH, steps, generator(9, "order", 0)))[start:]
    trained = oracle.train("mlp", weights, training, order, optimizer_name="adam", hyper=RECIPE.hyper, keep=keep)
    test = Examples.of(blobs.x_test, blobs.y_test, 4, CPU)
    return trained, oracle.measure("mlp", trained, validation), oracle.measure("mlp", trained, test)


def initial(workshop):
    weights = initial_weights(workshop.structure, "kaiming", generator(9, "parent", 0))
    return {name: torch.from_numpy(w) for name, w in weights.items()}


def assert_results(found, validation, test):
    assert (found.outcome, found.error) == ("completed", None)
    assert found.result.val_loss == pytest.approx(validation[0], abs=1e-4)
    assert (found.test_loss, found.test_error) == (pytest.approx(test[0], abs=1e-4), pytest.approx(test[1], abs=1e-6))


@pytest.mark.parametrize("kind", ["node", "weight"])
def test_survivors_rewound_to_the_beginning_have_the_initial_weights_to_the_bit(kind, blobs):
    workshop = workshop_of(blobs, mask_kind=kind)
    (parent,) = train(workshop, [cut_at(0.5)]).values()
    order = survivors_of(parent.derived[0])
    job = _Job(order)
    lanes, _ = workshop._lanes([job])
    weights, mask = initial(workshop), mask_of(workshop, parent.derived[0].bits)
    if kind == "node":
        expected = oracle.compact_weights(workshop.structure, weights, mask)
    else:
        expected = {name: w * keep_of(workshop, mask)[name] for name, w in weights.items()}
    views = lanes.layout.views(lanes.flat)
    assert all(torch.equal(views[name][0], expected[name]) for name in expected)


@pytest.mark.parametrize("k", [1, 7, STEPS])
def test_rewinding_goes_on_from_the_parent_after_k_steps_where_its_order_of_batches_was(k, blobs):
    workshop = workshop_of(blobs, mask_kind="weight")
    (parent,) = train(workshop, [cut_at(0.8)]).values()
    order = survivors_of(parent.derived[0], start="rewound", rewind_step=k)
    (found,) = train(workshop, [order]).values()
    after_k, _, _ = by_plain_torch(workshop, blobs, initial(workshop), None, k)
    rewound = workshop._rewound(0, k)
    assert all(torch.allclose(rewound[name], after_k[name], atol=1e-5) for name in after_k)
    keep = keep_of(workshop, mask_of(workshop, parent.derived[0].bits))
    _, validation, test = by_plain_torch(workshop, blobs, after_k, keep, STEPS, start=k)
    assert_results(found, validation, test)
    assert found.result.steps == STEPS - k
    points = -(-(STEPS - k) // EVERY) or 1
    steps = (STEPS - k) * BATCH  # the parent paid for those before
    assert found.passes == pytest.approx(steps + (N_PROBE + points * N_VALIDATION + N_TEST) / 3, rel=1e-12)


def test_the_parent_that_is_rewound_to_had_its_own_schedule_of_learning_rates(blobs):
    schedule = replace(RECIPE.schedule, lr_schedule="cosine", warmup_fraction=0.2)
    workshop = workshop_of(blobs, schedule=schedule)
    short = workshop_of(blobs, schedule=replace(schedule, steps=10, eval_every=10, lr_steps=STEPS))
    rewound = workshop._rewound(0, 10)
    state = short._replicate(0)
    lanes = dense_lanes(short.structure, [state.weights], CPU)
    pack = short._pack(lanes, short._feeds([0], 0, 10), 10, lr_steps=STEPS)
    ((result,),) = pack.run()
    expected = lanes.layout.views(result.parameters[None])
    assert all(torch.equal(rewound[name], expected[name][0]) for name in rewound)
    (whole,) = train(workshop, [LaneOrder(PARENT)]).values()
    end = workshop._rewound(0, STEPS)
    assert all(torch.allclose(end[name], w, atol=1e-6) for name, w in weights_of(workshop, whole).items())


def kept_parent(workshop, *cuts):
    """The parent's results with its weights kept, and its order."""
    order = replace(cut_at(), cuts=cuts, id=PARENT_ID, keeps_weights=True)
    (parent,) = train(workshop, [order]).values()
    assert parent.checkpoint is not None
    return parent


def fine_tuned(parent, derived, method):
    order = survivors_of(derived, start="trained", origin=PARENT_ID, method=method)
    return replace(order, checkpoint=parent.checkpoint)


@pytest.mark.parametrize("retrain_fraction", [0.0, 0.5, 1.0])
def test_fine_tuning_goes_on_from_the_weights_that_were_pruned(retrain_fraction, blobs, tmp_path):
    """Nothing at all is one-shot pruning: the parent's own weights under the mask."""
    workshop = shop_with_checkpoints(blobs, tmp_path, mask_kind="weight")
    method = Pruning("trained", survivors="trained", retrain_fraction=retrain_fraction)
    parent = kept_parent(workshop, CutOrder("tuned", 0.8, method))
    order = fine_tuned(parent, parent.derived[0], method)
    (found,) = train(workshop, [order]).values()
    keep = keep_of(workshop, mask_of(workshop, parent.derived[0].bits))
    pruned = {name: w * keep[name] for name, w in weights_of(workshop, parent).items()}
    n_steps = round(retrain_fraction * STEPS)
    _, validation, test = by_plain_torch(workshop, blobs, pruned, keep, STEPS + n_steps, start=STEPS)
    assert_results(found, validation, test)
    if not n_steps:
        assert all(torch.equal(w, pruned[name]) for name, w in weights_of(workshop, found).items())
    points = -(-n_steps // EVERY) or 1
    assert found.result.curve_step[-1] == n_steps == found.result.steps
    assert found.passes == pytest.approx(n_steps * BATCH + (N_PROBE + points * N_VALIDATION + N_TEST) / 3, rel=1e-12)
    # Alone or in a pack of others.
    both = [order, survivors_of(parent.derived[0]), LaneOrder(PARENT), drawn(3, 0.8)]
    assert_same(train(workshop, both)[order.candidate], found)


def test_the_schedule_of_learning_rates_goes_on_or_begins_anew_lane_by_lane(blobs, tmp_path):
    changes = {"mask_kind": "weight", "schedule": replace(RECIPE.schedule, lr_schedule="cosine")}
    workshop = shop_with_checkpoints(blobs, tmp_path, **changes)
    methods = [Pruning("trained", survivors="trained", lr=lr) for lr in ("last", "rewound")]
    parent = kept_parent(workshop, *(CutOrder("tuned", 0.8, m) for m in methods[:1]))
    orders = [fine_tuned(parent, parent.derived[0], method) for method in methods]
    together = train(workshop, orders)
    moves = []
    keep = keep_of(workshop, mask_of(workshop, parent.derived[0].bits))
    for order in orders:
        (alone,) = train(workshop, [order]).values()
        assert_same(together[order.candidate], alone)
        before, after = weights_of(workshop, parent), weights_of(workshop, alone)
        moves.append(sum(float(((after[n] - before[n]) * keep[n]).abs().sum()) for n in keep))
    assert moves[0] < 0.1 * moves[1]  # the last rate of half a cosine is next to nothing


def shop_with_checkpoints(blobs, folder, **changes):
    return Workshop(replace(RECIPE, **changes), blobs, CPU, folder / "checkpoints")


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_chain_of_compact_networks_goes_on_from_the_trained_weights_at_their_places(allocation, blobs, tmp_path):
    workshop = shop_with_checkpoints(blobs, tmp_path, mask_kind="node", allocation=allocation)
    method = Pruning("levels", survivors="trained", retrain_fraction=0.5)
    levels = (0.2, 0.4, 0.6)
    origin = replace(cut_at(), cuts=(CutOrder("tuned", levels[0], method),), id=PARENT_ID, keeps_weights=True)
    weights, mask = initial(workshop), np.ones(workshop.structure.n_nodes, dtype=np.bool_)
    start = 0
    for next_level, name in zip((0.4, 0.6, None), ("1" * 32, "2" * 32, "3" * 32), strict=True):
        # In company, so that lanes of unequal widths are padded.
        company = [] if origin.candidate.network == "parent" else [drawn(1, origin.candidate.target_sparsity)]
        found = train(workshop, [*company, origin])[origin.candidate]
        assert found.outcome == "completed", found.error
        n_steps = STEPS if not start else STEPS // 2
        stop = STEPS if not start else STEPS + n_steps
        compact = oracle.compact_weights(workshop.structure, weights, mask)
        trained, validation, test = by_plain_torch(workshop, blobs, compact, None, stop, start=start)
        assert_results(found, validation, test)
        (state,) = read_checkpoint(tmp_path / "checkpoints", found.checkpoint, [origin.id]).values()
        weights = {n: torch.from_numpy(w) for n, w in state.parts["weights"].items()}
        again = oracle.compact_weights(workshop.structure, weights, mask)
        assert all(torch.allclose(again[n], trained[n], atol=1e-5) for n in again)
        start = STEPS
        (derived,) = found.derived
        smaller = mask_of(workshop, derived.bits)
        assert not (smaller & ~mask).any()
        kept = kept_counts(workshop.structure, "node", derived.target_sparsity, allocation)
        assert int(smaller.sum()) == sum(kept)
        mask = smaller
        order = survivors_of(derived, start="trained", origin=origin.id, method=method)
        cuts = (CutOrder("tuned", next_level or 0.8, method),)
        origin = replace(order, id=name, cuts=cuts, checkpoint=found.checkpoint, keeps_weights=True)


@pytest.mark.parametrize("when", ["trained", "levels"])
def test_weights_that_are_lost_are_trained_again_or_fail_their_network_alone(when, blobs, tmp_path):
    """Of the parent they can be made again, and are paid for; of a level of a chain they cannot."""
    workshop = shop_with_checkpoints(blobs, tmp_path, mask_kind="weight")
    method = Pruning(when, survivors="trained")
    parent = kept_parent(workshop, CutOrder("tuned", 0.5, method))
    order = fine_tuned(parent, parent.derived[0], method)
    (path,) = (tmp_path / "checkpoints").iterdir()
    whole, expected = path.read_bytes(), train(workshop, [order])[order.candidate]
    for damage in ("gone", "damaged", "never kept"):
        path.write_bytes(whole[:-1])
        if damage == "gone":
            path.unlink()
        asked = replace(order, checkpoint=None) if damage == "never kept" else order
        found = train(workshop, [drawn(0), asked, drawn(1)])
        assert [t.outcome for t in found.values() if t.candidate.draw is not None] == ["completed"] * 2
        one = found[order.candidate]
        if when == "trained" and damage != "never kept":
            assert (one.outcome, one.mask_digest) == ("completed", expected.mask_digest)
            assert one.result.val_loss == pytest.approx(expected.result.val_loss, abs=1e-4)
            assert one.passes == pytest.approx(expected.passes + STEPS * BATCH)
            continue
        assert one.outcome == "failed"
        assert one.error.startswith(f"origin={PARENT_ID!r}: ")
        assert "start the study in another folder" in one.error
        assert "\n" not in one.error
    path.write_bytes(whole)
    assert train(workshop, [order])[order.candidate].outcome == "completed"
    with pytest.raises(CheckpointError, match="this workshop has no folder"):
        train(workshop_of(blobs), [replace(cut_at(), keeps_weights=True)])


def pruners_of(kind):
    return {name: row.for_masks(kind) for name, row in PRUNERS.items() if kind in row.kinds}


def arms_of(kind):
    """A candidate of every method that makes its own mask, with few rounds, at one level."""
    return {
        name: LaneOrder(Candidate(0, 0.5, "masked", method=replace(method, rounds=min(method.rounds, 3))))
        for name, method in pruners_of(kind).items()
        if not method.needs_parent
    }


def is_for_biases(method):
    """Whether studies that prune biases, too, take the method."""
    is_plain = method.pattern == "unstructured" and method.allocation in (None, "uniform", "global")
    scores = [SCORES[name] for name in (method.score, method.counts_of) if name is not None]
    return is_plain and method.when != "during" and all(score.of_biases for score in scores)


@pytest.mark.parametrize("kind", ["node", "weight", "biases"])
def test_every_arm_in_one_pack_is_what_it_is_alone_and_revives_nothing(kind, blobs, tmp_path):
    changes = {"mask_kind": kind}
    if kind == "biases":
        kind = "weight"
        changes = {"mask_kind": kind, "prune_biases": True, "model_options": {**oracle.SMALL["mlp"], "init": "torch"}}
    workshop = shop_with_checkpoints(blobs, tmp_path, **changes)
    are_biases_pruned = workshop.recipe.prune_biases
    methods = {n: m for n, m in pruners_of(kind).items() if not are_biases_pruned or is_for_biases(m)}
    assert len(methods) >= 9
    cuts = [CutOrder(n, 0.5, method) for n, method in methods.items() if method.needs_parent]
    parent = kept_parent(workshop, *cuts)
    assert [d.arm for d in parent.derived] == [cut.arm for cut in cuts]
    orders = {name: order for name, order in arms_of(kind).items() if name in methods}
    for derived in parent.derived:
        method = methods[derived.arm]
        if method.survivors == "trained":
            orders[derived.arm] = fine_tuned(parent, derived, method)
        else:
            step = method.rewind_step(STEPS)
            began = {"start": "rewound", "rewind_step": step} if step else {}
            orders[derived.arm] = survivors_of(derived, **began)
    assert set(orders) == set(methods)
    unique = list({order.candidate: order for order in orders.values()}.values())
    together = train(workshop, unique)
    alone = {}
    for order in unique:
        alone |= train(shop_with_checkpoints(blobs, tmp_path, lanes_at_once=1, **changes), [order])
    for name, order in orders.items():
        found = together[order.candidate]
        assert_same(found, alone[order.candidate])
        bits = found.mask_bits or order.mask_bits
        assert mask_digest(bits) == found.mask_digest
        mask, method = mask_of(workshop, bits), methods[name]
        if method.counts_of is None and method.pattern == "unstructured":
            kept = kept_counts(workshop.structure, kind, 0.5, method.allocation or "uniform")
            sections = [int(part.sum()) for part in split_sections(workshop.structure, kind, mask)]
            assert (sections if len(kept) == len(sections) else [sum(sections)]) == list(kept), name
        assert found.remains == remains(workshop.structure, kind, mask)
        if kind == "weight":  # a compact network has no place for what is gone
            weights, keep = weights_of(workshop, found), keep_of(workshop, mask)
            assert all((weights[n][keep[n] == 0] == 0).all() for n in keep), name
            assert any((keep[n] == 0).any() for n in keep if n.endswith("bias")) == are_biases_pruned
            assert found.remains.n_params == sum(int(part.sum()) for part in keep.values())
        elif method.when == "during":
            assert_nodes_are_gone(workshop, found.result.parameters, mask)
            assert found.columns["density_prunable"] == pytest.approx(1 - found.remains.weight_sparsity)
            assert found.columns["n_dead_units"] == 0
        if method.when == "during":
            assert 0 < found.columns["mask_overlap"] <= 1
            assert 0 < found.columns["exploration_rate"] <= 1


def assert_nodes_are_gone(workshop, parameters, mask):
    """All trained weights of the nodes that a node mask removes are zero."""
    layout = Layout.of(workshop.structure)
    trained = parameters[None, : layout.trained_width]
    keep = torch.ones_like(trained)
    Nodes(workshop.structure, layout).write(torch.from_numpy(mask)[None], keep)
    assert not trained[keep == 0].any()


#: Scores of a training step, and all that are taken on examples of their own.
ON_EXAMPLES = [name for name, row in SCORES.items() if row.reads_examples_in_training]


@pytest.mark.parametrize(
    ("score", "kind"),
    [
        *((score, "node") for score in ("magnitude", "l1", "lamp")),
        *((score, kind) for score in ON_EXAMPLES for kind in SCORES[score].kinds),
    ],
)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_what_leaves_in_training_at_one_step_is_what_is_cut_after_it(score, kind, allocation, blobs):
    """The same counts and entries, on the same examples: those cut at once from a network trained as long."""
    options = {"skip_width": 11, "hidden_width": 5, "depth": 2, "lift": "fixed"}
    schedule = replace(RECIPE.schedule, steps=12)
    workshop = workshop_of(blobs, model="hourglass", model_options=options, schedule=schedule, mask_kind=kind)
    during = Pruning(
        "during", update="gradual", score=score, allocation=allocation, begin_fraction=1.0, end_fraction=1.0
    )
    orders = [LaneOrder(Candidate(0, s, "masked", method=during)) for s in (0.5, 0.75)]
    (parent,) = train(workshop, [cut_at(0.5, 0.75, score=score, allocation=allocation)]).values()
    for order, cut in zip(orders, parent.derived, strict=True):
        (found,) = train(workshop, [order]).values()
        assert found.outcome == "completed", found.error
        assert found.mask_digest == cut.digest
        assert found.remains == cut.remains


#: Passes that each update takes of a score; all others rank by what a training step has at hand.
PASSES_OF_AN_UPDATE = {
    "grasp": 3 * N_PROBE,
    "synflow": 1,
    "fisher": 2 * N_PROBE,
    "apoz": N_PROBE / 3,
    "mean_activation": N_PROBE / 3,
}


@pytest.mark.parametrize("kind", ["node", "weight"])
def test_every_score_ranks_in_training_and_pays_for_its_passes(kind, blobs):
    """Tensors that are not trained among them; the random ranking ends where random pruning begins."""
    options = {"skip_width": 11, "hidden_width": 5, "depth": 2, "lift": "fixed"}
    workshop = workshop_of(blobs, model="hourglass", model_options=options, mask_kind=kind)
    # Of 30 steps after those numbered 3, 8, 13, 18 and 22.
    usual = replace(PRUNERS["gmp"].for_masks(kind), allocation="uniform", every=5)
    names = [name for name, row in SCORES.items() if kind in row.kinds]
    orders = {name: LaneOrder(Candidate(0, 0.5, "masked", method=replace(usual, score=name))) for name in names}
    found = train(workshop, list(orders.values()))
    counts = kept_counts(workshop.structure, kind, 0.5, "uniform")
    digests = {name: found[order.candidate].mask_digest for name, order in orders.items()}
    for name, order in orders.items():
        trained = found[order.candidate]
        assert (trained.outcome, trained.error) == ("completed", None), name
        at_updates = 5 * PASSES_OF_AN_UPDATE.get(name, 0)
        assert trained.ranking_passes == pytest.approx(at_updates)
        assert trained.passes == pytest.approx(found[orders["magnitude"].candidate].passes + at_updates)
        parts = split_sections(workshop.structure, kind, mask_of(workshop, trained.mask_bits))
        assert tuple(int(part.sum()) for part in parts) == counts
    # Within layers l1 and lamp rank weights as magnitude does, and taylor as snip.
    unlike = ["random", "magnitude", "movement", "first_order_movement", "snip", "gradient_norm", "grasp", "synflow"]
    unlike += ["fisher", *(["apoz", "mean_activation"] if kind == "node" else [])]
    assert len({digests[name] for name in unlike}) == len(unlike)
    at_once = LaneOrder(Candidate(0, 0.5, "masked", method=Pruning("init", score="random", allocation="uniform")))
    assert train(workshop, [at_once])[at_once.candidate].mask_digest == digests["random"]


@pytest.mark.parametrize(("score", "kind"), [(score, kind) for score in ON_EXAMPLES for kind in SCORES[score].kinds])
def test_lanes_of_several_replicates_are_each_ranked_on_examples_of_their_own(score, kind, blobs):
    """Also beside one that diverges, whose scores are no numbers any more."""
    method = replace(PRUNERS["gmp"].for_masks(kind), score=score, every=4)
    orders = [LaneOrder(Candidate(replicate, 0.5, "masked", method=method)) for replicate in (2, 0, 1)]
    found = train(workshop_of(blobs, mask_kind=kind), orders)
    assert len({one.seconds for one in found.values()}) == 1  # those of one pack
    alone = workshop_of(blobs, mask_kind=kind)
    for order in orders:
        assert_same(found[order.candidate], train(alone, [order])[order.candidate])
    workshop = workshop_of(blobs, mask_kind=kind)
    workshop._replicate(0).parent["layers.0.weight"].view(-1)[0] = torch.nan
    workshop._replicate(0).weights["layers.0.weight"].flat[0] = np.nan
    beside = train(workshop, orders)
    assert beside[orders[1].candidate].outcome == "diverged"
    for order in (orders[0], orders[2]):
        assert_same(beside[order.candidate], found[order.candidate])


def test_a_candidate_that_ends_early_pays_for_the_updates_that_it_came_to(blobs):
    workshop = workshop_of(blobs, hyper=Hyperparameters(lr=1e30), schedule=replace(RECIPE.schedule, optimizer="sgd"))
    rule = Pruning("during", update="gradual", score="grasp", begin_fraction=0.1, every=5)
    (found,) = train(workshop, [LaneOrder(Candidate(0, 0.5, "masked", method=rule))]).values()
    assert (found.outcome, found.error, found.result.steps) == ("diverged", None, EVERY)
    # After the steps numbered 3 and 8, of the first 12; masks are scored, and one validation point is reached.
    assert found.ranking_passes == 2 * 3 * N_PROBE
    assert found.passes == pytest.approx(EVERY * BATCH + (N_PROBE + N_VALIDATION) / 3 + 2 * 3 * N_PROBE)


@pytest.mark.parametrize("method", ["gmp", "set", "rigl", "edge_popup"])
@pytest.mark.parametrize("family", ["conv1d", "hourglass"])
def test_a_network_whose_nodes_change_is_worth_what_its_compact_copy_is(family, method, blobs):
    """Fixed tensors too: what is not trained stays for nodes that may come back, and shows nowhere."""
    options = {**oracle.SMALL[family], **({"lift": "fixed"} if family == "hourglass" else {})}
    workshop = workshop_of(blobs, model=family, model_options=options)
    rule = replace(PRUNERS[method].for_masks("node"), drop_fraction=0.5, every=0 if method == "edge_popup" else 3)
    (found,) = train(workshop, [LaneOrder(Candidate(0, 0.5, "masked", method=rule))]).values()
    assert found.outcome == "completed", found.error
    assert "error" not in found.columns
    mask = mask_of(workshop, found.mask_bits)
    assert_nodes_are_gone(workshop, found.result.parameters, mask)
    assert found.columns["density_prunable"] == pytest.approx(1 - found.remains.weight_sparsity)
    whole = Layout.of(workshop.structure).views(found.result.parameters[None])
    compact = oracle.compact_weights(workshop.structure, {n: v[0] for n, v in whole.items()}, mask)
    logits = oracle.logits(family, compact, workshop._test.x)
    loss = torch.nn.functional.cross_entropy(logits, workshop._test.labels)
    assert found.test_loss == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize("method", ["gmp", "set", "rigl"])
def test_a_network_that_diverges_while_its_nodes_change_is_told_so(method, blobs):
    schedule = replace(RECIPE.schedule, optimizer="sgd")
    workshop = workshop_of(blobs, schedule=schedule, hyper=Hyperparameters(lr=1e30))
    order = LaneOrder(Candidate(0, 0.5, "masked", method=PRUNERS[method].for_masks("node")))
    (found,) = train(workshop, [order]).values()
    assert (found.outcome, found.error) == ("diverged", None)
    kept = mask_of(workshop, found.mask_bits)
    assert all(part.any() for part in split_sections(workshop.structure, "node", kept))


def test_a_mask_that_is_scored_pays_for_its_scores(blobs):
    workshop = workshop_of(blobs, mask_kind="weight")
    train_passes = STEPS * BATCH + (N_PROBE + N_POINTS * N_VALIDATION + N_TEST) / 3
    for name, scoring in (("snip", N_PROBE), ("grasp", 3 * N_PROBE), ("random_erk", 0), ("set", 0), ("gmp", 0)):
        order = LaneOrder(Candidate(0, 0.5, "masked", method=PRUNERS[name].method))
        (found,) = train(workshop, [order]).values()
        assert found.passes == pytest.approx(scoring + train_passes, rel=1e-12), name


# Controls.


@pytest.mark.parametrize("kind", ["node", "weight"])
@pytest.mark.parametrize("arm", ["snip", "random_erk", "set", "gmp"])
def test_controls_change_one_thing_alone(kind, arm, blobs):
    workshop = workshop_of(blobs, mask_kind=kind)
    if kind not in PRUNERS[arm].kinds:
        return
    order = LaneOrder(Candidate(0, 0.5, "masked", method=PRUNERS[arm].for_masks(kind)))
    (found,) = train(workshop, [order]).values()
    source = mask_of(workshop, found.mask_bits)
    orders = {
        control: LaneOrder(Candidate(0, 0.5, "masked", mask=found.mask_digest, control=control), found.mask_bits)
        for control in ("shuffled_layers", "shuffled", "fresh_weights")
    }
    results = train(workshop, list(orders.values()))
    jobs = {control: _Job(order) for control, order in orders.items()}
    lanes = {control: workshop._lanes([job])[0] for control, job in jobs.items()}
    sizes = workshop.structure.section_sizes(kind)
    counts = [int(part.sum()) for part in split_sections(workshop.structure, kind, source)]
    expected = random_overlap(sizes, counts)
    for control, order in orders.items():
        trained = results[order.candidate]
        assert trained.outcome == "completed"
        mask = jobs[control].mask
        found_counts = [int(part.sum()) for part in split_sections(workshop.structure, kind, mask)]
        if control == "fresh_weights":
            assert (mask == source).all()
            assert trained.mask_digest == found.mask_digest
            continue
        # Other positions, about as many in common as chance gives.
        assert trained.mask_digest not in (None, found.mask_digest)
        common = int((mask & source).sum())
        assert common < mask.sum()
        assert abs(common - expected) < 5 * np.sqrt(expected) + 1
        assert sum(found_counts) == sum(counts)
        if control == "shuffled_layers":
            assert found_counts == counts
    assert (jobs["shuffled"].mask != jobs["shuffled_layers"].mask).any()
    # The weights: those of the parent where the mask alone is another, and none of them where the weights are.
    weights = initial(workshop)
    for control, lane in lanes.items():
        views = lane.layout.views(lane.flat)
        if kind == "node":
            own = oracle.compact_weights(workshop.structure, weights, jobs[control].mask)
        else:
            own = {n: w * keep_of(workshop, jobs[control].mask)[n] for n, w in weights.items()}
        prunable = [t.name for t in workshop.structure.prunable]
        if control == "fresh_weights":
            assert not any((views[n][0][own[n] != 0] == own[n][own[n] != 0]).any() for n in prunable)
        else:
            assert all(torch.equal(views[n][0], own[n]) for n in own)
    # ... and drawn alike wherever they are drawn.
    again = workshop_of(blobs, mask_kind=kind, lanes_at_once=1)
    for candidate, trained in train(again, list(orders.values())[::-1]).items():
        assert_same(trained, results[candidate])


@pytest.mark.parametrize("kind", ["node", "weight"])
@pytest.mark.parametrize("control", ["shuffled_layers", "shuffled", "small_dense"])
def test_arms_that_keep_equally_many_have_controls_of_their_own(kind, control, blobs):
    """Two arms' controls were the same network, trained twice, if all that counts were the counts of their masks."""
    workshop = workshop_of(blobs, mask_kind=kind)
    network = "small_dense" if control == "small_dense" else "masked"
    bits = [pack_bits(mask).tobytes() for mask in workshop.draw_masks(0, 0.5, 0, 2)]
    orders = [LaneOrder(Candidate(0, 0.5, network, mask=mask_digest(b), control=control), b) for b in bits]
    flats = [workshop._lanes([_Job(order)])[0].flat for order in (*orders, orders[0])]
    assert flats[0].shape == flats[1].shape
    assert not torch.equal(flats[0], flats[1])
    assert torch.equal(flats[0], flats[2])  # and the same for the same mask, whoever asks
    results = train(workshop, orders)
    assert len({results[order.candidate].test_loss for order in orders}) == 2


def random_overlap(sizes, counts):
    """How many entries two independent masks of these counts have in common, on average."""
    return sum(k * k / n for n, k in zip(sizes, counts, strict=True))


def test_a_shuffled_pattern_is_one_and_other(blobs):
    workshop = workshop_of(blobs, mask_kind="weight")
    method = PRUNERS["nm_2_4"].method
    (parent,) = train(workshop, [cut_at(0.5, pattern="2:4")]).values()
    (derived,) = parent.derived
    candidate = Candidate(
        0, 0.5, "masked", mask=derived.digest, control="shuffled_layers", method=Pruning("trained", pattern="2:4")
    )
    job = _Job(LaneOrder(candidate, derived.bits))
    workshop._lanes([job])
    assert method.pattern == "2:4"
    assert (job.mask != mask_of(workshop, derived.bits)).any()
    for tensor, part in zip(
        workshop.structure.prunable, split_sections(workshop.structure, "weight", job.mask), strict=True
    ):
        n_whole = tensor.shape[1] // 4 * 4
        groups = part.reshape(tensor.shape)[:, :n_whole].reshape(tensor.shape[0], -1, 4)
        assert (groups.sum(axis=2) == 2).all()


def test_dense_budget_trains_the_parent_for_as_long_as_it_is_told(blobs):
    workshop = workshop_of(blobs)
    long = Candidate(0, 0.5, "parent", steps=2 * STEPS + 5)
    results = train(workshop, [LaneOrder(long), LaneOrder(PARENT), LaneOrder(Candidate(0, 0.9, "parent", steps=STEPS))])
    _, validation, test = by_plain_torch(workshop, blobs, initial(workshop), None, 2 * STEPS + 5)
    assert_results(results[long], validation, test)
    assert results[long].result.steps == 2 * STEPS + 5
    assert results[long].remains == results[PARENT].remains
    assert results[Candidate(0, 0.9, "parent", steps=STEPS)].test_loss == pytest.approx(
        results[PARENT].test_loss, abs=1e-6
    )


# Scoring.


@pytest.mark.parametrize(("kind", "allocation"), KINDS)
def test_scores_belong_to_the_masks_number_by_number(kind, allocation, blobs):
    workshop = workshop_of(blobs, mask_kind=kind, allocation=allocation)
    whole = workshop.score(0, 0.5, 0, 9)
    parts = [workshop_of(blobs, mask_kind=kind, allocation=allocation).score(0, 0.5, a, b) for a, b in ((0, 4), (4, 9))]
    masks = workshop.draw_masks(0, 0.5, 0, 9)
    assert whole.digests == [d for part in parts for d in part.digests] == [mask_digest(b) for b in pack_bits(masks)]
    assert whole.remains == [r for part in parts for r in part.remains]
    assert whole.remains == [remains(workshop.structure, kind, mask) for mask in masks]
    joined = np.concatenate([part.scores.initial_loss for part in parts])
    np.testing.assert_allclose(joined, whole.scores.initial_loss, atol=1e-5)


@pytest.mark.parametrize(("kind", "allocation"), KINDS)
def test_masks_come_from_seed_replicate_and_level_alone(kind, allocation, blobs):
    workshop = workshop_of(blobs, mask_kind=kind, allocation=allocation)
    for replicate, sparsity, level in ((0, 0.5, 500_000_000), (3, 0.9, 900_000_000)):
        expected = draw(
            workshop.structure.section_sizes(kind),
            kept_counts(workshop.structure, kind, sparsity, allocation),
            philox_key(9, "mask", replicate, level),
            start=2,
            stop=6,
        )
        assert (workshop.draw_masks(replicate, sparsity, 2, 6) == expected).all()


def test_the_probe_is_made_of_training_examples_and_the_scorer_sees_nothing_else(blobs):
    workshop, model = workshop_of(blobs), oracle.small_model("mlp")
    for replicate in (0, 2, 0):
        parts = split(blobs, validation_fraction=0.25, generator=generator(9, "split", replicate))
        training = Examples.of(blobs.x_train[parts.train_indices], blobs.y_train[parts.train_indices], 4, CPU)
        chosen = generator(9, "probe", replicate).permutation(N_TRAIN)[:N_PROBE]
        weights = initial_weights(workshop.structure, "kaiming", generator(9, "parent", replicate))
        parent = {n: torch.from_numpy(w) for n, w in weights.items()}
        masks = workshop.draw_masks(replicate, 0.5, 0, 5)
        expected = Scorer(model, parent, training.select(torch.from_numpy(chosen)), kind="node").score(masks)
        found = workshop.score(replicate, 0.5, 0, 5).scores
        np.testing.assert_allclose(found.initial_loss, expected.initial_loss, atol=1e-6)


def test_a_candidate_scores_before_training_what_its_mask_scored(blobs):
    workshop = workshop_of(blobs)
    scored = workshop.score(0, 0.5, 0, 4).scores
    for i, trained in enumerate(train(workshop, [drawn(i) for i in range(4)]).values()):
        assert trained.scores[0] == pytest.approx(scored.initial_loss[trained.candidate.draw], abs=1e-5)
        assert trained.scores[1] == pytest.approx(scored.scalefree_loss[i], abs=1e-5)


@pytest.mark.slow
def test_another_process_with_more_threads_trains_the_same(blobs, tmp_path):
    np.savez(tmp_path / "blobs.npz", **{n: getattr(blobs, n) for n in ("x_train", "y_train", "x_test", "y_test")})
    code = (
        "import json, sys, torch, numpy as np\n"
        "from sparsefront.trainables.data import Dataset\n"
        "from tests.trainables import test_workshop as t\n"
        "torch.set_num_threads(2)\n"
        "data = Dataset.from_arrays('blobs', dict(np.load(sys.argv[1])), n_classes=4, source='', licence='')\n"
        "shop = t.workshop_of(data, lanes_at_once=2)\n"
        "rows = {repr(c): [r.test_loss, r.mask_digest] for c, r in t.train(shop, t.mixed_orders(shop)).items()}\n"
        "print(json.dumps(rows))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "blobs.npz")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    workshop = workshop_of(blobs)
    here = train(workshop, mixed_orders(workshop))
    there = json.loads(printed)
    assert set(there) == {repr(c) for c in here}
    for candidate, trained in here.items():
        loss, digest = there[repr(candidate)]
        assert digest == trained.mask_digest
        assert loss == pytest.approx(trained.test_loss, abs=1e-4)
