"""Pruning chains as candidates of a search: as a study of masks trains the same, packed or alone, in one go or not."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsefront.errors import SpaceError
from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.masks import mask_digest, pack_bits, remains
from sparsefront.spaces.pruning import Pruning
from sparsefront.trainables import segments
from sparsefront.trainables.checkpoints import OnTheWay, read_checkpoint, write_checkpoint
from sparsefront.trainables.networks import METHOD_FIELDS
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.segments import LaneSpec, SegmentShop
from sparsefront.trainables.workshop import CutOrder, LaneOrder, Workshop
from tests.trainables.test_networks import UNLIKE, networks_of, recipe_of, settings_of
from tests.trainables.test_segments import run

CPU = torch.device("cpu")
#: Steps of a level, and of its validation points.
STEPS, EVERY, BATCH = 20, 8, 32
N_TRAIN, N_VALIDATION, N_TEST = 180, 60, 80
TOLERANCE = 1e-4


@pytest.fixture
def shop_of(blobs, tmp_path):
    def make(family="mlp", method="imp", folder="checkpoints", every_s=math.inf, **more):
        schedule = Schedule(more.pop("optimizer", "adam"), STEPS, BATCH, EVERY, **more.pop("rates", {}))
        pruning, kind = PRUNERS[method].method, more.pop("kind", "weight")
        if kind == "node":  # whose sizes are to be known beforehand
            pruning = replace(pruning, allocation="uniform")
        allocation = pruning.allocation or "uniform"
        recipe = recipe_of(family, schedule=schedule, mask_kind=kind, allocation=allocation, pruning=pruning, **more)
        return SegmentShop(recipe, blobs, CPU, tmp_path / folder, checkpoint_every_s=every_s)

    return make


@pytest.mark.parametrize(("n_levels", "n_points"), [(1, 5), (2, 7)])  # one point in the level after those
def test_a_chain_that_is_cut_off_goes_on_at_its_level(n_levels, n_points, shop_of):
    """Alone, it leaves a checkpoint at the end of every level, at most so often; and pays for each level once."""
    settings = settings_of(UNLIKE["mlp"][0], CASES["rewind"])
    shop = shop_of(folder="whole")
    spec = LaneSpec("a", settings, 0, steps_of(shop, settings))
    whole = run(shop, [spec])["a"]
    shop = shop_of(every_s=0.0)
    training = shop.train([spec], 0)
    for _ in range(1 + n_points):
        next(training)
    training.close()
    steps = [s.step for s in OnTheWay(shop._folder, "a", spec.stop_step).states()]
    assert steps[0] == n_levels * STEPS
    again = run(shop_of(), [spec])["a"]
    assert (again.outcome, again.mask_digest) == ("completed", whole.mask_digest)
    assert again.curve_val_loss == pytest.approx(whole.curve_val_loss, abs=TOLERANCE)
    assert again.curve_step == whole.curve_step
    assert (again.passes, again.flops) == (pytest.approx(whole.passes), pytest.approx(whole.flops))


def steps_of(shop, settings):
    return shop.networks.describe(0, settings).steps


def level_by_level(shop, settings, replicate=0):
    """A chain whose every level is a segment: results of all."""
    results, checkpoint = [], None
    for start in range(0, steps_of(shop, settings), STEPS):
        (one,) = run(shop, [LaneSpec("a", settings, start, start + STEPS, checkpoint)], replicate).values()
        results.append(one)
        checkpoint = one.checkpoint
    return results


def in_a_study_of_masks(shop, blobs, settings, replicate=0, folder=None):
    """The same chain as the workshop trains it, from the same initial weights: results by level."""
    network = shop.networks.describe(replicate, settings)
    chain = network.chain
    own = {k.removeprefix("model."): v for k, v in settings.items() if k.startswith("model.")}
    recipe = replace(shop.recipe, pruning=None, hyper=network.hyper, model_options=shop.recipe.model_options | own)
    workshop = Workshop(recipe, blobs, CPU, folder)
    weights = shop.networks.build(network).weights
    state = replace(
        workshop._replicate(replicate),
        weights=dict(weights),
        parent={name: torch.from_numpy(w) for name, w in weights.items()},
    )
    workshop._replicate = lambda number: state if number == replicate else pytest.fail("another replicate")
    found, bits, checkpoint = [], None, None
    for level, sparsity in enumerate(chain.sparsities):
        rewound = {"start": "rewound", "rewind_step": chain.rewind_step} if chain.rewind_step else {}
        if chain.goes_on:
            rewound = {"start": "trained", "method": chain.method, "origin": f"level {level - 1}"}
        candidate = (
            Candidate(replicate, 0.0, "parent")
            if bits is None
            else Candidate(replicate, sparsity, "masked", mask=mask_digest(bits), **rewound)
        )
        cuts = [CutOrder("imp", s, chain.method) for s in chain.sparsities[level + 1 : level + 2]]
        order = LaneOrder(
            candidate, bits, f"level {level}", tuple(cuts), checkpoint, keeps_weights=chain.goes_on and bool(cuts)
        )
        (one,) = [t for ended in workshop.train([order]) for t in ended]
        assert one.outcome == "completed"
        found.append(one)
        checkpoint = one.checkpoint
        bits = one.derived[0].bits if one.derived else None
    return found


CASES = {
    "imp": {"masks.sparsity": 0.7, "masks.rate": 0.3},
    "one level": {"masks.sparsity": 0.2},
    "rewind": {"masks.sparsity": 0.5, "masks.rate": 0.3, "masks.rewind_fraction": 0.25},
    "rewind to a validation point": {"masks.sparsity": 0.4, "masks.rate": 0.3, "masks.rewind_fraction": 0.4},
    "ap": {"masks.sparsity": 0.6, "masks.rate": 0.3, "masks.ap_fraction": 0.1, "masks.rewind_fraction": 0.1},
}


@pytest.mark.parametrize("rates", [{}, {"lr_schedule": "cosine", "warmup_fraction": 0.2}], ids=["constant", "cosine"])
@pytest.mark.parametrize("name", CASES)
def test_a_chain_is_that_of_a_study_of_masks(name, rates, shop_of, blobs):
    """Same masks, same losses, level by level; `lr_schedule` says that the rates of a level are rewound with it."""
    shop = shop_of(rates=rates)
    settings = settings_of(UNLIKE["mlp"][1], {**CASES[name], "training.lr": 0.01, "training.weight_decay": 0.01})
    chain = shop.networks.describe(1, settings).chain
    expected, results = in_a_study_of_masks(shop, blobs, settings, 1), level_by_level(shop, settings, 1)
    assert len(results) == len(expected) == len(chain.sparsities) > 1
    for level, (result, one) in enumerate(zip(results, expected, strict=True)):
        assert result.outcome == (None if level + 1 < len(expected) else "completed")
        assert result.steps == (level + 1) * STEPS
        assert result.mask_kind == ("weight" if level else "none")
        assert (result.mask_digest, result.remains) == (one.mask_digest, one.remains)
        assert result.flops == pytest.approx(6 * one.remains.macs * result.passes)  # each level at its own size
        assert result.val_loss == pytest.approx(one.result.val_loss, abs=TOLERANCE)
        assert result.val_error == pytest.approx(one.result.val_error, abs=1e-6)
    assert results[-1].test_loss == pytest.approx(expected[-1].test_loss, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["imp", "rewind"])
@pytest.mark.parametrize("family", ["mlp", "residual_mlp", "conv1d", "hourglass"])
def test_a_chain_of_nodes_is_that_of_a_study_of_masks_and_its_networks_shrink(name, family, shop_of, blobs):
    shop = shop_of(family, kind="node")
    settings = settings_of(UNLIKE[family][1], {**CASES[name], "training.lr": 0.01, "training.weight_decay": 0.01})
    network = shop.networks.describe(1, settings)
    expected, results = in_a_study_of_masks(shop, blobs, settings, 1), level_by_level(shop, settings, 1)
    assert len(results) == len(expected) == len(network.chain.sparsities) > 1
    for level, (result, one) in enumerate(zip(results, expected, strict=True)):
        assert result.mask_kind == ("node" if level else "none")
        assert (result.mask_digest, result.remains) == (one.mask_digest, one.remains)
        assert result.flops == pytest.approx(6 * one.remains.macs * result.passes)  # each level at its own size
        assert result.val_loss == pytest.approx(one.result.val_loss, abs=TOLERANCE)
    assert results[-1].outcome == "completed"
    assert results[-1].test_loss == pytest.approx(expected[-1].test_loss, abs=TOLERANCE)
    left = results[-1].remains
    assert (network.n_params, network.macs, network.weight_sparsity) == (left.n_params, left.macs, left.weight_sparsity)
    assert network.node_sparsity == left.node_sparsity
    assert [a.remains.n_params > b.remains.n_params for a, b in itertools.pairwise(results)] == [True] * (
        len(results) - 1
    )


@pytest.mark.parametrize("rates", [{}, {"lr_schedule": "cosine", "warmup_fraction": 0.2}], ids=["constant", "cosine"])
@pytest.mark.parametrize(("family", "kind"), [("mlp", "weight"), ("mlp", "node"), ("conv1d", "node")])
def test_a_chain_that_goes_on_from_what_was_pruned_is_that_of_a_study_of_masks(
    family, kind, rates, shop_of, blobs, tmp_path
):
    shop = shop_of(family, "lr_rewind", kind=kind, rates=rates)
    settings = settings_of(UNLIKE[family][1], {**CASES["imp"], "training.lr": 0.01})
    expected = in_a_study_of_masks(shop, blobs, settings, 1, tmp_path / "masks")
    results = level_by_level(shop, settings, 1)
    assert len(results) == len(expected) == len(shop.networks.describe(1, settings).chain.sparsities) > 2
    for result, one in zip(results, expected, strict=True):
        assert (result.mask_digest, result.remains) == (one.mask_digest, one.remains)
        assert result.flops == pytest.approx(6 * one.remains.macs * result.passes)  # each level at its own size
        assert result.val_loss == pytest.approx(one.result.val_loss, abs=TOLERANCE)
    assert results[-1].test_loss == pytest.approx(expected[-1].test_loss, abs=TOLERANCE)
    one = run(shop, [LaneSpec("a", settings, 0, steps_of(shop, settings))], 1)["a"]
    assert (one.outcome, one.mask_digest) == ("completed", results[-1].mask_digest)
    assert one.flops == pytest.approx(sum(result.flops for result in results))
    np.testing.assert_allclose(one.curve_val_loss, results[-1].curve_val_loss, rtol=0, atol=TOLERANCE)


ONCE = [name for name, row in PRUNERS.items() if row.method.when == "trained"]
#: Method, family, kind of masks, and what else a candidate says.
ONCE_CASES = [
    *(pytest.param(name, "mlp", PRUNERS[name].kinds[-1], {}, id=name) for name in ONCE),
    *(pytest.param(name, "conv1d", "node", {}, id=f"{name}, channels") for name in ONCE if name != "nm_2_4"),
    pytest.param("structured_taylor", "hourglass", "node", {}, id="nodes of blocks"),
    pytest.param("magnitude_oneshot", "conv1d", "weight", {"masks.pattern": "2x2"}, id="blocks of weights"),
    pytest.param("magnitude", "mlp", "weight", {"masks.score": "taylor", "masks.allocation": "global"}, id="a score"),
    pytest.param("magnitude_oneshot", "mlp", "weight", {"masks.score": "random"}, id="at random"),
    pytest.param("imp", "mlp", "weight", {"masks.score": "fisher", "masks.rate": 0.3}, id="a chain with a score"),
    pytest.param("imp", "conv1d", "weight", {"masks.pattern": "1:4"}, id="a chain to a pattern"),
    pytest.param("lr_rewind", "mlp", "node", {"masks.score": "apoz", "masks.rate": 0.3}, id="nodes by activations"),
]


@pytest.mark.parametrize("rates", [{}, {"lr_schedule": "cosine", "warmup_fraction": 0.2}], ids=["constant", "cosine"])
@pytest.mark.parametrize(("name", "family", "kind", "masks"), ONCE_CASES)
def test_what_is_cut_from_a_trained_network_is_that_of_a_study_of_masks(
    name, family, kind, masks, rates, shop_of, blobs, tmp_path
):
    """Once or level by level, by any score and pattern: same masks, same losses, and scoring is paid for."""
    shop = shop_of(family, name, kind=kind, rates=rates)
    settings = settings_of(UNLIKE[family][1], {"masks.sparsity": 0.6, "training.lr": 0.01, **masks})
    network = shop.networks.describe(1, settings)
    expected = in_a_study_of_masks(shop, blobs, settings, 1, tmp_path / "masks")
    results = level_by_level(shop, settings, 1)
    assert len(results) == len(expected) == len(network.chain.sparsities) >= 2
    assert (len(results) == 2) == (name in ONCE)
    for level, (result, one) in enumerate(zip(results, expected, strict=True)):
        assert (result.outcome, result.steps) == (
            None if level + 1 < len(expected) else "completed",
            (level + 1) * STEPS,
        )
        assert (result.mask_digest, result.remains) == (one.mask_digest, one.remains)
        assert result.val_loss == pytest.approx(one.result.val_loss, abs=TOLERANCE)
        scored = expected[level - 1].derived[0].passes if level else 0.0
        macs = [expected[level - 1].remains.macs, one.remains.macs]
        assert result.flops == pytest.approx(6 * (macs[0] * scored + macs[1] * (result.passes - scored)))
        # Of a study of masks all that are trained are scored at their beginning, and tested at their end.
        untested = N_TEST / 3 if result.outcome is None else 0
        assert result.passes - scored == pytest.approx(one.passes - shop.recipe.probe_size / 3 - untested)
    left = results[-1].remains
    assert results[-1].test_loss == pytest.approx(expected[-1].test_loss, abs=TOLERANCE)
    assert (network.n_params, network.weight_sparsity) == (left.n_params, left.weight_sparsity)
    one = run(shop, [LaneSpec("a", settings, 0, network.steps)], 1)["a"]
    assert (one.outcome, one.mask_digest) == ("completed", results[-1].mask_digest)
    assert one.passes == pytest.approx(sum(r.passes for r in results))
    assert one.flops == pytest.approx(sum(r.flops for r in results))


def test_who_is_pruned_once_and_goes_on_keeps_the_last_rate_and_shares_no_pack_with_who_replays_them(shop_of):
    rates = {"lr_schedule": "cosine"}
    methods = {name: PRUNERS[name].method for name in ("magnitude_oneshot", "lr_rewind", "magnitude")}
    shop, alike = shop_of(methods=methods, rates=rates), {"masks.sparsity": 0.2, "masks.allocation": "uniform"}
    specs = [LaneSpec(name, {**alike, "masks.method": name}, 0, 2 * STEPS) for name in methods]
    together = run(shop, specs)
    assert len({r.val_loss for r in together.values()}) == 3
    assert len({r.mask_digest for r in together.values()}) == 1
    for spec in specs:
        (alone,) = run(shop_of(methods=methods, rates=rates), [spec]).values()
        assert alone.val_loss == pytest.approx(together[spec.id].val_loss, abs=TOLERANCE)


def test_chains_that_go_on_and_chains_that_rewind_share_no_pack(shop_of):
    """Their batches are not the same."""
    settings = {"masks.sparsity": 0.6, "masks.rate": 0.3}
    methods = {name: PRUNERS[name].method for name in ("imp", "lr_rewind")}
    shop = shop_of(methods=methods)
    both = [LaneSpec(name, {**settings, "masks.method": name}, 0, 4 * STEPS) for name in methods]
    together = run(shop, both)
    assert together["imp"].mask_digest != together["lr_rewind"].mask_digest
    for name in methods:
        alone = run(shop_of(method=name), [LaneSpec(name, settings, 0, 4 * STEPS)])[name]
        assert (alone.mask_digest, alone.val_loss) == (together[name].mask_digest, together[name].val_loss)


def test_packs_of_unlike_chains_of_nodes_and_their_segments_are_each_alone_and_in_one_go(shop_of, monkeypatch):
    """Trained at their real size: the largest of a pack says how large all of it is."""
    stacked = []
    stack = segments.stack
    monkeypatch.setattr(segments, "stack", lambda *args: stacked.append(stack(*args)) or stacked[-1])
    chains = {f"c{i}": settings for i, settings in enumerate(unlike_chains()) if "masks.ap_fraction" not in settings}
    alone = {}
    for name, settings in chains.items():
        shop = shop_of(kind="node", folder=f"alone {name}")
        alone |= run(shop, [LaneSpec(name, settings, 0, steps_of(shop, settings))])
    stacked.clear()
    shop, parts, checkpoints = shop_of(kind="node"), {}, {}
    parent = shop.networks.describe(0, {**chains["c0"], "model.widths": [12, 20]})
    for start in range(0, 4 * STEPS, STEPS):
        specs = [
            LaneSpec(name, settings, start, start + STEPS, checkpoints.get(name))
            for name, settings in chains.items()
            if steps_of(shop, settings) > start
        ]
        for name, result in run(shop, specs, padded=parent.shape.tensors).items():
            parts.setdefault(name, []).append(result)
            checkpoints[name] = result.checkpoint
    for name, one in alone.items():
        last = parts[name][-1]
        assert (one.outcome, one.mask_digest, one.remains) == ("completed", last.mask_digest, last.remains)
        np.testing.assert_allclose(last.curve_val_loss, one.curve_val_loss, rtol=0, atol=TOLERANCE)
        assert last.test_loss == pytest.approx(one.test_loss, abs=TOLERANCE)
        assert sum(r.passes for r in parts[name]) == pytest.approx(one.passes)
        assert sum(r.flops for r in parts[name]) == pytest.approx(one.flops)
    widths = [lanes.layout.width for lanes in stacked]
    assert widths[0] == max(widths) == parent.structure.n_params
    assert widths[-1] < widths[0] / 2


def test_a_checkpoint_of_a_chain_of_nodes_without_its_mask_begins_anew(shop_of):
    settings = {"masks.sparsity": 0.6, "masks.rate": 0.3, "masks.rewind_fraction": 0.25}
    shop = shop_of(kind="node")
    whole = run(shop, [LaneSpec("a", settings, 0, 4 * STEPS)])["a"]
    reached = run(shop, [LaneSpec("a", settings, 0, 2 * STEPS)])["a"]
    (state,) = read_checkpoint(shop._folder, reached.checkpoint, ["a"]).values()
    assert set(state.parts) == {"weights", "mask", "rewound"}
    assert sum(w.size for w in state.parts["weights"].values()) == reached.remains.n_params
    resumed = run(shop, [LaneSpec("a", settings, 2 * STEPS, 4 * STEPS, reached.checkpoint)])["a"]
    assert (resumed.mask_digest, resumed.val_loss) == (whole.mask_digest, whole.val_loss)
    assert resumed.passes < whole.passes
    all_there = {"entries": np.ones_like(state.parts["mask"]["entries"])}
    for parts in (
        {name: arrays for name, arrays in state.parts.items() if name != "mask"},
        {name: arrays for name, arrays in state.parts.items() if name != "rewound"},
        {**state.parts, "mask": all_there},
        {**state.parts, "mask": {"entries": all_there["entries"][1:]}},
    ):
        name = write_checkpoint(shop._folder, {"a": replace(state, parts=parts)})
        anew = run(shop, [LaneSpec("a", settings, 2 * STEPS, 4 * STEPS, name)])["a"]
        assert (anew.mask_digest, anew.val_loss, anew.passes) == (whole.mask_digest, whole.val_loss, whole.passes)


def test_a_chain_may_have_rates_of_its_own(shop_of):
    """Every level of it begins where it is rewound to, beside chains whose rates do not change."""
    masks = CASES["rewind"]
    rates = {"lr_schedule": "cosine", "warmup_fraction": 0.2}
    own = settings_of({}, {**masks, **{f"training.{key}": value for key, value in rates.items()}})
    (expected,) = run(shop_of(rates=rates), [LaneSpec("own", masks, 0, 99 * STEPS)]).values()
    specs = [LaneSpec("own", own, 0, 99 * STEPS), LaneSpec("plain", masks, 0, 99 * STEPS)]
    found = run(shop_of(), specs)
    assert found["own"].mask_digest == expected.mask_digest != found["plain"].mask_digest
    np.testing.assert_allclose(found["own"].curve_val_loss, expected.curve_val_loss, rtol=0, atol=TOLERANCE)


def test_what_remains_in_the_end_is_known_before_training(shop_of):
    for family in ("mlp", "residual_mlp", "conv1d", "hourglass"):
        shop = shop_of(family)
        for options in UNLIKE[family][:2]:
            settings = settings_of(options, {"masks.sparsity": 0.6, "masks.rate": 0.4})
            network = shop.networks.describe(0, settings)
            result = run(shop, [LaneSpec("a", settings, 0, network.steps)])["a"]
            assert result.outcome == "completed", result.error
            left = result.remains
            assert (network.n_params, network.weight_sparsity) == (left.n_params, left.weight_sparsity)
            if family != "conv1d":  # a weight of a convolution is used as often as its layer is long
                assert network.macs == left.macs


def unlike_chains():
    """Chains of several rates, lengths and sizes, one of them dense and one that rewinds."""
    masks = [
        {"masks.sparsity": 0.6, "masks.rate": 0.3},
        {"masks.sparsity": 0.7, "masks.rate": 0.5, "masks.ap_fraction": 0.05},
        {"masks.sparsity": 0.0},
    ]
    own = [settings_of(o, {**m, "training.lr": 0.01}) for o, m in zip(UNLIKE["mlp"], masks, strict=True)]
    return [*own, {**own[0], "masks.rewind_fraction": 0.2}, {**own[1], "masks.rewind_fraction": 0.2}]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_packs_of_unlike_chains_and_their_segments_are_each_alone_and_in_one_go(optimizer, shop_of):
    shop, more = shop_of(optimizer=optimizer), {"training.momentum": 0.9} if optimizer == "sgd" else {}
    chains = {f"c{i}": {**settings, **more} for i, settings in enumerate(unlike_chains())}
    lengths = {name: steps_of(shop, settings) for name, settings in chains.items()}
    assert {n // STEPS for n in lengths.values()} == {1, 3, 4}
    whole, parts, checkpoints = {}, {}, {}
    for name, settings in chains.items():
        whole |= run(shop_of(optimizer=optimizer), [LaneSpec(name, settings, 0, lengths[name])])
    for start in range(0, max(lengths.values()), STEPS):
        specs = [
            LaneSpec(name, settings, start, start + STEPS, checkpoints.get(name))
            for name, settings in chains.items()
            if lengths[name] > start
        ]
        for name, result in run(shop, specs).items():
            parts.setdefault(name, []).append(result)
            checkpoints[name] = result.checkpoint
    for name, one in whole.items():
        last = parts[name][-1]
        assert [r.outcome for r in parts[name]] == [None] * (lengths[name] // STEPS - 1) + ["completed"]
        assert (one.outcome, one.steps, one.curve_step) == ("completed", last.steps, last.curve_step)
        assert (one.mask_digest, one.remains) == (last.mask_digest, last.remains)
        np.testing.assert_allclose(last.curve_val_loss, one.curve_val_loss, rtol=0, atol=TOLERANCE)
        assert last.test_loss == pytest.approx(one.test_loss, abs=TOLERANCE)
        assert sum(r.passes for r in parts[name]) == pytest.approx(one.passes)
        assert sum(r.flops for r in parts[name]) == pytest.approx(one.flops)


#: Shares of the weights that the levels of a chain to sparsity 0.6 have, of which each keeps as large a part.
LEFT = [0.4 ** (level / 3) for level in range(4)]


def test_a_chain_pays_for_every_step_of_every_level(shop_of):
    """And for validation; not for the steps that rewinding skips."""
    shop = shop_of()
    plain = {"masks.sparsity": 0.6, "masks.rate": 0.3}
    result = run(shop, [LaneSpec("a", plain, 0, 4 * STEPS)])["a"]
    validated = [8, 16, 20]
    assert result.curve_step == [level * STEPS + step for level in range(4) for step in validated]
    assert result.passes == pytest.approx(4 * STEPS * BATCH + (12 * N_VALIDATION + N_TEST) / 3)
    network = shop.networks.describe(0, plain)
    macs = [network.structure.macs - network.structure.n_weights + round(d * network.structure.n_weights) for d in LEFT]
    each = STEPS * BATCH + 3 * N_VALIDATION / 3
    assert result.flops == pytest.approx(6 * (each * sum(macs) + macs[-1] * N_TEST / 3), rel=1e-3)
    result = run(shop, [LaneSpec("a", {**plain, "masks.rewind_fraction": 0.25}, 0, 4 * STEPS)])["a"]
    # The dense level is validated at step 5, too; later ones begin there, and are validated 8 steps later.
    assert result.curve_step == [5, 8, 16, 20, 33, 40, 53, 60, 73, 80]
    assert result.passes == pytest.approx((STEPS + 3 * 15) * BATCH + (10 * N_VALIDATION + N_TEST) / 3)


def test_a_checkpoint_without_what_the_next_level_needs_begins_anew(shop_of):
    settings = {"masks.sparsity": 0.6, "masks.rate": 0.3, "masks.rewind_fraction": 0.25}
    shop = shop_of()
    whole = run(shop, [LaneSpec("a", settings, 0, 4 * STEPS)])["a"]
    reached = run(shop, [LaneSpec("a", settings, 0, 2 * STEPS)])["a"]
    (state,) = read_checkpoint(shop._folder, reached.checkpoint, ["a"]).values()
    assert set(state.parts) == {"weights", "keep", "rewound"}
    assert state.step == 2 * STEPS
    resumed = run(shop, [LaneSpec("a", settings, 2 * STEPS, 4 * STEPS, reached.checkpoint)])["a"]
    assert (resumed.mask_digest, resumed.val_loss) == (whole.mask_digest, whole.val_loss)
    assert resumed.passes < whole.passes
    for part in ("keep", "rewound"):
        fewer = replace(state, parts={name: arrays for name, arrays in state.parts.items() if name != part})
        name = write_checkpoint(shop._folder, {"a": fewer})
        anew = run(shop, [LaneSpec("a", settings, 2 * STEPS, 4 * STEPS, name)])["a"]
        assert (anew.mask_digest, anew.val_loss, anew.passes) == (whole.mask_digest, whole.val_loss, whole.passes)


def test_a_chain_that_diverges_changes_nothing_for_the_others(shop_of):
    shop = shop_of(optimizer="sgd")
    good = {"masks.sparsity": 0.6, "masks.rate": 0.3, "training.lr": 0.05}
    bad = {**good, "training.lr": 1e6}
    alone = run(shop, [LaneSpec("good", good, 0, 4 * STEPS)])["good"]
    both = run(shop, [LaneSpec("bad", bad, 0, 4 * STEPS), LaneSpec("good", good, 0, 4 * STEPS)])
    assert both["bad"].outcome == "diverged"
    assert both["bad"].steps < STEPS
    assert both["good"].mask_digest == alone.mask_digest
    np.testing.assert_allclose(both["good"].curve_val_loss, alone.curve_val_loss, rtol=0, atol=TOLERANCE)


def test_a_pack_that_breaks_at_a_later_level_goes_on_from_there(shop_of, monkeypatch):
    """What was done until then is paid for once."""
    shop = shop_of()
    settings = [{"masks.sparsity": 0.6, "masks.rate": rate} for rate in (0.3, 0.28)]
    specs = [LaneSpec(f"c{i}", each, 0, 4 * STEPS) for i, each in enumerate(settings)]
    whole = run(shop, specs)
    begin, broken = SegmentShop._begin, []

    def breaks_once(self, job, leg):
        if leg.level == 2 and not broken:
            broken.append(job)
            raise RuntimeError("out of luck")
        return begin(self, job, leg)

    monkeypatch.setattr(SegmentShop, "_begin", breaks_once)
    for name, one in run(shop, specs).items():
        assert broken
        assert (one.outcome, one.mask_digest) == ("completed", whole[name].mask_digest)
        assert one.passes == pytest.approx(whole[name].passes)
        assert one.flops == pytest.approx(whole[name].flops)
        assert one.curve_step == whole[name].curve_step


def test_masks_of_a_chain_are_nested_and_come_to_its_sparsities(shop_of):
    shop = shop_of()
    settings = {"masks.sparsity": 0.7, "masks.rate": 0.3}
    network, checkpoint, kept = shop.networks.describe(0, settings), None, []
    for start in range(0, network.steps, STEPS):
        one = run(shop, [LaneSpec("a", settings, start, start + STEPS, checkpoint)])["a"]
        assert one.remains.weight_sparsity == pytest.approx(network.chain.sparsities[start // STEPS], abs=0.01)
        checkpoint = one.checkpoint
        if start and checkpoint:
            (state,) = read_checkpoint(shop._folder, checkpoint, ["a"]).values()
            keep, weights = state.parts["keep"], state.parts["weights"]
            assert all((weights[name][keep[name] == 0] == 0).all() for name in keep)
            kept.append(np.concatenate([keep[t.name].ravel() for t in network.structure.prunable]) > 0)
            assert one.mask_digest == mask_digest(pack_bits(kept[-1]))
            assert one.remains == remains(network.structure, "weight", kept[-1])
    assert len(kept) == 3
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(kept))


def test_settings_of_a_chain_are_those_of_its_method(shop_of):
    networks = networks_of(pruning=Pruning("levels", allocation="global"), sparsity=0.8)
    chain = networks.describe(0, {}).chain
    assert (chain.sparsities[0], chain.sparsities[-1], len(chain.sparsities)) == (0.0, 0.8, 9)
    settings = dict(zip((f"masks.{name}" for name in METHOD_FIELDS), (0.5, 0.1, 0.3, "lamp"), strict=False))
    network = networks.describe(0, {**settings, "training.steps": 10})
    method = network.chain.method
    assert (method.rate, method.ap_fraction, method.rewind_fraction, method.score) == (0.5, 0.1, 0.3, "lamp")
    assert (network.chain.rewind_step, network.level_steps, network.steps) == (3, 10, 40)
    dense = networks.describe(0, {"masks.sparsity": 0.0, "masks.rewind_fraction": 0.5})
    assert (dense.chain.sparsities, dense.chain.rewind_step, dense.mask_kind) == ((0.0,), 0, "none")
    assert dense.steps == 50
    with pytest.raises(SpaceError, match=r"^masks.ap_fraction=0.5: must be less than rate=0.2"):
        networks.describe(0, {"masks.ap_fraction": 0.5})
    with pytest.raises(SpaceError, match=r"^masks.sparsity=1.5: must lie in \[0, 1\)"):
        networks.describe(0, {"masks.sparsity": 1.5})


@pytest.mark.parametrize("name", ["imp", "ap"])
def test_chains_that_are_told_to_be_cut_alike_are_one(name, shop_of):
    """Two rates with as many levels, and two sparsities with as many weights at each of them."""
    shop = shop_of()
    base = settings_of(UNLIKE["mlp"][1], CASES[name])
    others = [{"masks.rate": 0.2999, "masks.sparsity": base["masks.sparsity"] + delta} for delta in (0.0, 1e-5, 0.05)]
    chains = [base, *({**base, **other} for other in others)]
    told = [shop.networks.cut(settings) for settings in chains]
    assert [told.index(each) for each in told] == [0, 0, 0, 3]
    results = run(shop, [LaneSpec(str(i), settings, 0, steps_of(shop, settings)) for i, settings in enumerate(chains)])
    assert results["0"].mask_digest == results["1"].mask_digest == results["2"].mask_digest != results["3"].mask_digest
    assert results["0"].curve_val_loss == pytest.approx(results["1"].curve_val_loss, abs=TOLERANCE)
    assert results["0"].curve_val_loss == pytest.approx(results["2"].curve_val_loss, abs=TOLERANCE)


def test_what_is_cut_once_is_told_by_its_counts_score_and_pattern(shop_of):
    """As what is cut level by level; random numbers are those of the sparsity."""
    networks = shop_of(method="magnitude").networks
    base = settings_of(UNLIKE["mlp"][1], {"masks.sparsity": 0.6})

    def told(**masks):
        return str(networks.cut({**base, **{f"masks.{key}": value for key, value in masks.items()}}))

    alike = [told(), told(sparsity=0.60001), told(score="magnitude"), told(rate=0.5), told(draw=3)]
    assert len(set(alike)) == 1
    unlike = [told(), told(sparsity=0.7), told(score="l1"), told(allocation="erk"), told(pattern="2x2")]
    assert len(set(unlike)) == len(unlike)
    assert told(score="random") != told(score="random", sparsity=0.60001)
    assert told(pattern="2:4") == told(pattern="2:4", sparsity=0.9, allocation="erk") != told()
