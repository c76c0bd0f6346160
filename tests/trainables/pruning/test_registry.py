"""What holds for every score, kind of mask and parent: exact counts, lanes alone and together, masks and errors."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.allocations import ALLOCATIONS, kept_counts
from sparsefront.spaces.masks import draw
from sparsefront.spaces.seeds import generator
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables import select
from sparsefront.trainables.lanes import dense_lanes, node_masked_lanes
from sparsefront.trainables.models import build_model, initial_weights
from sparsefront.trainables.pack import Examples
from sparsefront.trainables.pruning import SCORES, ScoringState, iterative_mask, keep_best
from sparsefront.trainables.pruning import state as state_module
from sparsefront.trainables.pruning.remains import Ranked, Remains
from sparsefront.trainables.pruning.scores import synflow
from tests.oracles import networks as oracle
from tests.oracles import spaces as slow
from tests.oracles.pruning import pruned_mask

CASES = [(name, kind) for name, score in SCORES.items() for kind in score.kinds]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)
every_family = pytest.mark.parametrize("family", oracle.SMALL)

# 2 inputs, 3 channels of 2 positions each flattened into 1 output: node i owns row i of `a` and two columns of `b`.
NET = Structure(
    (Tensor("a.weight", (3, 2), True), Tensor("a.bias", (3,), False), Tensor("b.weight", (1, 6), True)),
    (NodeGroup("a", 3, (Axis("a.weight", 0), Axis("a.bias", 0), Axis("b.weight", 1, 2))),),
)
WEIGHTS = {
    "a.weight": np.array([[1, -2], [0, 0], [3, 0]], dtype=np.float32),
    "a.bias": np.array([2, -1, 0], dtype=np.float32),
    "b.weight": np.array([[0, -4, 2, 2, 0, 0]], dtype=np.float32),
}


def counts_of(structure, kind, allocation):
    return lambda density: kept_counts(structure, kind, 1 - density, allocation)


@every_family
@every_case
def test_masks_have_exactly_the_counts_and_the_best(state_of, family, name, kind):
    state = state_of(family)
    scores = SCORES[name].of(state, kind)
    sizes = state.structure.section_sizes(kind)
    assert scores.shape == (3, sum(sizes))
    for allocation in ("uniform", "global"):
        for sparsity in (0.0, 0.5, 0.9):
            counts = kept_counts(state.structure, kind, sparsity, allocation)
            masks = keep_best(scores, sizes, counts)
            for mask, row in zip(masks, scores, strict=True):
                assert mask.tolist() == slow.top_k(row.tolist(), sizes, counts)


@every_family
@every_case
def test_a_lane_scores_alone_as_in_company_and_again(state_of, alone, family, name, kind):
    state = state_of(family)
    together = SCORES[name].of(state, kind)
    assert torch.equal(SCORES[name].of(state, kind), together)
    for lane in range(3):
        by_itself = SCORES[name].of(alone(state, lane), kind)[0]
        scale = float(together[lane].abs().max())
        torch.testing.assert_close(by_itself, together[lane], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("family", ["mlp", "conv1d"])
@every_case
def test_what_is_gone_is_never_kept_again(state_of, family, name, kind):
    state = state_of(family)
    sizes = state.structure.section_sizes(kind)
    gone = torch.from_numpy(generator(3, "gone").random((3, sum(sizes))) < 0.4)
    edges = np.cumsum([0, *sizes[:-1]])
    gone[:, edges] = False
    masked = state.masked(~gone, kind)
    scores = SCORES[name].of(masked, kind)
    assert torch.equal(scores == -torch.inf, gone)
    left = int((~gone).sum(dim=1).min())
    assert not (keep_best(scores, sizes, [left]) & gone).any()
    with pytest.raises(SpaceError, match="fewer entries are left than are to be kept"):
        keep_best(scores, sizes, [sum(sizes)])


@pytest.mark.parametrize("family", ["conv1d", "residual_mlp"])
@every_case
def test_scores_do_not_depend_on_how_much_is_worked_on_at_a_time(state_of, family, name, kind, monkeypatch):
    state = state_of(family)
    masked = state.masked(keep_best(SCORES["l1"].of(state, kind), *half_of(state.structure, kind)), kind)
    expected = [SCORES[name].of(each, kind) for each in (state, masked)]
    monkeypatch.setattr(state_module, "_BLOCK", 7)
    for each, scores in zip((state, masked), expected, strict=True):
        torch.testing.assert_close(SCORES[name].of(each, kind), scores, rtol=1e-12, atol=1e-13)


def half_of(structure, kind):
    """Entries of each section, and half of them."""
    sizes = structure.section_sizes(kind)
    return sizes, [-(-n // 2) for n in sizes]


@every_case
def test_a_diverged_lane_is_named(state_of, name, kind):
    state = state_of("mlp")
    state.lanes.flat[1, 5] = float("nan")
    with pytest.raises(SpaceError, match=r"lanes=\[1\]: must be finite; a diverged network cannot be pruned"):
        SCORES[name].of(state, kind)


@every_case
def test_padded_lanes_score_as_compact_ones(state_of, name, kind):
    """Lanes of unequal size are padded with silent nodes, which are gone."""
    state = state_of("conv1d", 1)
    if name == "random":
        pytest.skip("its draws depend on the width of the pack")
    parent = {n: v[0] for n, v in state.lanes.layout.views(state.lanes.flat).items()}
    start = {n: v[0] for n, v in state.lanes.layout.views(state.start).items()}
    products = {n: v[0] for n, v in state.lanes.layout.views(state.products).items()}
    masks = np.zeros((2, 15), dtype=np.bool_)
    masks[0, [0, 2, 6, 7, 8, 11, 13]] = True  # 2, 3 and 2 channels
    masks[1, [1, 2, 4, 6, 10, 12]] = True  # 3, 2 and 1
    together = replace(
        state,
        lanes=node_masked_lanes(state.model.structure, parent, masks),
        start=node_masked_lanes(state.model.structure, start, masks).flat,
        products=node_masked_lanes(state.model.structure, products, masks).flat,
    )
    scores = SCORES[name].of(together, kind)
    for lane, mask in enumerate(masks):
        compact = replace(
            state,
            lanes=node_masked_lanes(state.model.structure, parent, mask[None]),
            start=node_masked_lanes(state.model.structure, start, mask[None]).flat,
            products=node_masked_lanes(state.model.structure, products, mask[None]).flat,
        )
        expected = SCORES[name].of(compact, kind)[0]
        assert compact.lanes.keep is None
        torch.testing.assert_close(scores[lane][scores[lane] > -torch.inf], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "magnitude"])
@pytest.mark.parametrize("kind", ["node", "weight"])
@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_rounds_shrink_to_the_exact_counts(state_of, name, kind, allocation):
    if kind not in ALLOCATIONS[allocation].kinds:
        pytest.skip("no such allocation")
    state = state_of("residual_mlp")
    rule, sizes = counts_of(state.structure, kind, allocation), state.structure.section_sizes(kind)
    masks = iterative_mask(SCORES[name], state, kind, density=0.1, counts_of=rule, rounds=7)
    found = [int(part.sum()) for part in torch.split(masks[0], list(sizes))]
    assert (tuple(found) if len(rule(0.1)) == len(sizes) else (sum(found),)) == rule(0.1)
    # Round by round, by hand.
    kept = torch.ones_like(masks)
    for i in range(1, 8):
        scores = SCORES[name].of(state.masked(kept, kind), kind)
        now = keep_best(scores, sizes, rule(0.1 ** (i / 7)))
        assert not (now & ~kept).any()
        kept = now
    assert torch.equal(kept, masks)
    one_shot = iterative_mask(SCORES[name], state, kind, density=0.1, counts_of=rule)
    assert torch.equal(one_shot, keep_best(SCORES[name].of(state, kind), sizes, rule(0.1)))


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_rounds_of_flow_that_keep_zeros_are_those_of_scoring_anew(state_of, allocation):
    """SynFlow knows what is gone by its score of zero, and most weights here have that score from the beginning."""
    state = state_of("mlp")
    few = torch.zeros_like(state.lanes.flat)
    few[:, ::7] = state.lanes.flat[:, ::7]
    state = replace(state, lanes=replace(state.lanes, flat=few))
    rule = counts_of(state.structure, "weight", allocation)
    anew = replace(SCORES["synflow"], in_rounds=None)
    found, expected = (
        iterative_mask(score, state, "weight", density=0.4, counts_of=rule, rounds=3)
        for score in (SCORES["synflow"], anew)
    )
    assert torch.equal(found, expected)
    assert (found.sum(dim=1) > torch.count_nonzero(few, dim=1)).all()
    broken = replace(state, lanes=replace(state.lanes, flat=few / 0))
    with pytest.raises(SpaceError, match=r"weights of lanes=.*: must be finite; a diverged network cannot be pruned"):
        iterative_mask(SCORES["synflow"], broken, "weight", density=0.4, counts_of=rule, rounds=3)


@pytest.mark.parametrize("family", oracle.SMALL)
@pytest.mark.parametrize("density", [0.5, 0.1])
@pytest.mark.parametrize("zeros", [0.0, 0.7])
@pytest.mark.parametrize("has_ties", [False, True])
def test_rounds_of_flow_in_blocks_are_those_of_all_scores_at_once(
    state_of, monkeypatch, family, density, zeros, has_ties
):
    state = state_of(family, 1)
    if has_ties:
        state = replace(state, lanes=replace(state.lanes, flat=state.lanes.flat.sign()))
    gone = torch.rand(state.lanes.flat.shape, generator=torch.Generator().manual_seed(0)) < zeros
    state = replace(state, lanes=replace(state.lanes, flat=state.lanes.flat.masked_fill(gone, 0)))
    rule = counts_of(state.structure, "weight", "global")
    cut = partial(iterative_mask, SCORES["synflow"], state, "weight", density=density, counts_of=rule)
    found = []

    def cut_row(*given):
        found.append(select.cut_row(*given))
        return found[-1]

    monkeypatch.setattr(state_module, "_BLOCK", 50)
    monkeypatch.setattr(select, "_SAMPLED", 40)
    for rounds in (1, 2, 12):
        expected = cut(rounds=rounds)
        with monkeypatch.context() as patch:
            patch.setattr(select, "_MANY", 1)
            patch.setattr(synflow, "cut_row", cut_row)
            assert torch.equal(cut(rounds=rounds), expected)
    assert len(found) == 15
    assert zeros or has_ties or sum(masks is not None for masks in found) > 5


def test_a_round_of_flow_keeps_what_is_left_and_scores_zero_before_what_is_gone(state_of, monkeypatch):
    state = state_of("mlp", 1)
    sparse = replace(state, lanes=replace(state.lanes, flat=torch.zeros_like(state.lanes.flat)))
    sparse.lanes.flat[:, ::3] = state.lanes.flat[:, ::3]
    n_nonzero = int(sparse.of_weights(sparse.lanes.flat).count_nonzero())
    monkeypatch.setattr(select, "_MANY", 1)
    flow, left = synflow.Flow(sparse), torch.ones(1, state.structure.n_weights, dtype=torch.bool)
    for k in (left.numel() - 5, n_nonzero + 10, n_nonzero + 10, n_nonzero // 2, n_nonzero // 2, n_nonzero // 3):
        flow.cut("weight", [k])
        assert flow.left.sum() == k
        assert not (flow.left & ~left).any()
        left = flow.left


def test_long_rounds_of_flow_are_those_of_scoring_anew():
    """At the size at which rows are sampled, through every form of what is left, down to few.

    Sums in another order change some 1e-15 of a score; near the threshold the next score is some 1e-6 away, so that two
    change places with a probability of about 1e-9 in a round.
    """
    model = build_model("mlp", {"widths": [512, 400]}, input_shape=(128,), n_classes=10)
    weights = [initial_weights(model.structure, "kaiming", generator(i, "rounds")) for i in range(2)]
    cpu = torch.device("cpu")
    examples = Examples.of(np.zeros((2, 128), np.float32), np.zeros(2, np.int64), 10, cpu)
    state = ScoringState(model, dense_lanes(model.structure, weights, cpu), examples)
    assert select.is_long(state.structure.n_weights)
    rule = counts_of(state.structure, "weight", "global")
    cut = partial(iterative_mask, kind="weight", density=0.05, counts_of=rule, rounds=12)
    masks = cut(SCORES["synflow"], state)
    assert torch.equal(masks, cut(replace(SCORES["synflow"], in_rounds=None), state))
    assert masks.sum(dim=1).tolist() == [rule(0.05)[0]] * 2
    # A lane's mask does not depend on its company.
    assert torch.equal(masks, torch.cat([cut(SCORES["synflow"], lane) for lane in state.alone()]))


def test_what_is_left_of_layers_is_run_through_in_forms_of_its_own(state_of, monkeypatch):
    monkeypatch.setattr(select, "_MANY", 1)
    state = state_of("mlp", 1)
    flow, n = synflow.Flow(state), state.structure.n_weights
    for k in (n // 2, n // 5, n // 5):
        flow.cut("weight", [k])
        assert int(flow.left.sum()) == k
    forms = [type(flow._parts[tensor.name]) for tensor in state.structure.prunable]
    assert forms[0] is Ranked
    assert Remains in forms[1:]


def test_rounds_go_on_from_a_mask(state_of):
    state = state_of("mlp")
    rule, size = counts_of(state.structure, "weight", "global"), state.structure.n_weights
    half = iterative_mask(SCORES["magnitude"], state, "weight", density=0.5, counts_of=rule)
    fifth = iterative_mask(
        SCORES["snip"], state.masked(half, "weight"), "weight", density=0.2, counts_of=rule, rounds=5
    )
    assert fifth.sum(dim=1).tolist() == [round(0.2 * size)] * 3
    assert not (fifth & ~half).any()
    with pytest.raises(SpaceError, match="rounds=0: must be at least 1"):
        iterative_mask(SCORES["snip"], state, "weight", density=0.2, counts_of=rule, rounds=0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), rounds=st.integers(1, 6), density=st.floats(0.02, 1.0))
def test_counts_that_rise_from_one_density_to_the_next_lower_bring_nothing_back(state_of_mlp, seed, rounds, density):
    state, numbers = state_of_mlp, generator(seed, "counts")
    sizes = state.structure.section_sizes("weight")
    counts = {}

    def uneven(d):
        return counts.setdefault(d, [int(numbers.integers(1, n + 1)) for n in sizes])

    masks = iterative_mask(SCORES["magnitude"], state, "weight", density=density, counts_of=uneven, rounds=rounds)
    found = [int(part.sum()) for part in torch.split(masks[0], list(sizes))]
    assert found == uneven(density)


@pytest.fixture(scope="module")
def state_of_mlp():
    model = oracle.small_model("mlp")
    weights = initial_weights(model.structure, "torch", generator(0, "scores"))
    return ScoringState(model, dense_lanes(model.structure, [weights], torch.device("cpu")))


def test_what_is_missing_is_asked_for(state_of):
    state = state_of("mlp")
    with pytest.raises(SpaceError, match=r"examples: must be given for every lane to score by 'largest \|w dL/dw\|'"):
        SCORES["snip"].of(replace(state, examples=None), "weight")
    with pytest.raises(SpaceError, match="start: must be given"):
        SCORES["movement"].of(replace(state, start=None), "node")
    with pytest.raises(SpaceError, match="keys: must be given for every lane"):
        SCORES["random"].of(replace(state, keys=state.keys[:2]), "node")


@pytest.mark.parametrize("name", ["apoz", "mean_activation"])
def test_scores_of_activations_are_refused_for_weights(state_of, name):
    with pytest.raises(SpaceError, match=r"mask kind='weight': this score \(nodes .*\) is of node masks only"):
        SCORES[name].of(state_of("mlp"), "weight")


@pytest.mark.parametrize("kind", ["node", "weight"])
def test_random_masks_are_those_that_are_drawn(state_of, kind):
    state = state_of("conv1d")
    sizes, counts = state.structure.section_sizes(kind), kept_counts(state.structure, kind, 0.7, "uniform")
    masks = iterative_mask(
        SCORES["random"], state, kind, density=0.3, counts_of=counts_of(state.structure, kind, "uniform")
    )
    for mask, key in zip(masks, state.keys, strict=True):
        assert mask.tolist() == draw(sizes, counts, key, start=0, stop=1)[0].tolist()


def test_cost_is_counted_in_passes_of_examples():
    cost = {name: score.passes(300, rounds=10) for name, score in SCORES.items()}
    assert cost["grasp"] == 3 * cost["snip"] == 9000
    assert cost["fisher"] == 2 * cost["taylor"] == 2 * cost["gradient_norm"] == 6000
    assert cost["apoz"] == cost["mean_activation"] == pytest.approx(1000)
    assert cost["synflow"] == 10
    assert cost["magnitude"] == cost["random"] == cost["movement"] == cost["lamp"] == 0


def test_every_bundled_model_can_be_scored(state_of):
    for family in oracle.CLASSIFIERS:
        assert SCORES["synflow"].of(state_of(family), "node").isfinite().all()


# Masks of trained weights ---------------------------------------------------------------------------------------------


def test_pruning_keeps_the_largest_and_the_first_of_equals():
    def kept(kind, sparsity):
        return pruned_mask("magnitude", NET, WEIGHTS, kind=kind, sparsity=sparsity, allocation="uniform").tolist()

    assert kept("node", 1 / 3) == [True, True, False]
    assert kept("node", 2 / 3) == [True, False, False]
    assert kept("weight", 0.5) == [True, True, False, False, True, False, False, True, True, True, False, False]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.99])
@pytest.mark.parametrize(("allocation", "kind"), [(a, k) for a, rule in ALLOCATIONS.items() for k in rule.kinds])
@every_family
@pytest.mark.parametrize("name", ["magnitude", "lamp"])
def test_pruning_leaves_exactly_the_counts(name, family, allocation, kind, sparsity):
    structure = oracle.small_model(family).structure
    weights = initial_weights(structure, "torch", generator(1, "pruning"))
    mask = pruned_mask(name, structure, weights, kind=kind, sparsity=sparsity, allocation=allocation)
    sizes, counts = structure.section_sizes(kind), kept_counts(structure, kind, sparsity, allocation)
    found = [sum(part) for part in slow.sections_of(sizes, mask.tolist())]
    if allocation == "global":
        assert sum(found) == counts[0]
        assert min(found) >= 1
    else:
        assert tuple(found) == counts


def test_pruning_of_trained_weights_has_no_examples_and_no_broken_weights():
    broken = {**WEIGHTS, "a.weight": np.full((3, 2), np.nan, dtype=np.float32)}
    for kind in ("node", "weight"):
        with pytest.raises(SpaceError, match="a diverged network cannot be pruned"):
            pruned_mask("magnitude", NET, broken, kind=kind, sparsity=0.5, allocation="uniform")
    with pytest.raises(SpaceError, match="examples: must be given"):
        pruned_mask("snip", NET, WEIGHTS, kind="node", sparsity=0.5, allocation="uniform")
