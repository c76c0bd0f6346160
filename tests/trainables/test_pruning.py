"""Pruning: scores by hand on a small network, and masks of exactly the counts asked for."""

import numpy as np
import pytest

from sparsefront.errors import SpaceError
from sparsefront.spaces.allocations import ALLOCATIONS, kept_counts
from sparsefront.spaces.seeds import generator
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables.models import initial_weights
from sparsefront.trainables.pruning import CRITERIA, pruned_mask
from sparsefront.trainables.pruning.magnitude import magnitude
from tests.oracles import networks as oracle
from tests.oracles import spaces as slow

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


def test_a_node_scores_the_norm_of_all_that_leaves_with_it():
    # 1 + 4 + 4 + 0 + 16 = 25; 0 + 1 + 4 + 4 = 9; 9.
    assert magnitude(NET, "node", WEIGHTS).tolist() == [5, 3, 3]


def test_a_weight_scores_its_size():
    assert magnitude(NET, "weight", WEIGHTS).tolist() == [1, 2, 0, 0, 3, 0, 0, 4, 2, 2, 0, 0]


def test_a_skip_connection_adds_up_all_its_tensors():
    structure = oracle.small_model("residual_mlp").structure
    weights = initial_weights(structure, "torch", generator(0, "pruning"))
    w1, w2, w3 = (weights[f"linear{i}.weight"].astype(float) for i in (1, 2, 3))
    b1, b2 = (weights[f"linear{i}.bias"].astype(float) for i in (1, 2))
    expected = [
        np.sqrt(
            (w1[i] ** 2).sum()
            + (w2[i] ** 2).sum()
            + (w2[:, i] ** 2).sum()
            + (w3[:, i] ** 2).sum()
            + b1[i] ** 2
            + b2[i] ** 2
        )
        for i in range(structure.n_nodes)
    ]
    np.testing.assert_allclose(magnitude(structure, "node", weights), expected, rtol=1e-12)


def test_pruning_keeps_the_largest_and_the_first_of_equals():
    def kept(kind, sparsity):
        return pruned_mask("magnitude", NET, WEIGHTS, kind=kind, sparsity=sparsity, allocation="uniform").tolist()

    assert kept("node", 1 / 3) == [True, True, False]
    assert kept("node", 2 / 3) == [True, False, False]
    assert kept("weight", 0.5) == [True, True, False, False, True, False, False, True, True, True, False, False]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("allocation", "kind"), [(a, k) for a, rule in ALLOCATIONS.items() for k in rule.kinds])
@pytest.mark.parametrize("family", oracle.SMALL)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_leaves_exactly_the_counts_and_its_best(criterion, family, allocation, kind, sparsity):
    structure = oracle.small_model(family).structure
    weights = initial_weights(structure, "torch", generator(1, "pruning"))
    mask = pruned_mask(criterion, structure, weights, kind=kind, sparsity=sparsity, allocation=allocation)
    sizes, counts = structure.section_sizes(kind), kept_counts(structure, kind, sparsity, allocation)
    found = [sum(part) for part in slow.sections_of(sizes, mask.tolist())]
    if allocation == "global":
        assert sum(found) == counts[0]
        assert min(found) >= 1
    else:
        assert tuple(found) == counts
    scores = CRITERIA[criterion].score(structure, kind, weights)
    assert mask.tolist() == slow.top_k(scores.tolist(), sizes, counts)


def test_weights_that_are_not_finite_cannot_be_pruned():
    broken = {**WEIGHTS, "a.weight": np.full((3, 2), np.nan, dtype=np.float32)}
    for kind in ("node", "weight"):
        with pytest.raises(SpaceError, match="a diverged network cannot be pruned"):
            pruned_mask("magnitude", NET, broken, kind=kind, sparsity=0.5, allocation="uniform")
