"""Masks as methods order them: exact counts, nested, and what activating-while-pruning takes instead."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.search.methods import PRUNERS
from sparsefront.spaces.allocations import ALLOCATIONS, counts_from_scores, kept_counts
from sparsefront.spaces.masks import draw, split_sections
from sparsefront.spaces.patterns import keep_rivals, parse_pattern, pattern_counts
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.schedules import geometric, levels
from sparsefront.spaces.seeds import philox_key
from sparsefront.trainables.lanes import LaneStack, node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.pruning import SCORES
from sparsefront.trainables.pruning.cutting import Cutter, falling_to, scatter_nodes
from tests.oracles import networks as oracle
from tests.oracles.spaces import is_of_pattern

KINDS = ("node", "weight")
LEVELS = (0.2, 0.36, 0.6, 0.9)


def cutter_of(family="mlp", kind="weight", allocation="uniform"):
    return Cutter(oracle.small_model(family).structure, kind, allocation)


def survivors(structure, kind, mask):
    return [int(part.sum()) for part in split_sections(structure, kind, mask)]


def assert_counts(cutter, method, sparsity, mask):
    """As many in each section, or in all, as the allocation says; and nowhere none."""
    counts = kept_counts(cutter.structure, cutter.kind, sparsity, method.allocation or cutter.allocation)
    found = survivors(cutter.structure, cutter.kind, mask)
    assert min(found) > 0
    assert found == list(counts) if len(counts) == len(found) else [sum(found)] == list(counts)


def trained(state, mask=None, kind="weight"):
    """A lane under a mask: its weights, and what they were when its training began."""
    model = state.model
    parent = {name: view[0] for name, view in state.parameters.items()}
    if mask is None:
        return state
    build = node_masked_lanes if kind == "node" else weight_masked_lanes
    lanes = build(model.structure, parent, mask[None])
    start = {name: view[0] for name, view in state.lanes.layout.views(state.start).items()}
    return replace(state, lanes=lanes, start=build(model.structure, start, mask[None]).flat)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n, row in PRUNERS.items() if row.method.when == "init"])
def test_masks_of_initial_weights_have_exact_counts_and_a_price(name, kind, state_of):
    if kind not in PRUNERS[name].kinds:
        return
    method, state = PRUNERS[name].method, state_of("mlp", 1)
    method = replace(method, rounds=min(method.rounds, 4))
    cutter = cutter_of(kind=kind)
    for sparsity in LEVELS:
        cut = cutter.at_init(method, sparsity, state)
        if method.counts_of is None:
            assert_counts(cutter, method, sparsity, cut.mask)
        else:
            assert sum(survivors(cutter.structure, kind, cut.mask)) == round((1 - sparsity) * len(cut.mask))
        again = cutter.at_init(method, sparsity, state)
        assert (again.mask == cut.mask).all()
    assert (
        cut.passes
        == {
            "snip": 24,
            "snip_iterative": 4 * 24,
            "grasp": 3 * 24,
            "synflow": 4,
            "random_erk": 0,
            "random_snip_ratio": 24,
            "random_grasp_ratio": 3 * 24,
        }[name]
    )


def test_ratios_are_those_of_the_score_and_positions_are_not(state_of):
    cutter, state = cutter_of(), state_of("mlp", 1)
    ratio = cutter.at_init(PRUNERS["random_snip_ratio"].method, 0.8, state).mask
    snip = cutter.at_init(PRUNERS["snip"].method, 0.8, state).mask
    assert survivors(cutter.structure, "weight", ratio) == survivors(cutter.structure, "weight", snip)
    assert (ratio != snip).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", oracle.SMALL)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("score", ["magnitude", "movement", "taylor"])
def test_a_chain_has_exact_counts_at_every_level_and_brings_nothing_back(family, kind, allocation, score, state_of):
    cutter = cutter_of(family, kind, allocation)
    method = Pruning("levels", score=score)
    whole = state_of(family, 1)
    mask = None
    for sparsity in LEVELS:
        cut = cutter.after_training(method, sparsity, trained(whole, mask, kind), mask)
        assert_counts(cutter, method, sparsity, cut.mask)
        assert mask is None or not (cut.mask & ~mask).any()
        mask = cut.mask


@pytest.mark.parametrize("pattern", ["unstructured", "2x2"])
@pytest.mark.parametrize("family", oracle.SMALL)
@pytest.mark.parametrize("allocation", [name for name, row in ALLOCATIONS.items() if "weight" in row.kinds])
def test_a_chain_has_the_total_of_every_level_and_the_counts_of_the_last(allocation, family, pattern, state_of):
    """A layer that an allocation gives more at a later level keeps what it will need."""
    cutter, whole = cutter_of(family, "weight", allocation), state_of(family, 1)
    method, mask = Pruning("levels", pattern=pattern), None
    sparsities = [1 - density for density in levels([0.9, 0.95], 0.3)[1:]]
    for i, sparsity in enumerate(sparsities):
        later = sparsities[i + 1 :]
        cut = cutter.after_training(method, sparsity, trained(whole, mask), mask, later=later)
        found, counts = survivors(cutter.structure, "weight", cut.mask), cutter.counts(method, sparsity)
        assert mask is None or not (cut.mask & ~mask).any()
        if pattern == "unstructured":
            assert sum(found) == sum(counts)
            assert later or len(counts) == 1 or found == list(counts)
            rising = [np.array(cutter.counts(method, s)) > counts for s in later]
            assert np.any(rising) or len(counts) == 1 or found == list(counts)
        mask = cut.mask


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
def test_counts_that_fall_to_others_have_their_total_and_give_where_there_is_most(pairs):
    counts, needed = ([pair[side] for pair in pairs] for side in (0, 1))
    counts[0] += max(0, sum(needed) - sum(counts))
    found = falling_to(counts, needed)
    assert sum(found) == sum(counts)
    for before, after, least in zip(counts, found, needed, strict=True):
        assert least <= after <= max(before, least)
    given_up = [max(before, least) - after for before, after, least in zip(counts, found, needed, strict=True)]
    above = [max(0, before - least) for before, least in zip(counts, needed, strict=True)]
    exact = [sum(given_up) * spare / max(1, sum(above)) for spare in above]
    assert all(abs(took - share) < 1 for took, share in zip(given_up, exact, strict=True))
    if all(before >= least for before, least in zip(counts, needed, strict=True)):
        assert found == tuple(counts)


@pytest.mark.parametrize("family", oracle.SMALL)
def test_a_compact_lane_is_cut_as_the_parent_with_zeros_would_be(family, state_of):
    """Group norms do not see what is gone, wherever the lane keeps the rest of its nodes."""
    cutter, whole = cutter_of(family, "node", "global"), state_of(family, 1)
    method = Pruning("levels")
    first = cutter.after_training(method, 0.4, whole, None).mask
    compact = trained(whole, first, "node")
    lanes = whole.masked(torch.from_numpy(first)[None], "node")
    expected = cutter.after_training(method, 0.7, lanes, None).mask
    assert (cutter.after_training(method, 0.7, compact, first).mask == expected).all()
    # The same in a pack with a wider lane, which pads this one.
    wider = np.ones_like(first)
    parent = {name: view[0] for name, view in whole.parameters.items()}
    padded = node_masked_lanes(cutter.structure, parent, np.stack([wider, first])).select([1])
    assert (cutter.after_training(method, 0.7, replace(compact, lanes=padded), first).mask == expected).all()


@pytest.mark.parametrize("family", ["mlp", "conv1d"])
def test_two_of_every_four_inputs_are_kept_to_the_last_group(family, state_of):
    cutter, state = cutter_of(family), state_of(family, 1)
    method = PRUNERS["nm_2_4"].method
    mask = cutter.after_training(method, 0.5, state, None).mask
    weights = {name: view[0].abs() for name, view in state.parameters.items()}
    parts = split_sections(cutter.structure, "weight", mask)
    for tensor, part in zip(cutter.structure.prunable, parts, strict=True):
        kept = torch.from_numpy(part).view(tensor.shape[0], tensor.shape[1], -1)
        n_whole = tensor.shape[1] // 4 * 4
        groups = kept[:, :n_whole].unflatten(1, (-1, 4))
        assert (groups.sum(dim=2) == 2).all()
        assert kept[:, n_whole:].all()
        sizes = weights[tensor.name].view(kept.shape)[:, :n_whole].unflatten(1, (-1, 4))
        least = torch.where(groups, sizes, torch.inf).amin(dim=2)
        assert (torch.where(groups, -torch.inf, sizes).amax(dim=2) <= least).all()


@pytest.mark.parametrize("when", ["init", "trained"])
@pytest.mark.parametrize("family", ["mlp", "conv1d"])
@pytest.mark.parametrize("pattern", ["4x4", "3x1"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_blocks_are_whole_under_every_allocation(when, family, pattern, allocation, state_of):
    cutter, state = cutter_of(family, allocation=allocation), state_of(family, 1)
    method, structure = Pruning(when, pattern=pattern), cutter.structure
    make = cutter.at_init if when == "init" else partial(cutter.after_training, mask=None)
    scores = SCORES["magnitude"].of(state, "weight")[0].numpy()
    n_out, n_in = map(int, pattern.split("x"))
    for sparsity in LEVELS:
        mask = make(method, sparsity, state=state).mask
        wanted = cutter.counts(method, sparsity)
        if allocation == "global":
            wanted = counts_from_scores(structure, "weight", scores, sparsity)
        assert survivors(structure, "weight", mask) == list(pattern_counts(pattern, structure, wanted))
        for tensor, part in zip(structure.prunable, split_sections(structure, "weight", mask), strict=True):
            grid = part.reshape(*tensor.shape[:2], -1)
            for i in range(0, tensor.shape[0], n_out):
                for j in range(0, tensor.shape[1], n_in):
                    assert np.unique(grid[i : i + n_out, j : j + n_in]).size == 1


@pytest.mark.parametrize("family", oracle.SMALL)
@pytest.mark.parametrize("pattern", ["1:4", "2:3", "4x4", "3x1"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_chain_under_a_pattern_is_of_it_at_every_level_and_brings_nothing_back(family, pattern, allocation, state_of):
    cutter, whole = cutter_of(family, allocation=allocation), state_of(family, 1)
    structure, rule = cutter.structure, parse_pattern(pattern)
    mask = None
    for sparsity in (*LEVELS[:-1], 1 - rule.density if rule.density and rule.density < 0.4 else 0.9):
        method = Pruning("levels", pattern=pattern)
        cut = cutter.after_training(method, sparsity, trained(whole, mask), mask)
        stage, counts = rule.on_the_way(1 - sparsity), cutter.counts(method, sparsity)
        assert is_of_pattern(stage, structure, cut.mask)
        assert mask is None or not (cut.mask & ~mask).any()
        if rule.density is not None:
            assert survivors(structure, "weight", cut.mask) == list(stage.counts(structure, None))
        elif allocation == "uniform":
            # What is left may have no block as small as the count pays for: then one is kept all the same.
            exact = pattern_counts(pattern, structure, counts)
            largest = [rule.rivals(t)[0].shape[2] for t in structure.prunable]
            found = survivors(structure, "weight", cut.mask)
            assert all(0 < k <= max(n, size) for k, n, size in zip(found, exact, largest, strict=True))
            if mask is None or pattern == "3x1":  # (almost) one size: as without a chain
                assert found == list(exact)
        mask = cut.mask


@pytest.mark.parametrize("name", ["snip", "synflow"])
@pytest.mark.parametrize("pattern", ["2:4", "4x4"])
def test_rounds_under_a_pattern_score_what_is_left(name, pattern, state_of):
    cutter, state = cutter_of(), state_of("mlp", 1)
    method = replace(PRUNERS[name].method, pattern=pattern, rounds=4, allocation="uniform")
    rule = parse_pattern(pattern)
    cut = cutter.at_init(method, 0.5, state)
    assert is_of_pattern(rule, cutter.structure, cut.mask)
    assert cut.passes == SCORES[name].passes(24, 4)
    exact = pattern_counts(pattern, cutter.structure, cutter.counts(method, 0.5))
    found = survivors(cutter.structure, "weight", cut.mask)
    assert found == list(exact) or (
        pattern == "4x4" and all(n - 16 <= k <= n for k, n in zip(found, exact, strict=True))
    )
    left = state
    for i in range(1, 5):
        density = geometric(0.5, i, 4)
        scores = SCORES[name].of(left, "weight")[0].double().numpy()
        alive = np.isfinite(scores)
        scores[~alive] = -1e6
        stage = rule.on_the_way(density)
        numbers = stage.kept(cutter.structure, cutter.counts(method, 1 - density), alive)
        mask = keep_rivals(stage, cutter.structure, scores, numbers)
        assert not (mask & ~alive).any()
        left = left.masked(torch.from_numpy(mask)[None], "weight")
    assert (cut.mask == mask).all()
    assert (mask != cutter.at_init(replace(method, rounds=1), 0.5, state).mask).any()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x4"])
@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_random_masks_to_begin_with_are_of_their_pattern(pattern, allocation):
    cutter, method = cutter_of(allocation=allocation), Pruning("during", update="rigl", pattern=pattern)
    structure, sparsity = cutter.structure, 0.5
    masks = [cutter.at_random(method, sparsity, philox_key(1, "test", i)) for i in (0, 0, 1)]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()
    for i, mask in zip((0, 0, 1), masks, strict=True):
        assert is_of_pattern(parse_pattern(pattern), structure, mask)
        wanted = cutter.counts(method, sparsity)
        if allocation == "global":
            single = draw(structure.section_sizes("weight"), wanted, philox_key(1, "test", i), start=0, stop=1)[0]
            wanted = survivors(structure, "weight", single)
        assert survivors(structure, "weight", mask) == list(pattern_counts(pattern, structure, wanted))


def test_blocks_that_are_chosen_in_training_have_no_count_over_all_layers():
    cutter = cutter_of(allocation="global")
    with pytest.raises(
        SpaceError, match=r"allocation='global' with pattern='4x4' and update='gradual': .* such as 'erk'"
    ):
        cutter.kept(Pruning("during", update="gradual", pattern="4x4"), 0.5)
    assert cutter.kept(Pruning("during", update="gradual", pattern="2:4"), 0.25) == (3, 3, 3)
    assert cutter.kept(Pruning("during", update="gradual"), 0.5) == cutter.counts(Pruning("init"), 0.5)


@pytest.mark.parametrize("when", ["init", "trained"])
def test_explicit_densities_are_those_of_the_layers(when, state_of):
    cutter, state = cutter_of(), state_of("mlp", 1)
    sizes = cutter.structure.section_sizes("weight")
    densities = (0.1, *[0.5] * (len(sizes) - 2), 1)
    counts = [max(1, int(d * n + 0.5)) for d, n in zip(densities, sizes, strict=True)]
    sparsity = 1 - sum(counts) / sum(sizes)
    method = Pruning(when, allocation="explicit", densities=densities)
    make = cutter.at_init if when == "init" else partial(cutter.after_training, mask=None)
    assert survivors(cutter.structure, "weight", make(method, sparsity, state=state).mask) == counts
    with pytest.raises(SpaceError, match="these leave sparsity"):
        make(method, 0.99, state=state)


# Activating while pruning.


def moved(state, seed=0):
    """The lane after a training in which every weight moved a little."""
    generator = torch.Generator().manual_seed(seed)
    return replace(state, start=state.lanes.flat + 0.1 * torch.randn(state.lanes.flat.shape, generator=generator))


def test_activating_with_share_zero_is_its_base_to_the_bit(state_of):
    cutter, state = cutter_of(allocation="global"), moved(state_of("mlp", 1))
    for sparsity in LEVELS:
        base = cutter.after_training(Pruning("levels"), sparsity, state, None).mask
        assert (cutter.after_training(Pruning("levels", ap_fraction=0.0), sparsity, state, None).mask == base).all()


@pytest.mark.parametrize("sign", [-1, 1])
def test_activating_takes_its_share_from_the_weights_of_one_sign_that_moved_least(sign, state_of):
    cutter, state = cutter_of(allocation="global"), moved(state_of("mlp", 1))
    method = Pruning("levels", ap_fraction=0.05, ap_sign=sign)
    n = cutter.structure.n_weights
    kept = kept_counts(cutter.structure, "weight", 0.2, "global")[0]
    n_late = int((n - kept) * 0.05 / 0.2)
    assert n_late > 5
    mask = torch.from_numpy(cutter.after_training(method, 0.2, state, None).mask)
    assert int(mask.sum()) == kept
    weights = state.of_weights(state.lanes.flat)[0]
    movement = (weights - state.of_weights(state.start)[0]).abs()
    # What the base score alone would take first, and what else is gone.
    base = torch.zeros(n, dtype=torch.bool)
    base[weights.abs().sort(descending=True, stable=True).indices[: kept + n_late]] = True
    late = base & ~mask
    assert int(late.sum()) == n_late
    assert not (mask & ~base).any()
    assert (weights[late] * sign > 0).all()
    assert movement[late].max() <= movement[mask & (weights * sign > 0)].min()


@pytest.mark.parametrize("n_negative", [0, 1, 7, 40])
def test_activating_has_exact_counts_when_there_are_few_negative_weights(n_negative, state_of):
    cutter, state = cutter_of(allocation="global"), moved(state_of("mlp", 1))
    flat = state.lanes.flat.abs()
    # The negative ones are among the largest, so that the base score leaves them.
    largest = state.of_weights(flat)[0].topk(n_negative).indices
    views = state.lanes.layout.views(flat)
    position = 0
    for tensor in cutter.structure.prunable:
        view = views[tensor.name].view(-1)
        own = largest[(largest >= position) & (largest < position + len(view))] - position
        view[own] *= -1
        position += len(view)
    state = replace(state, lanes=LaneStack(state.lanes.layout, flat, None))
    weights = state.of_weights(flat)[0]
    assert int((weights < 0).sum()) == n_negative
    method = Pruning("levels", rate=0.5, ap_fraction=0.45, allocation="global")
    mask = None
    for sparsity in (0.3, 0.5, 0.8):
        # The parent of these weights again under the last mask.
        under = trained(state, mask)
        found = cutter.after_training(method, sparsity, under, mask).mask
        assert_counts(cutter, method, sparsity, found)
        assert mask is None or not (found & ~mask).any()
        mask = found
    # Asked for more than there are, it takes all it may: those that are the last of their layer stay.
    assert int((weights[torch.from_numpy(mask)] < 0).sum()) <= len(cutter.structure.prunable)


def test_activating_leaves_every_layer_something(state_of):
    cutter, state = cutter_of(allocation="global"), moved(state_of("mlp", 1))
    flat = -state.lanes.flat.abs()
    views = state.lanes.layout.views(flat)
    small = views[cutter.structure.prunable[0].name]
    small *= 1e-6  # its best one stays for its layer alone
    start = flat.clone()
    state.lanes.layout.views(start)[cutter.structure.prunable[1].name].add_(1.0)
    state = replace(state, lanes=LaneStack(state.lanes.layout, flat, None), start=start)
    method = Pruning("levels", rate=0.9, ap_fraction=0.8, allocation="global")
    mask = cutter.after_training(method, 0.8, state, None).mask
    assert_counts(cutter, method, 0.8, mask)


def test_activating_is_of_weights_wherever_they_are(state_of):
    method = Pruning("levels", ap_fraction=0.1)
    for kind, allocation in (("node", "global"), ("weight", "uniform")):
        cutter = cutter_of(kind=kind, allocation=allocation)
        with pytest.raises(SpaceError, match=r"use masks\.kind 'weight' and allocation 'global'"):
            cutter.after_training(method, 0.5, moved(state_of("mlp", 1)), None)


# Weights at their places.


@pytest.mark.parametrize("family", oracle.SMALL)
def test_what_is_scattered_can_be_gathered_again(family, state_of):
    structure = oracle.small_model(family).structure
    state = state_of(family, 1)
    parent = {name: view[0] for name, view in state.parameters.items()}
    rng = np.random.Generator(np.random.Philox(key=3))
    masks = np.concatenate(
        [rng.permuted(np.arange(g.size) < max(1, g.size - d), axis=0)[None] for d in (2,) for g in structure.groups],
        axis=1,
    )
    lanes = node_masked_lanes(structure, parent, np.concatenate([masks, np.ones_like(masks)]))
    for lane, mask in enumerate((masks[0], np.ones_like(masks[0]))):
        compact = {name: view[lane] for name, view in lanes.layout.views(lanes.flat).items()}
        whole = scatter_nodes(structure, mask, compact)
        again = node_masked_lanes(structure, whole, np.stack([mask, np.ones_like(mask)]))
        assert torch.equal(again.flat[lane], lanes.flat[lane])
        # Nothing but the kept nodes: what a mask of zeros would leave.
        zeros = state.masked(torch.from_numpy(mask)[None], "node").parameters
        assert all(torch.equal(whole[name], zeros[name][0]) for name in whole)


def test_every_allocation_is_one_of_a_method(state_of):
    for name, row in ALLOCATIONS.items():
        for kind in row.kinds:
            cutter = cutter_of(kind=kind)
            method = Pruning("trained", allocation=name)
            assert_counts(cutter, method, 0.7, cutter.after_training(method, 0.7, state_of("mlp", 1), None).mask)
