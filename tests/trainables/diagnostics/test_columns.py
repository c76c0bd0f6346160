from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import remains, split_sections
from sparsefront.trainables.diagnostics import COLUMNS, diagnose
from sparsefront.trainables.diagnostics.activity import SILENT_BELOW
from sparsefront.trainables.lanes import node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.models import Model, build_model
from sparsefront.trainables.models.model import StagedModule
from sparsefront.trainables.pack import Examples
from tests.oracles.networks import CLASSIFIERS, small_model

BUILDERS = {"node": node_masked_lanes, "weight": weight_masked_lanes}


def parent_weights(model, seed=0):
    rng = np.random.default_rng(seed)
    return {t.name: torch.from_numpy(rng.standard_normal(t.shape).astype("f")) for t in model.structure.tensors}


def random_masks(structure, kind, n, *, seed=0, density=0.3):
    rng = np.random.default_rng(seed)
    masks = rng.random((n, sum(structure.section_sizes(kind)))) < density
    if kind == "node":
        for section in split_sections(structure, kind, masks):
            section[np.arange(n), rng.integers(section.shape[1], size=n)] = True
    return masks


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_counts_are_those_of_the_mask(family, kind, examples):
    model = small_model(family)
    masks = random_masks(model.structure, kind, 5)
    found = diagnose(model, BUILDERS[kind](model.structure, parent_weights(model), masks), examples[1], kind=kind)
    assert list(found) == list(COLUMNS)
    for lane, mask in enumerate(masks):
        left = remains(model.structure, kind, mask)
        assert found["density_prunable"][lane] == pytest.approx(1 - left.weight_sparsity, abs=1e-12)
        assert found["density_total"][lane] == pytest.approx(left.n_params / model.structure.n_params, abs=1e-12)
        assert found["macs"][lane] == left.macs
        assert found["density_macs"][lane] == left.macs / model.structure.macs
    assert (found["effective_density"] <= found["density_prunable"]).all()
    assert (found["n_constant_units"] <= found["n_dead_units"]).all()
    assert (found["static_dead_fraction"] <= found["dynamic_dead_fraction"]).all()
    if kind == "node":
        np.testing.assert_array_equal(found["effective_density"], found["density_prunable"])
        np.testing.assert_allclose(found["effective_params"], found["density_total"] * model.structure.n_params)
        assert not found["n_dead_units"].any()
        assert not found["is_collapsed"].any()


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_packed_equals_alone(family, kind, examples):
    """Lanes of unlike size are padded when packed: padding is no unit, and no weight."""
    model = small_model(family)
    masks = random_masks(model.structure, kind, 4, seed=1)
    parent = parent_weights(model)
    together = diagnose(model, BUILDERS[kind](model.structure, parent, masks), examples[1], kind=kind)
    for lane in range(4):
        lanes = BUILDERS[kind](model.structure, parent, masks[lane : lane + 1])
        alone = diagnose(model, lanes, examples[1], kind=kind)
        for name in COLUMNS:
            assert together[name][lane] == pytest.approx(alone[name][0], abs=2e-4), name


def recorded(model, lanes, lane, x):
    """Outputs of the module's activations for one lane, by hooks: a list of (units, examples x positions)."""
    seen = []
    hooks = [
        m.register_forward_hook(lambda _, __, out: seen.append(out.movedim(1, 0).flatten(1)))
        for m in model.module.modules()
        if isinstance(m, nn.ReLU | nn.Tanh | nn.GELU | nn.SiLU)
    ]
    functional_call(model.module, {n: t[lane] for n, t in lanes.layout.views(lanes.flat).items()}, (x,))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_dynamic_dead_fraction(family, activation, examples):
    model = small_model(family, activation=activation)
    masks = random_masks(model.structure, "weight", 3)
    lanes = weight_masked_lanes(model.structure, parent_weights(model), masks)
    found = diagnose(model, lanes, examples[1], kind="weight")["dynamic_dead_fraction"]
    for lane in range(3):
        seen = recorded(model, lanes, lane, examples[1].x)
        silent = [(a <= 0) if activation == "relu" else a.abs() < SILENT_BELOW for a in seen]
        expected = torch.cat([s.double().mean(dim=1) for s in silent]).mean().item()
        assert found[lane] == pytest.approx(expected, abs=1e-3)
        assert (0.2 < expected < 0.9) or activation != "relu"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.03, 0.1, 0.3]))
def test_static_dead_units_are_constant_and_silent(seed, density):
    """Oracle: tanh is injective, so that only what the mask made constant stays as it is for random inputs."""
    for family in ("mlp", "residual_mlp", "hourglass"):
        model = small_model(family)
        masks = random_masks(model.structure, "weight", 2, seed=seed, density=density)
        lanes = weight_masked_lanes(model.structure, parent_weights(model, seed), masks)
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal((200, 15)).astype("f"))
        probe = Examples.of(x[:8].numpy(), np.zeros(8, dtype=np.int64), 4, torch.device("cpu"))
        found = diagnose(model, lanes, probe, kind="weight")
        for lane in range(2):
            silent = (torch.cat(recorded(model, lanes, lane, x)) == 0).all(dim=1)
            small = replace(lanes, flat=0.3 * lanes.flat.double())  # far from saturation
            values = torch.cat(recorded(small_model(family, activation="tanh"), small, lane, x.double()))
            constant = values.amax(dim=1) - values.amin(dim=1) < 1e-12
            assert found["static_dead_fraction"][lane] == pytest.approx((constant & silent).double().mean().item())


def hand_network():
    """2-3-2-2 perceptron: unit 0 is constant and silent, unit 1 constant at 1, unit 2 alive; the next layer's unit 0
    sees unit 1 alone, unit 1 sees unit 2."""
    model = build_model("mlp", {"widths": [3, 2]}, input_shape=(2,), n_classes=2)
    parent = {
        "layers.0.weight": torch.ones(3, 2),
        "layers.0.bias": torch.tensor([-1.0, 1.0, 0.0]),
        "layers.1.weight": torch.tensor([[1.0, -2.0, 1.0], [1.0, 1.0, 1.0]]),
        "layers.1.bias": torch.tensor([1.0, 0.0]),
        "layers.2.weight": torch.ones(2, 2),
        "layers.2.bias": torch.zeros(2),
    }
    mask = np.array([[0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1]], dtype=bool)
    x = np.array([[1.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    examples = Examples.of(x, np.array([0, 1]), 2, torch.device("cpu"))
    return model, weight_masked_lanes(model.structure, parent, mask), examples


def test_hand_example():
    model, lanes, examples = hand_network()
    found = {name: values[0] for name, values in diagnose(model, lanes, examples, kind="weight").items()}
    assert found["density_prunable"] == 7 / 16
    assert (found["macs"], found["density_macs"]) == (7, 7 / 16)
    assert found["density_total"] == 14 / 23
    # On paths: two weights into unit 2, one to unit 1 of the next layer, two columns' worth of one unit: 1 and 1.
    assert found["effective_density"] == 5 / 16
    # Biases of the two units on a path and of both outputs.
    assert found["effective_params"] == 5 + 2 + 2
    assert not found["is_collapsed"]
    assert (found["n_dead_units"], found["n_constant_units"]) == (3, 3)
    # Silent for any input: unit 0, and the unit fed 1 - 2 * 1 by unit 1, which itself fires.
    assert found["static_dead_fraction"] == 2 / 5
    assert found["dynamic_dead_fraction"] == (1 + 0 + 0.5 + 1 + 0.5) / 5


@pytest.mark.parametrize(
    ("mask", "is_collapsed"),
    [
        ([1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1], False),
        ([1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], False),
        ([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1], True),  # a tensor without survivors
        ([1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1], True),  # survivors everywhere, but no path
    ],
)
def test_collapse(mask, is_collapsed):
    model = build_model("mlp", {"widths": [2, 2]}, input_shape=(2,), n_classes=2)
    lanes = weight_masked_lanes(model.structure, parent_weights(model), np.array([mask], dtype=bool))
    found = diagnose(model, lanes, None, kind="weight")
    assert found["is_collapsed"].tolist() == [is_collapsed]
    assert (found["effective_density"][0] == 0) == is_collapsed


def test_biases_that_are_pruned_are_no_collapse():
    model = build_model("mlp", {"widths": [2, 2]}, input_shape=(2,), n_classes=2)
    model = replace(model, structure=model.structure.with_prunable_biases())
    mask = np.concatenate([np.full(tensor.size, not tensor.is_bias) for tensor in model.structure.prunable])[None]
    lanes = weight_masked_lanes(model.structure, parent_weights(model), mask)
    assert diagnose(model, lanes, None, kind="weight")["is_collapsed"].tolist() == [False]


def test_collapse_of_one_branch_only():
    """A skip carries the path past an empty layer; the layer has collapsed all the same."""
    model = small_model("residual_mlp")
    mask = np.ones((1, model.structure.n_weights), dtype=bool)
    split_sections(model.structure, "weight", mask)[1][:] = False
    lanes = weight_masked_lanes(model.structure, parent_weights(model), mask)
    found = diagnose(model, lanes, None, kind="weight")
    assert found["is_collapsed"].tolist() == [True]
    assert found["n_dead_units"].tolist() == [0]
    assert found["effective_density"] == found["density_prunable"]


def test_without_examples_or_weights_the_dead_fractions_are_unknown():
    model, lanes, examples = hand_network()
    found = diagnose(model, lanes, None, kind="weight")
    assert np.isnan(found["dynamic_dead_fraction"]).all()
    assert np.isnan(found["static_dead_fraction"]).all()
    two = lanes.select([0, 0])
    two.flat[1, 5] = np.nan
    found = diagnose(model, two, examples, kind="weight")
    assert np.isnan(found["dynamic_dead_fraction"]).tolist() == [False, True]
    assert np.isnan(found["static_dead_fraction"]).tolist() == [False, True]
    assert found["n_dead_units"].tolist() == [3, 3]


class OwnActivation(StagedModule):
    """The hand network's shape with an activation that torch does not name."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((2, 3), (3, 2), (2, 2)))

    def forward(self, x):
        for layer in self.layers[:-1]:
            h = layer(x)
            x = (h + h.abs()) / 2
        return self.layers[-1](x)


class FunctionalActivation(OwnActivation):
    """The same with calls of functions instead of modules."""

    def forward(self, x):
        x = torch.relu(self.layers[0](x))
        x = nn.functional.linear(x, weight=self.layers[1].weight, bias=self.layers[1].bias).relu()
        return self.layers[2](x)


def test_models_of_the_users_own():
    model, lanes, examples = hand_network()
    expected = diagnose(model, lanes, examples, kind="weight")
    functional = diagnose(Model(FunctionalActivation(), model.structure, "torch"), lanes, examples, kind="weight")
    own = diagnose(Model(OwnActivation(), model.structure, "torch"), lanes, examples, kind="weight")
    for name in COLUMNS:
        np.testing.assert_array_equal(functional[name], expected[name])
        assert np.isnan(own[name]).all() if "dead_fraction" in name else own[name] == expected[name]


def test_arguments_stay_as_they_are():
    model, lanes, examples = hand_network()
    before = replace(lanes, flat=lanes.flat.clone(), keep=lanes.keep.clone())
    diagnose(model, lanes, examples, kind="weight")
    assert torch.equal(lanes.flat, before.flat)
    assert torch.equal(lanes.keep, before.keep)


def test_chunks_make_no_difference(examples, monkeypatch):
    model = small_model("conv1d")
    lanes = weight_masked_lanes(model.structure, parent_weights(model), random_masks(model.structure, "weight", 5))
    whole = diagnose(model, lanes, examples[1], kind="weight")
    monkeypatch.setattr("sparsefront.trainables.diagnostics.activity._ACTIVATIONS_AT_ONCE", 1)
    for name, values in diagnose(model, lanes, examples[1], kind="weight").items():
        np.testing.assert_allclose(values, whole[name], atol=2e-4)


def test_unknown_kind_is_refused():
    model, lanes, _ = hand_network()
    with pytest.raises(SpaceError, match="kind='channel': must be 'node' or 'weight'"):
        diagnose(model, lanes, None, kind="channel")
