from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsefront.errors import SpaceError
from sparsefront.trainables.diagnostics import distances, instability
from sparsefront.trainables.lanes import node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.pack import evaluate
from tests.oracles.networks import measure, small_model


def siblings(n=3, seed=0):
    """Two stacks of perceptrons of independent weights under the same masks."""
    model = small_model("mlp")
    rng = np.random.default_rng(seed)
    masks = rng.random((n, model.structure.n_weights)) < 0.5
    parents = [
        {t.name: torch.from_numpy(rng.standard_normal(t.shape).astype("f")) for t in model.structure.tensors}
        for _ in range(2)
    ]
    return model, *(weight_masked_lanes(model.structure, parent, masks) for parent in parents)


def test_curve_is_that_of_each_network_on_the_line(examples):
    model, a, b = siblings()
    found = instability(model, a, b, examples[1], points=5)
    assert found.positions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    for i, position in enumerate(found.positions):
        for lane in range(3):
            weights = {
                n: position * a.layout.views(a.flat)[n][lane] + (1 - position) * b.layout.views(b.flat)[n][lane]
                for n in a.layout.names
            }
            loss, error = measure("mlp", weights, examples[1])
            assert found.loss[i, lane] == pytest.approx(loss, abs=1e-4)
            assert found.error[i, lane] == pytest.approx(error)
    for end, lanes in ((0, b), (-1, a)):
        np.testing.assert_array_equal([found.loss[end], found.error[end]], evaluate(model, lanes, examples[1]))
    np.testing.assert_allclose(found.error_instability, found.error.max(0) - (found.error[0] + found.error[-1]) / 2)


def test_masks_multiply_both_ends(examples):
    model, a, b = siblings()
    expected = instability(model, a, b, examples[1], points=3)
    for lanes in (a, b):
        lanes.flat[lanes.keep == 0] = 7.0
    found = instability(model, a, b, examples[1], points=3)
    np.testing.assert_array_equal(found.loss, expected.loss)
    assert not (distances(model.structure, a, b).l2 > 30).any()


def test_no_barrier_where_the_loss_is_convex(examples):
    """The loss is convex in the last layer: nothing on the line is above its worse end."""
    model, a, _ = siblings()
    b = a.select(slice(None))
    b.layout.views(b.flat)["layers.2.weight"].mul_(-1)
    found = instability(model, a, b, examples[1])
    assert len(found.positions) == 11
    np.testing.assert_allclose(found.loss_instability, abs(found.loss[0] - found.loss[-1]) / 2)
    same = instability(model, a, a, examples[1])
    np.testing.assert_allclose(same.loss_instability, 0, atol=1e-5)
    assert not same.error_instability.any()


def test_permuted_units_are_the_same_function_behind_a_barrier(examples):
    """Gaussian clouds learnt by their means: with units permuted, every unit is half the wrong one."""
    model = small_model("mlp")
    train, validation = examples
    means = torch.stack([train.x[train.labels == c].mean(dim=0) for c in range(4)])
    weights = {t.name: torch.zeros(t.shape) for t in model.structure.tensors}
    weights["layers.0.weight"][:4] = means
    weights["layers.1.weight"][:4, :4] = torch.eye(4)
    weights["layers.2.weight"][:, :4] = 5 * torch.eye(4)
    order = torch.tensor([1, 0, 3, 2, *range(4, 12)])
    permuted = dict(weights)
    permuted["layers.0.weight"] = weights["layers.0.weight"][order]
    permuted["layers.1.weight"] = weights["layers.1.weight"][:, order]
    everything = np.ones((1, model.structure.n_weights), dtype=bool)
    a, b = (weight_masked_lanes(model.structure, w, everything) for w in (weights, permuted))
    found = instability(model, a, b, validation)
    assert found.error[0, 0] == found.error[-1, 0] < 0.3
    np.testing.assert_allclose(found.loss, found.loss[::-1], rtol=1e-4)  # swapping is its own inverse
    assert found.loss_instability[0] > 0.1
    assert found.error_instability[0] > 0.1


def test_a_sibling_that_diverged_has_no_instability(examples):
    model, a, b = siblings(2)
    b.flat[1] = np.inf
    found = instability(model, a, b, examples[1], points=3)
    assert np.isnan(found.error_instability).tolist() == [False, True]
    assert np.isnan(found.loss_instability).tolist() == [False, True]


def test_distances():
    model, a, b = siblings()
    found = distances(model.structure, a, b)
    for lane in range(3):
        u, v = (
            torch.cat([s.layout.views(s.flat)[t.name][lane].flatten() for t in model.structure.prunable]).double()
            for s in (a, b)
        )
        assert found.l2[lane] == pytest.approx((u - v).norm().item())
        assert found.angle_rad[lane] == pytest.approx(torch.acos(u @ v / u.norm() / v.norm()).item())
    for factor, angle in ((2.0, 0.0), (-1.0, np.pi)):
        scaled = a.select(slice(None))
        scaled.flat.mul_(factor)
        np.testing.assert_allclose(distances(model.structure, a, scaled).angle_rad, angle, atol=1e-7)
    scaled.flat.zero_()
    assert np.isnan(distances(model.structure, a, scaled).angle_rad).all()


def test_distance_to_a_dense_sibling_is_over_the_ticket():
    model, ticket, other = siblings()
    dense = type(other)(other.layout, other.flat + (1 - other.keep), None)
    np.testing.assert_allclose(
        distances(model.structure, ticket, dense).l2, distances(model.structure, ticket, other).l2
    )


def test_refusals(examples):
    model, a, b = siblings()
    with pytest.raises(SpaceError, match="points=2: at least 3"):
        instability(model, a, b, examples[1], points=2)
    with pytest.raises(SpaceError, match=r"lanes_a of 3 .* lanes_b of 2 .* siblings of the same shape"):
        distances(model.structure, a, b.select([0, 1]))
    nodes = np.ones((3, model.structure.n_nodes), dtype=bool)
    nodes[:, 0] = False
    parent = {n: t[0] for n, t in a.layout.views(a.flat).items()}
    with pytest.raises(SpaceError, match="siblings of the same shape"):
        instability(model, a, node_masked_lanes(model.structure, parent, nodes), examples[1])
