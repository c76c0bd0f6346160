"""Structures: shapes, parameters and multiply-accumulates of every sub-network."""

import pytest

from sparsefront.errors import SpaceError
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
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


@pytest.mark.parametrize("family", SMALL)
def test_scaling_finds_the_nearest_size_among_all(family):
    structure = small_model(family).structure
    largest = max(g.size for g in structure.groups)
    sizes = [
        structure.compact([max(1, -(-g.size * i // largest)) for g in structure.groups]).n_params
        for i in range(1, largest + 1)
    ]
    for wanted in range(0, structure.n_params + 20, 7):
        found = structure.scaled_to(wanted).n_params
        assert found in sizes
        assert abs(found - wanted) == min(abs(n - wanted) for n in sizes)


def test_scaling_to_its_own_size_is_the_network_itself():
    for family in SMALL:
        structure = small_model(family).structure
        assert structure.scaled_to(structure.n_params) == structure


def test_of_two_sizes_equally_near_the_larger_is_taken():
    net = Structure((Tensor("a.weight", (8, 2), True),), (NodeGroup("a", 8, (Axis("a.weight", 0),)),))
    assert net.scaled_to(9).n_params == 10
