"""Canonical forms of searched masks under permutations of hidden units."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces import canonical
from sparsefront.spaces.canonical import canonical_bits, permuted
from sparsefront.spaces.masks import mask_digest, pack_bits, unpack_bits
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor


def perceptron(*sizes):
    tensors, groups = [], []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        tensors += [Tensor(f"{i}.weight", (b, a), True), Tensor(f"{i}.bias", (b,), False)]
        if i < len(sizes) - 2:
            axes = (Axis(f"{i}.weight", 0), Axis(f"{i}.bias", 0), Axis(f"{i + 1}.weight", 1))
            groups.append(NodeGroup(f"{i}", b, axes))
    return Structure(tuple(tensors), tuple(groups))


def convolutional(c1, c2):
    """Two convolutions of kernel 3, flattened over 2 positions into a Linear layer."""
    tensors = (Tensor("a", (c1, 1, 3), True), Tensor("b", (c2, c1, 3), True), Tensor("c", (2, c2 * 2), True))
    return Structure(
        tensors,
        (NodeGroup("a", c1, (Axis("a", 0), Axis("b", 1))), NodeGroup("b", c2, (Axis("b", 0), Axis("c", 1, 2)))),
    )


def residual(width):
    """One stream: a square tensor whose two axes are the same nodes."""
    tensors = (Tensor("a", (width, 2), True), Tensor("b", (width, width), True), Tensor("c", (2, width), True))
    axes = (Axis("a", 0), Axis("b", 0), Axis("b", 1), Axis("c", 1))
    return Structure(tensors, (NodeGroup("stream", width, axes),))


NETS = [perceptron(2, 4, 2), perceptron(2, 3, 3, 2), convolutional(3, 3), residual(4), perceptron(3, 12, 8, 2)]
#: A node's bias trades places with it.
NETS += [perceptron(2, 3, 3, 2).with_prunable_biases()]


@st.composite
def masks(draw, nets=NETS):
    """A net, a mask of any density, and an order for each node group."""
    net = draw(st.sampled_from(nets))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = generator.random(net.n_weights) < draw(st.sampled_from([0.02, 0.1, 0.3, 0.5, 0.9, 1.0]))
    return net, mask, [generator.permutation(g.size) for g in net.groups]


def packed(mask):
    return pack_bits(np.asarray(mask, dtype=bool)).tobytes()


@given(masks())
def test_permuted_units_have_one_canonical_form(case):
    net, mask, orders = case
    form = canonical_bits(net, "weight", packed(mask))
    assert canonical_bits(net, "weight", permuted(net, mask, orders)) == form
    assert canonical_bits(net, "weight", form) == form


@settings(max_examples=60)
@given(masks(NETS[:4]), masks(NETS[:4]))
def test_the_canonical_form_is_a_permutation_and_tells_others_apart(case, other):
    net, mask, _ = case
    orbit = {
        permuted(net, mask, [np.array(o) for o in orders])
        for orders in itertools.product(*(itertools.permutations(range(g.size)) for g in net.groups))
    }
    form = canonical_bits(net, "weight", packed(mask))
    assert form in orbit
    if other[0] is net:
        same = canonical_bits(net, "weight", packed(other[1])) == form
        assert same == (packed(other[1]) in orbit)


def test_counts_of_every_section_are_kept():
    net = perceptron(5, 9, 7, 3)
    mask = np.random.default_rng(0).random(net.n_weights) < 0.3
    form = unpack_bits(canonical_bits(net, "weight", packed(mask)), net.n_weights)
    edges = np.cumsum([0, *net.section_sizes("weight")])[:-1]
    assert np.add.reduceat(form, edges, dtype=int).tolist() == np.add.reduceat(mask, edges, dtype=int).tolist()


def test_symmetric_paths_need_few_turns():
    # 24 equal paths through two layers: 24! symmetries, of which each level needs to see one
    n = 24
    net = perceptron(1, n, n, 1)
    mask = np.concatenate([np.ones(n), np.eye(n).ravel(), np.ones(n)]).astype(bool)
    search = canonical._Search(net, mask)
    form = search.smallest()
    assert search.n_turns < canonical.MAX_TURNS
    order = np.random.default_rng(1).permutation(n)
    assert canonical_bits(net, "weight", permuted(net, mask, [order, np.arange(n)])) == form


def test_effort_is_bounded_and_the_answer_is_the_same_for_the_same_bits(monkeypatch):
    monkeypatch.setattr(canonical, "MAX_TURNS", 3)
    monkeypatch.setattr(canonical, "_MAX_SINGLED", 4)
    n = 12
    net = perceptron(1, n, n, 1)
    ring = np.eye(n) + np.roll(np.eye(n), 1, axis=1)
    mask = np.concatenate([np.ones(n), ring.ravel(), np.ones(n)]).astype(bool)
    first = canonical_bits(net, "weight", packed(mask))
    assert canonical_bits(net, "weight", packed(mask)) == first
    assert unpack_bits(first, net.n_weights).sum() == mask.sum()


def test_large_dense_and_dead_layers_are_quick_ties():
    net = perceptron(4, 400, 300, 3)
    for mask in (np.ones(net.n_weights, bool), np.zeros(net.n_weights, bool)):
        search = canonical._Search(net, mask)
        assert search.smallest() == packed(mask)
        assert search.n_turns == 0


@pytest.mark.parametrize("net", NETS)
def test_only_counts_of_a_node_mask_remain(net):
    kept = [1 + i % g.size for i, g in enumerate(net.groups)]
    mask = np.concatenate([np.arange(g.size) >= g.size - k for g, k in zip(net.groups, kept, strict=True)])
    form = unpack_bits(canonical_bits(net, "node", packed(mask)), net.n_nodes)
    expected = np.concatenate([np.arange(g.size) < k for g, k in zip(net.groups, kept, strict=True)])
    assert form.tolist() == expected.tolist()


def test_golden_form():
    # pinned: digests of finished studies depend on it
    net = perceptron(3, 4, 2)
    mask = np.array([1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0], dtype=bool)
    assert mask_digest(canonical_bits(net, "weight", packed(mask))) == "7c4e177c223221072141db063500f5c3"


def test_wrong_bits_are_refused():
    with pytest.raises(SpaceError, match="packed mask of 1 bytes: a mask of 12 entries has 2"):
        canonical_bits(perceptron(2, 3, 2), "weight", b"\x01")
    cube = Structure((Tensor("a", (2, 2, 2), True),), (NodeGroup("g", 2, (Axis("a", 0), Axis("a", 1), Axis("a", 2))),))
    with pytest.raises(SpaceError, match="tensor 'a': 3 of its axes follow node groups"):
        canonical_bits(cube, "weight", b"\x01")
