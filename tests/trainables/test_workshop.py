"""Workshop: a candidate's result is its own, whatever it is trained with and whatever becomes of the others."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.masks import draw, mask_digest, pack_bits, remains, remains_of
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables import workshop as workshop_module
from sparsefront.trainables.data import split
from sparsefront.trainables.models import build_model, initial_weights
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Examples, Schedule, batch_order
from sparsefront.trainables.pruning import pruned_mask
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.scoring import Scorer
from sparsefront.trainables.workshop import LaneOrder, Workshop
from tests.oracles import networks as oracle
from tests.oracles import spaces as slow

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


@pytest.fixture(scope="module", autouse=True)
def _shared_models():
    """Workshops of one model share its module, and with it the recordings of gradients: half a second each."""
    built = {}

    def build_once(name, options, *, input_shape, n_classes):
        key = (name, repr(options), input_shape, n_classes)
        if key not in built:
            built[key] = build_model(name, options, input_shape=input_shape, n_classes=n_classes)
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
        LaneOrder(PARENT),
        *(drawn(i) for i in range(3)),
        drawn(0, 0.75),
        LaneOrder(Candidate(0, 0.5, "small_dense")),
        LaneOrder(Candidate(0, 0.75, "small_dense")),
        stored(magnitude),
    ]


def train(workshop, orders, *, derive=()):
    """Trained by candidate; every candidate exactly once."""
    ended = [trained for batch in workshop.train(orders, derive=derive) for trained in batch]
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
    orders, derive = mixed_orders(together), [("magnitude", 0.5), ("magnitude", 0.75)]
    expected = train(together, orders, derive=derive)
    assert {t.outcome for t in expected.values()} == {"completed"}
    for at_once, shuffled in ((1, orders[::-1]), (3, orders[5:] + orders[:5])):
        other = workshop_of(blobs, mask_kind=kind, allocation=allocation, lanes_at_once=at_once)
        found = train(other, shuffled, derive=derive)
        for candidate, trained in expected.items():
            assert_same(found[candidate], trained)


@pytest.mark.parametrize("kind", ["node", "weight"])
@pytest.mark.parametrize("family", oracle.SMALL)
def test_a_candidate_is_what_plain_torch_makes_of_it(family, kind, blobs):
    """From the recipe's seeds to the test loss, with nothing of the product but its draws."""
    workshop = workshop_of(blobs, model=family, model_options=oracle.SMALL[family], mask_kind=kind)
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
    orders = [drawn(0), LaneOrder(PARENT), drawn(1)]
    results = train(workshop, orders, derive=[("magnitude", 0.5), ("magnitude", 0.9)])
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
        assert (derived.criterion, derived.target_sparsity) == ("magnitude", sparsity)
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
    results = train(
        workshop_of(blobs, hyper=hyper), [drawn(0), drawn(1), LaneOrder(PARENT)], derive=[("magnitude", 0.5)]
    )
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
