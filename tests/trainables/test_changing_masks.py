"""Candidates of a search whose masks change while they train: as a study of masks trains them, whole or in segments."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsefront.errors import SpaceError
from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.schedules import cubic
from sparsefront.trainables.checkpoints import OnTheWay, read_checkpoint, write_checkpoint
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.pruning import SCORES
from sparsefront.trainables.segments import LaneSpec, SegmentShop
from sparsefront.trainables.workshop import LaneOrder, Workshop
from tests.trainables.test_networks import UNLIKE, networks_of, recipe_of, settings_of
from tests.trainables.test_segments import run

CPU = torch.device("cpu")
STEPS, EVERY, BATCH = 40, 16, 32
N_VALIDATION, N_TEST = 60, 80
TOLERANCE = 1e-4

DURING = [name for name, row in PRUNERS.items() if row.method.when == "during"]
METHODS = {name: PRUNERS[name].method for name in DURING}
NODES = {"masks.kind": "node", "masks.allocation": "uniform"}


@pytest.fixture
def shop_of(blobs, tmp_path):
    def make(family="mlp", folder="checkpoints", every_s=math.inf, **more):
        own = {"schedule": Schedule(more.pop("optimizer", "adam"), STEPS, BATCH, EVERY), "methods": METHODS}
        recipe = recipe_of(family, **{**own, **more})
        return SegmentShop(recipe, blobs, CPU, tmp_path / folder, checkpoint_every_s=every_s)

    return make


def whole(shop, settings, replicate=0):
    return run(shop, [LaneSpec("a", settings, 0, STEPS)], replicate)["a"]


def in_a_study_of_masks(shop, blobs, settings, replicate):
    """The same candidate as the workshop trains it, from the same initial weights."""
    network = shop.networks.describe(replicate, settings)
    own = {k.removeprefix("model."): v for k, v in settings.items() if k.startswith("model.")}
    recipe = replace(
        shop.recipe,
        hyper=network.hyper,
        model_options=shop.recipe.model_options | own,
        mask_kind=network.mask_kind,
        allocation=settings.get("masks.allocation", "uniform"),
    )
    workshop = Workshop(recipe, blobs, CPU)
    weights = shop.networks.initial(network.architecture, replicate)
    state = replace(
        workshop._replicate(replicate),
        weights=dict(weights),
        parent={name: torch.from_numpy(w) for name, w in weights.items()},
    )
    workshop._replicate = lambda number: state if number == replicate else pytest.fail("another replicate")
    candidate = Candidate(replicate, network.sparsity, "masked", method=network.changing.method)
    (one,) = [t for ended in workshop.train([LaneOrder(candidate)]) for t in ended]
    assert one.outcome == "completed", one.error
    return one


#: Every score with every kind of mask that it is of, and those that are taken at updates, on examples of their own.
RANKED = [
    (score, masks)
    for score, row in SCORES.items()
    for masks in ({}, NODES)
    if masks.get("masks.kind", "weight") in row.kinds
]
SCORED = [(score, masks) for score, masks in RANKED if SCORES[score].reads_examples_in_training]
#: Updates of the 40 steps, and where they are.
EVERY_8 = {"gmp": replace(METHODS["gmp"], every=8)}
UPDATES_AT = (4, 12, 20, 28, 30)
scored_in_training = pytest.mark.parametrize(("score", "masks"), SCORED)


CASES = [
    *(pytest.param(name, "mlp", {}, id=name) for name in DURING),
    *(pytest.param(name, "mlp", NODES, id=f"{name}, nodes") for name in DURING),
    pytest.param("gmp", "conv1d", {"masks.allocation": "global"}, id="a convolution"),
    pytest.param("rigl", "conv1d", NODES, id="channels"),
    *(pytest.param(name, "hourglass", {}, id=f"{name}, blocks") for name in ("gmp", "set")),
    *(pytest.param(name, "hourglass", NODES, id=f"{name}, nodes of blocks") for name in DURING),
    pytest.param("edge_popup", "residual_mlp", {"masks.allocation": "erk"}, id="an allocation of its own"),
    *(pytest.param(name, "conv1d", {"masks.pattern": "2:4"}, id=f"{name}, N:M") for name in DURING),
    *(pytest.param(name, "mlp", {"masks.pattern": "2x2"}, id=f"{name}, blocks of weights") for name in DURING),
    pytest.param(
        "gmp",
        "mlp",
        {"masks.begin_fraction": 0.3, "masks.end_fraction": 0.5, "masks.every": 3, "masks.power": 1.0},
        id="a schedule of its own",
    ),
    *(
        pytest.param(name, "mlp", {"masks.every": 5, "masks.drop_fraction": 0.6}, id=f"{name}, a schedule of its own")
        for name in ("set", "rigl")
    ),
    *(
        pytest.param(
            "gmp", family, {"masks.score": score, **masks}, id=f"{score}, {family}{', nodes' if masks else ''}"
        )
        for family, ranked in (("mlp", RANKED), ("hourglass", [("movement", NODES), *SCORED]))
        for score, masks in ranked
    ),
]


@pytest.mark.parametrize(("name", "family", "masks"), CASES)
def test_it_is_that_of_a_study_of_masks(name, family, masks, shop_of, blobs):
    """Same masks, same losses, same cost; what is left in the end is known before."""
    shop = shop_of(family)
    settings = settings_of(
        UNLIKE[family][1], {"masks.method": name, "masks.sparsity": 0.6, "training.lr": 0.01, **masks}
    )
    expected, result = in_a_study_of_masks(shop, blobs, settings, 1), whole(shop, settings, 1)
    assert result.outcome == "completed", result.error
    assert (result.mask_digest, result.mask_kind) == (expected.mask_digest, masks.get("masks.kind", "weight"))
    assert result.remains == expected.remains
    assert result.val_loss == pytest.approx(expected.result.val_loss, abs=TOLERANCE)
    assert result.test_loss == pytest.approx(expected.test_loss, abs=TOLERANCE)
    for column in ("mask_overlap", "exploration_rate", "density_prunable", "n_dead_units", "effective_params"):
        assert result.columns[column] == pytest.approx(expected.columns[column]), column
    network = shop.networks.describe(1, settings)
    left = result.remains
    assert (network.n_params, network.weight_sparsity) == (left.n_params, left.weight_sparsity)
    if masks.get("masks.allocation") != "global":
        assert network.macs == left.macs
    assert result.passes == pytest.approx(expected.passes - shop.recipe.probe_size / 3)
    # Of weights the number that is left falls as the schedule says; nodes that come and go take the whole parent.
    sparsity, parent = network.sparsity, network.structure.macs

    def macs_at(density):
        share = 1.0 if masks.get("masks.kind") == "node" else (density - (1 - sparsity)) / sparsity
        return network.macs + (parent - network.macs) * share

    density = network.changing.method.mean_density(sparsity, steps=STEPS, taken=STEPS)
    assert (density > 1 - sparsity) == (name == "gmp")
    # From the fifth step to the thirtieth, one update after each: what is left then is what was before it.
    ranked = np.mean([1 - cubic(step - 1, begin=4, end=30, every=1, final=sparsity) for step in range(4, 31)])
    passes = macs_at(density) * STEPS * BATCH + macs_at(ranked) * expected.ranking_passes
    assert result.flops == pytest.approx(6 * passes, rel=0.2)


def settings_for(name, **more):
    return {"masks.method": name, "masks.sparsity": 0.6, "training.lr": 0.02, **more}


@scored_in_training
def test_scores_at_updates_cost_the_same_in_segments_and_each_as_much_as_is_left(score, masks, shop_of):
    """A segment pays for its own updates, at the size that the network has at each; no checkpoint knows of them."""
    shop = shop_of(methods=EVERY_8)
    settings = settings_for("gmp", **masks, **{"masks.score": score})
    plain = settings_for("gmp", **masks)
    each = {"grasp": 3 * 8, "synflow": 1, "fisher": 2 * 8, "apoz": 8 / 3, "mean_activation": 8 / 3}[score]
    checkpoints = {}
    for start, stop in itertools.pairwise((0, 12, 21, STEPS)):  # before an update, after one
        specs = {s: {**settings, "masks.score": s} for s in (score, "magnitude")}
        found = {s: run(shop, [LaneSpec(s, own, start, stop, checkpoints.get(s))])[s] for s, own in specs.items()}
        checkpoints = {s: one.checkpoint for s, one in found.items()}
        updates = [step for step in UPDATES_AT if start <= step < stop]
        assert found[score].passes == pytest.approx(found["magnitude"].passes + each * len(updates))
        parent = shop.networks.describe(0, plain).structure
        # Before the update; each weight is one multiply-accumulate, and nodes that go take the whole parent.
        left = [1.0 if masks else 1 - cubic(step - 1, begin=4, end=30, every=8, final=0.6) for step in updates]
        macs = parent.macs * sum(left)
        assert found[score].flops == pytest.approx(found["magnitude"].flops + 6 * each * macs, rel=1e-3)
        if stop < STEPS:
            parts = {s: read_checkpoint(shop._folder, name, [s])[s].parts.keys() for s, name in checkpoints.items()}
            assert parts[score] == parts["magnitude"]
    one = whole(shop_of(methods=EVERY_8), settings)
    assert (one.mask_digest, one.val_loss, one.outcome) == (
        found[score].mask_digest,
        found[score].val_loss,
        "completed",
    )


@scored_in_training
def test_scores_at_updates_are_of_the_lane_alone(score, masks, shop_of):
    """Beside lanes of other sparsities and rates, and one that diverges; cut off and gone on with."""
    more = {"a": (0.4, 0.003), "bad": (0.5, 1e30), "b": (0.6, 0.02), "c": (0.85, 0.01)}
    specs = [
        LaneSpec(
            i,
            settings_for("gmp", **masks, **{"masks.score": score, "masks.sparsity": s, "training.lr": lr}),
            0,
            STEPS,
        )
        for i, (s, lr) in more.items()
    ]
    results = run(shop_of(methods=EVERY_8), specs)
    assert results["bad"].outcome == "diverged"
    for spec in specs:
        if spec.id == "bad":
            continue
        (one,) = run(shop_of(methods=EVERY_8), [spec]).values()
        other = results[spec.id]
        assert (other.outcome, other.mask_digest, other.passes) == ("completed", one.mask_digest, one.passes)
        assert other.flops == pytest.approx(one.flops)
        assert other.val_loss == pytest.approx(one.val_loss, abs=TOLERANCE)
    shop = shop_of(methods=EVERY_8, every_s=0.0, folder="cut off")
    training = shop.train(specs[2:3], 0)
    for _ in range(3):  # what is no network, and two validation points
        next(training)
    training.close()
    again = run(shop_of(methods=EVERY_8, folder="cut off"), specs[2:3])["b"]
    assert (again.mask_digest, again.outcome) == (results["b"].mask_digest, "completed")
    assert again.passes == pytest.approx(results["b"].passes)
    assert again.flops == pytest.approx(results["b"].flops)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("kind", ["weight", "node"])
@pytest.mark.parametrize("name", DURING)
def test_segments_are_the_whole_bit_for_bit(name, kind, optimizer, shop_of):
    """A checkpoint carries the mask, the optimiser, and all that updates go on from, or scores in training."""
    settings = settings_for(name, **(NODES if kind == "node" else {}))
    if (name, optimizer) == ("gmp", "sgd"):
        settings["masks.score"] = "snip"
    one, parts, start, checkpoint = whole(shop_of(optimizer=optimizer), settings), [], 0, None
    for stop in (13, 21, STEPS):
        # In a shop of its own: nothing but the checkpoint is known.
        (result,) = run(shop_of(optimizer=optimizer), [LaneSpec("a", settings, start, stop, checkpoint)]).values()
        parts.append(result)
        start, checkpoint = stop, result.checkpoint
    last = parts[-1]
    assert [r.outcome for r in parts] == [None, None, "completed"]
    assert (last.mask_digest, last.remains, last.val_loss) == (one.mask_digest, one.remains, one.val_loss)
    assert last.test_loss == one.test_loss
    assert {k: last.columns[k] for k in ("mask_overlap", "exploration_rate")} == {
        k: one.columns[k] for k in ("mask_overlap", "exploration_rate")
    }
    if name == "gmp":  # on its way: less sparse at a rung than in the end
        assert parts[0].remains.weight_sparsity < last.remains.weight_sparsity
    else:
        assert len({r.remains.n_params for r in parts}) == 1
    n_more = 3 - 1  # validation points: two ends of segments, of which none is one of the whole training
    assert sum(r.passes for r in parts) == pytest.approx(one.passes + n_more * N_VALIDATION / 3)
    # Training costs the same in any parts; what is validated more is an example of the size that it has then.
    extra = (sum(r.flops for r in parts) - one.flops) / (6 * n_more * N_VALIDATION / 3)
    parent = shop_of().networks.describe(0, settings).structure.macs
    if kind == "node":
        assert extra == pytest.approx(parent)
    else:
        assert one.remains.macs <= extra * (1 + 1e-6) < parent


@pytest.mark.parametrize("masks", [{}, NODES], ids=["weights", "nodes"])
@pytest.mark.parametrize("name", DURING)
def test_what_is_not_trained_is_no_part_of_a_checkpoint_and_goes_on(name, masks, shop_of, blobs):
    options = {"skip_width": 11, "hidden_width": 5, "depth": 3, "lift": "fixed"}
    settings = settings_of(options, settings_for(name, **masks))
    shop = shop_of("hourglass")
    expected, one = in_a_study_of_masks(shop, blobs, settings, 1), whole(shop, settings, 1)
    assert (one.mask_digest, one.remains) == (expected.mask_digest, expected.remains)
    first = run(shop, [LaneSpec("a", settings, 0, 21)], 1)["a"]
    rest = run(shop, [LaneSpec("a", settings, 21, STEPS, first.checkpoint)], 1)["a"]
    assert (rest.mask_digest, rest.val_loss) == (one.mask_digest, one.val_loss)


def unlike():
    """Candidates of every rule, of several sizes, sparsities and kinds, beside one of a drawn mask and one dense."""
    sizes = itertools.cycle(UNLIKE["mlp"])
    masks = [
        *(settings_for(name) for name in DURING),
        *(settings_for(name, **NODES) for name in DURING),
        settings_for("gmp", **{"masks.sparsity": 0.8}),
        settings_for("random"),
        settings_for("gmp", **{"masks.sparsity": 0.0}),
    ]
    return {f"c{i}": settings_of(size, m) for i, (size, m) in enumerate(zip(sizes, masks, strict=False))}


def test_packs_of_unlike_candidates_are_each_alone(shop_of):
    alone = {name: whole(shop_of(), settings) for name, settings in unlike().items()}
    together = run(shop_of(), [LaneSpec(name, settings, 0, STEPS) for name, settings in unlike().items()])
    for name, one in alone.items():
        other = together[name]
        assert (one.outcome, other.outcome) == ("completed", "completed"), other.error
        assert (other.mask_digest, other.remains) == (one.mask_digest, one.remains)
        assert other.val_loss == pytest.approx(one.val_loss, abs=TOLERANCE)


@pytest.mark.parametrize("name", DURING)
def test_lanes_of_one_rule_share_a_pack_and_are_each_alone(name, shop_of):
    """Also beside one that diverges and leaves."""
    rates = {"a": 0.003, "b": 0.02, "bad": 1e30}
    specs = [LaneSpec(i, settings_for(name, **{"training.lr": lr}), 0, STEPS) for i, lr in rates.items()]
    results = run(shop_of(), specs)
    if name != "edge_popup":  # whose weights stay
        assert results["bad"].outcome == "diverged"
    assert results["a"].seconds == results["b"].seconds  # those of one pack
    for spec in specs[:2]:
        (one,) = run(shop_of(), [spec]).values()
        assert (one.mask_digest, one.passes, one.flops) == tuple(
            getattr(results[spec.id], key) for key in ("mask_digest", "passes", "flops")
        )
        assert one.val_loss == pytest.approx(results[spec.id].val_loss, abs=TOLERANCE)


@pytest.mark.parametrize("masks", [{}, NODES, {"masks.allocation": "global"}, {"masks.pattern": "2x2"}], ids=str)
@pytest.mark.parametrize("name", DURING)
def test_lanes_of_unlike_sparsities_share_a_pack_and_are_each_alone(name, masks, shop_of):
    """Also where one leaves on the way, and over segments."""
    sparsities = {"a": 0.4, "bad": 0.5, "b": 0.6, "c": 0.85}
    specs = [
        LaneSpec(
            i,
            settings_for(name, **{"masks.sparsity": s, "training.lr": 1e30 if i == "bad" else 0.01}, **masks),
            0,
            STEPS,
        )
        for i, s in sparsities.items()
    ]
    results = run(shop_of(), specs)
    good = [spec for spec in specs if spec.id != "bad"]
    assert len({results[spec.id].seconds for spec in good}) == 1  # those of one pack
    assert len({results[spec.id].remains.n_params for spec in good}) == 3
    first = run(shop_of(), [replace(spec, stop_step=21) for spec in specs])
    rest = [replace(spec, start_step=21, checkpoint=first[spec.id].checkpoint) for spec in good]
    second = run(shop_of(), rest)
    for spec in good:
        (one,) = run(shop_of(), [spec]).values()
        for other in (results[spec.id], second[spec.id]):
            assert (other.outcome, other.mask_digest, other.remains) == ("completed", one.mask_digest, one.remains)
            assert other.val_loss == pytest.approx(one.val_loss, abs=TOLERANCE)
        assert results[spec.id].flops == pytest.approx(one.flops)


@pytest.mark.parametrize("name", DURING)
def test_a_training_that_is_cut_off_goes_on_where_it_was(name, shop_of):
    spec = LaneSpec("a", settings_for(name), 0, STEPS)
    one = run(shop_of(folder="whole"), [spec])["a"]
    shop = shop_of(every_s=0.0)
    training = shop.train([spec], 0)
    for _ in range(3):  # what is no network, and two validation points
        next(training)
    training.close()
    assert next(OnTheWay(shop._folder, "a", STEPS).states()).step == 2 * EVERY
    again = run(shop_of(), [spec])["a"]
    assert (again.mask_digest, again.val_loss, again.passes) == (
        one.mask_digest,
        one.val_loss,
        pytest.approx(one.passes),
    )
    assert again.flops == pytest.approx(one.flops)


@pytest.mark.parametrize(("name", "score"), [*((name, {}) for name in DURING), ("gmp", {"masks.score": "grasp"})])
def test_what_is_trained_again_grows_its_data_as_it_did(name, score, shop_of):
    """The newest checkpoint is lost: from the one before, and if that is lost from the beginning."""
    settings, shop = settings_for(name, **score), shop_of()
    half = {**settings, "training.data_fraction": 0.5}
    first = run(shop, [LaneSpec("a", half, 0, 13)])["a"]
    second = run(shop, [LaneSpec("a", settings, 13, 21, first.checkpoint)])["a"]
    ends = ((13, first.checkpoint, 0.5), (21, second.checkpoint, 1.0))
    spec = LaneSpec("a", settings, 21, STEPS, second.checkpoint, ends)
    expected = run(shop, [spec])["a"]
    for lost in (second, first):
        (shop._folder / f"{lost.checkpoint}.safetensors").unlink()
        again = run(shop, [spec])["a"]
        assert (again.outcome, again.mask_digest, again.val_loss) == (
            "completed",
            expected.mask_digest,
            expected.val_loss,
        )
        assert again.passes > expected.passes
        assert again.flops > expected.flops


def test_a_checkpoint_without_its_mask_begins_anew(shop_of):
    settings, shop = settings_for("rigl"), shop_of()
    one, reached = whole(shop, settings), run(shop, [LaneSpec("a", settings, 0, 13)])["a"]
    (state,) = read_checkpoint(shop._folder, reached.checkpoint, ["a"]).values()
    assert {"weights", "keep", "first_keep", "ever_kept"} <= set(state.parts)
    kept = np.concatenate(
        [state.parts["keep"][t.name].ravel() for t in shop.networks.describe(0, settings).structure.prunable]
    )
    assert np.count_nonzero(kept) == len(kept) - round(reached.remains.weight_sparsity * len(kept))
    for part in ("keep", "weights"):
        parts = {name: arrays for name, arrays in state.parts.items() if name != part}
        name = write_checkpoint(shop._folder, {"a": replace(state, parts=parts)})
        anew = run(shop, [LaneSpec("a", settings, 13, STEPS, name)])["a"]
        assert (anew.mask_digest, anew.val_loss, anew.passes) == (one.mask_digest, one.val_loss, one.passes)


def test_schedules_make_candidates_of_their_own_where_they_are_read(shop_of):
    networks = shop_of().networks
    for name, read in (("gmp", "power"), ("set", "drop_fraction"), ("rigl", "end_fraction"), ("edge_popup", None)):
        base = settings_for(name)
        told = networks.cut(base)
        for field, value in (("power", 2.0), ("drop_fraction", 0.9), ("end_fraction", 0.5)):
            other = {**base, f"masks.{field}": value}
            method = networks.describe(0, other).changing.method
            assert (getattr(method, field) == value) == method.reads(field)
            assert (networks.cut(other) != told) == method.reads(field)
            same = networks.describe(0, other).shape.group == networks.describe(0, base).shape.group
            assert same != method.reads(field)  # packs are of one schedule
        assert read is None or networks.describe(0, base).changing.method.reads(read)


def test_draws_of_random_positions_differ_and_those_of_scores_do_not(shop_of):
    def digests(name):
        return {whole(shop_of(), settings_for(name, **{"masks.draw": draw})).mask_digest for draw in (0, 1)}

    assert [len(digests(name)) for name in ("set", "rigl", "gmp", "edge_popup")] == [2, 2, 1, 1]


def test_what_cannot_be_described_is_refused():
    networks = networks_of(methods=METHODS, sparsity=0.5)
    with pytest.raises(SpaceError, match=r"^masks\.allocation='global': leaves it to scores how many nodes a layer"):
        networks.describe(0, {"masks.method": "gmp", "masks.kind": "node", "masks.allocation": "global"})
    dense = networks.describe(0, {"masks.method": "gmp", "masks.sparsity": 0.0})
    assert (dense.changing, dense.mask_kind, dense.n_params) == (None, "none", dense.structure.n_params)
    groups = {networks.describe(0, settings_for("gmp", **{"training.steps": n})).shape.group for n in (50, 60)}
    assert len(groups) == 2


@pytest.mark.parametrize("masks", [{}, NODES], ids=["weights", "nodes"])
def test_scores_that_are_no_numbers_any_more_are_a_divergence(masks, shop_of):
    """No mask can be told of them, though the weights themselves are fixed; the neighbour loses nothing."""
    shop = shop_of()
    good, bad = (
        settings_of(UNLIKE["mlp"][0], {"masks.method": "edge_popup", "masks.sparsity": 0.5, "training.lr": lr, **masks})
        for lr in (0.01, 1e38)
    )
    alone, both = whole(shop, good), run(shop, [LaneSpec("a", good, 0, STEPS), LaneSpec("b", bad, 0, STEPS)])
    assert (alone.outcome, both["a"].outcome, both["b"].outcome) == ("completed", "completed", "diverged")
    assert whole(shop, bad).outcome == "diverged"
    assert both["a"].mask_digest == alone.mask_digest
