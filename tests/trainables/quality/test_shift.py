"""Geometry of the last layer: against a loop over examples, and under changes that should not matter."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn

from sparsefront.errors import ConfigError
from sparsefront.trainables.lanes import LaneStack, Layout
from sparsefront.trainables.models import Model
from sparsefront.trainables.models.mlp import MLP
from sparsefront.trainables.models.model import meta_module
from sparsefront.trainables.quality import measure
from sparsefront.trainables.quality.shift import geometry
from sparsefront.trainables.quality.subject import Inputs, Subject
from tests.oracles import networks as oracle


def parent_of(trained, examples, family="mlp"):
    model, flat, _, _ = trained(family)
    return Subject(model, Layout.of(model.structure), flat[None], Inputs(examples[1], seed=0))


def changed(subject, change):
    """The subject with its tensors changed in place by `change`."""
    flat = subject.flat.clone()
    change({n: v[0] for n, v in subject.layout.views(flat).items()})
    return Subject(subject.model, subject.layout, flat, subject.inputs)


def slow_geometry(w, x, labels):
    h = torch.relu(x.double() @ w["layers.0.weight"].T.double() + w["layers.0.bias"])
    h = torch.relu(h @ w["layers.1.weight"].T.double() + w["layers.1.bias"]).numpy()
    vectors, biases = w["layers.2.weight"].double().numpy(), w["layers.2.bias"].double().numpy()
    rows = []
    for f, y in zip(h, labels.tolist(), strict=True):
        angle = math.acos(f @ vectors[y] / np.linalg.norm(f) / np.linalg.norm(vectors[y]))
        distances = [
            ((vectors[y] - vectors[c]) @ f + biases[y] - biases[c]) / np.linalg.norm(vectors[y] - vectors[c])
            for c in range(len(vectors))
            if c != y
        ]
        rows.append((angle, np.linalg.norm(f), min(distances)))
    return np.array(rows)


def test_geometry_is_that_of_a_loop_over_examples(trained, examples):
    subject = parent_of(trained, examples)
    seen = geometry(subject, examples[1].x)
    slow = slow_geometry({n: v[0] for n, v in subject.tensors.items()}, examples[1].x, examples[1].labels)
    for i, name in enumerate(("angle", "length", "margin")):
        np.testing.assert_allclose(seen[name][0], slow[:, i], rtol=1e-4, atol=1e-5)
    assert torch.equal(seen["positive"][0], seen["margin"][0] > 0)


@pytest.mark.parametrize("family", oracle.SMALL)
def test_margins_are_positive_where_the_prediction_is_right(family, trained, examples):
    model, _, _, lanes = trained(family)
    subject = Subject(model, lanes.layout, lanes.flat, Inputs(examples[1], seed=0))
    seen = geometry(subject, examples[1].x)
    is_right = subject.clean.argmax(dim=2) == examples[1].labels
    assert torch.equal(seen["positive"], is_right)
    assert torch.equal(seen["margin"] > 0, is_right)


def test_moving_features_by_the_margin_reaches_the_boundary(trained, examples):
    """The definition in words: the nearest point at which the prediction changes is that far away."""
    subject = parent_of(trained, examples)
    seen = geometry(subject, examples[1].x)
    w = {n: v[0].double() for n, v in subject.tensors.items()}
    x = examples[1].x.double()
    h = torch.relu(
        torch.relu(x @ w["layers.0.weight"].T + w["layers.0.bias"]) @ w["layers.1.weight"].T + w["layers.1.bias"]
    )
    right = seen["positive"][0].nonzero()[:, 0][:10]
    directions = torch.randn(500, h.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=1, keepdim=True)
    for i in right.tolist():
        near = h[i] + 0.999 * seen["margin"][0, i] * directions
        predicted = (near @ w["layers.2.weight"].T + w["layers.2.bias"]).argmax(dim=1)
        assert (predicted == examples[1].labels[i]).all()


def test_scales_that_change_nothing(trained, examples):
    subject = parent_of(trained, examples)
    seen = geometry(subject, examples[1].x)

    def scale_logits(w):
        w["layers.2.weight"].mul_(4)
        w["layers.2.bias"].mul_(4)

    def scale_features(w):
        w["layers.1.weight"].mul_(2)
        w["layers.1.bias"].mul_(2)
        w["layers.2.weight"].div_(2)

    def permute(w):
        for name, dim in (("layers.1.weight", 0), ("layers.1.bias", 0), ("layers.2.weight", 1)):
            w[name].copy_(w[name].flip(dim))

    for change, factor in ((scale_logits, 1), (permute, 1), (scale_features, 2)):
        other = geometry(changed(subject, change), examples[1].x)
        torch.testing.assert_close(other["angle"], seen["angle"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(other["length"], factor * seen["length"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(other["margin"], factor * seen["margin"], atol=1e-4, rtol=1e-4)


def test_shifts_are_in_units_of_the_parent(trained, examples):
    model, flat, _, lanes = trained("mlp")
    columns = measure(["shift"], model, lanes, examples[1], parent=(model, flat), seed=0)
    inputs = Inputs(examples[1], seed=0)
    parent = {n: v[0].numpy() for n, v in geometry(parent_of(trained, examples), inputs.x).items()}
    mine = {n: v.numpy() for n, v in geometry(Subject(model, lanes.layout, lanes.flat, inputs), inputs.x).items()}
    for concept in ("angle", "length", "margin"):
        unit = 1 if concept == "angle" else parent["length"].mean()
        for i in range(len(lanes)):
            shift = (mine[concept][i] - parent[concept]).mean() / unit
            assert columns[f"{concept}_shift"][i] == pytest.approx(shift, abs=1e-6)
            distance = wasserstein_distance(mine[concept][i], parent[concept]) / unit
            assert columns[f"{concept}_distance"][i] == pytest.approx(distance, abs=1e-6)
            assert distance >= abs(shift) - 1e-9
    for i in range(len(lanes)):
        flipped = np.flatnonzero((mine["margin"][i] > 0) != (parent["margin"] > 0))
        assert columns["fragile_fraction"][i] == pytest.approx(len(flipped) / len(inputs.x))
        lost = (parent["margin"] > 0) & (mine["margin"][i] <= 0)
        assert columns["lost_fraction"][i] == pytest.approx(lost.mean())
        change = np.abs(mine["margin"][i] - parent["margin"])
        expected = sorted(flipped, key=lambda j, change=change: -change[j])[:16]
        assert columns["fragile_indices"][i].tolist() == expected + [-1] * (16 - len(expected))
    assert columns["fragile_fraction"].max() > 0


def test_collapsed_layers_have_a_geometry(trained, examples):
    """No features, no class vectors, or two equal ones: finite, at a right angle, without a boundary."""
    subject = parent_of(trained, examples)

    def without_features(w):
        w["layers.1.weight"].zero_()
        w["layers.1.bias"].zero_()

    def without_vectors(w):
        w["layers.2.weight"].zero_()

    for change in (without_features, without_vectors):
        seen = geometry(changed(subject, change), examples[1].x)
        torch.testing.assert_close(seen["angle"], torch.full_like(seen["angle"], math.pi / 2))
        assert all(values.isfinite().all() for values in seen.values())
    assert (geometry(changed(subject, without_vectors), examples[1].x)["margin"] == 0).all()

    def twins(w):
        w["layers.2.weight"][1] = w["layers.2.weight"][0]
        w["layers.2.bias"][1] = w["layers.2.bias"][0] - 1

    seen = geometry(changed(subject, twins), examples[1].x)
    assert seen["margin"].isfinite().all()
    assert not seen["positive"][0][examples[1].labels == 1].any()  # class 0 is always ahead of its twin
    columns = measure(
        ["shift"],
        subject.model,
        LaneStack(subject.layout, subject.flat, None),
        examples[1],
        parent=(subject.model, changed(subject, without_features).flat[0]),
        seed=0,
    )
    assert np.isnan(columns["length_shift"][0])  # the parent gives no unit
    assert np.isfinite(columns["angle_shift"][0])


class Tempered(MLP):
    """Something comes after the last layer."""

    def head(self, h):
        return super().head(h) / 2


def test_a_model_that_does_not_end_in_a_linear_layer_is_refused(trained, examples):
    model, flat, _, lanes = trained("mlp")
    module = meta_module(Tempered((15, 12, 9, 4), activation="relu", bias=True))
    other = Model(module, model.structure, model.init)
    with pytest.raises(ConfigError, match=r"quality=\['shift'\] of a model whose logits are not those of its last"):
        measure(["shift"], other, lanes, examples[1], parent=(other, flat), seed=0)
    for layer in model.module.modules():
        assert not (isinstance(layer, nn.Linear) and layer._forward_pre_hooks)
