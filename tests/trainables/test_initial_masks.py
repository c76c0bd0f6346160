"""Candidates of a search whose masks are cut from their initial weights, before step 0."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsefront.errors import ConfigError, SpaceError
from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.masks import split_sections
from sparsefront.spaces.pruning import Pruning
from sparsefront.trainables.checkpoints import read_checkpoint, write_checkpoint
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.pruning import SCORES
from sparsefront.trainables.segments import LaneSpec, SegmentShop
from sparsefront.trainables.workshop import LaneOrder, Workshop
from tests.trainables.test_networks import UNLIKE, networks_of, recipe_of, settings_of
from tests.trainables.test_segments import run

CPU = torch.device("cpu")
STEPS, EVERY, BATCH, PROBE = 20, 8, 32, 24
N_TRAIN, N_VALIDATION, N_TEST = 180, 60, 80
TOLERANCE = 1e-4

AT_INIT = [name for name, row in PRUNERS.items() if row.method.when == "init"]
METHODS = {name: replace(PRUNERS[name].method, rounds=min(4, PRUNERS[name].method.rounds)) for name in AT_INIT}


@pytest.fixture
def shop_of(blobs, tmp_path):
    def make(family="mlp", folder="checkpoints", **more):
        own = {"schedule": Schedule("adam", STEPS, BATCH, EVERY), "methods": METHODS, "probe_size": PROBE}
        return SegmentShop(recipe_of(family, **{**own, **more}), blobs, CPU, tmp_path / folder)

    return make


def whole(shop, settings, replicate=0):
    return run(shop, [LaneSpec("a", settings, 0, STEPS)], replicate)["a"]


def in_a_study_of_masks(shop, blobs, settings, name, replicate):
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
    _, weights = shop.networks.parent(network.architecture, replicate)
    state = replace(
        workshop._replicate(replicate),
        weights=dict(weights),
        parent={name: torch.from_numpy(w) for name, w in weights.items()},
    )
    workshop._replicate = lambda number: state if number == replicate else pytest.fail("another replicate")
    method = METHODS[name].under(settings.get("masks.pattern", "unstructured"))
    own = {key: settings[f"masks.{key}"] for key in ("allocation", "score") if f"masks.{key}" in settings}
    candidate = Candidate(replicate, network.sparsity, "masked", method=replace(method, **own))
    (one,) = [t for ended in workshop.train([LaneOrder(candidate)]) for t in ended]
    assert one.outcome == "completed"
    return one


CASES = [
    *(pytest.param(name, "mlp", {}, id=name) for name in AT_INIT),
    pytest.param("snip", "conv1d", {}, id="a convolution"),
    pytest.param("synflow", "hourglass", {}, id="blocks"),
    pytest.param("grasp", "residual_mlp", {"masks.allocation": "erk"}, id="an allocation of its own"),
    pytest.param("snip", "mlp", {"masks.kind": "node", "masks.allocation": "uniform"}, id="nodes"),
    pytest.param("synflow", "conv1d", {"masks.kind": "node", "masks.allocation": "uniform"}, id="channels"),
    pytest.param("snip_iterative", "conv1d", {"masks.pattern": "2:4"}, id="N:M in rounds"),
    pytest.param("random_erk", "mlp", {"masks.pattern": "2:4"}, id="N:M at random"),
    pytest.param("grasp", "mlp", {"masks.pattern": "2x2", "masks.allocation": "erk"}, id="blocks of weights"),
    pytest.param("snip", "mlp", {"masks.score": "taylor"}, id="another score"),
]


@pytest.mark.parametrize(("name", "family", "masks"), CASES)
def test_it_is_that_of_a_study_of_masks(name, family, masks, shop_of, blobs):
    """Same mask, same losses, same cost of scoring; what is left is known before it is scored."""
    shop = shop_of(family)
    settings = settings_of(
        UNLIKE[family][1], {"masks.method": name, "masks.sparsity": 0.6, "training.lr": 0.01, **masks}
    )
    expected, result = in_a_study_of_masks(shop, blobs, settings, name, 1), whole(shop, settings, 1)
    assert result.outcome == "completed", result.error
    assert (result.mask_digest, result.mask_kind) == (expected.mask_digest, masks.get("masks.kind", "weight"))
    assert result.remains == expected.remains
    assert result.val_loss == pytest.approx(expected.result.val_loss, abs=TOLERANCE)
    assert result.test_loss == pytest.approx(expected.test_loss, abs=TOLERANCE)
    network = shop.networks.describe(1, settings)
    left = result.remains
    assert (network.n_params, network.weight_sparsity) == (left.n_params, left.weight_sparsity)
    # Of a convolution only the scores tell where weights are used how often, unless a pattern says it.
    if family != "conv1d" or "masks.kind" in masks or "masks.pattern" in masks:
        assert network.macs == left.macs
    # Of a study of masks the ones that are chosen from are scored by the same probe, and every trained one is.
    assert result.passes == pytest.approx(expected.passes - PROBE / 3)
    # The parent is scored, and what is left of it is trained.
    macs = np.array([network.structure.macs, left.macs])
    passes = [expected.making_passes, result.passes - expected.making_passes]
    assert result.flops == pytest.approx(6 * macs @ passes)


def unlike():
    """Candidates of several methods, sizes and sparsities, one of random masks and one dense."""
    masks = [
        {"masks.method": "snip", "masks.sparsity": 0.5},
        {"masks.method": "random_snip_ratio", "masks.sparsity": 0.7},
        {"masks.method": "random", "masks.sparsity": 0.6},
        {"masks.method": "synflow", "masks.sparsity": 0.0},
        {"masks.method": "snip_iterative", "masks.sparsity": 0.8, "masks.kind": "node", "masks.allocation": "uniform"},
    ]
    sizes = itertools.cycle(UNLIKE["mlp"])
    return {f"c{i}": settings_of(size, m) for i, (size, m) in enumerate(zip(sizes, masks, strict=False))}


def test_packs_of_unlike_candidates_and_their_segments_are_each_alone_and_in_one_go(shop_of):
    alone = {name: whole(shop_of(), settings) for name, settings in unlike().items()}
    shop = shop_of()
    first = run(shop, [LaneSpec(name, settings, 0, 13) for name, settings in unlike().items()])
    assert {(r.outcome, r.steps) for r in first.values()} == {(None, 13)}
    # In a shop of its own: nothing but the checkpoint knows the mask.
    again = shop_of()
    again._scored = lambda *args: pytest.fail("scored again")
    second = run(
        again, [LaneSpec(name, settings, 13, STEPS, first[name].checkpoint) for name, settings in unlike().items()]
    )
    for name, one in alone.items():
        last = second[name]
        assert (last.outcome, last.mask_kind, last.mask_digest) == ("completed", one.mask_kind, one.mask_digest)
        assert last.remains == one.remains == alone[name].remains
        assert last.val_loss == pytest.approx(one.val_loss, abs=TOLERANCE)
        assert last.test_loss == pytest.approx(one.test_loss, abs=TOLERANCE)
        # The end of the first segment is validated, too.
        assert first[name].passes + last.passes == pytest.approx(one.passes + N_VALIDATION / 3)
        assert first[name].flops + last.flops == pytest.approx(one.flops + 2 * one.remains.macs * N_VALIDATION)
    assert [one.mask_digest is None for one in alone.values()] == [False, False, False, True, False]


@pytest.mark.parametrize("name", AT_INIT)
def test_scoring_is_paid_for_once_and_by_every_candidate(name, shop_of):
    settings = {"masks.method": name, "masks.sparsity": 0.5}
    shop, trained = shop_of(), STEPS * BATCH + (3 * N_VALIDATION + N_TEST) / 3
    method = METHODS[name]
    making = SCORES[method.score].passes(PROBE, method.rounds)
    making += SCORES[method.counts_of].passes(PROBE) if method.counts_of else 0
    specs = [LaneSpec(f"c{i}", {**settings, "training.lr": lr}, 0, STEPS) for i, lr in enumerate((0.01, 0.02))]
    results = run(shop, specs)
    assert [r.passes for r in results.values()] == [pytest.approx(trained + making)] * 2
    assert shop._scored.cache_info().misses == 1  # one mask for both
    (broken,) = run(shop, [LaneSpec("a", {**settings, "training.lr": 1e30}, 0, STEPS)]).values()
    assert broken.outcome == "diverged"
    assert broken.passes > making


@pytest.mark.parametrize("kind", ["weight", "node"])
def test_a_checkpoint_without_its_mask_begins_anew(kind, shop_of):
    settings = {"masks.method": "snip", "masks.sparsity": 0.5, "masks.kind": kind, "masks.allocation": "uniform"}
    shop = shop_of()
    one = whole(shop, settings)
    reached = run(shop, [LaneSpec("a", settings, 0, 13)])["a"]
    (state,) = read_checkpoint(shop._folder, reached.checkpoint, ["a"]).values()
    network = shop.networks.describe(0, settings)
    (entries,) = state.parts["mask"].values()
    sizes = network.structure.section_sizes(kind)
    parts = split_sections(network.structure, kind, entries > 0)
    assert tuple(int(part.sum()) for part in parts) == kept_counts(network.structure, kind, 0.5, "uniform")
    assert len(entries) == sum(sizes)
    for parts in ({k: v for k, v in state.parts.items() if k != "mask"}, {**state.parts, "mask": {"other": entries}}):
        name = write_checkpoint(shop._folder, {"a": replace(state, parts=parts)})
        anew = run(shop, [LaneSpec("a", settings, 13, STEPS, name)])["a"]
        assert (anew.mask_digest, anew.val_loss, anew.passes) == (one.mask_digest, one.val_loss, one.passes)


def test_draws_of_random_positions_differ_and_those_of_scores_do_not(shop_of):
    shop = shop_of()

    def digests(name):
        settings = {"masks.method": name, "masks.sparsity": 0.5}
        return {whole(shop, {**settings, "masks.draw": draw}).mask_digest for draw in (0, 1, 2)}

    assert len(digests("random_snip_ratio")) == 3
    assert len(digests("snip")) == 1


def test_scores_see_what_the_candidate_is_trained_on_alone(shop_of):
    """A part of the examples is scored, where a part is trained on."""
    shop = shop_of(probe_size=1000)
    settings = {"masks.method": "snip", "masks.sparsity": 0.5}
    full, half = (whole(shop, {**settings, "training.data_fraction": part}) for part in (1.0, 0.5))
    assert full.passes - half.passes == pytest.approx(N_TRAIN / 2)
    assert full.mask_digest != half.mask_digest


def test_a_network_that_cannot_be_scored_fails_alone(shop_of):
    """Activations say nothing of single weights."""
    shop = shop_of(methods={**METHODS, "apoz": Pruning("init", score="apoz")})
    good = {"masks.method": "snip", "masks.sparsity": 0.5}
    alone = whole(shop_of(), good)
    specs = [LaneSpec("bad", good | {"masks.method": "apoz"}, 0, STEPS), LaneSpec("good", good, 0, STEPS)]
    results = run(shop, specs)
    bad = results["bad"]
    assert (bad.outcome, bad.steps, bad.checkpoint, bad.passes) == ("failed", 0, None, 0)
    assert bad.error.startswith(
        "mask kind='weight': this score (nodes that are zero on the fewest examples) is of node"
    )
    assert (results["good"].outcome, results["good"].val_loss) == ("completed", alone.val_loss)


def test_what_cannot_be_described_is_refused():
    networks = networks_of(methods=METHODS, sparsity=0.5)
    with pytest.raises(
        ConfigError, match=r"^masks\.method='snap': must be one of random, snip, .*; did you mean 'snip'?"
    ):
        networks.describe(0, {"masks.method": "snap"})
    node = {"masks.method": "snip", "masks.kind": "node"}
    with pytest.raises(SpaceError, match=r"^masks\.allocation='global': leaves it to scores how many nodes a layer"):
        networks.describe(0, node)
    with pytest.raises(SpaceError, match=r"^masks\.kind='node': leaves it to scores how many nodes a layer keeps"):
        networks.describe(0, node | {"masks.method": "random_snip_ratio", "masks.allocation": "uniform"})
    assert networks.describe(0, node | {"masks.allocation": "uniform"}).scored is not None
    dense = networks.describe(0, {"masks.method": "snip", "masks.sparsity": 0.0})
    assert (dense.scored, dense.mask_kind, dense.n_params) == (None, "none", dense.structure.n_params)
    drawn = networks_of(pruning=METHODS["snip"], sparsity=0.5).describe(0, {"masks.method": "random"})
    assert (drawn.scored, drawn.mask_kind) == (None, "weight")
    assert drawn.mask is not None
    assert np.count_nonzero(drawn.mask) == sum(drawn.kept)


@pytest.mark.parametrize("name", AT_INIT)
def test_candidates_that_are_told_to_be_cut_alike_have_one_mask(name, shop_of):
    """And those with random numbers of their own, or other counts on the way, are told apart."""
    shop = shop_of()
    sparsities = [0.6 + 0.0002 * i for i in range(40)]
    found = {}
    for sparsity in sparsities:
        settings = {"masks.method": name, "masks.sparsity": sparsity}
        network = shop.networks.describe(0, settings)
        told = str(shop.networks.cut(settings))
        mask = shop._cut_initial(network.architecture, 0, "weight", network.scored, 1.0).mask
        found.setdefault(told, []).append(mask)
    for masks in found.values():
        assert all((mask == masks[0]).all() for mask in masks)
    if METHODS[name].score == "random":
        assert len(found) == len(sparsities)
    else:  # some are told alike, so that the comparison above is of something, and not all
        assert 1 < len(found) < len(sparsities)
