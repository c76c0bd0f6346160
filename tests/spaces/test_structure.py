"""Structures: shapes, parameters and multiply-accumulates of every sub-network."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables.models import build_model
from tests.oracles.networks import SMALL, small_model

# Two convolutions of 3 and 4 channels on signals of lengths 10 and 5, flattened into a Linear layer with 2 outputs.
NET = Structure(
    (
        Tensor("a.weight", (3, 1, 5), True, positions=10),
        Tensor("a.bias", (3,), False),
        Tensor("b.weight", (4, 3, 3), True, positions=5),
        Tensor("c.weight", (2, 20), True),
    ),
    (
        NodeGroup("a", 3, (Axis("a.weight", 0), Axis("a.bias", 0), Axis("b.weight", 1))),
        NodeGroup("b", 4, (Axis("b.weight", 0), Axis("c.weight", 1, 5))),
    ),
)


def test_counts_by_hand():
    assert NET.n_params == 15 + 3 + 36 + 40
    assert NET.n_weights == 15 + 36 + 40
    assert NET.n_nodes == 7
    assert NET.macs == 150 + 180 + 40
    assert NET.section_sizes("node") == (3, 4)
    assert NET.section_sizes("weight") == (15, 36, 40)


def test_compacting_shrinks_every_axis_of_a_group():
    small = NET.compact([2, 1])
    assert [t.shape for t in small.tensors] == [(2, 1, 5), (2,), (1, 2, 3), (2, 5)]
    assert small.section_sizes("node") == (2, 1)
    assert small.macs == 100 + 30 + 10
    assert NET.compact([3, 4]) == NET
    assert NET.compact([2, 3]).compact([1, 2]) == NET.compact([1, 2])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([0, 1], r"kept=0 nodes in group 'a': must lie in 1..3"),
        ([3, 5], r"kept=5 nodes in group 'b': must lie in 1..4"),
        ([3], r"kept=\[3\]: one count for each of the 2 node groups is needed"),
    ],
)
def test_counts_that_do_not_fit_are_refused(kept, message):
    with pytest.raises(SpaceError, match=message):
        NET.compact(kept)


def test_an_unknown_kind_is_refused():
    with pytest.raises(SpaceError, match="mask kind='filter': must be 'node' or 'weight'"):
        NET.section_sizes("filter")


def alike(structure):
    """All sizes of one factor for all groups, rounded up."""
    largest = max(g.size for g in structure.groups)
    return [
        structure.compact([max(1, -(-g.size * i // largest)) for g in structure.groups]) for i in range(1, largest + 1)
    ]


def rounded(structure):
    """All sizes of one share for all groups, each rounded up or down: every share at which one of them changes."""
    shares = sorted({Fraction(k, g.size) for g in structure.groups for k in range(g.size + 1)})
    return [
        structure.compact(
            [min(g.size, max(1, math.floor(g.size * share) + up)) for g, up in zip(structure.groups, ups, strict=True)]
        )
        for share in shares
        for ups in itertools.product((0, 1), repeat=len(structure.groups))
    ]


@pytest.mark.parametrize("family", SMALL)
def test_scaling_finds_the_nearest_size_among_all(family):
    structure = small_model(family).structure
    of_one_factor = {net.n_params: net for net in reversed(alike(structure))}
    sizes = {*of_one_factor, *(net.n_params for net in rounded(structure))}
    for wanted in range(1, structure.n_params + 20, 7):
        found = structure.scaled_to(wanted)
        nearest = min(of_one_factor, key=lambda n: (abs(n - wanted), -n))
        if abs(nearest - wanted) <= 0.01 * wanted:
            assert found == of_one_factor[nearest], "the shape of the parent, if the count allows it"
        else:
            assert abs(found.n_params - wanted) == min(abs(n - wanted) for n in sizes)


def test_small_convolutions_are_scaled_layer_by_layer():
    structure = build_model("conv1d", {"channels": [8, 8, 8]}, input_shape=(40,), n_classes=10).structure
    one_factor = min((net.n_params for net in alike(structure)), key=lambda n: abs(n - 199))
    assert (one_factor, structure.scaled_to(199).n_params) == (238, 207)


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 9), min_size=7, max_size=9), share=st.floats(0, 1))
def test_of_many_groups_scaling_is_off_by_half_a_node_at_most(sizes, share):
    names = [f"t{i}" for i in range(len(sizes))]
    tensors = tuple(Tensor(n, (a, b), True) for n, a, b in zip(names, sizes[1:], sizes[:-1], strict=False))
    groups = [NodeGroup("g0", sizes[0], (Axis("t0", 1),))]
    for i, size in enumerate(sizes[1:], start=1):
        axes = [Axis(names[i - 1], 0), *([Axis(names[i], 1)] if i < len(tensors) else [])]
        groups.append(NodeGroup(f"g{i}", size, tuple(axes)))
    structure = Structure(tensors, tuple(groups))
    least = structure.compact([1] * len(sizes)).n_params
    wanted = least + round(share * (structure.n_params - least))
    found = structure.scaled_to(wanted)
    kept = found.section_sizes("node")
    nodes = [
        abs(found.n_params - structure.compact([k + step * (i == g) for i, k in enumerate(kept)]).n_params)
        for g, size in enumerate(sizes)
        for step in (-1, 1)
        if 1 <= kept[g] + step <= size
    ]
    assert abs(found.n_params - wanted) <= max(0.01 * wanted, max(nodes, default=0) / 2)


def test_scaling_to_its_own_size_is_the_network_itself():
    for family in SMALL:
        structure = small_model(family).structure
        assert structure.scaled_to(structure.n_params) == structure


def test_of_two_sizes_equally_near_the_larger_is_taken():
    net = Structure((Tensor("a.weight", (8, 2), True),), (NodeGroup("a", 8, (Axis("a.weight", 0),)),))
    assert net.scaled_to(9).n_params == 10
